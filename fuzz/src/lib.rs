//! Fuzz bodies for every parser and state machine.
//!
//! A body is a plain function over bytes that panics when the code under test breaks a promise: on a panic of its own,
//! on a length out of bounds, on bytes that do not survive being emitted and parsed again. Bodies know nothing of how
//! their input is made, so the same ones serve the seeded mutator here and any coverage-guided engine.

#![forbid(unsafe_code)]

pub mod bodies;
pub mod mutate;
pub mod run;
pub mod seeds;

/// A fuzz body.
pub type Body = fn(&[u8]);

/// Every body with its name, which is also its folder under `fuzz/corpus`.
pub const TARGETS: &[(&str, Body)] = &[
    ("headers", bodies::packet::headers),
    ("checksum", bodies::packet::checksum),
    ("icmp", bodies::packet::icmp),
    ("mss", bodies::packet::mss),
    ("ecn", bodies::packet::ecn),
    ("fragment", bodies::packet::fragment),
    ("offload", bodies::packet::offload),
    ("gre", bodies::outer::gre),
    ("ipip", bodies::outer::ipip),
    ("envelope", bodies::outer::envelope),
    ("gossip_envelope", bodies::gossip::envelope),
    ("gossip_message", bodies::gossip::message),
    ("gossip_record", bodies::gossip::record),
    ("policy", bodies::text::policy),
    ("config", bodies::text::config),
    ("control", bodies::text::control),
    ("dataplane", bodies::dataplane::engine),
    ("flows", bodies::dataplane::saved_flows),
    ("dns", bodies::dns::message),
    ("docker", bodies::docker::call),
    ("fib", bodies::routing::fib),
    ("gossip_machine", bodies::routing::gossip),
    ("gossip_certified", bodies::routing::certified),
    ("membership", bodies::membership::formats),
    ("membership_stored", bodies::membership::stored),
    ("issuer", bodies::membership::issuer),
];

/// By how much a target's number of runs is divided in the plain test run, because one run of it costs that much more
/// than a parser's.
#[must_use]
pub fn cost(name: &str) -> u64 {
    match name {
        "gossip_machine" | "gossip_certified" | "issuer" => 50,
        "fib" | "dataplane" | "config" => 4,
        _ => 1,
    }
}

/// The body of this name.
#[must_use]
pub fn target(name: &str) -> Option<Body> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, body)| *body)
}

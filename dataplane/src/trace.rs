//! The steps of one packet through this host in words, from what the packet path itself noted about it.

use std::net::IpAddr;

use overlay_wire::packet::{Headers, protocol};
use overlay_wire::{Mtu, checksum};

use crate::explain::{Outcome, Step};
use crate::note::{Notes, Stage};
use crate::path::End;
use crate::policy::{DecidedBy, Tuple};
use crate::reason::DropReason;
use crate::tables::{Route, Tables};
use crate::verdict::{Origin, Verdict};
use crate::waiting;

/// The smallest packet that [`sample`] makes of a protocol and family, in bytes.
#[must_use]
pub fn smallest(tuple: &Tuple) -> u16 {
    let network = if tuple.src.is_ipv4() { 20 } else { 40 };
    network
        + match tuple.protocol {
            protocol::TCP => 20,
            protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
            _ => 0,
        }
}

/// Makes a packet as a flow of this tuple would send it: for TCP a SYN, for ICMP an echo request; `size` bytes long, or as
/// small as can be, with the don't-fragment bit as given. `None` when the two addresses are of different families.
#[must_use]
pub fn sample(tuple: &Tuple, size: u16, may_fragment: bool) -> Option<Vec<u8>> {
    let len = size.max(smallest(tuple));
    let mut bytes = match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let flags = if may_fragment { 0 } else { 0x40 };
            let mut bytes = vec![0x45, 0, 0, 0, 0, 1, flags, 0, 64, tuple.protocol, 0, 0];
            bytes.extend_from_slice(&src.octets());
            bytes.extend_from_slice(&dst.octets());
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            checksum::fill_ipv4_header(&mut bytes, 20);
            bytes
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut bytes = vec![0x60, 0, 0, 0, 0, 0, tuple.protocol, 64];
            bytes.extend_from_slice(&src.octets());
            bytes.extend_from_slice(&dst.octets());
            bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
            bytes
        }
        _ => return None,
    };
    let ports = [tuple.src_port.to_be_bytes(), tuple.dst_port.to_be_bytes()].concat();
    let payload = usize::from(len) - bytes.len();
    match tuple.protocol {
        protocol::TCP => {
            bytes.extend_from_slice(&ports);
            bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        }
        protocol::UDP => {
            bytes.extend_from_slice(&ports);
            bytes.extend_from_slice(&(payload as u16).to_be_bytes());
            bytes.extend_from_slice(&[0, 0]);
        }
        protocol::ICMP => bytes.extend_from_slice(&[8, 0, 0, 0, 0x0f, 0x1e, 0, 1]),
        protocol::ICMPV6 => bytes.extend_from_slice(&[128, 0, 0, 0, 0x0f, 0x1e, 0, 1]),
        _ => {}
    }
    bytes.resize(len.into(), 0);
    if let Ok(headers) = Headers::parse(&bytes) {
        checksum::fill_transport(&mut bytes, &headers);
    }
    Some(bytes)
}

/// The steps that a packet took, in order; the last one decides.
#[must_use]
pub fn steps(tables: &Tables, tuple: &Tuple, origin: Origin, notes: &Notes, verdict: Verdict) -> Vec<Step> {
    let last = match verdict {
        Verdict::Drop(reason) => Outcome::Drop(reason),
        Verdict::DropWithReply(reason) => Outcome::Reject(reason),
        Verdict::Wait(_) => Outcome::Drop(DropReason::IdentityUnknown),
        Verdict::Forward(_) | Verdict::ForwardFragmented(..) | Verdict::Deliver | Verdict::Held => Outcome::Pass,
    };
    let stages = [Stage::Early, Stage::Path, Stage::Policy, Stage::Flow, Stage::Table, Stage::Size, Stage::Rate];
    let mut steps = Vec::with_capacity(stages.len());
    for stage in stages {
        let decides = stage == notes.reached;
        let outcome = if decides { last } else { Outcome::Pass };
        let detail = match stage {
            _ if stage > notes.reached && !decides => None,
            Stage::Early => Some(match outcome.reason() {
                None => "addresses and protocol may appear on the overlay".to_owned(),
                Some(reason) => format!("{tuple} never belongs on the overlay ({reason})"),
            }),
            Stage::Path => Some(path_words(tables, tuple, origin, notes, outcome)),
            Stage::Policy => notes.decision.map(|decision| policy_words(tables, tuple, decision.by)),
            Stage::Flow => flow_words(notes, outcome),
            Stage::Table => outcome.reason().map(|reason| format!("no room for another flow ({reason})")),
            Stage::Size => size_words(tuple, notes, verdict),
            Stage::Rate => rate_words(tables, notes, outcome),
            Stage::Fragment => None,
        };
        let by = if stage == Stage::Policy { notes.decision.map(|decision| decision.by) } else { None };
        if let Some(detail) = detail {
            steps.push(Step { stage, outcome, detail, decided_by: by });
        }
    }
    steps
}

fn path_words(tables: &Tables, tuple: &Tuple, origin: Origin, notes: &Notes, outcome: Outcome) -> String {
    let owners = format!(
        "{} is {}, {} is {}",
        tuple.src,
        owner(tables, notes.source.flatten()),
        tuple.dst,
        owner(tables, notes.target.flatten()),
    );
    if let Some(reason) = outcome.reason() {
        return match origin {
            Origin::Tun => format!("{owners}: refused from a container or program of this host ({reason})"),
            Origin::Peer(peer) => format!("{owners}: refused from {} ({reason})", tables.peer_name(Route::Peer(peer))),
        };
    }
    let way = match (origin, notes.target.flatten(), notes.ends) {
        (_, Some(Route::Peer(peer)), _) => format!("goes to {}", tables.peer_name(Route::Peer(peer))),
        (Origin::Peer(_), ..) => "is for this host".to_owned(),
        (_, _, Some((_, End::Outside))) => "leaves through this host".to_owned(),
        _ => "stays on this host".to_owned(),
    };
    format!("{owners}: {way}")
}

/// What decided, in words.
#[must_use]
pub fn policy_words(tables: &Tables, tuple: &Tuple, by: DecidedBy) -> String {
    match by {
        DecidedBy::Rule(place) => match tables.policy.rules().get(place as usize) {
            Some(rule) => format!("rule {}: {rule}", place + 1),
            None => format!("rule {}", place + 1),
        },
        DecidedBy::Default(grounds) => grounds.to_string(),
        DecidedBy::Labels { rule, of } => {
            let address = of.of(tuple);
            let host = owner(tables, tables.owners.lookup(address).copied());
            let rule = policy_words(tables, tuple, DecidedBy::Rule(rule));
            format!(
                "{rule}: the labels of {address}, {host}, are not known here; packets wait up to {} s for them, then they are \
                 denied",
                waiting::WAIT.as_secs()
            )
        }
    }
}

fn flow_words(notes: &Notes, outcome: Outcome) -> Option<String> {
    let flow = notes.flow.map(|flow| {
        let way = if flow.is_reply { "an answer in a flow" } else { "part of a flow" };
        format!("{way} that is tracked already ({})", flow.state)
    });
    match (flow, outcome.reason()) {
        (Some(flow), None) => Some(flow),
        (Some(flow), Some(reason)) => Some(format!("{flow}, and does not fit it ({reason})")),
        (None, Some(reason)) => Some(format!("belongs to no flow and cannot open one ({reason})")),
        (None, None) => None,
    }
}

fn size_words(tuple: &Tuple, notes: &Notes, verdict: Verdict) -> Option<String> {
    let size = notes.size?;
    let (len, mtu) = (size.size, size.mtu.get());
    Some(match verdict {
        Verdict::ForwardFragmented(_, mtu) => format!("{len} bytes, cut into fragments of {} at most", mtu.get()),
        _ if len > mtu.into() => format!("{len} bytes, and the peer takes {mtu}: the sender is told so"),
        _ if !tuple.src.is_ipv4() && mtu == Mtu::IPV6_MIN.get() => {
            format!("{len} bytes of the {mtu} that IPv6 needs; fragmented outside where the path takes less")
        }
        _ => format!("{len} bytes of the {mtu} that the peer takes in one piece"),
    })
}

fn rate_words(tables: &Tables, notes: &Notes, outcome: Outcome) -> Option<String> {
    match (outcome.reason(), notes.limit) {
        (Some(reason), Some(place)) => {
            let name = tables.rates.limits().get(place as usize).map_or("", |limit| limit.name());
            Some(format!("over the limit of {name} right now ({reason})"))
        }
        _ => Some("within the limits that are set right now".to_owned()),
    }
}

fn owner(tables: &Tables, route: Option<Route>) -> String {
    match route {
        Some(Route::Local) => "on this host".to_owned(),
        Some(route) => format!("owned by {}", tables.peer_name(route)),
        None => "owned by nobody".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, ip};
    use crate::{DropReason, Question, rehearse};

    fn traced(world: &World, tuple: &Tuple, size: u16, origin: Origin) -> Vec<Step> {
        let mut packet = sample(tuple, size, false).expect("one family");
        let headers = Headers::parse(&packet).expect("a valid packet");
        let segment_len = if origin == Origin::Tun { packet.len() } else { 0 };
        let question = Question { origin, headers: &headers, segment_len, segments: 1 };
        let (verdict, notes) = rehearse(world.engine.conntrack(), &world.tables, &question, &mut packet, world.now);
        steps(&world.tables, tuple, origin, &notes, verdict)
    }

    fn tuple(src: &str, dst: &str, protocol: u8, dst_port: u16) -> Tuple {
        Tuple { src: ip(src), dst: ip(dst), protocol, src_port: 1000, dst_port }
    }

    #[test]
    fn samples_are_whole_packets_of_their_tuple() {
        for (src, dst) in [("10.42.1.5", "10.42.2.5"), ("fd42:0:0:1::5", "fd42:0:0:2::5")] {
            for protocol in [6, 17, if ip(src).is_ipv4() { 1 } else { 58 }, 50] {
                for size in [0, 100, 1500, u16::MAX] {
                    let tuple = tuple(src, dst, protocol, 80);
                    let packet = sample(&tuple, size, true).expect("one family");
                    let headers = Headers::parse(&packet).expect("a valid packet");
                    assert_eq!((headers.src, headers.dst, headers.protocol), (tuple.src, tuple.dst, protocol));
                    assert_eq!(packet.len(), usize::from(size.max(smallest(&tuple))));
                    assert!(checksum::verify_transport(&packet, &headers), "{protocol} {size}");
                }
            }
        }
        assert_eq!(sample(&tuple("10.42.1.5", "fd42:0:0:2::5", 6, 80), 0, false), None);
    }

    #[test]
    fn steps_end_with_the_one_that_decides() {
        let world = World::new("allow tcp/443 from any to any\ndeny tcp from any to any\ndefault members");
        for (src, dst, port, size, origin, stages, last) in [
            ("10.42.1.5", "10.42.2.5", 443, 60, Origin::Tun, "addresses path policy size", Outcome::Pass),
            (
                "10.42.1.5",
                "10.42.2.5",
                22,
                60,
                Origin::Tun,
                "addresses path policy",
                Outcome::Drop(DropReason::PolicyDeny),
            ),
            (
                "10.42.1.5",
                "10.42.2.5",
                443,
                1500,
                Origin::Tun,
                "addresses path policy size",
                Outcome::Reject(DropReason::TooBig),
            ),
            (
                "10.42.2.5",
                "10.42.1.5",
                443,
                60,
                Origin::Peer(crate::testing::H2),
                "addresses path policy",
                Outcome::Pass,
            ),
            (
                "10.42.3.5",
                "10.42.1.5",
                443,
                60,
                Origin::Peer(crate::testing::H2),
                "addresses path",
                Outcome::Drop(DropReason::ForeignSource),
            ),
            ("10.42.1.5", "127.0.0.1", 443, 60, Origin::Tun, "addresses", Outcome::Drop(DropReason::Martian)),
        ] {
            let steps = traced(&world, &tuple(src, dst, 6, port), size, origin);
            let names: Vec<String> = steps.iter().map(|step| step.stage.to_string()).collect();
            assert_eq!(names.join(" "), stages, "{src} to {dst}: {steps:?}");
            assert_eq!(steps.last().expect("a step").outcome, last, "{src} to {dst}: {steps:?}");
        }
    }
}

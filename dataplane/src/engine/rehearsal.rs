//! A trace equals reality: what a rehearsal says of a packet is what the engine then does with it.

use std::sync::Arc;
use std::time::Duration;

use overlay_wire::packet::Headers;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::rate::{Limit, Rate, RateTable};
use crate::testing::*;

const SOURCES: [&str; 7] =
    ["10.42.1.5", "10.42.1.6", "10.42.1.1", "10.42.2.5", "10.42.2.130", "10.99.0.5", "198.51.100.7"];
const TARGETS: [&str; 8] =
    ["10.42.2.5", "10.42.2.130", "10.42.1.5", "10.42.1.1", "10.42.77.1", "10.99.0.5", "198.51.100.7", "10.42.9.5"];
const PROTOCOLS: [&str; 8] = ["any", "tcp", "udp", "icmp", "tcp/80", "udp/53,1000-2000", "tcp/22,80", "50"];
const ENDS: [&str; 8] =
    ["any", "10.42.0.0/16", "host:h2", "10.42.1.5", "10.42.2.128/25", "10.99.0.0/16", "role=web", "role=db"];
/// Packets judged in each world.
const PACKETS: usize = 500;

struct Dice(ChaCha8Rng);

impl Dice {
    fn below(&mut self, bound: u32) -> u32 {
        self.0.next_u32() % bound
    }

    fn of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.below(choice.len() as u32) as usize]
    }

    fn rules(&mut self) -> String {
        let mut rules: Vec<String> = (0..self.below(6))
            .map(|_| {
                let action = self.of(&["allow", "allow", "deny", "reject"]);
                format!("{action} {} from {} to {}", self.of(&PROTOCOLS), self.of(&ENDS), self.of(&ENDS))
            })
            .collect();
        rules.push(format!("default {}", self.of(&["open", "members", "deny"])));
        rules.join("\n")
    }

    /// Addresses that mostly belong where the packet comes from, and ports that mostly belong to few conversations.
    fn ends(&mut self, origin: Origin) -> (&'static str, &'static str, u16, u16) {
        let (client, server) = (self.of(&[1000u16, 1000, 1001]), self.of(&[80u16, 80, 53, 22, 1500]));
        let (sport, dport) = if self.below(2) == 0 { (client, server) } else { (server, client) };
        if self.below(5) == 0 {
            return (self.of(&SOURCES), self.of(&TARGETS), sport, dport);
        }
        let own = self.of(&["10.42.1.5", "10.42.1.5", "10.42.1.6"]);
        let (src, dst) = match origin {
            Origin::Tun => (own, self.of(&["10.42.2.5", "10.42.2.5", "10.42.2.130", "10.99.0.5", "198.51.100.7"])),
            Origin::Peer(H2) => ("10.42.2.5", own),
            Origin::Peer(H3) => ("10.42.2.130", own),
            Origin::Peer(_) => ("10.99.0.5", own),
        };
        (src, dst, sport, dport)
    }

    fn packet(&mut self, origin: Origin, last: Option<&[u8]>) -> Vec<u8> {
        let (src, dst, sport, dport) = self.ends(origin);
        let len = self.of(&[0usize, 10, 1000, 1180, 1280, 1372, 1400, 3000]);
        let bytes = match self.below(12) {
            0..=3 => {
                let flags = self.of(&[SYN, SYN, SYN | ACK, SYN | ACK, ACK, ACK, ACK | FIN, RST | ACK, SYN | FIN]);
                // As the two ends of a conversation number them, or far off.
                let first = if sport >= 1000 { 1000 } else { 5000 };
                let seq = if flags & SYN != 0 { first } else { self.of(&[first + 1, first + 1, 900_000_000]) };
                let ack = if flags & ACK != 0 { 6001 - first } else { 0 };
                let len = if flags & SYN != 0 { 0 } else { len };
                segment(src, sport, dst, dport, flags, seq, ack, len)
            }
            4..=6 => udp(src, sport, dst, dport, len),
            7 | 8 => icmp(src, dst, self.of(&[8, 8, 0, 0, 5, 13]), 0, sport, &vec![0; len]),
            9 => packet(src, dst, self.of(&[50, 4, 47, 132]), &vec![0; len]),
            // An error about the packet before.
            _ => match last.filter(|last| last.len() >= 40) {
                Some(last) => {
                    let about =
                        |at: usize| std::net::Ipv4Addr::from([last[at], last[at + 1], last[at + 2], last[at + 3]]);
                    icmp(&about(16).to_string(), &about(12).to_string(), 3, 1, 0, &last[..last.len().min(48)])
                }
                None => udp(src, sport, dst, dport, len),
            },
        };
        if self.below(3) == 0 { may_fragment(bytes) } else { bytes }
    }
}

/// The check that decides about a reason.
fn stage_of(reason: DropReason) -> Stage {
    use DropReason as R;
    match reason {
        R::SpoofedSource | R::ForeignSource | R::Transit | R::NoOwner | R::UnknownPeer => Stage::Path,
        R::PolicyDeny | R::PolicyReject | R::PolicyDefault | R::PolicyRevoked | R::IdentityUnknown => Stage::Policy,
        R::TcpFlags | R::TcpNoFlow | R::TcpState | R::TcpWindow | R::TcpReset => Stage::Flow,
        R::IcmpNoFlow | R::IcmpUnrelated | R::IcmpRate => Stage::Flow,
        R::ConntrackFull | R::SourceShare => Stage::Table,
        R::FragmentOverlap | R::FragmentLimit | R::FragmentTimeout | R::FragmentRefused => Stage::Fragment,
        R::TooBig => Stage::Size,
        R::RateLimit | R::PacketRateLimit => Stage::Rate,
        _ => Stage::Early,
    }
}

fn limited(world: &World) -> RateTable {
    let rate = Rate { bits: Some(5000), burst: Some(1000), packets: None };
    let packets = Rate { packets: Some(1), ..Rate::default() };
    let limit = |name: &str, from, to| Arc::new(Limit::new(name, from, to, world.now));
    RateTable::build(vec![
        (limit("a", rate, packets), vec![prefix("10.42.1.5/32")], None),
        (limit("b", packets, rate), vec![], Some(H2)),
    ])
}

#[test]
fn trace_equals_reality_on_ten_thousand_random_packets() {
    let mut waited = 0;
    let mut reasons = std::collections::BTreeMap::<Option<DropReason>, usize>::new();
    for seed in 0..24u64 {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
        // Some worlds have a table so small that shares and room run out, some are too young to refuse mid-stream segments.
        let entries = if seed % 3 == 0 { 64 } else { 1024 };
        let mut world = World::fresh(&dice.rules(), Limits { conntrack_entries: entries });
        if seed % 2 == 0 {
            world.advance(61);
        }
        if seed % 4 == 1 {
            world.tables.rates = limited(&world);
        }
        let mut last: Option<Vec<u8>> = None;
        for place in 0..PACKETS {
            world.now += Duration::from_millis(u64::from(
                dice.of(&[1u32, 5, 20, 100, 40_000][..if place % 200 == 0 { 5 } else { 4 }]),
            ));
            if dice.below(60) == 0 {
                world.set_policy(&dice.rules());
            }
            let origin =
                dice.of(&[Origin::Tun, Origin::Tun, Origin::Peer(H2), Origin::Peer(H3), Origin::Peer(FOREIGN)]);
            let mut packet = dice.packet(origin, last.as_deref());
            if dice.below(4) == 0 && seed % 3 == 0 {
                // Many flows of one source.
                let port = 2000 + place as u16;
                packet = udp("10.42.1.5", port, "10.42.2.5", 53, 0);
            }
            let Ok(headers) = Headers::parse(&packet) else { continue };
            let segments = if headers.tcp().is_some() && packet.len() > 1000 { dice.of(&[1u32, 3]) } else { 1 };
            let segment_len = if origin == Origin::Tun { packet.len() / segments as usize } else { 0 };
            let question = Question { origin, headers: &headers, segment_len, segments };

            let hits = world.tables.policy.hits();
            let flows = world.flows();
            let counters = world.engine.counters().clone();
            let told = rehearse(world.engine.conntrack(), &world.tables, &question, &mut packet.clone(), world.now);
            assert_eq!(world.tables.policy.hits(), hits, "a rehearsal is not counted");
            assert_eq!(world.flows(), flows, "a rehearsal leaves the flows alone");
            assert_eq!(*world.engine.counters(), counters);

            let context = format!("seed {seed}, packet {place}: {origin:?} {headers:?}, {told:?}");
            // The silent way and the one that tells are the same: take turns.
            let verdict = match (place % 3, origin) {
                (0, _) => {
                    let (verdict, notes) =
                        world.engine.explained(&world.tables, &question, &mut packet, world.now, &mut world.reply);
                    assert_eq!(notes, told.1, "{context}");
                    verdict
                }
                (_, Origin::Tun) => world.engine.outbound(
                    &world.tables,
                    &headers,
                    &mut packet,
                    segment_len,
                    segments,
                    world.now,
                    &mut world.reply,
                ),
                (_, Origin::Peer(peer)) => world.engine.inbound(
                    &world.tables,
                    peer,
                    &headers,
                    &mut packet,
                    segments,
                    world.now,
                    &mut world.reply,
                ),
            };
            assert_eq!(told.0, verdict, "{context}");
            match verdict.drop_reason() {
                Some(reason) => assert_eq!(told.1.reached, stage_of(reason), "{context}"),
                None if matches!(verdict, Verdict::Wait(_)) => {
                    waited += 1;
                    assert_eq!(told.1.reached, Stage::Policy, "{context}");
                }
                None => assert!(told.1.reached >= Stage::Size, "{context}"),
            }
            *reasons.entry(verdict.drop_reason()).or_default() += 1;
            last = Some(packet);
        }
    }
    let judged: usize = reasons.values().sum();
    assert!(judged >= 10_000, "{judged}");
    // The dice reach every part of the path, so that agreement means something.
    use DropReason as R;
    for reason in [
        R::SpoofedSource,
        R::ForeignSource,
        R::Transit,
        R::NoOwner,
        R::UnknownPeer,
        R::PolicyDeny,
        R::PolicyReject,
        R::PolicyDefault,
        R::PolicyRevoked,
        R::TcpFlags,
        R::TcpNoFlow,
        R::TcpWindow,
        R::IcmpNoFlow,
        R::IcmpUnrelated,
        R::SourceShare,
        R::TooBig,
        R::RateLimit,
        R::PacketRateLimit,
        R::NestedTunnel,
        R::IcmpControl,
    ] {
        assert!(reasons.contains_key(&Some(reason)), "no packet ended with {reason}: {reasons:?}");
    }
    assert!(reasons[&None] > 1000, "{reasons:?}");
    assert!(waited > 20, "{waited} packets waited for labels");
}

#[test]
fn established_flow_names_the_rule_that_keeps_it_and_its_direction() {
    let mut world = World::new("allow tcp/80 from any to 10.42.2.5\ndefault deny");
    world.connect("10.42.1.5", 1000, "10.42.2.5", 80);
    let mut answer = segment("10.42.2.5", 80, "10.42.1.5", 1000, ACK, 5001, 1001, 100);
    let headers = Headers::parse(&answer).expect("a packet");
    let question = Question { origin: Origin::Peer(H2), headers: &headers, segment_len: 0, segments: 1 };
    let (verdict, notes) = rehearse(world.engine.conntrack(), &world.tables, &question, &mut answer, world.now);
    assert_eq!(verdict, Verdict::Deliver);
    let flow = notes.flow.expect("a flow");
    assert_eq!((flow.state, flow.is_reply), (crate::FlowState::Established, true));
    assert_eq!(notes.decision.map(|decision| decision.by), Some(crate::DecidedBy::Rule(0)));
}

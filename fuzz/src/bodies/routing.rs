//! The gossip state machine and the forwarding table.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use overlay_routing::fib::Fib;
use overlay_routing::gossip::{
    Gossip, GossipConfig, GossipEvent, Introduction, Membership, OwnHost, StaticMember, Transmit, cluster_id,
};
use overlay_routing::identity::IdentityKey;
use overlay_routing::membership::CaKey;
use overlay_wire::gossip::body::FEATURE_CLOCK;
use overlay_wire::gossip::{Grant, RouteAnnouncement, envelope};
use overlay_wire::membership::{AuthorityBody, Certificate, Labels, Rights, Serial};
use overlay_wire::{Encapsulation, Mtu, Prefix};

use super::Input;

/// Most operations of one script: each may cost several signatures.
const MAX_OPERATIONS: usize = 64;
/// The wall clock at the start of scripts with certificates, Unix seconds.
const START: u64 = 1_800_000_000;
/// Most datagrams one call may leave to be sent between two members.
const MAX_BURST: usize = 600;

/// Two members and a script of deliveries, losses, copies, damage, pauses, announcements and foreign bytes.
///
/// Foreign bytes are answered with silence, no burst is unbounded, no timer stays due, and nothing sent is too long.
pub fn gossip(bytes: &[u8]) {
    script(bytes, node, false);
}

/// The same with members by certificate; beside it the wall clock jumps, policies are published and hosts revoked.
pub fn certified(bytes: &[u8]) {
    script(bytes, certified_node, true);
}

fn script(bytes: &[u8], node: fn(usize, Instant, u64) -> Gossip, by_certificate: bool) {
    let start = Instant::now();
    let mut now = start;
    let mut nodes = [node(0, now, 1), node(1, now, 1)];
    let mut epoch = 1;
    let mut wire: VecDeque<(usize, Transmit)> = VecDeque::new();
    let mut input = Input::new(bytes);
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let operation = input.u8();
        let at = usize::from(operation >> 7);
        match operation & 0x0f {
            // Mostly deliver, so that scripts get far.
            0..=5 => {
                if let Some((from, transmit)) = wire.pop_front() {
                    deliver(&mut nodes, from, &transmit.bytes, now);
                }
            }
            6 => drop(wire.pop_front()),
            7 => {
                if let Some(copy) = wire.front().cloned() {
                    wire.push_back(copy);
                }
            }
            8 => {
                if let Some((from, transmit)) = wire.pop_front() {
                    let mut bytes = transmit.bytes;
                    let place = usize::from(input.u16()) % bytes.len().max(1);
                    if let Some(byte) = bytes.get_mut(place) {
                        *byte ^= input.u8() | 1;
                    }
                    let silent = sent_after(&mut nodes[1 - from], |node| {
                        node.handle_datagram(address(from), &bytes, now);
                    });
                    assert!(silent.is_empty(), "a damaged datagram is answered");
                }
            }
            9 => {
                let len = usize::from(input.u16() % 1500);
                let foreign = input.take(len).to_vec();
                let silent = sent_after(&mut nodes[at], |node| {
                    node.handle_datagram(SocketAddr::from(([203, 0, 113, 9], 9)), &foreign, now);
                });
                assert!(silent.is_empty(), "foreign bytes are answered");
            }
            10 => {
                let third = input.u8();
                let prefix = Prefix::truncating(IpAddr::from([10, third, 42, 0]), input.u8() % 33).expect("at most 32");
                let _ = nodes[at].announce(vec![RouteAnnouncement { prefix, metric: 1 }], now);
            }
            11 => {
                let other = nodes[1 - at].host_id();
                nodes[at].probe_now(now);
                nodes[at].check(other, now);
                nodes[at].ask_clock(other, now);
            }
            12 => {
                epoch += 1;
                nodes[at] = node(at, now, epoch);
            }
            13 if by_certificate => {
                let unix = START.wrapping_add(u64::from(input.u16()) * 3600);
                nodes[at].set_unix_time(if unix.is_multiple_of(7) { u64::from(operation) } else { unix }, now);
            }
            14 if by_certificate => {
                let what = input.u8();
                if what & 0x80 == 0 {
                    let text = "# a policy\n".repeat(usize::from(what));
                    let _ = nodes[at].publish_policy(u64::from(what), &text, now);
                } else {
                    let host = IdentityKey::from_bytes(&[what & 0x7f; 32]).host_id();
                    let body = AuthorityBody::Revoked(vec![host]);
                    let record = CaKey::from_bytes(&[0xca; 32]).record(&cluster_id("fuzz"), 1, what.into(), &body);
                    nodes[at].publish_authority(record.into_iter().collect(), now);
                }
            }
            _ => now += Duration::from_millis(u64::from(input.u16() % 4000)),
        }
        for (from, node) in nodes.iter_mut().enumerate() {
            node.handle_timeout(now);
            let due = node.poll_timeout().expect("a member always has a timer");
            assert!(due > now, "a timer stays due after it was handled");
            wire.extend(drain(node).into_iter().map(|transmit| (from, transmit)));
            let _ = (node.members(), node.rib(), node.counters());
        }
        wire.truncate(MAX_BURST);
    }
}

fn deliver(nodes: &mut [Gossip; 2], from: usize, bytes: &[u8], now: Instant) {
    nodes[1 - from].handle_datagram(address(from), bytes, now);
}

/// What a call leaves to be sent. Everything due before must have been drained.
fn sent_after(node: &mut Gossip, call: impl FnOnce(&mut Gossip)) -> Vec<Transmit> {
    call(node);
    drain(node)
}

fn drain(node: &mut Gossip) -> Vec<Transmit> {
    while let Some(event) = node.poll_event() {
        if let GossipEvent::ClockAsked { host, nonce } = event {
            node.tell_clock(host, nonce, nonce);
        }
    }
    let mut sent = Vec::new();
    while let Some(transmit) = node.poll_transmit() {
        assert!(transmit.bytes.len() <= envelope::MAX_SENT_BYTES);
        assert!(transmit.bytes.first().is_some_and(|first| *first >= 32), "gossip is told from WireGuard by its byte");
        sent.push(transmit);
        assert!(sent.len() <= MAX_BURST);
    }
    sent
}

fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, index as u8 + 1], 51821))
}

fn node(index: usize, now: Instant, epoch: u64) -> Gossip {
    let prefix = |index: usize| format!("10.42.{}.0/24", index + 1);
    let identity = |index: usize| IdentityKey::from_bytes(&[index as u8 + 1; 32]);
    let grant = |text: &str| text.parse::<Grant>().expect("a fixed grant parses");
    let other = 1 - index;
    let config = GossipConfig {
        identity: identity(index),
        cluster: cluster_id("fuzz"),
        own: OwnHost {
            name: format!("h{}", index + 1),
            endpoints: vec![address(index)],
            wireguard_key: [index as u8 + 1; 32],
            encapsulation: Encapsulation::Wireguard,
            mtu: Mtu::ETHERNET,
            features: FEATURE_CLOCK,
            software: "fuzz".to_owned(),
            prefixes: vec![prefix(index).parse().expect("a fixed prefix parses")],
        },
        members: vec![StaticMember {
            name: format!("h{}", other + 1),
            identity: identity(other).public(),
            endpoints: vec![address(other)],
            allow: vec![grant(&prefix(other)), grant("10.0.0.0/8 max 24")],
        }],
        foreign: Vec::new(),
    };
    Gossip::new(config, [index as u8 + 40 + epoch as u8; 32], now, epoch).expect("the fixed configuration is valid")
}

fn certified_node(index: usize, now: Instant, epoch: u64) -> Gossip {
    let ca = CaKey::from_bytes(&[0xca; 32]);
    let certificate = |index: usize| {
        let identity = IdentityKey::from_bytes(&[index as u8 + 1; 32]).public();
        let certificate = Certificate {
            ca: ca.id(),
            identity: *identity.as_bytes(),
            name: format!("h{}", index + 1),
            serial: Serial(index as u64 + 1),
            admitted: Serial(index as u64 + 1),
            grants: vec![Grant::explicit(format!("10.42.{}.0/24", index + 1).parse().expect("a fixed prefix parses"))],
            max_prefixes: 64,
            labels: Labels::new(),
            rights: Rights::POLICY,
            not_before: START - 300,
            not_after: START + 24 * 3600,
        };
        ca.certify(&cluster_id("fuzz"), certificate).expect("the fixed certificate fits")
    };
    let mut gossip = node(index, now, epoch);
    let other = 1 - index;
    let membership = Membership {
        unix_now: START,
        trusted: vec![ca.public()],
        certificate: Some(certificate(index)),
        introductions: vec![Introduction { certificate: certificate(other), endpoints: vec![address(other)] }],
        is_issuer: index == 0,
        ..Membership::default()
    };
    gossip.set_members(Vec::new(), now).expect("an empty list is valid");
    gossip.set_membership(membership, now).expect("the fixed membership is valid");
    gossip
}

/// The forwarding table finds what a linear search for the longest covering prefix finds.
pub fn fib(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut routes: Vec<(Prefix, usize)> = Vec::new();
    let count = usize::from(input.u8() % 40);
    let mut address = |control: u8| -> IpAddr {
        if control & 0x80 == 0 {
            IpAddr::from(input.array::<4>())
        } else {
            // Only the ends vary, so that prefixes overlap often.
            let [a, b, c, d] = input.array::<4>();
            IpAddr::from([0xfd, a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, c, d])
        }
    };
    let controls: Vec<u8> = bytes.iter().rev().copied().take(count).collect();
    for (index, control) in controls.iter().enumerate() {
        let address = address(*control);
        let len = if address.is_ipv4() { control % 33 } else { control % 129 };
        let prefix = Prefix::truncating(address, len).expect("the length fits the family");
        routes.push((prefix, index));
    }
    let fib = Fib::build(routes.clone());
    let probes: Vec<IpAddr> = (0..8).map(|index| address(index << 6)).collect();
    for target in routes.iter().map(|(prefix, _)| prefix.addr()).chain(probes) {
        let mut best: Option<&(Prefix, usize)> = None;
        for route in routes.iter().filter(|(prefix, _)| prefix.contains(target)) {
            // Where a prefix is given twice the later value counts.
            if best.is_none_or(|(prefix, _)| route.0.len() >= prefix.len()) {
                best = Some(route);
            }
        }
        assert_eq!(fib.lookup(target), best.map(|(_, value)| value), "lookup of {target}");
    }
}

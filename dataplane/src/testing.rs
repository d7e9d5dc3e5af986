//! A small world for tests: three hosts, a foreign peer, and packets made by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_routing::fib::Fib;
use overlay_routing::identities::{HostIdentities, Identities};
use overlay_wire::gossip::Labels;
use overlay_wire::packet::{Headers, TcpFlags};
use overlay_wire::policy::PolicySet;
use overlay_wire::{HostId, Mtu, PeerIndex, Prefix, checksum};

use crate::*;

pub(crate) const SYN: u8 = TcpFlags::SYN;
pub(crate) const ACK: u8 = TcpFlags::ACK;
pub(crate) const FIN: u8 = TcpFlags::FIN;
pub(crate) const RST: u8 = TcpFlags::RST;

/// The member behind `10.42.2.0/24`.
pub(crate) const H2: PeerIndex = PeerIndex(0);
/// The foreign peer behind `10.99.0.0/24`.
pub(crate) const FOREIGN: PeerIndex = PeerIndex(1);
/// The member behind `10.42.3.0/24` and, inside H2's `10.42.2.0/24`, `10.42.2.128/25`.
pub(crate) const H3: PeerIndex = PeerIndex(2);

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("a valid address in a test")
}

pub(crate) fn prefix(text: &str) -> Prefix {
    text.parse().expect("a valid prefix in a test")
}

pub(crate) fn hosts(name: &str) -> Option<Vec<Prefix>> {
    match name {
        "h1" => Some(vec![prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")]),
        "h2" => Some(vec![prefix("10.42.2.0/24"), prefix("fd42:0:0:2::/64")]),
        _ => None,
    }
}

/// Hosts by name, and what is known of labels.
pub(crate) struct Known(pub(crate) Identities);

impl policy::HostResolver for Known {
    fn prefixes(&self, name: &str) -> Option<Vec<Prefix>> {
        hosts(name)
    }

    fn identities(&self) -> Option<&Identities> {
        Some(&self.0)
    }
}

/// Labels of addresses, as `role=web,tier=1`; those of H2 and H3 that are not listed are unknown.
pub(crate) fn identities(list: &[(&str, &str)]) -> Identities {
    let mut hosts: BTreeMap<Option<HostId>, HostIdentities> = BTreeMap::new();
    for (address, labels) in list {
        let address = ip(address);
        let labels: Labels = labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let is_own = ["10.42.1.0/24", "fd42:0:0:1::/64"].iter().any(|own| prefix(own).contains(address));
        let host = if is_own { None } else { Some(HostId([2; 16])) };
        hosts.entry(host).or_default().addresses.push((address, Arc::new(labels)));
    }
    let hosts = hosts.into_iter().map(|(host, mut known)| {
        known.addresses.sort_unstable();
        (host, Arc::new(known))
    });
    let uncertain = ["10.42.2.0/24", "fd42:0:0:2::/64", "10.42.3.0/24"].map(prefix);
    Identities::new(hosts.collect(), uncertain.to_vec())
}

/// What is known of labels in the small world.
pub(crate) const LABELS: [(&str, &str); 5] = [
    ("10.42.1.5", "role=web"),
    ("10.42.1.6", "role=batch"),
    ("10.42.2.5", "role=db"),
    ("10.42.2.6", ""),
    ("fd42:0:0:2::5", "role=db"),
];

pub(crate) fn policy(text: &str) -> CompiledPolicy {
    policy_with(text, identities(&LABELS))
}

pub(crate) fn policy_with(text: &str, identities: Identities) -> CompiledPolicy {
    let set: PolicySet = text.parse().expect("a valid policy in a test");
    CompiledPolicy::compile(&set, &Known(identities))
}

/// The tables of host h1 (`10.42.1.0/24`), which also announces `192.168.7.0/24`.
pub(crate) fn tables(rules: &str) -> Tables {
    let routes = [
        ("10.42.1.0/24", Route::Local),
        ("fd42:0:0:1::/64", Route::Local),
        ("192.168.7.0/24", Route::Local),
        ("10.42.2.0/24", Route::Peer(H2)),
        ("fd42:0:0:2::/64", Route::Peer(H2)),
        ("10.42.2.128/25", Route::Peer(H3)),
        ("10.42.3.0/24", Route::Peer(H3)),
        ("10.99.0.0/24", Route::Peer(FOREIGN)),
        ("10.42.9.0/24", Route::Peer(PeerIndex(99))),
    ];
    let peer = |name: &str, mtu, member| PeerInfo {
        name: name.to_owned(),
        inner_mtu: Mtu::new(mtu).expect("a valid MTU in a test"),
        authenticated: true,
        member,
    };
    Tables {
        owners: Fib::build(routes.map(|(text, route)| (prefix(text), route)).to_vec()),
        policy: policy(rules),
        revision: 1,
        peers: vec![peer("h2", 1420, true), peer("partner", 1300, false), peer("h3", 1200, true)],
        local: LocalAddresses {
            host: vec![ip("10.42.1.1"), ip("fd42:0:0:1::1")],
            prefixes: vec![prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")],
            pool: vec![prefix("10.42.0.0/16"), prefix("fd42::/48")],
            announced: vec![prefix("192.168.7.0/24")],
        },
        rates: RateTable::default(),
    }
}

/// One host's packet path under a clock of its own.
pub(crate) struct World {
    pub(crate) tables: Tables,
    pub(crate) engine: Engine,
    pub(crate) now: Instant,
    pub(crate) reply: Reply,
}

impl World {
    /// A host with this policy, past the time of mid-stream pickup.
    pub(crate) fn new(rules: &str) -> Self {
        let mut world = Self::fresh(rules, Limits { conntrack_entries: 1024 });
        world.advance(61);
        world
    }

    pub(crate) fn fresh(rules: &str, limits: Limits) -> Self {
        let now = Instant::now();
        Self { tables: tables(rules), engine: Engine::new(limits, [7; 16], now), now, reply: Reply::new() }
    }

    pub(crate) fn advance(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    pub(crate) fn out(&mut self, packet: &mut [u8]) -> Verdict {
        let headers = match Headers::parse(packet) {
            Ok(headers) => headers,
            Err(error) => return self.engine.malformed(&error),
        };
        let len = headers.total_len.into();
        self.engine.outbound(&self.tables, &headers, packet, len, 1, self.now, &mut self.reply)
    }

    pub(crate) fn from(&mut self, peer: PeerIndex, packet: &mut [u8]) -> Verdict {
        let headers = match Headers::parse(packet) {
            Ok(headers) => headers,
            Err(error) => return self.engine.malformed(&error),
        };
        self.engine.inbound(&self.tables, peer, &headers, packet, 1, self.now, &mut self.reply)
    }

    pub(crate) fn reply_headers(&self) -> Headers {
        let headers = Headers::parse(self.reply.packet()).expect("the reply is a valid packet");
        assert!(checksum::verify_ipv4_header(self.reply.packet(), &headers));
        assert!(checksum::verify_transport(self.reply.packet(), &headers));
        headers
    }

    pub(crate) fn flows(&self) -> Vec<FlowSnapshot> {
        self.engine.flows(&FlowSelector::default(), usize::MAX, self.now)
    }

    /// Limits what the container `10.42.1.5` sends.
    pub(crate) fn limit(&mut self, from: Rate) {
        let limit = std::sync::Arc::new(Limit::new("web", from, Rate::default(), self.now));
        self.tables.rates = RateTable::build(vec![(limit, vec![prefix("10.42.1.5/32")], None)]);
    }

    pub(crate) fn set_policy(&mut self, rules: &str) {
        self.tables.policy = policy(rules);
        self.tables.revision += 1;
    }

    /// Opens a TCP connection from a local container to one of H2's, checking each step.
    pub(crate) fn connect(&mut self, src: &str, sport: u16, dst: &str, dport: u16) {
        assert_eq!(self.out(&mut segment(src, sport, dst, dport, SYN, 1000, 0, 0)), Verdict::Forward(H2));
        assert_eq!(self.from(H2, &mut segment(dst, dport, src, sport, SYN | ACK, 5000, 1001, 0)), Verdict::Deliver);
        assert_eq!(self.out(&mut segment(src, sport, dst, dport, ACK, 1001, 5001, 0)), Verdict::Forward(H2));
    }
}

/// An IP packet around a payload.
pub(crate) fn packet(src: &str, dst: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (ip(src), ip(dst));
    let mut bytes = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut bytes = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
            bytes.extend_from_slice(&src.octets());
            bytes.extend_from_slice(&dst.octets());
            bytes[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            checksum::fill_ipv4_header(&mut bytes, 20);
            bytes
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut bytes = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            bytes.extend_from_slice(&src.octets());
            bytes.extend_from_slice(&dst.octets());
            bytes[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            bytes
        }
        _ => panic!("one address family in a packet"),
    };
    bytes.extend_from_slice(payload);
    if let Ok(headers) = Headers::parse(&bytes) {
        checksum::fill_transport(&mut bytes, &headers);
    }
    bytes
}

/// A TCP segment; a SYN carries MSS 1460 and window scale 7.
#[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
pub(crate) fn segment(
    src: &str,
    sport: u16,
    dst: &str,
    dport: u16,
    flags: u8,
    seq: u32,
    ack: u32,
    payload_len: usize,
) -> Vec<u8> {
    let options: &[u8] = if flags & SYN != 0 { &[2, 4, 0x05, 0xb4, 3, 3, 7, 1] } else { &[] };
    let mut tcp = Vec::new();
    tcp.extend_from_slice(&sport.to_be_bytes());
    tcp.extend_from_slice(&dport.to_be_bytes());
    tcp.extend_from_slice(&seq.to_be_bytes());
    tcp.extend_from_slice(&ack.to_be_bytes());
    tcp.extend_from_slice(&[((20 + options.len()) as u8 / 4) << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    tcp.extend_from_slice(options);
    tcp.resize(tcp.len() + payload_len, 0x55);
    packet(src, dst, 6, &tcp)
}

/// A UDP datagram.
pub(crate) fn udp(src: &str, sport: u16, dst: &str, dport: u16, payload_len: usize) -> Vec<u8> {
    packet(src, dst, 17, &udp_bytes(sport, dport, payload_len))
}

/// A UDP header with payload, its checksum left out.
pub(crate) fn udp_bytes(sport: u16, dport: u16, payload_len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&sport.to_be_bytes());
    bytes.extend_from_slice(&dport.to_be_bytes());
    bytes.extend_from_slice(&(8 + payload_len as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend((0..payload_len).map(|at| at as u8));
    bytes
}

/// An ICMP message of either family, by the source address.
pub(crate) fn icmp(src: &str, dst: &str, kind: u8, code: u8, id: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes.extend_from_slice(body);
    packet(src, dst, if ip(src).is_ipv4() { 1 } else { 58 }, &bytes)
}

/// Turns an IPv4 packet's flags: don't fragment off, and a fragment of a datagram.
pub(crate) fn fragment_v4(id: u16, offset: u16, more: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = packet("10.42.1.5", "10.42.2.5", 253, payload);
    bytes[9] = protocol;
    bytes[4..6].copy_from_slice(&id.to_be_bytes());
    let word = (offset / 8) | if more { 0x2000 } else { 0 };
    bytes[6..8].copy_from_slice(&word.to_be_bytes());
    checksum::fill_ipv4_header(&mut bytes, 20);
    bytes
}

/// The same for IPv6.
pub(crate) fn fragment_v6(id: u32, offset: u16, more: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut part = vec![protocol, 0];
    part.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
    part.extend_from_slice(&id.to_be_bytes());
    part.extend_from_slice(payload);
    packet("fd42:0:0:1::5", "fd42:0:0:2::5", 44, &part)
}

/// Clears the don't-fragment bit of an IPv4 packet.
pub(crate) fn may_fragment(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[6] &= !0x40;
    checksum::fill_ipv4_header(&mut bytes, 20);
    bytes
}

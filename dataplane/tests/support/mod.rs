//! A host with many rules and routes, and packets for it.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "shared by a test and a bench that each use a part")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use overlay_dataplane::{
    CompiledPolicy, Engine, Limits, LocalAddresses, PeerInfo, RateTable, Reply, Route, Tables, Verdict,
};
use overlay_routing::fib::Fib;
use overlay_wire::packet::Headers;
use overlay_wire::policy::PolicySet;
use overlay_wire::{Mtu, PeerIndex, Prefix, checksum};

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const H2: PeerIndex = PeerIndex(0);

pub struct Node {
    tables: Tables,
    engine: Engine,
    reply: Reply,
    now: Instant,
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a valid prefix")
}

impl Node {
    /// A host with `rules` rules, the last of which refuses UDP, and `routes` routes.
    pub fn new(rules: usize, routes: usize) -> Self {
        let mut text: Vec<String> = (0..rules.saturating_sub(2))
            .map(|n| {
                let (high, low) = (n / 256 % 256, n % 256);
                format!("deny tcp/{} from 10.{high}.{low}.0/28 to 172.16.{high}.0/24", n % 60_000 + 1000)
            })
            .collect();
        text.push("allow tcp/80 from any to any".to_owned());
        text.push("deny udp from 10.42.0.0/16 to any".to_owned());
        let set: PolicySet = text.join("\n").parse().expect("a valid policy");
        let mut owners = vec![
            (prefix("10.42.1.0/24"), Route::Local),
            (prefix("10.42.2.0/24"), Route::Peer(H2)),
            (prefix("fd42:0:0:1::/64"), Route::Local),
            (prefix("fd42:0:0:2::/64"), Route::Peer(H2)),
        ];
        owners.extend(
            (0..routes as u32)
                .map(|n| (Prefix::host(IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + n * 7))), Route::Peer(H2))),
        );
        let peer = PeerInfo {
            name: "h2".to_owned(),
            inner_mtu: Mtu::new(1420).expect("in range"),
            authenticated: true,
            member: true,
        };
        let local = LocalAddresses {
            host: vec!["10.42.1.1".parse().expect("an address"), "fd42:0:0:1::1".parse().expect("an address")],
            prefixes: vec![prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")],
            pool: vec![prefix("10.42.0.0/16"), prefix("fd42::/48")],
            announced: Vec::new(),
        };
        let policy = CompiledPolicy::compile(&set, &|_: &str| None);
        let tables = Tables {
            owners: Fib::build(owners),
            policy,
            revision: 1,
            peers: vec![peer],
            local,
            rates: RateTable::default(),
        };
        let start = Instant::now();
        let engine = Engine::new(Limits::default(), [3; 16], start);
        Self { tables, engine, reply: Reply::new(), now: start + Duration::from_secs(61) }
    }

    pub fn out(&mut self, packet: &mut [u8]) -> Verdict {
        let headers = Headers::parse(packet).expect("a valid packet");
        self.engine.outbound(&self.tables, &headers, packet, packet.len(), 1, self.now, &mut self.reply)
    }

    pub fn inbound(&mut self, packet: &mut [u8]) -> Verdict {
        let headers = Headers::parse(packet).expect("a valid packet");
        self.engine.inbound(&self.tables, H2, &headers, packet, 1, self.now, &mut self.reply)
    }

    /// Parses and decides each packet.
    pub fn forward(&mut self, packets: &mut [Vec<u8>]) -> Verdict {
        let mut verdict = Verdict::Held;
        for packet in packets {
            verdict = self.out(packet);
        }
        verdict
    }

    /// Opens connections; returns a data segment of each.
    pub fn connect(&mut self, flows: usize) -> Vec<Vec<u8>> {
        let ends = |n: usize| (format!("10.42.1.{}", 10 + n % 200), (n / 200) as u16 + 1);
        (0..flows).map(|n| self.open(&ends(n).0, ends(n).1, "10.42.2.5")).collect()
    }

    pub fn connect_v6(&mut self, flows: usize) -> Vec<Vec<u8>> {
        (0..flows).map(|n| self.open("fd42:0:0:1::5", n as u16 + 1, "fd42:0:0:2::5")).collect()
    }

    fn open(&mut self, src: &str, port: u16, dst: &str) -> Vec<u8> {
        assert_eq!(self.out(&mut segment(src, port, dst, 80, SYN, 1000, 0, 0)), Verdict::Forward(H2));
        assert_eq!(self.inbound(&mut segment(dst, 80, src, port, SYN | ACK, 5000, 1001, 0)), Verdict::Deliver);
        assert_eq!(self.out(&mut segment(src, port, dst, 80, ACK, 1001, 5001, 0)), Verdict::Forward(H2));
        segment(src, port, dst, 80, ACK, 1001, 5001, 1000)
    }
}

fn packet(src: &str, dst: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().expect("an address"), dst.parse().expect("an address"));
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
    let headers = Headers::parse(&bytes).expect("a valid packet");
    checksum::fill_transport(&mut bytes, &headers);
    bytes
}

#[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
pub fn segment(src: &str, sport: u16, dst: &str, dport: u16, flags: u8, seq: u32, ack: u32, len: usize) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend_from_slice(&sport.to_be_bytes());
    tcp.extend_from_slice(&dport.to_be_bytes());
    tcp.extend_from_slice(&seq.to_be_bytes());
    tcp.extend_from_slice(&ack.to_be_bytes());
    tcp.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.resize(20 + len, 0x55);
    packet(src, dst, 6, &tcp)
}

pub fn udp(src: &str, sport: u16, dst: &str, dport: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&sport.to_be_bytes());
    bytes.extend_from_slice(&dport.to_be_bytes());
    bytes.extend_from_slice(&[0, 8, 0, 0]);
    packet(src, dst, 17, &bytes)
}

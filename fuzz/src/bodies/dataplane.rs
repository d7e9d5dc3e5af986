//! The packet path as a state machine.
//!
//! An input is a script of packets from the TUN and from two peers, pauses, clean-up and removals, run against one fixed
//! set of tables: this host owns 10.42.1.0/24, the peers 10.42.2.0/24 and 10.42.3.0/24, and likewise in IPv6.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use overlay_dataplane::policy::HostResolver;
use overlay_dataplane::{
    CompiledPolicy, Conntrack, Cursor, Engine, FLOW_BYTES, FlowSelector, Limits, LocalAddresses, Pass, PeerInfo,
    RateTable, Reply, Route, SavedWhile, Tables, Verdict,
};
use overlay_routing::fib::Fib;
use overlay_routing::identities::{HostIdentities, Identities};
use overlay_wire::gossip::Labels;
use overlay_wire::packet::Headers;
use overlay_wire::policy::PolicySet;
use overlay_wire::{HostId, Mtu, PeerIndex, Prefix, checksum};

use super::Input;
use super::packet::prepare;

const POLICY: &str = "deny tcp/22 from any to 10.42.1.0/24\nreject udp/69 from any to any\n\
    allow tcp from any to 10.42.1.0/24\nallow icmp from any to any\nallow icmpv6 from any to any\ndefault members\n";

/// Runs a script; every verdict must be one the tables allow, every answer a valid packet.
pub fn engine(bytes: &[u8]) {
    let (engine, now) = play(bytes);
    assert!(engine.flows(&FlowSelector::default(), 100, now).len() <= engine.conntrack().len());
}

/// Takes up any bytes as saved flows; what was taken up must be written and taken up again as it is.
pub fn saved_flows(bytes: &[u8]) {
    let now = Instant::now();
    let fresh = || Conntrack::new(1024, [7; 16], now);
    let (first, second) = (fresh(), fresh());
    let Some((control, flows)) = bytes.split_first() else { return };
    let saved = if control & 1 == 1 { SavedWhile::Running } else { SavedWhile::Stopped };
    let restored = first.restore(flows, saved, Duration::ZERO, now);
    assert_eq!(restored.flows, first.len());
    assert_eq!(restored.flows + restored.expired + restored.refused, flows.len().div_ceil(FLOW_BYTES));
    let once = written(&first, now);
    assert_eq!(once.len(), first.len() * FLOW_BYTES);
    let again = second.restore(&once, SavedWhile::Stopped, Duration::ZERO, now);
    assert_eq!((again.flows, again.expired, again.refused), (first.len(), 0, 0));
    let sorted = |bytes: &[u8]| {
        let mut flows: Vec<Vec<u8>> = bytes.chunks(FLOW_BYTES).map(<[u8]>::to_vec).collect();
        flows.sort();
        flows
    };
    assert_eq!(sorted(&written(&second, now)), sorted(&once));
}

/// The flows that a script leaves, as they are saved.
pub(crate) fn saved_after(script: &[u8]) -> Vec<u8> {
    let (engine, now) = play(script);
    written(engine.conntrack(), now)
}

fn written(table: &Conntrack, now: Instant) -> Vec<u8> {
    let mut flows = Vec::new();
    for pass in [Pass::Assured, Pass::Others] {
        let mut cursor = Cursor::default();
        while table.save(pass, &mut cursor, now, &mut flows) {}
    }
    flows
}

fn play(bytes: &[u8]) -> (Engine, Instant) {
    static TABLES: OnceLock<[Tables; 2]> = OnceLock::new();
    let tables = TABLES.get_or_init(|| [tables(1, POLICY), tables(2, LABELS)]);
    let start = Instant::now();
    let mut now = start;
    let mut engine = Engine::new(Limits { conntrack_entries: 64 }, [7; 16], start);
    let mut reply = Reply::new();
    let mut released = Vec::new();
    let mut current = &tables[0];
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let operation = input.u8();
        match operation & 0x0f {
            0..=11 => {
                let len = usize::from(input.u16() & 0x7ff);
                let mut packet = prepare(operation >> 4, input.take(len));
                let Ok(headers) = Headers::parse(&packet) else { continue };
                let origin = match operation & 3 {
                    0 => Some(PeerIndex(0)),
                    1 => Some(PeerIndex(1)),
                    _ => None,
                };
                let before = packet.len();
                let verdict = match origin {
                    Some(from) => engine.inbound(current, from, &headers, &mut packet, 1, now, &mut reply),
                    None => {
                        engine.outbound(current, &headers, &mut packet, headers.total_len.into(), 1, now, &mut reply)
                    }
                };
                assert_eq!(packet.len(), before);
                check(current, origin, &headers, verdict, &reply);
            }
            12 => now += Duration::from_millis(u64::from(input.u16()) * 16),
            13 => engine.expire(now),
            14 => current = &tables[usize::from(operation >> 4 & 1)],
            _ => {
                engine.kill(&FlowSelector::default());
            }
        }
        engine.take_released(current, now, &mut released);
        for fragment in released.drain(..) {
            assert!(Headers::parse(&fragment.packet).is_ok());
            assert_eq!(fragment.verdict.drop_reason(), None);
            assert!(!matches!(fragment.verdict, Verdict::Held | Verdict::Wait(_)));
        }
        assert!(engine.conntrack().len() <= 64);
    }
    (engine, now)
}

/// What the tables alone say must hold for a verdict, whatever the state.
fn check(tables: &Tables, origin: Option<PeerIndex>, headers: &Headers, verdict: Verdict, reply: &Reply) {
    let owner = |address: IpAddr| tables.owners.lookup(address).copied();
    match verdict {
        Verdict::Forward(peer) | Verdict::ForwardFragmented(peer, _) => {
            assert_eq!(origin, None, "a peer's packet is never passed on");
            assert_eq!(owner(headers.dst), Some(Route::Peer(peer)));
            assert_eq!(owner(headers.src), Some(Route::Local));
            let mtu = tables.peer(peer).expect("the peer exists").inner_mtu;
            match verdict {
                Verdict::ForwardFragmented(_, size) => {
                    assert!(headers.is_ipv4() && !headers.dont_fragment && size <= mtu)
                }
                _ => assert!(headers.total_len <= mtu.get()),
            }
        }
        Verdict::Deliver | Verdict::Held => {
            assert!(!headers.has_source_route);
            if let Some(peer) = origin {
                assert_eq!(owner(headers.src), Some(Route::Peer(peer)), "the source belongs to the sending peer");
                assert_eq!(owner(headers.dst), Some(Route::Local));
            }
        }
        Verdict::Wait(address) => {
            assert!([headers.src, headers.dst].contains(&address), "it waits for one of its ends");
            assert!(matches!(owner(address), Some(Route::Peer(_))), "of its own containers a host knows the labels");
        }
        Verdict::Drop(_) => {}
        Verdict::DropWithReply(_) => {
            let answer = Headers::parse(reply.packet()).expect("an answer parses");
            assert_eq!(usize::from(answer.total_len), reply.packet().len());
            assert_eq!(answer.dst, headers.src);
            assert!(checksum::verify_ipv4_header(reply.packet(), &answer));
            assert!(checksum::verify_transport(reply.packet(), &answer));
        }
    }
}

const LABELS: &str = "allow tcp from role=web to any\nallow any from any to role=db\nreject udp from role=db to role=web\n\
                      default deny\n";

struct Labelled(Identities);

impl HostResolver for Labelled {
    fn prefixes(&self, _name: &str) -> Option<Vec<Prefix>> {
        None
    }

    fn identities(&self) -> Option<&Identities> {
        Some(&self.0)
    }
}

/// One container of each host is known.
fn identities() -> Identities {
    let host = |address: [u8; 4], role: &str| {
        let labels = Labels::from([("role".to_owned(), role.to_owned())]);
        Arc::new(HostIdentities { addresses: vec![(IpAddr::from(address), Arc::new(labels))] })
    };
    let hosts = [
        (None, host([10, 42, 1, 5], "web")),
        (Some(HostId([2; 16])), host([10, 42, 2, 5], "db")),
        (Some(HostId([3; 16])), host([10, 42, 3, 5], "other")),
    ];
    let uncertain = ["10.42.2.0/24", "10.42.3.0/24", "fd42:0:0:2::/64"];
    let uncertain = uncertain.map(|text| text.parse().expect("a fixed prefix parses"));
    Identities::new(hosts.into(), uncertain.to_vec())
}

fn tables(revision: u64, policy: &str) -> Tables {
    let prefix = |text: &str| -> Prefix { text.parse().expect("a fixed prefix parses") };
    let peer = |name: &str, mtu| PeerInfo {
        name: name.to_owned(),
        inner_mtu: Mtu::new(mtu).expect("a fixed MTU is in range"),
        authenticated: true,
        member: true,
    };
    let set: PolicySet = policy.parse().expect("a fixed policy parses");
    let own = ["10.42.1.0/24", "fd42:0:0:1::/64"].map(prefix);
    Tables {
        owners: Fib::build(vec![
            (own[0], Route::Local),
            (own[1], Route::Local),
            (prefix("10.42.2.0/24"), Route::Peer(PeerIndex(0))),
            (prefix("fd42:0:0:2::/64"), Route::Peer(PeerIndex(0))),
            (prefix("10.42.3.0/24"), Route::Peer(PeerIndex(1))),
            (prefix("fd42:0:0:3::/64"), Route::Peer(PeerIndex(1))),
        ]),
        policy: CompiledPolicy::compile(&set, &Labelled(identities())),
        revision,
        peers: vec![peer("h2", 1420), peer("h3", 600)],
        local: LocalAddresses {
            host: vec![IpAddr::from([10, 42, 1, 1]), IpAddr::from([0xfd42, 0, 0, 1, 0, 0, 0, 1])],
            prefixes: own.to_vec(),
            pool: ["10.42.0.0/16", "fd42::/48"].map(prefix).to_vec(),
            announced: Vec::new(),
        },
        rates: RateTable::default(),
    }
}

//! The generated part of the corpus: small valid inputs of every kind, from which mutation starts.
//!
//! `overlay-fuzz seeds` writes them. Files beside them, such as former crashes, are kept.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use overlay_wire::gossip::identities::{Identities, place};
use overlay_wire::gossip::message::{Message, PlainStatus, RouteVerdict, VersionEntry};
use overlay_wire::gossip::record::{Record, RecordKey, RecordKind};
use overlay_wire::gossip::{
    HostBody, Labels, NetworkEntry, NetworkMode, NetworkOptions, NetworksBody, RouteAnnouncement, RoutesBody,
    TraceAnswer, TraceOutcome, TraceStep, TracedPacket, envelope,
};
use overlay_wire::gre::GreHeader;
use overlay_wire::ipip::Outer;
use overlay_wire::offload::{GsoKind, VnetHeader};
use overlay_wire::packet::{Headers, protocol};
use overlay_wire::{Encapsulation, HostId, Mtu, Prefix, checksum, icmp};

mod membership;

/// One seed file: target, name, bytes.
type Seed = (&'static str, String, Vec<u8>);

/// Writes every generated seed under `corpus`, one folder per target.
///
/// # Errors
/// When a folder or file cannot be written.
pub fn write(corpus: &Path) -> io::Result<()> {
    for (target, name, bytes) in all() {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

/// Every generated seed.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let packets = packets();
    for target in ["headers", "checksum", "icmp", "mss", "ecn", "fragment"] {
        for (name, packet) in &packets {
            // Three bits of control: lengths repaired, nothing else.
            seeds.push((target, (*name).to_owned(), [&[1], packet.as_slice()].concat()));
        }
    }
    add(&mut seeds, "offload", offloads());
    add(&mut seeds, "gre", gre());
    add(&mut seeds, "ipip", ipip(&packets));
    add(&mut seeds, "envelope", datagrams());
    add(&mut seeds, "gossip_envelope", envelopes());
    add(&mut seeds, "gossip_message", messages());
    add(&mut seeds, "gossip_record", records());
    add(&mut seeds, "policy", policies());
    add(&mut seeds, "config", configs());
    add(&mut seeds, "control", frames());
    add(&mut seeds, "dataplane", flows());
    add(&mut seeds, "flows", saved());
    add(&mut seeds, "fib", tables());
    add(&mut seeds, "gossip_machine", scripts());
    add(&mut seeds, "gossip_certified", membership::scripts());
    add(&mut seeds, "membership", membership::formats());
    add(&mut seeds, "membership_stored", membership::stored());
    add(&mut seeds, "issuer", membership::issuer());
    seeds
}

fn add(seeds: &mut Vec<Seed>, target: &'static str, inputs: Vec<(&'static str, Vec<u8>)>) {
    seeds.extend(inputs.into_iter().map(|(name, bytes)| (target, name.to_owned(), bytes)));
}

const V4: (IpAddr, IpAddr) = (IpAddr::V4(Ipv4Addr::new(10, 42, 1, 2)), IpAddr::V4(Ipv4Addr::new(10, 42, 2, 3)));
const V6: (IpAddr, IpAddr) =
    (IpAddr::V6(Ipv6Addr::new(0xfd42, 0, 0, 1, 0, 0, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd42, 0, 0, 2, 0, 0, 0, 3)));

/// An IP packet with right checksums where it parses.
pub(crate) fn ip((src, dst): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let outer = Outer { src, dst, protocol, tos: 2, ttl: 64, payload_len: payload.len() as u16 };
    let mut packet = vec![0; outer.buffer_len()];
    packet.extend(payload);
    outer.emit(&mut packet).expect("the buffer holds the header");
    if let Ok(headers) = Headers::parse(&packet) {
        checksum::fill_transport(&mut packet, &headers);
    }
    packet
}

fn tcp(flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2, 0, flags, 0xfa, 0xf0, 0, 0, 0, 0];
    segment[12] = (5 + options.len() as u8 / 4) << 4;
    segment.extend(options);
    segment.extend(payload);
    segment
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let [high, low] = (8 + payload.len() as u16).to_be_bytes();
    [&[0x9c, 0x40, 0, 53, high, low, 0, 0], payload].concat()
}

fn packets() -> Vec<(&'static str, Vec<u8>)> {
    const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    let mut with_options =
        ip(V4, protocol::UDP, &[&[0x94, 4, 0, 0, 0x83, 7, 4, 10, 0, 0, 1, 0], &udp(b"x")[..]].concat());
    with_options[0] = 0x48;
    checksum::fill_ipv4_header(&mut with_options, 32);
    let mut first_fragment = ip(V4, protocol::UDP, &udp(&[7; 24]));
    first_fragment[6..8].copy_from_slice(&[0x20, 0]);
    let mut later_fragment = ip(V4, protocol::UDP, &[7; 24]);
    later_fragment[6..8].copy_from_slice(&[0, 5]);
    let mut large = ip(V4, protocol::UDP, &udp(&[7; 1300]));
    large[6] = 0;
    let chain = [
        &[60, 0, 1, 4, 0, 0, 0, 0, 43, 0, 1, 4, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 7][..],
        &udp(b"chained"),
    ];
    let quoted = ip(V4, protocol::TCP, &tcp(0x10, &[], b"data"));
    let mut error4 = [0; 576];
    let headers = Headers::parse(&quoted).expect("a seed parses");
    let len4 = icmp::build_too_big(&quoted, &headers, IpAddr::from([10, 42, 0, 1]), 1280, &mut error4);
    let quoted = ip(V6, protocol::UDP, &udp(b"data"));
    let mut error6 = [0; 1280];
    let headers = Headers::parse(&quoted).expect("a seed parses");
    let len6 = icmp::build_unreachable(&quoted, &headers, IpAddr::from([0xfd42, 0, 0, 0, 0, 0, 0, 1]), &mut error6);
    vec![
        ("tcp4-syn", ip(V4, protocol::TCP, &tcp(2, &SYN_OPTIONS, &[]))),
        ("tcp6-syn-ack", ip(V6, protocol::TCP, &tcp(0x12, &SYN_OPTIONS, &[]))),
        ("tcp4-data", ip(V4, protocol::TCP, &tcp(0x18, &[], b"some data"))),
        ("tcp6-reset", ip(V6, protocol::TCP, &tcp(4, &[], &[]))),
        ("udp4", ip(V4, protocol::UDP, &udp(b"query"))),
        ("udp6", ip(V6, protocol::UDP, &udp(b"query"))),
        ("echo4", ip(V4, protocol::ICMP, &[8, 0, 0, 0, 0x12, 0x34, 0, 1, 1, 2, 3])),
        ("echo6", ip(V6, protocol::ICMPV6, &[128, 0, 0, 0, 0x12, 0x34, 0, 1, 1, 2, 3])),
        ("error4", error4[..len4].to_vec()),
        ("error6", error6[..len6].to_vec()),
        ("options4", with_options),
        ("fragment4-first", first_fragment),
        ("fragment4-later", later_fragment),
        ("chain6", ip(V6, protocol::HOP_BY_HOP, &chain.concat())),
        ("large4", large),
        ("other4", ip(V4, 132, &[0; 12])),
    ]
}

fn offloads() -> Vec<(&'static str, Vec<u8>)> {
    let make = |gso, size, packet: Vec<u8>| {
        let headers = Headers::parse(&packet).expect("a seed parses");
        let vnet = VnetHeader {
            needs_checksum: true,
            gso,
            header_len: headers.payload_offset() as u16,
            gso_size: size,
            csum_start: headers.l4_offset,
            csum_offset: if headers.tcp().is_some() { 16 } else { 6 },
        };
        [&[1], &vnet.emit()[..], &packet].concat()
    };
    vec![
        ("tcp4", make(GsoKind::TcpV4, 500, ip(V4, protocol::TCP, &tcp(0x18, &[], &[7; 1800])))),
        ("tcp6", make(GsoKind::TcpV6, 400, ip(V6, protocol::TCP, &tcp(0x19, &[1, 1, 1, 1], &[7; 900])))),
        ("udp4", make(GsoKind::Udp, 300, ip(V4, protocol::UDP, &udp(&[7; 900])))),
        ("udp6", make(GsoKind::Udp, 301, ip(V6, protocol::UDP, &udp(&[7; 950])))),
        ("none", make(GsoKind::None, 0, ip(V4, protocol::UDP, &udp(&[7; 20])))),
    ]
}

fn gre() -> Vec<(&'static str, Vec<u8>)> {
    let inner = ip(V4, protocol::UDP, &udp(b"inner"));
    let make = |key, sequence, checksum| {
        let header = GreHeader { protocol: 0x0800, key, sequence, checksum };
        let mut packet = vec![0; header.buffer_len()];
        packet.extend(&inner);
        header.emit(&mut packet).expect("the buffer holds the header");
        packet
    };
    vec![
        ("plain", make(None, None, false)),
        ("key", make(Some(7), None, false)),
        ("sequence", make(None, Some(9), false)),
        ("checksum", make(None, None, true)),
        ("all", make(Some(7), Some(9), true)),
    ]
}

fn ipip(packets: &[(&'static str, Vec<u8>)]) -> Vec<(&'static str, Vec<u8>)> {
    let (v4, v6) = (&packets[4].1, &packets[5].1);
    vec![
        ("4in4", ip(V4, protocol::IPV4, v4)),
        ("6in4", ip(V4, protocol::IPV6, v6)),
        ("4in6", ip(V6, protocol::IPV4, v4)),
        ("6in6", ip(V6, protocol::IPV6, v6)),
    ]
}

fn datagrams() -> Vec<(&'static str, Vec<u8>)> {
    let message = |kind: u8, len: usize| {
        let mut bytes = vec![0; len];
        bytes[0] = kind;
        bytes
    };
    vec![
        ("initiation", message(1, 148)),
        ("response", message(2, 92)),
        ("cookie", message(3, 64)),
        ("data", message(4, 48)),
        ("envelope", message(0x20, 64)),
    ]
}

fn record() -> Record {
    Record {
        key: RecordKey { owner: HostId([3; 16]), kind: RecordKind::ROUTES, shard: 1 },
        version: 5,
        body: b"body".to_vec(),
        signature: [9; 64],
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a seed prefix parses")
}

fn endpoint() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 51821))
}

fn envelopes() -> Vec<(&'static str, Vec<u8>)> {
    let introduce = envelope::IntroduceContent {
        identity: [1; 32],
        boot_epoch: 2,
        counter: 3,
        nonce: 4,
        record: record(),
        certificate: None,
        signature: [5; 64],
    };
    let certified = envelope::IntroduceContent { certificate: Some(record()), ..introduce.clone() };
    let ack = envelope::IntroduceAckContent { nonce: 1, boot_epoch: 2, observed: Some(endpoint()), record: record() };
    let sealed = |header: Vec<u8>| [header, vec![7; 48]].concat();
    vec![
        ("sealed", sealed(envelope::sealed_header(&[1; 8], &[2; 24]))),
        ("introduce", sealed(envelope::introduce_header(&[1; 32], &[2; 24]))),
        ("introduce-ack", sealed(envelope::introduce_ack_header(&[1; 8], &[2; 32], &[3; 24]))),
        ("content", envelope::Content { boot_epoch: 1, sequence: 2, message: &[10] }.encode()),
        ("introduce-content", introduce.encode()),
        ("introduce-content-certified", certified.encode()),
        ("join", sealed(envelope::join_header(&[1; 32], &[2; 8], &[3; 24]))),
        ("join-ack", sealed(envelope::join_ack_header(&[1; 8], &[2; 24]))),
        ("introduce-ack-content", ack.encode()),
    ]
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let key = record().key;
    let entries = vec![VersionEntry { key, version: 5, hash: 6 }];
    let all = vec![
        ("probe", Message::Probe { nonce: 1, plain: PlainStatus::Gre }),
        ("ack", Message::Ack { nonce: 1, plain: PlainStatus::Refused, observed: Some(endpoint()) }),
        ("indirect-probe", Message::IndirectProbe { nonce: 1, target: HostId([2; 16]) }),
        ("indirect-ack", Message::IndirectAck { nonce: 1, target: HostId([2; 16]) }),
        ("versions", Message::Versions { bucket: 3, after: None, through: Some(key), entries }),
        ("want", Message::Want(vec![key])),
        ("records", Message::Records(vec![record()])),
        ("suspect", Message::Suspect { host: HostId([2; 16]) }),
        ("leave", Message::Leave),
        ("verdict-request", Message::VerdictRequest { version: 7 }),
        ("certificate-request", Message::CertificateRequest { nonce: 1 }),
        ("certificate", Message::Certificate { nonce: 1, certificate: Box::new(membership::certificate()) }),
        ("verdicts", Message::Verdicts { version: 7, entries: vec![(prefix("10.42.1.0/24"), RouteVerdict::Accepted)] }),
        ("clock-request", Message::ClockRequest { nonce: 1 }),
        ("path-probe", Message::PathProbe { nonce: 1 }),
        ("path-ack", Message::PathAck { nonce: 1, observed: Some(endpoint()) }),
        ("clock", Message::Clock { nonce: 1, unix_ms: 1_800_000_000_000 }),
        ("trace-request", Message::TraceRequest { nonce: 1, packet: traced() }),
        ("trace", Message::Trace { nonce: 1, answer: trace_answer() }),
    ];
    let encode = |message: Message| {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    };
    all.into_iter().map(|(name, message)| (name, encode(message))).collect()
}

fn traced() -> TracedPacket {
    let (src, dst) = (IpAddr::from([10, 42, 1, 5]), IpAddr::from([10, 42, 2, 5]));
    TracedPacket { protocol: 6, src, dst, src_port: 1000, dst_port: 443, size: 60, may_fragment: false }
}

fn trace_answer() -> TraceAnswer {
    let step = TraceStep::new("policy", TraceOutcome::Denied, "rule 1: deny tcp from any to any");
    TraceAnswer { steps: vec![TraceStep::new("path", TraceOutcome::Pass, "is for this host"), step] }
}

fn records() -> Vec<(&'static str, Vec<u8>)> {
    let host = HostBody {
        name: "h1".to_owned(),
        boot_epoch: 1,
        box_key: [1; 32],
        wireguard_key: [2; 32],
        encapsulation: Encapsulation::Wireguard,
        mtu: Mtu::ETHERNET,
        versions: (1, 1),
        features: 0,
        software: "0.1.0".to_owned(),
        endpoints: vec![endpoint()],
        prefixes: vec![prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")],
        extension: Vec::new(),
    };
    let routes = RoutesBody {
        routes: vec![RouteAnnouncement { prefix: prefix("10.42.9.0/24"), metric: 10 }],
        extension: Vec::new(),
    };
    let mut bytes = Vec::new();
    record().encode(&mut bytes);
    vec![
        ("record", bytes),
        ("host", host.encode().expect("a seed body fits")),
        ("routes", routes.encode().expect("a seed body fits")),
        ("networks", networks().encode()),
        ("identities", identities()),
    ]
}

fn identities() -> Vec<u8> {
    let labels = |role: &str| Labels::from([("role".to_owned(), role.to_owned()), ("zone".to_owned(), "a".to_owned())]);
    let address = |text: &str| text.parse().expect("a seed address parses");
    let identities = Identities::from([
        (address("10.42.1.4"), labels("web")),
        (address("10.42.1.5"), labels("db")),
        (address("10.42.1.6"), Labels::new()),
        (address("fd42:0:0:1::4"), labels("web")),
    ]);
    place(&[], &identities).0[0].encode().expect("a seed body fits")
}

fn networks() -> NetworksBody {
    let network = |mode, pool: &[&str], blocks: &[&str]| NetworkEntry {
        options: NetworkOptions {
            created_unix: 1_800_000_000,
            mode,
            internal: mode == NetworkMode::Bridge,
            pool: pool.iter().map(|text| prefix(text)).collect(),
        },
        blocks: blocks.iter().map(|text| prefix(text)).collect(),
    };
    let web = network(NetworkMode::Routed, &[], &["10.42.1.224/27", "fd42:0:0:1:ffff::/80"]);
    let db = network(NetworkMode::Bridge, &["10.42.0.0/16"], &[]);
    NetworksBody { networks: [("db".to_owned(), db), ("web".to_owned(), web)].into(), extension: Vec::new() }
}

fn policies() -> Vec<(&'static str, Vec<u8>)> {
    let texts = [
        ("rule", "allow tcp/443,8000-8080 from 10.42.1.0/24 to any log count audit name web"),
        ("reject", "reject icmpv6 from any to fd42::/48"),
        ("number", "deny 132 from any to any"),
        ("network", "allow any from net:web to net:default"),
        ("set", "# services\nallow udp/53 from any to 10.42.0.0/16 # resolver\n\ndefault deny\n"),
        ("prefix", "fd42:0:0:1::/64"),
    ];
    texts.into_iter().map(|(name, text)| (name, text.as_bytes().to_vec())).collect()
}

fn configs() -> Vec<(&'static str, Vec<u8>)> {
    let file = r#"[node]
name = "h1"
prefixes = ["10.42.1.0/24", "fd42:0:0:1::/64"]
[overlay]
cluster = "prod"
pool = ["10.42.0.0/16", "fd42::/48"]
[[member]]
name = "h2"
identity = "4zvwRjXUKGfvwnParsHAS3HuSVzV5cA4McphgmoCtzQ="
endpoint = "192.0.2.2:51821"
allow = ["10.42.2.0/24", "10.42.0.0/16 max 24"]
[policy]
default = "members"
rules = ["allow tcp/443 from any to 10.42.1.0/24"]
"#;
    let foreign = "[[peer]]\nname = \"f1\"\nencapsulation = \"gre\"\nendpoint = \"192.0.2.9\"\ngre_key = 7\n\
        allowed_ips = [\"10.99.0.0/24\"]\n";
    let trusting = file.replace("[overlay]", "[overlay]\ntrusted_underlay = [\"192.0.2.0/24\"]");
    let layer = "version = 1\n[node]\nannounce = [\"10.77.0.0/24\"]\n[overlay]\nencapsulation = \"ipip\"\n";
    vec![
        ("file", file.as_bytes().to_vec()),
        ("foreign", format!("{trusting}\n{foreign}").into_bytes()),
        ("layer", format!("{file}\n---\n{layer}").into_bytes()),
        ("layer-alone", format!("\n---\n{layer}{foreign}").into_bytes()),
    ]
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let frame = |text: &str| {
        let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    };
    let status = frame(r#"{"version":1,"request":"status"}"#);
    vec![
        ("two", [status.clone(), status].concat()),
        ("peer-show", frame(r#"{"version":1,"request":{"peer_show":{"name":"h2"}}}"#)),
        ("done", frame(r#"{"version":1,"reply":{"ok":"done"}}"#)),
    ]
}

/// One packet of a data path script: `place` 0 and 1 are the peers, 2 is the TUN.
fn step(place: u8, packet: &[u8]) -> Vec<u8> {
    // The upper bits ask for right lengths and checksums.
    let [high, low] = (packet.len() as u16).to_be_bytes();
    [&[0x30 | place, high, low], packet].concat()
}

/// What the scripts of packets leave in the table, after a stop and after a kill.
fn saved() -> Vec<(&'static str, Vec<u8>)> {
    let left = flows().into_iter().zip([0u8, 1].into_iter().cycle());
    let saved = left.map(|((name, script), control)| {
        (name, [&[control], crate::bodies::dataplane::saved_after(&script).as_slice()].concat())
    });
    saved.filter(|(_, bytes)| bytes.len() > 1).collect()
}

fn flows() -> Vec<(&'static str, Vec<u8>)> {
    let back = |(src, dst): (IpAddr, IpAddr)| (dst, src);
    let mut reply = tcp(0x12, &[2, 4, 5, 0xb4], &[]);
    reply[..4].copy_from_slice(&[0x01, 0xbb, 0x9c, 0x40]);
    let mut fragment = ip(V4, protocol::UDP, &udp(&[7; 24]));
    fragment[6] = 0x20;
    let mut later = ip(V4, protocol::UDP, &[7; 24]);
    later[6..8].copy_from_slice(&[0, 4]);
    let pause = [12, 0x10, 0];
    let large = ip(V4, protocol::UDP, &udp(&[7; 1400]));
    let mut splittable = large.clone();
    splittable[6] = 0;
    let echo = [8, 0, 0, 0, 0x12, 0x34, 0, 1, 1, 2, 3, 4];
    let echo_reply = [0, 0, 0, 0, 0x12, 0x34, 0, 1, 1, 2, 3, 4];
    let handshake = [
        step(2, &ip(V4, protocol::TCP, &tcp(2, &[2, 4, 5, 0xb4], &[]))),
        step(0, &ip(back(V4), protocol::TCP, &reply)),
        step(2, &ip(V4, protocol::TCP, &tcp(0x10, &[], b"data"))),
        pause.to_vec(),
        step(2, &ip(V4, protocol::TCP, &tcp(4, &[], &[]))),
    ];
    vec![
        ("tcp4", handshake.concat()),
        ("syn6-inbound", step(0, &ip(back(V6), protocol::TCP, &tcp(2, &[], &[])))),
        ("udp6", [step(2, &ip(V6, protocol::UDP, &udp(b"query"))), vec![13, 15]].concat()),
        (
            "echo4",
            [step(2, &ip(V4, protocol::ICMP, &echo)), step(0, &ip(back(V4), protocol::ICMP, &echo_reply))].concat(),
        ),
        ("fragments", [step(2, &later), step(2, &fragment), step(2, &later)].concat()),
        ("too-big", [step(2, &large), step(2, &splittable), vec![0x1e], step(2, &large)].concat()),
        ("spoofed", step(1, &ip(back(V4), protocol::UDP, &udp(b"x")))),
    ]
}

fn tables() -> Vec<(&'static str, Vec<u8>)> {
    let mut nested = vec![8];
    for _ in 0..8 {
        nested.extend([10, 42, 1, 2]);
    }
    nested.extend([0, 8, 16, 24, 32, 25, 17, 9]);
    let mixed: Vec<u8> = (0..160u16).map(|value| (value * 37) as u8).collect();
    vec![("nested", nested), ("mixed", [&[20], mixed.as_slice()].concat())]
}

fn scripts() -> Vec<(&'static str, Vec<u8>)> {
    let pause = [15, 0x03, 0xe8];
    let contact = [pause.to_vec(), vec![0; 20], pause.to_vec(), vec![0; 20]].concat();
    vec![
        ("contact", contact.clone()),
        ("announce", [contact.clone(), vec![10, 7, 24, 0x8a, 8, 24], pause.to_vec(), vec![0; 12]].concat()),
        ("restart", [contact.clone(), vec![0x8c], pause.to_vec(), vec![0; 20]].concat()),
        ("damage", [pause.to_vec(), vec![8, 0, 40, 1, 7, 6, 0, 8, 0, 2, 0xff], contact].concat()),
        ("foreign", [vec![9, 0, 60], vec![0x21; 60], pause.to_vec()].concat()),
    ]
}

#[cfg(test)]
mod tests {
    use overlay_config::{Config, Layer};
    use overlay_wire::policy::{PolicySet, Rule};

    use super::*;

    fn texts(seeds: Vec<(&'static str, Vec<u8>)>) -> impl Iterator<Item = (&'static str, String)> {
        seeds.into_iter().map(|(name, bytes)| (name, String::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn text_seeds_are_accepted() {
        for (name, text) in texts(configs()) {
            let (file, layer) = text.split_once("\n---\n").unwrap_or((&text, "version = 1\n"));
            assert!(Layer::parse(layer, name).is_ok(), "{name}: {}", Layer::parse(layer, name).unwrap_err());
            if !file.is_empty() {
                assert!(Config::parse(file, name).is_ok(), "{name}: {}", Config::parse(file, name).unwrap_err());
            }
        }
        for (name, text) in texts(policies()).filter(|(name, _)| *name != "prefix") {
            assert!(text.parse::<Rule>().is_ok() || text.parse::<PolicySet>().is_ok(), "{name}");
        }
        for (name, frame) in frames().into_iter().filter(|(name, _)| *name != "done") {
            let (body, _) = overlay_control::frame::split(&frame).unwrap().unwrap();
            let decoded = overlay_control::frame::decode::<overlay_control::frame::RequestFrame>(body);
            assert!(decoded.is_ok(), "{name}: {}", decoded.unwrap_err());
        }
    }

    #[test]
    fn committed_corpus_holds_every_generated_seed() {
        for (target, name, bytes) in all() {
            let file = crate::run::corpus_dir().join(target).join(&name);
            let held = fs::read(&file).ok();
            assert!(held.as_ref() == Some(&bytes), "{target}/{name} differs; run `overlay-fuzz seeds` and commit");
        }
    }
}

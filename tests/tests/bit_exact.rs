//! Plain encapsulations bit for bit: scapy builds what the daemon must send, and what it must accept.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use overlay_netns_harness::wait_for;
use overlay_tests::{
    Capture, ECN_COMBINED, FOREIGN_V4, FOREIGN_V6, Foreign, Outer, SharedLab, can_use, raw_sender, raw_sender_v6,
    udp_socket,
};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

static LAB: SharedLab<Foreign> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(10);
const SCAPY: &str = include_str!("bit_exact.py");
const PORT: u16 = 7400;
const PYTHON: &str = "/usr/bin/python3";

fn foreign(test: &str) -> Option<MutexGuard<'static, Foreign>> {
    if !can_use(test, &[("/usr/bin/python3 -c 'import scapy.all'", "python3-scapy")]) {
        return None;
    }
    LAB.lease("bits", Foreign::start, |foreign| &foreign.lab)
}

/// How the packets of one case look.
#[derive(Debug, Clone, Copy)]
struct Shape {
    kind: &'static str,
    /// Over an IPv6 underlay instead of IPv4.
    outer_v6: bool,
    key: Option<u32>,
    checksum: bool,
    sequence: bool,
}

impl Shape {
    fn all() -> Vec<Shape> {
        let plain = Shape { kind: "ipip", outer_v6: false, key: None, checksum: false, sequence: false };
        let mut all = vec![plain, Shape { outer_v6: true, ..plain }];
        for bits in 0..8 {
            let key = (bits & 1 != 0).then_some(0xdead_beef);
            all.push(Shape { kind: "gre", key, checksum: bits & 2 != 0, sequence: bits & 4 != 0, ..plain });
        }
        let key = Some(1);
        all.push(Shape { kind: "gre", outer_v6: true, key, checksum: true, sequence: true });
        all
    }

    /// The `[[peer]]` section.
    fn section(&self) -> String {
        let endpoint = self.their_outer();
        let mut text = format!(
            "[[peer]]\nname = \"office\"\nencapsulation = \"{}\"\nendpoint = \"{endpoint}\"\n\
             allowed_ips = [\"10.99.0.0/24\", \"fd99::/64\"]\n",
            self.kind
        );
        if self.kind == "gre" {
            if let Some(key) = self.key {
                text += &format!("gre_key = {key}\n");
            }
            text += &format!("gre_checksum = {}\ngre_sequence = {}\n", self.checksum, self.sequence);
        }
        text
    }

    fn our_outer(&self) -> IpAddr {
        if self.outer_v6 { "2001:db8::1" } else { "192.0.2.1" }.parse().unwrap()
    }

    fn their_outer(&self) -> IpAddr {
        if self.outer_v6 { "2001:db8::2" } else { "192.0.2.2" }.parse().unwrap()
    }
}

/// One packet for scapy to build.
#[derive(Debug, Clone)]
struct Spec {
    shape: Shape,
    outer: [IpAddr; 2],
    inner: [IpAddr; 2],
    tos: u8,
    /// The outer identification, or flow label of IPv6.
    id: u32,
    sequence: u32,
    payload: String,
    /// The outer traffic class, where it is not the inner ECN field alone.
    outer_tos: Option<u8>,
}

impl Spec {
    fn json(&self) -> Value {
        let hex: String = self.payload.bytes().map(|byte| format!("{byte:02x}")).collect();
        json!({
            "kind": self.shape.kind, "key": self.shape.key, "checksum": self.shape.checksum,
            "sequence": self.shape.sequence.then_some(self.sequence), "outer": self.outer, "inner": self.inner,
            "tos": self.tos, "outer_tos": self.outer_tos, "id": self.id, "port": PORT, "payload": hex,
        })
    }
}

/// A running scapy.
struct Scapy {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Scapy {
    fn start() -> Scapy {
        let mut command = Command::new(PYTHON);
        let piped = command.args(["-c", SCAPY]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let (questions, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Scapy { child, questions, answers }
    }

    /// Per packet: the inner one as its sender sends it, and the outer one that carries it one hop later.
    fn build(&mut self, specs: &[Spec]) -> Vec<(Vec<u8>, Vec<u8>)> {
        writeln!(self.questions, "{}", Value::Array(specs.iter().map(Spec::json).collect())).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answers: Vec<(String, String)> = serde_json::from_str(&line).unwrap();
        let bytes = |hex: &String| -> Vec<u8> {
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
        };
        answers.iter().map(|(inner, outer)| (bytes(inner), bytes(outer))).collect()
    }

    fn build_one(&mut self, spec: &Spec) -> (Vec<u8>, Vec<u8>) {
        self.build(std::slice::from_ref(spec)).remove(0)
    }
}

impl Drop for Scapy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send_raw(namespace: &str, packet: &[u8], to: IpAddr) {
    match to {
        IpAddr::V4(_) => raw_sender(namespace).unwrap()(packet, SocketAddr::new(to, 0)),
        IpAddr::V6(_) => raw_sender_v6(namespace).unwrap()(packet, to),
    }
    .unwrap();
}

/// The IP packet of an Ethernet frame without the padding of short frames.
fn ip_packet(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(14..)?;
    let length = match packet.first()? >> 4 {
        4 => usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?])),
        6 => 40 + usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?])),
        _ => return None,
    };
    packet.get(..length)
}

fn outer_protocol(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[9] } else { packet[6] }
}

fn reload(foreign: &Foreign, shape: &Shape) {
    foreign.reload(&shape.section()).unwrap();
    wait_for("the peer to be known", LIMIT, || foreign.peer("office").ok()).unwrap();
}

/// The inner addresses of both families, the container's first.
fn inner_pairs(foreign: &Foreign) -> [[IpAddr; 2]; 2] {
    let container = &foreign.container;
    [[container.v4.into(), FOREIGN_V4.parse().unwrap()], [container.v6.into(), FOREIGN_V6.parse().unwrap()]]
}

#[test]
fn emitted_packets_equal_those_of_scapy() {
    let Some(foreign) = foreign("emitted packets") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let mut scapy = Scapy::start();
    for shape in Shape::all() {
        reload(&foreign, &shape);
        for inner in inner_pairs(&foreign) {
            // DSCP EF with each ECN field: the outer header shows the ECN field alone.
            for tos in [0xb8u8, 0xb9, 0xba, 0xbb] {
                let outer = [shape.our_outer(), shape.their_outer()];
                let payload = format!("bits {tos:x} {inner:?}");
                let mut spec = Spec { shape, outer, inner, tos, id: 0, sequence: 0, payload, outer_tos: None };
                let seen = Arc::new(Mutex::new(Vec::new()));
                let (kept, wanted) = (seen.clone(), spec.payload.clone().into_bytes());
                // On the sending host itself: the switch behind it counts the TTL down.
                let capture = Capture::start(foreign.lab.host("h1").unwrap().view().namespace(), move |frame| {
                    let hit = frame.windows(wanted.len()).any(|window| window == wanted);
                    if let (true, Some(packet)) = (hit, ip_packet(frame))
                        && [4, 41, 47].contains(&outer_protocol(packet))
                    {
                        kept.lock().unwrap().push(packet.to_vec());
                    }
                    hit
                })
                .unwrap();
                send_raw(foreign.container.view.namespace(), &scapy.build_one(&spec).0, inner[1]);
                wait_for("the packet on the underlay", LIMIT, || (!seen.lock().unwrap().is_empty()).then_some(()))
                    .unwrap_or_else(|error| panic!("{error}: {shape:?}"));
                capture.finish();
                let seen = seen.lock().unwrap();
                let [packet] = seen.as_slice() else { panic!("{shape:?}: {} packets", seen.len()) };
                // What the sender chooses freely is taken over; all else must agree.
                spec.id = if shape.outer_v6 {
                    u32::from_be_bytes([0, packet[1] & 15, packet[2], packet[3]])
                } else {
                    u32::from(u16::from_be_bytes([packet[4], packet[5]]))
                };
                let at = if shape.outer_v6 { 40 } else { 20 } + 4 + if shape.checksum { 4 } else { 0 };
                let at = at + if shape.key.is_some() { 4 } else { 0 };
                spec.sequence = u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
                assert_eq!(packet, &scapy.build_one(&spec).1, "{shape:?} {inner:?} {tos:#x}");
            }
        }
    }
}

fn receiver(foreign: &Foreign, address: IpAddr) -> UdpSocket {
    udp_socket(foreign.container.view.namespace(), SocketAddr::new(address, PORT)).unwrap()
}

/// All payloads up to the last one, which is sent after the others.
fn received_until(socket: &UdpSocket, last: &str) -> Vec<String> {
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut all = Vec::new();
    let mut buffer = [0; 2048];
    while all.last().is_none_or(|payload| payload != last) {
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {last:?} after {all:?}: {error}"));
        all.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    all
}

#[test]
fn packets_of_scapy_are_accepted_and_what_differs_is_dropped() {
    let Some(foreign) = foreign("accepted packets") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let mut scapy = Scapy::start();
    let mut sequence = next();
    for shape in Shape::all() {
        reload(&foreign, &shape);
        for [ours, theirs] in inner_pairs(&foreign) {
            let socket = receiver(&foreign, ours);
            let base = Spec {
                shape,
                outer: [shape.their_outer(), shape.our_outer()],
                inner: [theirs, ours],
                tos: 0,
                id: 0,
                sequence: 0,
                payload: String::new(),
                outer_tos: None,
            };
            let mut specs = Vec::new();
            let mut add = |payload: &str, shape: Shape, count: u32| {
                if count > 0 {
                    sequence = next();
                }
                specs.push(Spec { shape, payload: payload.to_owned(), sequence, ..base.clone() });
            };
            if shape.kind == "gre" {
                add("another key", Shape { key: Some(5), ..shape }, 1);
                add("without or with a surplus checksum", Shape { checksum: !shape.checksum, ..shape }, 1);
                if shape.key.is_some() {
                    add("without the key", Shape { key: None, ..shape }, 1);
                }
                if shape.sequence {
                    add("without a number", Shape { sequence: false, ..shape }, 1);
                }
            }
            add("right", shape, 1);
            if shape.sequence {
                add("the same number again", shape, 0);
            } else if shape.kind == "gre" {
                add("a surplus number", Shape { sequence: true, ..shape }, 1);
            }
            add("last", shape, 1);
            let outside = foreign.lab.view("h2").unwrap();
            for (_, packet) in scapy.build(&specs) {
                send_raw(outside.namespace(), &packet, shape.our_outer());
            }
            let mut expected = vec!["right", "last"];
            if shape.kind == "gre" && !shape.sequence {
                expected.insert(1, "a surplus number");
            }
            assert_eq!(received_until(&socket, "last"), expected, "{shape:?}");
        }
    }
}

#[test]
fn outer_ecn_is_combined_with_the_inner_and_outer_dscp_forgotten() {
    let Some(foreign) = foreign("ecn") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let mut scapy = Scapy::start();
    let outside = foreign.lab.view("h2").unwrap();
    let shapes = Shape::all().into_iter().filter(|shape| shape.kind == "ipip" || shape.checksum && shape.sequence);
    for shape in shapes {
        reload(&foreign, &shape);
        for [ours, theirs] in inner_pairs(&foreign) {
            let socket = receiver(&foreign, ours);
            let seen = Arc::new(Mutex::new(Vec::new()));
            let kept = seen.clone();
            let capture = Capture::start(foreign.container.view.namespace(), move |frame| {
                let packet = Outer::parse(frame);
                let content = packet.and_then(|packet| packet.udp()).filter(|udp| udp.1 == PORT).map(|udp| udp.2);
                if let (Some(packet), Some(content)) = (packet, content) {
                    kept.lock().unwrap().push((String::from_utf8_lossy(content).into_owned(), packet.tos));
                }
                content.is_some()
            })
            .unwrap();
            let spec = |inner: u8, outer: u8, payload: String| Spec {
                shape,
                outer: [shape.their_outer(), shape.our_outer()],
                inner: [theirs, ours],
                tos: 0x28 | inner,
                outer_tos: Some(0xb8 | outer),
                id: 0,
                sequence: next(),
                payload,
            };
            let (mut specs, mut expected) = (Vec::new(), Vec::new());
            for (inner, row) in ECN_COMBINED.iter().enumerate() {
                for (outer, combined) in row.iter().enumerate() {
                    // Of unlike lengths: equal ones of one flow may be joined on the way.
                    let payload = format!("{inner} in {outer} {}", "+".repeat(4 * inner + outer));
                    specs.push(spec(inner as u8, outer as u8, payload.clone()));
                    expected.extend(combined.map(|ecn| (payload, 0x28 | ecn)));
                }
            }
            specs.push(spec(0, 0, "last".to_owned()));
            expected.push(("last".to_owned(), 0x28));
            for (_, packet) in scapy.build(&specs) {
                send_raw(outside.namespace(), &packet, shape.our_outer());
            }
            received_until(&socket, "last");
            capture.finish();
            assert_eq!(*seen.lock().unwrap(), expected, "{shape:?} {ours}");
        }
    }
}

#[test]
fn unknown_outer_source_is_neither_delivered_nor_answered() {
    let Some(foreign) = foreign("unknown source") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let mut scapy = Scapy::start();
    let outside = foreign.lab.view("h2").unwrap();
    let v4_shapes = Shape::all().into_iter().filter(|shape| !shape.outer_v6);
    for shape in v4_shapes {
        reload(&foreign, &shape);
        let [ours, theirs] = inner_pairs(&foreign)[0];
        let socket = receiver(&foreign, ours);
        // To an unused port as well: the container's own refusal must not come out either.
        let answers = Capture::start(foreign.lab.host("h1").unwrap().view().namespace(), |frame| {
            frame.len() >= 34 && frame[12..14] == [8, 0] && [192, 0, 2, 99] == frame[30..34]
        })
        .unwrap();
        let spec = |source: IpAddr, payload: &str, sequence| Spec {
            shape,
            outer: [source, shape.our_outer()],
            inner: [theirs, ours],
            tos: 0,
            id: 0,
            sequence,
            payload: payload.to_owned(),
            outer_tos: None,
        };
        let stranger: IpAddr = "192.0.2.99".parse().unwrap();
        let specs = [
            spec(stranger, "stranger", next()),
            spec(stranger, "stranger again", next()),
            spec(shape.their_outer(), "right", next()),
        ];
        let before = foreign.status().unwrap().drops.get("plain_unknown_source").copied().unwrap_or(0);
        for (_, packet) in scapy.build(&specs) {
            send_raw(outside.namespace(), &packet, shape.our_outer());
        }
        assert_eq!(received_until(&socket, "right"), ["right"], "{shape:?}");
        let found = answers.finish();
        assert!(found.frames >= 3, "the capture saw nothing: {found:?}");
        assert_eq!(found.matches, 0, "{shape:?}: something was sent to the stranger");
        let after = foreign.status().unwrap().drops.get("plain_unknown_source").copied().unwrap_or(0);
        assert!(after >= before + 2, "{shape:?}: the drops are counted");
    }
}

/// The next sequence number, in whatever order the tests run.
fn next() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

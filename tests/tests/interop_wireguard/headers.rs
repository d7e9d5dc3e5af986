//! The outer header of our WireGuard datagrams, and what becomes of its ECN bits at the far end.

use overlay_netns_harness::nft;
use overlay_tests::{
    Capture, ECN_COMBINED, FOREIGN_V4, FOREIGN_V6, Foreign, Outer, Program, WireguardDevice, udp_socket, wireguard_kind,
};
use socket2::SockRef;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use crate::{LIMIT, OUR_ENDPOINT, THEIR_ENDPOINT, comes_true, foreign};

/// DSCP EF.
const EF: u8 = 0xb8;
const PORT: u16 = 7401;

fn set_tos(socket: &UdpSocket, tos: u8) {
    let (socket, v6) = (SockRef::from(socket), socket.local_addr().unwrap().is_ipv6());
    if v6 { socket.set_tclass_v6(tos.into()) } else { socket.set_tos_v4(tos.into()) }.unwrap();
}

/// What a capture keeps of an outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    kind: u8,
    tos: u8,
    ttl: u8,
    dont_fragment: bool,
    length: usize,
}

#[test]
fn outer_header_has_ecn_alone_and_is_never_fragmented() {
    let Some(foreign) = foreign("outer header") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let device = WireguardDevice::start(&foreign.lab, "h2", Program::WireguardGo, 0).unwrap();
    device.set_peer(&foreign.public_key, "").unwrap();
    for endpoint in ["192.0.2.2", "[2001:db8::2]"] {
        let address: IpAddr = endpoint.trim_matches(['[', ']']).parse().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        // On the sending host itself: the switch behind it counts the TTL down.
        let capture = Capture::start(foreign.lab.host("h1").unwrap().view().namespace(), move |frame| {
            let Some(outer) = Outer::parse(frame).filter(|outer| outer.target == address) else { return false };
            let Some(kind) = outer.udp().and_then(|(_, _, content)| wireguard_kind(content)) else { return false };
            let (tos, ttl, dont_fragment) = (outer.tos, outer.ttl, outer.dont_fragment);
            kept.lock().unwrap().push(Seen { kind, tos, ttl, dont_fragment, length: outer.payload.len() });
            true
        })
        .unwrap();
        foreign.restart(&device.section("office", &format!("endpoint = \"{endpoint}:51820\""))).unwrap();
        comes_true("an echo", || foreign.reaches(FOREIGN_V4));
        let mut expected = Vec::new();
        for (outside, inside) in foreign.pairs() {
            let socket = udp_socket(foreign.container.view.namespace(), SocketAddr::new(inside, 0)).unwrap();
            let headers = if inside.is_ipv6() { 48 } else { 28 };
            for ecn in 0..4u8 {
                // Found again by its length, which padding rounds up to 16: UDP, WireGuard, inner headers, content.
                let content = 400 + 16 * usize::from(ecn) + if inside.is_ipv6() { 64 } else { 0 };
                let length = 8 + 32 + (headers + content).next_multiple_of(16);
                expected.push(Seen { kind: 4, tos: ecn, ttl: 64, dont_fragment: true, length });
                set_tos(&socket, EF | ecn);
                socket.send_to(&vec![0; content], (outside, PORT)).unwrap();
            }
        }
        comes_true("all datagrams on the underlay", || {
            let seen = seen.lock().unwrap();
            expected.iter().all(|one| seen.iter().any(|other| other.length == one.length))
        });
        capture.finish();
        let seen = seen.lock().unwrap();
        for one in &expected {
            let found: Vec<&Seen> = seen.iter().filter(|other| other.length == one.length).collect();
            assert_eq!(found, [one], "{endpoint}");
        }
        // Handshakes and keepalives carry nothing that could be copied.
        for other in seen.iter().filter(|other| !expected.iter().any(|one| one.length == other.length)) {
            assert_eq!((other.tos & !3, other.ttl, other.dont_fragment), (0, 64, true), "{endpoint}: {other:?}");
        }
        assert!(seen.iter().any(|other| other.kind == 1 && other.tos == 0), "{endpoint}: {seen:?}");
    }
}

/// Makes the switch write these ECN bits into every outer header from `h2` to `h1`.
fn mark(foreign: &Foreign, ecn: u8) {
    let name = ["not-ect", "ect1", "ect0", "ce"][usize::from(ecn)];
    let rule = format!("ip saddr 192.0.2.2 udp dport 51821 ip ecn set {name}");
    let chain = format!("chain forward {{ type filter hook forward priority 10; {rule}; }}");
    nft(
        foreign.lab.switch().namespace(),
        &format!("table ip marks\ndelete table ip marks\ntable ip marks {{\n{chain}\n}}"),
    )
    .unwrap();
}

/// Removes the marks when dropped.
struct Marked<'a>(&'a Foreign);

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        let _ = nft(self.0.lab.switch().namespace(), "table ip marks\ndelete table ip marks");
    }
}

#[test]
fn congestion_marked_on_the_underlay_reaches_the_receiver() {
    let Some(foreign) = foreign("congestion") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let device = WireguardDevice::start(&foreign.lab, "h2", Program::WireguardGo, 0).unwrap();
    device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
    foreign.restart(&device.section("office", THEIR_ENDPOINT)).unwrap();
    comes_true("an echo", || foreign.reaches(FOREIGN_V4));
    let _marked = Marked(&foreign);
    let container = foreign.container.view.namespace();
    let theirs = foreign.lab.view("h2").unwrap();
    for (outside, inside) in [(FOREIGN_V4, foreign.pairs()[0].1), (FOREIGN_V6, foreign.pairs()[1].1)] {
        let receiver = udp_socket(container, SocketAddr::new(inside, PORT)).unwrap();
        receiver.set_read_timeout(Some(LIMIT)).unwrap();
        for outer in 0..4u8 {
            mark(&foreign, outer);
            let seen = Arc::new(Mutex::new(Vec::new()));
            let kept = seen.clone();
            let capture = Capture::start(container, move |frame| {
                let found = Outer::parse(frame)
                    .and_then(|packet| packet.udp().filter(|(_, port, _)| *port == PORT).map(|udp| (udp.2[0], packet)));
                if let Some((number, packet)) = found {
                    kept.lock().unwrap().push((number, packet.tos));
                }
                found.is_some()
            })
            .unwrap();
            // The last one passes always, and shows that those before it had their chance.
            for inner in [0, 1, 2, 3, 1] {
                // From a port of its own: datagrams of one flow and class would be joined on the way.
                let sender = udp_socket(theirs.namespace(), SocketAddr::new(outside.parse().unwrap(), 0)).unwrap();
                set_tos(&sender, EF | inner);
                sender.send_to(&[inner], SocketAddr::new(inside, PORT)).unwrap();
            }
            let expected: Vec<(u8, u8)> = [0, 1, 2, 3, 1u8]
                .into_iter()
                .filter_map(|inner| ECN_COMBINED[usize::from(inner)][usize::from(outer)].map(|ecn| (inner, EF | ecn)))
                .collect();
            for _ in &expected {
                receiver.recv(&mut [0; 16]).unwrap_or_else(|error| panic!("outer {outer:02b}: {error}"));
            }
            capture.finish();
            assert_eq!(*seen.lock().unwrap(), expected, "{inside}, outer {outer:02b}");
        }
    }
}

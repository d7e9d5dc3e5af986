//! Handshakes from either side, streams, preshared keys and keepalives.

use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_tests::{Capture, FOREIGN_V4, Foreign, Outer, Program, WireguardDevice, wireguard_kind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{OUR_ENDPOINT, THEIR_ENDPOINT, against_each, comes_true, preshared_key};

/// Verified streams in both directions and families.
fn streams_pass(foreign: &Foreign) {
    let theirs = foreign.lab.view("h2").unwrap();
    for (outside, inside) in foreign.pairs() {
        let outside: IpAddr = outside.parse().unwrap();
        let amount = Amount::Bytes(1 << 20);
        let server = Server::start(theirs.namespace(), SocketAddr::new(outside, 0)).unwrap();
        load::send(foreign.container.view.namespace(), server.address(), amount, Content::Verified).unwrap();
        let server = Server::start(foreign.container.view.namespace(), SocketAddr::new(inside, 0)).unwrap();
        load::send(theirs.namespace(), server.address(), amount, Content::Verified).unwrap();
    }
}

/// The whole exchange, the first packet from either side.
fn exchange(foreign: &Foreign, program: Program, we_start: bool) {
    let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
    if we_start {
        foreign.restart(&device.section("office", THEIR_ENDPOINT)).unwrap();
        device.set_peer(&foreign.public_key, "").unwrap();
        comes_true("an echo for the container", || foreign.reaches(FOREIGN_V4));
    } else {
        foreign.restart(&device.section("office", "")).unwrap();
        device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
        let to = IpAddr::V4(foreign.container.v4);
        comes_true("an echo for the other side", || foreign.is_reached(FOREIGN_V4, to));
    }
    for (outside, inside) in foreign.pairs() {
        comes_true(outside, || foreign.reaches(outside));
        comes_true(&inside.to_string(), || foreign.is_reached(outside, inside));
    }
    streams_pass(foreign);
    let status = foreign.peer("office").unwrap();
    assert_eq!(status.endpoint.as_deref(), Some("192.0.2.2:51820"), "{status:?}");
    assert!(status.authenticated && status.handshake_age_ms.is_some(), "{status:?}");
    assert!(status.tx_bytes > 1 << 20 && status.rx_bytes > 1 << 20, "{status:?}");
    assert!(device.handshake_age().is_some());
    assert_eq!(device.endpoint().as_deref(), Some("192.0.2.1:51821"));
}

#[test]
fn peer_is_reached_when_we_start() {
    against_each("we start", |foreign, program| exchange(foreign, program, true));
}

#[test]
fn peer_reaches_us_when_it_starts() {
    against_each("they start", |foreign, program| exchange(foreign, program, false));
}

#[test]
fn preshared_key_must_be_the_same_on_both_sides() {
    against_each("preshared key", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        let (right, theirs) = preshared_key(foreign, "h2", "right");
        let (wrong, _) = preshared_key(foreign, "h2", "wrong");
        device.set_peer(&foreign.public_key, &format!("{OUR_ENDPOINT} preshared-key {theirs}")).unwrap();
        let with = |file: &str| device.section("office", &format!("{THEIR_ENDPOINT}\npreshared_key_file = \"{file}\""));
        for section in [with(&wrong), device.section("office", THEIR_ENDPOINT)] {
            foreign.restart(&section).unwrap();
            for _ in 0..5 {
                assert!(!foreign.reaches(FOREIGN_V4), "a packet came back without the right key");
            }
            assert_eq!(device.handshake_age(), None);
        }
        // The right key, given while the daemon runs, is the control.
        foreign.reload(&with(&right)).unwrap();
        comes_true("an echo with the right key", || foreign.reaches(FOREIGN_V4));
        // And the wrong one, also given while it runs, ends what worked.
        foreign.reload(&with(&wrong)).unwrap();
        for _ in 0..3 {
            assert!(!foreign.reaches(FOREIGN_V4), "the old session outlived its key");
        }
    });
}

/// Counts keepalives, which are data messages with nothing inside: 32 bytes.
fn keepalives(foreign: &Foreign, from: &str) -> (Capture, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let host = foreign.lab.host(from).unwrap();
    let source = IpAddr::V4(host.underlay_v4());
    let capture = Capture::start(host.view().namespace(), move |frame| {
        let Some(outer) = Outer::parse(frame).filter(|outer| outer.source == source) else { return false };
        let keepalive = outer.udp().is_some_and(|udp| udp.2.len() == 32 && wireguard_kind(udp.2) == Some(4));
        counted.fetch_add(keepalive.into(), Ordering::Relaxed);
        keepalive
    });
    (capture.unwrap(), count)
}

#[test]
fn persistent_keepalive_is_sent_without_traffic_and_counted() {
    against_each("keepalive", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        device.set_peer(&foreign.public_key, "").unwrap();
        let keepalive = format!("{THEIR_ENDPOINT}\npersistent_keepalive = 1");
        foreign.restart(&device.section("office", &keepalive)).unwrap();
        comes_true("a handshake without traffic", || device.handshake_age().is_some());
        let (capture, sent) = keepalives(foreign, "h1");
        comes_true("three keepalives", || sent.load(Ordering::Relaxed) >= 3);
        capture.finish();
        // Now theirs: the daemon is told not to send any and counts what comes.
        foreign.reload(&device.section("office", THEIR_ENDPOINT)).unwrap();
        device.set_peer(&foreign.public_key, &format!("{OUR_ENDPOINT} persistent-keepalive 1")).unwrap();
        comes_true("an echo over the new session", || foreign.reaches(FOREIGN_V4));
        let received = || foreign.peer("office").unwrap().rx_packets;
        let before = received();
        let (capture, sent) = keepalives(foreign, "h2");
        comes_true("three keepalives from the other side", || received() >= before + 3);
        capture.finish();
        assert!(sent.load(Ordering::Relaxed) >= 2, "what was counted were keepalives");
    });
}

//! Foreign WireGuard peers: the daemon against other implementations.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{ip, run_in, wait_for};
use overlay_tests::{Capture, FOREIGN_V4, Foreign, SharedLab, WireguardDevice, can_use};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

static LAB: SharedLab<Foreign> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(10);
const WIREGUARD_GO: [&str; 3] = ["wireguard-go", "-f", "wg0"];
const OUR_ENDPOINT: &str = "endpoint 192.0.2.1:51821";

fn foreign(test: &str) -> Option<MutexGuard<'static, Foreign>> {
    let needed = [("command -v wg", "wireguard-tools"), ("command -v wireguard-go", "wireguard-go")];
    if !can_use(test, &needed) {
        return None;
    }
    LAB.lease("wgf", Foreign::start, |foreign| &foreign.lab)
}

/// The `[[peer]]` section of `h1` for the device on `h2`.
fn peer(device: &WireguardDevice<'_>, more: &str) -> String {
    format!(
        "[[peer]]\nname = \"office\"\npublic_key = \"{}\"\nallowed_ips = [\"10.99.0.0/24\", \"fd99::/64\"]\n{more}\n",
        device.public_key
    )
}

const THEIR_ENDPOINT: &str = "endpoint = \"192.0.2.2:51820\"";

fn comes_true(what: &str, mut condition: impl FnMut() -> bool) {
    if let Err(error) = wait_for(what, LIMIT, || condition().then_some(())) {
        panic!("{error}");
    }
}

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

/// The whole exchange with one implementation, the first packet from either side.
fn both_sides_can_start(foreign: &Foreign, program: &[&str]) {
    for we_start in [true, false] {
        let device = WireguardDevice::start(&foreign.lab, program).unwrap();
        if we_start {
            foreign.restart(&peer(&device, THEIR_ENDPOINT)).unwrap();
            device.set_peer(&foreign.public_key, "").unwrap();
            comes_true("an echo for the container", || foreign.reaches(FOREIGN_V4));
        } else {
            foreign.restart(&peer(&device, "")).unwrap();
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
        assert!(device.number("latest-handshakes", 1) > 0);
    }
}

#[test]
fn wireguard_go_is_reached_and_reaches_us_whoever_starts() {
    let Some(foreign) = foreign("whoever starts") else { return };
    let _logs = foreign.lab.logs_on_failure();
    both_sides_can_start(&foreign, &WIREGUARD_GO);
}

#[test]
fn preshared_key_must_be_the_same_on_both_sides() {
    let Some(foreign) = foreign("preshared key") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let device = WireguardDevice::start(&foreign.lab, &WIREGUARD_GO).unwrap();
    let make = "umask 077; wg genpsk > /run/overlay/right.psk; wg genpsk > /run/overlay/wrong.psk";
    run_in(foreign.lab.host("h1").unwrap().view(), &["sh", "-c", make]).unwrap();
    let ours = foreign.lab.host("h1").unwrap().path("/run/overlay/right.psk");
    std::fs::copy(ours, foreign.lab.host("h2").unwrap().path("/run/right.psk")).unwrap();
    device.set_peer(&foreign.public_key, &format!("{OUR_ENDPOINT} preshared-key /run/right.psk")).unwrap();
    let with = |file: &str| peer(&device, &format!("{THEIR_ENDPOINT}\npreshared_key_file = \"/run/overlay/{file}\""));
    for wrong in [with("wrong.psk"), peer(&device, THEIR_ENDPOINT)] {
        foreign.restart(&wrong).unwrap();
        for _ in 0..5 {
            assert!(!foreign.reaches(FOREIGN_V4), "a packet came back without the right key");
        }
        assert_eq!(device.number("latest-handshakes", 1), 0);
    }
    // The right key, given while the daemon runs, is the control.
    foreign.reload(&with("right.psk")).unwrap();
    comes_true("an echo with the right key", || foreign.reaches(FOREIGN_V4));
    // And the wrong one, also given while it runs, ends what worked.
    foreign.reload(&with("wrong.psk")).unwrap();
    for _ in 0..3 {
        assert!(!foreign.reaches(FOREIGN_V4), "the old session outlived its key");
    }
}

#[test]
fn persistent_keepalive_is_sent_without_traffic_and_counted() {
    let Some(foreign) = foreign("keepalive") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let device = WireguardDevice::start(&foreign.lab, &WIREGUARD_GO).unwrap();
    device.set_peer(&foreign.public_key, "").unwrap();
    foreign.restart(&peer(&device, &format!("{THEIR_ENDPOINT}\npersistent_keepalive = 1"))).unwrap();
    comes_true("a handshake without traffic", || device.number("latest-handshakes", 1) > 0);
    let before = device.number("transfer", 1);
    comes_true("two keepalives", || device.number("transfer", 1) >= before + 64);
    // Now theirs: the daemon is told not to send any and counts what comes.
    foreign.reload(&peer(&device, THEIR_ENDPOINT)).unwrap();
    device.set_peer(&foreign.public_key, &format!("{OUR_ENDPOINT} persistent-keepalive 1")).unwrap();
    comes_true("an echo over the new session", || foreign.reaches(FOREIGN_V4));
    let received = || foreign.peer("office").unwrap().rx_packets;
    let before = received();
    comes_true("two keepalives from the other side", || received() >= before + 2);
}

#[test]
fn peer_that_moves_is_followed() {
    let Some(foreign) = foreign("roaming") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let device = WireguardDevice::start(&foreign.lab, &WIREGUARD_GO).unwrap();
    device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
    foreign.restart(&peer(&device, THEIR_ENDPOINT)).unwrap();
    comes_true("an echo before the move", || foreign.reaches(FOREIGN_V4));
    let (host, switch) = (foreign.lab.host("h2").unwrap().view().namespace().to_owned(), foreign.lab.switch());
    let switch = switch.namespace();
    ip(&format!("-n {switch} route replace 192.0.2.77/32 dev h2")).unwrap();
    ip(&format!("-n {host} addr add 192.0.2.77/32 dev eth0")).unwrap();
    ip(&format!("-n {host} addr del 192.0.2.2/32 dev eth0")).unwrap();
    device.wg("set wg0 listen-port 51999").unwrap();
    let to = IpAddr::V4(foreign.container.v4);
    comes_true("an echo from the new address", || foreign.is_reached(FOREIGN_V4, to));
    let endpoint = foreign.peer("office").unwrap().endpoint;
    comes_true("an echo towards the new address", || foreign.reaches(FOREIGN_V4));
    ip(&format!("-n {host} addr add 192.0.2.2/32 dev eth0")).unwrap();
    ip(&format!("-n {host} addr del 192.0.2.77/32 dev eth0")).unwrap();
    assert_eq!(endpoint.as_deref(), Some("192.0.2.77:51999"));
}

#[test]
fn killed_daemon_resumes_with_the_peer() {
    let Some(foreign) = foreign("restart") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let device = WireguardDevice::start(&foreign.lab, &WIREGUARD_GO).unwrap();
    let section = peer(&device, THEIR_ENDPOINT);
    device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
    foreign.restart(&section).unwrap();
    comes_true("an echo before", || foreign.reaches(FOREIGN_V4));
    foreign.restart(&section).unwrap();
    comes_true("an echo after", || foreign.reaches(FOREIGN_V4));
    // The other end starts anew too, with the same key.
    device.wg(&format!("set wg0 peer {} remove", foreign.public_key)).unwrap();
    device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
    let to = IpAddr::V4(foreign.container.v4);
    comes_true("an echo for the peer that forgot its session", || foreign.is_reached(FOREIGN_V4, to));
}

/// Sends initiations with a right first MAC and nothing right behind it, from many addresses.
const FLOOD: &str = r#"
import base64, hashlib, os, socket, struct, sys, time
key = base64.b64decode(sys.argv[1])
mac_key = hashlib.blake2s(b"mac1----" + key).digest()
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
target = socket.inet_aton("192.0.2.1")
end = time.monotonic() + float(sys.argv[2])
number = 0
while time.monotonic() < end:
    for _ in range(20):
        number += 1
        body = struct.pack("<I", 1) + os.urandom(112)
        body += hashlib.blake2s(body, key=mac_key, digest_size=16).digest() + bytes(16)
        source = bytes([10, 200, number >> 8 & 255, number & 255])
        udp = struct.pack(">HHHH", 1000, 51821, 8 + len(body), 0)
        length = 20 + len(udp) + len(body)
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, number & 65535, 0, 64, 17, 0, source, target)
        raw.sendto(header + udp + body, ("192.0.2.1", 0))
    time.sleep(0.02)
"#;

#[test]
fn peer_completes_its_handshake_by_cookie_under_load() {
    let Some(foreign) = foreign("cookie") else { return };
    let _logs = foreign.lab.logs_on_failure();
    let device = WireguardDevice::start(&foreign.lab, &WIREGUARD_GO).unwrap();
    foreign.restart(&peer(&device, "")).unwrap();
    let h2 = foreign.lab.view("h2").unwrap();
    // Cookie replies (type 3) to the peer's own port.
    let seen = Arc::new(AtomicBool::new(false));
    let found = seen.clone();
    let cookies = Capture::start(h2.namespace(), move |frame| {
        let cookie =
            frame.len() >= 46 && frame[12..14] == [8, 0] && frame[36..38] == 51820u16.to_be_bytes() && frame[42] == 3;
        found.fetch_or(cookie, Ordering::Relaxed);
        cookie
    })
    .unwrap();
    let mut flood = foreign.lab.command("h2", &["python3", "-c", FLOOD, &foreign.public_key, "40"]).unwrap();
    let mut flood = flood.spawn().unwrap();
    comes_true("the flood to be noticed", || {
        foreign.status().unwrap().drops.get("wireguard_handshake").is_some_and(|count| *count > 200)
    });
    let to = IpAddr::V4(foreign.container.v4);
    // The first messages of each second pass without a cookie: forget and try again until one is asked for.
    let asked = wait_for("a cookie", LIMIT, || {
        let _ = device.wg(&format!("set wg0 peer {} remove", foreign.public_key));
        device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
        foreign.is_reached(FOREIGN_V4, to);
        seen.load(Ordering::Relaxed).then_some(())
    });
    let came =
        wait_for("an echo under load", Duration::from_secs(20), || foreign.is_reached(FOREIGN_V4, to).then_some(()));
    let running = flood.try_wait().unwrap().is_none();
    let _ = flood.kill();
    let _ = flood.wait();
    let found = cookies.finish();
    asked.unwrap_or_else(|error| panic!("{error}: {found:?}"));
    came.unwrap();
    assert!(running, "the flood ended before the handshake");
}

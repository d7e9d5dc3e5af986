//! Bad input: garbage on the sockets, spoofed sources, a second daemon.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::{HostSpec, wait_for};
use overlay_tests::{Capture, Overlay, SharedLab, raw_sender, resident_kib, udp_socket};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(10);
const PORT: u16 = 51821;

/// Three members over IPIP, so that packets can be forged by hand.
fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "hostile",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(3), 1, "ipip", |_| {}),
        |overlay| &overlay.lab,
    )
}

/// An IPv4 packet with a correct header checksum.
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&folded.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A UDP datagram without a checksum.
fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = Vec::new();
    for word in [40_000, port, length, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}

fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
    socket.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    let mut buffer = [0; 2048];
    let mut all = Vec::new();
    while let Ok(length) = socket.recv(&mut buffer) {
        all.push(buffer[..length].to_vec());
    }
    all
}

#[test]
fn garbage_is_dropped_without_an_answer_and_memory_stays_flat() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (victim, stranger) = (overlay.lab.host("h1").unwrap(), overlay.lab.host("h3").unwrap());
    // A port of h3 that no member uses, and an address of h3 that no member has.
    let namespace = stranger.view().namespace();
    overlay_netns_harness::ip(&format!("-n {namespace} addr add 192.0.2.99/32 dev eth0")).unwrap();
    let port = overlay.lab.switch();
    overlay_netns_harness::ip(&format!("-n {} route replace 192.0.2.99/32 dev h3", port.namespace())).unwrap();
    let socket = udp_socket(namespace, "192.0.2.99:4444".parse().unwrap()).unwrap();
    let raw = raw_sender(namespace).unwrap();
    let to = SocketAddr::new(victim.underlay_v4().into(), PORT);
    let answers = Capture::start(namespace, |frame| {
        frame.len() >= 34 && frame[12..14] == [8, 0] && frame[30..34] == [192, 0, 2, 99]
    })
    .unwrap();
    let pid = overlay.lab.daemon_pid("h1").unwrap();
    let mut random = ChaCha20Rng::seed_from_u64(1);
    let mut flood = |count: usize| {
        let mut bytes = vec![0; 1400];
        for number in 0..count {
            let length = (random.next_u32() % 1400) as usize;
            random.fill_bytes(&mut bytes[..length.max(4)]);
            // A quarter looks like each kind of WireGuard message.
            if number % 4 != 0 {
                bytes[..4].copy_from_slice(&[(number % 5) as u8, 0, 0, 0]);
            }
            let _ = socket.send_to(&bytes[..length], to);
            let protocol = [4, 41, 47][number % 3];
            let packet = ipv4(Ipv4Addr::new(192, 0, 2, 99), victim.underlay_v4(), protocol, &bytes[..length.min(600)]);
            let _ = raw(&packet, to);
        }
    };
    flood(2000);
    let before = resident_kib(pid).unwrap();
    flood(10_000);
    let grown = resident_kib(pid).unwrap().saturating_sub(before);
    assert!(grown < 4096, "the daemon grew by {grown} KiB");
    let found = answers.finish();
    assert!(found.frames > 0, "the capture saw nothing at all");
    assert_eq!(found.matches, 0, "something was sent in answer to garbage");
    assert_eq!(overlay.lab.daemon_pid("h1").unwrap(), pid);
    assert!(overlay.reaches("h2c1", IpAddr::V4(overlay.container("h1c1").v4)), "traffic stopped");
    let drops: u64 = overlay.status("h1").unwrap().drops.values().sum();
    assert!(drops > 1000, "drops are counted: {drops}");
    overlay_netns_harness::ip(&format!("-n {namespace} addr del 192.0.2.99/32 dev eth0")).unwrap();
}

#[test]
fn container_cannot_use_a_source_that_is_not_its_own() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let receiver = udp_socket(to.view.namespace(), SocketAddr::new(to.v4.into(), 7100)).unwrap();
    let raw = raw_sender(from.view.namespace()).unwrap();
    let send = |source: Ipv4Addr, payload: &[u8]| {
        raw(&ipv4(source, to.v4, 17, &udp(7100, payload)), SocketAddr::new(to.v4.into(), 0)).unwrap();
    };
    let [a, b, c, _] = from.v4.octets();
    for forged in [overlay.container("h3c1").v4, Ipv4Addr::new(a, b, c, 77), "10.42.1.1".parse().unwrap()] {
        for _ in 0..20 {
            send(forged, b"forged");
        }
    }
    send(from.v4, b"true");
    assert_eq!(received(&receiver), [b"true".to_vec()]);
}

#[test]
fn peer_cannot_use_a_source_of_another_owner() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (h2, h3) = (overlay.lab.host("h2").unwrap(), overlay.lab.host("h3").unwrap());
    let to = overlay.container("h2c1");
    let receiver = udp_socket(to.view.namespace(), SocketAddr::new(to.v4.into(), 7101)).unwrap();
    let raw = raw_sender(h3.view().namespace()).unwrap();
    let send = |inner_source: Ipv4Addr, payload: &[u8]| {
        let inner = ipv4(inner_source, to.v4, 17, &udp(7101, payload));
        let outer = ipv4(h3.underlay_v4(), h2.underlay_v4(), 4, &inner);
        raw(&outer, SocketAddr::new(h2.underlay_v4().into(), 0)).unwrap();
    };
    for _ in 0..20 {
        send(overlay.container("h1c1").v4, b"of another member");
        send(to.v4, b"of the receiver");
        send("8.8.8.8".parse().unwrap(), b"of nobody");
    }
    // The control: the same bytes with a source that h3 owns are delivered.
    send(overlay.container("h3c1").v4, b"true");
    assert_eq!(received(&receiver), [b"true".to_vec()]);
}

#[test]
fn second_daemon_is_refused_with_its_exit_code_and_the_first_goes_on() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let host = overlay.lab.host("h1").unwrap();
    let same = overlay.cluster.text(&overlay.lab, host);
    // Directories of its own, then also a TUN of its own, so that each check is met in turn.
    let paths = "\n[paths]\nstate_dir = \"/run/other\"\nruntime_dir = \"/run/other\"\n";
    let apart = format!("{same}{paths}");
    let other_tun = apart.replace("[overlay]", "[overlay]\ninterface = \"overlay9\"");
    std::fs::create_dir_all(host.path("/run/other")).unwrap();
    overlay.cluster.identity(0).write(&host.path("/run/other/identity.key")).unwrap();
    for (what, config) in [("everything", &same), ("the TUN", &apart), ("the port", &other_tun)] {
        let mut child = overlay.lab.spawn_other_daemon("h1", config).unwrap();
        let ended = wait_for("the second daemon to end", LIMIT, || child.try_wait().unwrap());
        let _ = child.kill();
        let _ = child.wait();
        let (status, _) = ended.unwrap();
        assert_eq!(status.code(), Some(5), "sharing {what}");
    }
    assert!(overlay.reaches("h2c1", IpAddr::V4(overlay.container("h1c1").v4)), "the first daemon was disturbed");
}

#[test]
fn broken_configuration_ends_the_start_before_anything_changes() {
    let Some(overlay) = overlay() else { return };
    let host = overlay.lab.host("h1").unwrap();
    let config = overlay.cluster.text(&overlay.lab, host).replace("listen_port", "lissen_port");
    let mut child = overlay.lab.spawn_other_daemon("h1", &config).unwrap();
    let ended = wait_for("the daemon to end", LIMIT, || child.try_wait().unwrap());
    let _ = child.kill();
    assert_eq!(ended.unwrap().0.code(), Some(2));
    let log = overlay.lab.log("h1").unwrap();
    assert!(log.contains("lissen_port") && log.contains("other.toml"), "{log}");
}

//! Bad input: spoofed sources, a second daemon, a broken configuration. `membership_figures.rs` has garbage on the sockets.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::{HostSpec, wait_for};
use overlay_tests::{Overlay, SharedLab, ipv4, raw_sender, udp, udp_socket};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(10);

/// Three members over IPIP, so that packets can be forged by hand.
fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "hostile",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(3), 1, "ipip", |_| {}),
        |overlay| &overlay.lab,
    )
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
    // The hosts are ready as soon as packets pass over WireGuard; this is about IPIP.
    wait_for("h2 to take packets of h3 in clear", LIMIT, || {
        (overlay.peer("h2", "h3").ok()?.encapsulation.to_string() == "ipip").then_some(())
    })
    .unwrap();
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

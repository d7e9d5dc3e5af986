//! What a kill, a restart and a clean stop leave.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::{Binaries, HostSpec, Lab, Topology, ping, wait_for};
use overlay_tests::{Conversation, Echo, Overlay, Snapshot, can_make_namespaces, lab_name};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);

fn overlay(subject: &str, encapsulation: &str) -> Option<Overlay> {
    if !can_make_namespaces(subject) {
        return None;
    }
    let binaries = Binaries::for_tests().unwrap();
    let overlay = Overlay::start(&lab_name(subject), binaries, &HostSpec::numbered(2), 1, encapsulation, |_| {});
    Some(overlay.unwrap())
}

/// Kills one daemon, starts it again, and returns how long traffic took to come back.
fn kill_and_restart(overlay: &Overlay, host: &str) -> Duration {
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let echo = Echo::start(to.view.namespace(), SocketAddr::new(to.v4.into(), 7000)).unwrap();
    let mut kept = Conversation::open(from.view.namespace(), echo.address(), LIMIT).unwrap();
    kept.exchange(LIMIT).unwrap();
    overlay.lab.kill_daemon(host).unwrap();
    assert!(!overlay.reaches("h1c1", IpAddr::V4(to.v4)), "traffic without the daemon of {host}");
    let start = Instant::now();
    overlay.lab.spawn_daemon(host).unwrap();
    wait_for("traffic after the restart", LIMIT, || {
        let report = ping(&from.view, "-c 1 -W 0.1", &to.v4.to_string()).ok()?;
        report.is_lossless().then_some(())
    })
    .unwrap();
    let took = start.elapsed();
    kept.exchange(LIMIT).expect("the TCP connection survives");
    took
}

#[test]
fn traffic_is_back_within_two_seconds_after_a_kill() {
    for encapsulation in ["wireguard", "ipip"] {
        let Some(overlay) = overlay(&format!("kill{}", &encapsulation[..1]), encapsulation) else { return };
        for host in ["h2", "h1"] {
            let took = kill_and_restart(&overlay, host);
            assert!(took < Duration::from_secs(2), "{encapsulation}, {host}: {took:?}");
        }
    }
}

#[test]
fn both_daemons_killed_at_once_come_back() {
    let Some(overlay) = overlay("killboth", "wireguard") else { return };
    let to = IpAddr::V4(overlay.container("h2c1").v4);
    for host in ["h1", "h2"] {
        overlay.lab.kill_daemon(host).unwrap();
    }
    let start = Instant::now();
    for host in ["h1", "h2"] {
        overlay.lab.spawn_daemon(host).unwrap();
    }
    wait_for("traffic", LIMIT, || overlay.reaches("h1c1", to).then_some(())).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn clean_stop_leaves_the_host_as_it_was() {
    if !can_make_namespaces("clean_stop_leaves_the_host_as_it_was") {
        return;
    }
    let binaries = Binaries::for_tests().unwrap();
    let lab = Lab::create(&lab_name("stop"), Topology::Routed, &HostSpec::numbered(2), binaries).unwrap();
    overlay_netns_harness::Cluster::new(2, "wireguard").write(&lab).unwrap();
    let view = lab.host("h1").unwrap().view().clone();
    // The first look makes the kernel create its default tables.
    let before = Snapshot::take(&view).and_then(|_| Snapshot::take(&view)).unwrap();
    lab.start_daemons().unwrap();
    let container = lab.add_container("h1", "c1").unwrap();
    let during = Snapshot::take(&view).unwrap();
    assert!(!before.difference(&during).is_empty(), "the comparison sees nothing of a running daemon");
    let listed = lab.ctl_ok("h1", &["endpoint", "list"]).unwrap();
    assert!(listed.contains(&container.v4.to_string()), "{listed}");
    let namespace = container.view.namespace().to_owned();
    lab.ctl_ok("h1", &["endpoint", "rm", &namespace]).unwrap();
    let status = lab.stop_daemon("h1").unwrap();
    assert!(status.success(), "{status}\n{}", lab.log("h1").unwrap());
    let after = Snapshot::take(&view).unwrap();
    assert_eq!(before.difference(&after), "", "what differs after the stop");
}

#[test]
fn container_keeps_its_address_over_a_clean_restart() {
    let Some(overlay) = overlay("restart", "wireguard") else { return };
    let to = overlay.container("h2c1").clone();
    overlay.lab.stop_daemon("h2").unwrap();
    overlay.lab.start_daemon("h2").unwrap();
    wait_for("traffic after the restart", LIMIT, || overlay.reaches("h1c1", IpAddr::V4(to.v4)).then_some(())).unwrap();
    let now = overlay.lab.container("h2c1").unwrap();
    assert_eq!((now.v4, now.v6), (to.v4, to.v6));
}

//! The lab itself: namespaces, links, faults, the load generator and cleaning up. No daemon is started.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::wire::WireSpec;
use overlay_netns_harness::{Binaries, Cluster, HostSpec, Impairment, Lab, Topology, clean, netns, ping};
use overlay_tests::{Capture, SharedLab, can_make_namespaces, lab_name};
use std::net::SocketAddr;
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Lab> = SharedLab::new();

/// Three hosts: h2 has a smaller MTU, h3 hangs on a userspace wire without faults.
fn lab() -> Option<MutexGuard<'static, Lab>> {
    LAB.lease(
        "harness",
        |name, binaries| {
            let wire = WireSpec { seed: 1, ..WireSpec::default() };
            let hosts =
                [HostSpec::named("h1"), HostSpec::named("h2").with_mtu(1400), HostSpec::named("h3").with_wire(wire)];
            Lab::create(name, Topology::Routed, &hosts, binaries)
        },
        |lab| lab,
    )
}

#[test]
fn hosts_reach_each_other_over_both_families() {
    let Some(lab) = lab() else { return };
    for (from, to) in [("h1", "h2"), ("h2", "h3"), ("h3", "h1")] {
        let (from, to) = (lab.host(from).unwrap(), lab.host(to).unwrap());
        for address in [to.underlay_v4().to_string(), to.underlay_v6().to_string()] {
            let report = ping(from.view(), "-c 3 -i 0.05 -W 2", &address).unwrap();
            assert!(report.is_lossless(), "{}", report.text);
        }
    }
}

#[test]
fn smaller_link_answers_with_its_mtu() {
    let Some(lab) = lab() else { return };
    let view = lab.host("h1").unwrap().view();
    let report = ping(view, "-c 2 -i 0.05 -W 1 -s 1472 -M do", "192.0.2.2").unwrap();
    assert_eq!(report.received, 0);
    assert!(report.text.contains("mtu = 1400") || report.text.contains("mtu=1400"), "{}", report.text);
}

#[test]
fn each_host_has_its_own_run_directory() {
    let Some(lab) = lab() else { return };
    lab.exec("h1", &["touch", "/run/overlay/mark", "/var/lib/overlay/mark"]).unwrap();
    for (host, there) in [("h1", true), ("h2", false)] {
        for file in ["/run/overlay/mark", "/var/lib/overlay/mark"] {
            assert_eq!(lab.exec(host, &["test", "-e", file]).unwrap().status.success(), there, "{host} {file}");
        }
    }
    assert!(!std::path::Path::new("/run/overlay/mark").exists(), "the machine's own directory was touched");
    let names = lab.exec("h1", &["ip", "netns", "list"]).unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    assert!(names.contains(lab.host("h2").unwrap().view().namespace()), "{names}");
}

#[test]
fn loss_of_half_the_packets_is_seen_and_goes_away() {
    let Some(lab) = lab() else { return };
    let view = lab.host("h1").unwrap().view();
    lab.impair("h2", Impairment { loss_percent: 30.0, ..Impairment::default() }).unwrap();
    let report = ping(view, "-c 200 -i 0.002 -W 1", "192.0.2.2").unwrap();
    lab.impair("h2", Impairment::default()).unwrap();
    // Two directions: 49 % come back. The bounds are seven deviations away.
    assert!((50..150).contains(&report.received), "{}", report.text);
    assert!(ping(view, "-c 20 -i 0.002 -W 1", "192.0.2.2").unwrap().is_lossless());
}

#[test]
fn duplication_delivers_copies() {
    let Some(lab) = lab() else { return };
    lab.impair("h2", Impairment { duplicate_percent: 100.0, ..Impairment::default() }).unwrap();
    for address in ["192.0.2.2", "2001:db8::2"] {
        let report = ping(lab.host("h1").unwrap().view(), "-c 5 -i 0.02 -W 1", address).unwrap();
        assert!(report.is_lossless() && report.text.contains("(DUP!)"), "{}", report.text);
    }
    lab.impair("h2", Impairment::default()).unwrap();
}

#[test]
fn cut_stops_packets_and_heal_lets_them_pass() {
    let Some(lab) = lab() else { return };
    let reaches = |from: &str, to: &str| {
        let view = lab.host(from).unwrap().view().clone();
        ping(&view, "-c 1 -W 0.3", &lab.host(to).unwrap().underlay_v4().to_string()).unwrap().is_lossless()
    };
    lab.cut("h1").unwrap();
    assert!(!reaches("h1", "h2") && reaches("h2", "h3"));
    lab.heal("h1").unwrap();
    lab.cut_between("h1", "h2").unwrap();
    assert!(!reaches("h2", "h1") && reaches("h1", "h3"));
    lab.heal("h2").unwrap();
    assert!(reaches("h1", "h2"));
}

#[test]
fn verified_stream_passes_the_wire() {
    let Some(lab) = lab() else { return };
    let (from, to) = (lab.host("h1").unwrap(), lab.host("h3").unwrap());
    let address = SocketAddr::new(to.underlay_v4().into(), 0);
    let server = Server::start(to.view().namespace(), address).unwrap();
    let sent =
        load::send(from.view().namespace(), server.address(), Amount::Bytes(4 << 20), Content::Verified).unwrap();
    assert_eq!(sent.bytes, 4 << 20);
}

#[test]
fn capture_finds_plaintext_on_the_underlay() {
    let Some(lab) = lab() else { return };
    let capture = Capture::start(lab.switch().namespace(), Capture::containing(b"\xca\xfe\xf0\x0d")).unwrap();
    ping(lab.host("h1").unwrap().view(), "-c 3 -i 0.02 -W 1 -p cafef00d", "192.0.2.2").unwrap();
    let found = capture.finish();
    assert!(found.matches >= 6, "{found:?}");
}

#[test]
fn corrupting_and_delaying_wire_is_seen() {
    if !can_make_namespaces("corrupting_and_delaying_wire_is_seen") {
        return;
    }
    let wire = WireSpec { seed: 3, delay_ms: 20.0, corrupt_percent: 10.0, ..WireSpec::default() };
    let hosts = [HostSpec::named("h1"), HostSpec::named("h2").with_wire(wire)];
    let lab = Lab::create(&lab_name("wire"), Topology::Routed, &hosts, Binaries::for_tests().unwrap()).unwrap();
    let view = lab.host("h1").unwrap().view();
    // Address resolution crosses the same wire and may need more than one try.
    overlay_netns_harness::wait_for("a first answer", Duration::from_secs(20), || {
        ping(view, "-c 1 -W 0.5", "192.0.2.2").ok().filter(|report| report.is_lossless())
    })
    .unwrap();
    let report = ping(view, "-c 100 -i 0.01 -W 5", "192.0.2.2").unwrap();
    // Four of five come back, of two directions with 10 % damaged each.
    let share = f64::from(report.received) / f64::from(report.sent);
    assert!((0.5..0.97).contains(&share), "{}", report.text);
    // Damage to the time inside an echo shows as none, so a few may seem early; the others tell.
    let times = report.text.split("time=").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    let (held, early): (Vec<f64>, Vec<f64>) = times.partition(|time| *time >= 40.0);
    assert!(held.len() > 40 && held.len() > 4 * early.len(), "20 ms each way: {}", report.text);
}

#[test]
fn dropped_lab_leaves_nothing() {
    if !can_make_namespaces("dropped_lab_leaves_nothing") {
        return;
    }
    let name = lab_name("drop");
    let prefix = format!("ovl-{name}-");
    let lab = Lab::create(&name, Topology::Direct, &HostSpec::numbered(2), Binaries::for_tests().unwrap()).unwrap();
    assert_eq!(netns::list(&prefix).len(), 2);
    assert!(Lab::create(&name, Topology::Direct, &HostSpec::numbered(2), Binaries::built()).is_err(), "name in use");
    assert_eq!(netns::list(&prefix).len(), 2, "the refused lab must not remove the first");
    drop(lab);
    assert!(netns::list(&prefix).is_empty());
    assert!(!clean::labs().iter().any(|(left, _)| *left == name));
}

#[test]
fn lab_of_a_killed_process_is_cleaned_up() {
    if !can_make_namespaces("lab_of_a_killed_process_is_cleaned_up") {
        return;
    }
    let name = lab_name("kill");
    let wire = WireSpec { seed: 1, ..WireSpec::default() };
    let hosts = [HostSpec::named("h1").with_wire(wire), HostSpec::named("h2")];
    let lab = Lab::create(&name, Topology::Routed, &hosts, Binaries::for_tests().unwrap()).unwrap();
    let mut sleeper = lab.command("h2", &["sleep", "1000"]).unwrap().spawn().unwrap();
    // What a kill leaves: the value is never dropped, the processes and namespaces stay.
    std::mem::forget(lab);
    clean::lab(&name).unwrap();
    assert!(netns::list(&format!("ovl-{name}-")).is_empty());
    let (status, _) = overlay_netns_harness::wait_for("the sleeper to be gone", Duration::from_secs(5), || {
        sleeper.try_wait().unwrap()
    })
    .unwrap();
    assert!(!status.success());
}

#[test]
fn generated_configuration_is_accepted() {
    let Some(lab) = lab() else { return };
    for encapsulation in ["wireguard", "gre", "ipip"] {
        let mut cluster = Cluster::new(3, encapsulation);
        cluster.rules = vec!["reject tcp/5002 from any to any name closed".to_owned()];
        for host in lab.hosts() {
            let text = cluster.text(&lab, host);
            overlay_config::Config::parse(&text, "overlayd.toml")
                .unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        }
    }
}

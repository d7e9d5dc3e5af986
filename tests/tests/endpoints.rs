//! Hosts with several addresses, hosts that move, and hosts behind NATs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{ControlState, DataState, FindingStatus};
use overlay_netns_harness::{HostSpec, Nat, ip, nft, wait_for};
use overlay_tests::{Overlay, SharedLab};
use overlay_wire::Encapsulation;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const PORT: u16 = 51821;
/// How long anything may take on a busy machine where the figure is not the point.
const LIMIT: Duration = Duration::from_secs(30);

static WIREGUARD: SharedLab<Overlay> = SharedLab::new();
static GRE: SharedLab<Overlay> = SharedLab::new();
static UPLINKS: SharedLab<Overlay> = SharedLab::new();
static FILTERED: SharedLab<Overlay> = SharedLab::new();
static MOVING: SharedLab<Overlay> = SharedLab::new();
static ONE_NAT: SharedLab<Overlay> = SharedLab::new();
static KEPT_PORTS: SharedLab<Overlay> = SharedLab::new();
static SYMMETRIC: SharedLab<Overlay> = SharedLab::new();

fn endpoint(overlay: &Overlay, at: &str, of: &str) -> Option<String> {
    overlay.peer(at, of).ok()?.endpoint
}

fn reaches(overlay: &Overlay, from: &str, to: &str) -> bool {
    overlay.reaches(from, IpAddr::V4(overlay.container(to).v4))
}

fn wait_reaches(overlay: &Overlay, from: &str, to: &str) -> Duration {
    wait_for(&format!("{from} to reach {to}"), LIMIT, || reaches(overlay, from, to).then_some(())).unwrap().1
}

/// Drops IPv4 in the switch until it is taken back.
struct Ipv4Cut(String);

impl Ipv4Cut {
    /// `matched` says what of it, in the words of nft; nothing: all.
    fn make(overlay: &Overlay, matched: &str) -> Ipv4Cut {
        let switch = overlay.lab.switch().namespace().to_owned();
        let hook = "type filter hook forward priority -10; policy accept;";
        nft(&switch, &format!("table ip test_cut {{\n chain f {{\n {hook}\n {matched} drop\n }}\n}}\n")).unwrap();
        Ipv4Cut(switch)
    }
}

impl Drop for Ipv4Cut {
    fn drop(&mut self) {
        if let Err(error) = nft(&self.0, "delete table ip test_cut") {
            eprintln!("{error:#}");
        }
    }
}

/// Two hosts with an address of each family: the second takes over, and the first is returned to.
fn falls_over(overlay: &Overlay, encapsulation: Encapsulation) {
    let plain = encapsulation != Encapsulation::Wireguard;
    let place = |address: String| if plain { address } else { format!("{address}:{PORT}") };
    let [h1, h2] = [0, 1].map(|index| &overlay.lab.hosts()[index]);
    let (v4, v6) = (place(h2.underlay_v4().to_string()), {
        let ip = h2.underlay_v6();
        place(if plain { ip.to_string() } else { format!("[{ip}]") })
    });
    let all = overlay.peer("h1", "h2").unwrap().endpoints;
    assert!(all.contains(&format!("{}:{PORT}", h2.underlay_v4())), "{all:?}");
    wait_for("the second address to be known", LIMIT, || {
        let all = overlay.peer("h1", "h2").ok()?.endpoints;
        all.contains(&format!("[{}]:{PORT}", h2.underlay_v6())).then_some(())
    })
    .unwrap();
    let uses = |wanted: &str| {
        let peer = overlay.peer("h1", "h2").ok()?;
        (peer.endpoint.as_deref() == Some(wanted) && peer.encapsulation == encapsulation).then_some(())
    };
    wait_for("the first address in use", Duration::from_secs(90), || uses(&v4)).unwrap();
    wait_reaches(overlay, "h1c1", "h2c1");
    let cut = Ipv4Cut::make(overlay, "");
    assert!(!reaches(overlay, "h1c1", "h2c1"), "the cut is one");
    let took = wait_reaches(overlay, "h1c1", "h2c1");
    println!("{encapsulation}: the other family carried packets after {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    wait_reaches(overlay, "h2c1", "h1c1");
    wait_for("the second address in use", LIMIT, || uses(&v6)).unwrap();
    let peer = overlay.peer("h2", "h1").unwrap();
    assert!(peer.endpoint.unwrap().contains(&h1.underlay_v6().to_string()));
    drop(cut);
    wait_for("the return to the first address", Duration::from_secs(120), || uses(&v4)).unwrap();
    wait_reaches(overlay, "h1c1", "h2c1");
}

fn two_addresses(name: &str, lab: &'static SharedLab<Overlay>, encapsulation: Encapsulation) {
    let kind = encapsulation.to_string();
    let make = |name: &str, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, &kind, |_| {});
    let Some(overlay) = lab.lease(name, make, |overlay| &overlay.lab) else { return };
    let _logs = overlay.lab.logs_on_failure();
    falls_over(&overlay, encapsulation);
}

#[test]
fn wireguard_goes_on_over_the_other_family() {
    two_addresses("pathswg", &WIREGUARD, Encapsulation::Wireguard);
}

#[test]
fn gre_goes_on_over_the_other_family() {
    two_addresses("pathsgre", &GRE, Encapsulation::Gre);
}

/// UDP passes and with it gossip, so only the data path tells that the address in use is no good.
#[test]
fn gre_that_is_dropped_in_one_family_takes_the_other() {
    let make = |name: &str, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "gre", |_| {});
    let Some(overlay) = FILTERED.lease("filtered", make, |overlay| &overlay.lab) else { return };
    let _logs = overlay.lab.logs_on_failure();
    let [h1, h2] = ["h1", "h2"].map(|name| overlay.lab.host(name).unwrap());
    let uses = |at: &str, of: &str, ip: IpAddr| {
        let peer = overlay.peer(at, of).ok()?;
        let is_there = peer.endpoint == Some(ip.to_string()) && peer.encapsulation == Encapsulation::Gre;
        (is_there && peer.data == DataState::Up).then_some(())
    };
    wait_for("GRE over IPv4", Duration::from_secs(90), || {
        uses("h1", "h2", h2.underlay_v4().into()).and(uses("h2", "h1", h1.underlay_v4().into()))
    })
    .unwrap();
    wait_for("the second address to be known", LIMIT, || {
        let known = |at: &str, of: &str| overlay.peer(at, of).is_ok_and(|peer| peer.endpoints.len() >= 2);
        (known("h1", "h2") && known("h2", "h1")).then_some(())
    })
    .unwrap();
    let _cut = Ipv4Cut::make(&overlay, "ip protocol gre");
    assert!(!reaches(&overlay, "h1c1", "h2c1"), "GRE over IPv4 is dropped");
    wait_for("GRE over IPv6", LIMIT, || {
        uses("h1", "h2", h2.underlay_v6().into()).and(uses("h2", "h1", h1.underlay_v6().into()))
    })
    .unwrap();
    wait_reaches(&overlay, "h1c1", "h2c1");
    wait_reaches(&overlay, "h2c1", "h1c1");
    assert!(!overlay.lab.log("h1").unwrap().contains("member-down"));
}

/// The second uplink has an address of its own network and, as is needed anywhere, a route by source address.
#[test]
fn second_uplink_of_the_same_family_takes_over() {
    let make = |name: &str, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {});
    let Some(overlay) = UPLINKS.lease("uplinks", make, |overlay| &overlay.lab) else { return };
    let _logs = overlay.lab.logs_on_failure();
    let host = overlay.lab.host("h2").unwrap();
    let (namespace, switch) = (host.view().namespace().to_owned(), overlay.lab.switch().namespace().to_owned());
    let second = "198.51.100.2";
    for line in [
        format!("-n {switch} link add h2b type veth peer name eth1 netns {namespace}"),
        format!("-n {switch} addr add 192.0.2.254/32 dev h2b"),
        format!("-n {switch} link set h2b up"),
        format!("-n {switch} route add {second}/32 dev h2b"),
        format!("-n {namespace} addr add {second}/32 dev eth1"),
        format!("-n {namespace} link set eth1 up"),
        format!("-n {namespace} route add default via 192.0.2.254 dev eth1 onlink table 77"),
        format!("-n {namespace} rule add from {second} lookup 77"),
        // The other family would take over first.
        format!("-n {namespace} addr del {}/128 dev eth0", host.underlay_v6()),
    ] {
        ip(&line).unwrap();
    }
    wait_for("h1 to know the second uplink", LIMIT, || {
        overlay.peer("h1", "h2").ok()?.endpoints.contains(&format!("{second}:{PORT}")).then_some(())
    })
    .unwrap();
    wait_reaches(&overlay, "h1c1", "h2c1");
    overlay.lab.cut("h2").unwrap();
    assert!(!reaches(&overlay, "h1c1", "h2c1"), "the cut is one");
    let took = wait_reaches(&overlay, "h1c1", "h2c1");
    assert!(took < Duration::from_secs(10), "{took:?}");
    wait_reaches(&overlay, "h2c1", "h1c1");
    let v4 = |ip: &str| Some(format!("{ip}:{PORT}"));
    wait_for("the second uplink in use", LIMIT, || (endpoint(&overlay, "h1", "h2") == v4(second)).then_some(()))
        .unwrap();
    overlay.lab.heal("h2").unwrap();
    wait_reaches(&overlay, "h2c1", "h1c1");
}

#[test]
fn host_that_changes_its_address_is_followed_and_sessions_go_on() {
    let make = |name: &str, binaries| Overlay::start(name, binaries, &HostSpec::numbered(3), 1, "wireguard", |_| {});
    let Some(overlay) = MOVING.lease("moving", make, |overlay| &overlay.lab) else { return };
    let _logs = overlay.lab.logs_on_failure();
    for other in ["h2c1", "h3c1"] {
        wait_reaches(&overlay, "h1c1", other);
        wait_reaches(&overlay, other, "h1c1");
    }
    let (host, switch) = (overlay.lab.host("h1").unwrap(), overlay.lab.switch());
    // The second family would hide the move.
    ip(&format!("-n {} addr del {}/128 dev eth0", host.view().namespace(), host.underlay_v6())).unwrap();
    wait_for("IPv4 between all", Duration::from_secs(90), || {
        let v4 = |at: &str, of: &str| endpoint(&overlay, at, of).is_some_and(|to| to.starts_with("192.0.2."));
        (v4("h2", "h1") && v4("h3", "h1") && v4("h1", "h2") && v4("h1", "h3")).then_some(())
    })
    .unwrap();
    let new = "192.0.2.77";
    ip(&format!("-n {} route replace {new}/32 dev h1", switch.namespace())).unwrap();
    let handshake = |at: &str| overlay.peer(at, "h1").ok().and_then(|peer| peer.handshake_age_ms);
    let (before, began) = ([handshake("h2").unwrap(), handshake("h3").unwrap()], Instant::now());
    ip(&format!("-n {} addr add {new}/32 dev eth0", host.view().namespace())).unwrap();
    ip(&format!("-n {} addr del {}/32 dev eth0", host.view().namespace(), host.underlay_v4())).unwrap();
    for at in ["h2", "h3"] {
        let wanted = format!("{new}:{PORT}");
        let (_, took) = wait_for(&format!("{at} to follow h1"), LIMIT, || {
            (endpoint(&overlay, at, "h1").as_deref() == Some(wanted.as_str())).then_some(())
        })
        .unwrap();
        println!("{at} followed after {took:?}");
        assert!(took < Duration::from_secs(5), "{at}: {took:?}");
        wait_reaches(&overlay, &format!("{at}c1"), "h1c1");
        // What is published follows too.
        wait_for(&format!("{at} to know the new address"), LIMIT, || {
            let published = overlay.peer(at, "h1").ok()?.endpoints;
            published.contains(&wanted).then_some(())
        })
        .unwrap();
    }
    // A new handshake would be younger than the move; the usual one comes after two minutes.
    for (at, before) in ["h2", "h3"].iter().zip(before) {
        let elapsed = began.elapsed().as_millis() as u64;
        if before + elapsed < 110_000 {
            assert!(handshake(at).unwrap() >= elapsed, "{at}: the session ended with the move");
        }
        assert_eq!(overlay.peer(at, "h1").unwrap().control, ControlState::Up);
    }
    assert!(!overlay.lab.log("h2").unwrap().contains("member-down"));
}

fn behind(kinds: &[Option<Nat>]) -> Vec<HostSpec> {
    let specs = HostSpec::numbered(kinds.len()).into_iter().zip(kinds);
    specs.map(|(spec, kind)| kind.map_or(spec.clone(), |kind| spec.behind(kind))).collect()
}

#[test]
fn host_behind_a_nat_publishes_where_members_see_it() {
    let hosts = behind(&[Some(Nat::KeepsPort), None, None]);
    let make = |name: &str, binaries| Overlay::start(name, binaries, &hosts, 1, "wireguard", |_| {});
    let Some(overlay) = ONE_NAT.lease("onenat", make, |overlay| &overlay.lab) else { return };
    let _logs = overlay.lab.logs_on_failure();
    let host = overlay.lab.host("h1").unwrap();
    let (inside, outside) = (host.inside_v4().unwrap(), host.underlay_v4());
    for at in ["h2", "h3"] {
        wait_for(&format!("{at} to know both addresses of h1"), LIMIT, || {
            let all = overlay.peer(at, "h1").ok()?.endpoints;
            let known = |ip: std::net::Ipv4Addr| all.contains(&format!("{ip}:{PORT}"));
            (known(inside) && known(outside)).then_some(())
        })
        .unwrap();
        assert_eq!(endpoint(&overlay, at, "h1"), Some(format!("{outside}:{PORT}")));
        wait_reaches(&overlay, &format!("{at}c1"), "h1c1");
        wait_reaches(&overlay, "h1c1", &format!("{at}c1"));
    }
    assert!(overlay.peer("h1", "h2").unwrap().problems.is_empty());
}

#[test]
fn two_nats_that_keep_ports_are_passed() {
    let hosts = behind(&[Some(Nat::KeepsPort), Some(Nat::KeepsPort), None]);
    let make = |name: &str, binaries| Overlay::start(name, binaries, &hosts, 1, "wireguard", |_| {});
    let Some(overlay) = KEPT_PORTS.lease("punch", make, |overlay| &overlay.lab) else { return };
    let _logs = overlay.lab.logs_on_failure();
    let [h1, h2] = ["h1", "h2"].map(|name| overlay.lab.host(name).unwrap().underlay_v4());
    wait_reaches(&overlay, "h1c1", "h2c1");
    wait_reaches(&overlay, "h2c1", "h1c1");
    assert_eq!(endpoint(&overlay, "h1", "h2"), Some(format!("{h2}:{PORT}")));
    assert_eq!(endpoint(&overlay, "h2", "h1"), Some(format!("{h1}:{PORT}")));
    wait_for("no problem with h2", LIMIT, || {
        let peer = overlay.peer("h1", "h2").ok()?;
        (peer.problems.is_empty() && peer.data == DataState::Up).then_some(())
    })
    .unwrap();
}

#[test]
fn hosts_behind_two_symmetric_nats_are_named_with_the_reason() {
    let hosts = behind(&[Some(Nat::Symmetric), Some(Nat::Symmetric), None]);
    let make = |name: &str, binaries| Overlay::start(name, binaries, &hosts, 1, "wireguard", |_| {});
    let Some(overlay) = SYMMETRIC.lease("apart", make, |overlay| &overlay.lab) else { return };
    let _logs = overlay.lab.logs_on_failure();
    let why = "both ends behind NAT, no direct path";
    for (at, of) in [("h1", "h2"), ("h2", "h1")] {
        wait_for(&format!("{at} to say why it does not reach {of}"), LIMIT, || {
            let problems = overlay.peer(at, of).ok()?.problems;
            problems.iter().any(|problem| problem.code == "NO_DIRECT_PATH" && problem.why == why).then_some(())
        })
        .unwrap();
        for words in [&["status"][..], &["peer", "show", of]] {
            let shown = String::from_utf8(overlay.lab.ctl(at, words).unwrap().stdout).unwrap();
            assert!(shown.contains(why), "{words:?} on {at}:\n{shown}");
        }
        // Both reach the third, so nothing is wrong with either of them.
        wait_reaches(&overlay, &format!("{at}c1"), "h3c1");
        wait_reaches(&overlay, "h3c1", &format!("{at}c1"));
        assert!(overlay.peer(at, "h3").unwrap().problems.is_empty());
        assert!(overlay.peer("h3", at).unwrap().problems.is_empty());
    }
    assert!(!reaches(&overlay, "h1c1", "h2c1"));
    let findings = overlay.lab.ctl("h1", &["--json", "doctor", "--peer", "h2"]).unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&findings.stdout).unwrap();
    let udp = findings["findings"].as_array().unwrap().iter().find(|one| one["check"] == "peer-udp").unwrap();
    assert_eq!(udp["status"], serde_json::to_value(FindingStatus::Bad).unwrap(), "{udp}");
    assert!(udp["why"].as_str().unwrap().contains(why), "{udp}");
}

//! Each check with facts that satisfy it and facts that do not; fixes and undo on a real kernel.

use std::path::Path;

use overlay_control::api::{DoctorMode, FindingStatus};

use super::checks::{Check, Outcome, all};
use super::facts::{Facts, Machine, Reach};
use super::*;
use crate::plumbing::interfaces::{Interface, TunnelKind};
use crate::plumbing::tests::config;
use crate::plumbing::tests::namespaces::{on_host, run as sh_result, sh};

fn interface(name: &str, mtu: u32) -> Interface {
    Interface { name: name.into(), up: true, mtu, tunnel: None, hardware: Some(vec![2, 0, 0, 0, 0, 1]) }
}

fn healthy() -> Facts {
    let machine = Machine { id: "m1".into(), hardware: [vec![2, 0, 0, 0, 0, 1]].into() };
    Facts {
        ip_forward: Some("1".into()),
        ipv6_forwarding: Some("1".into()),
        rp_filter_strict: false,
        rp_filter: Some("2".into()),
        ruleset: Some(Ok(String::new())),
        interfaces: vec![interface("eth0", 1500)],
        underlay: ["eth0".to_owned()].into(),
        now_unix: 1_800_000_000,
        clock_synchronised: Some(true),
        machine: machine.clone(),
        first_machine: Some(machine),
        inputs: Inputs {
            overhead: 80,
            reach: vec![Reach { peer: "h2".into(), what: "UDP port 51821".into(), arrived: true }],
            clock_offsets: vec![("h2".into(), 1), ("h3".into(), -2)],
            ..Inputs::default()
        },
    }
}

const LOST: Data = Data { carrier: Carrier::Wireguard, sent: 3, answered: 0, heard: false };

fn sizes(largest: u16) -> Sizes {
    Sizes { told: 1420, largest, overhead: 60, route: Some("192.0.2.2 via 192.0.2.254 dev eth0 onlink".into()) }
}

/// A peer that answered everything, but for what is changed.
fn ask(facts: &mut Facts, change: impl FnOnce(&mut Asked)) {
    let mut asked = Asked {
        peer: "h2".into(),
        endpoint: Some("192.0.2.2:51821".parse().unwrap()),
        no_path: None,
        udp: Some(Udp::Answered { round_trip: std::time::Duration::from_micros(400) }),
        data: vec![Data { answered: 3, ..LOST }],
        plain_unused: None,
        sizes: Some(sizes(1420)),
        no_clock: None,
    };
    change(&mut asked);
    facts.inputs.asked = Some(asked);
}

fn found(name: &str, change: impl FnOnce(&mut Asked)) -> Check {
    let mut facts = healthy();
    ask(&mut facts, change);
    let checks = all(&config(Path::new("/nowhere")), &facts);
    checks.into_iter().find(|check| check.name == name).unwrap()
}

fn bad(change: impl FnOnce(&mut Facts)) -> Vec<Check> {
    let mut facts = healthy();
    change(&mut facts);
    all(&config(Path::new("/nowhere")), &facts).into_iter().filter(|check| check.outcome == Outcome::Bad).collect()
}

#[test]
fn healthy_host_has_only_good_findings() {
    let checks = all(&config(Path::new("/nowhere")), &healthy());
    assert_eq!(checks.len(), 9);
    assert!(checks.iter().all(|check| check.outcome == Outcome::Ok), "{checks:?}");
}

#[test]
fn each_fault_is_found_by_its_own_check_with_a_way_out() {
    type Fault = (&'static str, fn(&mut Facts));
    let faults: Vec<Fault> = vec![
        ("forwarding-ipv4", |f| f.ip_forward = Some("0".into())),
        ("forwarding-ipv6", |f| f.ipv6_forwarding = Some("0".into())),
        ("forwarding-ipv6", |f| f.ipv6_forwarding = None),
        ("rp-filter", |f| f.rp_filter_strict = true),
        ("forward-chain", |f| {
            f.ruleset = Some(Ok(
                "table inet x {\n\tchain y {\n\t\ttype filter hook forward priority filter; policy drop;\n".into(),
            ));
        }),
        ("reachable", |f| f.inputs.reach[0].arrived = false),
        ("kernel-tunnel", |f| {
            f.inputs.plain_in_use = true;
            f.interfaces.push(Interface { tunnel: Some(TunnelKind::Ipip), ..interface("tunl0", 1480) });
        }),
        ("clock", |f| f.now_unix = 0),
        ("clock", |f| f.clock_synchronised = Some(false)),
        ("clock", |f| f.inputs.clock_offsets = vec![("h2".into(), 4000), ("h3".into(), 4001)]),
        ("mtu", |f| f.interfaces[0].mtu = 1400),
        ("mtu", |f| f.interfaces[0].mtu = 1300),
        ("peer-udp", |f| ask(f, |asked| asked.udp = Some(Udp::Refused))),
        ("peer-udp", |f| ask(f, |asked| asked.udp = Some(Udp::Silent { heard: true }))),
        ("peer-udp", |f| ask(f, |asked| asked.udp = Some(Udp::Silent { heard: false }))),
        ("peer-udp", |f| ask(f, |asked| asked.endpoint = None)),
        ("peer-data", |f| ask(f, |asked| asked.data[0].answered = 0)),
        ("peer-data", |f| ask(f, |asked| asked.data[0] = Data { carrier: Carrier::Gre, heard: true, ..LOST })),
        ("peer-data", |f| ask(f, |asked| asked.data[0] = Data { carrier: Carrier::Ipv6, ..LOST })),
        ("peer-mtu", |f| ask(f, |asked| asked.sizes = Some(sizes(1340)))),
        ("clock", |f| {
            ask(f, |_| {});
            f.inputs.clock_offsets = vec![("h2".into(), 61)];
        }),
        ("machine-id", |f| f.inputs.twin = Some("192.0.2.7:51821".into())),
        ("machine-id", |f| f.machine.id.clear()),
        ("machine-id", |f| f.machine.id = "m2".into()),
        ("machine-id", |f| f.machine.hardware = [vec![9]].into()),
    ];
    for (name, fault) in faults {
        let found = bad(fault);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!(found[0].name, name);
        assert!(!found[0].actions.is_empty() || found[0].advice.is_some(), "{name} has no way out");
    }
}

#[test]
fn peer_that_answers_everything_has_only_good_findings() {
    let mut facts = healthy();
    ask(&mut facts, |_| {});
    let checks = all(&config(Path::new("/nowhere")), &facts);
    assert_eq!(checks.len(), 11);
    assert!(checks.iter().all(|check| check.outcome == Outcome::Ok), "{checks:?}");
}

#[test]
fn what_a_peer_did_not_answer_names_protocol_place_and_direction() {
    let silent = found("peer-udp", |asked| asked.udp = Some(Udp::Silent { heard: true }));
    assert!(silent.why.contains("h2 (192.0.2.2:51821)") && silent.why.contains("its own datagrams arrive"));
    assert!(silent.advice.unwrap().contains("ufw allow 51821/udp"));
    let refused = found("peer-udp", |asked| asked.udp = Some(Udp::Refused));
    assert!(refused.why.contains("overlayd is not running there"), "{}", refused.why);
    for (carrier, protocol) in [(Carrier::Gre, 47), (Carrier::Ipv4, 4), (Carrier::Ipv6, 41)] {
        let lost = found("peer-data", |asked| asked.data[0] = Data { carrier, heard: true, ..LOST });
        assert!(lost.why.contains(&format!("IP protocol {protocol} is dropped")), "{}", lost.why);
        assert!(lost.why.contains("die on the way there"), "{}", lost.why);
        assert!(lost.advice.unwrap().contains("overlayctl peer set h2 encapsulation=wireguard"));
    }
    let small = found("peer-mtu", |asked| asked.sizes = Some(sizes(1340)));
    assert!(small.why.contains("packets of 1340 bytes come back"), "{}", small.why);
    let command = "`ip route replace 192.0.2.2 via 192.0.2.254 dev eth0 onlink mtu 1400`";
    assert!(small.advice.as_ref().unwrap().contains(command), "{small:?}");
}

#[test]
fn what_follows_from_another_fault_or_cannot_be_asked_is_skipped() {
    let skipped = |name: &str, change: fn(&mut Asked)| {
        let check = found(name, change);
        assert_eq!(check.outcome, Outcome::Skipped, "{check:?}");
    };
    skipped("peer-data", |asked| {
        asked.udp = Some(Udp::Refused);
        asked.data[0].answered = 0;
    });
    skipped("peer-mtu", |asked| asked.sizes = None);
    skipped("peer-udp", |asked| asked.udp = None);
    skipped("peer-data", |asked| asked.data.clear());
    let mut facts = healthy();
    ask(&mut facts, |asked| asked.no_clock = Some("h2 does not answer, so its clock is not known".into()));
    facts.inputs.clock_offsets.clear();
    let checks = all(&config(Path::new("/nowhere")), &facts);
    assert_eq!(checks.iter().find(|check| check.name == "clock").unwrap().outcome, Outcome::Skipped);
}

#[test]
fn clock_apart_by_a_minute_is_still_good_and_the_direction_is_said() {
    let clock = |ahead: i64| {
        let mut facts = healthy();
        ask(&mut facts, |_| {});
        facts.inputs.clock_offsets = vec![("h2".into(), ahead)];
        all(&config(Path::new("/nowhere")), &facts).into_iter().find(|check| check.name == "clock").unwrap()
    };
    assert_eq!([60, -60].map(|ahead| clock(ahead).outcome), [Outcome::Ok; 2]);
    assert!(clock(3600).why.contains("h2 is 3600 s ahead"), "{}", clock(3600).why);
    assert!(clock(-3600).why.contains("h2 is 3600 s behind"), "{}", clock(-3600).why);
}

#[test]
fn tunnel_nobody_needs_and_one_wrong_clock_among_many_are_no_faults() {
    assert_eq!(bad(|f| f.interfaces.push(Interface { tunnel: Some(TunnelKind::Gre), ..interface("gre0", 1480) })), []);
    let offsets = |f: &mut Facts| f.inputs.clock_offsets = vec![("a".into(), 9000), ("b".into(), 0), ("c".into(), 0)];
    assert_eq!(bad(offsets), []);
    assert_eq!(bad(|f| f.machine.hardware.clear()), []);
}

#[test]
fn fixes_are_applied_once_and_undone_exactly() {
    on_host(|config| async move {
        let before = "table inet theirs {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t\ttcp dport 22 accept\n\t}\n}\n";
        std::fs::write(config.state_dir.join("theirs.nft"), before).unwrap();
        sh(&format!("nft -f {}", config.state_dir.join("theirs.nft").display()));
        sh("echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
        let status = |findings: &[Finding], name: &str| findings.iter().find(|f| f.check == name).unwrap().status;
        let looked = run(DoctorMode::Check, &config, Inputs::default()).await;
        for name in ["forward-chain", "forwarding-ipv4", "forwarding-ipv6"] {
            assert_eq!(status(&looked, name), FindingStatus::Bad, "{name}");
        }
        assert_eq!(sh("nft list ruleset"), before);
        let fixed = run(DoctorMode::Fix, &config, Inputs::default()).await;
        assert_eq!(status(&fixed, "forward-chain"), FindingStatus::Fixed, "{fixed:?}");
        assert_eq!(status(&fixed, "forwarding-ipv4"), FindingStatus::Fixed);
        assert!(sh("nft list ruleset").contains("oifname \"overlay0\" accept comment \"overlayd\""));
        let again = run(DoctorMode::Fix, &config, Inputs::default()).await;
        assert_eq!(status(&again, "forward-chain"), FindingStatus::Ok);
        let undone = run(DoctorMode::Undo, &config, Inputs::default()).await;
        assert_eq!(undone.len(), 4, "{undone:?}");
        assert!(undone.iter().all(|finding| finding.status == FindingStatus::Undone), "{undone:?}");
        assert_eq!(sh("nft list ruleset"), before);
        assert_eq!(sh_result("cat /proc/sys/net/ipv4/ip_forward").1.trim(), "0");
        assert!(!journal_path(&config.state_dir).exists());
        assert_eq!(run(DoctorMode::Undo, &config, Inputs::default()).await, []);
    });
}

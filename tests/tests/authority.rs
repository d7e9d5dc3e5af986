//! The authority over time: its key replaced, members forgotten, certificates renewed by themselves, two issuers at once.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::DataState;
use overlay_netns_harness::{Binaries, run_in, wait_for};
use overlay_tests::{Certified, can_make_namespaces, can_use, lab_name};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const PASSPHRASE: [&str; 2] = ["--passphrase-file", "/run/overlay/passphrase"];

fn cluster(subject: &str, hosts: usize) -> Option<Certified> {
    if !can_make_namespaces(subject) {
        return None;
    }
    Some(Certified::cluster(&lab_name(subject), Binaries::for_tests().unwrap(), hosts).unwrap())
}

/// Makes a second host an issuer with an export of the first.
fn second_issuer(lab: &Certified, host: &str) {
    for host in ["h1", host] {
        let path = lab.lab.host(host).unwrap().path("/run/overlay/passphrase");
        std::fs::write(&path, "correct horse battery\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    lab.lab.ctl_ok("h1", &[&["ca", "export", "/run/overlay/backup"][..], &PASSPHRASE].concat()).unwrap();
    let path = |host| lab.lab.host(host).unwrap().path("/run/overlay/backup");
    std::fs::copy(path("h1"), path(host)).unwrap();
    lab.lab.ctl_ok(host, &[&["ca", "import", "/run/overlay/backup"][..], &PASSPHRASE].concat()).unwrap();
}

fn wait_reaches(lab: &Certified, from: &str, to: &str) {
    wait_for(&format!("traffic from {from} to {to}"), LIMIT, || lab.reaches(from, to).then_some(())).unwrap();
}

/// The authority that signed the certificate of a host.
fn signed_by(lab: &Certified, host: &str) -> String {
    lab.certificate(host).unwrap()["ca"].as_str().unwrap().to_owned()
}

#[test]
fn key_of_the_authority_is_replaced_while_traffic_passes() {
    let Some(lab) = cluster("rotate", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_reaches(&lab, "h2c1", "h3c1");
    let old = signed_by(&lab, "h2");
    // A token of before names the old authority.
    let early = lab.invite("h1", &["--uses", "2"]).unwrap();
    lab.lab.ctl_ok("h1", &["ca", "rotate"]).unwrap();
    for host in ["h1", "h2", "h3"] {
        wait_for(&format!("{host} to be signed anew"), LIMIT, || {
            let _ = lab.lab.ctl_ok(host, &["cert", "renew"]);
            (signed_by(&lab, host) != old).then_some(())
        })
        .unwrap();
        assert!(lab.reaches("h2c1", "h3c1") && lab.reaches("h3c1", "h1c1"), "after {host} was signed anew");
    }
    let new = signed_by(&lab, "h1");
    lab.lab.ctl_ok("h1", &["ca", "rotate", "--finish"]).unwrap();
    for (from, to) in [("h2c1", "h3c1"), ("h3c1", "h1c1"), ("h1c1", "h2c1")] {
        wait_reaches(&lab, from, to);
    }
    // All of it outlives a kill, and who comes new is signed by the new key.
    for host in ["h1", "h2", "h3"] {
        lab.lab.kill_daemon(host).unwrap();
    }
    lab.lab.start_daemons().unwrap();
    wait_reaches(&lab, "h2c1", "h3c1");
    let h3 = lab.lab.container("h3c1").unwrap().view.namespace().to_owned();
    lab.lab.ctl_ok("h3", &["endpoint", "rm", &h3]).unwrap();
    lab.lab.ctl_ok("h3", &["leave"]).unwrap();
    wait_for("h3 to be in standby", LIMIT, || lab.refused("h3", &["status"]).ok().filter(|(code, _)| *code == 8))
        .unwrap();
    let (code, text) = lab.refused("h3", &["join", &early, "--name", "h3late", "--timeout", "10s"]).unwrap();
    assert!(code != 0 && !text.is_empty(), "a token of the retired authority: {code} {text}");
    let token = lab.invite("h1", &[]).unwrap();
    lab.lab.ctl_ok("h3", &["join", &token, "--name", "h3b", "--timeout", "20s"]).unwrap();
    assert_eq!(signed_by(&lab, "h3"), new);
    let up = || lab.peer("h2", "h3b").filter(|peer| peer.data == DataState::Up);
    wait_for("packets to the new host", LIMIT, up).unwrap();
}

#[test]
fn forgotten_host_is_cut_off_and_its_name_is_free() {
    let Some(lab) = cluster("forget", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_reaches(&lab, "h2c1", "h3c1");
    let old = lab.certificate("h3").unwrap();
    lab.lab.ctl_ok("h1", &["node", "forget", "h3"]).unwrap();
    for host in ["h1", "h2"] {
        wait_for(&format!("{host} to cut h3 off"), LIMIT, || lab.peer(host, "h3").is_none().then_some(())).unwrap();
    }
    assert!(!lab.reaches("h2c1", "h3c1") && !lab.reaches("h3c1", "h1c1"));
    assert!(lab.reaches("h2c1", "h1c1"), "the control: the others talk as before");
    let h3 = lab.lab.container("h3c1").unwrap().view.namespace().to_owned();
    lab.lab.ctl_ok("h3", &["endpoint", "rm", &h3]).unwrap();
    lab.lab.ctl_ok("h3", &["leave"]).unwrap();
    wait_for("h3 to be in standby", LIMIT, || lab.refused("h3", &["status"]).ok().filter(|(code, _)| *code == 8))
        .unwrap();
    let token = lab.invite("h1", &[]).unwrap();
    lab.lab.ctl_ok("h3", &["join", &token, "--name", "h3", "--timeout", "20s"]).unwrap();
    // Its subnet is not free before its certificate has ended: someone may still believe the old one.
    let new = lab.certificate("h3").unwrap();
    assert_eq!(new["name"], "h3");
    assert_ne!((&new["grants"], &new["id"]), (&old["grants"], &old["id"]));
    let up = || lab.peer("h2", "h3").filter(|peer| peer.data == DataState::Up);
    wait_for("packets to the new h3", LIMIT, up).unwrap();
}

/// When a host's certificate expires by its page of figures, in seconds since 1970.
fn expiry(lab: &Certified, host: &str) -> Option<f64> {
    let page = run_in(&lab.lab.view(host).unwrap(), &["curl", "-sf", "http://127.0.0.1:9821/metrics"]).ok()?;
    let line = page.lines().find(|line| line.starts_with("overlay_certificate_expiry_time_seconds "))?;
    line.split(' ').nth(1)?.parse().ok()
}

/// The library that gives a process another time.
fn faketime_library() -> String {
    let script = "ls /usr/lib/*/faketime/libfaketimeMT.so.1";
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().next().expect("faketime comes with its library").to_owned()
}

#[test]
fn certificate_renews_itself_when_two_thirds_of_its_time_are_over() {
    if !can_use("renewal", &[("command -v faketime", "faketime"), ("command -v curl", "curl")]) {
        return;
    }
    let Some(lab) = cluster("renewal", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_reaches(&lab, "h2c1", "h3c1");
    let serials = |host: &str| lab.certificate(host).unwrap()["serial"].clone();
    let hosts = ["h1", "h2", "h3"];
    let before = hosts.map(serials);
    let expires = hosts.map(|host| expiry(&lab, host).expect("a certificate expires"));
    // The program `faketime` stays in between and would be killed in place of the daemon.
    let preload = format!("LD_PRELOAD={}", faketime_library());
    // Nineteen days of thirty are not two thirds; twenty-one are more.
    for (days, is_renewed) in [("+19d", false), ("+21d", true)] {
        for host in hosts {
            lab.lab.kill_daemon(host).unwrap();
        }
        for host in hosts {
            let words = ["env", &preload, &format!("FAKETIME={days}"), "DONT_FAKE_MONOTONIC=1"];
            lab.lab.start_daemon_under(host, &words).unwrap();
        }
        for (from, to) in [("h2c1", "h3c1"), ("h3c1", "h1c1"), ("h1c1", "h2c1")] {
            wait_reaches(&lab, from, to);
        }
        for (at, host) in hosts.into_iter().enumerate() {
            if !is_renewed {
                assert_eq!(serials(host), before[at], "{host} renewed its certificate too early");
                continue;
            }
            wait_for(&format!("{host} to renew its certificate"), LIMIT, || {
                (serials(host) != before[at]).then_some(())
            })
            .unwrap();
            let later = expiry(&lab, host).unwrap() - expires[at];
            assert!((19.0 * 86400.0..22.0 * 86400.0).contains(&later), "{host}: {later} s later");
        }
    }
    assert!(lab.reaches("h2c1", "h3c1") && lab.reaches("h3c1", "h1c1"), "renewal cuts nothing");
}

#[test]
fn two_issuers_apart_give_different_subnets() {
    if !can_make_namespaces("issuers") {
        return;
    }
    let lab = Certified::standby(&lab_name("issuers"), Binaries::for_tests().unwrap(), 6).unwrap();
    let _logs = lab.lab.logs_on_failure();
    lab.init("h1").unwrap();
    lab.join("h2", "h1").unwrap();
    second_issuer(&lab, "h2");
    let tokens = ["h1", "h2"].map(|issuer| lab.invite(issuer, &["--uses", "2"]).unwrap());
    // They cannot ask each other.
    lab.lab.cut_between("h1", "h2").unwrap();
    std::thread::scope(|scope| {
        let join = |host: &str, token: &str| {
            lab.lab.ctl_ok(host, &["join", token, "--name", host, "--timeout", "20s"]).unwrap();
        };
        for (host, token) in [("h3", &tokens[0]), ("h4", &tokens[1]), ("h5", &tokens[0]), ("h6", &tokens[1])] {
            scope.spawn(move || join(host, token));
        }
    });
    let mut given = BTreeSet::new();
    for number in 1..=6 {
        let own = lab.certificate(&format!("h{number}")).unwrap();
        for grant in own["grants"].as_array().unwrap() {
            assert!(given.insert(grant.to_string()), "{grant} was given twice");
        }
    }
    assert_eq!(given.len(), 12, "a subnet of each family for each host: {given:?}");
    lab.lab.heal("h1").unwrap();
    for number in 1..=6 {
        lab.lab.add_container(&format!("h{number}"), "c1").unwrap();
    }
    for (from, to) in [("h3c1", "h4c1"), ("h4c1", "h5c1"), ("h6c1", "h3c1"), ("h1c1", "h2c1")] {
        wait_reaches(&lab, from, to);
    }
    // Each of the two can cut off whom the other admitted.
    lab.lab.ctl_ok("h2", &["cert", "revoke", "h3"]).unwrap();
    for host in ["h1", "h4", "h5", "h6"] {
        wait_for(&format!("{host} to cut h3 off"), LIMIT, || lab.peer(host, "h3").is_none().then_some(())).unwrap();
    }
}

#[test]
fn encapsulation_with_a_certified_member_is_set_by_its_name() {
    if !can_make_namespaces("peerset") {
        return;
    }
    let lab = Certified::standby(&lab_name("peerset"), Binaries::for_tests().unwrap(), 3).unwrap();
    let _logs = lab.lab.logs_on_failure();
    // Both families: after a restart members may meet over the other one.
    let trust = ["--trusted-underlay", "192.0.2.0/24,2001:db8::/64"];
    let words = ["init", "lab", "--pool", overlay_tests::POOL, "--name", "h1", "--encapsulation", "gre"];
    lab.lab.ctl_ok("h1", &[&words[..], &trust].concat()).unwrap();
    let token = lab.invite("h1", &["--uses", "2"]).unwrap();
    for host in ["h2", "h3"] {
        let words = [&["join", &token, "--name", host, "--timeout", "20s"][..], &trust].concat();
        lab.lab.ctl_ok(host, &words).unwrap();
    }
    let wait_used = |host: &str, peer: &str, wanted: &str| {
        let used = || (lab.peer(host, peer)?.encapsulation.to_string() == wanted).then_some(());
        wait_for(&format!("{host} to use {wanted} with {peer}"), LIMIT, used).unwrap();
    };
    wait_used("h1", "h2", "gre");
    wait_used("h1", "h3", "gre");
    // As the problem of such a peer advises.
    let problems = lab.lab.ctl_json("h1", &["peer", "show", "h2"]).unwrap().to_string();
    assert!(problems.contains("overlayctl peer set h2 encapsulation=wireguard"), "{problems}");
    lab.lab.ctl_ok("h1", &["peer", "set", "h2", "encapsulation=wireguard"]).unwrap();
    wait_used("h1", "h2", "wireguard");
    wait_used("h2", "h1", "wireguard");
    wait_used("h1", "h3", "gre");
    // It outlives a restart, and is taken back by name.
    lab.lab.kill_daemon("h1").unwrap();
    lab.lab.start_daemon("h1").unwrap();
    wait_used("h1", "h3", "gre");
    wait_used("h1", "h2", "wireguard");
    let shown = lab.lab.ctl_ok("h1", &["config", "show", "--origin"]).unwrap();
    assert!(shown.lines().any(|line| line.contains("member[h2].encapsulation") && line.contains("cli")), "{shown}");
    lab.lab.ctl_ok("h1", &["peer", "set", "h2", "encapsulation=config"]).unwrap();
    wait_used("h1", "h2", "gre");
    let (code, text) = lab.refused("h1", &["peer", "set", "nobody", "encapsulation=wireguard"]).unwrap();
    assert!(code == 4 && text.contains("nobody"), "{code} {text}");
}

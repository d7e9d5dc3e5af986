//! One string makes a host a member, once, and nothing else does.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::{Binaries, HostSpec, Nat, wait_for};
use overlay_routing::membership::{JoinEvent, Token};
use overlay_tests::{Certified, SharedLab, Snapshot, TestJoiner, can_make_namespaces, fresh_identity, lab_name};
use overlay_wire::membership::{Admission, CaId, JoinRefusal};
use std::collections::BTreeSet;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

static LAB: SharedLab<Certified> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(20);

/// A founded cluster of `h1`, and `h2` in standby.
fn founded() -> Option<MutexGuard<'static, Certified>> {
    let make = |name: &str, binaries| {
        let certified = Certified::standby(name, binaries, 2)?;
        certified.init("h1")?;
        Ok(certified)
    };
    LAB.lease("join", make, |certified| &certified.lab)
}

fn namespace(lab: &Certified, host: &str) -> String {
    lab.lab.host(host).unwrap().view().namespace().to_owned()
}

/// Lets joiners run until each has ended.
fn run(joiners: Vec<TestJoiner>) -> Vec<JoinEvent> {
    TestJoiner::run_all(joiners).unwrap()
}

fn admitted(event: &JoinEvent) -> Option<&Admission> {
    match event {
        JoinEvent::Admitted(admission) => Some(admission),
        _ => None,
    }
}

#[test]
fn one_string_makes_a_standby_host_a_member_and_leaving_makes_it_standby_again() {
    if !can_make_namespaces("one_string") {
        return;
    }
    let lab = Certified::standby(&lab_name("string"), Binaries::for_tests().unwrap(), 2).unwrap();
    let view = lab.lab.host("h2").unwrap().view().clone();
    // The first look makes the kernel create its default tables.
    let before = Snapshot::take(&view).and_then(|_| Snapshot::take(&view)).unwrap();
    for host in ["h1", "h2"] {
        let (code, text) = lab.refused(host, &["status"]).unwrap();
        assert_eq!(code, 8, "{text}");
        assert!(text.contains("not a member: run overlayctl init or join"), "{text}");
    }
    lab.init("h1").unwrap();
    lab.lab.add_container("h1", "c1").unwrap();
    let token = lab.invite("h1", &["--label", "role=web"]).unwrap();
    let pid = lab.lab.daemon_pid("h2").unwrap();
    let start = Instant::now();
    lab.lab.ctl_ok("h2", &["join", &token, "--name", "h2", "--timeout", "20s"]).unwrap();
    let joined = start.elapsed();
    lab.lab.add_container("h2", "c1").unwrap();
    wait_for("pings between the containers", LIMIT, || lab.reaches("h2c1", "h1c1").then_some(())).unwrap();
    eprintln!("joined after {joined:?}, pings after {:?}", start.elapsed());
    assert!(start.elapsed() <= Duration::from_secs(3), "joined after {joined:?}, pings after {:?}", start.elapsed());
    assert!(lab.reaches("h1c1", "h2c1"));
    assert_eq!(lab.lab.daemon_pid("h2").unwrap(), pid, "the process is the same");

    let origin = lab.lab.ctl_ok("h2", &["config", "show", "--origin"]).unwrap();
    let line = origin.lines().find(|line| line.starts_with("node.prefixes")).unwrap();
    assert!(line.ends_with("membership"), "{line}");
    let own = lab.certificate("h2").unwrap();
    assert_eq!((own["name"].as_str(), own["labels"]["role"].as_str()), (Some("h2"), Some("web")), "{own}");
    for again in [["join", &token], ["init", "other"]] {
        let words = if again[0] == "init" { vec!["init", "other", "--pool", "10.43.0.0/16"] } else { again.to_vec() };
        let (code, text) = lab.refused("h2", &words).unwrap();
        assert!(code == 5 && text.contains("ALREADY_MEMBER"), "{code} {text}");
    }

    let namespace = lab.lab.container("h2c1").unwrap().view.namespace().to_owned();
    lab.lab.ctl_ok("h2", &["endpoint", "rm", &namespace]).unwrap();
    lab.lab.ctl_ok("h2", &["leave"]).unwrap();
    wait_for("h2 to be in standby", LIMIT, || {
        lab.refused("h2", &["status"]).ok().filter(|(code, _)| *code == 8).map(drop)
    })
    .unwrap();
    assert_eq!(before.difference(&Snapshot::take(&view).unwrap()), "", "what differs after leaving");
    assert_eq!(lab.lab.daemon_pid("h2").unwrap(), pid, "the process is the same");
    // A fresh identity and a fresh token make it a member again.
    lab.lab.ctl_ok("h2", &["join", &lab.invite("h1", &[]).unwrap(), "--name", "h2b", "--timeout", "20s"]).unwrap();
}

#[test]
fn host_whose_answer_was_lost_asks_again_and_gets_the_same_certificate() {
    let Some(lab) = founded() else { return };
    let _logs = lab.lab.logs_on_failure();
    let token = lab.invite("h1", &[]).unwrap();
    let identity = fresh_identity();
    let copy = overlay_routing::identity::IdentityKey::from_bytes(&identity.to_bytes());
    let ask = |identity| {
        let joiner = TestJoiner::new(&namespace(&lab, "h2"), &token, "forgetful", identity).unwrap();
        admitted(&run(vec![joiner])[0]).expect("admitted").clone()
    };
    let first = ask(identity);
    // Also over a kill of the issuer.
    lab.lab.kill_daemon("h1").unwrap();
    lab.lab.start_daemon("h1").unwrap();
    let second = ask(copy);
    assert_eq!(first.certificate, second.certificate);
    let other = TestJoiner::new(&namespace(&lab, "h2"), &token, "other", fresh_identity()).unwrap();
    assert_eq!(run(vec![other]), [JoinEvent::Refused(JoinRefusal::UsedUp)]);
}

#[test]
fn expired_withdrawn_and_damaged_tokens_and_foreign_authorities_are_refused() {
    let Some(lab) = founded() else { return };
    let _logs = lab.lab.logs_on_failure();
    let expired = lab.invite("h1", &["--ttl", "1s"]).unwrap();
    let id = |token: &str| token.parse::<Token>().unwrap().id.to_string();
    let state = |wanted: &str| {
        let tokens = lab.lab.ctl_json("h1", &["token", "list"]).ok()?;
        let found = tokens["tokens"].as_array()?.iter().find(|token| token["id"] == *id(wanted))?.clone();
        found["state"].as_str().map(str::to_owned)
    };
    wait_for("the token to expire", LIMIT, || (state(&expired)? == "expired").then_some(())).unwrap();
    let withdrawn = lab.invite("h1", &[]).unwrap();
    lab.lab.ctl_ok("h1", &["token", "revoke", &id(&withdrawn)]).unwrap();
    for (token, word) in [(&expired, "expired"), (&withdrawn, "revoked")] {
        let (code, text) = lab.refused("h2", &["join", token, "--name", "late"]).unwrap();
        assert!(code == 5 && text.contains("JOIN_REFUSED") && text.contains(word), "{code} {text}");
    }
    let good = lab.invite("h1", &[]).unwrap();
    let mut damaged = good.clone();
    damaged.replace_range(20..21, if &good[20..21] == "A" { "B" } else { "A" });
    let (code, text) = lab.refused("h2", &["join", &damaged]).unwrap();
    assert!(code == 2 && text.contains("error[TOKEN]"), "{code} {text}");
    // The right issuer and secret under another authority's digest: nothing that answers is believed.
    let mut pinned: Token = good.parse().unwrap();
    pinned.ca = CaId([7; 16]);
    let (code, text) = lab.refused("h2", &["join", &pinned.to_text(), "--name", "late"]).unwrap();
    assert!(code == 7 && text.contains("JOIN_TIMEOUT"), "{code} {text}");
    assert_eq!(lab.refused("h2", &["status"]).unwrap().0, 8, "still in standby");
}

#[test]
fn issuer_killed_around_redemptions_gives_nothing_twice() {
    let Some(lab) = founded() else { return };
    let _logs = lab.lab.logs_on_failure();
    let mut subnets = BTreeSet::new();
    for (round, wait_ms) in [0, 1, 3, 6, 12, 25].into_iter().enumerate() {
        let token = lab.invite("h1", &[]).unwrap();
        let new = |name: &str| {
            TestJoiner::new(&namespace(&lab, "h2"), &token, &format!("{name}{round}"), fresh_identity()).unwrap()
        };
        let (mut first, second) = (new("first"), new("second"));
        let mut ended = first.turn();
        // Not a wait for anything: the instant at which the issuer dies is what varies.
        let end = Instant::now() + Duration::from_millis(wait_ms);
        while Instant::now() < end && ended.is_none() {
            ended = first.turn();
        }
        lab.lab.kill_daemon("h1").unwrap();
        ended = ended.or_else(|| first.turn());
        lab.lab.start_daemon("h1").unwrap();
        let event = ended.unwrap_or_else(|| run(vec![first]).remove(0));
        let admission = admitted(&event).unwrap_or_else(|| panic!("round {round}: {event:?}"));
        assert_eq!(run(vec![second]), [JoinEvent::Refused(JoinRefusal::UsedUp)], "round {round}");
        for grant in &admission.certificate.certificate.grants {
            assert!(subnets.insert(grant.to_string()), "round {round}: {grant} was given before");
        }
    }
    assert_eq!(subnets.len(), 12, "six hosts with a subnet of each family");
}

#[test]
fn unencrypted_cluster_is_unencrypted_only_between_hosts_that_trust_the_underlay() {
    if !can_make_namespaces("unencrypted_cluster") {
        return;
    }
    let lab = Certified::standby(&lab_name("gre"), Binaries::for_tests().unwrap(), 3).unwrap();
    let _logs = lab.lab.logs_on_failure();
    let words = ["init", "lab", "--pool", overlay_tests::POOL, "--name", "h1", "--encapsulation", "gre"];
    let (code, text) = lab.refused("h1", &words).unwrap();
    assert!(code == 2 && text.contains("no underlay is trusted"), "{code} {text}");
    assert_eq!(lab.refused("h1", &["status"]).unwrap().0, 8, "still in standby");
    let trust = ["--trusted-underlay", "192.0.2.0/24"];
    lab.lab.ctl_ok("h1", &[&words[..], &trust].concat()).unwrap();
    let token = lab.invite("h1", &["--uses", "2"]).unwrap();
    for (host, more) in [("h2", &trust[..]), ("h3", &[])] {
        let words = [&["join", &token, "--name", host, "--timeout", "20s"][..], more].concat();
        lab.lab.ctl_ok(host, &words).unwrap();
    }
    let used = |host: &str, peer: &str| {
        let peer = lab.peer(host, peer).filter(|peer| peer.data == overlay_control::api::DataState::Up)?;
        Some(peer.encapsulation.to_string())
    };
    for (host, peer, wanted) in
        [("h1", "h2", "gre"), ("h2", "h1", "gre"), ("h1", "h3", "wireguard"), ("h3", "h2", "wireguard")]
    {
        let what = format!("{host} to use {wanted} with {peer}");
        wait_for(&what, LIMIT, || (used(host, peer)? == wanted).then_some(())).unwrap();
    }
    for host in ["h1", "h2", "h3"] {
        lab.lab.add_container(host, "c1").unwrap();
    }
    for (from, to) in [("h1c1", "h2c1"), ("h2c1", "h3c1"), ("h3c1", "h1c1")] {
        wait_for("traffic", LIMIT, || lab.reaches(from, to).then_some(())).unwrap();
    }
}

/// The first token of all cannot name the outside address, which nobody has told the issuer yet; a person adds it there.
#[test]
fn token_of_an_issuer_behind_a_nat_names_its_outside_address_once_a_member_sees_it() {
    if !can_make_namespaces("outside") {
        return;
    }
    let mut hosts = HostSpec::numbered(3);
    hosts[0] = hosts[0].clone().behind(Nat::KeepsPort);
    let lab = Certified::standby_on(&lab_name("outside"), Binaries::for_tests().unwrap(), &hosts).unwrap();
    let _logs = lab.lab.logs_on_failure();
    lab.init("h1").unwrap();
    let port = lab.status("h1").unwrap().host.listen_port;
    lab.lab.forward_port("h1", port).unwrap();
    let issuer = lab.lab.host("h1").unwrap();
    let [outside, inside] = [issuer.underlay_v4(), issuer.inside_v4().unwrap()].map(|ip| (ip, port).into());
    let token = || lab.invite("h1", &[]).unwrap().parse::<Token>().unwrap();
    let mut first = token();
    assert_eq!(first.endpoints, [inside], "the control: it knows its own address only");
    first.endpoints.push(outside);
    lab.lab.ctl_ok("h2", &["join", &first.to_text(), "--name", "h2", "--timeout", "20s"]).unwrap();
    let (later, _) = wait_for("a token with the outside address", LIMIT, || {
        let token = token();
        token.endpoints.contains(&outside).then_some(token)
    })
    .unwrap();
    assert!(later.endpoints.contains(&inside), "hosts behind the same NAT use that one: {:?}", later.endpoints);
    lab.lab.ctl_ok("h3", &["join", &later.to_text(), "--name", "h3", "--timeout", "20s"]).unwrap();
    wait_for("h3 to reach the issuer", LIMIT, || {
        lab.peer("h3", "h1").is_some_and(|peer| peer.data == overlay_control::api::DataState::Up).then_some(())
    })
    .unwrap();
}

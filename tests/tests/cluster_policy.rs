//! One policy for all hosts: it reaches them, cuts and lets pass, goes back by itself, and outlives restarts.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{Binaries, netns, wait_for};
use overlay_tests::{
    Certified, Conversation, Echo, Impostor, can_make_namespaces, kept_membership, kept_records, lab_name,
    policy_pieces,
};
use overlay_wire::gossip::RecordKind;
use overlay_wire::membership::{PolicyDocument, PolicyMade};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
/// All hosts that answer have a change within this time; the command waits as long.
const PROMISE: Duration = Duration::from_secs(5);

fn cluster(subject: &str, hosts: usize) -> Option<Certified> {
    if !can_make_namespaces(subject) {
        return None;
    }
    Some(Certified::cluster(&lab_name(subject), Binaries::for_tests().unwrap(), hosts).unwrap())
}

/// `overlayctl policy apply` on a host, with these rules in a file.
fn apply(lab: &Certified, host: &str, rules: &str, more: &[&str]) -> Output {
    let file = format!("/run/overlay/rules-{host}");
    std::fs::write(lab.lab.host(host).unwrap().path(&file), rules).unwrap();
    lab.lab.ctl(host, &[&["--json", "policy", "apply", &file], more].concat()).unwrap()
}

/// As [`apply`]; every host that answers must have it.
fn applied(lab: &Certified, host: &str, rules: &str, more: &[&str]) -> u64 {
    let output = apply(lab, host, rules, more);
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{} {errors} {text}", output.status);
    let change: Value = serde_json::from_str(&text).unwrap();
    change["revision"].as_u64().unwrap()
}

fn status(lab: &Certified, host: &str) -> Value {
    lab.lab.ctl_json(host, &["policy", "status"]).unwrap()
}

fn in_force(lab: &Certified, host: &str) -> u64 {
    status(lab, host)["in_force"].as_u64().unwrap()
}

fn wait_in_force(lab: &Certified, hosts: &[&str], revision: u64) {
    for host in hosts {
        let has = || (in_force(lab, host) == revision).then_some(());
        wait_for(&format!("revision {revision} on {host}"), LIMIT, has).unwrap();
    }
}

/// What one host says of another in its status.
fn state_of(status: &Value, host: &str) -> String {
    let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
    let found = hosts.into_iter().find(|entry| entry["name"] == host).unwrap_or_default();
    found["state"].as_str().unwrap_or("unknown").to_owned()
}

/// What happens to a connection from a container to a server on a port of an address in another namespace.
fn connect(lab: &Certified, from: &str, to: &str, port: u16) -> Result<(), String> {
    let to = lab.lab.container(to).unwrap();
    connect_to(lab, from, to.view.namespace(), SocketAddr::new(to.v4.into(), port))
}

/// As [`connect`], to the overlay address of a host.
fn connect_host(lab: &Certified, from: &str, host: &str, port: u16) -> Result<(), String> {
    let address = lab.certificate(host).unwrap()["grants"][0].as_str().map(str::to_owned);
    let subnet: overlay_wire::Prefix = address.unwrap().parse().unwrap();
    let namespace = lab.lab.host(host).unwrap().view().namespace().to_owned();
    connect_to(lab, from, &namespace, SocketAddr::new(subnet.nth(1).unwrap(), port))
}

fn connect_to(lab: &Certified, from: &str, namespace: &str, to: SocketAddr) -> Result<(), String> {
    let server = Server::start(namespace, to).unwrap();
    let from = lab.lab.container(from).unwrap();
    let result = netns::within(from.view.namespace(), || {
        let stream = load::connect(server.address(), Duration::from_millis(700))?;
        load::transmit(stream, Amount::Bytes(1000), Content::Verified)
    });
    result.map(drop).map_err(|error| format!("{error:#}"))
}

fn wait_open(lab: &Certified, from: &str, to: &str, port: u16) {
    wait_for(&format!("{from} to reach {to}"), LIMIT, || connect(lab, from, to, port).ok()).unwrap();
}

/// A figure of a host's page of metrics.
fn figure(lab: &Certified, host: &str, name: &str) -> f64 {
    let namespace = lab.lab.host(host).unwrap().view().namespace().to_owned();
    let page = netns::within(&namespace, || {
        let mut stream = TcpStream::connect("127.0.0.1:9821")?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9821\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    });
    let page = page.unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).trim().parse().unwrap()
}

#[test]
fn applied_policy_reaches_all_in_time_and_cuts_and_opens() {
    let Some(lab) = cluster("polall", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_open(&lab, "h2c1", "h3c1", 7101);
    assert!(connect_host(&lab, "h3c1", "h3", 7102).is_err(), "a host's ports are closed at first");
    let to = lab.lab.container("h3c1").unwrap();
    let echo = Echo::start(to.view.namespace(), SocketAddr::new(to.v4.into(), 7100)).unwrap();
    let from = lab.lab.container("h2c1").unwrap();
    let mut talk = Conversation::open(from.view.namespace(), echo.address(), LIMIT).unwrap();
    talk.exchange(LIMIT).unwrap();

    let start = Instant::now();
    let rules = "reject tcp/7100 from any to any name old\nallow tcp/7102 from any to any\ndefault members\n";
    let revision = applied(&lab, "h1", rules, &[]);
    let took = start.elapsed();
    eprintln!("three hosts had it after {took:?}");
    assert!(took <= PROMISE, "{took:?}");
    assert_eq!(revision, 1);
    for host in ["h1", "h2", "h3"] {
        assert_eq!(in_force(&lab, host), 1, "{host}");
        let shown = lab.lab.ctl_ok(host, &["policy", "show"]).unwrap();
        assert!(shown.contains("cluster revision 1") && shown.contains("name old"), "{shown}");
    }
    talk.exchange(Duration::from_secs(2)).expect_err("a live flow that is forbidden goes on");
    drop((talk, echo));
    assert!(connect(&lab, "h2c1", "h3c1", 7100).unwrap_err().contains("refused"));
    assert_eq!(connect(&lab, "h2c1", "h3c1", 7101), Ok(()), "the control: other ports are open");
    assert_eq!(connect_host(&lab, "h3c1", "h3", 7102), Ok(()), "the kernel's rules between host and container");
    assert_eq!(connect_host(&lab, "h2c1", "h3", 7102), Ok(()), "the same port over the overlay");
    assert!(connect_host(&lab, "h3c1", "h3", 7103).is_err(), "the control: other ports of the host are closed");

    // What the host's own configuration says does not count now; it is kept, and said.
    let own = lab.lab.host("h3").unwrap().path("/run/overlay/own");
    std::fs::write(own, "deny any from any to any\n").unwrap();
    let told = lab.lab.ctl_ok("h3", &["policy", "apply", "/run/overlay/own", "--local"]).unwrap();
    assert!(told.contains("not in force"), "{told}");
    assert_eq!(connect(&lab, "h2c1", "h3c1", 7101), Ok(()));
    let diff = lab.lab.ctl_ok("h3", &["policy", "diff"]).unwrap();
    assert!(diff.contains("- reject tcp/7100") && diff.contains("+ deny any from any to any"), "{diff}");
    lab.lab.ctl_ok("h3", &["policy", "apply", "--local", "--reset"]).unwrap();

    // The largest that fits: 30 records, and a kernel table of as many rules.
    let many: String = (0..560)
        .map(|number| format!("deny tcp/{} from 10.42.0.0/16 to any name r{number}\n", 20_000 + number))
        .collect();
    let start = Instant::now();
    applied(&lab, "h1", &many, &[]);
    eprintln!("{} bytes of rules were everywhere after {:?}", many.len(), start.elapsed());
    assert!(connect(&lab, "h2c1", "h3c1", 20_559).is_err());
    assert_eq!(connect(&lab, "h2c1", "h3c1", 7100), Ok(()), "what it does not name is open again");
    let (code, text) = {
        let output = apply(&lab, "h1", &many.repeat(2), &[]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(code == Some(2) && text.contains("too long"), "{code:?} {text}");
    let output = apply(&lab, "h1", "permit everything\n", &[]);
    assert_eq!(output.status.code(), Some(2), "it is read before anything is published");
}

#[test]
fn unconfirmed_policy_goes_back_by_itself_without_its_writer() {
    let Some(lab) = cluster("poltrial", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_open(&lab, "h2c1", "h3c1", 7201);
    applied(&lab, "h1", "deny tcp/7200 from any to any\n", &[]);
    // The time starts when a host has it: before the command here answers.
    let start = Instant::now();
    assert_eq!(applied(&lab, "h1", "deny tcp/7201 from any to any\n", &["--confirm", "15s"]), 2);
    lab.lab.kill_daemon("h1").unwrap();
    for host in ["h2", "h3"] {
        let now = status(&lab, host);
        assert_eq!((&now["stage"], &now["in_force"]), (&"on_trial".into(), &2.into()), "{now}");
    }
    assert!(connect(&lab, "h2c1", "h3c1", 7201).is_err() && connect(&lab, "h2c1", "h3c1", 7200).is_ok());
    wait_in_force(&lab, &["h2", "h3"], 1);
    let took = start.elapsed();
    eprintln!("all went back after {took:?}");
    assert!(took >= Duration::from_secs(15), "{took:?}");
    assert!(connect(&lab, "h2c1", "h3c1", 7200).is_err());
    assert_eq!(connect(&lab, "h2c1", "h3c1", 7201), Ok(()));
    let now = status(&lab, "h2");
    assert_eq!((&now["stage"], state_of(&now, "h3").as_str()), (&"lapsed".into(), "went_back"), "{now}");

    // The writer comes back too late, goes back as well, and may not confirm any more.
    lab.lab.start_daemon("h1").unwrap();
    wait_in_force(&lab, &["h1"], 1);
    let (code, text) = lab.refused("h1", &["policy", "confirm"]).unwrap();
    assert!(code == 5 && text.contains("too late"), "{code} {text}");
    let names = |now: &Value| ["h2", "h3"].map(|host| state_of(now, host));
    wait_for("h1 to hear of all", LIMIT, || (names(&status(&lab, "h1")) == ["went_back", "went_back"]).then_some(()))
        .unwrap();

    // Confirmed in time it stays, also past the time.
    let start = Instant::now();
    assert_eq!(applied(&lab, "h1", "deny tcp/7202 from any to any\n", &["--confirm", "10s"]), 3);
    lab.lab.ctl_ok("h1", &["policy", "confirm"]).unwrap();
    wait_in_force(&lab, &["h1", "h2", "h3"], 4);
    wait_for("the time of the trial", LIMIT, || (start.elapsed() > Duration::from_secs(13)).then_some(())).unwrap();
    for host in ["h1", "h2", "h3"] {
        let now = status(&lab, host);
        assert_eq!((&now["stage"], &now["in_force"]), (&"settled".into(), &4.into()), "{now}");
    }
    assert!(connect(&lab, "h2c1", "h3c1", 7202).is_err());
    assert_eq!(connect(&lab, "h2c1", "h3c1", 7200), Ok(()), "the control");
    let (code, text) = lab.refused("h1", &["policy", "confirm"]).unwrap();
    assert!(code == 5 && text.contains("nothing waits"), "{code} {text}");
}

#[test]
fn rollback_and_restart_keep_what_was_in_force() {
    let Some(lab) = cluster("polback", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_open(&lab, "h2c1", "h3c1", 7300);
    applied(&lab, "h1", "allow tcp/7302 from any to any\n", &[]);
    applied(&lab, "h1", "allow tcp/7303 from any to any\n", &[]);
    assert!(connect_host(&lab, "h2c1", "h2", 7302).is_err() && connect_host(&lab, "h2c1", "h2", 7303).is_ok());
    lab.lab.ctl_ok("h1", &["policy", "rollback", "1"]).unwrap();
    wait_in_force(&lab, &["h1", "h2", "h3"], 3);
    assert!(connect_host(&lab, "h2c1", "h2", 7302).is_ok() && connect_host(&lab, "h2c1", "h2", 7303).is_err());
    let (code, text) = lab.refused("h1", &["policy", "rollback", "99"]).unwrap();
    assert!(code == 4 && text.contains("1, 2, 3"), "{code} {text}");

    // Alone, after kills of all: what was in force is in force before anybody is heard.
    for host in ["h1", "h2", "h3"] {
        lab.lab.kill_daemon(host).unwrap();
    }
    lab.lab.start_daemon("h2").unwrap();
    assert_eq!(in_force(&lab, "h2"), 3);
    assert!(connect_host(&lab, "h2c1", "h2", 7302).is_ok() && connect_host(&lab, "h2c1", "h2", 7303).is_err());
    let now = status(&lab, "h2");
    assert_eq!(state_of(&now, "h3"), "unreachable", "{now}");
    assert_eq!(figure(&lab, "h2", "overlay_policy_cluster_revision"), 3.0);

    // A change while hosts are away reaches them when they are back.
    lab.lab.start_daemon("h1").unwrap();
    wait_for("h1 to see h2", LIMIT, || lab.reaches("h1c1", "h2c1").then_some(())).unwrap();
    assert_eq!(applied(&lab, "h1", "deny tcp/7300 from any to any\n", &[]), 4);
    lab.lab.start_daemon("h3").unwrap();
    wait_in_force(&lab, &["h1", "h2", "h3"], 4);
    wait_for("h2c1 to reach h3c1", LIMIT, || lab.reaches("h2c1", "h3c1").then_some(())).unwrap();
    assert!(connect(&lab, "h2c1", "h3c1", 7300).is_err());

    // Without a policy of the cluster each host's own counts again.
    lab.lab.ctl_ok("h1", &["policy", "rollback", "0"]).unwrap();
    wait_in_force(&lab, &["h1", "h2", "h3"], 0);
    assert_eq!(connect(&lab, "h2c1", "h3c1", 7300), Ok(()));
    let shown = lab.lab.ctl_ok("h3", &["policy", "show"]).unwrap();
    assert!(shown.contains("(membership"), "{shown}");
}

#[test]
fn member_without_the_right_is_refused_and_forged_records_change_nothing() {
    let Some(lab) = cluster("polforge", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_open(&lab, "h1c1", "h3c1", 7400);
    applied(&lab, "h1", "deny tcp/7401 from any to any\n", &[]);
    let output = apply(&lab, "h2", "deny any from any to any\n", &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(6) && text.contains("right `policy`") && text.contains("h1"), "{text}");
    for words in [["policy", "confirm", ""], ["policy", "rollback", "1"]] {
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let (code, _) = lab.refused("h2", &words).unwrap();
        assert!(code == 6 || (code == 5 && words == ["policy", "confirm"]), "{words:?}: {code}");
    }
    // With the key of h2, past its daemon: a signed policy of a higher revision, whole and well-formed.
    let document = PolicyDocument { made: PolicyMade::Applied, rules: Some("default deny\n".to_owned()), trial: None };
    let pieces = policy_pieces(50, &document.emit().unwrap()).unwrap();
    lab.lab.kill_daemon("h2").unwrap();
    let mut impostor = Impostor::of(&lab.lab, "h2", &pieces).unwrap();
    let forger = impostor.host();
    // It has arrived when the others keep it.
    let kept = |host: &str| {
        let records = kept_membership(&lab.lab, host).map(|kept| kept_records(&kept)).unwrap_or_default();
        records.iter().any(|record| (record.key.owner, record.key.kind) == (forger, RecordKind::POLICY))
    };
    for host in ["h1", "h3"] {
        wait_for(&format!("the forged record on {host}"), LIMIT, || {
            impostor.turn();
            kept(host).then_some(())
        })
        .unwrap();
        assert_eq!(status(&lab, host)["revision"], 1, "{host}");
        assert_eq!(in_force(&lab, host), 1);
    }
    assert_eq!(connect(&lab, "h1c1", "h3c1", 7400), Ok(()), "the forged policy decides");
    assert!(connect(&lab, "h1c1", "h3c1", 7401).is_err());
    drop(impostor);
    // The control: the same, with a key that has the right.
    lab.lab.kill_daemon("h1").unwrap();
    let mut writer = Impostor::of(&lab.lab, "h1", &policy_pieces(50, &document.emit().unwrap()).unwrap()).unwrap();
    wait_for("revision 50 on h3", LIMIT, || {
        writer.turn();
        (in_force(&lab, "h3") == 50).then_some(())
    })
    .unwrap();
}

#[test]
fn host_that_cannot_read_a_policy_keeps_the_old_one_and_is_named() {
    let Some(lab) = cluster("polnewer", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_open(&lab, "h2c1", "h3c1", 7500);
    applied(&lab, "h1", "deny tcp/7501 from any to any\n", &[]);
    // As a later release might: a word that this one does not know.
    let newer = "overlay policy 1\nmade apply\nrules 40\n\nquarantine tcp/7500 from any to any # x\n";
    lab.lab.kill_daemon("h1").unwrap();
    let mut writer = Impostor::of(&lab.lab, "h1", &policy_pieces(2, newer).unwrap()).unwrap();
    for (host, other) in [("h2", "h3"), ("h3", "h2")] {
        let named = || {
            writer.turn();
            let now = status(&lab, host);
            (state_of(&now, other) == "refused" && state_of(&now, host) == "refused").then_some(now)
        };
        let (now, _) = wait_for(&format!("{host} to name {other}"), LIMIT, named).unwrap();
        assert_eq!((&now["revision"], &now["in_force"]), (&2.into(), &1.into()), "{now}");
        assert!(now["hosts"].to_string().contains("quarantine"), "the reason is there: {now}");
        assert_eq!(figure(&lab, host, "overlay_policy_changes_total{outcome=\"refused\"}"), 1.0);
        assert_eq!(figure(&lab, host, "overlay_policy_cluster_revision"), 1.0);
        let problems = lab.lab.ctl_ok(host, &["status", "--problems"]).unwrap();
        assert!(problems.contains("POLICY_REFUSED") && problems.contains("revision 1 stays"), "{problems}");
    }
    assert!(connect(&lab, "h2c1", "h3c1", 7501).is_err(), "the old one stays in force");
    assert_eq!(connect(&lab, "h2c1", "h3c1", 7500), Ok(()));
    drop(writer);
    // The next one that all can read ends it, from a host that cannot read what is there either.
    lab.lab.start_daemon("h1").unwrap();
    wait_for("h1 to know of it", LIMIT, || (status(&lab, "h1")["revision"] == 2).then_some(())).unwrap();
    wait_for("h1 to reach all", LIMIT, || {
        let now = status(&lab, "h1");
        (state_of(&now, "h2") == "refused" && state_of(&now, "h3") == "refused").then_some(())
    })
    .unwrap();
    let problems = lab.lab.ctl_ok("h1", &["status", "--problems"]).unwrap();
    assert!(problems.contains("POLICY_NOT_EVERYWHERE") && problems.contains("h2, h3"), "{problems}");
    assert_eq!(applied(&lab, "h1", "deny tcp/7500 from any to any\n", &[]), 3);
    assert!(connect(&lab, "h2c1", "h3c1", 7500).is_err());
    assert_eq!(connect(&lab, "h2c1", "h3c1", 7501), Ok(()));
    for host in ["h1", "h2", "h3"] {
        let problems = lab.lab.ctl_ok(host, &["status", "--problems"]).unwrap();
        assert!(!problems.contains("POLICY_"), "{problems}");
    }
}

#[test]
fn host_whose_kernel_rules_cannot_be_loaded_is_named_and_takes_them_later() {
    let Some(lab) = cluster("polnft", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_for("h1 to see h3", LIMIT, || {
        lab.peer("h1", "h3").filter(|peer| peer.control == overlay_control::api::ControlState::Up)
    })
    .unwrap();
    applied(&lab, "h1", "allow tcp/7801 from any to any\n", &[]);
    assert_eq!(connect_host(&lab, "h2c1", "h3", 7801), Ok(()));

    // For the daemon of h3 alone nft is gone, as in the middle of an upgrade of its package.
    let pid = lab.lab.daemon_pid("h3").unwrap().to_string();
    let mounts = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    assert_ne!(mounts(&pid), mounts("self"), "mounts of the daemon are its own");
    let in_mounts = |words: &[&str]| {
        let output = Command::new("nsenter").args(["-t", &pid, "-m"]).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let nft = in_mounts(&["readlink", "-f", &in_mounts(&["sh", "-c", "command -v nft"])]);
    in_mounts(&["mount", "--bind", "/dev/null", &nft]);
    let output = apply(&lab, "h1", "allow tcp/7802 from any to any\n", &[]);
    assert_eq!(output.status.code(), Some(10), "{}", String::from_utf8_lossy(&output.stderr));
    let change: Value = serde_json::from_slice(&output.stdout).unwrap();
    let states = ["h1", "h2", "h3"].map(|host| state_of(&change, host));
    assert_eq!(states, ["in_force", "in_force", "refused"], "{change}");
    assert!(change["hosts"].to_string().contains("nft"), "the reason is there: {change}");
    assert_eq!(in_force(&lab, "h3"), 1);
    // Whole or not at all: neither in the kernel nor in the packet path.
    assert!(connect_host(&lab, "h3c1", "h3", 7802).is_err());
    let shown = lab.lab.ctl_ok("h3", &["policy", "show"]).unwrap();
    assert!(shown.contains("7801") && !shown.contains("7802"), "{shown}");

    in_mounts(&["umount", &nft]);
    wait_for("h3 to try again", LIMIT * 3, || (in_force(&lab, "h3") == 2).then_some(())).unwrap();
    assert_eq!(connect_host(&lab, "h2c1", "h3", 7802), Ok(()));
    assert!(connect_host(&lab, "h2c1", "h3", 7801).is_err());
    wait_for("h1 to hear of it", LIMIT, || (state_of(&status(&lab, "h1"), "h3") == "in_force").then_some(())).unwrap();
}

#[test]
fn policy_outlives_its_author_also_for_hosts_that_join_later() {
    if !can_make_namespaces("polheir") {
        return;
    }
    let lab = Certified::standby(&lab_name("polheir"), Binaries::for_tests().unwrap(), 3).unwrap();
    let _logs = lab.lab.logs_on_failure();
    lab.init("h1").unwrap();
    let token = lab.invite("h1", &["--allow-policy"]).unwrap();
    lab.lab.ctl_ok("h2", &["join", &token, "--name", "h2", "--timeout", "20s"]).unwrap();
    wait_for("h2 to see h1", LIMIT, || {
        lab.peer("h2", "h1").filter(|peer| peer.control == overlay_control::api::ControlState::Up)
    })
    .unwrap();
    applied(&lab, "h2", "allow tcp/7900 from any to any\ndefault members\n", &[]);
    assert_eq!(status(&lab, "h1")["author"], "h2");
    lab.lab.ctl_ok("h1", &["cert", "revoke", "h2"]).unwrap();
    wait_in_force(&lab, &["h1"], 2);
    assert_eq!(status(&lab, "h1")["author"], "h1");
    lab.join("h3", "h1").unwrap();
    wait_in_force(&lab, &["h3"], 2);
    lab.lab.add_container("h3", "c1").unwrap();
    assert_eq!(connect_host(&lab, "h3c1", "h3", 7900), Ok(()));
    assert!(connect_host(&lab, "h3c1", "h3", 7901).is_err(), "the control");
}

#[test]
fn two_writers_at_once_end_in_one_policy() {
    if !can_make_namespaces("poltwo") {
        return;
    }
    let lab = Certified::standby(&lab_name("poltwo"), Binaries::for_tests().unwrap(), 3).unwrap();
    let _logs = lab.lab.logs_on_failure();
    lab.init("h1").unwrap();
    let token = lab.invite("h1", &["--allow-policy"]).unwrap();
    lab.lab.ctl_ok("h2", &["join", &token, "--name", "h2", "--timeout", "20s"]).unwrap();
    lab.join("h3", "h1").unwrap();
    lab.lab.wait_ready(LIMIT).unwrap();
    let is_connected = |host: &str, other: &str| {
        lab.peer(host, other).is_some_and(|peer| peer.control == overlay_control::api::ControlState::Up)
    };
    for (host, other) in [("h1", "h2"), ("h1", "h3"), ("h2", "h3")] {
        wait_for("all to be connected", LIMIT, || is_connected(host, other).then_some(())).unwrap();
    }
    for round in 0..5 {
        let outcomes = std::thread::scope(|scope| {
            let writers = ["h1", "h2"].map(|host| {
                let lab = &lab;
                scope.spawn(move || apply(lab, host, &format!("deny tcp/76{round}0 from any to any # {host}\n"), &[]))
            });
            writers.map(|writer| writer.join().unwrap())
        });
        let codes = outcomes.each_ref().map(|output| output.status.code());
        // Both, one after the other; or one, and the other is told.
        let told = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("overtaken");
        let is_fair = codes.contains(&Some(0)) && outcomes.iter().all(|output| output.status.success() || told(output));
        assert!(is_fair, "{codes:?} {outcomes:?}");
        let text = |host: &str| {
            let now = status(&lab, host);
            let same = (now["revision"].clone(), now["hash"].clone(), now["author"].clone());
            (now["in_force"] == now["revision"]).then_some(same)
        };
        wait_for("one policy on all hosts", LIMIT, || {
            let all = ["h1", "h2", "h3"].map(text);
            (all[0].is_some() && all.iter().all(|one| *one == all[0])).then_some(())
        })
        .unwrap();
    }
}

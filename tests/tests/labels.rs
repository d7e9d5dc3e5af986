//! Rules about labels between real containers: by role across hosts and on one host, from the first packet on, and by
//! nobody's word but that of the host that owns the address.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{EndpointInfo, PolicyTest, Request, Response, Verdict};
use overlay_netns_harness::netns::View;
use overlay_netns_harness::{Binaries, Container, HostSpec, Lab, netns, wait_for};
use overlay_tests::{Certified, Conversation, Echo, Impostor, Overlay, SharedLab, can_make_namespaces, lab_name};
use overlay_wire::gossip::Labels;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(20);
/// How long something is watched that must not happen.
const MOMENT: Duration = Duration::from_millis(400);
const PORT: u16 = 5432;
const RULES: &str = "allow tcp/5432 from role=web to role=db\nallow udp/5432 from role=web to role=db\n\
                     deny tcp/5432 from any to any\ndeny udp/5432 from any to any\n";

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "labels",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {}),
        |overlay| &overlay.lab,
    )
}

/// Attaches a new namespace to a host; `more` are further words of `endpoint add`.
fn attach(lab: &Lab, host: &str, name: &str, more: &[&str]) -> Container {
    let view = lab.add_namespace(name).unwrap();
    let words = [&["endpoint", "add", name, "--netns", view.namespace()], more].concat();
    lab.ctl_ok(host, &words).unwrap();
    lab.container(name).unwrap()
}

fn detach(lab: &Lab, host: &str, names: &[&str]) {
    names.iter().for_each(|name| drop(lab.ctl_ok(host, &["endpoint", "rm", name]).unwrap()));
}

/// Puts rules in force on one host alone; the answer comes when they are.
fn apply(lab: &Lab, host: &str, rules: &str) {
    std::fs::write(lab.host(host).unwrap().path("/run/overlay/rules"), rules).unwrap();
    lab.ctl_ok(host, &["policy", "apply", "/run/overlay/rules", "--local"]).unwrap();
}

fn reset(lab: &Lab) {
    ["h1", "h2"].iter().for_each(|host| drop(lab.ctl_ok(host, &["policy", "apply", "--reset", "--local"]).unwrap()));
}

/// What a command prints in a host's namespace.
fn within(view: &View, words: &str) -> String {
    let words: Vec<&str> = words.split_whitespace().collect();
    let output = netns::command(view, &words).unwrap().output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Refused,
    Silent,
}

/// How a new connection fares; something listens at the other end.
fn connect(from: &View, to: &View, address: IpAddr, port: u16) -> Fate {
    let at = SocketAddr::new(address, port);
    // Somebody may listen there already.
    let _listener = netns::within(to.namespace(), || Ok(TcpListener::bind(at).ok())).unwrap();
    let tried = netns::within(from.namespace(), || Ok(TcpStream::connect_timeout(&at, MOMENT))).unwrap();
    match tried {
        Ok(_) => Fate::Open,
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Fate::Silent,
        Err(_) => Fate::Refused,
    }
}

/// Over IPv4 and IPv6, which must agree.
fn fate(from: &Container, to: &Container) -> Fate {
    let v4 = connect(&from.view, &to.view, to.v4.into(), PORT);
    let v6 = connect(&from.view, &to.view, to.v6.into(), PORT);
    assert_eq!(v4, v6, "{} to {}", from.name, to.name);
    v4
}

/// Waits until connections are open: what changes here is known to others a moment later.
fn opens(from: &Container, to: &Container) {
    let open = || {
        let is_open = |address: IpAddr| connect(&from.view, &to.view, address, PORT) == Fate::Open;
        (is_open(to.v4.into()) && is_open(to.v6.into())).then_some(())
    };
    wait_for(&format!("{} to reach {}", from.name, to.name), LIMIT, open).unwrap();
}

fn endpoint(overlay: &Overlay, host: &str, name: &str) -> EndpointInfo {
    match overlay.ask(host, Request::EndpointList).unwrap() {
        Response::Endpoints(endpoints) => endpoints.into_iter().find(|one| one.name == name).unwrap(),
        other => panic!("{}", other.name()),
    }
}

#[test]
fn roles_decide_across_hosts_and_on_one_host() {
    let Some(overlay) = overlay() else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    ["h1", "h2"].iter().for_each(|host| apply(lab, host, RULES));
    let web = attach(lab, "h1", "web", &["--label", "role=web", "--label", "site=a"]);
    let batch = attach(lab, "h1", "batch", &["--label", "role=batch"]);
    let far = attach(lab, "h2", "fardb", &["--label", "role=db"]);
    let near = attach(lab, "h1", "neardb", &["--label", "role=db"]);
    let plain = overlay.container("h1c1");
    for db in [&far, &near] {
        opens(&web, db);
        assert_eq!(fate(&batch, db), Fate::Silent, "{}", db.name);
        assert_eq!(fate(plain, db), Fate::Silent, "{} from one without labels", db.name);
    }
    assert_eq!(fate(&web, overlay.container("h2c1")), Fate::Silent, "no database");
    assert_eq!(fate(&far, &web), Fate::Silent, "the other way");
    let labels = endpoint(&overlay, "h1", "web").labels;
    assert_eq!(labels, Labels::from([("role".into(), "web".into()), ("site".into(), "a".into())]));

    // The far host refuses by itself, not only the near one.
    lab.ctl_ok("h1", &["policy", "apply", "--reset", "--local"]).unwrap();
    let denied = overlay.drops("h2", "policy_deny");
    assert_eq!(fate(&batch, &far), Fate::Silent);
    assert!(overlay.drops("h2", "policy_deny") > denied);
    opens(&web, &far);

    // What is not acceptable changes nothing.
    for words in [["role=we b"], ["role"], ["=web"], ["-"]] {
        let output = lab.ctl("h1", &[&["endpoint", "label", "web", "--"], words.as_slice()].concat()).unwrap();
        assert_ne!(output.status.code(), Some(0), "{words:?}");
    }
    assert_eq!(endpoint(&overlay, "h1", "web").labels, labels);
    detach(lab, "h1", &["web", "batch", "neardb"]);
    detach(lab, "h2", &["fardb"]);
    reset(lab);
}

#[test]
fn changed_labels_cut_what_is_open_and_open_what_was_closed() {
    let Some(overlay) = overlay() else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    ["h1", "h2"].iter().for_each(|host| apply(lab, host, RULES));
    let web = attach(lab, "h1", "cutweb", &["--label", "role=web"]);
    let db = attach(lab, "h2", "cutdb", &["--label", "role=db"]);
    let _echo = Echo::start(db.view.namespace(), (db.v4, PORT).into()).unwrap();
    let mut talk = Conversation::open(web.view.namespace(), (db.v4, PORT).into(), LIMIT).unwrap();
    talk.exchange(LIMIT).unwrap();
    lab.ctl_ok("h1", &["endpoint", "label", "cutweb", "role=other", "since=now"]).unwrap();
    assert!(talk.exchange(MOMENT).is_err(), "an open connection goes on in spite of its labels");
    assert_eq!(fate(&web, &db), Fate::Silent);
    lab.ctl_ok("h1", &["endpoint", "label", "cutweb", "role=web", "since-"]).unwrap();
    opens(&web, &db);
    assert_eq!(endpoint(&overlay, "h1", "cutweb").labels.len(), 1);
    // The far end's labels count as well; there they come by gossip.
    lab.ctl_ok("h2", &["endpoint", "label", "cutdb", "role-"]).unwrap();
    assert_eq!(fate(&web, &db), Fate::Silent);
    detach(lab, "h1", &["cutweb"]);
    detach(lab, "h2", &["cutdb"]);
    reset(lab);
}

/// A datagram from a container that was attached a moment ago.
fn first_datagram(from: &Container, to: &Container) {
    let client = netns::within(from.view.namespace(), || Ok(UdpSocket::bind((from.v4, 0))?)).unwrap();
    client.send_to(from.name.as_bytes(), (to.v4, PORT)).unwrap();
}

fn server(at: &Container) -> UdpSocket {
    let server = netns::within(at.view.namespace(), || Ok(UdpSocket::bind((at.v4, PORT))?)).unwrap();
    server.set_read_timeout(Some(MOMENT)).unwrap();
    server
}

fn next(server: &UdpSocket) -> Option<String> {
    let mut buffer = [0; 64];
    let (length, _) = server.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[test]
fn first_packet_of_a_new_container_is_not_lost() {
    let Some(overlay) = overlay() else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    ["h1", "h2"].iter().for_each(|host| apply(lab, host, RULES));
    let db = attach(lab, "h2", "firstdb", &["--label", "role=db"]);
    let server = server(&db);
    server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let names: Vec<String> = (0..8).map(|n| format!("first{n}")).collect();
    for name in &names {
        let web = attach(lab, "h1", name, &["--label", "role=web"]);
        first_datagram(&web, &db);
        assert_eq!(next(&server).as_deref(), Some(name.as_str()));
    }
    assert_eq!(overlay.drops("h2", "identity_unknown"), 0);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    detach(lab, "h1", &names);
    detach(lab, "h2", &["firstdb"]);
    reset(lab);
}

/// Gossip does not reach a host, packets do.
fn deafen(lab: &Lab, host: &str) {
    let view = lab.host(host).unwrap().view().clone();
    within(&view, "nft add table inet deaf");
    within(&view, "nft add chain inet deaf in { type filter hook input priority 0 ; }");
    within(&view, "nft add rule inet deaf in udp dport 51821 @th,64,8 > 4 drop");
}

fn heal(lab: &Lab, host: &str) {
    within(lab.host(host).unwrap().view(), "nft delete table inet deaf");
}

#[test]
fn packets_wait_for_labels_that_are_late_and_are_denied_when_they_do_not_come() {
    let Some(overlay) = overlay() else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    ["h1", "h2"].iter().for_each(|host| apply(lab, host, RULES));
    let db = attach(lab, "h2", "latedb", &["--label", "role=db"]);
    let early = attach(lab, "h1", "early", &["--label", "role=web"]);
    opens(&early, &db);
    let server = server(&db);
    let unknown = || overlay.drops("h2", "identity_unknown");
    let before = unknown();

    // Late: what was sent meanwhile arrives. Time runs from the first packet on, so a machine that is too slow tries again.
    let mut names = vec!["early".to_owned(), "never".to_owned()];
    loop {
        deafen(lab, "h2");
        let name = format!("late{}", names.len());
        let late = attach(lab, "h1", &name, &["--label", "role=web"]);
        let sent = Instant::now();
        first_datagram(&late, &db);
        assert_eq!(next(&server), None, "nobody told what it is");
        heal(lab, "h2");
        names.push(name.clone());
        assert!(names.len() < 12, "the machine is too slow for this test");
        if sent.elapsed() < Duration::from_millis(1500) {
            server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            assert_eq!(next(&server), Some(name));
            break;
        }
    }
    assert!(names.len() > 3 || unknown() == before);

    // Never: it is denied, and counted under a name of its own.
    deafen(lab, "h2");
    let before = unknown();
    let never = attach(lab, "h1", "never", &["--label", "role=web"]);
    let sent = Instant::now();
    first_datagram(&never, &db);
    wait_for("the packet to be denied", LIMIT, || (unknown() > before).then_some(())).unwrap();
    assert!(sent.elapsed() >= Duration::from_secs(3), "after {:?}", sent.elapsed());
    first_datagram(&early, &db);
    assert_eq!(next(&server).as_deref(), Some("early"), "who is known is not held up");
    let (from, to) = (never.v4.to_string(), db.v4.to_string());
    let explained = lab.ctl("h2", &["trace", &from, &to, "-p", "udp", "--dport", "5432"]).unwrap();
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains(&format!("the labels of {from}")), "{explained}");
    let (from, to) = (never.v4.into(), db.v4.into());
    let tested = PolicyTest { from, to, protocol: 17, source_port: Some(40_000), port: Some(PORT) };
    match overlay.ask("h2", Request::PolicyTest(tested)).unwrap() {
        Response::Verdict(told) => {
            assert_eq!(told.verdict, Verdict::Deny);
            assert!(format!("{told:?}").contains("are not known here"), "{told:?}");
        }
        other => panic!("{}", other.name()),
    }
    heal(lab, "h2");
    wait_for("the newcomer to be let in", LIMIT, || {
        first_datagram(&never, &db);
        (next(&server).as_deref() == Some("never")).then_some(())
    })
    .unwrap();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    detach(lab, "h1", &names);
    detach(lab, "h2", &["latedb"]);
    reset(lab);
}

#[test]
fn restarts_keep_labels_and_addresses_that_move_do_not() {
    let Some(overlay) = overlay() else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    ["h1", "h2"].iter().for_each(|host| apply(lab, host, RULES));
    let web = attach(lab, "h1", "staysweb", &["--label", "role=web"]);
    let db = attach(lab, "h2", "staysdb", &["--label", "role=db"]);
    lab.stop_daemon("h1").unwrap();
    lab.start_daemon("h1").unwrap();
    lab.kill_daemon("h2").unwrap();
    lab.start_daemon("h2").unwrap();
    lab.wait_ready(LIMIT).unwrap();
    opens(&web, &db);
    assert_eq!(endpoint(&overlay, "h2", "staysdb").labels["role"], "db");
    assert_eq!(fate(overlay.container("h1c1"), &db), Fate::Silent);

    // The container goes to the other host, and its address to somebody else.
    let addresses = [web.v4.to_string(), web.v6.to_string()];
    detach(lab, "h1", &["staysweb"]);
    lab.ctl_ok("h2", &["endpoint", "add", "moved", "--netns", web.view.namespace(), "--label", "role=web"]).unwrap();
    let moved = lab.container("staysweb").unwrap();
    opens(&moved, &db);
    addresses.iter().for_each(|address| drop(lab.ctl_ok("h1", &["ipam", "release", address]).unwrap()));
    let heir = attach(lab, "h1", "heir", &["--ip", &addresses[0], "--ip", &addresses[1]]);
    let heirs = |port| connect(&heir.view, &db.view, db.v4.into(), port);
    assert_eq!(heirs(PORT), Fate::Silent, "an address inherits no labels");
    assert_eq!(heirs(PORT + 1), Fate::Open, "it is the rules that keep it out");
    detach(lab, "h1", &["heir"]);
    detach(lab, "h2", &["moved", "staysdb"]);
    reset(lab);
}

#[test]
fn container_and_its_own_host_go_by_the_same_labels() {
    let Some(overlay) = overlay() else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    apply(lab, "h1", "allow tcp/5432 from role=web to host:h1\nreject tcp/5432 from host:h1 to role=quiet\n");
    let host = lab.host("h1").unwrap();
    let web = attach(lab, "h1", "ownweb", &["--label", "role=web"]);
    let plain = overlay.container("h1c1");
    let to_host = |from: &Container| connect(&from.view, host.view(), host.overlay_v4().into(), PORT);
    let from_host = |to: &Container| connect(host.view(), &to.view, to.v4.into(), PORT);
    assert_eq!((to_host(&web), to_host(plain)), (Fate::Open, Fate::Refused));
    assert_eq!((from_host(&web), from_host(plain)), (Fate::Open, Fate::Open));
    // In force when the command answers.
    lab.ctl_ok("h1", &["endpoint", "label", "ownweb", "role=quiet"]).unwrap();
    assert_eq!((to_host(&web), from_host(&web)), (Fate::Refused, Fate::Refused));
    lab.ctl_ok("h1", &["endpoint", "label", "ownweb", "role=web"]).unwrap();
    assert_eq!((to_host(&web), from_host(&web)), (Fate::Open, Fate::Open));
    lab.stop_daemon("h1").unwrap();
    lab.start_daemon("h1").unwrap();
    lab.wait_ready(LIMIT).unwrap();
    assert_eq!((to_host(&web), to_host(plain)), (Fate::Open, Fate::Refused), "from the start on");
    detach(lab, "h1", &["ownweb"]);
    lab.ctl_ok("h1", &["policy", "apply", "--reset", "--local"]).unwrap();
}

#[test]
fn underlay_without_authentication_matches_no_label() {
    if !can_make_namespaces("labelsplain") {
        return;
    }
    let binaries = Binaries::for_tests().unwrap();
    let overlay =
        Overlay::start(&lab_name("labelsplain"), binaries, &HostSpec::numbered(2), 0, "ipip", |_| {}).unwrap();
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    let web = attach(lab, "h1", "web", &["--label", "role=web"]);
    let db = attach(lab, "h2", "db", &["--label", "role=db"]);
    let encapsulation = || ["h1", "h2"].map(|host| overlay.peer(host, if host == "h1" { "h2" } else { "h1" }).unwrap());
    let carried =
        |kind: &str| encapsulation().iter().all(|peer| format!("{:?}", peer.encapsulation).to_lowercase() == kind);
    wait_for("packets to be carried in clear", LIMIT, || carried("ipip").then_some(())).unwrap();
    ["h1", "h2"].iter().for_each(|host| apply(lab, host, RULES));
    assert_eq!(fate(&web, &db), Fate::Silent, "anybody could have sent it");
    let by_address = format!("allow tcp/5432 from {} to {}\n{RULES}", web.v4, db.v4);
    ["h1", "h2"].iter().for_each(|host| apply(lab, host, &by_address));
    assert_eq!(connect(&web.view, &db.view, db.v4.into(), PORT), Fate::Open, "a rule by address counts");
    // The same labels with authentication.
    ["h1", "h2"].iter().for_each(|host| apply(lab, host, RULES));
    assert_eq!(fate(&web, &db), Fate::Silent);
    for (host, other) in [("h1", "h2"), ("h2", "h1")] {
        lab.ctl_ok(host, &["peer", "set", other, "--encapsulation", "wireguard"]).unwrap();
    }
    wait_for("packets to be encrypted", LIMIT, || carried("wireguard").then_some(())).unwrap();
    opens(&web, &db);
}

#[test]
fn forged_identities_are_refused_and_hosts_carry_what_their_certificate_says() {
    if !can_make_namespaces("labelsforge") {
        return;
    }
    let certified = Certified::standby(&lab_name("labelsforge"), Binaries::for_tests().unwrap(), 3).unwrap();
    let lab = &certified.lab;
    let _logs = lab.logs_on_failure();
    certified.init("h1").unwrap();
    certified.join("h2", "h1").unwrap();
    let token = certified.invite("h1", &["--label", "role=web"]).unwrap();
    lab.ctl_ok("h3", &["join", &token, "--name", "h3", "--timeout", "20s"]).unwrap();
    lab.wait_ready(LIMIT).unwrap();
    let victim = attach(lab, "h1", "victim", &["--label", "role=batch"]);
    let db = attach(lab, "h2", "db", &["--label", "role=db"]);
    std::fs::write(lab.host("h1").unwrap().path("/run/overlay/rules"), RULES).unwrap();
    lab.ctl_ok("h1", &["policy", "apply", "/run/overlay/rules"]).unwrap();

    // The host itself has the label that it was invited with; its container has not.
    let h3 = lab.host("h3").unwrap();
    let near = attach(lab, "h3", "near", &[]);
    let open = || (connect(h3.view(), &db.view, db.v4.into(), PORT) == Fate::Open).then_some(());
    wait_for("the host to be known by its label", LIMIT, open).unwrap();
    assert_eq!(connect(&near.view, &db.view, db.v4.into(), PORT), Fate::Silent);

    // Another member says that the victim is a web server.
    assert_eq!(fate(&victim, &db), Fate::Silent);
    lab.stop_daemon("h3").unwrap();
    let mut impostor = Impostor::of(lab, "h3", &[]).unwrap();
    let web = Labels::from([("role".into(), "web".into())]);
    let forged = [victim.v4.into(), victim.v6.into(), lab.host("h1").unwrap().overlay_v4().into()];
    let forged = forged.into_iter().map(|address: IpAddr| (address, web.clone())).collect();
    impostor.gossip.publish_identities(&forged, Instant::now());
    let refused = |host: &str| lab.log(host).unwrap().contains("labels-refused");
    wait_for("the lie to be heard and refused", LIMIT, || {
        impostor.turn();
        (refused("h1") && refused("h2")).then_some(())
    })
    .unwrap();
    assert_eq!(fate(&victim, &db), Fate::Silent);
    let h1 = lab.host("h1").unwrap();
    assert_eq!(connect(h1.view(), &db.view, db.v4.into(), PORT), Fate::Silent);
    // Its own host's word counts.
    lab.ctl_ok("h1", &["endpoint", "label", "victim", "role=web"]).unwrap();
    opens(&victim, &db);
}

//! The policy between a host and its own containers, which the kernel applies on the way over the veth.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{PolicyTest, Request, Response, TestVerdict, Verdict};
use overlay_netns_harness::netns::View;
use overlay_netns_harness::{HostSpec, netns, ping, run_in, wait_for};
use overlay_tests::{Conversation, Echo, Overlay, SharedLab, udp_socket};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
/// For what must come.
const LIMIT: Duration = Duration::from_secs(10);
/// For what must not come.
const MOMENT: Duration = Duration::from_secs(1);

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "hostpolicy",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {}),
        |overlay| &overlay.lab,
    )
}

/// One side of the veth, with an address.
#[derive(Clone, Copy, Debug)]
struct End<'a> {
    view: &'a View,
    address: IpAddr,
}

/// The container and the host it is on, by every address of the host that the container can name: of the overlay and of
/// the network card, IPv4 and IPv6.
fn pairs(overlay: &Overlay) -> [[End<'_>; 2]; 4] {
    let host = overlay.lab.host("h1").unwrap();
    let container = overlay.container("h1c1");
    let addresses = [
        (container.v4.into(), host.overlay_v4().into()),
        (container.v6.into(), host.overlay_v6().into()),
        (container.v4.into(), host.underlay_v4().into()),
        (container.v6.into(), host.underlay_v6().into()),
    ];
    addresses.map(|(inner, outer)| {
        [End { view: &container.view, address: inner }, End { view: host.view(), address: outer }]
    })
}

/// Puts rules in force on the host; they are in the kernel when this returns.
fn apply(overlay: &Overlay, default: &str, rules: &[String]) {
    let policy = serde_json::from_value(serde_json::json!({ "default": default, "rules": rules })).unwrap();
    let answer = overlay.ask("h1", Request::PolicyApply { policy: Some(policy) }).unwrap();
    let Response::Done { notes, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(notes, Vec::<String>::new());
}

fn rules(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn reset(overlay: &Overlay) {
    overlay.ask("h1", Request::PolicyApply { policy: None }).unwrap();
}

/// How a connection fared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Open,
    Refused,
    Silent,
}

/// Opens a connection from one end to a server on the other. Silence is believed after `patience`.
fn connect(from: End<'_>, to: End<'_>, port: u16, patience: Duration) -> Fate {
    let echo = Echo::start(to.view.namespace(), SocketAddr::new(to.address, port)).unwrap();
    let stream = netns::within(from.view.namespace(), || {
        let domain = socket2::Domain::for_address(echo.address());
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from.address, 0).into())?;
        Ok(socket.connect_timeout(&echo.address().into(), patience))
    });
    match stream.unwrap() {
        Ok(()) => Fate::Open,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Fate::Refused,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Fate::Silent,
        Err(error) => panic!("{from:?} to {to:?}: {error}"),
    }
}

fn pings(from: End<'_>, to: End<'_>, patience: &str) -> bool {
    // Where the sender itself may not send, ping says so and fails.
    ping(from.view, &format!("-c 1 -W {patience}"), &to.address.to_string()).is_ok_and(|report| report.is_lossless())
}

/// A datagram from one socket to the other, or why it did not come.
fn datagram(from: &UdpSocket, to: &UdpSocket, patience: Duration) -> io::Result<SocketAddr> {
    to.set_read_timeout(Some(patience))?;
    // A refusal may be reported on either socket, and here already.
    from.send_to(b"datagram", to.local_addr()?)?;
    let mut buffer = [0; 64];
    to.recv_from(&mut buffer).map(|(_, sender)| sender)
}

#[test]
fn by_default_the_host_is_closed_but_for_ping_and_reaches_its_containers() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    reset(&overlay);
    for [container, host] in pairs(&overlay) {
        assert_eq!(connect(container, host, 7101, LIMIT), Fate::Refused, "{host:?}");
        assert_eq!(connect(host, container, 7101, LIMIT), Fate::Open, "{host:?}");
        assert!(pings(container, host, "5"), "{host:?}");
        assert!(pings(host, container, "5"), "{host:?}");
        let here = udp_socket(host.view.namespace(), SocketAddr::new(host.address, 7102)).unwrap();
        let there = udp_socket(container.view.namespace(), SocketAddr::new(container.address, 7103)).unwrap();
        assert!(datagram(&there, &here, MOMENT).is_err(), "a datagram reached {host:?}");
        let other = udp_socket(host.view.namespace(), SocketAddr::new(host.address, 7104)).unwrap();
        datagram(&other, &there, LIMIT).unwrap();
        datagram(&there, &other, LIMIT).expect("an answer passes");
    }
}

#[test]
fn allow_rule_opens_what_it_names_and_nothing_else() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    for [container, host] in pairs(&overlay) {
        let rule =
            format!("allow tcp/7111,7113-7114 from {} to {} count log name ssh", container.address, host.address);
        apply(&overlay, "members", &[rule]);
        assert_eq!(connect(container, host, 7111, LIMIT), Fate::Open, "{host:?}");
        assert_eq!(connect(container, host, 7112, LIMIT), Fate::Refused, "{host:?}");
        assert_eq!(connect(container, host, 7114, LIMIT), Fate::Open, "{host:?}");
    }
    // The rule in force speaks of the card's IPv6 address only.
    let [[container, host], ..] = pairs(&overlay);
    assert_eq!(connect(container, host, 7111, LIMIT), Fate::Refused);
    apply(&overlay, "members", &rules(&["allow udp/7115 from host:h1 to any", "allow tcp/7115 from host:h2 to any"]));
    for [container, host] in pairs(&overlay) {
        assert_eq!(connect(container, host, 7115, LIMIT), Fate::Refused, "{host:?}");
        let here = udp_socket(host.view.namespace(), SocketAddr::new(host.address, 7115)).unwrap();
        let there = udp_socket(container.view.namespace(), SocketAddr::new(container.address, 7116)).unwrap();
        datagram(&there, &here, LIMIT).unwrap();
        datagram(&here, &there, LIMIT).expect("an answer passes");
    }
    reset(&overlay);
}

#[test]
fn rules_keep_the_host_from_its_containers() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    for [container, host] in pairs(&overlay) {
        let to = container.address;
        apply(
            &overlay,
            "members",
            &[format!("deny tcp/7121 from any to {to}"), format!("reject tcp/7122 from any to {to}")],
        );
        assert_eq!(connect(host, container, 7121, MOMENT), Fate::Silent, "{host:?}");
        assert_eq!(connect(host, container, 7122, LIMIT), Fate::Refused, "{host:?}");
        assert_eq!(connect(host, container, 7123, LIMIT), Fate::Open, "{host:?}");
    }
    reset(&overlay);
}

#[test]
fn default_deny_closes_both_ways_and_rules_open_them() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    apply(&overlay, "deny", &rules(&["allow tcp/7131 from any to any"]));
    for [container, host] in pairs(&overlay) {
        for (from, to) in [(container, host), (host, container)] {
            assert_eq!(connect(from, to, 7131, LIMIT), Fate::Open, "{from:?} to {to:?}");
            assert_eq!(connect(from, to, 7132, MOMENT), Fate::Silent, "{from:?} to {to:?}");
            assert!(!pings(from, to, "1"), "{from:?} to {to:?}");
        }
    }
    apply(&overlay, "deny", &rules(&["allow icmp from any to any", "allow icmpv6 from any to any"]));
    for [container, host] in pairs(&overlay) {
        assert!(pings(container, host, "5") && pings(host, container, "5"), "{host:?}");
    }
    reset(&overlay);
}

#[test]
fn changed_policy_cuts_live_connections_both_ways_and_leaves_others_alone() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let open = "allow tcp/7141 from any to any".to_owned();
    for [container, host] in pairs(&overlay) {
        for (from, to) in [(container, host), (host, container)] {
            for cut in ["deny tcp/7141 from any to any", "reject any from any to any"] {
                apply(&overlay, "members", std::slice::from_ref(&open));
                let echo = Echo::start(to.view.namespace(), SocketAddr::new(to.address, 7141)).unwrap();
                let mut kept = Conversation::open(from.view.namespace(), echo.address(), LIMIT).unwrap();
                kept.exchange(LIMIT).unwrap();
                apply(&overlay, "members", &["reject tcp/7142 from any to any".to_owned(), open.clone()]);
                kept.exchange(LIMIT).expect("a change that does not concern the flow leaves it alone");
                apply(&overlay, "members", &[cut.to_owned()]);
                assert!(kept.exchange(MOMENT).is_err(), "{from:?} to {to:?} lives on");
            }
        }
    }
    reset(&overlay);
}

/// The other direction of a flow is no loophole: what answers is cut with what asked.
#[test]
fn answers_end_with_the_permission_to_ask() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let open = "allow udp/7151 from any to any".to_owned();
    for [container, host] in pairs(&overlay) {
        for (from, to) in [(container, host), (host, container)] {
            apply(&overlay, "members", std::slice::from_ref(&open));
            let asking = udp_socket(from.view.namespace(), SocketAddr::new(from.address, 7152)).unwrap();
            let answering = udp_socket(to.view.namespace(), SocketAddr::new(to.address, 7151)).unwrap();
            assert_eq!(datagram(&asking, &answering, LIMIT).unwrap(), asking.local_addr().unwrap());
            datagram(&answering, &asking, LIMIT).expect("an answer passes");
            apply(&overlay, "members", &["deny udp/7151 from any to any".to_owned()]);
            assert!(datagram(&answering, &asking, MOMENT).is_err(), "{to:?} still answers {from:?}");
            apply(&overlay, "members", std::slice::from_ref(&open));
            datagram(&answering, &asking, LIMIT).expect("the flow is allowed again");
        }
    }
    reset(&overlay);
}

fn test(overlay: &Overlay, from: End<'_>, to: End<'_>, port: u16) -> TestVerdict {
    let (from, to) = (from.address, to.address);
    let request = PolicyTest { from, to, protocol: 6, port: Some(port), source_port: Some(40_000) };
    let Response::Verdict(verdict) = overlay.ask("h1", Request::PolicyTest(request)).unwrap() else { panic!() };
    verdict
}

/// How often the kernel applied a rule of either way.
fn counted(overlay: &Overlay, number: u32) -> u64 {
    let host = overlay.lab.host("h1").unwrap();
    let text = run_in(host.view(), &["nft", "list", "table", "inet", "overlay-host"]).unwrap();
    let rule = format!("comment \"rule {number}\"");
    let counters = text.lines().filter(|line| line.contains(&rule)).map(|line| {
        let packets = line.split_once("counter packets ").unwrap().1;
        packets.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    counters.sum()
}

#[test]
fn policy_test_names_the_rule_that_the_kernel_applies() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let [[container, host], _, [_, card], _] = pairs(&overlay);
    apply(
        &overlay,
        "members",
        &[
            format!("reject tcp/7160 from any to {}", card.address),
            "allow tcp/7160 from host:h1 to any".to_owned(),
            format!("deny tcp/7161 from {} to any audit", container.address),
            "allow tcp/7161-7162 from any to any".to_owned(),
            format!("reject tcp/7163 from {} to {}", host.address, container.address),
            "deny tcp/7164 from any to fd42::/48".to_owned(),
        ],
    );
    let (mut rules_seen, mut verdicts_seen) = (Vec::new(), Vec::new());
    for [container, host] in pairs(&overlay) {
        for (from, to) in [(container, host), (host, container)] {
            for port in 7160..=7165 {
                let verdict = test(&overlay, from, to, port);
                let (expected, patience) = match verdict.verdict {
                    Verdict::Allow => (Fate::Open, LIMIT),
                    Verdict::Reject => (Fate::Refused, LIMIT),
                    Verdict::Deny => (Fate::Silent, MOMENT),
                };
                let number = verdict.rule.as_ref().map(|rule| rule.number);
                let before = number.map(|number| counted(&overlay, number));
                assert_eq!(connect(from, to, port, patience), expected, "{from:?} to {to:?} tcp/{port}: {verdict:?}");
                let after = number.map(|number| counted(&overlay, number));
                assert!(before.is_none() || after > before, "{from:?} to {to:?} tcp/{port}: {verdict:?}");
                rules_seen.extend(number);
                verdicts_seen.push(expected);
            }
        }
    }
    for number in 1..=6 {
        assert!(rules_seen.contains(&number), "rule {number} decided nothing here");
    }
    for fate in [Fate::Open, Fate::Refused, Fate::Silent] {
        assert!(verdicts_seen.contains(&fate), "{fate:?} was never expected");
    }
    reset(&overlay);
}

#[test]
fn rules_of_the_file_hold_after_a_reload_and_come_back_when_flushed() {
    let Some(mut overlay) = overlay() else { return };
    reset(&overlay);
    let write = |overlay: &Overlay| {
        let host = overlay.lab.host("h1").unwrap();
        overlay.cluster.write_config(&overlay.lab, host).unwrap();
    };
    overlay.cluster.rules = rules(&["allow tcp/7171 from any to any"]);
    write(&overlay);
    let open = |overlay: &Overlay| {
        let [[container, host], ..] = pairs(overlay);
        connect(container, host, 7171, LIMIT)
    };
    assert_eq!(open(&overlay), Fate::Refused, "nothing is applied before the reload");
    overlay.ask("h1", Request::ConfigReload).unwrap();
    assert_eq!(open(&overlay), Fate::Open);
    let view = overlay.lab.host("h1").unwrap().view().clone();
    run_in(&view, &["nft", "flush", "table", "inet", "overlay-host"]).unwrap();
    let listed = || run_in(&view, &["nft", "list", "table", "inet", "overlay-host"]).unwrap();
    wait_for("the rules to be back", LIMIT, || listed().contains("comment \"rule 1\"").then_some(())).unwrap();
    assert_eq!(open(&overlay), Fate::Open);
    overlay.cluster.rules.clear();
    write(&overlay);
    overlay.ask("h1", Request::ConfigReload).unwrap();
    assert_eq!(open(&overlay), Fate::Refused);
}

#[test]
fn rules_and_connections_outlive_a_kill() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    apply(&overlay, "members", &rules(&["allow tcp/7181 from any to any"]));
    let [[container, host], ..] = pairs(&overlay);
    let echo = Echo::start(host.view.namespace(), SocketAddr::new(host.address, 7181)).unwrap();
    let mut kept = Conversation::open(container.view.namespace(), echo.address(), LIMIT).unwrap();
    kept.exchange(LIMIT).unwrap();
    overlay.lab.kill_daemon("h1").unwrap();
    kept.exchange(LIMIT).expect("the kernel applies the rules without the daemon");
    assert_eq!(connect(container, host, 7182, LIMIT), Fate::Refused, "closed without the daemon");
    overlay.lab.start_daemon("h1").unwrap();
    kept.exchange(LIMIT).expect("the connection outlives the restart");
    assert_eq!(connect(container, host, 7182, LIMIT), Fate::Refused);
    reset(&overlay);
    assert!(kept.exchange(MOMENT).is_err(), "the new daemon has the rules in hand");
}

#[test]
fn ten_thousand_rules_load_and_the_last_decides() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let mut many: Vec<String> = (0..9_999).map(|n| format!("deny tcp/{} from any to 10.42.1.1", 10_000 + n)).collect();
    many.push("allow tcp/7191 from any to any".to_owned());
    let policy = serde_json::from_value(serde_json::json!({ "default": "members", "rules": many })).unwrap();
    overlay.ask("h1", Request::PolicyApply { policy: Some(policy) }).unwrap();
    // On a busy machine this takes longer than the answer waits.
    let view = overlay.lab.host("h1").unwrap().view();
    let listed = || run_in(view, &["nft", "list", "table", "inet", "overlay-host"]).unwrap();
    let minute = Duration::from_secs(60);
    wait_for("the rules", minute, || listed().contains("comment \"rule 10000\"").then_some(())).unwrap();
    let [[container, host], ..] = pairs(&overlay);
    for (from, to) in [(container, host), (host, container)] {
        assert_eq!(connect(from, to, 7191, LIMIT), Fate::Open, "{from:?} to {to:?}");
    }
    assert_eq!(connect(container, host, 19_998, MOMENT), Fate::Silent);
    assert_eq!(connect(container, host, 7192, LIMIT), Fate::Refused);
    assert!(counted(&overlay, 10_000) > 0 && counted(&overlay, 9_999) > 0);
    reset(&overlay);
}

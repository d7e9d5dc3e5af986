//! The packet filter between containers of different hosts.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{PolicyTest, Request, Response, Verdict};
use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{HostSpec, netns, wait_for};
use overlay_tests::{Conversation, Echo, Overlay, SharedLab};
use std::net::{IpAddr, SocketAddr};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(10);

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "policy",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {}),
        |overlay| &overlay.lab,
    )
}

/// Puts rules in force on both hosts.
fn apply(overlay: &Overlay, default: &str, rules: &[&str]) {
    let policy = serde_json::json!({ "default": default, "rules": rules });
    for host in ["h1", "h2"] {
        let policy = serde_json::from_value(policy.clone()).unwrap();
        overlay.ask(host, Request::PolicyApply { policy: Some(policy) }).unwrap();
    }
}

fn reset(overlay: &Overlay) {
    for host in ["h1", "h2"] {
        overlay.ask(host, Request::PolicyApply { policy: None }).unwrap();
    }
}

/// What happens to a connection from h1c1 to a server on a port of h2c1.
fn connect(overlay: &Overlay, address: IpAddr, port: u16) -> Result<(), String> {
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let server = Server::start(to.view.namespace(), SocketAddr::new(address, port)).unwrap();
    let result = netns::within(from.view.namespace(), || {
        let stream = load::connect(server.address(), Duration::from_millis(700))?;
        load::transmit(stream, Amount::Bytes(1000), Content::Verified)
    });
    result.map(drop).map_err(|error| format!("{error:#}"))
}

fn addresses(overlay: &Overlay) -> [IpAddr; 2] {
    let to = overlay.container("h2c1");
    [IpAddr::V4(to.v4), IpAddr::V6(to.v6)]
}

#[test]
fn members_policy_lets_containers_talk_and_closes_the_host() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    reset(&overlay);
    for address in addresses(&overlay) {
        assert_eq!(connect(&overlay, address, 7001), Ok(()));
    }
    // The same server on the host's own overlay address is closed to the overlay; its echo is open.
    let host = overlay.lab.host("h2").unwrap();
    let address = SocketAddr::new(host.overlay_v4().into(), 7001);
    let server = Server::start(host.view().namespace(), address).unwrap();
    let from = overlay.container("h1c1");
    let refused = netns::within(from.view.namespace(), || load::connect(server.address(), Duration::from_millis(700)));
    assert!(refused.is_err(), "a port of the host is open to the overlay");
    assert!(overlay.reaches("h1c1", address.ip()));
}

#[test]
fn reject_answers_and_deny_is_silent_and_other_ports_pass() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    apply(&overlay, "members", &["reject tcp/7002 from any to any", "deny tcp/7003 from any to any"]);
    for address in addresses(&overlay) {
        let rejected = connect(&overlay, address, 7002).unwrap_err();
        assert!(rejected.contains("refused"), "{rejected}");
        let denied = connect(&overlay, address, 7003).unwrap_err();
        assert!(denied.contains("timed out") || denied.contains("time"), "{denied}");
        assert_eq!(connect(&overlay, address, 7004), Ok(()));
    }
    reset(&overlay);
}

#[test]
fn default_deny_passes_what_a_rule_allows_and_replies() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    apply(&overlay, "deny", &["allow tcp/7005 from 10.42.1.0/24 to 10.42.2.0/24"]);
    let address = IpAddr::V4(overlay.container("h2c1").v4);
    assert_eq!(connect(&overlay, address, 7005), Ok(()));
    assert!(connect(&overlay, address, 7006).is_err());
    assert!(!overlay.reaches("h1c1", address));
    reset(&overlay);
    assert!(overlay.reaches("h1c1", address));
}

#[test]
fn revoked_permission_cuts_a_live_connection() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    reset(&overlay);
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    for address in addresses(&overlay) {
        let echo = Echo::start(to.view.namespace(), SocketAddr::new(address, 7007)).unwrap();
        let mut kept = Conversation::open(from.view.namespace(), echo.address(), LIMIT).unwrap();
        kept.exchange(LIMIT).unwrap();
        apply(&overlay, "members", &["reject tcp/7008 from any to any"]);
        kept.exchange(LIMIT).expect("a change that does not concern the flow leaves it alone");
        apply(&overlay, "members", &["reject tcp/7007 from any to any"]);
        assert!(kept.exchange(Duration::from_secs(1)).is_err(), "the flow lives on over {address}");
        reset(&overlay);
    }
}

#[test]
fn policy_test_names_the_rule_that_decides() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    apply(&overlay, "members", &["allow tcp/7009 from any to any", "reject tcp/7010 from any to any"]);
    let test = |port| {
        let request = Request::PolicyTest(PolicyTest {
            from: IpAddr::V4(overlay.container("h1c1").v4),
            to: IpAddr::V4(overlay.container("h2c1").v4),
            protocol: 6,
            port: Some(port),
            source_port: Some(40_000),
        });
        let Response::Verdict(verdict) = overlay.ask("h1", request).unwrap() else { panic!() };
        (verdict.verdict, verdict.rule.map(|rule| rule.number))
    };
    assert_eq!(test(7009), (Verdict::Allow, Some(1)));
    assert_eq!(test(7010), (Verdict::Reject, Some(2)));
    assert_eq!(test(7011), (Verdict::Allow, None));
    reset(&overlay);
}

#[test]
fn changed_file_is_applied_by_reload_and_a_broken_one_is_not() {
    let Some(mut overlay) = overlay() else { return };
    reset(&overlay);
    let address = IpAddr::V4(overlay.container("h2c1").v4);
    let write = |overlay: &Overlay| {
        for host in overlay.lab.hosts() {
            overlay.cluster.write_config(&overlay.lab, host).unwrap();
        }
    };
    overlay.cluster.rules = vec!["reject tcp/7012 from any to any".to_owned()];
    write(&overlay);
    assert_eq!(connect(&overlay, address, 7012), Ok(()), "nothing is applied before the reload");
    for host in ["h1", "h2"] {
        overlay.ask(host, Request::ConfigReload).unwrap();
    }
    wait_for("the rule of the file", LIMIT, || connect(&overlay, address, 7012).is_err().then_some(())).unwrap();
    overlay.cluster.rules = vec!["reject tcp/ from nowhere".to_owned()];
    write(&overlay);
    assert!(overlay.ask("h2", Request::ConfigReload).is_err());
    assert!(connect(&overlay, address, 7012).is_err(), "the old rules must stay in force");
    overlay.cluster.rules.clear();
    write(&overlay);
    for host in ["h1", "h2"] {
        overlay.ask(host, Request::ConfigReload).unwrap();
    }
    wait_for("the rule to be gone", LIMIT, || connect(&overlay, address, 7012).ok()).unwrap();
}

#[test]
fn cluster_of_files_has_no_policy_for_all_and_says_what_to_do() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let file = "/run/overlay/rules";
    std::fs::write(overlay.lab.host("h1").unwrap().path(file), "deny tcp/7011 from any to any\n").unwrap();
    for words in [&["policy", "apply", file][..], &["policy", "status"], &["policy", "rollback", "0"]] {
        let output = overlay.lab.ctl("h1", words).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("error[UNSUPPORTED]"), "{text}");
        assert!(text.contains("policy apply FILE --local"), "{text}");
    }
    let address = IpAddr::V4(overlay.container("h2c1").v4);
    assert_eq!(connect(&overlay, address, 7011), Ok(()));
    overlay.lab.ctl_ok("h1", &["policy", "apply", file, "--local"]).unwrap();
    assert!(connect(&overlay, address, 7011).is_err());
    overlay.lab.ctl_ok("h1", &["policy", "apply", "--local", "--reset"]).unwrap();
    assert_eq!(connect(&overlay, address, 7011), Ok(()));
}

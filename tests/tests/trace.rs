//! `overlayctl trace` on two hosts: the far half is asked by gossip, and what it says is what packets then meet.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{Request, Response, Trace, TraceOutcome, TraceRequest};
use overlay_netns_harness::{HostSpec, netns, wait_for};
use overlay_tests::{Overlay, SharedLab};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Output;
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(20);

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "trace",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {}),
        |overlay| &overlay.lab,
    )
}

fn apply(overlay: &Overlay, host: &str, rules: Option<&[&str]>) {
    let policy = rules.map(|rules| serde_json::json!({ "default": "members", "rules": rules }));
    let policy = policy.map(|policy| serde_json::from_value(policy).unwrap());
    overlay.ask(host, Request::PolicyApply { policy }).unwrap();
}

fn udp(from: IpAddr, to: &str, port: u16, size: u16) -> TraceRequest {
    TraceRequest {
        from: from.to_string(),
        to: to.to_owned(),
        protocol: Some(17),
        source_port: 40_000,
        port,
        size,
        may_fragment: false,
        send: false,
    }
}

fn trace(overlay: &Overlay, host: &str, request: TraceRequest) -> Trace {
    match overlay.ask(host, Request::Trace(request)).unwrap() {
        Response::Trace(trace) => *trace,
        other => panic!("{}", other.name()),
    }
}

/// Host and name of each step.
fn path(trace: &Trace) -> Vec<(&str, &str)> {
    trace.steps.iter().map(|step| (step.host.as_str(), step.step.as_str())).collect()
}

fn ctl(overlay: &Overlay, host: &str, arguments: &[&str]) -> Output {
    let program = overlay.lab.binary("overlayctl").unwrap();
    let mut argv = vec![program.as_str()];
    argv.extend(arguments);
    overlay.lab.command(host, &argv).unwrap().output().unwrap()
}

/// Whether a datagram from h1c1 arrives at a port of h2c1.
fn arrives(overlay: &Overlay, port: u16) -> bool {
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let server = netns::within(to.view.namespace(), || Ok(UdpSocket::bind((to.v4, port))?)).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let client = netns::within(from.view.namespace(), || Ok(UdpSocket::bind((from.v4, 40_000))?)).unwrap();
    // A refusal may be told to the sender, which then cannot send.
    let _ = client.send_to(b"hello", SocketAddr::from((to.v4, port)));
    server.recv_from(&mut [0; 16]).is_ok()
}

#[test]
fn both_hosts_tell_every_decision_and_the_refusal_of_either_is_found() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (from, to) = (overlay.container("h1c1").v4, overlay.container("h2c1").v4);
    let (from, to) = (IpAddr::V4(from), to.to_string());
    apply(&overlay, "h1", Some(&["deny udp/7701 from any to any"]));
    apply(&overlay, "h2", Some(&["reject udp/7702 from any to any name far"]));

    let open = trace(&overlay, "h1", udp(from, &to, 7703, 0));
    assert_eq!((open.outcome, &open.missing), (TraceOutcome::Pass, &None), "{open:?}");
    let near = ["addresses", "path", "route", "nat", "policy", "size", "encapsulation"].map(|step| ("h1", step));
    let far = ["addresses", "path", "policy", "delivery"].map(|step| ("h2", step));
    assert_eq!(path(&open), [near.as_slice(), far.as_slice()].concat());
    let container = overlay.container("h2c1").view.namespace();
    assert!(open.steps.last().unwrap().text.contains(container), "{open:?}");
    assert!(arrives(&overlay, 7703));

    let here = trace(&overlay, "h1", udp(from, &to, 7701, 0));
    let last = here.steps.last().unwrap();
    assert_eq!((here.outcome, last.host.as_str(), last.step.as_str()), (TraceOutcome::Denied, "h1", "policy"));
    assert!(last.text.contains("rule 1: deny udp/7701"), "{last:?}");
    let permit = last.permit.as_ref().unwrap();
    assert!(permit.contains(&format!("allow udp/7701 from {from} to {to}")), "{permit}");
    assert!(!arrives(&overlay, 7701));

    let there = trace(&overlay, "h1", udp(from, &to, 7702, 0));
    let last = there.steps.last().unwrap();
    assert_eq!((there.outcome, last.host.as_str(), last.step.as_str()), (TraceOutcome::Denied, "h2", "policy"));
    assert!(last.text.contains("reject udp/7702"), "{last:?}");
    assert!(!arrives(&overlay, 7702));

    // The destination's host asks the source's for the first half, and sees the same.
    let asked_there = trace(&overlay, "h2", udp(from, &to, 7701, 0));
    assert_eq!((asked_there.outcome, asked_there.steps.last().unwrap().host.as_str()), (TraceOutcome::Denied, "h1"));
    assert_eq!(trace(&overlay, "h2", udp(from, &to, 7703, 0)).outcome, TraceOutcome::Pass);
    for host in ["h1", "h2"] {
        apply(&overlay, host, None);
    }
}

#[test]
fn program_ends_with_the_code_of_the_refusal_and_says_what_would_permit_it() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (from, to) = (overlay.container("h1c1").v4.to_string(), overlay.container("h2c1").v4.to_string());
    apply(&overlay, "h1", Some(&["deny tcp/7710 from any to any"]));
    let code = |arguments: &[&str]| ctl(&overlay, "h1", &[&["trace"], arguments].concat()).status.code().unwrap();
    for (arguments, wanted) in [
        (vec![from.as_str(), to.as_str()], 0),
        (vec![overlay.container("h1c1").view.namespace(), "h2"], 0),
        (vec![&from, &to, "--dport", "7710"], 20),
        (vec![&from, "10.42.77.1"], 21),
        (vec![&from, "10.42.2.200"], 21),
        (vec![&from, &to, "--size", "9000"], 23),
        (vec![&from, &to, "--size", "9000", "--fragment"], 0),
        (vec!["192.0.2.77", &to], 24),
        (vec!["nobody", &to], 4),
        (vec![&from, &to, "-p", "tcp"], 2),
    ] {
        assert_eq!(code(&arguments), wanted, "{arguments:?}");
    }
    let why = ctl(&overlay, "h1", &["trace", &from, &to, "--dport", "7710", "--why-not"]);
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(why.starts_with("denied by policy on h1: rule 1"), "{why}");
    assert!(why.contains(&format!("allow tcp/7710 from {from} to {to}")) && why.lines().count() == 2, "{why}");
    let json = ctl(&overlay, "h1", &["-j", "trace", &from, &to, "--dport", "7710"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["schema"], &json["outcome"]), (&"overlay.trace/v1".into(), &"denied".into()));
    apply(&overlay, "h1", None);
}

#[test]
fn live_trace_shows_what_is_decided_about_real_packets() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (from, to) = (overlay.container("h1c1").v4.to_string(), overlay.container("h2c1").v4.to_string());
    let live = ctl(&overlay, "h1", &["trace", &from, &to, "--live", "--for", "2s"]);
    let text = String::from_utf8(live.stdout).unwrap();
    let seen: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with("live  ")).collect();
    assert!(seen.iter().any(|line| line.contains("out") && line.contains("forwarded to h2")), "{text}");
    // Answered by the real container.
    assert!(seen.iter().any(|line| line.contains("  in ") && line.contains("delivered")), "{text}");
}

#[test]
fn host_that_does_not_answer_is_named_and_the_own_half_still_told() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (from, to) = (overlay.container("h1c1").v4, overlay.container("h2c1").v4.to_string());
    overlay.lab.cut("h2").unwrap();
    wait_for("the far half is known to be out of reach", LIMIT, || {
        let cut = trace(&overlay, "h1", udp(from.into(), &to, 7720, 0));
        if cut.outcome == TraceOutcome::Pass {
            // Before this host knows that the way is down, it asks in vain and says so.
            assert!(cut.missing.as_ref().is_some_and(|missing| missing.contains("h2")), "{cut:?}");
            return None;
        }
        assert_eq!(cut.outcome, TraceOutcome::PathDown, "{cut:?}");
        assert!(cut.steps.iter().all(|step| step.host == "h1"), "{cut:?}");
        Some(())
    })
    .unwrap();
    overlay.lab.heal("h2").unwrap();
    wait_for("both halves are told again", LIMIT, || {
        let whole = trace(&overlay, "h1", udp(from.into(), &to, 7720, 0));
        (whole.outcome == TraceOutcome::Pass && whole.missing.is_none()).then_some(())
    })
    .unwrap();
}

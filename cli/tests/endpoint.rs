//! `endpoint add` in real network namespaces, with a daemon made of canned answers. Needs root.

mod support;

use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use overlay_control::api::{EndpointLease, Request, Response};
use support::{Daemon, code, stderr, stdout};

const HOST_LINK: &str = "ov-test";
const PEER_LINK: &str = "op-test";

/// A host and a container namespace with the names of this test, removed on drop.
struct Namespaces {
    host: String,
    container: String,
}

impl Namespaces {
    /// `None`, said loudly, where namespaces cannot be made.
    fn new(test: &str) -> Option<Self> {
        let name = |role: &str| format!("ovt-cli-{test}-{role}-{}", std::process::id());
        let namespaces = Self { host: name("h"), container: name("c") };
        for namespace in [&namespaces.host, &namespaces.container] {
            let made = Command::new("ip").args(["netns", "add", namespace]).output();
            if !made.is_ok_and(|output| output.status.success()) {
                assert!(std::env::var_os("CI").is_none(), "network namespaces are needed in CI");
                eprintln!("SKIPPED: network namespaces need root and iproute2");
                return None;
            }
        }
        Some(namespaces)
    }

    fn ip(&self, namespace: &str, arguments: &str) -> Output {
        let mut command = Command::new("ip");
        command.args(["-n", namespace]).args(arguments.split(' '));
        command.output().expect("ip runs")
    }

    fn ip_ok(&self, namespace: &str, arguments: &str) -> String {
        let output = self.ip(namespace, arguments);
        assert_eq!(code(&output), 0, "ip {arguments}: {}", stderr(&output));
        stdout(&output)
    }

    fn ctl(&self, daemon: &Daemon, arguments: &[&str]) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.host, env!("CARGO_BIN_EXE_overlayctl"), "--socket"])
            .arg(&daemon.socket)
            .args(arguments)
            .output()
            .expect("overlayctl runs")
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in [&self.host, &self.container] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
        }
    }
}

/// A daemon that makes the link pair in the host namespace and removes it on abort.
fn daemon(host: &str, log: &Arc<Mutex<Vec<String>>>) -> Daemon {
    let (host, log) = (host.to_owned(), Arc::clone(log));
    let ip = move |arguments: &str| {
        let status = Command::new("ip").args(["-n", &host]).args(arguments.split(' ')).status();
        assert!(status.is_ok_and(|status| status.success()), "ip {arguments}");
    };
    Daemon::current(move |request| {
        let word = |text: &str| log.lock().expect("not poisoned").push(text.to_owned());
        Ok(vec![match request {
            Request::EndpointPrepare(asked) => {
                word("prepare");
                ip(&format!("link add {HOST_LINK} type veth peer name {PEER_LINK}"));
                ip(&format!("link set {HOST_LINK} up"));
                Response::Lease(EndpointLease {
                    lease: 7,
                    name: asked.name.clone(),
                    host_interface: HOST_LINK.into(),
                    peer_interface: PEER_LINK.into(),
                    interface: asked.interface.clone(),
                    addresses: vec!["10.42.1.4".parse().expect("address"), "fd42::4".parse().expect("address")],
                    gateways: vec!["10.42.1.1".parse().expect("address"), "fe80::1".parse().expect("address")],
                    network: None,
                    on_link: Vec::new(),
                    mtu: 1400,
                    expires_ms: 60_000,
                })
            }
            Request::EndpointCommit { lease: 7 } => {
                word("commit");
                Response::Done { changed: true, notes: vec![] }
            }
            Request::EndpointAbort { lease: 7 } => {
                word("abort");
                ip(&format!("link delete {HOST_LINK}"));
                Response::Done { changed: true, notes: vec![] }
            }
            other => panic!("not expected: {other:?}"),
        }])
    })
}

#[test]
fn namespace_is_configured_and_the_lease_committed() {
    let Some(namespaces) = Namespaces::new("add") else { return };
    let log = Arc::new(Mutex::new(Vec::new()));
    let daemon = daemon(&namespaces.host, &log);
    let output = namespaces.ctl(&daemon, &["endpoint", "add", "--netns", &namespaces.container]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let expected = format!("endpoint {} attached: eth0 has 10.42.1.4, fd42::4\n", namespaces.container);
    assert_eq!(stdout(&output), expected);
    assert_eq!(*log.lock().expect("not poisoned"), ["prepare", "commit"]);

    let container = namespaces.container.as_str();
    let link = namespaces.ip_ok(container, "-o link show dev eth0");
    assert!(link.contains("mtu 1400") && link.contains("UP"), "{link}");
    let addresses = namespaces.ip_ok(container, "-o address show dev eth0");
    assert!(addresses.contains("10.42.1.4/32") && addresses.contains("fd42::4/128"), "{addresses}");
    assert!(!addresses.contains("tentative dadfailed"), "{addresses}");
    let routes = namespaces.ip_ok(container, "route show");
    assert!(routes.contains("default via 10.42.1.1 dev eth0") && routes.contains("10.42.1.1 dev eth0 scope link"));
    assert!(namespaces.ip_ok(container, "-6 route show default").contains("via fe80::1 dev eth0"));
    assert!(namespaces.ip_ok(container, "-o link show dev lo").contains("LOWER_UP"));
}

#[test]
fn failure_in_the_namespace_is_undone_and_said() {
    let Some(namespaces) = Namespaces::new("fail") else { return };
    let container = namespaces.container.as_str();
    namespaces.ip_ok(container, "link add eth0 type veth peer name other");
    let before = namespaces.ip_ok(container, "-o link show");
    let log = Arc::new(Mutex::new(Vec::new()));
    let daemon = daemon(&namespaces.host, &log);
    let path = format!("/run/netns/{container}");
    let output = namespaces.ctl(&daemon, &["endpoint", "add", "web", "--netns", &path]);
    assert_eq!(code(&output), 1);
    let text = stderr(&output);
    assert!(text.starts_with("error[NAMESPACE]: `ip link set ") && text.contains("name eth0` failed"), "{text}");
    assert_eq!(*log.lock().expect("not poisoned"), ["prepare", "abort"]);
    assert_eq!(namespaces.ip_ok(container, "-o link show"), before, "the namespace is as it was");
    assert_ne!(code(&namespaces.ip(&namespaces.host, &format!("link show {HOST_LINK}"))), 0, "no link is left");
}

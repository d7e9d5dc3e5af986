//! The real containerd on two hosts: pods by its CRI, as kubelet makes them, and containers by `ctr`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cri;
mod engine;

use cri::{Message, pod};
use engine::{Containerd, IMAGE};
use overlay_control::api::{EndpointInfo, NatRequest, PublishedPort, Request, Response};
use overlay_netns_harness::{HostSpec, run_in, wait_for};
use overlay_tests::{Overlay, SharedLab, can_use};
use serde_json::{Value, json};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(20);
/// The shipped unit's two capabilities and no way to more.
const CONFINED: [&str; 3] = ["setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--no-new-privs"];
/// What `crictl runp` reads.
const POD: &str = include_str!("../../../examples/pod.json");

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    let needed = [
        ("command -v ctr runc", "containerd"),
        ("test -x /usr/lib/cni/loopback", "containernetworking-plugins"),
        ("curl --version | grep -q HTTP2", "curl"),
        ("test -x /bin/busybox", "busybox-static"),
    ];
    if !can_use("containerd", &needed) {
        return None;
    }
    LAB.lease(
        "ctrd",
        |name, binaries| {
            let overlay = Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {})?;
            for host in overlay.lab.hosts() {
                overlay.lab.stop_daemon(host.name())?;
                overlay.lab.start_daemon_under(host.name(), &CONFINED)?;
                let status = format!("/proc/{}/status", overlay.lab.daemon_pid(host.name())?);
                let status = std::fs::read_to_string(status)?;
                anyhow::ensure!(status.contains("CapEff:\t0000000000003000"), "not confined: {status}");
            }
            overlay.lab.wait_ready(LIMIT)?;
            Ok(overlay)
        },
        |overlay| &overlay.lab,
    )
}

/// What the daemon has for containerd.
fn endpoints(overlay: &Overlay, host: &str) -> Vec<EndpointInfo> {
    match overlay.ask(host, Request::EndpointList).unwrap() {
        Response::Endpoints(endpoints) => endpoints.into_iter().filter(|one| one.owner.is_some()).collect(),
        other => panic!("{}", other.name()),
    }
}

fn ports(overlay: &Overlay, host: &str) -> Vec<PublishedPort> {
    match overlay.ask(host, Request::Nat(NatRequest::List)).unwrap() {
        Response::PublishedPorts(ports) => ports,
        other => panic!("{}", other.name()),
    }
}

/// Endpoints, ports, limits, links and names of containerd are gone.
fn nothing_left(overlay: &Overlay, host: &str) {
    wait_for("the endpoints to go", LIMIT, || endpoints(overlay, host).is_empty().then_some(()))
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", endpoints(overlay, host)));
    assert_eq!(ports(overlay, host), []);
    let limits = overlay.lab.ctl_json(host, &["limit", "list"]).unwrap();
    assert!(!limits.to_string().contains("eth0"), "{limits}");
    let links = run_in(&overlay.lab.view(host).unwrap(), &["ip", "-o", "link", "show", "group", "42"]).unwrap();
    assert_eq!(links.lines().count(), 1, "the lab's own container alone: {links}");
}

/// The page behind an address and port, asked for on a host.
fn fetch(overlay: &Overlay, host: &str, address: &str, port: u16) -> String {
    let get = format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {address} {port}");
    run_in(&overlay.lab.view(host).unwrap(), &["sh", "-c", &get]).unwrap_or_default()
}

/// The pod of the example under another name, on the second host and without its ports.
fn client_pod(name: &str) -> Value {
    let mut pod: Value = serde_json::from_str(POD).unwrap();
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["uid"] = json!(format!("{name}-uid"));
    pod["dns_config"]["servers"] = json!(["10.42.2.1"]);
    pod["port_mappings"] = json!([]);
    pod
}

#[test]
fn pods_of_two_hosts_reach_each_other_by_address_and_name_and_leave_nothing() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (mut one, two) = (Containerd::started(&overlay.lab, "h1"), Containerd::started(&overlay.lab, "h2"));
    one.show_annotations();
    let config = pod(&serde_json::from_str(POD).unwrap(), one.host.group());
    let web = one.start_pod(&config);
    let labels = serde_json::to_value(&endpoints(&overlay, "h1")[0].labels).unwrap();
    assert_eq!((&labels["K8S_POD_NAMESPACE"], &labels["role"]), (&json!("shop"), &json!("web")), "{labels}");
    let server = one.start_container(&web, &config, &["httpd", "-f", "-p", "80", "-h", "/"]);
    let addresses = one.addresses(&web);
    assert!(addresses[0].starts_with("10.42.1.") && addresses[1].starts_with("fd42:0:0:1:"), "{addresses:?}");
    let (shown, _) = one.exec(&server, &["ip", "address", "show", "dev", "eth0"]);
    assert!(shown.contains(&addresses[0]) && shown.contains(&addresses[1]), "{shown}");

    let other = pod(&client_pod("client"), two.host.group());
    let client = two.start_pod(&other);
    let asker = two.start_container(&client, &other, &["sleep", "3600"]);
    let (page, code) = two.exec(&asker, &["sh", "/fetch", &addresses[0]]);
    assert!(code == 0 && page.ends_with("the page"), "{page}");
    for address in &addresses {
        let (said, code) = two.exec(&asker, &["ping", "-c", "2", "-W", "2", address]);
        assert_eq!(code, 0, "{said}");
    }
    // The name is the pod's, by CNI_ARGS; the server that knows it comes from the pod's own configuration.
    let (told, _) = two.exec(&asker, &["cat", "/etc/resolv.conf"]);
    assert!(told.contains("nameserver 10.42.2.1") && told.contains("search ctr.overlay.internal"), "{told}");
    wait_for("the name to come to the other host", LIMIT, || {
        two.exec(&asker, &["nslookup", "web.ctr.overlay.internal"]).0.contains(&addresses[0]).then_some(())
    })
    .unwrap();
    // The port of the host and the rates of the example.
    let card = overlay.lab.host("h1").unwrap().underlay_v4().to_string();
    assert!(fetch(&overlay, "h2", &card, 8080).ends_with("the page"));
    let limits = overlay.lab.ctl_ok("h1", &["limit", "list"]).unwrap();
    assert!(limits.contains("50") && limits.contains("100") && limits.contains("eth0"), "{limits}");
    // A second pod that wants the same port: refused in CRI's words and with our reason, and nothing stays.
    let mut taken: Value = serde_json::from_str(POD).unwrap();
    taken["metadata"] = json!({ "name": "second", "namespace": "shop", "uid": "second-uid" });
    let request = Message::default().message(1, &pod(&taken, one.host.group()));
    let said = cri::call(&one.host, "RunPodSandbox", &request).unwrap_err();
    assert!(said.contains("8080"), "{said}");
    assert_eq!((endpoints(&overlay, "h1").len(), ports(&overlay, "h1").len()), (1, 2));

    // containerd that is killed and started again finds its pods as they were.
    one.end(libc::SIGKILL);
    assert!(fetch(&overlay, "h2", &card, 8080).ends_with("the page"), "nothing depends on containerd");
    one.start();
    assert_eq!(one.addresses(&web), addresses);
    one.remove_pod(&web);
    assert_eq!(fetch(&overlay, "h2", &card, 8080), "", "the port ended with its pod");
    let (said, _) = two.exec(&asker, &["ping", "-c", "1", "-W", "1", &addresses[0]]);
    assert!(said.contains("100% packet loss"), "{said}");
    two.remove_pod(&client);
    nothing_left(&overlay, "h1");
    nothing_left(&overlay, "h2");
}

#[test]
fn pod_without_the_daemon_is_refused_in_time_and_one_that_runs_can_be_ended() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let one = Containerd::started(&overlay.lab, "h1");
    let group = one.host.group();
    let running = one.start_pod(&pod(&client_pod("running"), group));
    overlay.lab.kill_daemon("h1").unwrap();
    let began = Instant::now();
    let request = Message::default().message(1, &pod(&client_pod("late"), group));
    let said = cri::call(&one.host, "RunPodSandbox", &request).unwrap_err();
    assert!(said.contains("cannot reach the daemon"), "{said}");
    // Three seconds for the plugin; containerd makes a namespace before and takes it back after.
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    one.remove_pod(&running);
    let left = one.host.run(&["ls", "/run/netns"]).unwrap();
    assert_eq!(left.trim(), "", "namespaces of pods");
    overlay.lab.start_daemon_under("h1", &CONFINED).unwrap();
    overlay.lab.wait_ready(LIMIT).unwrap();
    nothing_left(&overlay, "h1");
    // One on the host's network has nothing of ours, and the host's way to the containers.
    let mut shared = client_pod("shared");
    shared["hostname"] = json!("");
    shared["linux"] = json!({ "security_context": { "namespace_options": { "network": 2 } } });
    let config = pod(&shared, group);
    let shared = one.start_pod(&config);
    let container = one.start_container(&shared, &config, &["sleep", "3600"]);
    assert!(endpoints(&overlay, "h1").is_empty());
    let (said, code) = one.exec(&container, &["ping", "-c", "2", "-W", "2", &overlay.container("h2c1").v4.to_string()]);
    assert_eq!(code, 0, "{said}");
    one.remove_pod(&shared);
}

#[test]
fn containers_of_ctr_reach_the_other_host_and_are_cleared_without_del() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let one = Containerd::started(&overlay.lab, "h1");
    let far = overlay.container("h2c1");
    // In the foreground, removed with DEL.
    let words = format!("run --rm {} {IMAGE} short ping -c 2 -W 2 {}", one.options("short"), far.v4);
    let said = one.run(&words);
    assert!(said.contains("2 packets received"), "{said}");
    nothing_left(&overlay, "h1");
    // In the background `ctr` never says DEL: the daemon sees the namespace end.
    let start = |name: &str| {
        one.run(&format!("run -d {} {IMAGE} {name} httpd -f -p 80 -h /", one.options(name)));
        let known = endpoints(&overlay, "h1");
        assert_eq!(known.len(), 1, "{known:?}");
        known[0].addresses[0].to_string()
    };
    let first = start("webserver-with-a-name");
    assert!(overlay.reaches("h2c1", first.parse().unwrap()));
    assert!(fetch(&overlay, "h2", &first, 80).ends_with("the page"));
    // Named in full by `ctr`'s namespace and name.
    let view = overlay.lab.view("h2").unwrap();
    wait_for("the name to come to the other host", LIMIT, || {
        let words = ["busybox", "nslookup", "default-webserver-with-a-name.ctr.overlay.internal", "10.42.2.1"];
        run_in(&view, &words).is_ok_and(|said| said.contains(&first)).then_some(())
    })
    .unwrap();
    one.run("task kill -s 9 webserver-with-a-name");
    wait_for("the task to end", LIMIT, || {
        one.output("task rm webserver-with-a-name");
        (!one.run("task ls").contains("webserver")).then_some(())
    })
    .unwrap();
    one.run("container rm webserver-with-a-name");
    nothing_left(&overlay, "h1");
    // The name again meets what was left of it, if anything.
    let second = start("webserver-with-a-name");
    assert_ne!(first, second, "an address rests before it is given again");
    assert!(overlay.reaches("h2c1", second.parse().unwrap()));
    one.run("task kill -s 9 webserver-with-a-name");
    nothing_left(&overlay, "h1");
}

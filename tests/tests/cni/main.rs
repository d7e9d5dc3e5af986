//! The CNI plugin against real daemons, called as engines call it, alone and in a chain with the reference plugins.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod chain;
mod engine;
mod modes;
mod podman;

use engine::{Cni, Reply};
use overlay_control::api::{EndpointInfo, NatRequest, Request, Response};
use overlay_netns_harness::{HostSpec, netns, ping, wait_for};
use overlay_tests::{Conversation, Echo, Overlay, SharedLab};
use serde_json::{Value, json};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(10);

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "cni",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {}),
        |overlay| &overlay.lab,
    )
}

fn endpoints(overlay: &Overlay, host: &str) -> Vec<EndpointInfo> {
    match overlay.ask(host, Request::EndpointList).unwrap() {
        Response::Endpoints(endpoints) => endpoints.into_iter().filter(|one| one.owner.is_some()).collect(),
        other => panic!("{}", other.name()),
    }
}

fn address(result: &Value, at: usize) -> String {
    result["ips"][at]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

#[test]
fn container_lives_from_add_to_del_in_every_version() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let name = format!("v{}", version.replace('.', ""));
        let view = overlay.lab.add_namespace(&name).unwrap();
        let cni = Cni::new(&overlay.lab, "h1", version, &name, &view);
        let added = cni.call("ADD", &[]);
        let result = added.ok();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["dns"], json!({ "nameservers": ["10.42.1.1"] }));
        assert_eq!(result["interfaces"][1]["sandbox"], cni.netns());
        // Used at once, both ways, both families: no address is tentative, and none has to be typed elsewhere.
        let other = overlay.container("h2c1");
        for (at, there) in [(0, other.v4.to_string()), (1, other.v6.to_string())] {
            assert!(ping(&view, "-c 3 -i 0.02 -W 2", &there).unwrap().is_lossless(), "{version} to {there}");
            assert!(ping(&other.view, "-c 3 -i 0.02 -W 2", &address(&result, at)).unwrap().is_lossless());
        }
        let with_result = [("prevResult", result.clone())];
        if version != "0.3.1" {
            cni.call("CHECK", &with_result).ok();
        }
        cni.call("DEL", &with_result).ok();
        assert!(!ping(&view, "-c 1 -W 0.3", &other.v4.to_string()).is_ok_and(|report| report.is_lossless()));
        // Engines repeat it, later without result and without namespace.
        cni.call("DEL", &[]).ok();
        netns::remove(view.namespace()).unwrap();
        cni.call("DEL", &[]).ok();
        cni.without_namespace().call("DEL", &[]).ok();
        assert!(endpoints(&overlay, "h1").is_empty(), "{:?}", endpoints(&overlay, "h1"));
    }
}

#[test]
fn wanted_address_and_hardware_address_are_given_or_refused_with_the_reason() {
    let Some(overlay) = overlay() else { return };
    let view = overlay.lab.add_namespace("want").unwrap();
    let cni = Cni::new(&overlay.lab, "h1", "1.0.0", "want", &view);
    let runtime = json!({ "Ips": ["10.42.1.77/24"], "mac": "02:00:00:00:00:77" });
    let result = cni.call("ADD", &[("runtimeConfig", runtime)]).ok();
    assert_eq!(
        (address(&result, 0).as_str(), &result["interfaces"][1]["mac"]),
        ("10.42.1.77", &json!("02:00:00:00:00:77"))
    );
    assert!(ping(&overlay.container("h2c1").view, "-c 1 -W 2", "10.42.1.77").unwrap().is_lossless());

    let view = overlay.lab.add_namespace("want2").unwrap();
    let mut second = Cni::new(&overlay.lab, "h1", "1.0.0", "want2", &view);
    second.arguments = "IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.42.1.77".to_owned();
    assert_eq!(second.call("ADD", &[]).code(), 100);
    assert!(second.call("ADD", &[]).text.contains("10.42.1.77"));
    // In the subnet of the other host, and outside of all.
    for outside in ["10.42.2.9", "192.168.1.9"] {
        second.arguments = format!("IP={outside}");
        assert_eq!(second.call("ADD", &[]).code(), 100, "{outside}");
    }
    assert_eq!(endpoints(&overlay, "h1").len(), 1, "a refused one leaves nothing");
    cni.call("DEL", &[]).ok();
}

#[test]
fn labels_come_from_the_list_the_engine_and_the_caller() {
    let Some(overlay) = overlay() else { return };
    let view = overlay.lab.add_namespace("labelled").unwrap();
    let mut cni = Cni::new(&overlay.lab, "h1", "1.0.0", "labelled", &view);
    cni.arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_UID=1-2".to_owned();
    let given = [
        ("labels", json!({ "role": "none", "site": "a" })),
        ("args", json!({ "cni": { "labels": [{ "key": "role", "value": "web" }] } })),
    ];
    cni.call("ADD", &given).ok();
    let labels: Vec<String> =
        endpoints(&overlay, "h1")[0].labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["K8S_POD_NAMESPACE=shop", "role=web", "site=a"]);
    cni.call("DEL", &[]).ok();
    let refused = cni.call("ADD", &[("labels", json!({ "role": "we b" }))]);
    assert!(refused.refused(7).contains("we b"));
    assert!(endpoints(&overlay, "h1").is_empty(), "a refused one leaves nothing");
}

#[test]
fn mapped_ports_come_and_go_with_the_container() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let ports = || match overlay.ask("h1", Request::Nat(NatRequest::List)).unwrap() {
        Response::PublishedPorts(ports) => ports,
        other => panic!("{}", other.name()),
    };
    let view = overlay.lab.add_namespace("mapped").unwrap();
    let cni = Cni::new(&overlay.lab, "h1", "1.0.0", "mapped", &view);
    let mappings = |port: u16| {
        json!({ "portMappings": [
        { "HostPort": port, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" },
        { "HostPort": 7312, "ContainerPort": 53, "Protocol": "udp", "HostIP": "127.0.0.1" },
    ] })
    };
    let with_ports = ("runtimeConfig", mappings(7311));
    let result = cni.call("ADD", std::slice::from_ref(&with_ports)).ok();
    let shown: Vec<String> = ports().iter().map(ToString::to_string).collect();
    let (v4, v6) = (address(&result, 0), address(&result, 1));
    let wanted = [
        format!("0.0.0.0:7311/tcp to {v4}:80"),
        format!("[::]:7311/tcp to [{v6}]:80"),
        format!("127.0.0.1:7312/udp to {v4}:53"),
    ];
    assert_eq!(shown, wanted);
    let card = overlay.lab.host("h1").unwrap().underlay_v4();
    let echo = Echo::start(view.namespace(), format!("{v4}:80").parse().unwrap()).unwrap();
    let open = |port: u16| {
        let mut talk = Conversation::open(overlay.lab.switch().namespace(), (card, port).into(), LIMIT)?;
        talk.exchange(LIMIT)
    };
    open(7311).unwrap();
    let checked = [("prevResult", result.clone()), with_ports];
    cni.call("CHECK", &checked).ok();
    // A second container that wants one of them gets nothing, and leaves nothing.
    let other = overlay.lab.add_namespace("mapped2").unwrap();
    let second = Cni::new(&overlay.lab, "h1", "1.0.0", "mapped2", &other);
    assert!(second.call("ADD", &[("runtimeConfig", mappings(7313))]).refused(100).contains("7312"));
    assert_eq!((ports().len(), endpoints(&overlay, "h1").len()), (3, 1));
    overlay.lab.ctl_ok("h1", &["nat", "unpublish", "7312", "--owner", "cni/overlay"]).unwrap();
    assert!(cni.call("CHECK", &checked).refused(101).contains("7312"));
    drop(echo);
    cni.call("DEL", &[("prevResult", result)]).ok();
    assert!(ports().is_empty() && open(7311).is_err());
}

#[test]
fn changes_inside_the_container_are_found_by_check() {
    let Some(overlay) = overlay() else { return };
    let view = overlay.lab.add_namespace("check").unwrap();
    let cni = Cni::new(&overlay.lab, "h1", "1.0.0", "check", &view);
    let result = cni.call("ADD", &[]).ok();
    let with_result = [("prevResult", result.clone())];
    cni.call("CHECK", &with_result).ok();
    let gateway = result["ips"][0]["gateway"].as_str().unwrap().to_owned();
    let (v4, inside) = (address(&result, 0), |words: &str| {
        let words: Vec<&str> = ["ip"].into_iter().chain(words.split(' ')).collect();
        overlay_netns_harness::run_in(&view, &words).unwrap();
    });
    inside(&format!("address del {v4}/32 dev eth0"));
    assert!(cni.call("CHECK", &with_result).refused(101).contains(&v4));
    inside(&format!("address add {v4}/32 dev eth0"));
    inside("-4 route flush default");
    assert!(cni.call("CHECK", &with_result).refused(101).contains("default route"));
    inside(&format!("route replace {gateway}/32 dev eth0 scope link"));
    inside(&format!("route add default via {gateway} dev eth0"));
    cni.call("CHECK", &with_result).ok();
    inside("link delete dev eth0");
    wait_for("the gone endpoint to be noticed", LIMIT, || endpoints(&overlay, "h1").is_empty().then_some(())).unwrap();
    assert_eq!(cni.call("CHECK", &with_result).code(), 101);
    cni.call("DEL", &with_result).ok();
}

#[test]
fn stale_attachment_is_replaced_and_one_in_use_is_not() {
    let Some(overlay) = overlay() else { return };
    let view = overlay.lab.add_namespace("stale").unwrap();
    let cni = Cni::new(&overlay.lab, "h1", "1.0.0", "stale", &view);
    let first = cni.call("ADD", &[]).ok();
    assert!(cni.call("ADD", &[]).refused(100).contains("attached already"));
    assert!(ping(&view, "-c 1 -W 2", &overlay.container("h2c1").v4.to_string()).unwrap().is_lossless());
    // As `ctr` leaves it: the namespace ends, nobody calls DEL, and the name comes again.
    netns::remove(view.namespace()).unwrap();
    let view = overlay.lab.add_namespace("stale").unwrap();
    let second = cni.call("ADD", &[]).ok();
    assert_ne!(address(&first, 0), address(&second, 0), "an address rests before it is given again");
    assert!(ping(&view, "-c 1 -W 2", &overlay.container("h2c1").v4.to_string()).unwrap().is_lossless());
    cni.call("DEL", &[]).ok();
}

#[test]
fn interface_of_somebody_else_is_neither_taken_nor_removed() {
    let Some(overlay) = overlay() else { return };
    let view = overlay.lab.add_namespace("theirs").unwrap();
    overlay_netns_harness::run_in(&view, &["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "theirs"])
        .unwrap();
    let cni = Cni::new(&overlay.lab, "h1", "1.0.0", "theirs", &view);
    assert!(cni.call("ADD", &[]).refused(102).contains("eth0"));
    // Engines clean up after a failed ADD, also when the daemon is not there.
    cni.call("DEL", &[]).ok();
    overlay.lab.kill_daemon("h1").unwrap();
    cni.call("DEL", &[]).ok();
    overlay.lab.start_daemon("h1").unwrap();
    overlay.lab.wait_ready(Duration::from_secs(20)).unwrap();
    assert!(overlay_netns_harness::run_in(&view, &["ip", "link", "show", "eth0"]).unwrap().contains("eth0"));
    assert!(endpoints(&overlay, "h1").is_empty());
}

#[test]
fn garbage_is_collected_by_list_only() {
    let Some(overlay) = overlay() else { return };
    let calls: Vec<(Cni, netns::View)> = ["gc1", "gc2"]
        .map(|name| {
            let view = overlay.lab.add_namespace(name).unwrap();
            (Cni::new(&overlay.lab, "h1", "1.1.0", name, &view), view)
        })
        .into();
    calls.iter().for_each(|(cni, _)| drop(cni.call("ADD", &[]).ok()));
    let names = || endpoints(&overlay, "h1").len();
    calls[0].0.call("GC", &[]).ok();
    assert_eq!(names(), 2, "no list means that nothing is known");
    let list = json!([{ "containerID": "gc1", "ifname": "eth0" }]);
    calls[0].0.call("GC", &[("cni.dev/valid-attachments", list)]).ok();
    assert_eq!(names(), 1);
    assert!(ping(&calls[0].1, "-c 1 -W 2", &overlay.container("h2c1").v4.to_string()).unwrap().is_lossless());
    // The endpoint of the lab's own container is not of this network.
    assert!(overlay.reaches("h1c1", overlay.container("h2c1").v4.into()));
    calls[0].0.call("GC", &[("cni.dev/valid-attachments", json!([]))]).ok();
    assert_eq!(names(), 0);
}

#[test]
fn ten_at_once_all_get_their_own_address() {
    let Some(overlay) = overlay() else { return };
    let names: Vec<String> = (0..10).map(|number| format!("p{number}")).collect();
    let views: Vec<netns::View> = names.iter().map(|name| overlay.lab.add_namespace(name).unwrap()).collect();
    let calls: Vec<Cni> =
        names.iter().zip(&views).map(|(name, view)| Cni::new(&overlay.lab, "h1", "1.0.0", name, view)).collect();
    let added: Vec<Reply> = std::thread::scope(|scope| {
        let running: Vec<_> = calls.iter().map(|cni| scope.spawn(|| cni.call("ADD", &[]))).collect();
        running.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let mut given: Vec<String> = added.iter().map(|reply| address(&reply.ok(), 0)).collect();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 10);
    let there = overlay.container("h2c1").v4.to_string();
    for view in &views {
        assert!(ping(view, "-c 1 -W 2", &there).unwrap().is_lossless());
    }
    calls.iter().for_each(|cni| drop(cni.call("DEL", &[]).ok()));
    assert!(endpoints(&overlay, "h1").is_empty());
}

/// A daemon that is stopped and one that is killed: an error in time, and nothing that stays.
#[test]
fn daemon_that_hangs_or_is_gone_is_an_error_in_time_and_leaves_nothing() {
    let Some(overlay) = overlay() else { return };
    let view = overlay.lab.add_namespace("down").unwrap();
    let cni = Cni::new(&overlay.lab, "h2", "1.1.0", "down", &view);
    let result = cni.call("ADD", &[]).ok();
    cni.call("STATUS", &[]).ok();
    let other = overlay.lab.add_namespace("down2").unwrap();
    let second = Cni::new(&overlay.lab, "h2", "1.1.0", "down2", &other);
    let in_time = |verb: &str, code: u64| {
        let started = Instant::now();
        assert_eq!(second.call(verb, &[]).code(), code, "{verb}");
        assert!(started.elapsed() < Duration::from_secs(3), "{verb} took {:?}", started.elapsed());
    };
    let pid = overlay.lab.daemon_pid("h2").unwrap();
    let signal = |signal: i32| {
        // SAFETY: the process belongs to this lab and has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    signal(libc::SIGSTOP);
    in_time("ADD", 11);
    in_time("STATUS", 51);
    signal(libc::SIGCONT);
    overlay.lab.kill_daemon("h2").unwrap();
    in_time("ADD", 11);
    in_time("STATUS", 51);
    // A container can be ended all the same.
    cni.call("DEL", &[("prevResult", result)]).ok();
    assert!(!overlay_netns_harness::run_in(&view, &["ip", "link"]).unwrap().contains("eth0"));
    overlay.lab.start_daemon("h2").unwrap();
    overlay.lab.wait_ready(Duration::from_secs(20)).unwrap();
    wait_for("the daemon to free what is gone", LIMIT, || endpoints(&overlay, "h2").is_empty().then_some(())).unwrap();
    second.call("ADD", &[]).ok();
    assert!(ping(&other, "-c 1 -W 2", &overlay.container("h1c1").v4.to_string()).unwrap().is_lossless());
    second.call("DEL", &[]).ok();
}

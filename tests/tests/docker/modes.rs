//! Containers without a link of their own, by the real dockerd: on the host's network, and in another container's.

use overlay_control::api::Request;
use overlay_tests::Echo;
use serde_json::json;

use super::engine::{DEFAULT, DRIVER, Docker};
use super::{endpoints, nothing_left, overlay};

#[test]
fn host_is_the_host_to_the_overlay_and_container_shares_anothers_address() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let docker = Docker::started(&overlay.lab, "h1");
    docker.run(&format!("network create {DRIVER} {DEFAULT} front"));
    docker.start("main", "--network front", "sleep 600");
    docker.start("beside", "--network container:main", "httpd -f -p 80 -h /");
    docker.start("shared", "--network host", "sleep 600");
    let address = docker.address("main", "front");
    assert_eq!(endpoints(&overlay, "h1").len(), 1, "one link for the three");
    // Container mode: the one's address, the other's server, and the rules of the address for both.
    assert!(docker.fetch("main", "127.0.0.1").ends_with("the page"));
    let there = overlay.container("h2c1");
    let page = || {
        let get = format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 3 {address} 80");
        overlay_netns_harness::run_in(&there.view, &["sh", "-c", &get]).unwrap_or_default()
    };
    assert!(page().ends_with("the page"));
    let apply = |host: &str, rule: Option<String>| {
        let policy = rule.map(|rule| serde_json::from_value(json!({ "default": "members", "rules": [rule] })).unwrap());
        overlay.ask(host, Request::PolicyApply { policy }).unwrap();
    };
    apply("h1", Some(format!("reject tcp/80 from any to {address}")));
    let refused = page();
    apply("h1", None);
    assert_eq!(refused, "");
    // Host mode: the container is the host, its neighbours are not.
    let echo = Echo::start(there.view.namespace(), format!("{}:7", there.v4).parse().unwrap()).unwrap();
    let talks = |container: &str| {
        let script = format!("printf hello | nc -w 2 {} 7", echo.address().ip());
        let words = ["docker", "exec", container, "sh", "-c", &script];
        String::from_utf8_lossy(&docker.command(&words).output().unwrap().stdout).into_owned()
    };
    assert_eq!([talks("shared"), talks("main")], ["hello", "hello"]);
    apply("h2", Some("reject tcp/7 from 10.42.1.1 to any".to_owned()));
    let said = [talks("shared"), talks("main")];
    apply("h2", None);
    assert_eq!(said, ["", "hello"]);
    docker.run("rm -f beside");
    assert!(docker.pings("main", &there.v4.to_string()), "the address stays with its owner");
    docker.run("rm -f main shared");
    docker.run("network rm front");
    nothing_left(&overlay, "h1");
}

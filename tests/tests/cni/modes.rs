//! Containers without a link of their own, by the real podman: on the host's network, and in another container's.

use overlay_control::api::Request;
use overlay_tests::Overlay;
use serde_json::json;

use super::podman::{LIMITS, Podman, hosts};
use super::{endpoints, overlay};

/// Rules of a host for a while.
struct Rules<'a>(&'a Overlay, &'a str);

impl<'a> Rules<'a> {
    fn apply(overlay: &'a Overlay, host: &'a str, rule: &str) -> Rules<'a> {
        let policy = serde_json::from_value(json!({ "default": "members", "rules": [rule] })).unwrap();
        overlay.ask(host, Request::PolicyApply { policy: Some(policy) }).unwrap();
        Rules(overlay, host)
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        let _ = self.0.ask(self.1, Request::PolicyApply { policy: None });
    }
}

#[test]
fn host_is_the_host_to_the_overlay_and_container_shares_anothers_address() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let engines = hosts(&overlay);
    on_the_hosts_network(&overlay, &engines);
    in_anothers_network(&overlay, &engines);
}

fn on_the_hosts_network(overlay: &Overlay, [one, two]: &[Podman; 2]) {
    two.start("web", "", "httpd -f -p 80 -h /");
    let web = two.address("web");
    one.start("own", "", "sleep 600");
    one.run(&format!("run -d --name shared {LIMITS} --network host box httpd -f -p 8091 -h /"));
    let mine: Vec<String> = endpoints(overlay, "h1").into_iter().map(|one| one.name).collect();
    assert_eq!(mine.len(), 1, "the container with a link alone: {mine:?}");
    let gets = |container: &str| one.run_shell(container, &format!("sh /fetch {web}")).ends_with("the page");
    assert!(gets("shared") && gets("own"));
    // It has the host's identity: what concerns the host concerns it, and not its neighbours.
    let rules = Rules::apply(overlay, "h2", "reject tcp/80 from 10.42.1.1 to any");
    assert!(!gets("shared"), "refused as the host");
    assert!(gets("own"));
    drop(rules);
    assert!(gets("shared"));
    // Its ports are the host's: closed to the overlay until a rule opens them.
    let ask = |what: &str| two.run_shell("web", &format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {what}"));
    assert_eq!(ask("10.42.1.1 8091"), "");
    let rules = Rules::apply(overlay, "h1", "allow tcp/8091 from any to 10.42.1.1");
    assert!(ask("10.42.1.1 8091").ends_with("the page"));
    drop(rules);
    one.run("rm --force --time 0 shared own");
    two.run("rm --force --time 0 web");
    assert!(endpoints(overlay, "h1").is_empty() && endpoints(overlay, "h2").is_empty());
}

fn in_anothers_network(overlay: &Overlay, [one, two]: &[Podman; 2]) {
    one.start("main", "", "sleep 600");
    two.start("client", "", "sleep 600");
    let address = one.address("main");
    one.run(&format!("run -d --name beside {LIMITS} --network container:main box httpd -f -p 80 -h /"));
    assert_eq!(one.address("beside"), address);
    assert_eq!(endpoints(overlay, "h1").len(), 1, "one endpoint for both");
    let page = || two.run_shell("client", &format!("sh /fetch {address}"));
    assert!(page().ends_with("the page"), "the one's address, the other's server");
    assert!(one.run_shell("main", "sh /fetch 127.0.0.1").ends_with("the page"));
    // A rule for the address holds for both.
    let rules = Rules::apply(overlay, "h1", &format!("reject tcp/80 from any to {address}"));
    assert_eq!(page(), "");
    drop(rules);
    one.run("rm --force --time 0 beside");
    assert_eq!(page(), "", "its server went with it");
    assert!(overlay.reaches("h2c1", address.parse().unwrap()), "the address did not");
    one.run("rm --force --time 0 main");
    two.run("rm --force --time 0 client");
    assert!(endpoints(overlay, "h1").is_empty() && endpoints(overlay, "h2").is_empty());
}

//! Networks: one by its name on all hosts, apart from each other on one host and across hosts, and the addresses of each.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::netns::View;
use overlay_netns_harness::{Binaries, Container, HostSpec, Lab, ip, netns, ping, wait_for};
use overlay_tests::{Certified, Overlay, SharedLab, can_make_namespaces, lab_name};
use serde_json::Value;
use std::net::IpAddr;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

static STATIC: SharedLab<Overlay> = SharedLab::new();

/// Attaches a new namespace to a host; `more` are further words of `endpoint add`.
fn attach(lab: &Lab, host: &str, name: &str, more: &[&str]) -> Container {
    let view = lab.add_namespace(name).unwrap();
    let words = [&["endpoint", "add", name, "--netns", view.namespace()], more].concat();
    lab.ctl_ok(host, &words).unwrap();
    lab.container(name).unwrap()
}

/// Runs a command that must fail; its exit code and message.
fn refused(lab: &Lab, host: &str, words: &[&str]) -> (i32, String) {
    let output = lab.ctl(host, words).unwrap();
    let code = output.status.code().unwrap();
    assert_ne!(code, 0, "on {host}: overlayctl {} went well", words.join(" "));
    (code, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn reaches_ip(from: &Container, to: IpAddr) -> bool {
    ping(&from.view, "-c 1 -W 2", &to.to_string()).is_ok_and(|report| report.is_lossless())
}

/// Over IPv4 and IPv6; the two must agree.
fn reaches(from: &Container, to: &Container) -> bool {
    let (v4, v6) = (reaches_ip(from, to.v4.into()), reaches_ip(from, to.v6.into()));
    assert_eq!(v4, v6, "{} to {}: IPv4 {v4}, IPv6 {v6}", from.name, to.name);
    v4
}

fn wait_reaches(from: &Container, to: &Container) {
    let both = || (reaches_ip(from, to.v4.into()) && reaches_ip(from, to.v6.into())).then_some(());
    wait_for(&format!("{} to reach {}", from.name, to.name), LIMIT, both).unwrap();
}

fn show(lab: &Lab, host: &str, network: &str) -> Option<Value> {
    lab.ctl_json(host, &["network", "show", network]).ok()
}

fn knows(lab: &Lab, host: &str, network: &str) -> Value {
    wait_for(&format!("{host} to know {network}"), LIMIT, || show(lab, host, network)).unwrap().0
}

#[test]
fn networks_are_one_by_name_and_apart_from_each_other() {
    if !can_make_namespaces("netsname") {
        return;
    }
    let certified = Certified::cluster(&lab_name("netsname"), Binaries::for_tests().unwrap(), 2).unwrap();
    let lab = &certified.lab;
    let _logs = lab.logs_on_failure();
    let (h1c1, h2c1) = (lab.container("h1c1").unwrap(), lab.container("h2c1").unwrap());
    let (code, said) =
        refused(lab, "h2", &["endpoint", "add", "x", "--netns", h2c1.view.namespace(), "--network", "web"]);
    assert!(code == 4 && said.contains("network create web"), "{code} {said}");

    // Made on one host, used on both; no address is typed anywhere.
    lab.ctl_ok("h1", &["network", "create", "web"]).unwrap();
    lab.ctl_ok("h1", &["network", "create", "db"]).unwrap();
    knows(lab, "h2", "web");
    let h1web = attach(lab, "h1", "h1web", &["--network", "web"]);
    let h2web = attach(lab, "h2", "h2web", &["--network", "web"]);
    // The first packet finds every host aware of the new blocks.
    assert!(reaches(&h2web, &h1web) && reaches(&h1web, &h2web));
    let h1db = attach(lab, "h1", "h1db", &["--network", "db"]);
    let shown = knows(lab, "h1", "web");
    let hosts = shown["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), 2, "{shown}");
    assert!(hosts.iter().all(|host| host["blocks"].as_array().unwrap().len() == 2), "{shown}");

    wait_reaches(&h1c1, &h2c1);
    for (one, other) in [(&h1c1, &h1web), (&h1db, &h1web), (&h2c1, &h1web), (&h2web, &h1c1), (&h2web, &h1db)] {
        assert!(!reaches(one, other) && !reaches(other, one), "{} and {}", one.name, other.name);
    }
    assert!(reaches(&h1web, &h2web) && reaches(&h1c1, &h2c1), "what is one network still talks");

    // A rule opens one way between two networks, on one host and across hosts.
    let rules = "allow icmp from net:web to net:db\nallow icmpv6 from net:web to net:db\n";
    std::fs::write(lab.host("h1").unwrap().path("/run/overlay/rules"), rules).unwrap();
    lab.ctl_ok("h1", &["policy", "apply", "/run/overlay/rules"]).unwrap();
    assert!(reaches(&h2web, &h1db) && reaches(&h1web, &h1db));
    assert!(!reaches(&h1db, &h1web) && !reaches(&h1db, &h2web) && !reaches(&h1c1, &h1db));
    let unknown = "allow icmp from net:nobody to any\n";
    std::fs::write(lab.host("h1").unwrap().path("/run/overlay/rules"), unknown).unwrap();
    let warned = lab.ctl_ok("h1", &["policy", "check", "/run/overlay/rules"]).unwrap();
    assert!(warned.contains("there is no network `nobody`"), "{warned}");

    // It stays while it is used, and on the hosts that have it.
    let (code, said) = refused(lab, "h1", &["network", "rm", "web"]);
    assert!(code == 5 && said.contains("h1web"), "{code} {said}");
    lab.ctl_ok("h1", &["endpoint", "rm", "h1web"]).unwrap();
    lab.ctl_ok("h1", &["network", "rm", "web"]).unwrap();
    assert_eq!(knows(lab, "h1", "web")["here"], false);
    let (code, said) = refused(lab, "h1", &["network", "rm", "web"]);
    assert!(code == 5 && said.contains("h2"), "{code} {said}");
    lab.ctl_ok("h2", &["endpoint", "rm", "h2web"]).unwrap();
    lab.ctl_ok("h2", &["network", "rm", "web"]).unwrap();
    wait_for("the network to end", LIMIT, || show(lab, "h1", "web").is_none().then_some(())).unwrap();
    // A restart forgets nothing.
    lab.stop_daemon("h1").unwrap();
    lab.start_daemon("h1").unwrap();
    lab.wait_ready(LIMIT).unwrap();
    assert_eq!(knows(lab, "h1", "db")["endpoints"][0], "h1db");
    assert!(!reaches(&h1c1, &h1db));
    wait_reaches(&h1c1, &h2c1);
}

fn static_hosts(subject: &str) -> Option<impl std::ops::Deref<Target = Overlay>> {
    let make = |name: &str, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {});
    STATIC.lease(subject, make, |overlay| &overlay.lab)
}

/// Puts rules in force on one host alone.
fn local_rules(lab: &Lab, host: &str, rules: &str) {
    std::fs::write(lab.host(host).unwrap().path("/run/overlay/rules"), rules).unwrap();
    lab.ctl_ok(host, &["policy", "apply", "/run/overlay/rules", "--local"]).unwrap();
}

#[test]
fn both_hosts_of_a_flow_keep_networks_apart() {
    let Some(overlay) = static_hosts("netsstat") else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    let sender = overlay.container("h2c1");
    lab.ctl_ok("h1", &["network", "create", "ends"]).unwrap();
    let receiver = attach(lab, "h1", "ends1", &["--network", "ends"]);
    // Without certificates the records travel all the same.
    knows(lab, "h2", "ends");
    let open = "allow icmp from net:default to net:ends\nallow icmpv6 from net:default to net:ends\n";
    assert!(!reaches(sender, &receiver));
    local_rules(lab, "h2", open);
    assert!(!reaches(sender, &receiver), "the receiver refuses");
    local_rules(lab, "h1", open);
    wait_reaches(sender, &receiver);
    lab.ctl_ok("h2", &["policy", "apply", "--reset", "--local"]).unwrap();
    assert!(!reaches(sender, &receiver), "the sender refuses");
    lab.ctl_ok("h1", &["policy", "apply", "--reset", "--local"]).unwrap();
    lab.ctl_ok("h1", &["endpoint", "rm", "ends1"]).unwrap();
    lab.ctl_ok("h1", &["network", "rm", "ends"]).unwrap();
}

#[test]
fn internal_network_has_no_way_out_whatever_the_rules_say() {
    let Some(overlay) = static_hosts("netsstat") else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    lab.ctl_ok("h1", &["network", "create", "quiet", "--internal"]).unwrap();
    let inside = attach(lab, "h1", "quiet1", &["--network", "quiet"]);
    knows(lab, "h2", "quiet");
    let neighbour = attach(lab, "h2", "quiet2", &["--network", "quiet"]);
    // Another host's address on the underlay is outside: the way there is masqueraded, for both families.
    let h2 = lab.host("h2").unwrap();
    let outside: [IpAddr; 2] = [h2.underlay_v4().into(), h2.underlay_v6().into()];
    let free = overlay.container("h1c1");
    for address in outside {
        wait_for(&format!("the way out to {address}"), LIMIT, || reaches_ip(free, address).then_some(())).unwrap();
        assert!(!reaches_ip(&inside, address), "{address}");
    }
    wait_reaches(&inside, &neighbour);
    local_rules(lab, "h1", "allow any from any to any\n");
    assert!(reaches(free, &inside), "the rule is in force");
    for address in outside {
        assert!(!reaches_ip(&inside, address), "{address} in spite of a rule");
        assert!(reaches_ip(free, address), "{address}");
    }
    lab.ctl_ok("h1", &["policy", "apply", "--reset", "--local"]).unwrap();
    for (host, name) in [("h1", "quiet1"), ("h2", "quiet2")] {
        lab.ctl_ok(host, &["endpoint", "rm", name]).unwrap();
        lab.ctl_ok(host, &["network", "rm", "quiet"]).unwrap();
    }
}

#[test]
fn hosts_that_disagree_are_listed_and_all_follow_the_stricter() {
    let Some(overlay) = static_hosts("netsstat") else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    lab.cut("h2").unwrap();
    lab.ctl_ok("h1", &["network", "create", "split"]).unwrap();
    lab.ctl_ok("h2", &["network", "create", "split", "--internal"]).unwrap();
    lab.heal("h2").unwrap();
    for host in ["h1", "h2"] {
        let both = || show(lab, host, "split").filter(|shown| shown["hosts"].as_array().unwrap().len() == 2);
        let (shown, _) = wait_for(&format!("{host} to hear of both"), LIMIT, both).unwrap();
        assert_eq!(shown["internal"], true, "{shown}");
        let wants: Vec<&str> =
            shown["hosts"].as_array().unwrap().iter().filter_map(|host| host["wants"].as_str()).collect();
        assert!(wants.contains(&"routed") && wants.contains(&"routed internal"), "{shown}");
        let status = lab.ctl_json(host, &["status"]).unwrap();
        let problems = status["problems"].as_array().unwrap();
        let problem = problems.iter().find(|problem| problem["code"] == "NETWORK_CONFLICT");
        let why = problem.unwrap_or_else(|| panic!("{status}"))["why"].as_str().unwrap();
        assert!(why.contains("h1 wants it routed;") || why.contains("; h1 wants it routed"), "{why}");
    }
    // A later host is told instead of adding to it.
    let (code, said) = refused(lab, "h2", &["network", "create", "split", "--mode", "bridge"]);
    assert!(code == 5 && said.contains("h1 wants it routed"), "{code} {said}");
    lab.ctl_ok("h1", &["network", "rm", "split"]).unwrap();
    lab.ctl_ok("h2", &["network", "rm", "split"]).unwrap();
    wait_for("the network to end", LIMIT, || show(lab, "h1", "split").is_none().then_some(())).unwrap();
}

/// What a command prints in a host's or container's namespace.
fn within(view: &View, words: &str) -> String {
    let words: Vec<&str> = words.split_whitespace().collect();
    let output = netns::command(view, &words).unwrap().output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn bridge_joins_neighbours_unfiltered_and_binds_them_all_the_same() {
    let Some(overlay) = static_hosts("netsstat") else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    lab.ctl_ok("h1", &["network", "create", "wide", "--mode", "bridge"]).unwrap();
    let one = attach(lab, "h1", "wide1", &["--network", "wide"]);
    let two = attach(lab, "h1", "wide2", &["--network", "wide"]);
    knows(lab, "h2", "wide");
    let far = attach(lab, "h2", "wide3", &["--network", "wide"]);
    for (from, to) in [(&one, &two), (&two, &one), (&one, &far), (&far, &two)] {
        wait_reaches(from, to);
    }
    let outside = lab.host("h2").unwrap();
    for address in [IpAddr::V4(outside.underlay_v4()), IpAddr::V6(outside.underlay_v6())] {
        wait_for("the way out", LIMIT, || reaches_ip(&one, address).then_some(())).unwrap();
    }
    assert!(!reaches(&one, overlay.container("h1c1")) && !reaches(overlay.container("h1c1"), &one));
    assert!(knows(lab, "h1", "wide")["notes"].to_string().contains("nothing is filtered"));
    let status = lab.ctl_json("h1", &["status"]).unwrap();
    assert!(status["problems"].to_string().contains("BRIDGE_UNFILTERED"), "{status}");
    assert!(!within(&one.view, "ip -6 -o address show dev eth0").contains("tentative"));

    // The filter is beside the bridge, and at every other way.
    local_rules(lab, "h1", "deny any from net:wide to net:wide\n");
    assert!(!reaches(&far, &one) && !reaches(&one, &far));
    assert!(reaches(&one, &two), "neighbours are not filtered");
    lab.ctl_ok("h1", &["policy", "apply", "--reset", "--local"]).unwrap();
    wait_reaches(&far, &one);

    // Nobody speaks for another: neither packets nor ARP nor neighbour advertisements reach a neighbour.
    let h1 = lab.host("h1").unwrap().view().clone();
    let others: [IpAddr; 2] = {
        let high = |address: IpAddr| match address {
            IpAddr::V4(v4) => IpAddr::from((u32::from(v4) | 0x1e).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) | 0xbeef).to_be_bytes()),
        };
        [high(one.v4.into()), high(one.v6.into())]
    };
    for (spoofed, to) in others.into_iter().zip([IpAddr::from(two.v4), two.v6.into()]) {
        let option = if spoofed.is_ipv6() { "nodad" } else { "" };
        within(&one.view, &format!("ip address add {spoofed} dev eth0 {option}"));
        let report = ping(&one.view, &format!("-c 2 -i 0.2 -W 1 -I {spoofed}"), &to.to_string());
        assert!(!report.is_ok_and(|report| report.received > 0), "{spoofed} was answered");
        // And it does not take in what is for the address.
        let report = ping(&two.view, "-c 2 -i 0.2 -W 1", &spoofed.to_string());
        assert!(!report.is_ok_and(|report| report.received > 0), "{spoofed} answered");
        let known = within(&two.view, &format!("ip neigh show to {spoofed}"));
        assert!(!known.contains("lladdr"), "{known}");
        // Without the table it would work, until the daemon has put it back.
        let loose = || {
            within(&h1, "nft delete table bridge overlay");
            let report = ping(&one.view, &format!("-c 2 -i 0.2 -W 1 -I {spoofed}"), &to.to_string());
            report.is_ok_and(|report| report.received > 0).then_some(())
        };
        wait_for(&format!("{spoofed} to be answered without the table"), LIMIT, loose).unwrap();
        wait_for("the table to be back", LIMIT, || {
            within(&h1, "nft list tables").contains("table bridge overlay").then_some(())
        })
        .unwrap();
        within(&one.view, &format!("ip address del {spoofed} dev eth0"));
    }
    assert!(within(&two.view, &format!("ip neigh show to {}", one.v4)).contains("lladdr"), "the true one is known");
    assert!(reaches(&one, &two));

    // The bridge outlives a restart, and goes with its last container.
    lab.stop_daemon("h1").unwrap();
    lab.start_daemon("h1").unwrap();
    lab.wait_ready(LIMIT).unwrap();
    wait_reaches(&one, &two);
    wait_reaches(&far, &one);
    assert!(within(&h1, "nft list tables").contains("table bridge overlay"));
    lab.ctl_ok("h1", &["endpoint", "rm", "wide1"]).unwrap();
    wait_reaches(&far, &two);
    lab.ctl_ok("h1", &["endpoint", "rm", "wide2"]).unwrap();
    lab.ctl_ok("h2", &["endpoint", "rm", "wide3"]).unwrap();
    assert!(!within(&h1, "ip -o link show type bridge").contains("ob"));
    assert!(!within(&h1, "nft list tables").contains("table bridge overlay"));
    lab.ctl_ok("h1", &["network", "rm", "wide"]).unwrap();
    lab.ctl_ok("h2", &["network", "rm", "wide"]).unwrap();
}

/// The addresses that a host holds, as `state holder`.
fn held(lab: &Lab, host: &str, address: IpAddr) -> Option<String> {
    let list = lab.ctl_json(host, &["ipam", "list"]).unwrap();
    let found = list["addresses"].as_array()?.iter().find(|entry| entry["address"] == address.to_string())?.clone();
    let endpoint = found["endpoint"].as_str().unwrap_or_default();
    Some(format!("{} {endpoint}", found["state"].as_str()?).trim().to_owned())
}

#[test]
fn addresses_have_holders_rest_after_use_and_are_put_right() {
    let Some(overlay) = static_hosts("netsstat") else { return };
    let lab = &overlay.lab;
    let _logs = lab.logs_on_failure();
    let first = attach(lab, "h1", "held", &[]);
    assert_eq!(held(lab, "h1", first.v4.into()).as_deref(), Some("used held"));
    // Refused with the holder's name: on this host, and on another.
    let view = lab.add_namespace("wants").unwrap();
    let claim =
        |address: &str| refused(lab, "h1", &["endpoint", "add", "wants", "--netns", view.namespace(), "--ip", address]);
    let (code, said) = claim(&first.v4.to_string());
    assert!(code == 5 && said.contains("endpoint held has it"), "{code} {said}");
    let (code, said) = claim(&overlay.container("h2c1").v4.to_string());
    assert!(code == 5 && said.contains("h2 owns it"), "{code} {said}");
    // The same name again gets another address, and the one before rests.
    lab.ctl_ok("h1", &["endpoint", "rm", "held"]).unwrap();
    lab.ctl_ok("h1", &["endpoint", "add", "held", "--netns", first.view.namespace()]).unwrap();
    let second = lab.container("held").unwrap();
    assert_ne!(second.v4, first.v4);
    assert_eq!(held(lab, "h1", first.v4.into()).as_deref(), Some("resting held"));
    let (_, said) = claim(&first.v4.to_string());
    assert!(said.contains("endpoint held had it"), "{said}");
    lab.ctl_ok("h1", &["ipam", "release", &first.v4.to_string()]).unwrap();
    assert_eq!(held(lab, "h1", first.v4.into()), None);
    let (code, said) = refused(lab, "h1", &["ipam", "release", &second.v4.to_string()]);
    assert!(code == 5 && said.contains("endpoint rm held"), "{code} {said}");
    lab.ctl_ok("h1", &["ipam", "reserve", &first.v4.to_string()]).unwrap();
    let (_, said) = claim(&first.v4.to_string());
    assert!(said.contains("it is reserved"), "{said}");
    lab.ctl_ok("h1", &["ipam", "release", &first.v4.to_string()]).unwrap();
    // Nothing is wrong, then a link without a lease appears, and is put right.
    let check = |more: &[&str]| lab.ctl("h1", &[&["--json", "ipam", "check"], more].concat()).unwrap();
    let clean = check(&[]);
    assert_eq!(clean.status.code(), Some(0), "{}", String::from_utf8_lossy(&clean.stdout));
    let namespace = lab.host("h1").unwrap().view().namespace().to_owned();
    ip(&format!("-n {namespace} link add ov00000000ff type veth peer name op00000000ff")).unwrap();
    let group = ip(&format!("-n {namespace} -o link show")).unwrap();
    let group = group.lines().find(|line| line.contains(": ov") && !line.contains(": overlay0")).unwrap();
    let group = group.split(" group ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    ip(&format!("-n {namespace} link set ov00000000ff group {group}")).unwrap();
    let found = check(&[]);
    assert!(found.status.code() == Some(10) && String::from_utf8_lossy(&found.stdout).contains("ov00000000ff"));
    assert_eq!(check(&["--fix"]).status.code(), Some(0));
    assert_eq!(check(&[]).status.code(), Some(0));
    assert!(!ip(&format!("-n {namespace} link show")).unwrap().contains("ov00000000ff"));
    assert!(reaches(&second, overlay.container("h2c1")), "what is right is left alone");
    lab.ctl_ok("h1", &["endpoint", "rm", "held"]).unwrap();
}

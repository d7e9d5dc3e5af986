//! The Docker plugin with the real dockerd on two hosts, and called as dockerd calls it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod calls;
mod engine;
mod faults;
mod modes;

use engine::{DRIVER, Docker};
use overlay_control::api::{AddressBook, EndpointInfo, Request, Response};
use overlay_netns_harness::{HostSpec, packages, run_in, wait_for};
use overlay_tests::{Overlay, SharedLab, can_have};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// Plugin, daemon and dockerd are compared every half minute; what only that finds is gone after it.
const COMPARED: Duration = Duration::from_secs(45);

/// Two hosts with daemons, and Docker installed.
pub(crate) fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    let overlay = LAB.lease(
        "docker",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {}),
        |overlay| &overlay.lab,
    )?;
    let words = ["docker.io", "docker-compose", "iptables", "busybox-static"];
    let missing: Vec<&str> = words.into_iter().filter(|word| !packages::installed(word)).collect();
    if !missing.is_empty() {
        can_have("docker", packages::install(&missing))?;
    }
    Some(overlay)
}

/// What the daemon has for Docker.
pub(crate) fn endpoints(overlay: &Overlay, host: &str) -> Vec<EndpointInfo> {
    match overlay.ask(host, Request::EndpointList).unwrap() {
        Response::Endpoints(endpoints) => endpoints.into_iter().filter(|one| one.owner.is_some()).collect(),
        other => panic!("{}", other.name()),
    }
}

/// Prefixes and held addresses.
pub(crate) fn book(overlay: &Overlay, host: &str) -> AddressBook {
    match overlay.ask(host, Request::AddressList).unwrap() {
        Response::Addresses(book) => book,
        other => panic!("{}", other.name()),
    }
}

/// Waits until nothing of Docker's is left at a daemon.
pub(crate) fn nothing_left(overlay: &Overlay, host: &str) {
    let is_clean = || (endpoints(overlay, host).is_empty() && book(overlay, host).held.is_empty()).then_some(());
    wait_for("everything of Docker's to go", COMPARED, is_clean)
        .unwrap_or_else(|error| panic!("{error:#}: {:?} {:?}", endpoints(overlay, host), book(overlay, host).held));
    let links = run_in(&overlay.lab.view(host).unwrap(), &["ip", "-o", "link", "show", "group", "42"]).unwrap();
    assert_eq!(links.lines().count(), 1, "the lab's own container alone: {links}");
}

#[test]
fn one_command_on_each_host_joins_containers_through_a_dropping_forward_chain() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (one, two) = (Docker::started(&overlay.lab, "h1"), Docker::started(&overlay.lab, "h2"));
    for docker in [&one, &two] {
        docker.run(&format!("network create {DRIVER} --ipv6 front"));
        // As Docker does where it switches forwarding on itself.
        assert!(docker.command(&["iptables", "-P", "FORWARD", "DROP"]).status().unwrap().success());
    }
    one.start("web", "--network front --mac-address 02:00:00:00:00:80", "httpd -f -p 80 -h /");
    two.start("client", "--network front", "sleep 600");
    let (web, client) = (one.address("web", "front"), two.address("client", "front"));
    assert!(web.starts_with("10.42.1.") && client.starts_with("10.42.2."), "{web} {client}");
    assert!(one.run("exec web ip link show dev eth0").contains("02:00:00:00:00:80"));
    // Both ways, both families, at once; and the gateway of the network, which is the host.
    let page = two.fetch("client", &web);
    assert!(page.starts_with("HTTP/1.") && page.ends_with("the page"), "{page:?}");
    assert!(one.pings("web", &client));
    let v6 = one.run("inspect -f {{.NetworkSettings.Networks.front.GlobalIPv6Address}} web");
    assert!(v6.starts_with("fd42:0:0:1:") && two.pings("client", &v6), "{v6}");
    let gateway = two.run("inspect -f {{.NetworkSettings.Networks.front.Gateway}} client");
    assert!(gateway.starts_with("10.42.2.") && two.pings("client", &gateway), "{gateway}");
    // A neighbour on the same host, and a container of the lab that Docker does not know.
    two.start("neighbour", "--network front", "sleep 600");
    assert!(two.pings("client", &two.address("neighbour", "front")));
    assert!(two.pings("client", &overlay.container("h1c1").v4.to_string()));
    assert!(overlay.reaches("h2c1", web.parse().unwrap()));
    // Restarted, it has an address that nobody had a moment ago.
    two.run("restart -t 0 client");
    assert_ne!(two.address("client", "front"), client);
    assert!(two.pings("client", &web));
    for (docker, names) in [(&one, "web"), (&two, "client neighbour")] {
        docker.run(&format!("rm -f {names}"));
        docker.run("network rm front");
    }
    for host in ["h1", "h2"] {
        nothing_left(&overlay, host);
    }
}

#[test]
fn addresses_ranges_and_networks_are_as_asked_for_or_refused_with_the_reason() {
    let Some(overlay) = overlay() else { return };
    let docker = Docker::started(&overlay.lab, "h1");
    let subnet =
        "--subnet 10.42.1.128/26 --gateway 10.42.1.190 --aux-address rtr=10.42.1.140 --ip-range 10.42.1.144/30";
    docker.run(&format!("network create {DRIVER} {subnet} -o com.docker.network.driver.mtu=1300 named"));
    docker.start("fixed", "--network named --ip 10.42.1.150", "sleep 600");
    assert_eq!(docker.address("fixed", "named"), "10.42.1.150");
    let shown = docker.run("exec fixed ip address show dev eth0");
    assert!(shown.contains("mtu 1300") && shown.contains("10.42.1.150/32"), "{shown}");
    assert!(docker.run("exec fixed ip route").contains("default via 10.42.1.190"));
    // The same address after a restart, and for nobody else.
    docker.run("restart -t 0 fixed");
    assert_eq!(docker.address("fixed", "named"), "10.42.1.150");
    assert!(docker.pings("fixed", &overlay.container("h2c1").v4.to_string()));
    for taken in ["10.42.1.150", "10.42.1.190", "10.42.1.140"] {
        let said = docker.refused(&format!("run --rm --network named --ip {taken} box sleep 1"));
        assert!(said.contains(taken) && said.contains("has it"), "{said}");
    }
    // The range has four addresses.
    (0..4).for_each(|number| docker.start(&format!("r{number}"), "--network named", "sleep 600"));
    let said = docker.refused("run --rm --network named box sleep 1");
    assert!(said.contains("no free address") && said.contains("10.42.1.144/30"), "{said}");
    // Other hosts' addresses, and those of others on this host.
    for (subnet, why) in [
        ("10.42.2.0/24", "not of this host"),
        ("192.168.9.0/24", "not of this host"),
        ("10.42.1.128/25", "overlaps 10.42.1.128/26"),
    ] {
        let said = docker.refused(&format!("network create {DRIVER} --subnet {subnet} other"));
        assert!(said.contains(why), "{said}");
    }
    assert!(docker.refused("network create -d overlayd other").contains("--ipam-driver overlayd"));
    assert!(docker.refused(&format!("network create {DRIVER} -o colour=red other")).contains("colour"));
    docker.run("rm -f fixed r0 r1 r2 r3");
    docker.run("network rm named");
    nothing_left(&overlay, "h1");
}

#[test]
fn container_in_several_networks_answers_in_each_and_an_internal_one_has_no_way_out() {
    let Some(overlay) = overlay() else { return };
    let docker = Docker::started(&overlay.lab, "h1");
    docker.run(&format!("network create {DRIVER} --ipv6 left"));
    docker.run(&format!("network create {DRIVER} --ipv6 right"));
    docker.run(&format!("network create {DRIVER} --internal inside"));
    docker.start("both", "--network left", "sleep 600");
    docker.run("network connect right both");
    docker.start("shut", "--network inside", "sleep 600");
    let far = overlay.container("h2c1");
    for network in ["left", "right"] {
        let address = docker.address("both", network);
        assert!(overlay.reaches("h2c1", address.parse().unwrap()), "{address} in {network}");
    }
    assert!(docker.pings("both", &far.v4.to_string()) && docker.pings("both", &far.v6.to_string()));
    docker.run("network disconnect left both");
    assert!(docker.pings("both", &far.v4.to_string()) && docker.pings("both", &far.v6.to_string()));
    // The overlay is all that an internal network has. The control: the same packets of one that is not internal arrive.
    let outside = overlay.lab.host("h2").unwrap().underlay_v4().to_string();
    assert!(docker.pings("both", &outside), "masqueraded to the other host's own address");
    assert!(docker.pings("shut", &far.v4.to_string()) && !docker.pings("shut", &outside));
    assert!(!docker.run("exec shut ip link").contains("eth1"), "no bridge of Docker's leads around it");
    docker.run("rm -f both shut");
    docker.run("network rm left right inside");
    nothing_left(&overlay, "h1");
}

#[test]
fn compose_file_of_the_examples_runs() {
    let Some(overlay) = overlay() else { return };
    let docker = Docker::started(&overlay.lab, "h1");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/compose.yml");
    let compose = |words: &[&str]| {
        let all = [&["docker-compose", "-p", "shop", "-f", file], words].concat();
        let output = docker.command(&all).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    docker.run("tag box shop/web");
    docker.run("tag box shop/client");
    compose(&["up", "-d", "--no-build"]);
    let address = docker.address("shop_web_1", "shop_default");
    assert!(address.starts_with("10.42.1."), "{address}");
    assert!(overlay.reaches("h2c1", address.parse().unwrap()));
    let page = docker.fetch("shop_client_1", &address);
    assert!(page.ends_with("the page"), "{page:?}");
    compose(&["down"]);
    nothing_left(&overlay, "h1");
}

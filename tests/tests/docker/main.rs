//! The Docker plugin with the real dockerd on two hosts, and called as dockerd calls it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod calls;
mod chaos;
mod compose;
mod engine;
mod faults;
mod modes;
mod networks;
mod ports;
mod transcripts;

use engine::{DEFAULT, DRIVER, Docker};
use overlay_control::api::{AddressBook, EndpointInfo, NetworkInfo, NetworkRequest, Request, Response};
use overlay_netns_harness::{Container, HostSpec, packages, run_in, wait_for};
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

/// The networks of the cluster that a host takes part in, but for the default one.
pub(crate) fn networks(overlay: &Overlay, host: &str) -> Vec<NetworkInfo> {
    match overlay.ask(host, Request::Network(NetworkRequest::List)).unwrap() {
        Response::Networks(networks) => networks.into_iter().filter(|one| one.here && one.name != "default").collect(),
        other => panic!("{}", other.name()),
    }
}

/// A container of the lab, which Docker knows nothing of, in a network of the cluster; it ends when it is dropped.
pub(crate) struct Outsider<'a> {
    overlay: &'a Overlay,
    host: &'static str,
    pub(crate) container: Container,
}

impl<'a> Outsider<'a> {
    pub(crate) fn attach(overlay: &'a Overlay, host: &'static str, name: &str, network: &str) -> Outsider<'a> {
        let view = overlay.lab.add_namespace(name).unwrap();
        let words = ["endpoint", "add", name, "--netns", view.namespace(), "--network", network];
        overlay.lab.ctl_ok(host, &words).unwrap();
        Outsider { overlay, host, container: overlay.lab.container(name).unwrap() }
    }

    pub(crate) fn reaches(&self, address: &str) -> bool {
        let report = overlay_netns_harness::ping(&self.container.view, "-c 1 -W 2", address);
        report.is_ok_and(|report| report.is_lossless())
    }
}

impl Drop for Outsider<'_> {
    fn drop(&mut self) {
        let _ = self.overlay.lab.ctl(self.host, &["endpoint", "rm", &self.container.name]);
    }
}

/// Waits until nothing of Docker's is left at a daemon.
pub(crate) fn nothing_left(overlay: &Overlay, host: &str) {
    let left = || (endpoints(overlay, host), book(overlay, host).held, networks(overlay, host));
    let is_clean = || matches!(left(), (a, b, c) if a.is_empty() && b.is_empty() && c.is_empty()).then_some(());
    wait_for("everything of Docker's to go", COMPARED, is_clean)
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", left()));
    let links = run_in(&overlay.lab.view(host).unwrap(), &["ip", "-o", "link", "show", "group", "42"]).unwrap();
    assert_eq!(links.lines().count(), 1, "the lab's own container alone: {links}");
}

#[test]
fn addresses_ranges_and_networks_are_as_asked_for_or_refused_with_the_reason() {
    let Some(overlay) = overlay() else { return };
    let docker = Docker::started(&overlay.lab, "h1");
    let subnet =
        "--subnet 10.42.1.128/26 --gateway 10.42.1.190 --aux-address rtr=10.42.1.140 --ip-range 10.42.1.144/30";
    docker.run(&format!("network create {DRIVER} {DEFAULT} {subnet} -o com.docker.network.driver.mtu=1300 named"));
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
fn container_in_several_networks_answers_and_asks_in_each_and_an_internal_one_has_no_way_out() {
    let Some(overlay) = overlay() else { return };
    let docker = Docker::started(&overlay.lab, "h1");
    // Other hosts have their parts of the networks before, which containers are told of when they join.
    overlay.lab.ctl_ok("h2", &["network", "create", "left"]).unwrap();
    overlay.lab.ctl_ok("h2", &["network", "create", "right"]).unwrap();
    overlay.lab.ctl_ok("h2", &["network", "create", "inside", "--internal"]).unwrap();
    let far = ["left", "right", "inside"].map(|name| Outsider::attach(&overlay, "h2", &format!("h2{name}"), name));
    docker.run(&format!("network create {DRIVER} --ipv6 left"));
    docker.run(&format!("network create {DRIVER} --ipv6 right"));
    docker.run(&format!("network create {DRIVER} --internal inside"));
    docker.start("both", "--network left", "sleep 600");
    docker.run("network connect right both");
    docker.start("shut", "--network inside", "sleep 600");
    let v4 = far.each_ref().map(|one| one.container.v4.to_string());
    let pings = |name: &str, to: &str| docker.pings(name, to);
    for (number, network) in ["left", "right"].into_iter().enumerate() {
        let address = docker.address("both", network);
        assert!(far[number].reaches(&address), "{address} in {network}");
        assert!(!far[1 - number].reaches(&address), "{address} from another network than {network}");
        // From its address of that network, over that network's link.
        assert!(pings("both", &v4[number]) && pings("both", &far[number].container.v6.to_string()), "{network}");
    }
    docker.run("network disconnect left both");
    assert!(pings("both", &v4[1]) && !pings("both", &v4[0]));
    // The overlay is all that an internal network has. The control: the same packets of one that is not internal arrive.
    let outside = overlay.lab.host("h2").unwrap().underlay_v4().to_string();
    assert!(pings("both", &outside), "masqueraded to the other host's own address");
    assert!(pings("shut", &v4[2]) && !pings("shut", &outside) && !pings("shut", &v4[1]));
    assert!(!docker.run("exec shut ip link").contains("eth1"), "no bridge of Docker's leads around it");
    docker.run("rm -f both shut");
    docker.run("network rm left right inside");
    nothing_left(&overlay, "h1");
    drop(far);
    for name in ["left", "right", "inside"] {
        overlay.lab.ctl_ok("h2", &["network", "rm", name]).unwrap();
    }
}

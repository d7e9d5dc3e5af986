//! Real kernels: each test is a host in a network namespace of its own thread, containers in named namespaces.

use std::future::Future;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use overlay_control::api::EndpointRequest;
use overlay_dataplane::HostPolicy;

use super::super::lease::Lease;
use super::super::plumber::Scope;
use super::*;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A named namespace, deleted when dropped.
struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Self {
        let name = format!("hF-{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name}"));
        Self(name)
    }

    fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.0))
    }

    fn succeeds(&self, command: &str) -> bool {
        run(&format!("ip netns exec {} {command}", self.0)).0
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(&format!("ip netns del {}", self.0));
    }
}

pub(crate) fn run(command: &str) -> (bool, String) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

pub(crate) fn sh(command: &str) -> String {
    let (ok, text) = run(command);
    assert!(ok, "`{command}` failed: {text}");
    text
}

/// Runs a test as a host: on a thread in a fresh network namespace with an `overlay0` TUN device.
pub(crate) fn on_host<F: Future<Output = ()>>(test: impl FnOnce(PlumbingConfig) -> F + Send + 'static) {
    if !is_root() {
        assert!(std::env::var_os("CI").is_none(), "the plumbing tests need root");
        eprintln!("SKIPPED: the plumbing tests need root");
        return;
    }
    let thread = std::thread::spawn(move || {
        leave_network_namespace();
        sh("ip link set lo up");
        sh("ip tuntap add overlay0 mode tun");
        let state = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(config(state.path())));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[expect(unsafe_code, reason = "a namespace of one thread has no safe interface")]
fn leave_network_namespace() {
    // SAFETY: unshare takes no pointers; it changes the namespace of the calling thread only.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "unshare: {}", std::io::Error::last_os_error());
}

#[expect(unsafe_code, reason = "the user id has no safe interface in std")]
fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Everything the host shows of its network configuration.
fn snapshot() -> String {
    let mut text = String::new();
    for command in [
        "ip -o link | sed 's/qdisc [a-z_]*//; s/state [A-Z]*//; s/NO-CARRIER,//; s/,LOWER_UP//'",
        "ip -o -4 address; ip -o -6 address show scope global",
        "ip -N -4 rule; ip -N -6 rule",
        "{ ip -N -4 route show table all; ip -N -6 route show table all | grep -v -e fe80 -e ff00; } | sed 's/ linkdown//'",
        "nft -s list ruleset",
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding",
    ] {
        text += &run(command).1;
    }
    text
}

/// The lines that only one of two snapshots has, whatever their order.
fn difference(new: &str, old: &str) -> Vec<String> {
    let only = |sign: &str, from: &str, other: &str| -> Vec<String> {
        from.lines().filter(|l| !other.lines().any(|o| o == *l)).map(|l| format!("{sign}{l}")).collect()
    };
    [only("+", new, old), only("-", old, new)].concat()
}

/// What the daemon does with packets between local parties: it writes back what it reads, until the test process ends.
struct Bounce(Arc<AtomicU32>);

impl Bounce {
    fn start() -> Self {
        let device = tun_tap::Iface::without_packet_info("overlay0", tun_tap::Mode::Tun).unwrap();
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            let mut buffer = [0u8; 2048];
            while let Ok(length) = device.recv(&mut buffer) {
                // The host's own multicast (MLD, router solicitation) is no traffic of anyone's.
                if !matches!((buffer[0] >> 4, buffer[24]), (6, 0xff)) {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let _ = device.send(&buffer[..length]);
                }
            }
        });
        Self(count)
    }

    /// How many packets crossed the TUN.
    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

fn request(name: &str) -> EndpointRequest {
    EndpointRequest { name: name.into(), interface: "eth0".into(), netns: name.into(), ..EndpointRequest::default() }
}

/// Attaches a namespace as `overlayctl endpoint add` does.
async fn attach(plumber: &mut Plumber, namespace: &Namespace, name: &str) -> Lease {
    let lease = plumber.prepare(&request(name)).await.unwrap();
    sh(&format!("ip link set {} netns {}", lease.peer_ifname, namespace.0));
    namespace.sh(&format!("ip link set {} name eth0", lease.peer_ifname));
    namespace.sh("ip link set lo up");
    for address in &lease.addresses {
        let (length, option) = if address.is_ipv4() { (32, "") } else { (128, "nodad") };
        namespace.sh(&format!("ip address add {address}/{length} dev eth0 {option}"));
    }
    namespace.sh(&format!("ip link set eth0 mtu {} up", lease.mtu));
    namespace.sh("ip route add 10.42.1.1/32 dev eth0 scope link");
    for gateway in &lease.gateways {
        namespace.sh(&format!("ip route add default via {gateway} dev eth0"));
    }
    plumber.commit(lease.id).unwrap();
    lease
}

#[test]
fn reconcile_installs_everything_once_and_removal_leaves_nothing() {
    on_host(|config| async move {
        let before = snapshot();
        let mut plumber = Plumber::open(config.clone()).unwrap();
        let first = plumber.reconcile(Scope::Everything).await;
        assert_eq!(first.problems, [], "{}", snapshot());
        assert!(!first.changes.is_empty());
        let installed = snapshot();
        for expected in [
            "from all iif overlay0 lookup 1001",
            "not from all fwmark 0x200/0x200 lookup 1002",
            "10.42.1.0/24 table 1001 proto 99",
            "10.42.0.0/16 dev overlay0 table 1002 proto 99",
            "src 10.42.1.1",
            "default dev overlay0 table 1003 proto 99",
            "fd42::/48 dev overlay0 table 1002",
            "table inet overlay {",
            "table inet overlay-host {",
            "table inet overlay-nat {",
        ] {
            assert!(installed.contains(expected), "{expected} is missing in {installed}");
        }
        let second = plumber.reconcile(Scope::Everything).await;
        assert_eq!(second.changes, Vec::<String>::new());
        // A crash: another daemon adopts what is there.
        let mut adopted = Plumber::open(config).unwrap();
        let third = adopted.reconcile(Scope::Everything).await;
        let installed_again = [
            "installed the policy between containers and this host in overlay-host",
            "installed published ports in overlay-nat",
            "installed the nft tables overlay",
        ];
        assert_eq!(third.changes, installed_again);
        assert_eq!(snapshot(), installed);
        adopted.remove_all().await.unwrap();
        sh("ip link set overlay0 down mtu 1500 txqueuelen 500");
        let after = snapshot();
        assert_eq!(difference(&after, &before), Vec::<String>::new());
    });
}

#[test]
fn every_kind_of_damage_is_repaired_and_foreign_state_is_left_alone() {
    on_host(|config| async move {
        sh(
            "ip link add foreign type veth peer name other; ip link set foreign up; ip addr add 192.0.2.1/24 dev foreign",
        );
        sh("ip rule add pref 99 fwmark 7 lookup 55; ip rule add pref 100 fwmark 8 lookup 1001 proto 4");
        sh("ip route add 198.51.100.0/24 dev foreign table 1002 proto 4; nft add table inet theirs");
        let mut plumber = Plumber::open(config).unwrap();
        assert_eq!(plumber.reconcile(Scope::Everything).await.problems, []);
        let whole = snapshot();
        for damage in [
            "ip rule del pref 120",
            "ip -6 rule del pref 100",
            "ip rule del pref 110; ip rule add pref 110 fwmark 0x100/0x100 lookup 1001 proto 99",
            "ip route flush table 1003",
            "ip route del unreachable 10.42.1.0/24 table 1001",
            "ip -6 route flush table 1002",
            "ip route replace 10.42.0.0/16 dev foreign table 1002 proto 99",
            "ip address flush dev overlay0",
            "ip link set overlay0 down",
            "ip link set overlay0 mtu 1300",
            "ip address add 10.42.7.7/32 dev overlay0",
            "nft delete table inet overlay",
            "nft flush chain inet overlay forward",
            "nft delete table arp overlay",
            "nft delete table inet overlay-host",
            "nft flush chain inet overlay-host container_to_host",
            "nft insert rule inet overlay-host input accept",
            "nft delete table inet overlay-nat",
            "nft flush chain inet overlay-nat prerouting",
            "nft flush ruleset; nft add table inet theirs",
            "echo 0 > /proc/sys/net/ipv4/ip_forward",
        ] {
            sh(damage);
            assert_ne!(snapshot(), whole, "`{damage}` does no damage");
            let repaired = plumber.reconcile(Scope::Everything).await;
            assert_eq!(repaired.problems, [], "after `{damage}`");
            assert_eq!(difference(&snapshot(), &whole), Vec::<String>::new(), "after `{damage}`");
        }
        plumber.remove_all().await.unwrap();
        let after = snapshot();
        for foreign in [
            "192.0.2.1/24",
            "lookup 55",
            "fwmark 0x8 lookup 1001",
            "198.51.100.0/24 dev foreign table 1002",
            "table inet theirs",
        ] {
            assert!(after.contains(foreign), "{foreign} is gone: {after}");
        }
    });
}

#[test]
fn flushed_nft_table_is_back_within_seconds() {
    on_host(|config| async move {
        let (handle, first, thread) = start(config, HostPolicy::default()).await.unwrap();
        assert_eq!(first.problems, []);
        sh("nft flush ruleset");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !run("nft list table inet overlay && nft list table arp overlay && nft list table inet overlay-host && nft list table inet overlay-nat").0 {
            assert!(Instant::now() < deadline, "the table did not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sh("ip link set overlay0 down");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !run("ip route show table 1003 | grep -q overlay0").0 {
            assert!(Instant::now() < deadline, "the routes did not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        handle.stop().await.unwrap();
        thread.join().unwrap();
        assert_eq!(run("nft list ruleset").1, "");
    });
}

#[test]
fn container_packets_cross_the_tun_and_host_packets_do_not() {
    on_host(|config| async move {
        let outside = Namespace::new("out");
        sh(&format!("ip link add nic type veth peer name wan netns {}", outside.0));
        sh("ip addr add 192.0.2.1/24 dev nic; ip -6 addr add 2001:db8::1/64 dev nic nodad; ip link set nic up");
        outside.sh("sh -c 'ip link set lo up; ip addr add 192.0.2.9/24 dev wan; ip -6 addr add 2001:db8::9/64 dev wan nodad; ip link set wan up'");
        let mut plumber = Plumber::open(config).unwrap();
        let bounce = Bounce::start();
        assert_eq!(plumber.reconcile(Scope::Everything).await.problems, []);
        let (one, two) = (Namespace::new("one"), Namespace::new("two"));
        let first = attach(&mut plumber, &one, "one").await;
        let second = attach(&mut plumber, &two, "two").await;
        assert_eq!(first.addresses, ["10.42.1.4".parse::<IpAddr>().unwrap(), "fd42:0:0:1::4".parse().unwrap()]);
        assert_eq!(second.addresses[0], "10.42.1.5".parse::<IpAddr>().unwrap());
        // Its own host, without the TUN.
        one.sh("ping -c 1 -W 2 10.42.1.1");
        one.sh("ping -c 1 -W 2 fd42:0:0:1::1");
        sh("ping -c 1 -W 2 10.42.1.4");
        sh("ping -c 1 -W 2 fd42:0:0:1::5");
        assert_eq!(bounce.count(), 0);
        // A neighbour and the outside: request and reply each cross it.
        for target in ["10.42.1.5", "fd42:0:0:1::5", "192.0.2.9", "2001:db8::9"] {
            let crossed = bounce.count();
            one.sh(&format!("ping -c 1 -W 2 {target}"));
            assert_eq!(bounce.count() - crossed, 2, "{target}");
        }
    });
}

#[test]
fn container_cannot_spoof_encapsulate_advertise_or_reach_host_ports() {
    on_host(|config| async move {
        let mut plumber = Plumber::open(config).unwrap();
        let _bounce = Bounce::start();
        assert_eq!(plumber.reconcile(Scope::Everything).await.problems, []);
        let (one, two) = (Namespace::new("one"), Namespace::new("two"));
        attach(&mut plumber, &one, "one").await;
        attach(&mut plumber, &two, "two").await;
        one.sh("ping -c 1 -W 2 10.42.1.5");
        // A foreign source is dropped at the veth, whatever it is.
        one.sh("ip addr add 10.42.1.77/32 dev eth0");
        one.sh("ip addr add fd42:0:0:1::77/128 dev eth0 nodad");
        assert!(!one.succeeds("ping -c 1 -W 1 -I 10.42.1.77 10.42.1.5"));
        assert!(!one.succeeds("ping -c 1 -W 1 -I 10.42.1.77 10.42.1.1"));
        assert!(!one.succeeds("ping -c 1 -W 1 -I fd42:0:0:1::77 fd42:0:0:1::5"));
        let dropped = sh("nft list chain inet overlay from_container");
        assert!(!dropped.contains("@bound4 counter packets 0 "), "{dropped}");
        // Tunnels and router advertisements of its own end there as well.
        let raw = |code: &str| one.sh(&format!("python3 -c \"from socket import *; {code}\""));
        raw("socket(AF_INET, SOCK_RAW, 4).sendto(b'x' * 40, ('10.42.1.5', 0))");
        raw("socket(AF_INET, SOCK_DGRAM).sendto(b'x', ('10.42.1.5', 51821))");
        raw("socket(AF_INET6, SOCK_RAW, 58).sendto(bytes([134]) + bytes(15), ('ff02::1%eth0', 0))");
        let rules = sh("nft list chain inet overlay from_container");
        let counted = |what: &str| rules.lines().filter(|l| l.contains(what) && !l.contains("packets 0 ")).count();
        assert_eq!(counted("encapsulation by a container"), 2, "{rules}");
        assert_eq!(counted("router messages of a container"), 1, "{rules}");
        // ARP for a foreign address teaches the host nothing.
        let neighbours = run("ip neigh show 10.42.1.77").1;
        assert!(!neighbours.contains("lladdr"), "{neighbours}");
        // Host ports are closed, also on other addresses of the host; ICMP echo is open.
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = |to: &str| {
            one.succeeds(&format!("python3 -c \"import socket; socket.create_connection(('{to}', {port}), 2)\""))
        };
        assert!(!connect("10.42.1.1"));
        let opened = "allow tcp from 10.42.1.4 to any".parse().unwrap();
        plumber.set_host_policy(&HostPolicy::new(&opened, &|_: &str| None, &plumber.config().own_prefixes.clone()));
        assert_eq!(plumber.reconcile(Scope::Routing).await.problems, []);
        assert!(connect("10.42.1.1"), "the positive control failed");
        // The kernel remembers the flow, and that is no damage to the table.
        let known = sh("nft list set inet overlay-host allowed4_container_to_host");
        assert!(known.contains("10.42.1.4 . 10.42.1.1 . tcp"), "{known}");
        assert_eq!(plumber.reconcile(Scope::Everything).await.changes, Vec::<String>::new());
    });
}

#[test]
fn overlay_address_from_the_nic_is_dropped_unless_an_announced_network_sent_it() {
    on_host(|config| async move {
        let outside = Namespace::new("out");
        sh(&format!("ip link add nic type veth peer name wan netns {}", outside.0));
        sh("ip addr add 192.0.2.1/24 dev nic; ip link set nic up");
        outside.sh("sh -c 'ip link set lo up; ip addr add 192.0.2.9/24 dev wan; ip link set wan up; ip route add 10.42.0.0/16 via 192.0.2.1'");
        let mut plumber = Plumber::open(config).unwrap();
        assert_eq!(plumber.reconcile(Scope::Everything).await.problems, []);
        assert!(outside.succeeds("ping -c 1 -W 2 192.0.2.1"));
        assert!(!outside.succeeds("ping -c 1 -W 1 10.42.1.1"));
        plumber
            .set_routes(LearnedRoutes { announced: vec!["192.0.2.0/24".parse().unwrap()], ..LearnedRoutes::default() });
        plumber.reconcile(Scope::Everything).await;
        assert!(outside.succeeds("ping -c 1 -W 2 10.42.1.1"), "the positive control failed");
    });
}

#[test]
fn lease_whose_container_is_gone_is_ended_and_its_address_cools_down() {
    on_host(|config| async move {
        let mut plumber = Plumber::open(config.clone()).unwrap();
        assert_eq!(plumber.reconcile(Scope::Everything).await.problems, []);
        let one = Namespace::new("one");
        let lease = attach(&mut plumber, &one, "one").await;
        let again = plumber.prepare(&request("one")).await;
        assert!(matches!(again, Err(PlumbingError::EndpointExists(_))));
        sh(&format!("ip link del {}", lease.host_ifname));
        // The daemon was away meanwhile.
        let mut plumber = Plumber::open(config).unwrap();
        plumber.reconcile(Scope::Everything).await;
        assert_eq!(plumber.endpoints(), []);
        let two = Namespace::new("two");
        let next = attach(&mut plumber, &two, "two").await;
        assert_eq!(next.addresses[0], "10.42.1.5".parse::<IpAddr>().unwrap());
        plumber.remove("two").await.unwrap();
        assert!(!run(&format!("ip link show {}", next.host_ifname)).0);
        assert!(!run("ip route show table 1001").1.contains("10.42.1.5"));
    });
}

#[test]
fn aborted_endpoint_leaves_nothing_and_frees_its_address() {
    on_host(|config| async move {
        let mut plumber = Plumber::open(config).unwrap();
        assert_eq!(plumber.reconcile(Scope::Everything).await.problems, []);
        let before = snapshot();
        let lease = plumber.prepare(&request("one")).await.unwrap();
        assert_ne!(snapshot(), before);
        assert_eq!(plumber.prepare(&request("one")).await.unwrap(), lease);
        plumber.abort(lease.id).await.unwrap();
        assert_eq!(snapshot(), before);
        assert_eq!(plumber.prepare(&request("one")).await.unwrap().addresses, lease.addresses);
    });
}

#[test]
fn missing_tun_is_a_problem_that_ends_when_it_is_back() {
    on_host(|config| async move {
        let mut plumber = Plumber::open(config).unwrap();
        sh("ip link del overlay0");
        let outcome = plumber.reconcile(Scope::Everything).await;
        assert_eq!(outcome.problems.len(), 1, "{outcome:?}");
        assert!(outcome.problems[0].what.contains("overlay0 does not exist"));
        sh("ip tuntap add overlay0 mode tun");
        assert_eq!(plumber.reconcile(Scope::Routing).await.problems, []);
        assert!(run("ip route show table 1002").1.contains("10.42.0.0/16"));
    });
}

//! Published ports: who reaches them, what the container sees, and what becomes of them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{EndpointInfo, NatRequest, PublishedPort, Request, Response};
use overlay_netns_harness::netns::View;
use overlay_netns_harness::{HostSpec, ip, load, netns, run_in, wait_for};
use overlay_tests::{Capture, Conversation, Echo, Overlay, SharedLab, udp_socket};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

static LAB: SharedLab<Overlay> = SharedLab::new();
/// For what must come.
const LIMIT: Duration = Duration::from_secs(10);
/// For what must not come.
const MOMENT: Duration = Duration::from_millis(700);

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "ports",
        |name, binaries| {
            let overlay = Overlay::start(name, binaries, &HostSpec::numbered(2), 2, "wireguard", |_| {})?;
            // A client outside needs an address of its own in each family.
            ip(&format!("-n {} addr add 2001:db8::fe/128 dev lo", overlay.lab.switch().namespace()))?;
            Ok(overlay)
        },
        |overlay| &overlay.lab,
    )
}

/// A server that answers everybody with the address it sees, over TCP and UDP.
struct Teller {
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Teller {
    fn start(view: &View, address: SocketAddr) -> Teller {
        let listener = netns::within(view.namespace(), || load::listen(address)).unwrap();
        let socket = udp_socket(view.namespace(), address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (accepting, stopped) = (listener.try_clone().unwrap(), Arc::clone(&stop));
        let tcp = std::thread::spawn(move || {
            while let Ok((mut stream, from)) = accepting.accept() {
                let _ = stream.write_all(from.ip().to_canonical().to_string().as_bytes());
            }
        });
        let udp = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
                }
            }
        });
        Teller { listener, stop, threads: vec![tcp, udp] }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // SAFETY: shutdown of an open listening socket; it wakes the accepting thread.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The address that a server saw when it was asked over TCP.
fn ask_tcp(from: &View, to: SocketAddr, limit: Duration) -> Option<IpAddr> {
    let mut stream = netns::within(from.namespace(), || load::connect(to, limit)).ok()?;
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.parse().ok()
}

/// The same over UDP. Only an answer from the very address that was asked counts.
fn ask_udp(from: &View, to: SocketAddr, limit: Duration) -> Option<IpAddr> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = udp_socket(from.namespace(), any.parse().unwrap()).unwrap();
    socket.connect(to).unwrap();
    let ended = Instant::now() + limit;
    while Instant::now() < ended {
        // A datagram may be lost while the way is being opened.
        socket.set_read_timeout(Some(MOMENT.min(limit))).unwrap();
        let mut buffer = [0; 64];
        if socket.send(b"who").is_ok()
            && let Ok(length) = socket.recv(&mut buffer)
        {
            return std::str::from_utf8(&buffer[..length]).ok()?.parse().ok();
        }
    }
    None
}

fn ports(overlay: &Overlay, host: &str) -> Vec<PublishedPort> {
    match overlay.ask(host, Request::Nat(NatRequest::List)).unwrap() {
        Response::PublishedPorts(ports) => ports,
        other => panic!("{}", other.name()),
    }
}

/// The name of the endpoint of a container.
fn endpoint(overlay: &Overlay, host: &str, container: &str) -> String {
    let wanted = IpAddr::V4(overlay.container(container).v4);
    let endpoints: Vec<EndpointInfo> = match overlay.ask(host, Request::EndpointList).unwrap() {
        Response::Endpoints(endpoints) => endpoints,
        other => panic!("{}", other.name()),
    };
    endpoints.into_iter().find(|one| one.addresses.contains(&wanted)).unwrap().name
}

fn ctl(overlay: &Overlay, host: &str, words: &str) -> String {
    overlay.lab.ctl_ok(host, &words.split(' ').collect::<Vec<_>>()).unwrap()
}

/// What `overlayctl` says to a command that it must refuse, and its exit code.
fn refused(overlay: &Overlay, host: &str, words: &str) -> (i32, String) {
    let output = overlay.lab.ctl(host, &words.split(' ').collect::<Vec<_>>()).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap(), said)
}

fn apply(overlay: &Overlay, host: &str, default: &str, rules: &[&str]) {
    let policy = serde_json::from_value(serde_json::json!({ "default": default, "rules": rules })).unwrap();
    overlay.ask(host, Request::PolicyApply { policy: Some(policy) }).unwrap();
}

/// Ports and policies of a test end with it, also when it fails.
struct Tidy<'a>(&'a Overlay);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        for host in ["h1", "h2"] {
            let selector = overlay_control::api::PortSelector {
                owner: Some("cli".to_owned()),
                ..overlay_control::api::PortSelector::default()
            };
            let _ = self.0.ask(host, Request::Nat(NatRequest::Unpublish(selector)));
            let _ = self.0.ask(host, Request::PolicyApply { policy: None });
        }
    }
}

/// A place that asks, the address of h1 it asks, and the source that a container of h1 and one of h2 must see.
struct Way<'a> {
    from: &'a View,
    to: IpAddr,
    seen_here: Option<IpAddr>,
    seen_there: Option<IpAddr>,
    what: &'static str,
}

fn ways<'a>(overlay: &'a Overlay, outside: &'a View, ipv4: bool) -> Vec<Way<'a>> {
    let pick = |v4: std::net::Ipv4Addr, v6: std::net::Ipv6Addr| if ipv4 { IpAddr::V4(v4) } else { IpAddr::V6(v6) };
    let (h1, h2) = (overlay.lab.host("h1").unwrap(), overlay.lab.host("h2").unwrap());
    let card = pick(h1.underlay_v4(), h1.underlay_v6());
    let host = pick(h1.overlay_v4(), h1.overlay_v6());
    let service: IpAddr = if ipv4 { "10.42.1.2" } else { "fd42:0:0:1::2" }.parse().unwrap();
    let other_card = pick(h2.underlay_v4(), h2.underlay_v6());
    let way = |from, to, seen_here, seen_there, what| Way { from, to, seen_here, seen_there, what };
    let mut ways = vec![
        way(outside, card, None, Some(host), "outside"),
        way(h2.view(), card, Some(other_card), Some(host), "another host"),
        way(h1.view(), card, Some(card), Some(host), "the host by its card"),
        way(h1.view(), host, Some(host), Some(host), "the host by its overlay address"),
        way(&overlay.container("h1c2").view, card, Some(service), Some(host), "a neighbour"),
        way(&overlay.container("h1c2").view, host, Some(service), Some(host), "a neighbour by the gateway"),
        way(&overlay.container("h1c1").view, card, Some(service), Some(host), "the container itself"),
        // The other host lets its containers out with its own address.
        way(&overlay.container("h2c1").view, card, Some(other_card), Some(host), "a container of another host"),
    ];
    if ipv4 {
        let loopback = "127.0.0.1".parse().unwrap();
        ways.push(way(h1.view(), loopback, Some(host), Some(host), "the host by 127.0.0.1"));
    }
    ways
}

fn reached_from_everywhere(overlay: &Overlay, ipv4: bool) {
    let outside = overlay.lab.switch();
    let (local, remote) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let pick = |container: &overlay_netns_harness::Container| {
        if ipv4 { IpAddr::V4(container.v4) } else { IpAddr::V6(container.v6) }
    };
    let (here, there) = (SocketAddr::new(pick(local), 80), SocketAddr::new(pick(remote), 80));
    let _tellers = (Teller::start(&local.view, here), Teller::start(&remote.view, there));
    for (port, target) in [(7201, here), (7202, there)] {
        for protocol in ["tcp", "udp"] {
            ctl(overlay, "h1", &format!("nat publish {port}/{protocol} {target}"));
        }
    }
    for way in ways(overlay, &outside, ipv4) {
        for (port, seen) in [(7201, way.seen_here), (7202, way.seen_there)] {
            let to = SocketAddr::new(way.to, port);
            let tcp = ask_tcp(way.from, to, LIMIT);
            let udp = ask_udp(way.from, to, LIMIT);
            assert!(tcp.is_some() && udp.is_some(), "{} to {to}: tcp {tcp:?}, udp {udp:?}", way.what);
            assert_eq!(tcp, udp, "{} to {to}", way.what);
            if let Some(seen) = seen {
                assert_eq!(tcp, Some(seen), "{} to {to}", way.what);
            }
        }
        // Nothing else is open.
        assert_eq!(ask_tcp(way.from, SocketAddr::new(way.to, 7203), MOMENT), None, "{}", way.what);
    }
    // A container of another host, by this host's overlay address.
    let host = overlay.lab.host("h1").unwrap();
    let gateway = if ipv4 { IpAddr::V4(host.overlay_v4()) } else { IpAddr::V6(host.overlay_v6()) };
    let asker = &overlay.container("h2c2").view;
    assert_eq!(ask_tcp(asker, SocketAddr::new(gateway, 7201), LIMIT), Some(gateway));
    assert_eq!(ask_udp(asker, SocketAddr::new(gateway, 7201), LIMIT), Some(gateway));
    assert_eq!(ask_tcp(asker, SocketAddr::new(gateway, 7203), MOMENT), None);
}

#[test]
fn ipv4_port_leads_to_containers_here_and_on_another_host_from_everywhere() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _tidy = Tidy(&overlay);
    reached_from_everywhere(&overlay, true);
}

#[test]
fn ipv6_port_leads_to_containers_here_and_on_another_host_from_everywhere() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _tidy = Tidy(&overlay);
    reached_from_everywhere(&overlay, false);
}

#[test]
fn port_opens_to_the_outside_under_any_default_and_a_rule_closes_it() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _tidy = Tidy(&overlay);
    let outside = overlay.lab.switch();
    let container = overlay.container("h1c1");
    let target = SocketAddr::new(container.v4.into(), 81);
    let card = IpAddr::V4(overlay.lab.host("h1").unwrap().underlay_v4());
    let (public, neighbour) = (SocketAddr::new(card, 7211), &overlay.container("h1c2").view);
    let _teller = Teller::start(&container.view, target);
    assert_eq!(ask_tcp(&outside, public, MOMENT), None, "nothing is published yet");
    assert!(ask_tcp(neighbour, target, LIMIT).is_some(), "members may talk");
    apply(&overlay, "h1", "deny", &[]);
    ctl(&overlay, "h1", &format!("nat publish 7211 {target}"));
    assert!(ask_tcp(&outside, public, LIMIT).is_some());
    assert!(ask_tcp(neighbour, public, LIMIT).is_some(), "by the host's address the port is open");
    assert_eq!(ask_tcp(neighbour, target, MOMENT), None, "publishing opens no way between containers");
    let host = overlay.lab.host("h1").unwrap().view();
    assert!(ask_tcp(host, public, LIMIT).is_some(), "the host itself");
    assert_eq!(ask_tcp(host, target, MOMENT), None, "the host, not by the port");
    apply(&overlay, "h1", "members", &["deny tcp/81 from 192.0.2.0/24 to any"]);
    assert_eq!(ask_tcp(&outside, public, MOMENT), None, "a rule decides over a published port");
    apply(&overlay, "h1", "members", &[]);
    // A flow lives as long as the port that opened it.
    let echo = Echo::start(container.view.namespace(), SocketAddr::new(container.v4.into(), 82)).unwrap();
    ctl(&overlay, "h1", &format!("nat publish 7212 {}", echo.address()));
    let mut kept = Conversation::open(outside.namespace(), SocketAddr::new(card, 7212), LIMIT).unwrap();
    kept.exchange(LIMIT).unwrap();
    ctl(&overlay, "h1", "nat unpublish 7211");
    kept.exchange(LIMIT).expect("another port does not concern it");
    ctl(&overlay, "h1", "nat unpublish 7212");
    assert!(kept.exchange(MOMENT).is_err(), "the connection outlived its port");
}

#[test]
fn port_that_somebody_holds_is_refused_with_the_name() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _tidy = Tidy(&overlay);
    let target = format!("{}:80", overlay.container("h1c1").v4);
    let host = overlay.lab.host("h1").unwrap();
    let listener = netns::within(host.view().namespace(), || load::listen("0.0.0.0:7221".parse().unwrap())).unwrap();
    let (code, said) = refused(&overlay, "h1", &format!("nat publish 7221 {target}"));
    assert_eq!(code, 5, "{said}");
    assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
    ctl(&overlay, "h1", &format!("nat publish 7221/udp {target}"));
    drop(listener);
    ctl(&overlay, "h1", &format!("nat publish 7221 {target}"));
    assert!(ctl(&overlay, "h1", &format!("nat publish 7221 {target}")).contains("unchanged"));
    let (code, said) = refused(&overlay, "h1", &format!("nat publish 7221 {target} --owner docker/x"));
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("cli publishes 0.0.0.0:7221/tcp"), "{said}");
    // Port 0: one that is free.
    let shown = overlay.lab.ctl_json("h1", &["nat", "publish", "0", &target, "--owner", "docker/x"]).unwrap();
    let found = shown["ports"][0]["host_port"].as_u64().unwrap();
    assert!(found >= 32_768, "{shown}");
    let (code, said) = refused(&overlay, "h1", &format!("nat unpublish {found}"));
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("docker/x"), "{said}");
    ctl(&overlay, "h1", "nat unpublish --owner docker/x");
    assert_eq!(ports(&overlay, "h1").len(), 2);
    // Wrong targets and addresses.
    for (words, exit) in [
        ("nat publish 7222 10.42.1.200:80", 2),
        ("nat publish 7222 198.51.100.1:80", 2),
        ("nat publish 203.0.113.9:7222 10.42.2.9:80", 2),
        ("nat publish [::1]:7222 [fd42:0:0:2::9]:80", 2),
        ("nat publish [::]:7222 10.42.2.9:80", 2),
        ("nat publish 7222 nobody:80", 4),
        ("nat publish 7222/sctp 10.42.2.9:80", 2),
    ] {
        assert_eq!(refused(&overlay, "h1", words).0, exit, "{words}");
    }
    assert!(ctl(&overlay, "h1", "nat unpublish 7299").contains("unchanged"));
}

#[test]
fn port_on_the_loopback_address_is_open_to_the_host_alone() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _tidy = Tidy(&overlay);
    let container = overlay.container("h1c1");
    let target = SocketAddr::new(container.v4.into(), 83);
    let _teller = Teller::start(&container.view, target);
    let name = endpoint(&overlay, "h1", "h1c1");
    ctl(&overlay, "h1", &format!("nat publish 127.0.0.1:7231 {name}:83"));
    let host = overlay.lab.host("h1").unwrap();
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 7231);
    assert!(ask_tcp(host.view(), at("127.0.0.1"), LIMIT).is_some());
    let card = host.underlay_v4().to_string();
    assert_eq!(ask_tcp(&overlay.lab.switch(), at(&card), MOMENT), None);
    // Somebody on the same wire who routes 127.0.0.1 to the host, and a container that does.
    ctl(&overlay, "h1", &format!("nat publish 127.0.0.1:7231/udp {name}:86"));
    let server = udp_socket(container.view.namespace(), SocketAddr::new(container.v4.into(), 86)).unwrap();
    server.set_read_timeout(Some(MOMENT)).unwrap();
    let switch = overlay.lab.switch();
    let neighbour = overlay.container("h1c2");
    for (view, device, via) in [(&switch, "h1", card), (&neighbour.view, "eth0", host.overlay_v4().to_string())] {
        let namespace = view.namespace();
        let local = |verb: &str| ip(&format!("-n {namespace} addr {verb} 127.0.0.1/8 dev lo"));
        let key = format!("net/ipv4/conf/{device}/route_localnet");
        netns::within(namespace, || netns::sysctl(&key, "1")).unwrap();
        local("del").unwrap();
        ip(&format!("-n {namespace} route add 127.0.0.1/32 via {via} dev {device} onlink")).unwrap();
        let capture = Capture::start(host.view().namespace(), Capture::containing(b"to the loopback")).unwrap();
        let socket = udp_socket(namespace, "0.0.0.0:0".parse().unwrap()).unwrap();
        for _ in 0..3 {
            socket.send_to(b"to the loopback", at("127.0.0.1")).unwrap();
        }
        assert!(server.recv_from(&mut [0; 64]).is_err(), "by {device}");
        assert!(capture.finish().matches >= 3, "the host saw them on {device}");
        ip(&format!("-n {namespace} route del 127.0.0.1/32 via {via} dev {device}")).unwrap();
        local("add").unwrap();
    }
    let socket = udp_socket(host.view().namespace(), "127.0.0.1:0".parse().unwrap()).unwrap();
    socket.send_to(b"from the host", at("127.0.0.1")).unwrap();
    assert!(server.recv_from(&mut [0; 64]).is_ok(), "the host itself");
}

#[test]
fn flushed_table_is_back_within_a_second() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _tidy = Tidy(&overlay);
    let target = format!("{}:80", overlay.container("h1c1").v4);
    ctl(&overlay, "h1", &format!("nat publish 7241 {target}"));
    let view = overlay.lab.host("h1").unwrap().view();
    let listed = || run_in(view, &["nft", "list", "table", "inet", "overlay-nat"]).unwrap_or_default();
    assert!(listed().contains(&target));
    for command in [
        &["flush", "table", "inet", "overlay-nat"][..],
        &["delete", "table", "inet", "overlay-nat"],
        &["flush", "ruleset"],
    ] {
        let words: Vec<&str> = ["nft"].iter().chain(command).copied().collect();
        run_in(view, &words).unwrap();
        let began = Instant::now();
        wait_for("the table to be back", LIMIT, || listed().contains(&target).then_some(())).unwrap();
        let took = began.elapsed();
        println!("{command:?}: back after {took:?}");
        // The figure is a second; a look at most a second after the one before, and a busy machine.
        assert!(took < Duration::from_secs(3), "{command:?}: {took:?}");
    }
}

#[test]
fn port_ends_with_its_container_and_outlives_the_daemon() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _tidy = Tidy(&overlay);
    let container = overlay.lab.add_container("h1", "short").unwrap();
    let (here, there) = (format!("{}:80", container.v4), format!("{}:80", overlay.container("h2c1").v4));
    ctl(&overlay, "h1", &format!("nat publish 7251 {here}"));
    ctl(&overlay, "h1", &format!("nat publish 7252 {there}"));
    let before = ports(&overlay, "h1");
    assert_eq!(before.len(), 2);
    let view = overlay.lab.host("h1").unwrap().view();
    let listed = || run_in(view, &["nft", "list", "table", "inet", "overlay-nat"]).unwrap_or_default();
    overlay.lab.kill_daemon("h1").unwrap();
    assert!(listed().contains(&here), "after a kill the table stays");
    overlay.lab.start_daemon("h1").unwrap();
    overlay.lab.wait_ready(Duration::from_secs(20)).unwrap();
    assert_eq!(ports(&overlay, "h1"), before);
    overlay.lab.stop_daemon("h1").unwrap();
    assert_eq!(listed(), "", "a clean stop leaves no table");
    overlay.lab.start_daemon("h1").unwrap();
    overlay.lab.wait_ready(Duration::from_secs(20)).unwrap();
    assert_eq!(ports(&overlay, "h1"), before);
    assert!(listed().contains(&here) && listed().contains(&there));
    netns::remove(container.view.namespace()).unwrap();
    wait_for("the port of the container to end", LIMIT, || (ports(&overlay, "h1").len() == 1).then_some(())).unwrap();
    assert!(!listed().contains(&here) && listed().contains(&there));
}

/// A client that goes on sending from one port reaches what is published now, not what was there before.
#[test]
fn datagrams_of_one_flow_follow_the_port() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _tidy = Tidy(&overlay);
    let (one, two) = (overlay.container("h1c1"), overlay.container("h1c2"));
    let (first, second) = (SocketAddr::new(one.v4.into(), 84), SocketAddr::new(two.v4.into(), 85));
    let servers = [(one, first), (two, second)].map(|(container, address)| {
        let socket = udp_socket(container.view.namespace(), address).unwrap();
        socket.set_read_timeout(Some(MOMENT)).unwrap();
        socket
    });
    let card = IpAddr::V4(overlay.lab.host("h1").unwrap().underlay_v4());
    let client = udp_socket(overlay.lab.switch().namespace(), "0.0.0.0:7269".parse().unwrap()).unwrap();
    let arrives = |at: &UdpSocket| {
        let _ = client.send_to(b"x", SocketAddr::new(card, 7261));
        at.recv_from(&mut [0; 8]).is_ok()
    };
    assert!(!arrives(&servers[0]), "nothing is published yet");
    for (server, target) in servers.iter().zip([first, second]) {
        ctl(&overlay, "h1", &format!("nat publish 7261/udp {target}"));
        assert!(arrives(server), "{target}");
        ctl(&overlay, "h1", "nat unpublish 7261/udp");
        assert!(!arrives(server), "{target}");
    }
}

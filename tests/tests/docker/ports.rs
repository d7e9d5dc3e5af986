//! `docker run -p` with the real dockerd: who reaches a published port, conflicts, ranges, and its end.

use overlay_control::api::{NatRequest, PublishedPort, Request, Response};
use overlay_netns_harness::netns::View;
use overlay_netns_harness::{ip, load, netns, wait_for};
use overlay_tests::{Overlay, udp_socket};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::engine::{DRIVER, Docker, end};
use super::{LIMIT, nothing_left, overlay};

/// An outside client's address of IPv6.
const CLIENT_V6: &str = "2001:db8::fd";
/// How long something is waited for that must not come.
const MOMENT: Duration = Duration::from_millis(700);

/// Answers every datagram with itself, in both families.
const ECHO: &str = "import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(('::', 53))
print('ready', flush=True)
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(data, peer)
";

/// The page behind an address, asked for from a namespace.
fn page(from: &View, to: SocketAddr, limit: Duration) -> Option<String> {
    let mut stream = netns::within(from.namespace(), || load::connect(to, limit)).ok()?;
    stream.set_read_timeout(Some(limit)).unwrap();
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.ends_with("the page").then_some(text)
}

/// Whether a datagram comes back.
fn echoes(from: &View, to: SocketAddr, limit: Duration) -> bool {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = udp_socket(from.namespace(), any.parse().unwrap()).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(MOMENT)).unwrap();
    let ended = Instant::now() + limit;
    let mut buffer = [0; 16];
    while Instant::now() < ended {
        if socket.send(b"who").is_ok() && matches!(socket.recv(&mut buffer), Ok(length) if &buffer[..length] == b"who")
        {
            return true;
        }
    }
    false
}

fn published(overlay: &Overlay) -> Vec<PublishedPort> {
    match overlay.ask("h1", Request::Nat(NatRequest::List)).unwrap() {
        Response::PublishedPorts(ports) => ports,
        other => panic!("{}", other.name()),
    }
}

/// A server of datagrams in a container's network namespace; it has none in its image.
struct Echo(Option<Child>);

impl Echo {
    fn start(docker: &Docker<'_>, container: &str) -> Echo {
        let key = docker.run(&format!("inspect -f {{{{.NetworkSettings.SandboxKey}}}} {container}"));
        let words = ["nsenter", &format!("--net={key}"), "python3", "-c", ECHO];
        let mut child = docker.command(&words).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Echo(Some(child))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        end(self.0.take(), libc::SIGKILL);
    }
}

#[test]
fn published_ports_are_reached_from_everywhere_and_end_with_their_container() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let docker = Docker::started(&overlay.lab, "h1");
    let (host, outside) = (overlay.lab.host("h1").unwrap(), overlay.lab.switch());
    // A client outside needs an address of its own in each family.
    let _ = ip(&format!("-n {} addr add {CLIENT_V6}/128 dev lo", outside.namespace()));
    docker.run(&format!("network create {DRIVER} --ipv6 front"));
    docker.run(&format!("network create {DRIVER} --internal inside"));
    let ports = "-p 8080:80 -p 5353:53/udp -p 127.0.0.1:8090:80 -p 9000-9002:80";
    docker.start("web", &format!("--network front {ports}"), "httpd -f -p 80 -h /");
    let _echo = Echo::start(&docker, "web");
    let v4 = |port| SocketAddr::new(host.underlay_v4().into(), port);
    let v6 = |port| SocketAddr::new(host.underlay_v6().into(), port);
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    for port in [8080, 9000] {
        assert!(page(&outside, v4(port), LIMIT).is_some() && page(&outside, v6(port), LIMIT).is_some(), "{port}");
    }
    assert!(echoes(&outside, v4(5353), LIMIT) && echoes(&outside, v6(5353), LIMIT));
    // Another host of the overlay, by the underlay.
    assert!(page(overlay.lab.host("h2").unwrap().view(), v4(8080), LIMIT).is_some());
    // The host itself; a port of its loopback address is reached by that alone.
    for to in [loopback(8080), loopback(8090), v4(8080)] {
        assert!(page(host.view(), to, LIMIT).is_some(), "{to} from the host");
    }
    assert!(echoes(host.view(), loopback(5353), LIMIT));
    assert!(page(&outside, v4(8090), MOMENT).is_none() && page(&outside, v4(8079), MOMENT).is_none());
    // The container itself and its neighbour, by the host's address.
    docker.start("other", "--network front", "sleep 600");
    let by_host = |container: &str| {
        let script = format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} 8080", host.underlay_v4());
        let output = docker.command(&["docker", "exec", container, "sh", "-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).ends_with("the page")
    };
    assert!(by_host("web") && by_host("other"));
    // No process of Docker's carries the packets.
    let running = docker.command(&["sh", "-c", "cat /proc/[0-9]*/comm"]).output().unwrap();
    let running = String::from_utf8_lossy(&running.stdout).into_owned();
    assert!(running.contains("dockerd") && !running.contains("docker-proxy"), "{running}");

    // Conflicts: with another container, with the daemon's own port, with a program of the host.
    let taken = netns::within(host.view().namespace(), || load::listen("0.0.0.0:8181".parse().unwrap())).unwrap();
    let daemon: u16 = 51821;
    for (port, holder) in
        [("8080:80".to_owned(), "publishes"), ("8181:80".to_owned(), "listens"), (format!("{daemon}:1/udp"), "listens")]
    {
        let said = docker.refused(&format!("run --name refused --network front -p {port} box sleep 1"));
        assert!(said.contains(holder), "{port}: {said}");
        docker.run("rm -f refused");
    }
    drop(taken);
    assert!(page(&outside, v4(8080), LIMIT).is_some(), "who had it has it still");
    // The next of a range, and with none left a refusal.
    for number in [1, 2] {
        docker.start(&format!("range{number}"), "--network front -p 9000-9002:80", "httpd -f -p 80 -h /");
        assert!(page(&outside, v4(9000 + number), LIMIT).is_some());
    }
    let said = docker.refused("run --name refused --network front -p 9000-9002:80 box sleep 1");
    assert!(said.contains("publishes"), "{said}");
    docker.run("rm -f refused range1 range2");
    // A range onto a range is one port each.
    docker.start("many", "--network front -p 9100-9102:80-82", "httpd -f -p 82 -h /");
    assert!(page(&outside, v4(9102), LIMIT).is_some() && page(&outside, v4(9101), MOMENT).is_none());
    docker.run("rm -f many");
    // An internal network publishes nothing, as Docker's own do.
    let before = published(&overlay).len();
    docker.start("shut", "--network inside -p 8085:80", "httpd -f -p 80 -h /");
    assert_eq!(published(&overlay).len(), before);
    assert!(page(&outside, v4(8085), MOMENT).is_none() && page(host.view(), loopback(8085), MOMENT).is_none());
    // A connection ends with its container, and so does the port, for those that were in use too.
    let mut open = netns::within(outside.namespace(), || load::connect(v4(8080), LIMIT)).unwrap();
    docker.run("rm -f web");
    wait_for("the ports to go", LIMIT, || published(&overlay).is_empty().then_some(())).unwrap();
    open.set_read_timeout(Some(MOMENT)).unwrap();
    let _ = open.write_all(b"GET /page HTTP/1.0\r\n\r\n");
    assert!(!matches!(open.read(&mut [0; 16]), Ok(length) if length > 0));
    assert!(page(&outside, v4(8080), MOMENT).is_none() && !echoes(&outside, v4(5353), MOMENT));
    docker.run("rm -f other shut");
    docker.run("network rm front inside");
    nothing_left(&overlay, "h1");
    let _ = ip(&format!("-n {} addr del {CLIENT_V6}/128 dev lo", outside.namespace()));
}

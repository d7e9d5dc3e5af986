//! The path's MTU is respected and told to senders, over each encapsulation and with a smaller underlay.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{Binaries, Container, Family, HostSpec, ping, wait_for};
use overlay_tests::{Capture, Overlay, can_make_namespaces, lab_name};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// Bytes that each encapsulation adds to an inner packet; GRE between members carries a key.
fn overhead(encapsulation: &str, underlay: Family) -> u32 {
    let outer = if underlay == Family::V4 { 20 } else { 40 };
    outer
        + match encapsulation {
            "wireguard" => 8 + 32,
            "gre" => 8,
            _ => 0,
        }
}

/// The link of h2 has the given MTU, that of h1 has 1500; both TUNs have 1420, so that the path alone decides.
fn matrix(encapsulation: &str, underlay: u32) {
    let subject = format!("mtu{encapsulation}{underlay}");
    if !can_make_namespaces(&subject) {
        return;
    }
    let hosts = [HostSpec::named("h1"), HostSpec::named("h2").with_mtu(underlay)];
    let binaries = Binaries::for_tests().unwrap();
    let name = lab_name(&format!("m{}{}", &encapsulation[..1], underlay / 100));
    let overlay =
        Overlay::start(&name, binaries, &hosts, 1, encapsulation, |cluster| cluster.overlay = "mtu = 1420".to_owned());
    let overlay = overlay.unwrap();
    let _logs = overlay.lab.logs_on_failure();
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let inner = (underlay - overhead(encapsulation, Family::V4)).min(1420);

    // The first packet that does not fit teaches the path: a router answers it, and the daemon passes that on.
    let _ = ping(&from.view, "-c 2 -i 0.05 -W 1 -s 1392 -M do", &to.v4.to_string()).unwrap();
    wait_for(&format!("h1 to know the inner MTU {inner}"), LIMIT, || {
        let known = overlay.peer("h1", "h2").ok()?.mtu?;
        (u32::from(known).min(1420) == inner).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", overlay.peer("h1", "h2")));
    assert!(!says_fragmented(&overlay, "h1", "h2"), "IPv6 fits and is said to be fragmented");
    stream(&overlay, from, to, 8 << 20);

    // Without DF a packet larger than the path is fragmented and answered every time.
    let report = ping(&from.view, "-c 100 -i 0.005 -W 2 -s 1472 -M dont", &to.v4.to_string()).unwrap();
    assert_eq!((report.sent, report.received), (100, 100), "{}", report.text);
    // In IPv6 the sender fragments, once it was told.
    wait_for("both ends of the IPv6 path to be told", LIMIT, || {
        ping(&from.view, "-c 1 -W 0.5 -s 1452 -M dont", &to.v6.to_string()).ok().filter(|report| report.is_lossless())
    })
    .unwrap();
    let report = ping(&from.view, "-c 100 -i 0.005 -W 2 -s 1452 -M dont", &to.v6.to_string()).unwrap();
    assert_eq!((report.sent, report.received), (100, 100), "{}", report.text);

    // With DF the sender is told the exact inner MTU, and a packet of exactly that size passes.
    for (address, header) in [(IpAddr::V4(to.v4), 28), (IpAddr::V6(to.v6), 48)] {
        let address = address.to_string();
        let too_big = 1420 - header + 1;
        let report = ping(&from.view, &format!("-c 3 -i 0.02 -W 1 -s {too_big} -M do"), &address).unwrap();
        assert_eq!(report.received, 0, "{}", report.text);
        if inner < 1420 {
            let report = ping(&from.view, &format!("-c 3 -i 0.02 -W 1 -s {} -M do", 1420 - header), &address).unwrap();
            let told = [format!("mtu = {inner}"), format!("mtu={inner}"), format!("mtu: {inner}")];
            assert!(told.iter().any(|text| report.text.contains(text)), "wanted mtu {inner}: {}", report.text);
        }
        let exact = ping(&from.view, &format!("-c 5 -i 0.02 -W 1 -s {} -M do", inner - header), &address).unwrap();
        assert!(exact.is_lossless(), "{}", exact.text);
    }
}

#[test]
fn wireguard_over_1500_fits() {
    matrix("wireguard", 1500);
}

#[test]
fn wireguard_over_1400_tells_1340() {
    matrix("wireguard", 1400);
}

#[test]
fn gre_over_1400_tells_1372() {
    matrix("gre", 1400);
}

#[test]
fn ipip_over_1400_tells_1380() {
    matrix("ipip", 1400);
}

#[test]
fn smaller_tun_of_the_peer_limits_the_path() {
    let subject = "smaller_tun_of_the_peer_limits_the_path";
    if !can_make_namespaces(subject) {
        return;
    }
    let hosts = [HostSpec::named("h1"), HostSpec::named("h2").with_mtu(1400)];
    let binaries = Binaries::for_tests().unwrap();
    // Without a setting the TUN of h2 has its underlay's 1400 less 80, and its containers cannot take more.
    let overlay = Overlay::start(&lab_name("mtutun"), binaries, &hosts, 1, "wireguard", |_| {}).unwrap();
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let report = ping(&from.view, "-c 3 -i 0.02 -W 1 -s 1392 -M do", &to.v4.to_string()).unwrap();
    assert!(report.text.contains("mtu = 1320") || report.text.contains("mtu=1320"), "{}", report.text);
    let report = ping(&from.view, "-c 20 -i 0.01 -W 1 -s 1472 -M dont", &to.v4.to_string()).unwrap();
    assert!(report.is_lossless(), "{}", report.text);
}

/// Sends bytes over both IP versions and compares what arrives.
fn stream(overlay: &Overlay, from: &Container, to: &Container, bytes: u64) {
    for address in [IpAddr::V4(to.v4), IpAddr::V6(to.v6)] {
        let server = Server::start(to.view.namespace(), SocketAddr::new(address, 0)).unwrap();
        load::send(from.view.namespace(), server.address(), Amount::Bytes(bytes), Content::Verified).unwrap_or_else(
            |error| panic!("{error:#}; drops: {:?}", ["h1", "h2"].map(|host| overlay.status(host).map(|s| s.drops))),
        );
    }
}

/// Whether a host's status says that IPv6 packets to a peer are fragmented, with a reason and a way out.
fn says_fragmented(overlay: &Overlay, host: &str, peer: &str) -> bool {
    let problems = overlay.peer(host, peer).unwrap().problems;
    let found = problems.iter().find(|problem| problem.code == "IPV6_FRAGMENTED");
    found.is_some_and(|problem| !problem.why.is_empty() && !problem.next.is_empty())
}

/// Whether an Ethernet frame holds a fragment of an underlay packet: IPv4 with an offset or more to come, or IPv6 with a
/// fragment header.
fn is_outer_fragment(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(14 + 12..14 + 14) == Some(&[192, 0]) && frame[20] & 0x3f | frame[21] != 0,
        Some([0x86, 0xdd]) => frame.get(14 + 8..14 + 10) == Some(&[0x20, 0x01]) && frame[20] == 44,
        _ => false,
    }
}

/// Both links have an MTU that leaves less than 1,280 bytes inside: IPv6 packets up to 1,280 bytes pass in fragments, and
/// nothing else does.
fn small(encapsulation: &str, underlay: u32, family: Family) {
    let version = if family == Family::V4 { 4 } else { 6 };
    let subject = format!("small{encapsulation}{underlay}v{version}");
    if !can_make_namespaces(&subject) {
        return;
    }
    let hosts = [HostSpec::named("h1").with_mtu(underlay), HostSpec::named("h2").with_mtu(underlay)];
    let binaries = Binaries::for_tests().unwrap();
    let name = lab_name(&format!("s{}{}{version}", &encapsulation[..1], underlay / 10));
    let overlay = Overlay::start(&name, binaries, &hosts, 1, encapsulation, |cluster| cluster.underlay = family);
    let overlay = overlay.unwrap();
    let _logs = overlay.lab.logs_on_failure();
    let inner = underlay - overhead(encapsulation, family);
    assert!(inner < 1280, "the underlay is to be too small for IPv6");
    let containers = [overlay.container("h1c1"), overlay.container("h2c1")];
    let hosts = [overlay.lab.host("h1").unwrap(), overlay.lab.host("h2").unwrap()];

    for ((from, to), (host, peer)) in
        [(0, 1), (1, 0)].map(|(a, b)| ((containers[a], containers[b]), (hosts[a], hosts[b])))
    {
        wait_for(&format!("{} to carry packets as configured", host.name()), LIMIT, || {
            let known = overlay.peer(host.name(), peer.name()).ok()?;
            (known.encapsulation.to_string() == encapsulation && known.mtu.map(u32::from) == Some(inner)).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", overlay.peer(host.name(), peer.name())));
        assert!(says_fragmented(&overlay, host.name(), peer.name()), "status does not say that IPv6 is fragmented");
        let fragments = || Capture::start(peer.view().namespace(), is_outer_fragment).unwrap();

        // The smallest MTU of IPv6, as one packet of the container, and as fragments that it makes itself.
        let watched = fragments();
        for words in ["-s 1232 -M do", "-s 1452 -M dont"] {
            let words = format!("-c 100 -i 0.005 -W 2 {words}");
            let report = ping(&from.view, &words, &to.v6.to_string()).unwrap();
            assert_eq!((report.sent, report.received), (100, 100), "{}", report.text);
        }
        let found = watched.finish();
        assert!(found.matches >= 400, "{found:?}: two fragments each, there and back");

        // What fits, and what can be told that it does not, is never fragmented outside.
        let watched = fragments();
        let fits = ping(&from.view, &format!("-c 5 -i 0.02 -W 2 -s {} -M do", inner - 48), &to.v6.to_string()).unwrap();
        assert!(fits.is_lossless(), "{}", fits.text);
        let told = ping(&from.view, "-c 2 -i 0.05 -W 1 -s 1252 -M do", &to.v4.to_string()).unwrap();
        let exactly = [format!("mtu = {inner}"), format!("mtu={inner}"), format!("mtu: {inner}")];
        assert!(exactly.iter().any(|text| told.text.contains(text)), "wanted mtu {inner}: {}", told.text);
        let exact =
            ping(&from.view, &format!("-c 5 -i 0.02 -W 2 -s {} -M do", inner - 28), &to.v4.to_string()).unwrap();
        assert!(exact.is_lossless(), "{}", exact.text);
        stream(&overlay, from, to, 4 << 20);
        let found = watched.finish();
        assert!(found.frames > 100, "{found:?}: the capture saw no traffic");
        assert_eq!(found.matches, 0, "{found:?}");
    }
    let output = overlay.lab.ctl("h1", &["doctor"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let said =
        format!("{inner} bytes remain inside, so IPv6 packets of {} to 1280 bytes go in two fragments", inner + 1);
    assert!(text.contains(&format!("eth0 has MTU {underlay}: {said}")), "{text}");
    for host in ["h1", "h2"] {
        assert_eq!(overlay.drops(host, "underlay_too_big"), 0, "{host} dropped packets in silence");
    }
}

#[test]
fn wireguard_over_1300_carries_1280_bytes_of_ipv6() {
    small("wireguard", 1300, Family::V4);
}

#[test]
fn wireguard_over_1280_carries_1280_bytes_of_ipv6() {
    small("wireguard", 1280, Family::V4);
}

#[test]
fn gre_over_1300_carries_1280_bytes_of_ipv6() {
    small("gre", 1300, Family::V4);
}

#[test]
fn gre_over_1280_carries_1280_bytes_of_ipv6() {
    small("gre", 1280, Family::V4);
}

#[test]
fn ipip_over_1280_carries_1280_bytes_of_ipv6() {
    small("ipip", 1280, Family::V4);
}

#[test]
fn ipv6_underlay_of_1300_carries_1280_bytes_of_ipv6_in_wireguard() {
    small("wireguard", 1300, Family::V6);
}

#[test]
fn ipv6_underlay_of_1280_carries_1280_bytes_of_ipv6_in_gre() {
    small("gre", 1280, Family::V6);
}

#[test]
fn ipv6_underlay_of_1280_carries_1280_bytes_of_ipv6_in_ipip() {
    small("ipip", 1280, Family::V6);
}

//! The path's MTU is respected and told to senders, over each encapsulation and with a smaller underlay.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{Binaries, HostSpec, ping, wait_for};
use overlay_tests::{Overlay, can_make_namespaces, lab_name};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// Bytes that each encapsulation adds to an inner packet over IPv4; GRE between members carries a key.
fn overhead(encapsulation: &str) -> u32 {
    match encapsulation {
        "wireguard" => 20 + 8 + 32,
        "gre" => 20 + 8,
        _ => 20,
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
    let inner = (underlay - overhead(encapsulation)).min(1420);

    // The first packet that does not fit teaches the path: a router answers it, and the daemon passes that on.
    let _ = ping(&from.view, "-c 2 -i 0.05 -W 1 -s 1392 -M do", &to.v4.to_string()).unwrap();
    wait_for(&format!("h1 to know the inner MTU {inner}"), LIMIT, || {
        let known = overlay.peer("h1", "h2").ok()?.mtu?;
        (u32::from(known).min(1420) == inner).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", overlay.peer("h1", "h2")));
    for address in [IpAddr::V4(to.v4), IpAddr::V6(to.v6)] {
        let server = Server::start(to.view.namespace(), SocketAddr::new(address, 0)).unwrap();
        let bytes = Amount::Bytes(8 << 20);
        load::send(from.view.namespace(), server.address(), bytes, Content::Verified).unwrap();
    }

    // Without DF a packet larger than the path is fragmented and answered every time.
    let report = ping(&from.view, "-c 100 -i 0.005 -W 2 -s 1472 -M dont", &to.v4.to_string()).unwrap();
    assert_eq!((report.sent, report.received), (100, 100), "{}", report.text);
    // In IPv6 the sender fragments, once it was told.
    let _ = ping(&from.view, "-c 2 -i 0.05 -W 1 -s 1452 -M dont", &to.v6.to_string()).unwrap();
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

//! Containers on different hosts reach each other over each encapsulation, and the status says so.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{ControlState, DataState, Health};
use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{Binaries, Family, HostSpec, Pings, ping, wait_for};
use overlay_tests::{Capture, Overlay, can_make_namespaces, lab_name};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);
/// Sent in the payload of pings and looked for on the underlay.
const CANARY: &str = "c0ffee5ec2e7f00dc0ffee5ec2e7f00d";

fn overlay(subject: &str, encapsulation: &str, underlay: Family) -> Option<Overlay> {
    if !can_make_namespaces(subject) {
        return None;
    }
    let binaries = Binaries::for_tests().unwrap();
    let hosts = HostSpec::numbered(2);
    let overlay = Overlay::start(&lab_name(subject), binaries, &hosts, 1, encapsulation, |cluster| {
        cluster.underlay = underlay;
    });
    Some(overlay.unwrap())
}

/// Pings and verified streams both ways and in both families, and the status of both hosts.
fn everything_passes(overlay: &Overlay, encapsulation: &str) {
    for (from, to) in [("h1c1", "h2c1"), ("h2c1", "h1c1")] {
        let (from, to) = (overlay.container(from), overlay.container(to));
        for address in [IpAddr::V4(to.v4), IpAddr::V6(to.v6)] {
            let report = ping(&from.view, "-c 5 -i 0.02 -W 2", &address.to_string()).unwrap();
            assert!(report.is_lossless(), "{}", report.text);
            let server = Server::start(to.view.namespace(), SocketAddr::new(address, 0)).unwrap();
            let bytes = Amount::Bytes(16 << 20);
            load::send(from.view.namespace(), server.address(), bytes, Content::Verified).unwrap();
        }
    }
    for (host, other) in [("h1", "h2"), ("h2", "h1")] {
        let encrypted = encapsulation == "wireguard";
        let (status, _) = wait_for("a status that says so", LIMIT, || {
            let status = overlay.status(host).ok()?;
            let peer = &status.peers[0];
            let shown = if encrypted {
                status.health == Health::Healthy
            } else {
                peer.problems.iter().any(|problem| problem.code == "UNAUTHENTICATED_UNDERLAY")
            };
            (shown && peer.data == DataState::Up).then_some(status)
        })
        .unwrap_or_else(|error| panic!("{error}\n{:#?}", overlay.status(host)));
        let peer = &status.peers[0];
        assert_eq!(peer.name, other);
        assert_eq!(peer.encapsulation.to_string(), encapsulation);
        assert_eq!(peer.control, ControlState::Up);
        assert_eq!(peer.authenticated, encrypted);
        assert!(peer.tx_bytes > 16 << 20 && peer.rx_bytes > 16 << 20, "{peer:?}");
    }
}

/// Sends the canary between the containers and counts the underlay frames that show it.
fn canary_frames(overlay: &Overlay) -> u64 {
    let bytes: Vec<u8> =
        (0..CANARY.len()).step_by(2).map(|at| u8::from_str_radix(&CANARY[at..at + 2], 16).unwrap()).collect();
    let capture = Capture::start(overlay.lab.switch().namespace(), Capture::containing(&bytes)).unwrap();
    let to = overlay.container("h2c1").v4.to_string();
    let report = ping(&overlay.container("h1c1").view, &format!("-c 20 -i 0.01 -W 1 -p {CANARY}"), &to).unwrap();
    assert!(report.is_lossless(), "{}", report.text);
    let found = capture.finish();
    assert!(found.frames >= 40, "the capture must see the packets themselves: {found:?}");
    found.matches
}

#[test]
fn wireguard_carries_both_families_and_shows_no_plaintext() {
    let Some(overlay) = overlay("wg", "wireguard", Family::V4) else { return };
    everything_passes(&overlay, "wireguard");
    assert_eq!(canary_frames(&overlay), 0);
}

#[test]
fn wireguard_over_ipv6_underlay_carries_both_families() {
    let Some(overlay) = overlay("wgsix", "wireguard", Family::V6) else { return };
    everything_passes(&overlay, "wireguard");
}

#[test]
fn gre_carries_both_families() {
    let Some(overlay) = overlay("gre", "gre", Family::V4) else { return };
    everything_passes(&overlay, "gre");
}

#[test]
fn ipip_carries_both_families_and_its_plaintext_is_seen() {
    let Some(overlay) = overlay("ipip", "ipip", Family::V4) else { return };
    everything_passes(&overlay, "ipip");
    // The control of the check for plaintext: without encryption the same capture finds it.
    assert!(canary_frames(&overlay) >= 40);
}

#[test]
fn change_to_a_plain_encapsulation_while_packets_flow_loses_none() {
    let Some(overlay) = overlay("live", "wireguard", Family::V4) else { return };
    let change_both = |encapsulation: &str| {
        for (host, other) in [("h1", "h2"), ("h2", "h1")] {
            let setting = format!("encapsulation={encapsulation}");
            overlay.lab.ctl_ok(host, &["peer", "set", other, &setting]).unwrap();
        }
        let shown = |host: &str| overlay.status(host).unwrap().peers[0].encapsulation.to_string();
        wait_for("both ends to change", LIMIT, || {
            ["h1", "h2"].iter().all(|host| shown(host) == encapsulation).then_some(())
        })
        .unwrap();
    };
    let (from, to) = (&overlay.container("h1c1").view, overlay.container("h2c1").v4.to_string());
    for encapsulation in ["gre", "ipip"] {
        let pinging = Pings::start(from, "-i 0.005 -W 2", &to).unwrap();
        change_both(encapsulation);
        // Some more over the new one.
        assert!(ping(from, "-c 20 -i 0.01 -W 2", &to).unwrap().is_lossless());
        let report = pinging.stop().unwrap();
        assert!(report.sent > 20 && report.is_lossless(), "to {encapsulation}: {}", report.text);
        change_both("wireguard");
    }
}

/// The end that knows first that both asked must wait until the other knows it too.
#[test]
fn plain_packets_are_not_sent_to_one_that_has_not_heard_of_them() {
    let Some(overlay) = overlay("deaf", "wireguard", Family::V4) else { return };
    let rules = "add table inet deaf { chain in { type filter hook prerouting priority raw; \
                 udp dport 51821 @th,64,8 > 4 counter drop; }; }";
    let set = |host: &str, other: &str| {
        overlay.lab.ctl_ok(host, &["peer", "set", other, "encapsulation=gre"]).unwrap();
    };
    let nft = |words: &[&str]| overlay.lab.exec("h1", &[&["nft"], words].concat()).unwrap();
    set("h1", "h2");
    // Gossip does not reach h1 any more, WireGuard and GRE do.
    assert!(nft(&[rules]).status.success());
    set("h2", "h1");
    // Longer than h1 needs to tell h2 what it asks for.
    let (from, to) = (&overlay.container("h1c1").view, overlay.container("h2c1").v4.to_string());
    let report = ping(from, "-c 150 -i 0.01 -W 2", &to).unwrap();
    assert!(report.is_lossless(), "{}", report.text);
    let counted = String::from_utf8(nft(&["list", "table", "inet", "deaf"]).stdout).unwrap();
    assert!(!counted.contains("packets 0 "), "nothing was kept from h1: {counted}");
    nft(&["delete", "table", "inet", "deaf"]);
    wait_for("both ends to change", LIMIT, || {
        let shown = |host: &str| overlay.status(host).unwrap().peers[0].encapsulation.to_string();
        ["h1", "h2"].iter().all(|host| shown(host) == "gre").then_some(())
    })
    .unwrap();
    assert!(ping(from, "-c 20 -i 0.01 -W 2", &to).unwrap().is_lossless());
}

//! The Linux kernel's own tunnels, in a virtual machine, as foreign peers.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use overlay_netns_harness::qemu::{GUEST_V4, Guest, Image};
use overlay_netns_harness::wait_for;
use overlay_tests::{FOREIGN_V4, FOREIGN_V6, Foreign, can_use, lab_name};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
const SECTION: &str = "[[peer]]\nname = \"kernel\"\nallowed_ips = [\"10.99.0.0/24\", \"fd99::/64\"]\n";

/// The lab with a guest behind `h2`.
fn kernel() -> Option<(Guest, Foreign)> {
    if !can_use("kernel", &[("command -v wg", "wireguard-tools")]) {
        return None;
    }
    let image = match Image::prepare() {
        Ok(image) => image,
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "no guest: {error:#}");
            eprintln!("SKIPPED kernel: {error:#}");
            return None;
        }
    };
    let binaries = overlay_netns_harness::Binaries::for_tests().unwrap();
    let foreign = Foreign::start(&lab_name("kernel"), binaries).unwrap();
    let guest = Guest::boot(&foreign.lab, "h2", &image).unwrap();
    Some((guest, foreign))
}

/// Gives the guest's tunnel devices their addresses and routes.
fn address(guest: &mut Guest, v4: &str, v6: &str) {
    for (device, family) in [(v4, "4"), (v6, "6")] {
        let (own, pool) = if family == "4" { (FOREIGN_V4, "10.42.0.0/16") } else { (FOREIGN_V6, "fd42::/48") };
        guest.run(&format!("ip link set {device} up")).unwrap();
        let length = if family == "4" { "24" } else { "64 nodad" };
        guest.run(&format!("ip addr add {own}/{length} dev {device}")).unwrap();
        guest.run(&format!("ip -{family} route replace {pool} dev {device}")).unwrap();
    }
}

/// Echoes in both families, asked for by either side.
fn both_ways(guest: &mut Guest, foreign: &Foreign, what: &str) {
    for (outside, inside) in foreign.pairs() {
        wait_for(what, LIMIT, || foreign.reaches(outside).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: the container asks {outside}"));
        let asked = format!("ping -n -c 2 -i 0.2 -W 5 -I {outside} {inside}");
        let (status, text) = guest.try_run(&asked).unwrap();
        assert_eq!(status, 0, "{what}: the kernel asks {inside}\n{text}");
    }
}

fn gre_section(key: bool, checksum: bool, sequence: bool) -> String {
    let key = if key { "gre_key = 4711\n" } else { "" };
    format!(
        "{SECTION}encapsulation = \"gre\"\nendpoint = \"{GUEST_V4}\"\n{key}gre_checksum = {checksum}\n\
         gre_sequence = {sequence}\n"
    )
}

#[test]
#[ignore = "boots a machine by emulation, which takes minutes beside other work: run it alone with --ignored"]
fn kernel_tunnels_reach_us_and_are_reached() {
    let Some((mut guest, foreign)) = kernel() else { return };
    let _logs = foreign.lab.logs_on_failure();
    let ends = format!("local {GUEST_V4} remote 192.0.2.1 ttl 64");

    // Two devices: ipip carries IPv4, sit carries IPv6; one peer on our side.
    foreign.reload(&format!("{SECTION}encapsulation = \"ipip\"\nendpoint = \"{GUEST_V4}\"\n")).unwrap();
    guest.run(&format!("ip link add four type ipip {ends}")).unwrap();
    guest.run(&format!("ip link add six type sit {ends}")).unwrap();
    address(&mut guest, "four", "six");
    both_ways(&mut guest, &foreign, "ipip and sit");
    guest.run("ip link del four; ip link del six").unwrap();

    for bits in 0..8u8 {
        let (key, checksum, sequence) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        // Killed, so that our sequence numbers begin anew like those of the kernel's fresh device.
        foreign.restart(&gre_section(key, checksum, sequence)).unwrap();
        let mut options = String::new();
        for (on, words) in [(key, " key 4711"), (checksum, " csum"), (sequence, " seq")] {
            options += if on { words } else { "" };
        }
        guest.run(&format!("ip link add gre9 type gre {ends}{options}")).unwrap();
        address(&mut guest, "gre9", "gre9");
        both_ways(&mut guest, &foreign, &format!("gre{options}"));
        if key {
            // The control: with another key on our side nothing passes.
            foreign.reload(&gre_section(key, checksum, sequence).replace("4711", "4712")).unwrap();
            assert!(!foreign.reaches(FOREIGN_V4), "a wrong key passed");
        }
        guest.run("ip link del gre9").unwrap();
    }

    let public_key = guest.run("umask 077; wg genkey > /tmp/key; wg pubkey < /tmp/key").unwrap();
    guest.run("ip link add wg9 type wireguard; wg set wg9 listen-port 51820 private-key /tmp/key").unwrap();
    let allowed = "allowed-ips 10.42.0.0/16,fd42::/48";
    let ours = &foreign.public_key;
    guest.run(&format!("wg set wg9 peer {ours} {allowed} endpoint 192.0.2.1:51821")).unwrap();
    address(&mut guest, "wg9", "wg9");
    let section = format!("{SECTION}public_key = \"{}\"\n", public_key.trim());
    for endpoint in [format!("endpoint = \"{GUEST_V4}:51820\"\n"), String::new()] {
        foreign.restart(&format!("{section}{endpoint}")).unwrap();
        if endpoint.is_empty() {
            // The kernel begins: it forgets its session and sends.
            guest.run(&format!("wg set wg9 peer {ours} remove")).unwrap();
            guest.run(&format!("wg set wg9 peer {ours} {allowed} endpoint 192.0.2.1:51821")).unwrap();
            let asked = format!("ping -n -c 1 -W 10 -I {FOREIGN_V4} {}", foreign.container.v4);
            wait_for("the kernel's handshake", LIMIT, || (guest.try_run(&asked).unwrap().0 == 0).then_some(()))
                .unwrap();
        }
        both_ways(&mut guest, &foreign, "wireguard");
    }
    assert!(foreign.peer("kernel").unwrap().authenticated);
}

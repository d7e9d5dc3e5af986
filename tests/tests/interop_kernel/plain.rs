//! The kernel's `ipip`, `sit` and `gre` devices.

use overlay_netns_harness::qemu::GUEST_V4;
use overlay_tests::FOREIGN_V4;

use crate::{ALLOWED, Kernel, kernel};

fn section(encapsulation: &str, more: &str) -> String {
    format!(
        "[[peer]]\nname = \"kernel\"\n{ALLOWED}encapsulation = \"{encapsulation}\"\nendpoint = \"{GUEST_V4}\"\n{more}\n"
    )
}

fn link(kernel: &Kernel, device: &str, kind: &str, options: &str) {
    let ends = format!("local {GUEST_V4} remote 192.0.2.1 ttl 64");
    kernel.run(&format!("ip link add {device} type {kind} {ends}{options}"));
}

#[test]
fn ipip_and_sit_reach_us_and_are_reached() {
    let Some(kernel) = kernel("ipip and sit") else { return };
    let _logs = kernel.foreign.lab.logs_on_failure();
    // Two devices: ipip carries IPv4, sit carries IPv6; one peer on our side.
    kernel.set_peer(&section("ipip", "")).unwrap();
    link(&kernel, "four", "ipip", "");
    link(&kernel, "six", "sit", "");
    kernel.address("four", "six");
    kernel.both_ways("ipip and sit");
    // The control: what the device does not carry does not pass.
    kernel.run("ip link set four down");
    assert!(!kernel.foreign.reaches(FOREIGN_V4), "an echo without a device");
    kernel.run("ip link del four; ip link del six");
}

#[test]
fn gre_with_every_option_reaches_us_and_is_reached() {
    let Some(kernel) = kernel("gre") else { return };
    let _logs = kernel.foreign.lab.logs_on_failure();
    for bits in 0..8u8 {
        let (key, checksum, sequence) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let number = if key { "gre_key = 4711\n" } else { "" };
        let more = format!("{number}gre_checksum = {checksum}\ngre_sequence = {sequence}");
        kernel.set_peer(&section("gre", &more)).unwrap();
        let mut options = String::new();
        for (on, words) in [(key, " key 4711"), (checksum, " csum"), (sequence, " seq")] {
            options += if on { words } else { "" };
        }
        link(&kernel, "gre9", "gre", &options);
        kernel.address("gre9", "gre9");
        kernel.both_ways(&format!("gre{options}"));
        if key {
            // The control: with another key on our side nothing passes.
            kernel.set_peer(&section("gre", &more.replace("4711", "4712"))).unwrap();
            assert!(!kernel.foreign.reaches(FOREIGN_V4), "a wrong key passed");
        }
        kernel.run("ip link del gre9");
    }
}

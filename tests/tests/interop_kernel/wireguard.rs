//! The kernel's `wireguard` device.

use overlay_netns_harness::qemu::GUEST_V4;
use overlay_netns_harness::wait_for;
use overlay_tests::{Capture, FOREIGN_V4, Outer, wireguard_kind};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{ALLOWED, Kernel, LIMIT, kernel};

/// Of `wg set`.
pub(crate) const OUR_ENDPOINT: &str = "endpoint 192.0.2.1:51821";
/// Of the configuration.
pub(crate) const THEIR_ENDPOINT: &str = "endpoint = \"192.0.2.50:51820\"";

/// A device `wg9` in the guest, removed when dropped.
pub(crate) struct Device<'a> {
    kernel: &'a Kernel,
    pub(crate) public_key: String,
}

impl Device<'_> {
    pub(crate) fn start(kernel: &Kernel) -> Device<'_> {
        let public_key = kernel.run("umask 077; wg genkey > /tmp/key; wg pubkey < /tmp/key");
        kernel.run("ip link add wg9 type wireguard; wg set wg9 listen-port 51820 private-key /tmp/key");
        kernel.address("wg9", "wg9");
        Device { kernel, public_key: public_key.trim().to_owned() }
    }

    /// Makes our host its only peer, without any session; `more` are further words of `wg set`.
    pub(crate) fn forget(&self, more: &str) {
        let key = &self.kernel.foreign.public_key;
        let allowed = "allowed-ips 10.42.0.0/16,fd42::/48";
        let line = format!("wg set wg9 peer {key} remove; wg set wg9 peer {key} {allowed} {more}");
        self.kernel.run(&line);
    }

    pub(crate) fn section(&self, more: &str) -> String {
        format!("[[peer]]\nname = \"kernel\"\n{ALLOWED}public_key = \"{}\"\n{more}\n", self.public_key)
    }

    fn shaken(&self) -> bool {
        let text = self.kernel.run("wg show wg9 latest-handshakes");
        text.split_whitespace().nth(1).is_some_and(|seconds| seconds != "0")
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let _ = self.kernel.guest.borrow_mut().run("ip link del wg9");
    }
}

#[test]
fn both_sides_can_start() {
    let Some(kernel) = kernel("wireguard") else { return };
    let _logs = kernel.foreign.lab.logs_on_failure();
    let device = Device::start(&kernel);
    device.kernel.set_peer(&device.section(THEIR_ENDPOINT)).unwrap();
    device.forget("");
    device.kernel.both_ways("wireguard, we start");
    device.kernel.set_peer(&device.section("")).unwrap();
    device.forget(OUR_ENDPOINT);
    let to = IpAddr::V4(device.kernel.foreign.container.v4);
    device.kernel.is_reached("wireguard, the kernel starts", FOREIGN_V4, to);
    device.kernel.both_ways("wireguard, the kernel starts");
    let status = device.kernel.foreign.peer("kernel").unwrap();
    assert!(status.authenticated, "{status:?}");
    assert_eq!(status.endpoint.as_deref(), Some("192.0.2.50:51820"), "{status:?}");
}

#[test]
fn preshared_key_must_be_the_same_on_both_sides() {
    let Some(kernel) = kernel("preshared key") else { return };
    let _logs = kernel.foreign.lab.logs_on_failure();
    let device = Device::start(&kernel);
    let right = device.kernel.run("umask 077; wg genpsk | tee /tmp/psk");
    let ours = "/run/overlay/kernel.psk";
    let with = format!("{THEIR_ENDPOINT}\npreshared_key_file = \"{ours}\"");
    let write = |kernel: &Kernel, key: &str| {
        let script = format!("umask 077; echo {} > {ours}", key.trim());
        assert!(kernel.foreign.lab.exec("h1", &["sh", "-c", &script]).unwrap().status.success());
    };
    let wrong = device.kernel.run("wg genpsk");
    write(device.kernel, &wrong);
    device.kernel.set_peer(&device.section(&with)).unwrap();
    device.forget("preshared-key /tmp/psk");
    for _ in 0..5 {
        assert!(!device.kernel.foreign.reaches(FOREIGN_V4), "a packet came back without the right key");
    }
    assert!(!device.shaken());
    // The right key is the control.
    write(device.kernel, &right);
    device.kernel.set_peer(&device.section(&with)).unwrap();
    device.kernel.reaches("an echo with the right key", FOREIGN_V4);
    assert!(device.shaken());
}

#[test]
fn persistent_keepalive_goes_both_ways_without_traffic() {
    let Some(kernel) = kernel("keepalive") else { return };
    let _logs = kernel.foreign.lab.logs_on_failure();
    let device = Device::start(&kernel);
    let host = device.kernel.foreign.lab.host("h1").unwrap();
    let (ours, theirs): (IpAddr, IpAddr) = (host.underlay_v4().into(), GUEST_V4.parse().unwrap());
    for (more, options, from) in [
        (format!("{THEIR_ENDPOINT}\npersistent_keepalive = 1"), "".to_owned(), ours),
        (String::new(), format!("{OUR_ENDPOINT} persistent-keepalive 1"), theirs),
    ] {
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        let host = device.kernel.foreign.lab.host("h1").unwrap();
        let capture = Capture::start(host.view().namespace(), move |frame| {
            let Some(outer) = Outer::parse(frame).filter(|outer| outer.source == from) else { return false };
            // To or from the device of this test, and nothing inside.
            let keepalive = outer.udp().is_some_and(|udp| {
                [udp.0, udp.1].contains(&51820) && udp.2.len() == 32 && wireguard_kind(udp.2) == Some(4)
            });
            counted.fetch_add(keepalive.into(), Ordering::Relaxed);
            keepalive
        })
        .unwrap();
        device.kernel.set_peer(&device.section(&more)).unwrap();
        device.forget(&options);
        wait_for("three keepalives", LIMIT, || (count.load(Ordering::Relaxed) >= 3).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: from {from}"));
        capture.finish();
        let status = device.kernel.foreign.peer("kernel").unwrap();
        if from == theirs {
            assert!(status.rx_packets >= 2, "the daemon counts them: {status:?}");
        }
        assert!(device.shaken());
    }
}

#[test]
fn kernel_that_moves_is_followed() {
    let Some(kernel) = kernel("roaming") else { return };
    kernel.route_to_guest("192.0.2.51");
    let _logs = kernel.foreign.lab.logs_on_failure();
    let device = Device::start(&kernel);
    device.kernel.set_peer(&device.section(THEIR_ENDPOINT)).unwrap();
    device.forget(OUR_ENDPOINT);
    device.kernel.reaches("an echo before the move", FOREIGN_V4);
    // The sessions of the other devices keep the source they have.
    device.kernel.run("ip addr add 192.0.2.51/32 dev eth0");
    device.kernel.run("ip route add 192.0.2.1/32 via 192.0.2.2 dev eth0 onlink src 192.0.2.51");
    device.kernel.run("wg set wg9 listen-port 51999");
    let to = IpAddr::V4(kernel.foreign.container.v4);
    kernel.is_reached("an echo from the new address", FOREIGN_V4, to);
    kernel.reaches("an echo towards the new address", FOREIGN_V4);
    let status = kernel.foreign.peer("kernel").unwrap();
    kernel.run("ip route del 192.0.2.1/32; ip addr del 192.0.2.51/32 dev eth0");
    assert_eq!(status.endpoint.as_deref(), Some("192.0.2.51:51999"));
}

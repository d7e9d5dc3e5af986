//! Ordinary TCP streams lose nothing to connection tracking: whatever the sizes of their writes, over each encapsulation,
//! and with the kernel's receive offload on the underlay on or off.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::load::{self, Server};
use overlay_netns_harness::{Binaries, HostSpec, netns, run_in};
use overlay_tests::{Overlay, can_use, lab_name};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Duration;

/// Sizes of writes: far below, around and above one segment.
const WRITES: [usize; 9] = [1, 10, 100, 333, 700, 1300, 1369, 1400, 3000];
/// Reasons for which connection tracking drops TCP segments.
const REASONS: [&str; 5] = ["tcp_window", "tcp_state", "tcp_reset", "tcp_no_flow", "tcp_flags"];

/// Sends one stream in many small writes, without Nagle's delay, and waits for the confirmation of every byte.
fn stream(namespace: &str, to: SocketAddr, seed: usize) {
    let mut stream = netns::within(namespace, || load::connect(to, Duration::from_secs(5))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // Not to be compared with a pattern.
    stream.write_all(&[0]).unwrap();
    let mut sent = 0;
    for step in 0..[1, 3, 20, 200][seed % 4] {
        let size = WRITES[(seed * 7 + step * 5 + step / 9) % WRITES.len()];
        stream.write_all(&vec![0x5a; size]).unwrap();
        sent += size as u64;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut confirmed = [0; 8];
    stream.read_exact(&mut confirmed).unwrap();
    assert_eq!(u64::from_be_bytes(confirmed), sent);
}

#[test]
fn streams_of_odd_writes_lose_nothing_to_connection_tracking() {
    if !can_use("streams", &[("command -v ethtool", "ethtool")]) {
        return;
    }
    let binaries = Binaries::for_tests().unwrap();
    for encapsulation in ["wireguard", "gre", "ipip"] {
        let name = lab_name(&format!("st{}", &encapsulation[..2]));
        let overlay =
            Overlay::start(&name, binaries.clone(), &HostSpec::numbered(2), 1, encapsulation, |_| ()).unwrap();
        let _logs = overlay.lab.logs_on_failure();
        for offload in ["off", "on"] {
            for host in ["h1", "h2"] {
                let view = overlay.lab.view(host).unwrap();
                run_in(&view, &["ethtool", "-K", "eth0", "gro", offload]).unwrap();
            }
            for (from, to) in [("h1c1", "h2c1"), ("h2c1", "h1c1")] {
                let (from, to) = (overlay.container(from), overlay.container(to));
                for address in [IpAddr::V4(to.v4), IpAddr::V6(to.v6)] {
                    let server = Server::start(to.view.namespace(), SocketAddr::new(address, 0)).unwrap();
                    (0..40).for_each(|seed| stream(from.view.namespace(), server.address(), seed));
                }
            }
            for host in ["h1", "h2"] {
                for reason in REASONS {
                    let dropped = overlay.drops(host, reason);
                    assert_eq!(dropped, 0, "{host} dropped {reason}, {encapsulation}, receive offload {offload}");
                }
            }
        }
    }
}

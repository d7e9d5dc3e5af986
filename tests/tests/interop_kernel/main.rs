//! The Linux kernel's own tunnels, in a virtual machine, as foreign peers.
//!
//! The machine boots once for all tests. Its WireGuard sessions that take two minutes begin with it, in network namespaces
//! of their own inside the machine, and are looked at by the last test.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod plain;
mod wireguard;
mod wireguard_rekey;
mod wireguard_under_load;

use anyhow::Result;
use overlay_netns_harness::qemu::{Guest, Image};
use overlay_netns_harness::{ip, load, netns, wait_for};
use overlay_tests::{FOREIGN_V4, FOREIGN_V6, Foreign, SharedLab, can_have, can_use};
use std::cell::{Cell, RefCell};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::MutexGuard;
use std::time::Duration;
use wireguard_rekey::Rekey;

static LAB: SharedLab<Kernel> = SharedLab::new();
/// How long a condition may take: the machine is emulated, on a computer with other work.
const LIMIT: Duration = Duration::from_secs(60);
/// The allowed addresses of the peer that each test makes.
const ALLOWED: &str = "allowed_ips = [\"10.99.0.0/24\", \"fd99::/64\"]\n";
/// Where the machine sends back what it gets over TCP.
const ECHO_PORT: u16 = 7000;
/// Bytes sent there and back.
const STREAM: usize = 128 << 10;

/// The lab with a guest behind `h2`.
struct Kernel {
    guest: RefCell<Guest>,
    rekey: Cell<Option<Rekey>>,
    /// The sections of the sessions that take two minutes, which no test takes away.
    sections: String,
    foreign: Foreign,
}

fn kernel(test: &str) -> Option<MutexGuard<'static, Kernel>> {
    if !can_use(test, &[("command -v wg", "wireguard-tools")]) {
        return None;
    }
    let image = can_have(test, Image::prepare())?;
    LAB.lease(
        "kernel",
        |name, binaries| {
            let foreign = Foreign::start(name, binaries)?;
            let mut guest = Guest::boot(&foreign.lab, "h2", &image)?;
            guest.run(&format!("nc -ll -p {ECHO_PORT} -e cat > /dev/null 2>&1 &"))?;
            let (rekey, sections) = Rekey::start(&foreign, &mut guest)?;
            Ok(Kernel { guest: RefCell::new(guest), rekey: Cell::new(Some(rekey)), sections, foreign })
        },
        |kernel| &kernel.foreign.lab,
    )
}

impl Kernel {
    /// Runs a shell command in the guest and returns what it printed.
    fn run(&self, line: &str) -> String {
        self.guest.borrow_mut().run(line).unwrap()
    }

    /// Runs a shell command in the guest; its exit status and what it printed.
    fn try_run(&self, line: &str) -> (i32, String) {
        self.guest.borrow_mut().try_run(line).unwrap()
    }

    /// Replaces the peer of this test while the daemon runs; a peer that was removed is new when it comes back.
    fn set_peer(&self, section: &str) -> Result<()> {
        self.foreign.reload(&self.sections)?;
        self.foreign.reload(&format!("{}{section}", self.sections))
    }

    /// Gives the guest's tunnel devices their addresses and routes.
    fn address(&self, v4: &str, v6: &str) {
        for (device, family) in [(v4, "4"), (v6, "6")] {
            let (own, pool) = if family == "4" { (FOREIGN_V4, "10.42.0.0/16") } else { (FOREIGN_V6, "fd42::/48") };
            self.run(&format!("ip link set {device} up"));
            let length = if family == "4" { "24" } else { "64 nodad" };
            self.run(&format!("ip addr add {own}/{length} dev {device}"));
            self.run(&format!("ip -{family} route replace {pool} dev {device}"));
        }
    }

    fn reaches(&self, what: &str, outside: &str) {
        wait_for(what, LIMIT, || self.foreign.reaches(outside).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: the container asks {outside}"));
    }

    fn is_reached(&self, what: &str, outside: &str, inside: IpAddr) {
        let asked = format!("ping -n -c 1 -W 5 -I {outside} {inside}");
        let mut last = String::new();
        wait_for(what, LIMIT, || {
            let (status, text) = self.try_run(&asked);
            last = text;
            (status == 0).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: the kernel asks {inside}\n{last}"));
    }

    /// Echoes in both families, asked for by either side, and a stream there and back.
    fn both_ways(&self, what: &str) {
        for (outside, inside) in self.foreign.pairs() {
            self.reaches(what, outside);
            self.is_reached(what, outside, inside);
            self.stream(outside).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        }
    }

    /// Sends a stream that comes back byte for byte.
    fn stream(&self, outside: &str) -> Result<()> {
        let to = SocketAddr::new(outside.parse()?, ECHO_PORT);
        let stream = netns::within(self.foreign.container.view.namespace(), || load::connect(to, LIMIT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let bytes: Vec<u8> = (0..STREAM).map(|at| (at * 7 + at / 251) as u8).collect();
        let mut back = Vec::new();
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                (&stream).write_all(&bytes)?;
                stream.shutdown(Shutdown::Write)
            });
            (&stream).read_to_end(&mut back)?;
            sender.join().expect("the sender does not panic")
        })?;
        anyhow::ensure!(back == bytes, "{} of {} bytes came back, or others", back.len(), bytes.len());
        Ok(())
    }

    /// Makes a further underlay address of the guest known to the host and the switch.
    fn route_to_guest(&self, address: &str) {
        let (host, switch) = (self.foreign.lab.host("h2").unwrap(), self.foreign.lab.switch());
        ip(&format!("-n {} route replace {address}/32 dev tap0", host.view().namespace())).unwrap();
        let (hop, switch) = (host.underlay_v4(), switch.namespace());
        ip(&format!("-n {switch} route replace {address}/32 via {hop} dev h2 onlink")).unwrap();
    }
}

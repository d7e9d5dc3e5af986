//! Garbage of every length on the port of a daemon, from an address that no member has.

use anyhow::{Context as _, Result, anyhow, ensure};
use overlay_netns_harness::{HostSpec, ip, nft, ping, run_in, wait_for};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::{Bound, Figure, Run};
use crate::forge::ipv4;
use crate::{Overlay, lab_name, raw_sender, resident_kib, udp_socket};

const PORT: u16 = 51821;
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
const LONGEST: usize = 65_507;
const LIMIT: Duration = Duration::from_secs(30);
/// Sent between two looks at the socket of the daemon, which must be empty before more is sent.
const BURST: u64 = 32;
/// Garbage before memory is looked at for the first time: every buffer was used then.
const WARM_UP: u64 = 10_000;

struct Rig {
    overlay: Overlay,
    pid: i32,
}

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay =
        Overlay::start(&lab_name("garbage"), run.binaries.clone(), &HostSpec::numbered(3), 1, "ipip", |_| {})?;
    let stranger = overlay.lab.host("h3")?.view().clone();
    ip(&format!("-n {} addr add {STRANGER}/32 dev eth0", stranger.namespace()))?;
    ip(&format!("-n {} route replace {STRANGER}/32 dev h3", overlay.lab.switch().namespace()))?;
    let count = "table ip garbage { counter answers { }\n  chain in { type filter hook prerouting priority -300;";
    nft(stranger.namespace(), &format!("{count}\n    ip daddr {STRANGER} counter name answers\n  }}\n}}"))?;
    let rig = Rig { pid: overlay.lab.daemon_pid("h1")?, overlay };
    let mut random = ChaCha20Rng::seed_from_u64(run.seed);
    rig.send(WARM_UP, &mut random)?;
    let before = rig.memory()?;
    let full = run.count(1_000_000, 20_000);
    let read = rig.send(full, &mut random)?;
    let grown = rig.memory()?.saturating_sub(before);
    let answers = rig.answers()?;
    let lost = u64::from(rig.overlay.lab.daemon_pid("h1")? != rig.pid || !rig.is_alive());
    let panics = lost + rig.overlay.lab.log("h1")?.matches("panicked").count() as u64;
    let to = IpAddr::V4(rig.overlay.container("h1c1").v4);
    wait_for("traffic after the garbage", LIMIT, || rig.overlay.reaches("h2c1", to).then_some(()))?;
    // The control: one echo request to the same address is counted.
    ping(rig.overlay.lab.host("h1")?.view(), "-c 1 -W 1", &STRANGER.to_string())?;
    ensure!(rig.answers()? > answers, "the counter of answers counts nothing");
    let what = format!("datagrams of garbage, 0 to {LONGEST} bytes");
    Ok(vec![
        Figure::new(format!("{what}, read by the daemon"), read as f64, "datagrams", Bound::AtLeast(full as f64)),
        Figure::new(format!("{what}: answers"), answers as f64, "packets", Bound::AtMost(0.0)),
        Figure::new(format!("{what}: panics"), panics as f64, "panics", Bound::AtMost(0.0)),
        Figure::new(format!("{what}: memory grown by"), grown as f64, "KiB", Bound::AtMost(1024.0)),
    ])
}

impl Rig {
    /// Sends until the daemon has read so many; how many it read.
    fn send(&self, count: u64, random: &mut ChaCha20Rng) -> Result<u64> {
        let namespace = self.overlay.lab.host("h3")?.view().namespace().to_owned();
        let victim = self.overlay.lab.host("h1")?.underlay_v4();
        let socket = udp_socket(&namespace, SocketAddr::new(STRANGER.into(), 4444))?;
        let raw = raw_sender(&namespace)?;
        let to = SocketAddr::new(victim.into(), PORT);
        let mut bytes = vec![0; LONGEST];
        random.fill_bytes(&mut bytes);
        let before = self.read()?;
        let mut number = 0_u64;
        while self.read()? < before + count {
            for _ in 0..BURST {
                number += 1;
                // Half of the datagrams are of any length, the others short enough for one frame.
                let longest = if number.is_multiple_of(2) { LONGEST } else { 1472 };
                let length = random.next_u64() as usize % (longest + 1);
                let head = length.min(64);
                random.fill_bytes(&mut bytes[..head]);
                match number % 8 {
                    // Each kind of WireGuard message.
                    kind @ 1..=4 if length >= 4 => bytes[..4].copy_from_slice(&[kind as u8, 0, 0, 0]),
                    // Each kind of gossip datagram of our version.
                    5 | 6 if length >= 2 => bytes[..2].copy_from_slice(&[0x20 + random.next_u32() as u8 % 5, 1]),
                    _ => {}
                }
                // A full buffer on the way loses it: what counts is what was read.
                let _ = socket.send_to(&bytes[..length], to);
                if number.is_multiple_of(4) {
                    let protocol = [4, 41, 47][(number / 4 % 3) as usize];
                    let _ = raw(&ipv4(STRANGER, victim, protocol, &bytes[..length.min(1400)]), to);
                }
            }
            self.wait_read()?;
            ensure!(number <= count * 3 + 1000, "of {number} datagrams only {} were read", self.read()? - before);
        }
        Ok(self.read()? - before)
    }

    /// Waits until the daemon has read what was sent, a millisecond at a time: this happens some ten thousand times.
    fn wait_read(&self) -> Result<()> {
        let start = Instant::now();
        while self.waiting()? > 0 {
            ensure!(start.elapsed() < LIMIT, "the daemon does not read what was sent");
            // SAFETY: no descriptors are passed; this only lets a millisecond pass.
            unsafe { libc::poll(std::ptr::null_mut(), 0, 1) };
        }
        Ok(())
    }

    /// Datagrams that were read from UDP sockets of the host: those of the daemon.
    fn read(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/net/snmp", self.pid))?;
        let line = text.lines().filter(|line| line.starts_with("Udp:")).nth(1).context("no UDP counters")?;
        Ok(line.split_whitespace().nth(1).context("no count of datagrams")?.parse()?)
    }

    /// Bytes that wait in the daemon's sockets.
    fn waiting(&self) -> Result<u64> {
        let port = format!(":{PORT:04X}");
        let mut bytes = 0;
        for file in ["udp", "udp6"] {
            let text = std::fs::read_to_string(format!("/proc/{}/net/{file}", self.pid))?;
            for line in text.lines() {
                let fields: Vec<&str> = line.split_whitespace().collect();
                if fields.get(1).is_some_and(|local| local.ends_with(&port)) {
                    let queues = fields.get(4).and_then(|queues| queues.split_once(':')).context("no queues")?;
                    bytes += u64::from_str_radix(queues.1, 16)?;
                }
            }
        }
        Ok(bytes)
    }

    fn memory(&self) -> Result<u64> {
        resident_kib(self.pid).ok_or_else(|| anyhow!("the daemon is gone"))
    }

    fn is_alive(&self) -> bool {
        self.overlay.status("h1").is_ok()
    }

    /// Packets that came for the stranger.
    fn answers(&self) -> Result<u64> {
        let view = self.overlay.lab.host("h3")?.view();
        let text = run_in(view, &["nft", "list", "counter", "ip", "garbage", "answers"])?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "packets").context("no counter")?;
        Ok(words.get(at + 1).context("no count")?.parse()?)
    }
}

//! Forged handshakes with a right first MAC, from many addresses, while a flow runs and a host joins.

use anyhow::{Context as _, Result, ensure};
use blake2::digest::Mac as _;
use blake2::{Blake2s256, Blake2sMac, Digest as _, digest::consts::U16};
use overlay_netns_harness::{netns, ping, wait_for};
use overlay_wire::gossip::{HostBody, RecordKind};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Bound, Figure, Run};
use crate::forge::{ipv4, udp_from};
use crate::{Certified, lab_name, raw_sender, udp_socket};

const PORT: u16 = 51821;
/// Forged handshakes per second.
const RATE: u64 = 20_000;
const SOURCES: u32 = 4096;
/// Datagrams of the flow per second, and their bytes.
const FLOW: (u64, usize) = (2000, 1000);
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let joiners = run.count(10, 1) as usize;
    // Two members, a host that only sends the flood, and hosts that join meanwhile.
    let certified = Certified::standby(&lab_name("hsflood"), run.binaries.clone(), 3 + joiners)?;
    certified.init("h1")?;
    certified.join("h2", "h1")?;
    for host in ["h1", "h2"] {
        certified.lab.add_container(host, "c1")?;
    }
    wait_for("traffic before", LIMIT, || certified.reaches("h2c1", "h1c1").then_some(()))?;
    let seconds = run.count(20, 3);
    let calm = flow(&certified, seconds)?;
    ensure!(calm >= 0.99, "only {calm} of the flow arrives without a flood");
    let key = wireguard_key(&certified, "h2", "h1")?;
    let refused = || -> Result<u64> { Ok(certified.status("h1")?.drops.values().sum()) };
    let before = refused()?;
    let flood = Flood::start(&certified, "h3", "h1", key, run.seed)?;
    wait_for("the flood to be noticed", LIMIT, || (refused().ok()? > before + RATE / 10).then_some(()))?;
    let share = flow(&certified, seconds)?;
    let mut slowest = 0.0_f64;
    for number in 4..4 + joiners {
        let host = format!("h{number}");
        let token = certified.invite("h1", &[])?;
        let start = Instant::now();
        certified.lab.ctl_ok(&host, &["join", &token, "--name", &host, "--timeout", "20s"])?;
        let joined = start.elapsed();
        let view = certified.lab.view(&host)?;
        let gateway = certified.lab.host("h1")?.overlay_v4().to_string();
        wait_for("a packet of the new member", LIMIT, || {
            ping(&view, "-c 1 -W 0.1", &gateway).ok()?.is_lossless().then_some(())
        })?;
        eprintln!("{host} joined after {joined:?}, carried data after {:?}", start.elapsed());
        slowest = slowest.max(start.elapsed().as_secs_f64());
    }
    let rate = flood.finish()?;
    Ok(vec![
        Figure::new("forged handshakes with a right first MAC", rate, "per second", Bound::AtLeast(0.95 * RATE as f64)),
        Figure::new("of an established flow meanwhile", 100.0 * share, "%", Bound::AtLeast(90.0)),
        Figure::new("an honest host joins and carries data after", slowest, "s", Bound::AtMost(2.0)),
    ])
}

/// The WireGuard key of this run of a member, as another has kept it.
fn wireguard_key(certified: &Certified, at: &str, of: &str) -> Result<[u8; 32]> {
    let owner = certified.status(of)?.host.id;
    let (key, _) = wait_for(&format!("{at} to have kept the record of {of}"), LIMIT, || {
        let records = certified.kept_records(at).ok()?;
        let record = records.into_iter().find(|it| (it.key.owner, it.key.kind) == (owner, RecordKind::HOST))?;
        HostBody::decode(&record.body).ok().map(|body| body.wireguard_key)
    })?;
    Ok(key)
}

/// Sends an even flow between the two containers; the share that arrived.
fn flow(certified: &Certified, seconds: u64) -> Result<f64> {
    let (from, to) = (certified.lab.container("h2c1")?, certified.lab.container("h1c1")?);
    let receiver = udp_socket(to.view.namespace(), SocketAddr::new(to.v4.into(), 7300))?;
    receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
    let sender = netns::within(from.view.namespace(), || Ok(UdpSocket::bind((from.v4, 0))?))?;
    let (total, bytes) = (FLOW.0 * seconds, [7; FLOW.1]);
    let counting = std::thread::spawn(move || {
        let (mut count, mut buffer) = (0_u64, [0; 2048]);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds + 10) {
            match receiver.recv(&mut buffer) {
                Ok(_) => count += 1,
                Err(_) if count > 0 => break,
                Err(_) => {}
            }
        }
        count
    });
    paced(FLOW.0, |number| {
        let _ = sender.send_to(&bytes, (to.v4, 7300));
        number + 1 < total
    });
    let arrived = counting.join().map_err(|_| anyhow::anyhow!("the receiver of the flow panicked"))?;
    Ok(arrived as f64 / total as f64)
}

/// Does something at an even rate for as long as it wants to go on.
pub(super) fn paced(per_second: u64, mut step: impl FnMut(u64) -> bool) {
    let start = Instant::now();
    let mut number = 0;
    loop {
        let due = start.elapsed().as_micros() as u64 * per_second / 1_000_000;
        // What could not be sent in time, on a machine that was busy, follows at once; as much as a tenth of a second.
        while number <= due {
            if !step(number) {
                return;
            }
            number += 1;
        }
        // SAFETY: no descriptors are passed; this only lets a millisecond pass.
        unsafe { libc::poll(std::ptr::null_mut(), 0, 1) };
    }
}

/// Forged handshakes until this is finished or dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    start: Instant,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn start(certified: &Certified, from: &str, to: &str, key: [u8; 32], seed: u64) -> Result<Flood> {
        let target = certified.lab.host(to)?.underlay_v4();
        let raw = raw_sender(certified.lab.view(from)?.namespace())?;
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let packets: Vec<Vec<u8>> = (0..SOURCES).map(|number| initiation(number, target, &key, &mut random)).collect();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let to = SocketAddr::from((target, 0));
            paced(RATE, |number| {
                if raw(&packets[number as usize % packets.len()], to).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                !stopped.load(Ordering::Relaxed)
            });
        });
        Ok(Flood { stop, sent, start: Instant::now(), thread: Some(thread) })
    }

    /// Ends it and says how many were sent per second.
    fn finish(mut self) -> Result<f64> {
        let rate = self.sent.load(Ordering::Relaxed) as f64 / self.start.elapsed().as_secs_f64();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().context("a flood is finished once")?.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        Ok(rate)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A whole packet with an initiation that has a right first MAC and nothing right behind it.
fn initiation(number: u32, target: Ipv4Addr, key: &[u8; 32], random: &mut ChaCha20Rng) -> Vec<u8> {
    let mut body = vec![1, 0, 0, 0];
    body.resize(116, 0);
    random.fill_bytes(&mut body[4..]);
    let mac_key = Blake2s256::new().chain_update(b"mac1----").chain_update(key).finalize();
    let mut mac = <Blake2sMac<U16> as blake2::digest::KeyInit>::new_from_slice(&mac_key).expect("32 bytes are a key");
    mac.update(&body);
    body.extend(mac.finalize().into_bytes());
    body.extend([0; 16]);
    let source = Ipv4Addr::from(u32::from_be_bytes([10, 200, 0, 0]) + number);
    ipv4(source, target, 17, &udp_from(1000, PORT, &body))
}

//! A wire that hands over the packets of a tunnel out of order, and each of them a second time.

use anyhow::{Result, anyhow, bail, ensure};
use overlay_netns_harness::wire::WireSpec;
use overlay_netns_harness::{HostSpec, netns, wait_for};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::flood::paced;
use super::{Bound, Figure, Run};
use crate::{Overlay, lab_name, udp_socket};

/// No packet is overtaken by as many others.
const DEPTH: usize = 1000;
/// Sent per second, and under way at most.
const RATE: u64 = 10_000;
const UNDER_WAY: u64 = 4000;
const LIMIT: Duration = Duration::from_secs(20);

/// What arrived.
#[derive(Default)]
struct Arrived {
    once: AtomicU64,
    again: AtomicU64,
    overtaken: AtomicU64,
    stop: AtomicBool,
}

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let count = run.count(1_000_000, 20_000);
    let wire = WireSpec { seed: run.seed, shuffle_depth: DEPTH, ..WireSpec::default() };
    let hosts = [HostSpec::named("h1").with_wire(wire), HostSpec::named("h2")];
    let overlay = Overlay::start(&lab_name("replay"), run.binaries.clone(), &hosts, 1, "wireguard", |_| {})?;
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let receiver = udp_socket(to.view.namespace(), SocketAddr::new(to.v4.into(), 7400))?;
    hold_much(&receiver)?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sender = netns::within(from.view.namespace(), || Ok(UdpSocket::bind((from.v4, 0))?))?;
    let refused = || overlay.drops("h2", "wireguard_replay");
    let before = refused();
    let arrived = Arc::new(Arrived::default());
    let counting = {
        let arrived = arrived.clone();
        std::thread::spawn(move || take(&receiver, count, &arrived))
    };
    let mut is_stuck = false;
    paced(RATE, |number| {
        let missing = || number.saturating_sub(arrived.once.load(Ordering::Relaxed));
        if missing() >= UNDER_WAY {
            is_stuck = wait_for("packets under way", LIMIT, || (missing() < UNDER_WAY).then_some(())).is_err();
        }
        let _ = sender.send_to(&number.to_be_bytes(), (to.v4, 7400));
        !is_stuck && number + 1 < count
    });
    let all = wait_for("all packets", LIMIT, || (arrived.once.load(Ordering::Relaxed) >= count).then_some(()));
    // Each packet passes the wire twice; the second of each is refused by the tunnel, if it was handed over at all.
    let second = wait_for("the repetitions", LIMIT, || (refused() - before >= count).then_some(()));
    arrived.stop.store(true, Ordering::Relaxed);
    counting.join().map_err(|_| anyhow!("the receiver panicked"))?;
    if let (Ok(_), Err(error)) = (&all, &second) {
        bail!("{error}; {} repetitions were refused", refused() - before);
    }
    let overtaken = arrived.overtaken.load(Ordering::Relaxed);
    ensure!(overtaken > count / 4, "the wire put only {overtaken} of {count} packets out of order");
    let again = arrived.again.load(Ordering::Relaxed) as f64;
    let lost = (count - arrived.once.load(Ordering::Relaxed)) as f64;
    let repeated = (refused() - before) as f64;
    let what = format!("packets out of order by up to {DEPTH} and repeated");
    Ok(vec![
        Figure::new(format!("{what}: repetitions refused"), repeated, "packets", Bound::AtLeast(count as f64)),
        Figure::new(format!("{what}: arrived twice"), again, "packets", Bound::AtMost(0.0)),
        Figure::new(format!("{what}: lost"), lost, "packets", Bound::AtMost(0.0)),
    ])
}

/// Room for every packet under way, beyond what the kernel grants unasked: whole blocks arrive at once.
fn hold_much(receiver: &UdpSocket) -> Result<()> {
    let bytes: libc::c_int = 16 << 20;
    let (value, length) = ((&raw const bytes).cast(), size_of_val(&bytes) as libc::socklen_t);
    // SAFETY: the option reads one integer, which lives across the call.
    let done = unsafe { libc::setsockopt(receiver.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, length) };
    ensure!(done == 0, "no room for packets: {}", std::io::Error::last_os_error());
    Ok(())
}

fn take(receiver: &UdpSocket, count: u64, arrived: &Arrived) {
    let mut seen = vec![false; count as usize];
    let mut highest = 0;
    let mut buffer = [0; 64];
    while !arrived.stop.load(Ordering::Relaxed) {
        let Ok(8) = receiver.recv(&mut buffer) else { continue };
        let Some(number) = buffer.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)) else { continue };
        let Some(cell) = seen.get_mut(number as usize) else { continue };
        let counter = if std::mem::replace(cell, true) { &arrived.again } else { &arrived.once };
        counter.fetch_add(1, Ordering::Relaxed);
        arrived.overtaken.fetch_add(u64::from(number < highest), Ordering::Relaxed);
        highest = highest.max(number);
    }
}

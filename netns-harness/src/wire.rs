//! A wire in user space: two taps and a seeded generator that delays, reorders, corrupts, loses and repeats frames.
//!
//! The same seed and the same sequence of frames give the same faults. Only the time a frame is held depends on the clock.

use anyhow::{Context as _, Result};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use crate::netns;
use shuffle::Shuffle;

mod shuffle;

/// The faults of a wire, each drawn per frame and direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WireSpec {
    /// Start of the random sequence.
    pub seed: u64,
    /// Time every frame is held.
    pub delay_ms: f64,
    /// Greatest additional time, drawn evenly; frames that overtake each other are reordered.
    pub jitter_ms: f64,
    /// Frames held for three times the delay (at least 3 ms) so that later ones overtake them, in percent.
    pub reorder_percent: f64,
    /// Frames with one bit flipped behind the Ethernet header, in percent.
    pub corrupt_percent: f64,
    /// Frames lost, in percent.
    pub loss_percent: f64,
    /// Frames sent twice, in percent.
    pub duplicate_percent: f64,
    /// Data messages of WireGuard over IPv4 on their way from left to right are put out of order so that none is overtaken
    /// by as many others, and each is sent a second time later; 0 leaves them alone.
    pub shuffle_depth: usize,
}

/// What happens to one frame: for each copy the time it is held and the bit that is flipped.
#[derive(Debug, Clone, PartialEq)]
pub struct Fate {
    /// The copies that arrive; none means the frame is lost.
    pub copies: Vec<(Duration, Option<usize>)>,
}

/// Draws the fate of frames from a seed.
#[derive(Debug)]
pub struct Faults {
    spec: WireSpec,
    random: ChaCha20Rng,
}

impl Faults {
    /// The faults of one direction of a wire.
    pub fn new(spec: &WireSpec, direction: u64) -> Faults {
        let mut random = ChaCha20Rng::seed_from_u64(spec.seed);
        random.set_stream(direction);
        Faults { spec: spec.clone(), random }
    }

    /// The fate of the next frame. Every draw is made for every frame, so that one setting does not shift the others.
    pub fn next(&mut self, frame_bytes: usize) -> Fate {
        let lost = self.happens(self.spec.loss_percent);
        let repeated = self.happens(self.spec.duplicate_percent);
        let corrupted = self.happens(self.spec.corrupt_percent);
        let overtaken = self.happens(self.spec.reorder_percent);
        let mut held = self.spec.delay_ms + self.spec.jitter_ms * self.share();
        if overtaken {
            held = (self.spec.delay_ms * 3.0).max(self.spec.delay_ms + 3.0);
        }
        let bit = self.random.next_u64();
        let header_bits = 14 * 8;
        let payload_bits = (frame_bytes * 8).saturating_sub(header_bits);
        let bit = (corrupted && payload_bits > 0).then(|| header_bits + (bit % payload_bits as u64) as usize);
        let copy = (Duration::from_secs_f64(held.max(0.0) / 1000.0), bit);
        Fate { copies: vec![copy; if lost { 0 } else { 1 + usize::from(repeated) }] }
    }

    fn happens(&mut self, percent: f64) -> bool {
        self.share() * 100.0 < percent
    }

    fn share(&mut self) -> f64 {
        f64::from(self.random.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }
}

/// When a frame goes out, its number, the tap it leaves by, and its bytes.
type Held = (Instant, u64, usize, Vec<u8>);

/// Makes a tap in each namespace (`NAMESPACE:DEVICE`) and carries frames between them until killed.
pub fn carry(left: &str, right: &str, spec: &WireSpec) -> Result<()> {
    let mut taps = [open_tap(left)?, open_tap(right)?];
    let mut faults = [Faults::new(spec, 0), Faults::new(spec, 1)];
    let mut shuffle = Shuffle::new(spec);
    let mut waiting: BinaryHeap<Reverse<Held>> = BinaryHeap::new();
    let mut sequence = 0;
    let mut buffer = vec![0; 65536];
    loop {
        let now = Instant::now();
        while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Some(Reverse((_, _, to, frame))) = waiting.pop() else { break };
            // A device that is down takes no frame; a wire does not care.
            let _ = taps[to].write(&frame);
        }
        let wait = waiting.peek().map(|Reverse((due, ..))| due.saturating_duration_since(now));
        let rest = shuffle.due().map(|due| due.saturating_duration_since(now));
        let readable = poll(&taps, wait.into_iter().chain(rest).min())?;
        // Waiting took time: a frame is held from when it came.
        let arrived = Instant::now();
        for frame in shuffle.take(arrived) {
            let _ = taps[1].write(&frame);
        }
        for from in 0..2 {
            if !readable[from] {
                continue;
            }
            let Ok(length) = taps[from].read(&mut buffer) else { continue };
            if from == 0 && shuffle.keep(&buffer[..length], arrived) {
                continue;
            }
            for (held, bit) in faults[from].next(length).copies {
                let mut frame = buffer[..length].to_vec();
                if let Some(bit) = bit {
                    frame[bit / 8] ^= 1 << (bit % 8);
                }
                sequence += 1;
                waiting.push(Reverse((arrived + held, sequence, 1 - from, frame)));
            }
        }
    }
}

fn poll(taps: &[File; 2], wait: Option<Duration>) -> Result<[bool; 2]> {
    let mut fds = [0, 1].map(|index| libc::pollfd { fd: taps[index].as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let time =
        wait.map(|wait| libc::timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the optional time live across the call; no signal mask is passed.
    let result = unsafe { libc::ppoll(fds.as_mut_ptr(), 2, time, std::ptr::null()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("waiting for frames");
    }
    Ok([fds[0].revents & libc::POLLIN != 0, fds[1].revents & libc::POLLIN != 0])
}

fn open_tap(place: &str) -> Result<File> {
    let (namespace, device) = place.split_once(':').context("an end of a wire is written NAMESPACE:DEVICE")?;
    netns::within(namespace, || {
        let tap = File::options().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads an ifreq, which lives across the call.
        if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &request) } < 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("making the tap {place}"));
        }
        Ok(tap)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> WireSpec {
        WireSpec { seed: 7, jitter_ms: 2.0, loss_percent: 10.0, corrupt_percent: 10.0, ..WireSpec::default() }
    }

    #[test]
    fn same_seed_gives_same_fates() {
        let draw = |direction| {
            let mut faults = Faults::new(&spec(), direction);
            (0..200).map(|_| faults.next(100)).collect::<Vec<_>>()
        };
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1), "the directions must differ");
    }

    #[test]
    fn loss_and_corruption_follow_their_shares() {
        let mut faults = Faults::new(&spec(), 0);
        let fates: Vec<Fate> = (0..10_000).map(|_| faults.next(100)).collect();
        let lost = fates.iter().filter(|fate| fate.copies.is_empty()).count();
        let corrupted = fates.iter().filter(|fate| fate.copies.iter().any(|copy| copy.1.is_some())).count();
        assert!((850..1150).contains(&lost), "{lost}");
        assert!((750..1050).contains(&corrupted), "{corrupted}");
    }

    #[test]
    fn faultless_wire_passes_every_frame_once() {
        let mut faults = Faults::new(&WireSpec::default(), 0);
        assert_eq!(faults.next(60).copies, [(Duration::ZERO, None)]);
    }
}

//! Frames of a tunnel put out of order by number, not by time, and each of them repeated.

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::time::{Duration, Instant};

use super::WireSpec;

/// When no frame came for so long, those at hand are sent on.
const IDLE: Duration = Duration::from_millis(50);

/// Keeps frames until a block is full, and gives the block in random order with the repetitions of the block before.
#[derive(Debug)]
pub(super) struct Shuffle {
    depth: usize,
    block: Vec<Vec<u8>>,
    /// Frames sent once.
    before: Vec<Vec<u8>>,
    last: Option<Instant>,
    random: ChaCha20Rng,
}

impl Shuffle {
    pub(super) fn new(spec: &WireSpec) -> Shuffle {
        let mut random = ChaCha20Rng::seed_from_u64(spec.seed);
        random.set_stream(2);
        Shuffle { depth: spec.shuffle_depth, block: Vec::new(), before: Vec::new(), last: None, random }
    }

    /// Takes a frame that is put out of order; another one is left alone.
    pub(super) fn keep(&mut self, frame: &[u8], now: Instant) -> bool {
        let is_kept = self.depth > 0 && is_data(frame);
        if is_kept {
            self.block.push(frame.to_vec());
            self.last = Some(now);
        }
        is_kept
    }

    /// When something is to be taken at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.last.map(|last| last + IDLE)
    }

    /// The frames to send now.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let is_idle = self.due().is_some_and(|due| due <= now);
        if self.block.len() < self.depth.max(1) && !is_idle {
            return Vec::new();
        }
        if is_idle && self.block.is_empty() {
            // Nothing follows: the repetitions are sent by themselves.
            self.last = None;
            return std::mem::take(&mut self.before);
        }
        self.last = Some(now);
        let mut out = std::mem::take(&mut self.block);
        for at in (1..out.len()).rev() {
            let other = (self.random.next_u64() % (at as u64 + 1)) as usize;
            out.swap(at, other);
        }
        let repeated = std::mem::replace(&mut self.before, out.clone());
        out.extend(repeated);
        out
    }
}

/// Whether an Ethernet frame holds a data message of WireGuard over IPv4, whole.
fn is_data(frame: &[u8]) -> bool {
    let header = 4 * usize::from(frame.get(14).copied().unwrap_or(0) & 15);
    frame.get(12..14) == Some(&[8, 0])
        && frame.get(23) == Some(&17)
        && frame.get(20).is_some_and(|flags| flags & 0x3f == 0)
        && frame.get(14 + header + 8..14 + header + 12) == Some(&[4, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(number: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 34, 0, 0, 0x40, 0, 64, 17]);
        frame.extend([0; 10 + 8]);
        frame.extend([4, 0, 0, 0]);
        frame.extend(number.to_be_bytes());
        frame
    }

    #[test]
    fn each_frame_is_given_twice_and_first_within_the_depth() {
        let start = Instant::now();
        let mut shuffle = Shuffle::new(&WireSpec { shuffle_depth: 100, ..WireSpec::default() });
        let mut given = Vec::new();
        for number in 0..250_u16 {
            assert!(shuffle.keep(&data(number), start));
            given.extend(shuffle.take(start));
        }
        while let Some(due) = shuffle.due() {
            given.extend(shuffle.take(due));
        }
        let numbers: Vec<u16> = given.iter().map(|frame| u16::from_be_bytes([frame[46], frame[47]])).collect();
        let mut first = Vec::new();
        for number in &numbers {
            if !first.contains(number) {
                first.push(*number);
            }
        }
        assert_eq!((numbers.len(), first.len()), (500, 250));
        let overtaken = |at: usize| first[..at].iter().filter(|other| **other > first[at]).count();
        let most = (0..first.len()).map(overtaken).max().unwrap();
        assert!((50..100).contains(&most), "{most}");
    }

    #[test]
    fn other_frames_and_wires_without_depth_are_left_alone() {
        let now = Instant::now();
        let mut shuffle = Shuffle::new(&WireSpec { shuffle_depth: 100, ..WireSpec::default() });
        let mut handshake = data(1);
        handshake[42] = 1;
        assert!(!shuffle.keep(&handshake, now) && !shuffle.keep(&[], now));
        assert!(!Shuffle::new(&WireSpec::default()).keep(&data(1), now));
        assert!(shuffle.due().is_none() && shuffle.take(now).is_empty());
    }
}

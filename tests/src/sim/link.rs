//! The underlay between hosts: loss, delay, reorder, duplication, corruption, one-way cuts and partitions.

use std::collections::BTreeSet;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore as _;

/// How long datagrams take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Delay {
    /// Every pair of hosts has its own shortest delay between these two.
    pub base: (Duration, Duration),
    /// The mean of what each datagram takes longer, distributed exponentially.
    pub jitter: Duration,
}

/// The faults of all links.
#[derive(Debug, Clone)]
pub struct Link {
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that it arrives twice.
    pub duplicate: f64,
    /// Probability that it is held back by up to 50 ms, so that later ones overtake it.
    pub reorder: f64,
    /// Probability that one of its bits is flipped.
    pub corrupt: f64,
    /// Delays.
    pub delay: Delay,
    /// Ordered pairs between which nothing passes.
    cut: BTreeSet<(usize, usize)>,
    /// The side of a partition each host is on.
    side: Vec<u8>,
    seed: u64,
}

/// The longest time a datagram is held back by reordering.
const HELD_BACK: Duration = Duration::from_millis(50);

impl Link {
    /// Links without any fault but this loss.
    #[must_use]
    pub fn new(nodes: usize, loss: f64, seed: u64) -> Self {
        let delay =
            Delay { base: (Duration::from_micros(300), Duration::from_millis(25)), jitter: Duration::from_millis(1) };
        Self {
            loss,
            duplicate: 0.0,
            reorder: 0.0,
            corrupt: 0.0,
            delay,
            cut: BTreeSet::new(),
            side: vec![0; nodes],
            seed,
        }
    }

    /// Whether datagrams pass in this direction.
    #[must_use]
    pub fn passes(&self, from: usize, to: usize) -> bool {
        self.side[from] == self.side[to] && (self.cut.is_empty() || !self.cut.contains(&(from, to)))
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        self.cut.remove(&(from, to));
    }

    pub(crate) fn put_on_side(&mut self, node: usize, side: u8) {
        self.side[node] = side;
    }

    /// Ends every fault; delays stay as they are.
    pub(crate) fn calm(&mut self) {
        self.heal();
        (self.loss, self.duplicate, self.reorder, self.corrupt) = (0.0, 0.0, 0.0, 0.0);
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.side.fill(0);
    }

    /// How long a datagram takes, or `None` when it is lost.
    pub(crate) fn carry(&self, from: usize, to: usize, rng: &mut ChaCha8Rng) -> Option<Duration> {
        if !self.passes(from, to) || chance(rng, self.loss) {
            return None;
        }
        let held = if chance(rng, self.reorder) { HELD_BACK.mul_f64(fraction(rng)) } else { Duration::ZERO };
        let jitter = self.delay.jitter.mul_f64(-(1.0 - fraction(rng)).ln());
        Some(self.base_delay(from, to) + jitter + held)
    }

    /// The shortest time from one host to another, the same both ways.
    pub(crate) fn base_delay(&self, from: usize, to: usize) -> Duration {
        let pair = (from.min(to) as u64) << 32 | from.max(to) as u64;
        // The finisher of splitmix64.
        let mut mixed = (pair ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^= mixed >> 27;
        let (low, high) = self.delay.base;
        low + (high - low).mul_f64(mixed as u32 as f64 / f64::from(u32::MAX))
    }
}

/// True with this probability.
pub(crate) fn chance(rng: &mut ChaCha8Rng, probability: f64) -> bool {
    probability > 0.0 && fraction(rng) < probability
}

/// Uniform from 0 to below 1.
pub(crate) fn fraction(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

/// Uniform below `limit`, which is above 0.
pub(crate) fn below(rng: &mut ChaCha8Rng, limit: usize) -> usize {
    (rng.next_u64() % limit as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

    #[test]
    fn loss_delay_and_cuts_are_as_asked() {
        let mut link = Link::new(4, 0.1, 5);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let arrived: Vec<Duration> = (0..20_000).filter_map(|_| link.carry(0, 1, &mut rng)).collect();
        assert!((17_700..18_300).contains(&arrived.len()), "{}", arrived.len());
        assert!(arrived.iter().all(|delay| *delay >= link.base_delay(1, 0)));
        link.cut(0, 1);
        link.put_on_side(2, 1);
        assert!((0..1000).all(|_| link.carry(0, 1, &mut rng).is_none() && link.carry(0, 2, &mut rng).is_none()));
        assert!((0..1000).any(|_| link.carry(1, 0, &mut rng).is_some()));
        link.heal();
        assert!((0..1000).any(|_| link.carry(0, 1, &mut rng).is_some()));
        assert!((0..1000).any(|_| link.carry(0, 2, &mut rng).is_some()));
    }
}

//! Faults, and the plan of a swarm run: each seed switches a random part of them on.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore as _;

use super::disk::Damage;
use super::link::{Delay, Link, below, fraction};

/// Something that happens at a time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// A host starts for the first time, or again.
    Boot(usize),
    /// A host stops without a word.
    Crash(usize, Damage),
    /// A host's process stands still.
    Stall(usize, Duration),
    /// A host's clock jumps forward.
    Jump(usize, Duration),
    /// Nothing passes from the first to the second.
    Cut(usize, usize),
    /// It passes again.
    Mend(usize, usize),
    /// The side of each host; nothing passes between sides.
    Partition(Vec<u8>),
    /// A host keeps its path to one other only.
    HalfConnect(usize, usize),
    /// Every cut and partition ends.
    Heal,
    /// A host announces these parts of its range.
    Announce(usize, Vec<u8>),
    /// The authority takes a host out for ever.
    Revoke(usize),
    /// Liars stop lying, links lose nothing, cuts end.
    Calm,
}

/// Which faults a run has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Swarm {
    pub(crate) liars: usize,
    loss: bool,
    delay: bool,
    duplicate: bool,
    reorder: bool,
    corrupt: bool,
    one_way: bool,
    partition: bool,
    crash: bool,
    lost_disk: bool,
    stall: bool,
    jump: bool,
    half_connected: bool,
}

impl Swarm {
    pub(crate) fn draw(rng: &mut ChaCha8Rng) -> Self {
        let mut coin = || rng.next_u32().is_multiple_of(2);
        Self {
            liars: usize::from(coin()),
            loss: coin(),
            delay: coin(),
            duplicate: coin(),
            reorder: coin(),
            corrupt: coin(),
            one_way: coin(),
            partition: coin(),
            crash: coin(),
            lost_disk: coin(),
            stall: coin(),
            jump: coin(),
            half_connected: coin(),
        }
    }

    /// The names of the faults that are on.
    pub(crate) fn names(&self) -> String {
        let all = [
            (self.liars > 0, "liar"),
            (self.loss, "loss"),
            (self.delay, "delay"),
            (self.duplicate, "duplicate"),
            (self.reorder, "reorder"),
            (self.corrupt, "corrupt"),
            (self.one_way, "one-way"),
            (self.partition, "partition"),
            (self.crash, "crash"),
            (self.crash && self.lost_disk, "lost disk"),
            (self.stall, "stall"),
            (self.jump, "clock jump"),
            (self.half_connected, "half-connected"),
        ];
        let on: Vec<&str> = all.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if on.is_empty() { "none".to_owned() } else { on.join(", ") }
    }

    /// Makes the links as bad as the run wants them.
    pub(crate) fn spoil(&self, link: &mut Link, loss: f64, rng: &mut ChaCha8Rng) {
        link.loss = if self.loss { loss * fraction(rng) } else { 0.0 };
        link.duplicate = if self.duplicate { 0.1 } else { 0.0 };
        link.reorder = if self.reorder { 0.1 } else { 0.0 };
        link.corrupt = if self.corrupt { 0.01 } else { 0.0 };
        if self.delay {
            link.delay = Delay {
                base: (Duration::from_millis(1), Duration::from_millis(150)),
                jitter: Duration::from_millis(20),
            };
        }
    }

    /// What happens in a run of this length; the last third is calm. `nodes` counts the honest hosts, which come first.
    pub(crate) fn plan(
        &self,
        nodes: usize,
        start: Duration,
        length: Duration,
        rng: &mut ChaCha8Rng,
    ) -> Vec<(Duration, Fault)> {
        let mut plan = Vec::new();
        let busy = length.mul_f64(0.66);
        let calm = start + busy;
        let mut at = start;
        loop {
            at += Duration::from_millis(500 + rng.next_u64() % 8000);
            if at >= calm {
                break;
            }
            let node = below(rng, nodes);
            let other = (node + 1 + below(rng, nodes - 1)) % nodes;
            let pause = Duration::from_millis(200 + rng.next_u64() % 40_000).min(calm - at);
            match rng.next_u32() % 10 {
                0 | 1 if self.crash => {
                    let damage =
                        if self.lost_disk && rng.next_u32().is_multiple_of(2) { Damage::Lost } else { Damage::None };
                    plan.push((at, Fault::Crash(node, damage)));
                    plan.push((at + pause, Fault::Boot(node)));
                }
                2 | 3 if self.one_way => {
                    plan.push((at, Fault::Cut(node, other)));
                    plan.push((at + pause, Fault::Mend(node, other)));
                }
                4 if self.partition => {
                    plan.push((at, Fault::Partition((0..nodes).map(|_| (rng.next_u32() % 2) as u8).collect())));
                    plan.push((at + pause, Fault::Heal));
                }
                5 if self.stall => plan.push((at, Fault::Stall(node, pause.min(Duration::from_secs(30))))),
                6 if self.jump => plan.push((at, Fault::Jump(node, Duration::from_secs(rng.next_u64() % 100_000)))),
                7 if self.half_connected => plan.push((at, Fault::HalfConnect(node, other))),
                _ => {
                    let parts = (0..rng.next_u32() % 4).map(|_| (rng.next_u32() % 16) as u8).collect();
                    plan.push((at, Fault::Announce(node, parts)));
                }
            }
        }
        plan.push((calm, Fault::Calm));
        plan
    }
}

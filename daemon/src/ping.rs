//! Pings under way, begun by `overlayctl ping`: data-path probes to one peer with a count and a size.

use std::collections::BTreeMap;
use std::time::Instant;

use overlay_control::api::{PingProgress, PingReply};
use parking_lot::Mutex;

/// Pings remembered; the oldest is forgotten first.
const KEPT: usize = 64;

#[derive(Debug, Default)]
struct State {
    next: u64,
    pings: BTreeMap<u64, Ping>,
}

#[derive(Debug)]
struct Ping {
    progress: PingProgress,
    id: u16,
    sent: Vec<Option<Instant>>,
}

/// All pings.
#[derive(Debug, Default)]
pub struct Pings(Mutex<State>);

impl Pings {
    /// Begins one; its number. `id` is the ICMP identifier its echoes carry.
    pub fn begin(&self, progress: PingProgress, id: u16, count: u32) -> u64 {
        let mut state = self.0.lock();
        if state.pings.len() >= KEPT {
            state.pings.pop_first();
        }
        state.next += 1;
        let number = state.next;
        state.pings.insert(number, Ping { progress, id, sent: vec![None; count as usize] });
        number
    }

    /// How far a ping is.
    #[must_use]
    pub fn progress(&self, number: u64) -> Option<PingProgress> {
        self.0.lock().pings.get(&number).map(|ping| ping.progress.clone())
    }

    /// Takes note of an echo about to be sent, `sequence` from 1.
    pub fn sent(&self, number: u64, sequence: u32, now: Instant) {
        if let Some(ping) = self.0.lock().pings.get_mut(&number)
            && let Some(slot) = ping.sent.get_mut(sequence as usize - 1)
        {
            *slot = Some(now);
            ping.progress.replies.push(PingReply { sequence, rtt_us: None });
        }
    }

    /// Takes note of an answer; whether it answers anything.
    pub fn answered(&self, id: u16, sequence: u16, now: Instant) -> bool {
        let mut state = self.0.lock();
        let Some(ping) = state.pings.values_mut().rev().find(|ping| ping.id == id) else { return false };
        let Some(Some(sent)) = ping.sent.get((sequence as usize).wrapping_sub(1)) else { return false };
        let rtt = now.saturating_duration_since(*sent);
        if let Some(reply) = ping.progress.replies.iter_mut().find(|reply| reply.sequence == u32::from(sequence)) {
            reply.rtt_us.get_or_insert(rtt.as_micros() as u64);
        }
        true
    }

    /// Whether every echo was answered.
    #[must_use]
    pub fn complete(&self, number: u64) -> bool {
        self.0.lock().pings.get(&number).is_none_or(|ping| {
            ping.progress.replies.len() == ping.sent.len()
                && ping.progress.replies.iter().all(|reply| reply.rtt_us.is_some())
        })
    }

    /// Ends a ping.
    pub fn finish(&self, number: u64) {
        if let Some(ping) = self.0.lock().pings.get_mut(&number) {
            ping.progress.done = true;
        }
    }
}

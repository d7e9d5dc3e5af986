//! Packets that wait for the labels of an address: a bounded queue and a bounded time, then they are denied.
//!
//! The daemon keeps here what [`Verdict::Wait`](crate::Verdict::Wait) asks it to keep, hands all of it in again when the tables
//! have moved, and asks the address's host for its labels meanwhile. Everything is bounded: addresses, packets of one address,
//! bytes in all, and time. Once an address's time is over its packets are denied at once for a while, so that a host that
//! says nothing cannot fill the queue again and again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long packets wait for the labels of an address: three questions to its host, and a TCP client's second SYN.
pub const WAIT: Duration = Duration::from_secs(3);
/// How long the packets of an address are denied at once after that.
pub const DENIED: Duration = Duration::from_secs(3);
/// Pause between two questions about one address.
pub const ASK_EVERY: Duration = Duration::from_secs(1);
/// Addresses waited for at once.
const MAX_ADDRESSES: usize = 256;
/// Packets kept for one address.
const MAX_PACKETS: usize = 16;
/// Bytes kept in all.
const MAX_BYTES: usize = 4 << 20;

#[derive(Debug)]
struct Entry<T> {
    since: Instant,
    asked: Option<Instant>,
    packets: Vec<(T, usize)>,
}

/// The packets that wait, by the address whose labels they need.
#[derive(Debug)]
pub struct Waiting<T> {
    entries: BTreeMap<IpAddr, Entry<T>>,
    bytes: usize,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), bytes: 0 }
    }
}

impl<T> Waiting<T> {
    /// Whether nothing is waited for.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a packet of this length would be kept: there is room, and the time of its address is not over.
    #[must_use]
    pub fn has_room(&self, address: IpAddr, bytes: usize, now: Instant) -> bool {
        let has_place = match self.entries.get(&address) {
            Some(entry) => now.saturating_duration_since(entry.since) < WAIT && entry.packets.len() < MAX_PACKETS,
            None => self.entries.len() < MAX_ADDRESSES,
        };
        has_place && self.bytes + bytes <= MAX_BYTES
    }

    /// Keeps a packet of this length.
    ///
    /// # Errors
    /// Gives it back unless [`Self::has_room`] says that it can be kept: it is denied.
    pub fn keep(&mut self, address: IpAddr, packet: T, bytes: usize, now: Instant) -> Result<(), T> {
        if !self.has_room(address, bytes, now) {
            return Err(packet);
        }
        let new = || Entry { since: now, asked: None, packets: Vec::new() };
        let entry = self.entries.entry(address).or_insert_with(new);
        self.bytes += bytes;
        entry.packets.push((packet, bytes));
        Ok(())
    }

    /// Takes every packet out, those of one address in the order they came, to be decided again. Time runs on for those
    /// that come back.
    pub fn take(&mut self) -> Vec<T> {
        self.bytes = 0;
        self.entries.values_mut().flat_map(|entry| entry.packets.drain(..)).map(|(packet, _)| packet).collect()
    }

    /// Forgets addresses for which nothing waits any more; for use after [`Self::take`], when what still waits is back.
    pub fn settle(&mut self, now: Instant) {
        self.entries.retain(|_, entry| !entry.packets.is_empty() || now.saturating_duration_since(entry.since) >= WAIT);
    }

    /// The addresses that must be asked about now.
    pub fn questions(&mut self, now: Instant) -> Vec<IpAddr> {
        let is_due = |entry: &Entry<T>| {
            !entry.packets.is_empty()
                && entry.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_EVERY)
        };
        let due = self.entries.iter_mut().filter(|(_, entry)| is_due(entry));
        due.map(|(address, entry)| {
            entry.asked = Some(now);
            *address
        })
        .collect()
    }

    /// Takes out the packets whose time is over; they are denied.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut over = Vec::new();
        for entry in self.entries.values_mut() {
            if now.saturating_duration_since(entry.since) >= WAIT {
                for (packet, bytes) in entry.packets.drain(..) {
                    self.bytes -= bytes;
                    over.push(packet);
                }
            }
        }
        self.entries.retain(|_, entry| now.saturating_duration_since(entry.since) < WAIT + DENIED);
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u16) -> IpAddr {
        IpAddr::from([10, 42, (n >> 8) as u8, n as u8])
    }

    #[test]
    fn packets_wait_in_order_and_time_runs_on_for_those_that_come_back() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        for packet in 0..3 {
            assert_eq!(waiting.keep(ip(1), packet, 100, start), Ok(()));
        }
        assert_eq!(waiting.questions(start), [ip(1)]);
        assert!(waiting.questions(start + Duration::from_millis(900)).is_empty());
        let later = start + Duration::from_secs(2);
        assert_eq!(waiting.questions(later), [ip(1)]);
        assert_eq!(waiting.take(), [0, 1, 2]);
        assert_eq!(waiting.keep(ip(1), 2, 100, later), Ok(()));
        waiting.settle(later);
        assert!(waiting.expire(later).is_empty());
        assert_eq!(waiting.expire(start + WAIT), [2]);
        // What comes now is denied at once, and after a while waits anew.
        assert_eq!(waiting.keep(ip(1), 3, 100, start + WAIT), Err(3));
        assert!(waiting.expire(start + WAIT + DENIED).is_empty() && waiting.is_empty());
        assert_eq!(waiting.keep(ip(1), 4, 100, start + WAIT + DENIED), Ok(()));
    }

    #[test]
    fn address_whose_labels_came_is_forgotten() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        assert_eq!(waiting.keep(ip(1), (), 100, start), Ok(()));
        assert_eq!(waiting.take().len(), 1);
        waiting.settle(start + Duration::from_secs(1));
        assert!(waiting.is_empty());
    }

    #[test]
    fn everything_is_bounded() {
        let now = Instant::now();
        let mut waiting = Waiting::default();
        let kept = |waiting: &mut Waiting<()>, addresses: std::ops::Range<u16>, packets: usize, bytes: usize| {
            let one = |waiting: &mut Waiting<()>, n| {
                (0..packets).filter(|_| waiting.keep(ip(n), (), bytes, now).is_ok()).count()
            };
            addresses.map(|n| one(waiting, n)).sum::<usize>()
        };
        assert_eq!(kept(&mut waiting, 0..1, 100, 10), MAX_PACKETS);
        assert_eq!(kept(&mut waiting, 0..1000, 1, 10), MAX_ADDRESSES - 1);
        let mut waiting = Waiting::default();
        assert_eq!(kept(&mut waiting, 0..100, 16, 64 << 10), MAX_BYTES / (64 << 10));
        assert_eq!(waiting.expire(now + WAIT).len(), MAX_BYTES / (64 << 10));
        assert_eq!(kept(&mut waiting, 200..201, 1, MAX_BYTES), 1, "what is over takes no room");
    }
}

//! Fragments: the first decides for its datagram, later ones wait for it, and any overlap condemns the whole datagram
//! (RFC 5722, applied to both families; RFC 3128 for fragments that rewrite ports).
//!
//! Everything is bounded: datagrams, datagrams per source, fragments and bytes held, and time.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_wire::packet::{Headers, IPV6_HEADER_LEN, protocol};

use crate::path::Path;
use crate::reason::DropReason;
use crate::verdict::Origin;

/// Fragments of one datagram held, and separate ranges of it remembered.
const MAX_PER_DATAGRAM: usize = 64;
/// Bytes held over all datagrams.
const MAX_HELD_BYTES: usize = 4 << 20;
/// Datagrams remembered.
const MAX_DATAGRAMS: usize = 4096;
/// Datagrams of one source remembered: an eighth.
const MAX_PER_SOURCE: u32 = 512;
/// How long a datagram is remembered after its first fragment was seen, in milliseconds.
const LIFETIME_MS: u64 = 5000;

/// What names a datagram (RFC 791 section 3.2; RFC 8200 section 4.5, where the protocol does not count).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    origin: u64,
    src: IpAddr,
    dst: IpAddr,
    id: u32,
    protocol: u8,
}

/// What is known of a datagram's first fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Passed(Path),
    Refused,
}

#[derive(Debug)]
struct Datagram {
    state: State,
    /// Bytes seen, as disjoint ranges in order; touching ones are joined.
    seen: Vec<(u32, u32)>,
    /// Where the last fragment ends.
    end: Option<u32>,
    held: Vec<Vec<u8>>,
    deadline_ms: u64,
}

/// A held fragment whose datagram passed.
#[derive(Debug)]
pub(crate) struct Freed {
    pub(crate) packet: Vec<u8>,
    pub(crate) origin: Origin,
    pub(crate) path: Path,
}

/// What to do with a later fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Later {
    /// Its datagram passed; this is its way.
    Pass(Path),
    Held,
    Drop(DropReason),
}

/// Datagrams under way.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    datagrams: BTreeMap<Key, Datagram>,
    per_source: BTreeMap<IpAddr, u32>,
    held_bytes: usize,
    freed: Vec<Freed>,
    /// Held fragments given up since last asked, by reason.
    lost: Vec<(DropReason, u32)>,
}

/// A fragment's place in its datagram, in bytes; `None` when it is not one of several.
fn range(packet: &[u8], headers: &Headers) -> Option<(u32, u32)> {
    let fragment = headers.fragment?;
    let start = u32::from(fragment.offset_bytes);
    let len = usize::from(headers.total_len).checked_sub(payload_offset(packet, headers)?)?;
    Some((start, start + u32::try_from(len).ok()?))
}

/// Where the fragmented part starts: behind the IPv4 header or the IPv6 fragment header. A first IPv6 fragment may hold
/// more extension headers behind it, which belong to the datagram.
fn payload_offset(packet: &[u8], headers: &Headers) -> Option<usize> {
    if headers.is_ipv4() || headers.is_later_fragment() {
        return Some(headers.l4_offset.into());
    }
    let (mut next, mut at) = (*packet.get(6)?, IPV6_HEADER_LEN);
    while next != protocol::FRAGMENT {
        if at >= usize::from(headers.l4_offset) {
            return None;
        }
        next = *packet.get(at)?;
        at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
    }
    Some(at + 8)
}

fn key(origin: Origin, headers: &Headers) -> Option<Key> {
    let origin = match origin {
        Origin::Tun => u64::MAX,
        Origin::Peer(peer) => peer.0.into(),
    };
    let protocol = if headers.is_ipv4() { headers.protocol } else { 0 };
    Some(Key { origin, src: headers.src, dst: headers.dst, id: headers.fragment?.id, protocol })
}

impl Datagram {
    /// Enters a fragment; an error condemns the datagram.
    fn enter(&mut self, (start, end): (u32, u32), more: bool) -> Result<(), DropReason> {
        let at = self.seen.partition_point(|(_, seen_end)| *seen_end <= start);
        let overlaps = start >= end || self.seen.get(at).is_some_and(|(seen_start, _)| *seen_start < end);
        let beyond = self.end.is_some_and(|known| end > known || !more);
        let short = !more && self.seen.last().is_some_and(|(_, seen_end)| *seen_end > end);
        if overlaps || beyond || short {
            return Err(DropReason::FragmentOverlap);
        }
        if !more {
            self.end = Some(end);
        }
        let joins_before = at > 0 && self.seen[at - 1].1 == start;
        let joins_behind = self.seen.get(at).is_some_and(|(seen_start, _)| *seen_start == end);
        match (joins_before, joins_behind) {
            (true, true) => self.seen[at - 1].1 = self.seen.remove(at).1,
            (true, false) => self.seen[at - 1].1 = end,
            (false, true) => self.seen[at].0 = start,
            (false, false) if self.seen.len() >= MAX_PER_DATAGRAM => return Err(DropReason::FragmentLimit),
            (false, false) => self.seen.insert(at, (start, end)),
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        matches!((self.end, self.seen.as_slice()), (Some(end), [(0, seen_end)]) if end == *seen_end)
    }
}

impl Fragments {
    /// Whether nothing is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Bytes held.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Takes in a first fragment, before it is decided. An error drops it and its datagram.
    pub(crate) fn first(
        &mut self,
        origin: Origin,
        packet: &[u8],
        headers: &Headers,
        now_ms: u64,
    ) -> Result<(), DropReason> {
        let (Some(key), Some(range)) = (key(origin, headers), range(packet, headers)) else {
            return Err(DropReason::Malformed);
        };
        self.enter(key, range, true, now_ms)
    }

    /// Decides a datagram by its first fragment: held ones are freed, or given up.
    pub(crate) fn settle(&mut self, origin: Origin, headers: &Headers, verdict: Option<Path>) {
        let Some(key) = key(origin, headers) else { return };
        let Some(path) = verdict else {
            self.condemn(&key, DropReason::FragmentRefused);
            return;
        };
        let Some(datagram) = self.datagrams.get_mut(&key) else { return };
        datagram.state = State::Passed(path);
        for packet in datagram.held.drain(..) {
            self.held_bytes -= packet.len();
            self.freed.push(Freed { packet, origin, path });
        }
        if datagram.is_complete() {
            self.forget(&key);
        }
    }

    /// Decides a later fragment.
    pub(crate) fn later(&mut self, origin: Origin, packet: &[u8], headers: &Headers, now_ms: u64) -> Later {
        let (Some(key), Some(range)) = (key(origin, headers), range(packet, headers)) else {
            return Later::Drop(DropReason::Malformed);
        };
        let more = headers.fragment.is_some_and(|fragment| fragment.more);
        if let Err(reason) = self.enter(key, range, more, now_ms) {
            return Later::Drop(reason);
        }
        let Some(datagram) = self.datagrams.get_mut(&key) else { return Later::Drop(DropReason::FragmentLimit) };
        if let State::Passed(path) = datagram.state {
            if datagram.is_complete() {
                self.forget(&key);
            }
            return Later::Pass(path);
        }
        let bytes = packet.get(..usize::from(headers.total_len)).unwrap_or(packet);
        if datagram.held.len() >= MAX_PER_DATAGRAM || self.held_bytes + bytes.len() > MAX_HELD_BYTES {
            self.condemn(&key, DropReason::FragmentLimit);
            return Later::Drop(DropReason::FragmentLimit);
        }
        self.held_bytes += bytes.len();
        datagram.held.push(bytes.to_vec());
        Later::Held
    }

    fn enter(&mut self, key: Key, range: (u32, u32), more: bool, now_ms: u64) -> Result<(), DropReason> {
        if self.datagrams.get(&key).is_some_and(|datagram| datagram.deadline_ms <= now_ms) {
            self.give_up(&key);
        }
        if !self.datagrams.contains_key(&key) {
            self.remember(key, now_ms)?;
        }
        let Some(datagram) = self.datagrams.get_mut(&key) else { return Err(DropReason::FragmentLimit) };
        if datagram.state == State::Refused {
            return Err(DropReason::FragmentRefused);
        }
        if let Err(reason) = datagram.enter(range, more) {
            self.condemn(&key, reason);
            return Err(reason);
        }
        Ok(())
    }

    fn remember(&mut self, key: Key, now_ms: u64) -> Result<(), DropReason> {
        if self.datagrams.len() >= MAX_DATAGRAMS {
            self.expire(now_ms);
        }
        let of_source = self.per_source.get(&key.src).copied().unwrap_or(0);
        if self.datagrams.len() >= MAX_DATAGRAMS || of_source >= MAX_PER_SOURCE {
            return Err(DropReason::FragmentLimit);
        }
        *self.per_source.entry(key.src).or_insert(0) += 1;
        let deadline_ms = now_ms + LIFETIME_MS;
        let datagram = Datagram { state: State::Waiting, seen: Vec::new(), end: None, held: Vec::new(), deadline_ms };
        self.datagrams.insert(key, datagram);
        Ok(())
    }

    /// Refuses the rest of a datagram; what is held of it counts as dropped for `reason`.
    fn condemn(&mut self, key: &Key, reason: DropReason) {
        let Some(datagram) = self.datagrams.get_mut(key) else { return };
        datagram.state = State::Refused;
        datagram.seen = Vec::new();
        self.held_bytes -= datagram.held.iter().map(Vec::len).sum::<usize>();
        let held = std::mem::take(&mut datagram.held).len();
        if held > 0 {
            self.lost.push((reason, held as u32));
        }
    }

    fn give_up(&mut self, key: &Key) {
        self.condemn(key, DropReason::FragmentTimeout);
        self.forget(key);
    }

    fn forget(&mut self, key: &Key) {
        if self.datagrams.remove(key).is_none() {
            return;
        }
        if let Some(count) = self.per_source.get_mut(&key.src) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&key.src);
            }
        }
    }

    /// Gives up datagrams whose time is over.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        let over: Vec<Key> =
            self.datagrams.iter().filter(|(_, d)| d.deadline_ms <= now_ms).map(|(key, _)| *key).collect();
        for key in over {
            self.give_up(&key);
        }
    }

    /// Fragments freed since last asked.
    pub(crate) fn freed(&mut self) -> std::vec::Drain<'_, Freed> {
        self.freed.drain(..)
    }

    /// Held fragments dropped since last asked.
    pub(crate) fn lost(&mut self) -> std::vec::Drain<'_, (DropReason, u32)> {
        self.lost.drain(..)
    }
}

#[cfg(test)]
mod tests;

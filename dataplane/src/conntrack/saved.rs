//! Flows as bytes, so that they outlive a restart: written part by part while packets pass, read back before the first one.
//!
//! Only the table's content is here; the file around it, with its version, checksum and clock, belongs to the caller. A
//! restored flow counts for nothing until the filter has been asked about it again: its revision is one that no tables
//! have. What may have happened since the save is never guessed in favour of strictness: windows that may have moved on
//! are not judged by, and a connection that may have ended gives way to a new SYN.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use overlay_wire::packet::protocol;

use super::Conntrack;
use super::entry::{Entry, TICKS_PER_SECOND, Tick, Track};
use super::key::{FlowKey, KEY_BYTES};
use super::tcp::{TCP_BYTES, TcpState, TcpTrack};
use crate::reason::Traffic;

/// Bytes of one saved flow.
pub const FLOW_BYTES: usize = KEY_BYTES + 2 + 8 + 32 + TCP_BYTES;
/// Slots looked at under one lock: some ten microseconds.
const SLOTS: usize = 256;
/// A revision that no tables have, so that the filter is asked before the flow is used.
const NEVER_ASKED: u64 = u64::MAX;
/// Connections are presumed to have stayed as they were over a gap no longer than this: ends give up later.
const SHORT_GAP: Duration = Duration::from_secs(5);

const REPLIED: u8 = 1;
const ASSURED: u8 = 2;

/// Which flows a pass writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// Flows both sides have agreed to.
    Assured,
    /// All others.
    Others,
}

/// Whether packets passed after the flows were saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SavedWhile {
    /// None did: the packet path had ended.
    Stopped,
    /// They may have: the packet path was running, and was killed later.
    Running,
}

/// How far a pass is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    shard: usize,
    slot: usize,
}

/// What became of saved flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// In the table again.
    pub flows: usize,
    /// Their time was over.
    pub expired: usize,
    /// No room for them, or not a flow.
    pub refused: usize,
}

impl Conntrack {
    /// Appends the flows of the next few slots to `out`, [`FLOW_BYTES`] each; false when the pass is over. One lock is held
    /// for microseconds; write `out` away between two calls.
    pub fn save(&self, pass: Pass, cursor: &mut Cursor, now: Instant, out: &mut Vec<u8>) -> bool {
        let now = self.tick(now);
        // Memory is asked of the system before the lock is taken.
        out.reserve(SLOTS * FLOW_BYTES);
        let Some(shard) = self.shards.get(cursor.shard) else { return false };
        let shard = shard.lock();
        let slots = shard.slots(cursor.slot, SLOTS);
        for entry in slots.iter().filter(|entry| entry.is_live() && entry.expires > now) {
            if entry.assured == (pass == Pass::Assured) {
                emit(entry, now, out);
            }
        }
        *cursor = if slots.len() < SLOTS {
            Cursor { shard: cursor.shard + 1, slot: 0 }
        } else {
            Cursor { slot: cursor.slot + SLOTS, ..*cursor }
        };
        cursor.shard < self.shards.len()
    }

    /// Takes up flows saved `gap` ago. Nothing is evicted for them, and each is asked of the filter again at its next packet.
    ///
    /// After a save that no packet followed every connection is known, so that no other may be picked up in mid-stream.
    pub fn restore(&self, flows: &[u8], saved: SavedWhile, gap: Duration, now: Instant) -> Restored {
        let now = self.tick(now);
        let mut restored = Restored::default();
        let (flows, rest) = flows.as_chunks::<FLOW_BYTES>();
        restored.refused += usize::from(!rest.is_empty());
        for flow in flows {
            let Some(mut entry) = parse(flow, now, gap) else {
                restored.refused += 1;
                continue;
            };
            if entry.expires <= now {
                restored.expired += 1;
                continue;
            }
            if let Track::Tcp(track) = &mut entry.track {
                if saved == SavedWhile::Running {
                    track.forget_windows();
                }
                if saved == SavedWhile::Running || gap > SHORT_GAP {
                    track.set_uncertain();
                }
            }
            let hash = entry.original.symmetric_hash(&self.secret);
            let mut shard = self.shards[self.shard_of(hash)].lock();
            // A flow may have been saved twice: it moved while it was written.
            let fits = shard.find(&entry.original, hash).is_none()
                && shard.has_room()
                && self.shares.allows(entry.original.source());
            match fits.then(|| shard.insert(entry, hash, now, &self.shares)).flatten() {
                Some(_) => restored.flows += 1,
                None => restored.refused += 1,
            }
        }
        if saved == SavedWhile::Stopped {
            self.pickup_until.store(0, Ordering::Relaxed);
        }
        restored
    }
}

fn emit(entry: &Entry, now: Tick, out: &mut Vec<u8>) {
    entry.original.emit(out);
    let mark = |set: bool, mark| if set { mark } else { 0 };
    let kind = match entry.track {
        Track::Udp => 0,
        Track::Echo => 1,
        Track::Other => 2,
        Track::Tcp(_) => 3,
    };
    out.extend_from_slice(&[kind, mark(entry.replied, REPLIED) | mark(entry.assured, ASSURED)]);
    out.extend_from_slice(&entry.expires.saturating_sub(now).to_be_bytes());
    out.extend_from_slice(&now.wrapping_sub(entry.created).to_be_bytes());
    for traffic in entry.traffic {
        out.extend_from_slice(&traffic.packets.to_be_bytes());
        out.extend_from_slice(&traffic.bytes.to_be_bytes());
    }
    match &entry.track {
        Track::Tcp(track) => track.emit(out),
        Track::Udp | Track::Echo | Track::Other => out.extend_from_slice(&[0; TCP_BYTES]),
    }
}

/// Reads one flow; `None` when no packet can have made it.
fn parse(bytes: &[u8; FLOW_BYTES], now: Tick, gap: Duration) -> Option<Entry> {
    let mut rest = bytes.as_slice();
    let original = FlowKey::parse(take(&mut rest)?)?;
    let [kind, marks] = *take(&mut rest)?;
    let left = Tick::from_be_bytes(*take(&mut rest)?);
    let age = Tick::from_be_bytes(*take(&mut rest)?);
    let mut numbers = [0u64; 4];
    for number in &mut numbers {
        *number = u64::from_be_bytes(*take(&mut rest)?);
    }
    let is_tcp = original.protocol() == protocol::TCP;
    let is_echo = matches!(original.protocol(), protocol::ICMP | protocol::ICMPV6);
    let track = match kind {
        0 if original.protocol() == protocol::UDP => Track::Udp,
        1 if is_echo => Track::Echo,
        2 if !is_tcp && !is_echo => Track::Other,
        3 if is_tcp => Track::Tcp(TcpTrack::parse(take(&mut rest)?)?),
        _ => return None,
    };
    if marks & !(REPLIED | ASSURED) != 0 {
        return None;
    }
    let replied = marks & REPLIED != 0;
    // A flow that may never be evicted must have got there as one: established once, or answered.
    let agreed = match &track {
        Track::Tcp(tcp) => !matches!(tcp.state, TcpState::SynSent),
        Track::Udp | Track::Echo | Track::Other => replied,
    };
    let gap = Tick::try_from(gap.as_millis() / u128::from(1000 / TICKS_PER_SECOND)).unwrap_or(Tick::MAX);
    let mut entry = Entry::new(original, track, now, NEVER_ASKED, u32::MAX);
    entry.replied = replied;
    entry.assured = marks & ASSURED != 0 && agreed;
    entry.traffic = [0, 2].map(|at| Traffic { packets: numbers[at], bytes: numbers[at + 1] });
    let longest = entry.timeout().as_secs() as Tick * TICKS_PER_SECOND;
    entry.expires = now.saturating_add(left.min(longest).saturating_sub(gap));
    // The table's time begins at the restart; older flows began before it.
    entry.created = now.wrapping_sub(age.saturating_add(gap));
    Some(entry)
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (front, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(front)
}

#[cfg(test)]
mod tests;

//! One shard of the flow table: a slab of flows, a hash index over it, and the list of flows that may be evicted.
//!
//! All memory is reserved when the shard is made and touched only as flows come, so that an idle table costs nothing
//! and a busy one never allocates.

use super::entry::{Entry, NOWHERE, Tick};
use super::key::FlowKey;
use super::share::Shares;
use super::tcp::Direction;

/// Names a flow in a shard; finds nothing once the flow is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Handle {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// Slots looked at for an expired flow when the shard is full.
const SEARCH: usize = 32;

#[derive(Debug)]
pub(crate) struct Shard {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Open addressing with linear probing: the low half of the hash and the slot plus one; 0 is empty.
    index: Vec<u64>,
    /// Flows that are not assured, oldest first.
    first: u32,
    last: u32,
    live: usize,
    sweep: usize,
    capacity: usize,
}

impl Shard {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            index: vec![0; (capacity * 2).next_power_of_two()],
            first: NOWHERE,
            last: NOWHERE,
            live: 0,
            sweep: 0,
            capacity,
        }
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Bytes reserved.
    pub(super) fn reserved_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.free.capacity() * 4 + self.index.capacity() * 8
    }

    #[inline]
    fn mask(&self) -> usize {
        self.index.len() - 1
    }

    /// Finds a live flow and the direction `key` goes in it.
    #[inline]
    pub(super) fn find(&self, key: &FlowKey, hash: u64) -> Option<(Handle, Direction)> {
        let tag = hash as u32;
        let mut at = tag as usize & self.mask();
        loop {
            let word = self.index[at];
            if word == 0 {
                return None;
            }
            if (word >> 32) as u32 == tag {
                let slot = word as u32 - 1;
                let entry = &self.entries[slot as usize];
                let handle = Handle { slot, generation: entry.generation };
                if entry.original == *key {
                    return Some((handle, Direction::Original));
                }
                if entry.reply == *key {
                    return Some((handle, Direction::Reply));
                }
            }
            at = (at + 1) & self.mask();
        }
    }

    /// The flow behind a handle, if it still lives.
    #[inline]
    pub(super) fn get(&mut self, handle: Handle) -> Option<&mut Entry> {
        self.entries.get_mut(handle.slot as usize).filter(|entry| entry.live && entry.generation == handle.generation)
    }

    /// Inserts a flow; when the shard is full an expired or unassured flow makes room.
    pub(super) fn insert(&mut self, mut entry: Entry, hash: u64, now: Tick, shares: &Shares) -> Option<Handle> {
        if self.live >= self.capacity && !self.make_room(now, shares) {
            return None;
        }
        shares.add(entry.original.source());
        entry.hash = hash;
        let slot = match self.free.pop() {
            Some(slot) => {
                entry.generation = self.entries[slot as usize].generation;
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                let slot = u32::try_from(self.entries.len()).expect("a shard holds fewer than 2^32 flows");
                self.entries.push(entry);
                slot
            }
        };
        self.live += 1;
        if !self.entries[slot as usize].assured {
            self.append(slot);
        }
        let mut at = hash as u32 as usize & self.mask();
        while self.index[at] != 0 {
            at = (at + 1) & self.mask();
        }
        self.index[at] = (hash & 0xffff_ffff) << 32 | u64::from(slot + 1);
        Some(Handle { slot, generation: self.entries[slot as usize].generation })
    }

    fn make_room(&mut self, now: Tick, shares: &Shares) -> bool {
        if self.first != NOWHERE {
            self.remove(self.first, shares);
            return true;
        }
        self.expire(now, SEARCH, shares) > 0
    }

    /// Marks a flow as agreed to by both sides: it can no longer be evicted.
    pub(super) fn assure(&mut self, handle: Handle) {
        if self.get(handle).is_some_and(|entry| !std::mem::replace(&mut entry.assured, true)) {
            self.unlink(handle.slot);
        }
    }

    /// Removes a flow.
    pub(super) fn remove(&mut self, slot: u32, shares: &Shares) {
        let Some(entry) = self.entries.get_mut(slot as usize).filter(|entry| entry.live) else { return };
        entry.live = false;
        entry.generation = entry.generation.wrapping_add(1);
        let (hash, assured, source) = (entry.hash, entry.assured, entry.original.source());
        shares.remove(source);
        if !assured {
            self.unlink(slot);
        }
        self.unindex(hash, slot);
        self.live -= 1;
        self.free.push(slot);
    }

    /// Removes expired flows among the next `budget` slots; returns how many.
    pub(super) fn expire(&mut self, now: Tick, budget: usize, shares: &Shares) -> usize {
        if self.live == 0 {
            return 0;
        }
        let mut removed = 0;
        for _ in 0..budget.min(self.entries.len()) {
            if self.sweep >= self.entries.len() {
                self.sweep = 0;
            }
            let slot = self.sweep;
            self.sweep += 1;
            if self.entries[slot].live && self.entries[slot].expires <= now {
                self.remove(slot as u32, shares);
                removed += 1;
            }
        }
        removed
    }

    /// Whether a flow fits without another making room.
    pub(super) fn has_room(&self) -> bool {
        self.live < self.capacity
    }

    /// Whether a new flow would find a place, another making room if need be.
    pub(super) fn would_take_another(&self, now: Tick) -> bool {
        if self.live < self.capacity || self.first != NOWHERE {
            return true;
        }
        // As far as `make_room` would sweep.
        let slots = self.entries.len();
        let swept = (0..SEARCH.min(slots)).map(|step| &self.entries[(self.sweep + step) % slots]);
        swept.into_iter().any(|entry| entry.live && entry.expires <= now)
    }

    /// Up to `count` slots from `first` on, free ones among them; fewer at the end.
    pub(super) fn slots(&self, first: usize, count: usize) -> &[Entry] {
        let end = first.saturating_add(count).min(self.entries.len());
        self.entries.get(first..end).unwrap_or_default()
    }

    /// Every live flow.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0u32..).zip(&self.entries).filter(|(_, entry)| entry.live)
    }

    fn append(&mut self, slot: u32) {
        let last = std::mem::replace(&mut self.last, slot);
        let entry = &mut self.entries[slot as usize];
        entry.previous = last;
        entry.next = NOWHERE;
        match self.entries.get_mut(last as usize) {
            Some(before) => before.next = slot,
            None => self.first = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let (previous, next) = (self.entries[slot as usize].previous, self.entries[slot as usize].next);
        match self.entries.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => self.first = next,
        }
        match self.entries.get_mut(next as usize) {
            Some(behind) => behind.previous = previous,
            None => self.last = previous,
        }
    }

    /// Removes from the index and moves later members of the probe run up, so that no tombstones pile up.
    fn unindex(&mut self, hash: u64, slot: u32) {
        let mask = self.mask();
        let wanted = (hash & 0xffff_ffff) << 32 | u64::from(slot + 1);
        let mut hole = hash as u32 as usize & mask;
        while self.index[hole] != wanted {
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let word = self.index[at];
            if word == 0 {
                break;
            }
            let home = (word >> 32) as usize & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.index[hole] = word;
                hole = at;
            }
        }
        self.index[hole] = 0;
    }
}

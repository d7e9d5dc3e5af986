//! The slice of the pool that one issuer may give away: free blocks, and what was given.
//!
//! A block leaves the free list once and comes back only through [`Slice::release`]. Splitting a slice for another issuer
//! moves blocks: the two parts are disjoint and together they are the whole.

use std::collections::BTreeSet;

use overlay_wire::Prefix;
use overlay_wire::prefix::{mask, to_bits};

/// Free blocks, each a prefix; no two overlap, and two halves of one prefix are never both there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slice {
    free: BTreeSet<Prefix>,
}

impl Slice {
    /// A slice of whole prefixes; overlapping ones count once.
    #[must_use]
    pub fn new(prefixes: &[Prefix]) -> Self {
        let mut slice = Self::default();
        prefixes.iter().for_each(|prefix| slice.release(*prefix));
        slice
    }

    /// The free blocks, in order.
    pub fn free(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.free.iter().copied()
    }

    /// How many blocks of this length are free; `IPv4` or IPv6 by `is_ipv4`.
    #[must_use]
    pub fn count(&self, family: Family, len: u8) -> u128 {
        self.of(family)
            .filter(|block| block.len() <= len)
            .map(|block| 1u128.checked_shl(u32::from(len - block.len())).unwrap_or(u128::MAX))
            .fold(0, u128::saturating_add)
    }

    /// Whether the whole prefix is free.
    #[must_use]
    pub fn is_free(&self, prefix: &Prefix) -> bool {
        self.covering(prefix).is_some()
    }

    /// Takes the block of this length that lies in the smallest free block, the first of those.
    pub fn take(&mut self, family: Family, len: u8) -> Option<Prefix> {
        let block = self
            .of(family)
            .filter(|block| block.len() <= len)
            .min_by_key(|block| (std::cmp::Reverse(block.len()), *block))?;
        let wanted = Prefix::truncating(block.addr(), len).ok()?;
        self.take_exactly(&wanted).then_some(wanted)
    }

    /// Takes one prefix, which must be free as a whole.
    pub fn take_exactly(&mut self, wanted: &Prefix) -> bool {
        let Some(block) = self.covering(wanted) else { return false };
        self.free.remove(&block);
        // Every level between the block and the prefix leaves its other half free.
        let mut part = *wanted;
        while part.len() > block.len() {
            let Some((parent, other)) = buddy(&part) else { break };
            self.free.insert(other);
            part = parent;
        }
        true
    }

    /// Removes every free part of a prefix, as for subnets that were given by other means.
    pub fn exclude(&mut self, prefix: &Prefix) {
        if !self.take_exactly(prefix) {
            self.free.retain(|block| !prefix.covers(block));
        }
    }

    /// Gives a block back; what is free already stays so.
    pub fn release(&mut self, prefix: Prefix) {
        if self.is_free(&prefix) {
            return;
        }
        self.free.retain(|block| !prefix.covers(block));
        let mut whole = prefix;
        while let Some((parent, other)) = buddy(&whole) {
            if !self.free.remove(&other) {
                break;
            }
            whole = parent;
        }
        self.free.insert(whole);
    }

    /// Splits off one half of each family: of the largest block where there is only one, else every second block.
    ///
    /// `lens` are the lengths of IPv4 and IPv6 subnets: a block is not cut below them.
    #[must_use]
    pub fn split(&mut self, lens: (u8, u8)) -> Self {
        let mut other = Self::default();
        for (family, len) in [(Family::V4, lens.0), (Family::V6, lens.1)] {
            let mut blocks: Vec<Prefix> = self.of(family).filter(|block| block.len() <= len).collect();
            blocks.sort_by_key(|block| (block.len(), *block));
            let mut given = 0u128;
            let mut kept = 0u128;
            let size = |block: &Prefix| 1u128.checked_shl(u32::from(len - block.len())).unwrap_or(u128::MAX);
            for block in blocks {
                // The largest block is cut in two where nothing was given yet; later ones go to whoever has less.
                if given == 0 && kept == 0 && block.len() < len {
                    if let Some((low, high)) = halves(&block) {
                        self.free.remove(&block);
                        self.free.insert(low);
                        other.free.insert(high);
                        (kept, given) = (size(&low), size(&high));
                    }
                } else if given < kept {
                    self.free.remove(&block);
                    other.free.insert(block);
                    given = given.saturating_add(size(&block));
                } else {
                    kept = kept.saturating_add(size(&block));
                }
            }
        }
        other
    }

    /// Whether nothing is free.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    fn of(&self, family: Family) -> impl Iterator<Item = Prefix> + '_ {
        self.free.iter().copied().filter(move |block| Family::of(block) == family)
    }

    fn covering(&self, prefix: &Prefix) -> Option<Prefix> {
        (0..=prefix.len())
            .filter_map(|len| Prefix::truncating(prefix.addr(), len).ok())
            .find(|shorter| self.free.contains(shorter))
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of a prefix.
    #[must_use]
    pub fn of(prefix: &Prefix) -> Self {
        if prefix.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The prefix around a block and the other half of it; `None` for a whole address space.
fn buddy(block: &Prefix) -> Option<(Prefix, Prefix)> {
    let parent = Prefix::truncating(block.addr(), block.len().checked_sub(1)?).ok()?;
    let (low, high) = halves(&parent)?;
    Some((parent, if low == *block { high } else { low }))
}

/// The two halves of a block; `None` for a single address.
fn halves(block: &Prefix) -> Option<(Prefix, Prefix)> {
    let len = block.len() + 1;
    let low = Prefix::truncating(block.addr(), len).ok()?;
    // The bit behind the prefix, in the place where `to_bits` puts the family's addresses.
    let bits = to_bits(block.addr()) | (mask(len) ^ mask(block.len()));
    let high = if block.is_ipv4() {
        std::net::IpAddr::from(((bits >> 96) as u32).to_be_bytes())
    } else {
        std::net::IpAddr::from(bits.to_be_bytes())
    };
    Some((low, Prefix::truncating(high, len).ok()?))
}

//! Containers that open flows towards peers: their labels are to be there with the first packet.
//!
//! Only noted where the policy speaks of labels. A pair is noted once for one revision of the tables, as far as a small cache
//! remembers it; what is noted twice is sent once all the same.

use std::net::IpAddr;

use overlay_wire::PeerIndex;

/// Slots of the cache.
const SLOTS: usize = 64;
/// Pairs noted between two calls of [`Introductions::take`].
const MAX_FRESH: usize = 32;

type Pair = (IpAddr, PeerIndex);

/// The pairs of container and peer since last asked.
#[derive(Debug)]
pub(crate) struct Introductions {
    known: [Option<(Pair, u64)>; SLOTS],
    fresh: Vec<Pair>,
}

impl Introductions {
    pub(crate) fn new() -> Self {
        Self { known: [None; SLOTS], fresh: Vec::new() }
    }

    /// A flow from `source` to `peer` was allowed under the tables of this revision.
    pub(crate) fn note(&mut self, source: IpAddr, peer: PeerIndex, revision: u64) {
        let low = match source {
            IpAddr::V4(v4) => u32::from(v4),
            IpAddr::V6(v6) => u128::from(v6) as u32,
        };
        let slot = (low ^ peer.0.wrapping_mul(0x9e37_79b9)) as usize % SLOTS;
        let noted = Some(((source, peer), revision));
        if self.known[slot] != noted && self.fresh.len() < MAX_FRESH {
            self.known[slot] = noted;
            self.fresh.push((source, peer));
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.fresh.is_empty()
    }

    pub(crate) fn take(&mut self) -> Vec<Pair> {
        std::mem::take(&mut self.fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pair_is_told_once_for_each_revision_and_never_too_many() {
        let mut introductions = Introductions::new();
        let source = IpAddr::from([10, 42, 1, 5]);
        for _ in 0..3 {
            introductions.note(source, PeerIndex(1), 7);
        }
        assert_eq!(introductions.take(), [(source, PeerIndex(1))]);
        introductions.note(source, PeerIndex(1), 7);
        assert!(introductions.is_empty());
        introductions.note(source, PeerIndex(1), 8);
        introductions.note(source, PeerIndex(2), 8);
        assert_eq!(introductions.take().len(), 2);
        (0..200u8).for_each(|n| introductions.note(IpAddr::from([10, 42, 3, n]), PeerIndex(1), 8));
        assert_eq!(introductions.take().len(), MAX_FRESH);
    }
}

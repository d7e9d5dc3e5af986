//! The sealed channel to one member: keys that follow from both box keys, the send sequence and the replay window.

use overlay_wire::HostId;
use overlay_wire::gossip::Message;
use overlay_wire::gossip::envelope::{Content, MAX_MESSAGE_BYTES, sealed_header};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};

use super::crypto::{Direction, Key, Sealed, diffie_hellman, seal};

/// Words of the replay window's bitmap.
const WINDOW_WORDS: usize = 16;
/// Sequence numbers the window remembers.
const WINDOW: u64 = WINDOW_WORDS as u64 * 64;

/// The channel to one member for as long as both box keys last.
pub(super) struct Pair {
    their_box: [u8; 32],
    their_epoch: u64,
    send_key: Key,
    receive_key: Key,
    send_tag: [u8; 8],
    receive_tag: [u8; 8],
    gre_key: u32,
    sequence: u64,
    window: ReplayWindow,
}

/// This host's side of every pair.
pub(super) struct OwnSide<'a> {
    pub(super) cluster: &'a [u8; 32],
    pub(super) host: HostId,
    pub(super) secret: &'a StaticSecret,
    pub(super) public: &'a PublicKey,
}

/// Why a sealed datagram was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenError {
    Unauthenticated,
    Replayed,
}

/// An opened datagram.
pub(super) struct Opened {
    pub(super) message: Vec<u8>,
    /// Whether its sequence is the highest so far.
    pub(super) is_newest: bool,
}

impl Pair {
    /// Derives the channel; `None` when the member's box key is a small-order point.
    pub(super) fn new(own: &OwnSide<'_>, them: HostId, their_box: [u8; 32], their_epoch: u64) -> Option<Self> {
        let shared = diffie_hellman(own.secret, &PublicKey::from(their_box))?;
        Some(Self::from_shared(own, them, their_box, their_epoch, &shared))
    }

    /// Derives the channel from the secret that both box keys share.
    pub(super) fn from_shared(
        own: &OwnSide<'_>,
        them: HostId,
        their_box: [u8; 32],
        their_epoch: u64,
        shared: &SharedSecret,
    ) -> Self {
        let out = Direction {
            cluster: own.cluster,
            from: own.host,
            to: them,
            from_box: own.public.to_bytes(),
            to_box: their_box,
        };
        let back = Direction { from: out.to, to: out.from, from_box: out.to_box, to_box: out.from_box, ..out };
        let lower = if own.host < them { out } else { back };
        Self {
            their_box,
            their_epoch,
            send_key: out.seal_key(shared),
            receive_key: back.seal_key(shared),
            send_tag: out.tag(shared),
            receive_tag: back.tag(shared),
            gre_key: lower.gre_key(shared),
            sequence: 0,
            window: ReplayWindow::default(),
        }
    }

    pub(super) fn is_for(&self, their_box: &[u8; 32], their_epoch: u64) -> bool {
        self.their_box == *their_box && self.their_epoch == their_epoch
    }

    pub(super) fn receive_tag(&self) -> [u8; 8] {
        self.receive_tag
    }

    pub(super) fn gre_key(&self) -> u32 {
        self.gre_key
    }

    /// Seals a message; `None` when it is too large for a datagram.
    pub(super) fn seal(&mut self, message: &Message, own_epoch: u64, rng: &mut ChaCha20Rng) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        if bytes.len() > MAX_MESSAGE_BYTES {
            return None;
        }
        self.sequence += 1;
        let content = Content { boot_epoch: own_epoch, sequence: self.sequence, message: &bytes }.encode();
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        Some(seal(&self.send_key, &nonce, sealed_header(&self.send_tag, &nonce), &content))
    }

    /// Opens a datagram and marks its sequence as seen.
    pub(super) fn open(&mut self, sealed: &Sealed<'_>) -> Result<Opened, OpenError> {
        let bytes = sealed.open(&self.receive_key).ok_or(OpenError::Unauthenticated)?;
        let content = Content::decode(&bytes).map_err(|_| OpenError::Unauthenticated)?;
        if content.boot_epoch != self.their_epoch {
            return Err(OpenError::Unauthenticated);
        }
        let is_newest = content.sequence > self.window.highest;
        if !self.window.accept(content.sequence) {
            return Err(OpenError::Replayed);
        }
        Ok(Opened { message: content.message.to_vec(), is_newest })
    }
}

/// Which sequence numbers were seen: the highest, and a bitmap of those just below it (RFC 6479).
#[derive(Debug, Clone, Default)]
pub(super) struct ReplayWindow {
    highest: u64,
    seen: [u64; WINDOW_WORDS],
}

impl ReplayWindow {
    /// Marks a sequence number; false when it was seen before, is older than the window, or 0.
    pub(super) fn accept(&mut self, sequence: u64) -> bool {
        if sequence == 0 || self.highest.saturating_sub(sequence) >= WINDOW {
            return false;
        }
        if sequence > self.highest {
            let forget = (sequence - self.highest).min(WINDOW);
            for step in 1..=forget {
                self.clear(sequence - forget + step);
            }
            self.highest = sequence;
        }
        let (word, bit) = Self::place(sequence);
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }

    fn clear(&mut self, sequence: u64) {
        let (word, bit) = Self::place(sequence);
        self.seen[word] &= !bit;
    }

    fn place(sequence: u64) -> (usize, u64) {
        let slot = sequence % WINDOW;
        ((slot / 64) as usize, 1 << (slot % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn window_takes_each_number_once_up_to_the_top() {
        let mut window = ReplayWindow::default();
        assert!(!window.accept(0));
        assert!(window.accept(1));
        assert!(!window.accept(1));
        assert!(window.accept(u64::MAX));
        assert!(!window.accept(u64::MAX));
        assert!(!window.accept(2));
        assert!(window.accept(u64::MAX - WINDOW + 1));
        assert!(!window.accept(u64::MAX - WINDOW));
    }

    proptest! {
        #[test]
        fn window_equals_a_set(steps in proptest::collection::vec(1u64..3000, 1..300)) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            for sequence in steps {
                let highest = seen.last().copied().unwrap_or(0);
                let expected = sequence + WINDOW > highest && seen.insert(sequence);
                prop_assert_eq!(window.accept(sequence), expected);
            }
        }
    }
}

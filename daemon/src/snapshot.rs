//! What a worker decides a batch with: immutable, built by the control side, swapped whole, loaded once per batch.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use overlay_dataplane::Tables;
use overlay_wire::{Encapsulation, PeerIndex};

use crate::peers::Peer;
use crate::underlay::Destination;

/// How GRE packets to and from a peer look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GreOptions {
    /// The key that is sent and expected.
    pub key: Option<u32>,
    /// The key accepted besides, for a few seconds after a change.
    pub previous_key: Option<u32>,
    /// Whether a checksum is sent and expected.
    pub checksum: bool,
    /// Whether sequence numbers are sent and expected.
    pub sequence: bool,
}

/// One peer as the packet path sees it.
#[derive(Clone, Debug)]
pub struct PathPeer {
    /// The peer.
    pub peer: Arc<Peer>,
    /// How packets to it are carried.
    pub encapsulation: Encapsulation,
    /// The plain encapsulation in which packets from it are accepted, besides WireGuard.
    pub accepts_plain: Option<Encapsulation>,
    /// Where plain packets go, and from which of our addresses; `None` while the peer's source is not validated.
    pub plain: Option<Destination>,
    /// How GRE looks.
    pub gre: GreOptions,
}

/// Everything the packet path needs from the control side.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Owners, policy, peers' sizes, local addresses.
    pub tables: Tables,
    /// The peers, by [`PeerIndex`].
    pub peers: Vec<PathPeer>,
    /// 24-bit receiver index to peer.
    pub by_receiver: HashMap<u32, PeerIndex>,
    /// Outer source and kind of plain packets to peer; only validated, unique sources stand here.
    pub by_source: HashMap<(IpAddr, Encapsulation), PeerIndex>,
}

impl Snapshot {
    /// The peer at a place.
    #[inline]
    #[must_use]
    pub fn peer(&self, index: PeerIndex) -> Option<&PathPeer> {
        self.peers.get(index.0 as usize)
    }
}

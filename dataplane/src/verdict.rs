//! What the packet path answers: a verdict, and where due a packet for the sender.

use std::net::IpAddr;

use overlay_wire::{Mtu, PeerIndex};

use crate::reason::DropReason;

/// Where a packet came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// Read from the TUN: from this host, its containers, or forwarded by it.
    Tun,
    /// Decapsulated from a peer.
    Peer(PeerIndex),
}

/// What to do with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Encapsulate to the peer.
    Forward(PeerIndex),
    /// Fragment the inner packet to this size, then encapsulate each piece to the peer.
    ForwardFragmented(PeerIndex, Mtu),
    /// Write to the TUN.
    Deliver,
    /// The engine keeps a copy of the fragment until the first one decides; see [`crate::Engine::take_released`].
    Held,
    /// A rule needs the labels of this address, which are not known: the caller keeps the packet for a while and hands it in
    /// again when the tables have moved, or has it counted by [`crate::Engine::give_up`]; see [`crate::waiting`].
    Wait(IpAddr),
    /// Drop silently.
    Drop(DropReason),
    /// Drop, and send the IP packet in the [`Reply`] back where this packet came from: to the TUN or to the peer.
    DropWithReply(DropReason),
}

impl Verdict {
    /// Why the packet is dropped, if it is.
    #[must_use]
    pub fn drop_reason(self) -> Option<DropReason> {
        match self {
            Self::Drop(reason) | Self::DropWithReply(reason) => Some(reason),
            Self::Forward(_) | Self::ForwardFragmented(..) | Self::Deliver | Self::Held | Self::Wait(_) => None,
        }
    }
}

/// A held fragment that may go on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Released {
    /// The fragment, an IP packet.
    pub packet: Vec<u8>,
    /// Where it came from.
    pub origin: Origin,
    /// [`Verdict::Forward`], [`Verdict::ForwardFragmented`] or [`Verdict::Deliver`].
    pub verdict: Verdict,
}

/// A caller-owned buffer for one IP packet that answers a dropped one.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(crate) buf: [u8; Self::CAPACITY],
    pub(crate) len: usize,
}

impl Reply {
    /// Room for the largest answer: an ICMPv6 error of 1,280 bytes.
    pub const CAPACITY: usize = 1500;

    /// Makes an empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self { buf: [0; Self::CAPACITY], len: 0 }
    }

    /// The packet written by the last [`Verdict::DropWithReply`].
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }

    /// The same, to be encapsulated in place.
    #[must_use]
    pub fn packet_mut(&mut self) -> &mut [u8] {
        self.buf.get_mut(..self.len).unwrap_or_default()
    }
}

impl Default for Reply {
    fn default() -> Self {
        Self::new()
    }
}

//! The peers of this host: for each its tunnel, its path over the underlay, and its counters.
//!
//! A peer's place ([`PeerIndex`]) lives as long as the daemon runs; its tunnel is replaced when the peer shows a new
//! WireGuard key.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use overlay_wire::gre::ReceiveSequence;
use overlay_wire::{HostId, PeerIndex};
use parking_lot::Mutex;

use crate::underlay::Destination;
use crate::wireguard::{PublicKeyBytes, Tunnel};

/// Packets held for a peer while its first handshake is under way, at most.
const PENDING_PACKETS: usize = 128;
/// A held packet older than this is dropped.
const PENDING_AGE: Duration = Duration::from_secs(1);

/// Who a peer is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PeerKind {
    /// A member of the cluster.
    Member(HostId),
    /// A `[[peer]]` entry that speaks WireGuard, by public key.
    ForeignWireguard(PublicKeyBytes),
    /// A `[[peer]]` entry that speaks IPIP or GRE, by underlay address.
    ForeignPlain(IpAddr),
}

/// A packet that waits for a session.
#[derive(Debug)]
struct Pending {
    at: Instant,
    bytes: Vec<u8>,
}

/// What a tunnel is built from besides the peer's key; a change builds it anew.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TunnelSettings {
    /// The preshared key.
    pub preshared: Option<[u8; 32]>,
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
    /// The configured address.
    pub endpoint: Option<SocketAddr>,
}

impl std::fmt::Debug for TunnelSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelSettings").field("keepalive", &self.keepalive).finish_non_exhaustive()
    }
}

/// What changes with packets, under the peer's lock.
#[derive(Debug, Default)]
pub struct PeerState {
    /// The WireGuard tunnel, once the peer's key is known.
    pub tunnel: Option<Tunnel>,
    /// The key the tunnel was built for.
    pub public_key: Option<PublicKeyBytes>,
    /// What else it was built from.
    pub settings: TunnelSettings,
    /// Where the peer's WireGuard datagrams go.
    pub path: Option<Destination>,
    /// Next sequence number of a GRE peer that has them.
    pub gre_sequence: u32,
    /// What sequence numbers were received from such a peer.
    pub gre_received: ReceiveSequence,
    pending: VecDeque<Pending>,
}

impl PeerState {
    /// Holds a packet until there is a session; the number of packets dropped for it.
    pub fn hold(&mut self, packet: &[u8], now: Instant) -> u64 {
        let mut dropped = 0;
        while self.pending.len() >= PENDING_PACKETS
            || self.pending.front().is_some_and(|oldest| now.saturating_duration_since(oldest.at) > PENDING_AGE)
        {
            self.pending.pop_front();
            dropped += 1;
        }
        self.pending.push_back(Pending { at: now, bytes: packet.to_vec() });
        dropped
    }

    /// The next held packet that is young enough to send; older ones are dropped.
    pub fn next_held(&mut self, now: Instant) -> Option<Vec<u8>> {
        while let Some(next) = self.pending.pop_front() {
            if now.saturating_duration_since(next.at) <= PENDING_AGE {
                return Some(next.bytes);
            }
        }
        None
    }
}

/// Counters of one peer, written by workers and read by anyone.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Inner packets sent.
    pub tx_packets: AtomicU64,
    /// Inner bytes sent.
    pub tx_bytes: AtomicU64,
    /// Inner packets received.
    pub rx_packets: AtomicU64,
    /// Inner bytes received.
    pub rx_bytes: AtomicU64,
    /// Milliseconds since the daemon's start when a packet last came from the peer; zero for never.
    pub last_rx_ms: AtomicU64,
}

impl PeerCounters {
    /// Adds to what was sent.
    pub fn sent(&self, packets: u64, bytes: u64) {
        self.tx_packets.fetch_add(packets, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds to what was received.
    pub fn received(&self, packets: u64, bytes: u64, at_ms: u64) {
        self.rx_packets.fetch_add(packets, Ordering::Relaxed);
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_rx_ms.store(at_ms.max(1), Ordering::Relaxed);
    }
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    /// Its place in every snapshot.
    pub index: PeerIndex,
    /// Who it is.
    pub kind: PeerKind,
    /// Its name in output.
    pub name: String,
    /// The upper 24 bits of every receiver index we hand to it.
    pub receiver: u32,
    /// What changes with packets.
    pub state: Mutex<PeerState>,
    /// What was counted.
    pub counters: PeerCounters,
    /// What data-path probes found.
    pub probes: Mutex<crate::probe::ProbeState>,
}

impl Peer {
    /// A peer without tunnel or path.
    #[must_use]
    pub fn new(index: PeerIndex, kind: PeerKind, name: String, receiver: u32) -> Self {
        Self {
            index,
            kind,
            name,
            receiver,
            state: Mutex::default(),
            counters: PeerCounters::default(),
            probes: Mutex::default(),
        }
    }

    /// Moves the path to where an authenticated, newest packet came from.
    pub fn learn_path(state: &mut PeerState, from: SocketAddr, local: Option<IpAddr>) -> bool {
        let path = Destination { to: from, source: local, tos: 0 };
        if state.path == Some(path) {
            return false;
        }
        state.path = Some(path);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_packets_are_bounded_in_number_and_age() {
        let mut state = PeerState::default();
        let start = Instant::now();
        for i in 0..PENDING_PACKETS + 10 {
            assert_eq!(state.hold(&[i as u8], start), u64::from(i >= PENDING_PACKETS));
        }
        assert_eq!(state.pending.len(), PENDING_PACKETS);
        assert_eq!(state.next_held(start), Some(vec![10]));
        assert_eq!(state.next_held(start + PENDING_AGE * 2), None);
        assert!(state.pending.is_empty());
    }
}

//! The immutable snapshot one batch of packets is decided with.

use std::net::IpAddr;

use overlay_routing::fib::Fib;
use overlay_wire::{Mtu, PeerIndex, Prefix};

use crate::policy::CompiledPolicy;
use crate::rate::RateTable;

/// Where the owner of an address is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Route {
    /// This host.
    Local,
    /// A peer.
    Peer(PeerIndex),
}

/// What the packet path knows of one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerInfo {
    /// The peer's name in output.
    pub name: String,
    /// The largest inner packet that reaches the peer in one piece.
    pub inner_mtu: Mtu,
    /// Whether the peer's packets are authenticated, so that identity rules may match them.
    pub authenticated: bool,
    /// Whether the peer is a member of the cluster; a foreign peer is not.
    pub member: bool,
}

/// The addresses of this host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalAddresses {
    /// The host's own overlay addresses (the containers' gateway), one per family.
    pub host: Vec<IpAddr>,
    /// The prefixes the host's containers live in.
    pub prefixes: Vec<Prefix>,
    /// The prefixes the whole overlay lives in.
    pub pool: Vec<Prefix>,
    /// The prefixes behind the host that it announces.
    pub announced: Vec<Prefix>,
}

/// Everything a packet is decided with, built whole by the daemon and swapped whole.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// The owner of every overlay address.
    pub owners: Fib<Route>,
    /// The packet filter.
    pub policy: CompiledPolicy,
    /// Moves with every snapshot in which `policy`, `owners`, `local` or a peer's place or membership changed: answers of
    /// the filter and ways of packets hold for one revision.
    pub revision: u64,
    /// The peers, by [`PeerIndex`].
    pub peers: Vec<PeerInfo>,
    /// This host's addresses.
    pub local: LocalAddresses,
    /// Limits on rates. They are not part of what `revision` speaks of.
    pub rates: RateTable,
}

impl Tables {
    /// The peer at `index`.
    #[inline]
    #[must_use]
    pub fn peer(&self, index: PeerIndex) -> Option<&PeerInfo> {
        self.peers.get(index.0 as usize)
    }

    /// The name of the owner of a route, in output.
    #[must_use]
    pub fn peer_name(&self, route: Route) -> String {
        match route {
            Route::Local => "this host".to_owned(),
            Route::Peer(peer) => self.peer(peer).map_or_else(|| format!("peer {}", peer.0), |peer| peer.name.clone()),
        }
    }

    /// The host's own address of the family of `like`: the source of what the host itself answers.
    #[must_use]
    pub fn host_address(&self, like: IpAddr) -> Option<IpAddr> {
        self.local.host.iter().copied().find(|address| address.is_ipv4() == like.is_ipv4())
    }
}

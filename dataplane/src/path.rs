//! Who owns the two ends of a packet, and so whether it may be here and where it goes.
//!
//! From the TUN the source must be this host's, or nobody's on its way to a local address (forwarded by the host). From a
//! peer the owner of the source must be exactly that peer and the destination must be here: nothing is ever passed on
//! for another owner.

use std::net::IpAddr;

use overlay_wire::PeerIndex;

use crate::policy::LabelUse;
use crate::reason::DropReason;
use crate::tables::{Route, Tables};
use crate::verdict::Origin;

/// What kind of place one end of a packet is; the default policy speaks of these.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// This host itself.
    Host,
    /// A container or network of a member, this host included.
    Member,
    /// A foreign peer.
    Foreign,
    /// Beyond the overlay.
    Outside,
}

/// Where an accepted packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Exit {
    /// To a peer.
    Peer(PeerIndex),
    /// Into the TUN.
    Tun,
}

/// The way of a packet whose source is genuine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Path {
    pub(crate) exit: Exit,
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) labels: LabelUse,
}

/// Finds the way of a packet, or why it may not be here.
#[inline]
pub(crate) fn find(tables: &Tables, origin: Origin, src: IpAddr, dst: IpAddr) -> Result<Path, DropReason> {
    let source = tables.owners.lookup(src).copied();
    let target = tables.owners.lookup(dst).copied();
    let path = |exit| Path {
        exit,
        from: end(tables, source, src),
        to: end(tables, target, dst),
        labels: label_use(tables, [source, target]),
    };
    match origin {
        Origin::Tun => match (source, target) {
            (Some(Route::Local), Some(Route::Peer(peer))) => {
                if tables.peer(peer).is_none() {
                    return Err(DropReason::UnknownPeer);
                }
                Ok(path(Exit::Peer(peer)))
            }
            (Some(Route::Local), Some(Route::Local)) => Ok(path(Exit::Tun)),
            (Some(Route::Local), None) if in_pool(tables, dst) => Err(DropReason::NoOwner),
            (Some(Route::Local), None) => Ok(path(Exit::Tun)),
            (None, Some(Route::Local)) if !in_pool(tables, src) => Ok(path(Exit::Tun)),
            _ => Err(DropReason::SpoofedSource),
        },
        Origin::Peer(peer) => {
            if tables.peer(peer).is_none() {
                return Err(DropReason::UnknownPeer);
            }
            if source != Some(Route::Peer(peer)) {
                return Err(DropReason::ForeignSource);
            }
            if target != Some(Route::Local) {
                return Err(DropReason::Transit);
            }
            Ok(path(Exit::Tun))
        }
    }
}

/// Whether labels count between these owners: not where a peer is not authenticated.
#[inline]
fn label_use(tables: &Tables, owners: [Option<Route>; 2]) -> LabelUse {
    let is_plain = |owner: Option<Route>| match owner {
        Some(Route::Peer(peer)) => !tables.peer(peer).is_some_and(|peer| peer.authenticated),
        Some(Route::Local) | None => false,
    };
    if owners.into_iter().any(is_plain) { LabelUse::Ignore } else { LabelUse::Count }
}

/// The kind of place an address is, by its owner.
#[inline]
pub(crate) fn end(tables: &Tables, owner: Option<Route>, address: IpAddr) -> End {
    match owner {
        Some(Route::Local) if tables.local.host.contains(&address) => End::Host,
        Some(Route::Local) => End::Member,
        Some(Route::Peer(peer)) if tables.peer(peer).is_some_and(|peer| peer.member) => End::Member,
        Some(Route::Peer(_)) => End::Foreign,
        None => End::Outside,
    }
}

/// Whether an address belongs to the overlay, owned or not.
pub(crate) fn in_pool(tables: &Tables, address: IpAddr) -> bool {
    let local = &tables.local;
    local.pool.iter().chain(&local.prefixes).any(|prefix| prefix.contains(address))
}

/// Slots of the path cache.
const CACHE_SLOTS: usize = 64;

/// The ways of the last address pairs, so that packets of a train cost one comparison instead of two table lookups.
///
/// Only ways that were found are kept, and only for one revision of the tables.
#[derive(Clone, Debug)]
pub(crate) struct PathCache([Cached; CACHE_SLOTS]);

#[derive(Clone, Copy, Debug)]
struct Cached {
    src: IpAddr,
    dst: IpAddr,
    origin: Origin,
    revision: Option<u64>,
    path: Path,
}

impl PathCache {
    pub(crate) fn new() -> Self {
        let nobody = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        let path = Path { exit: Exit::Tun, from: End::Outside, to: End::Outside, labels: LabelUse::Ignore };
        Self([Cached { src: nobody, dst: nobody, origin: Origin::Tun, revision: None, path }; CACHE_SLOTS])
    }

    /// Finds the way of a packet; see [`find`].
    #[inline]
    pub(crate) fn find(
        &mut self,
        tables: &Tables,
        origin: Origin,
        src: IpAddr,
        dst: IpAddr,
    ) -> Result<Path, DropReason> {
        let cached = &mut self.0[slot(src, dst)];
        if cached.revision == Some(tables.revision) && cached.src == src && cached.dst == dst && cached.origin == origin
        {
            return Ok(cached.path);
        }
        let path = find(tables, origin, src, dst)?;
        *cached = Cached { src, dst, origin, revision: Some(tables.revision), path };
        Ok(path)
    }
}

#[inline]
fn slot(src: IpAddr, dst: IpAddr) -> usize {
    let low = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => u128::from(v6) as u32,
    };
    let mix = low(src) ^ low(dst).rotate_left(3);
    (mix.wrapping_mul(0x9e37_79b9) >> 26) as usize & (CACHE_SLOTS - 1)
}

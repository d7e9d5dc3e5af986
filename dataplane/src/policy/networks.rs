//! Which network each address is in: different networks do not talk unless a rule says so, and nothing passes between an
//! internal one and the outside.

use std::net::IpAddr;

use overlay_routing::fib::Fib;
use overlay_routing::networks::Networks;
use overlay_wire::Prefix;

use super::{Grounds, Tuple};
use crate::path::End;

/// What the networks of the cluster mean to the filter.
#[derive(Clone, Debug, Default)]
pub(super) struct NetworkIndex {
    /// The place of an address; what is not found is in the default network.
    places: Fib<Place>,
    /// Whether each network is internal, by number.
    internal: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// A host itself: in no network, so apart from none.
    Host,
    /// The default network.
    Default,
    /// Another network, by number.
    Network(u32),
}

impl NetworkIndex {
    pub(super) fn new(networks: &Networks) -> Self {
        let mut places: Vec<(Prefix, Place)> =
            networks.hosts().iter().map(|host| (Prefix::host(*host), Place::Host)).collect();
        let mut internal = Vec::new();
        for (number, (_, network)) in (0u32..).zip(networks.iter()) {
            internal.push(network.options.internal);
            places.extend(network.blocks().map(|block| (block, Place::Network(number))));
        }
        if internal.is_empty() {
            return Self::default();
        }
        Self { places: Fib::build(places), internal }
    }

    fn place(&self, address: IpAddr, end: End) -> Option<Place> {
        match end {
            End::Member => Some(self.places.lookup(address).copied().unwrap_or(Place::Default)),
            End::Host | End::Foreign | End::Outside => None,
        }
    }

    fn is_internal(&self, place: Option<Place>) -> bool {
        match place {
            Some(Place::Network(number)) => self.internal.get(number as usize).is_some_and(|internal| *internal),
            _ => false,
        }
    }

    /// Why no rule can let a flow pass, where that is so.
    pub(super) fn forbids(&self, tuple: &Tuple, from: End, to: End) -> Option<Grounds> {
        if self.internal.is_empty() {
            return None;
        }
        let beyond = |end| matches!(end, End::Outside | End::Foreign);
        let out = beyond(to) && self.is_internal(self.place(tuple.src, from));
        let into = beyond(from) && self.is_internal(self.place(tuple.dst, to));
        (out || into).then_some(Grounds::Internal)
    }

    /// Whether a flow is between containers of different networks.
    pub(super) fn are_apart(&self, tuple: &Tuple, from: End, to: End) -> bool {
        if self.internal.is_empty() {
            return false;
        }
        match (self.place(tuple.src, from), self.place(tuple.dst, to)) {
            (Some(Place::Host), _) | (_, Some(Place::Host)) | (None, _) | (_, None) => false,
            (Some(source), Some(destination)) => source != destination,
        }
    }
}

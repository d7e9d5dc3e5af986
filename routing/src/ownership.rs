//! Ownership: which host answers for an address.
//!
//! `owner(ip)` is a pure, order-free function of the configured members and their grants, the signed records and the
//! local configuration. Forwarding sends to `owner(dst)`; decapsulation accepts a packet only if `owner(inner source)` is
//! the peer that was authenticated. Both ask the same [`OwnerTable`].

use std::net::IpAddr;

use overlay_wire::{HostId, Prefix};

pub use overlay_wire::gossip::{Grant, GrantError, GrantKind};

use crate::fib::Fib;

/// Who answers for a prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Owner {
    /// This host: its own prefixes and what it announces.
    Local,
    /// A foreign peer, by its place in the configuration.
    Foreign(u32),
    /// A member, by host id.
    Member(HostId),
}

/// The global longest-prefix-match table of owners; prefixes without an owner find nothing.
#[derive(Debug, Clone, Default)]
pub struct OwnerTable {
    /// The index; the daemon derives its forwarding tables from it.
    pub fib: Fib<Owner>,
}

impl OwnerTable {
    /// Builds the table from prefixes whose conflicts are settled already.
    #[must_use]
    pub fn new(routes: Vec<(Prefix, Owner)>) -> Self {
        Self { fib: Fib::build(routes) }
    }

    /// The owner of an address.
    #[inline]
    #[must_use]
    pub fn owner(&self, ip: IpAddr) -> Option<Owner> {
        self.fib.lookup(ip).copied()
    }

    /// Whether a packet from `peer` may carry this inner source.
    #[inline]
    #[must_use]
    pub fn accepts_source(&self, peer: Owner, source: IpAddr) -> bool {
        self.owner(source) == Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_prefix_of_another_owner_is_not_a_valid_source() {
        let (a, b) = (Owner::Member(HostId([1; 16])), Owner::Foreign(0));
        let table = OwnerTable::new(vec![
            ("10.0.0.0/8".parse().expect("prefix"), a),
            ("10.1.0.0/16".parse().expect("prefix"), b),
        ]);
        let inner = "10.1.2.3".parse().expect("address");
        assert!(table.accepts_source(b, inner));
        assert!(!table.accepts_source(a, inner));
        assert_eq!(table.owner("192.0.2.1".parse().expect("address")), None);
    }
}

//! Networks on this host: taking part, leaving, and giving addresses out of their blocks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use overlay_control::api::{AddressHold, EndpointRequest};
use overlay_wire::Prefix;
use overlay_wire::gossip::NetworkOptions;
use overlay_wire::gossip::networks::DEFAULT_NETWORK;

use super::{OwnNetworks, Plumber, PlumbingError};
use crate::plumbing::ipam::{Holder, Space};

impl Plumber {
    /// The networks this host takes part in; the same place for as long as the plumber lives.
    #[must_use]
    pub fn own_networks(&self) -> OwnNetworks {
        Arc::clone(&self.own_networks)
    }

    /// Takes part in a network; whether that is new.
    ///
    /// # Errors
    /// When it cannot be written down, or there are too many.
    pub fn join_network(&mut self, name: &str, options: NetworkOptions) -> Result<bool, PlumbingError> {
        let joined = self.ledger.join(name, options);
        self.publish_ledger();
        joined
    }

    /// Leaves a network; whether this host was in it.
    ///
    /// # Errors
    /// When endpoints on this host use it, or it cannot be written down.
    pub fn leave_network(&mut self, name: &str) -> Result<bool, PlumbingError> {
        let users = self.journal.lives().filter(|lease| lease.network_name() == name);
        let endpoints: Vec<String> = users.map(|lease| lease.name.clone()).collect();
        if !endpoints.is_empty() {
            return Err(PlumbingError::NetworkUsed { name: name.to_owned(), endpoints });
        }
        let left = self.ledger.leave(name);
        self.publish_ledger();
        left
    }

    /// Addresses for an endpoint. Blocks that its network needs for them are set apart, durably, before this returns.
    pub(super) fn give_addresses(&mut self, request: &EndpointRequest) -> Result<Vec<IpAddr>, PlumbingError> {
        let network = request.network.as_deref().unwrap_or(DEFAULT_NETWORK);
        let options = self.network_options(network)?;
        self.check_gateways(request)?;
        let mut space = self.space();
        self.lend_held(request, &mut space);
        let grant = if request.addresses.is_empty() {
            space.allocate(network, &options.pool)?
        } else {
            space.claim(network, &options.pool, &request.addresses)?
        };
        self.set_apart(network, options, &grant.carved)?;
        Ok(grant.addresses)
    }

    /// An address for a plugin that has no endpoint yet; durable as for [`Self::give_addresses`].
    pub(super) fn give_held(&mut self, wanted: &AddressHold, mut space: Space) -> Result<IpAddr, PlumbingError> {
        let network = wanted.network.as_deref().unwrap_or(DEFAULT_NETWORK);
        let mut options = self.network_options(network)?;
        if network != DEFAULT_NETWORK {
            options.pool = confined(&options.pool, wanted.part.as_ref());
            // Nobody has what rests, and whoever gets the block does not get that.
            let is_aside = |holder: &Holder| match holder {
                Holder::Held(owner) => *owner == wanted.owner,
                Holder::Resting(..) => true,
                Holder::Endpoint(_) | Holder::Reserved => false,
            };
            space.aside = space.taken.iter().filter(|(_, holder)| is_aside(holder)).map(|(one, _)| *one).collect();
        }
        let grant = match wanted.address {
            Some(address) => space.claim(network, &options.pool, &[address])?,
            None if network == DEFAULT_NETWORK => return space.allocate_within(&wanted.within),
            None => space.allocate_part(network, &options.pool, &wanted.within)?,
        };
        let options = self.network_options(network)?;
        self.set_apart(network, options, &grant.carved)?;
        grant.addresses.first().copied().ok_or(PlumbingError::NotOwnPrefix(wanted.within))
    }

    fn set_apart(&mut self, network: &str, options: NetworkOptions, blocks: &[Prefix]) -> Result<(), PlumbingError> {
        if !blocks.is_empty() {
            self.ledger.join(network, options)?;
            self.ledger.add_blocks(network, blocks)?;
            self.publish_ledger();
        }
        Ok(())
    }

    /// What a network is: as all hosts together say, or as this one was told.
    pub(super) fn network_options(&self, network: &str) -> Result<NetworkOptions, PlumbingError> {
        if network == DEFAULT_NETWORK {
            return Ok(NetworkOptions::default());
        }
        let own = self.ledger.network(network).map(|own| &own.options);
        let known = self.learned.networks.get(network).or(own).cloned();
        known.ok_or_else(|| PlumbingError::NetworkUnknown(network.to_owned()))
    }

    /// Everything that addresses follow from.
    pub(super) fn space(&self) -> Space {
        let mut taken = self.journal.taken(SystemTime::now());
        for address in self.ledger.reserved() {
            taken.entry(*address).or_insert(Holder::Reserved);
        }
        for (address, holder) in self.held.taken(SystemTime::now()) {
            taken.entry(address).or_insert(holder);
        }
        Space {
            own: self.config.own_prefixes.clone(),
            taken,
            blocks: self.ledger.blocks().map(|(name, block)| (name.to_owned(), block)).collect(),
            aside: BTreeSet::new(),
        }
    }

    fn publish_ledger(&self) {
        let networks = self.ledger.networks();
        if **self.own_networks.load() != networks {
            self.own_networks.store(Arc::new(networks));
        }
    }
}

/// A pool confined to a part of the host's prefix; without a pool it is that part.
fn confined(pool: &[Prefix], part: Option<&Prefix>) -> Vec<Prefix> {
    let Some(part) = part else { return pool.to_vec() };
    if pool.is_empty() {
        return vec![*part];
    }
    let both = pool.iter().filter(|one| one.overlaps(part)).map(|one| if one.covers(part) { *part } else { *one });
    let both: Vec<Prefix> = both.collect();
    // Where nothing is left the pool stands, so that the error names it.
    if both.is_empty() { pool.to_vec() } else { both }
}

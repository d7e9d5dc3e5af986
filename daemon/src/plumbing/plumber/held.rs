//! Addresses held for plugins: given before there is an endpoint, and lent to the endpoint that comes.

use std::net::IpAddr;
use std::time::SystemTime;

use overlay_control::api::{AddressBook, AddressHold, EndpointRequest, HeldAddress};

use super::{Plumber, PlumbingError};
use crate::plumbing::endpoint;
use crate::plumbing::ipam::Space;

impl Plumber {
    /// Holds an address for a plugin.
    ///
    /// # Errors
    /// When the address or the part of a prefix is not of this host, taken, or used up.
    pub fn hold(&mut self, wanted: &AddressHold) -> Result<HeldAddress, PlumbingError> {
        endpoint::check_owner(&wanted.owner)?;
        let mut space = self.space();
        if let Some(address) = wanted.address {
            if !wanted.within.contains(address) {
                let why = format!("it is outside the range {}", wanted.within);
                return Err(PlumbingError::AddressRefused { address, why });
            }
            let of_none = wanted.network.is_none();
            if self.held.may_return(address, &wanted.owner) || (of_none && self.held.rests_for(address, &wanted.owner))
            {
                space.taken.remove(&address);
            }
        }
        let address = self.give_held(wanted, space)?;
        self.held.hold(address, &wanted.owner, SystemTime::now())
    }

    /// Releases a held address; whether its owner had it.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn release_held(&mut self, address: IpAddr, owner: &str) -> Result<bool, PlumbingError> {
        self.held.release(address, owner, SystemTime::now())
    }

    /// Where addresses come from, and which are held.
    #[must_use]
    pub fn address_book(&self) -> AddressBook {
        AddressBook {
            own: self.config.own_prefixes.clone(),
            pool: self.config.pool.clone(),
            held: self.held.list(SystemTime::now()),
        }
    }

    /// Frees, for this request, the addresses that are held for its owner and that no endpoint has.
    pub(super) fn lend_held(&self, request: &EndpointRequest, space: &mut Space) {
        let owner = request.owner.as_deref();
        for address in request.addresses.iter().filter(|address| self.held.is_held_by(**address, owner)) {
            if !self.journal.lives().any(|lease| lease.addresses.contains(address)) {
                space.taken.remove(address);
            }
        }
    }

    /// Gateways that a request brings along must be held for its owner.
    pub(super) fn check_gateways(&self, request: &EndpointRequest) -> Result<(), PlumbingError> {
        let owner = request.owner.as_deref();
        let gateways = request.engine.iter().flat_map(|engine| &engine.gateways);
        match gateways.into_iter().find(|address| !self.held.is_held_by(**address, owner)) {
            None => Ok(()),
            Some(address) => {
                let why = "a gateway must be an address held for the same owner".to_owned();
                Err(PlumbingError::AddressRefused { address: *address, why })
            }
        }
    }
}

//! Addresses held for a plugin before there is an endpoint that has them.
//!
//! Docker asks for addresses first (of gateways too), and for the container later. A held address is given to nobody else
//! until its owner releases it; then it cools down as every address does, but its owner may ask for this very address again at
//! once, because engines do so when a container with a fixed address is restarted.

use std::net::IpAddr;

use overlay_wire::Prefix;
use serde::{Deserialize, Serialize};

/// What is to be held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressHold {
    /// For whom, as `docker/POOL`. Endpoints whose owner begins with the same word may use it.
    pub owner: String,
    /// Where to take it from: a prefix of this host or a part of one.
    pub within: Prefix,
    /// This very address; absent: the lowest free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The network of the container that will have it; absent: it is for the host itself, as gateways are, and outside of all
    /// blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What blocks that the network gets for it are confined to, on top of the network's own pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Prefix>,
}

/// One address that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAddress {
    /// The address.
    pub address: IpAddr,
    /// For whom.
    pub owner: String,
    /// For how long, in seconds.
    pub age_s: u64,
}

/// Where addresses come from, and which are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressBook {
    /// Prefixes of this host.
    pub own: Vec<Prefix>,
    /// Prefixes of the overlay as a whole.
    pub pool: Vec<Prefix>,
    /// Addresses held now, without those that cool down.
    pub held: Vec<HeldAddress>,
}

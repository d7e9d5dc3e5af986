//! Networks of the cluster, and the addresses of this host.

use std::net::IpAddr;

use overlay_wire::Prefix;
use overlay_wire::gossip::NetworkMode;
use serde::{Deserialize, Serialize};

/// What can be asked about networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkRequest {
    /// Makes a network, or takes part in one that others made. Answer: `Done`.
    Create(NetworkCreate),
    /// Every network of the cluster. Answer: `Networks`.
    List,
    /// One network. Answer: `Networks` with one.
    Show {
        /// Its name.
        name: String,
    },
    /// Takes this host out of a network; the last host ends it. Answer: `Done`.
    Remove {
        /// Its name.
        name: String,
    },
}

impl NetworkRequest {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Remove { .. })
    }
}

/// A network to be made. What is left out is taken from the network where it exists already.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// Its blocks lie inside these prefixes; empty: anywhere in the hosts' prefixes.
    #[serde(default)]
    pub pool: Vec<Prefix>,
    /// Whether there is no way to the outside.
    #[serde(default)]
    pub internal: bool,
    /// How its containers are linked; absent: routed.
    #[serde(default)]
    pub mode: Option<NetworkMode>,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// How its containers are linked.
    pub mode: NetworkMode,
    /// Whether there is no way to the outside.
    pub internal: bool,
    /// What its blocks are confined to; empty: nothing.
    pub pool: Vec<Prefix>,
    /// Whether this host takes part.
    pub here: bool,
    /// The hosts that take part; of the default network none is listed, as all do.
    pub hosts: Vec<NetworkHost>,
    /// Its endpoints on this host.
    pub endpoints: Vec<String>,
    /// What is worth knowing: hosts that disagree, missing filters.
    pub notes: Vec<String>,
}

/// One host of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkHost {
    /// The host's name.
    pub host: String,
    /// Its blocks there.
    pub blocks: Vec<Prefix>,
    /// What this host wants the network to be.
    pub wants: String,
}

/// What can be asked about this host's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IpamRequest {
    /// How full each block is. Answer: `Usage`.
    Show,
    /// Every address that is held. Answer: `Addresses`.
    List,
    /// Compares leases, links and addresses. Answer: `Findings`.
    Check {
        /// Whether to repair what is found.
        fix: bool,
    },
    /// Frees an address that rests or is reserved. Answer: `Done`.
    Release {
        /// The address.
        address: IpAddr,
    },
    /// Keeps an address from being given. Answer: `Done`.
    Reserve {
        /// The address.
        address: IpAddr,
    },
}

impl IpamRequest {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Release { .. } | Self::Reserve { .. } | Self::Check { fix: true })
    }
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IpamResponse {
    /// How full each block is.
    Usage(Vec<IpamUsage>),
    /// Every address that is held.
    Addresses(Vec<IpamAddress>),
    /// What is not as it should be.
    Findings(Vec<IpamFinding>),
}

/// How full one prefix or block is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamUsage {
    /// The network.
    pub network: String,
    /// The block; of the default network the host's own prefix, without the blocks of others.
    pub prefix: Prefix,
    /// Addresses that endpoints have.
    pub used: u64,
    /// Addresses that rest after use.
    pub resting: u64,
    /// Addresses reserved by hand.
    pub reserved: u64,
    /// Addresses that can be given; the greatest number where there are more.
    pub free: u64,
}

/// How an address is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressState {
    /// An endpoint has it.
    Used,
    /// It rests after use.
    Resting,
    /// It is reserved by hand.
    Reserved,
}

/// One address that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamAddress {
    /// The address.
    pub address: IpAddr,
    /// The network whose block it lies in.
    pub network: String,
    /// How it is held.
    pub state: AddressState,
    /// The endpoint that has or had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Who asked for the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// For how many more seconds it rests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// One thing that `ipam check` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamFinding {
    /// What is wrong.
    pub what: String,
    /// Whether it was put right.
    pub fixed: bool,
    /// Why it could not be, where that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

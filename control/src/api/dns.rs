//! Names of containers, and the server that knows them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What can be asked about names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsRequest {
    /// How the server of this host is. Answer: `Dns`.
    Status,
    /// Gives an endpoint of this host these names instead of those it had; they end with it. Answer: `Done`.
    SetNames {
        /// The endpoint.
        endpoint: String,
        /// Its names: labels, in any case.
        names: Vec<String>,
    },
}

impl DnsRequest {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_change(&self) -> bool {
        matches!(self, Self::SetNames { .. })
    }
}

/// The server of names on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// Whether it answers.
    pub enabled: bool,
    /// The domain of hosts and containers.
    pub domain: String,
    /// Where containers and this host ask it, at port 53.
    pub servers: Vec<IpAddr>,
    /// Who is asked about all other names.
    pub forward: Vec<IpAddr>,
    /// Names of hosts known here.
    pub hosts: u64,
    /// Names of containers known here.
    pub containers: u64,
    /// Queries answered from what is known here, since the start.
    pub answered: u64,
    /// Queries passed on, since the start.
    pub forwarded: u64,
    /// Queries refused for their number, their sender or because too many were under way, since the start.
    pub refused: u64,
}

//! Names of this host's containers, and the way of questions about names to the server.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_wire::gossip::names::{ContainerNames, MAX_NAME_ADDRESSES, is_label};

use super::super::lease::{Lease, LeaseState};
use super::super::ports::table::NameServer;
use super::{Plumber, PlumbingError, Scope};

impl Plumber {
    /// Gives an endpoint names; whether that changes anything.
    ///
    /// # Errors
    /// When there is no such endpoint, a name is not acceptable, or the file cannot be written.
    pub fn set_names(&mut self, endpoint: &str, names: &[String]) -> Result<bool, PlumbingError> {
        let unknown = || PlumbingError::EndpointUnknown(endpoint.to_owned());
        let lease = self.journal.live(endpoint).ok_or_else(unknown)?.id;
        self.names.set(lease, names)
    }

    /// The names of this host's containers: those that callers gave, and the endpoint's own where a person chose it.
    #[must_use]
    pub fn names(&self) -> ContainerNames {
        let mut found = ContainerNames::new();
        for lease in self.journal.iter().filter(|lease| lease.state == LeaseState::Committed) {
            for name in self.names.of(lease.id).iter().cloned().chain(own_name(lease)) {
                let addresses = found.entry(name).or_default();
                addresses.extend(&lease.addresses);
                addresses.sort_unstable();
                addresses.dedup();
                addresses.truncate(MAX_NAME_ADDRESSES);
            }
        }
        found
    }

    /// The addresses of containers that an engine wants without a way to the outside.
    #[must_use]
    pub fn enclosed(&self) -> BTreeSet<IpAddr> {
        self.journal.lives().filter(|lease| lease.internal).flat_map(|lease| lease.addresses.iter().copied()).collect()
    }

    /// Leads questions about names to the server, which listens there.
    pub async fn set_name_servers(&mut self, servers: Vec<NameServer>) {
        self.name_servers = servers;
        self.reconcile(Scope::Routing).await;
    }
}

/// Engines make up names of endpoints, people choose them.
fn own_name(lease: &Lease) -> Option<String> {
    let name = lease.name.to_ascii_lowercase();
    (lease.owner.is_none() && is_label(&name)).then_some(name)
}

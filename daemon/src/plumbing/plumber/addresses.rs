//! Addresses as a person sees them: how full the blocks are, who has what, and whether leases, links and addresses agree.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_control::api::{AddressState, IpamAddress, IpamFinding, IpamUsage};

use super::{Plumber, PlumbingError, Scope};
use crate::plumbing::ipam::Holder;
use crate::plumbing::lease::{Lease, LeaseState};
use crate::plumbing::ledger::Keep;
use crate::plumbing::netlink::Link;

/// What a check found, and what puts it right.
#[derive(Debug)]
enum Remedy {
    /// Detach the endpoint.
    End(Box<Lease>),
    /// Remove the link.
    Unlink(String),
    /// A person has to decide.
    None,
}

impl Plumber {
    /// How full each prefix and block is.
    #[must_use]
    pub fn usage(&self) -> Vec<IpamUsage> {
        self.space().usage()
    }

    /// Every address that is held.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpamAddress> {
        let space = self.space();
        let mut owners: BTreeMap<IpAddr, Option<String>> = BTreeMap::new();
        for lease in self.journal.lives() {
            owners.extend(lease.addresses.iter().map(|address| (*address, lease.owner.clone())));
        }
        let shown = space.taken.iter().map(|(address, holder)| {
            let (state, endpoint, seconds) = match holder {
                Holder::Endpoint(name) => (AddressState::Used, Some(name.clone()), None),
                Holder::Resting(name, seconds) => (AddressState::Resting, Some(name.clone()), Some(*seconds)),
                Holder::Reserved => (AddressState::Reserved, None, None),
            };
            IpamAddress {
                address: *address,
                network: space.network_of(*address).to_owned(),
                state,
                endpoint,
                owner: owners.get(address).cloned().flatten(),
                seconds,
            }
        });
        shown.collect()
    }

    /// Keeps an address from being given; whether that is new.
    ///
    /// # Errors
    /// When it is not this host's to give, held already, or cannot be written down.
    pub fn reserve(&mut self, address: IpAddr) -> Result<bool, PlumbingError> {
        let space = self.space();
        match space.taken.get(&address) {
            Some(Holder::Reserved) => return Ok(false),
            Some(holder) => return Err(PlumbingError::AddressRefused { address, why: holder.to_string() }),
            None => {}
        }
        let network = space.network_of(address).to_owned();
        space.claim(&network, &[], &[address])?;
        self.ledger.reserve(address, Keep::Reserved)
    }

    /// Frees an address that rests or is reserved; says what held it.
    ///
    /// # Errors
    /// When an endpoint has it, or nothing does.
    pub fn release(&mut self, address: IpAddr) -> Result<Holder, PlumbingError> {
        let holder = self.space().taken.remove(&address).ok_or(PlumbingError::AddressFree(address))?;
        match &holder {
            Holder::Endpoint(name) => {
                let why = format!("endpoint {name} has it, and gives it back with `overlayctl endpoint rm {name}`");
                return Err(PlumbingError::AddressRefused { address, why });
            }
            Holder::Reserved => {
                self.ledger.reserve(address, Keep::Free)?;
            }
            Holder::Resting(..) => {
                let is_resting =
                    |lease: &&Lease| lease.state == LeaseState::Cooling && lease.addresses.contains(&address);
                let leases: Vec<Lease> = self.journal.iter().filter(is_resting).cloned().collect();
                for lease in leases {
                    let rest: Vec<IpAddr> = lease.addresses.iter().copied().filter(|other| *other != address).collect();
                    if rest.is_empty() {
                        self.journal.forget(&lease)?;
                    } else {
                        self.journal.put(Lease { addresses: rest, ..lease })?;
                    }
                }
            }
        }
        Ok(holder)
    }

    /// Compares leases with links and with each other, and puts right what it finds if asked to.
    ///
    /// # Errors
    /// When the kernel does not tell its links.
    pub async fn check(&mut self, fix: bool) -> Result<Vec<IpamFinding>, PlumbingError> {
        let links = self.kernel.links().await?;
        let mut findings = Vec::new();
        for (what, remedy) in self.disagreements(&links) {
            let outcome = match remedy {
                _ if !fix => None,
                Remedy::End(lease) => Some(self.end_lease(&lease).await),
                Remedy::Unlink(name) => Some(self.kernel.delete_link(&name).await),
                Remedy::None => None,
            };
            let why = outcome.as_ref().and_then(|outcome| outcome.as_ref().err()).map(ToString::to_string);
            findings.push(IpamFinding { what, fixed: outcome.is_some_and(|outcome| outcome.is_ok()), why });
        }
        if findings.iter().any(|finding| finding.fixed) {
            self.reconcile(Scope::Routing).await;
        }
        Ok(findings)
    }

    fn disagreements(&self, links: &[Link]) -> Vec<(String, Remedy)> {
        let mut found = Vec::new();
        let mut holders: BTreeMap<IpAddr, &Lease> = BTreeMap::new();
        // The older lease keeps an address that two have.
        let mut leases: Vec<&Lease> = self.journal.lives().collect();
        leases.sort_by_key(|lease| lease.id);
        for lease in leases {
            let twice = lease.addresses.iter().find_map(|address| Some((address, holders.get(address)?)));
            if let Some((address, older)) = twice {
                let what = format!("endpoints {} and {} both have {address}", older.name, lease.name);
                found.push((what, Remedy::End(Box::new(lease.clone()))));
                continue;
            }
            holders.extend(lease.addresses.iter().map(|address| (*address, lease)));
            if !links.iter().any(|link| link.name == lease.host_ifname) {
                let what = format!("endpoint {} has a lease and no link ({})", lease.name, lease.host_ifname);
                found.push((what, Remedy::End(Box::new(lease.clone()))));
                continue;
            }
            if let Some(address) = lease.addresses.iter().find(|address| !self.is_own(**address)) {
                let what = format!("endpoint {} has {address}, which is not this host's any more", lease.name);
                found.push((what, Remedy::None));
            }
        }
        for link in links.iter().filter(|link| link.group == self.config.group && is_endpoint_name(&link.name)) {
            if !self.journal.lives().any(|lease| lease.host_ifname == link.name) {
                let what = format!("link {} belongs to no endpoint", link.name);
                found.push((what, Remedy::Unlink(link.name.clone())));
            }
        }
        for address in self.ledger.reserved().iter().filter(|address| !self.is_own(**address)) {
            found.push((format!("{address} is reserved and is not this host's any more"), Remedy::None));
        }
        found
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.config.own_prefixes.iter().any(|prefix| prefix.contains(address))
    }
}

/// Whether a name is one that [`crate::plumbing::endpoint`] makes for the host end of a link.
fn is_endpoint_name(name: &str) -> bool {
    name.strip_prefix("ov").is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

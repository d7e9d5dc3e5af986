//! Identities: which labels an address of the overlay carries, as far as this host knows.
//!
//! A container's labels count where its host, who signed them, owns the address. A host itself carries the labels of its
//! certificate, and nothing that it says of itself. Where a member's containers live, an address that it has not spoken of
//! is unknown, which is not the same as having no labels; everywhere else an address has none.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use overlay_wire::gossip::Labels;
use overlay_wire::{HostId, Prefix};

/// What is known of the addresses of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIdentities {
    /// Every address that is known, ascending.
    pub addresses: Vec<(IpAddr, Arc<Labels>)>,
}

/// What is known of the addresses of the overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identities {
    /// By host; `None` is this one. No address is under two hosts.
    hosts: BTreeMap<Option<HostId>, Arc<HostIdentities>>,
    /// Where members' containers live, ascending.
    uncertain: Vec<Prefix>,
}

impl Identities {
    /// Puts together what is known of each host; `uncertain` are the prefixes where members' containers live.
    #[must_use]
    pub fn new(hosts: BTreeMap<Option<HostId>, Arc<HostIdentities>>, mut uncertain: Vec<Prefix>) -> Self {
        uncertain.sort_unstable();
        uncertain.dedup();
        Self { hosts, uncertain }
    }

    /// Every address that is known, with its labels.
    pub fn known(&self) -> impl Iterator<Item = (IpAddr, &Arc<Labels>)> {
        self.hosts.values().flat_map(|host| host.addresses.iter().map(|(address, labels)| (*address, labels)))
    }

    /// Where addresses that are not known are unknown; elsewhere they have no labels.
    #[must_use]
    pub fn uncertain(&self) -> &[Prefix] {
        &self.uncertain
    }

    /// The labels of an address; `None` when they are unknown.
    #[must_use]
    pub fn labels(&self, address: IpAddr) -> Option<Arc<Labels>> {
        let of_host = |host: &Arc<HostIdentities>| {
            let at = host.addresses.binary_search_by_key(&address, |(address, _)| *address).ok()?;
            host.addresses.get(at).map(|(_, labels)| Arc::clone(labels))
        };
        let found = self.hosts.values().find_map(of_host);
        let is_uncertain = || self.uncertain.iter().any(|prefix| prefix.contains(address));
        found.or_else(|| (!is_uncertain()).then(Arc::default))
    }

    /// The addresses that carry a label, in no order.
    pub fn carrying(&self, key: &str, value: &str) -> impl Iterator<Item = IpAddr> {
        let carries = move |labels: &Labels| labels.get(key).is_some_and(|own| own == value);
        self.known().filter(move |(_, labels)| carries(labels)).map(|(address, _)| address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_is_not_the_same_as_without_labels() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address in a test");
        let labels = |list: &[(&str, &str)]| {
            Arc::new(list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Labels>())
        };
        let web = labels(&[("role", "web")]);
        let host = |list: &[(&str, &Arc<Labels>)]| {
            let addresses = list.iter().map(|(address, labels)| (ip(address), Arc::clone(labels))).collect();
            Arc::new(HostIdentities { addresses })
        };
        let hosts = BTreeMap::from([
            (None, host(&[("10.42.1.4", &web)])),
            (Some(HostId([2; 16])), host(&[("10.42.2.4", &Arc::default()), ("10.42.2.5", &web)])),
        ]);
        let identities = Identities::new(hosts, vec!["10.42.2.0/24".parse().expect("a prefix in a test")]);
        assert_eq!(identities.labels(ip("10.42.2.5")), Some(web));
        assert_eq!(identities.labels(ip("10.42.2.4")), Some(Arc::default()), "it has none");
        assert_eq!(identities.labels(ip("10.42.2.6")), None, "nobody has spoken of it");
        assert_eq!(identities.labels(ip("10.42.1.6")), Some(Arc::default()), "this host would know");
        assert_eq!(identities.labels(ip("192.0.2.1")), Some(Arc::default()), "outside there are none");
        let mut carrying: Vec<IpAddr> = identities.carrying("role", "web").collect();
        carrying.sort_unstable();
        assert_eq!(carrying, [ip("10.42.1.4"), ip("10.42.2.5")]);
        assert_eq!(identities.carrying("role", "db").count(), 0);
    }
}

//! Networks: what all hosts together say about them. The same name on two hosts is one network.
//!
//! Everything here is an order-free function of the announcements and of who owns which prefix, so all hosts that heard
//! the same say the same. Where hosts want different things under one name, the stricter one counts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_wire::gossip::networks::DEFAULT_NETWORK;
use overlay_wire::gossip::{NetworkEntry, NetworkMode, NetworkOptions};
use overlay_wire::{HostId, Prefix};

use crate::ownership::Owner;
use crate::rib::Rib;

/// What one host says of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The host; `None` is this one.
    pub host: Option<HostId>,
    /// The host's name.
    pub name: String,
    /// What the network is to be.
    pub options: NetworkOptions,
    /// The parts of its own prefixes that the network has there; what it does not own is left out.
    pub blocks: Vec<Prefix>,
}

/// One network of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// What it is: of what hosts say, the stricter; the pool of whoever made it first.
    pub options: NetworkOptions,
    /// Who takes part, this host first, then by name.
    pub said: Vec<Said>,
}

impl Network {
    fn new(mut said: Vec<Said>) -> Self {
        said.sort_by(|a, b| (a.host.is_some(), &a.name, a.host).cmp(&(b.host.is_some(), &b.name, b.host)));
        let first = said.iter().map(|said| &said.options).min().cloned().unwrap_or_default();
        let options = NetworkOptions {
            internal: said.iter().any(|said| said.options.internal),
            mode: said.iter().map(|said| said.options.mode).min().unwrap_or(NetworkMode::Routed),
            ..first
        };
        Self { options, said }
    }

    /// Whether hosts want different things under this name.
    #[must_use]
    pub fn is_disputed(&self) -> bool {
        self.said.windows(2).any(|pair| !pair[0].options.agrees_with(&pair[1].options))
    }

    /// Its blocks on all hosts.
    pub fn blocks(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.said.iter().flat_map(|said| said.blocks.iter().copied())
    }
}

/// What one host announces.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The host; `None` is this one.
    pub host: Option<HostId>,
    /// Its name.
    pub name: String,
    /// Its networks.
    pub networks: BTreeMap<String, NetworkEntry>,
}

/// The networks of the cluster but for the default one, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    networks: BTreeMap<String, Network>,
    /// What members and this host own, without the blocks of networks.
    rest: Vec<Prefix>,
    /// The addresses of the hosts themselves, which are in no network.
    hosts: Vec<IpAddr>,
}

impl Networks {
    /// Puts together what hosts announce. A block counts where its announcer owns all of it, and where no other network
    /// of the same host has a part of it.
    #[must_use]
    pub fn new(announcements: &[Announcement], rib: &Rib, hosts: Vec<IpAddr>) -> Self {
        let mut owned: BTreeMap<Owner, Vec<Prefix>> = BTreeMap::new();
        for claim in rib.best().filter(|claim| !matches!(claim.owner, Owner::Foreign(_))) {
            owned.entry(claim.owner).or_default().push(claim.prefix);
        }
        let mut said: BTreeMap<String, Vec<Said>> = BTreeMap::new();
        let mut taken: Vec<Prefix> = Vec::new();
        for announcement in announcements {
            let owner = announcement.host.map_or(Owner::Local, Owner::Member);
            let owns = owned.get(&owner).map(Vec::as_slice).unwrap_or_default();
            let mut here: Vec<Prefix> = Vec::new();
            for (name, network) in &announcement.networks {
                let is_free = |block: &&Prefix| {
                    owns.iter().any(|prefix| prefix.covers(block)) && !here.iter().any(|other| other.overlaps(block))
                };
                let blocks: Vec<Prefix> = network.blocks.iter().filter(is_free).copied().collect();
                here.extend(&blocks);
                said.entry(name.clone()).or_default().push(Said {
                    host: announcement.host,
                    name: announcement.name.clone(),
                    options: network.options.clone(),
                    blocks,
                });
            }
            taken.extend(here);
        }
        let mut all: Vec<Prefix> = owned.into_values().flatten().collect();
        all.sort_unstable();
        all.dedup();
        taken.sort_unstable();
        let rest = all.iter().flat_map(|prefix| without(*prefix, &taken)).collect();
        let networks = said.into_iter().map(|(name, said)| (name, Network::new(said))).collect();
        Self { networks, rest, hosts }
    }

    /// A network by name; the default one is not among them.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Network> {
        self.networks.get(name)
    }

    /// Every network but the default one, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Network)> {
        self.networks.iter().map(|(name, network)| (name.as_str(), network))
    }

    /// Where the containers of a network are, the default one too; `None` when nobody knows the network.
    #[must_use]
    pub fn prefixes(&self, name: &str) -> Option<Vec<Prefix>> {
        if name == DEFAULT_NETWORK {
            return Some(self.rest.clone());
        }
        self.networks.get(name).map(|network| network.blocks().collect())
    }

    /// The addresses of the hosts themselves, which are in no network.
    #[must_use]
    pub fn hosts(&self) -> &[IpAddr] {
        &self.hosts
    }
}

/// The parts of a prefix that lie outside `holes`, which are sorted.
#[must_use]
pub fn without(prefix: Prefix, holes: &[Prefix]) -> Vec<Prefix> {
    // Holes inside stand together: a covering prefix sorts before what it covers.
    let first = holes.partition_point(|hole| *hole < prefix);
    let mut around = (0..prefix.len()).filter_map(|len| Prefix::truncating(prefix.addr(), len).ok());
    let is_covered = around.any(|wider| holes.binary_search(&wider).is_ok());
    let inside: Vec<Prefix> = holes[first..].iter().take_while(|hole| prefix.covers(hole)).copied().collect();
    let mut parts = Vec::new();
    if !is_covered {
        cut(prefix, &inside, &mut parts);
    }
    parts
}

fn cut(prefix: Prefix, holes: &[Prefix], parts: &mut Vec<Prefix>) {
    if holes.is_empty() {
        parts.push(prefix);
        return;
    }
    if holes.contains(&prefix) {
        return;
    }
    for half in halves(&prefix) {
        let inside: Vec<Prefix> = holes.iter().filter(|hole| half.covers(hole)).copied().collect();
        cut(half, &inside, parts);
    }
}

/// The two halves of a prefix; none of a single address.
fn halves(prefix: &Prefix) -> impl Iterator<Item = Prefix> {
    let bits: u8 = if prefix.is_ipv4() { 32 } else { 128 };
    let len = prefix.len() + 1;
    let second = bits.checked_sub(len).and_then(|host_bits| prefix.nth(1u128 << host_bits));
    let first = (len <= bits).then(|| prefix.addr());
    first.into_iter().chain(second).filter_map(move |address| Prefix::new(address, len).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix in a test")
    }

    fn options(created_unix: u64, internal: bool, mode: NetworkMode) -> NetworkOptions {
        NetworkOptions { created_unix, mode, internal, pool: Vec::new() }
    }

    fn said(host: u8, options: NetworkOptions) -> Said {
        Said { host: Some(HostId([host; 16])), name: format!("h{host}"), options, blocks: Vec::new() }
    }

    #[test]
    fn stricter_option_counts_whoever_said_it_first() {
        let open = said(2, options(5, false, NetworkMode::Bridge));
        let closed = said(1, options(9, true, NetworkMode::Routed));
        for order in [vec![open.clone(), closed.clone()], vec![closed.clone(), open.clone()]] {
            let network = Network::new(order);
            assert!(network.is_disputed());
            assert_eq!(network.options, options(5, true, NetworkMode::Routed));
            assert_eq!(network.said[0].name, "h1");
        }
        let later = said(1, options(9, false, NetworkMode::Bridge));
        assert!(!Network::new(vec![open, later]).is_disputed());
    }

    #[test]
    fn holes_are_cut_out() {
        let parts = without(prefix("10.42.1.0/24"), &[prefix("10.42.0.0/24"), prefix("10.42.1.192/26")]);
        assert_eq!(parts, [prefix("10.42.1.0/25"), prefix("10.42.1.128/26")]);
        assert_eq!(without(prefix("10.42.1.0/24"), &[]), [prefix("10.42.1.0/24")]);
        assert!(without(prefix("10.42.1.0/24"), &[prefix("10.42.0.0/16")]).is_empty());
        assert!(without(prefix("10.42.1.7/32"), &[prefix("10.42.1.7/32")]).is_empty());
    }

    proptest! {
        #[test]
        fn every_address_is_in_a_part_or_in_a_hole(
            holes in proptest::collection::vec((any::<u8>(), 24u8..=32), 0..6),
            host in any::<u8>(),
        ) {
            let hole = |(last, len): (u8, u8)| {
                Prefix::truncating(IpAddr::from([10, 42, 1, last]), len).expect("a length of IPv4")
            };
            let mut holes: Vec<Prefix> = holes.into_iter().map(hole).collect();
            holes.sort_unstable();
            let parts = without(prefix("10.42.1.0/24"), &holes);
            let address = IpAddr::from([10, 42, 1, host]);
            let in_parts = parts.iter().filter(|part| part.contains(address)).count();
            let in_hole = holes.iter().any(|hole| hole.contains(address));
            prop_assert_eq!(in_parts, usize::from(!in_hole));
        }
    }
}

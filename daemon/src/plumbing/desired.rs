//! What the host should look like: pure functions from configuration and leases to rules, routes and addresses.
//!
//! The order of the rules is the design: packets from the TUN and from the host itself first look for a local container
//! (table L); packets a container sent go into the TUN whatever their destination (table E); everything but our own
//! underlay sockets is routed into the overlay where the overlay has a route (table O).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlay_wire::Prefix;

use super::{LearnedRoutes, PlumbingConfig};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What a rule looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// Packets that arrived on an interface (`lo`: made on this host).
    Arrived(String),
    /// Packets with all bits of a mark set.
    Marked(u32),
    /// Packets without them.
    NotMarked(u32),
}

/// One policy routing rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSpec {
    /// The family.
    pub family: Family,
    /// Its priority.
    pub priority: u32,
    /// Which packets.
    pub selector: Selector,
    /// The table looked up.
    pub table: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Out of an interface.
    Interface(u32),
    /// Nowhere: the sender is told.
    Unreachable,
}

/// What decides that two routes are the same entry of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The table.
    pub table: u32,
    /// The destination.
    pub destination: Prefix,
}

/// The rest of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteSpec {
    /// Where it leads.
    pub target: Target,
    /// The source address the host itself uses towards it.
    pub source: Option<IpAddr>,
}

/// A container address and the host end of its veth.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The host end.
    pub host_ifname: String,
    /// The bridge it is a port of, where it is one.
    pub bridge: Option<String>,
    /// The index of the interface by which the host reaches the container, bridge or host end, if it exists now.
    pub index: Option<u32>,
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
}

impl Attachment {
    /// The interface by which the host reaches the container.
    #[must_use]
    pub fn interface(&self) -> &str {
        self.bridge.as_deref().unwrap_or(&self.host_ifname)
    }
}

/// Whether any prefix of the overlay is of this family.
#[must_use]
pub fn uses(config: &PlumbingConfig, family: Family) -> bool {
    config.own_prefixes.iter().chain(&config.pool).any(|p| Family::of(p.addr()) == family)
}

/// The rules of one host.
#[must_use]
pub fn rules(config: &PlumbingConfig) -> BTreeSet<RuleSpec> {
    let base = config.rule_priority;
    let entries = [
        (base, Selector::Arrived(config.interface.clone()), config.tables.local),
        (base + 1, Selector::Arrived("lo".into()), config.tables.local),
        (base + 10, Selector::Marked(config.mark_container), config.tables.egress),
        (base + 20, Selector::NotMarked(config.mark_socket), config.tables.overlay),
    ];
    let families = Family::ALL.into_iter().filter(|family| uses(config, *family));
    families
        .flat_map(|family| {
            entries.clone().map(|(priority, selector, table)| RuleSpec { family, priority, selector, table })
        })
        .collect()
}

/// The routes of one host; `interface` is the index of the TUN device.
#[must_use]
pub fn routes(
    config: &PlumbingConfig,
    learned: &LearnedRoutes,
    attachments: &[Attachment],
    interface: u32,
) -> BTreeMap<RouteKey, RouteSpec> {
    let mut routes = BTreeMap::new();
    let mut put = |table: u32, destination: Prefix, target: Target, source: Option<IpAddr>| {
        routes.insert(RouteKey { table, destination }, RouteSpec { target, source });
    };
    for own in &config.own_prefixes {
        put(config.tables.local, *own, Target::Unreachable, None);
    }
    for attachment in attachments {
        let Some(index) = attachment.index else { continue };
        for address in &attachment.addresses {
            let source = source_for(config, Family::of(*address));
            put(config.tables.local, Prefix::host(*address), Target::Interface(index), source);
        }
    }
    for destination in overlay_destinations(config, learned) {
        let source = source_for(config, Family::of(destination.addr()));
        put(config.tables.overlay, destination, Target::Interface(interface), source);
    }
    for family in Family::ALL.into_iter().filter(|family| uses(config, *family)) {
        put(config.tables.egress, default_route(family), Target::Interface(interface), None);
    }
    routes
}

/// What table O leads into the overlay: the pool, own prefixes, and learned prefixes that neither covers.
#[must_use]
pub fn overlay_destinations(config: &PlumbingConfig, learned: &LearnedRoutes) -> BTreeSet<Prefix> {
    let fixed: BTreeSet<Prefix> = config.pool.iter().chain(&config.own_prefixes).copied().collect();
    let fixed: BTreeSet<Prefix> =
        fixed.iter().filter(|p| !fixed.iter().any(|wider| wider != *p && wider.covers(p))).copied().collect();
    let learned = learned
        .remote
        .iter()
        .filter(|p| !fixed.iter().any(|wide| wide.covers(p)))
        .filter(|p| !learned.announced.iter().any(|ours| ours.covers(p)))
        .copied();
    fixed.iter().copied().chain(learned).collect()
}

/// The host address of a family.
#[must_use]
pub fn source_for(config: &PlumbingConfig, family: Family) -> Option<IpAddr> {
    config.host_addresses.iter().copied().find(|addr| Family::of(*addr) == family)
}

fn default_route(family: Family) -> Prefix {
    let any = match family {
        Family::V4 => IpAddr::from([0, 0, 0, 0]),
        Family::V6 => IpAddr::from([0u8; 16]),
    };
    Prefix::truncating(any, 0).expect("length 0 fits every family")
}

//! Host plumbing: addresses, rules, routes, nft tables and kernel settings that let container packets reach the daemon.
//!
//! Everything installed here is ours and is recognised by the tables, the route protocol number, the rule priorities, the
//! interface group and the nft table name of [`PlumbingConfig`]; nothing else on the host is touched. A reconcile reads
//! the kernel's state, compares it with what is wanted and repairs the difference, so it may run at any time and after
//! any crash. A clean stop removes everything in reverse order; a crash leaves it, and the next start adopts it.

pub mod bridge_guard;
pub mod desired;
pub mod endpoint;
mod error;
pub mod firewall;
pub mod host_policy;
pub mod interfaces;
pub mod ipam;
pub mod lease;
pub mod ledger;
pub mod names;
mod netlink;
pub mod nft;
mod plumber;
pub mod ports;
mod service;
pub mod sysctl;
pub mod uplinks;
mod watch;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use overlay_wire::Prefix;
use overlay_wire::gossip::NetworkOptions;

pub use error::{PlumbingError, TeardownErrors};
pub use plumber::{Plumber, Reconciled};
pub use service::{PlumbingHandle, start};

/// The routing tables that belong to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    /// Table L: local containers, and `unreachable` for the rest of the own prefixes.
    pub local: u32,
    /// Table O: everything the overlay reaches.
    pub overlay: u32,
    /// Table E: the default route of everything a container sends.
    pub egress: u32,
}

/// Whether the kernel's connection tracking skips our own underlay datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderlayTracking {
    /// Own datagrams are not tracked: cheaper, and a full conntrack table cannot stop the overlay.
    Skip,
    /// Own datagrams are tracked: for hosts whose firewall admits replies only.
    Track,
}

/// Whether packets from containers to the outside take the host's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// They leave with the address of the outgoing interface.
    On,
    /// They leave with the container's address; the network behind must route it back.
    Off,
}

/// What the plumbing needs to know; fixed for the life of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlumbingConfig {
    /// The TUN device, made by the device module before the first reconcile.
    pub interface: String,
    /// MTU of the TUN device and of every veth, in bytes.
    pub mtu: u32,
    /// Transmit queue length of the TUN device, in packets.
    pub txqueuelen: u32,
    /// Host addresses on the TUN device, at most one per family; also the containers' gateway.
    pub host_addresses: Vec<IpAddr>,
    /// Prefixes whose addresses are given to local containers.
    pub own_prefixes: Vec<Prefix>,
    /// Prefixes that belong to the overlay as a whole.
    pub pool: Vec<Prefix>,
    /// The routing tables.
    pub tables: Tables,
    /// Priority of the first rule; the others follow within the next 21.
    pub rule_priority: u32,
    /// Route protocol number (rtproto) that marks our rules and routes.
    pub route_protocol: u8,
    /// Mark bit of packets sent by containers.
    pub mark_container: u32,
    /// Mark bit of the daemon's own underlay sockets.
    pub mark_socket: u32,
    /// Interface group of the host ends of container veths.
    pub group: u32,
    /// Name of the nft tables (`inet NAME`, `arp NAME`, `inet NAME-host` and `inet NAME-nat`).
    pub nft_table: String,
    /// Masquerade of own prefixes towards the outside.
    pub masquerade: Masquerade,
    /// Tracking of our own underlay datagrams.
    pub underlay_tracking: UnderlayTracking,
    /// UDP port of the underlay.
    pub listen_port: u16,
    /// Directory of leases and of recorded old sysctl values.
    pub state_dir: PathBuf,
}

/// What changes while the daemon runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LearnedRoutes {
    /// Prefixes owned by other members or foreign peers.
    pub remote: Vec<Prefix>,
    /// Prefixes behind this host that it announces to the others; never routed into the overlay here.
    pub announced: Vec<Prefix>,
    /// The networks of the cluster, as all hosts together say.
    pub networks: BTreeMap<String, NetworkOptions>,
}

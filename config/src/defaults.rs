//! The one table of defaults, each with its reason.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use overlay_wire::Encapsulation;
use overlay_wire::policy::DefaultPolicy;

use crate::types::LogLevel;

/// One default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Default {
    /// The key path.
    pub key: &'static str,
    /// The value as it is shown.
    pub value: &'static str,
    /// Why this value.
    pub reason: &'static str,
}

pub(crate) const CLUSTER: &str = "default";
pub(crate) const INTERFACE: &str = "overlay0";
pub(crate) const LISTEN_PORT: u16 = 51_821;
pub(crate) const ENCAPSULATION: Encapsulation = Encapsulation::Wireguard;
pub(crate) const OFFLOAD: bool = true;
pub(crate) const TABLE_LOCAL: u32 = 1001;
pub(crate) const TABLE_OVERLAY: u32 = 1002;
pub(crate) const TABLE_EGRESS: u32 = 1003;
pub(crate) const RULE_PRIORITY: u32 = 100;
pub(crate) const ROUTE_PROTOCOL: u8 = 99;
pub(crate) const MARK_CONTAINER: u32 = 0x100;
pub(crate) const MARK_SOCKET: u32 = 0x200;
pub(crate) const GROUP: u32 = 42;
pub(crate) const NFT_TABLE: &str = "overlay";
pub(crate) const MASQUERADE: bool = true;
pub(crate) const POLICY: DefaultPolicy = DefaultPolicy::Members;
pub(crate) const CONNTRACK_ENTRIES: u32 = 262_144;
pub(crate) const CAPTURE_BACK_SECONDS: u32 = 0;
pub(crate) const STATE_DIR: &str = "/var/lib/overlay";
pub(crate) const RUNTIME_DIR: &str = "/run/overlay";
pub(crate) const IDENTITY_NAME: &str = "identity.key";
pub(crate) const SOCKET_NAME: &str = "overlayd.sock";
pub(crate) const LOG_LEVEL: LogLevel = LogLevel::Info;
pub(crate) const METRICS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9821);
pub(crate) const DNS_ENABLED: bool = true;
pub(crate) const DNS_DOMAIN: &str = "overlay.internal";

/// Where `overlayd` looks for its configuration when not told.
pub const CONFIG_FILE: &str = "/etc/overlay/overlayd.toml";
/// Where `overlayctl` looks for the control socket when not told.
pub const SOCKET: &str = "/run/overlay/overlayd.sock";
/// How many rule priorities from `plumbing.rule_priority` on belong to us.
pub const RULE_PRIORITIES: u32 = 21;
/// Addresses at the start of a host prefix that no container gets: network, host, service and one in reserve.
pub const RESERVED_ADDRESSES: u32 = 4;

const fn default(key: &'static str, value: &'static str, reason: &'static str) -> Default {
    Default { key, value, reason }
}

/// Every default, in file order. Keys that have none must be written or are absent when not written.
pub const TABLE: &[Default] = &[
    default("node.identity_file", "/var/lib/overlay/identity.key", "beside the other state that outlives a restart"),
    default("node.announce", "[]", "nothing is announced unasked"),
    default("node.endpoints", "[]", "found from the routes to the members"),
    default("overlay.cluster", "default", "one cluster needs no name"),
    default("overlay.interface", "overlay0", "says what it is, and no other program uses it"),
    default("overlay.listen_port", "51821", "one above WireGuard's usual port, so that both run side by side"),
    default("overlay.mtu", "auto", "the underlay MTU less 80, the cost of WireGuard over IPv6"),
    default("overlay.encapsulation", "wireguard", "encrypted unless the user says otherwise"),
    default("overlay.trusted_underlay", "[]", "no network is trusted unasked"),
    default("overlay.offload", "true", "super-packets are several times faster; the daemon falls back by itself"),
    default("plumbing.tables.local", "1001", "outside the tables of the kernel and of common tools"),
    default("plumbing.tables.overlay", "1002", "next to plumbing.tables.local"),
    default("plumbing.tables.egress", "1003", "next to plumbing.tables.local"),
    default("plumbing.rule_priority", "100", "before the main table (32766), room for the user in front"),
    default("plumbing.route_protocol", "99", "not assigned in rt_protos"),
    default("plumbing.mark_container", "0x100", "a bit that Docker, Kubernetes and WireGuard do not use"),
    default("plumbing.mark_socket", "0x200", "next to plumbing.mark_container"),
    default("plumbing.group", "42", "a device group number of our own"),
    default("plumbing.nft_table", "overlay", "says what it is"),
    default("plumbing.masquerade", "true", "containers reach the outside"),
    default("policy.default", "members", "containers of members talk, everything else is rejected"),
    default("policy.rules", "[]", "the default action decides"),
    default("limits.conntrack_entries", "262144", "about 64 MiB when full"),
    default("limits.capture_back_seconds", "0", "keeping costs a copy of each packet"),
    default("paths.state_dir", "/var/lib/overlay", "Filesystem Hierarchy Standard, 5.8"),
    default("paths.runtime_dir", "/run/overlay", "Filesystem Hierarchy Standard, 3.15"),
    default("paths.socket", "/run/overlay/overlayd.sock", "inside paths.runtime_dir"),
    default("log.level", "info", "one line per change of state"),
    default("dns.enabled", "true", "containers find each other by name; nothing else uses it unasked"),
    default("dns.domain", "overlay.internal", "`internal` is reserved for private use"),
    default("metrics.listen", "127.0.0.1:9821", "for a collector on this host; nothing is open to others"),
];

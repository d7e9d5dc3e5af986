//! The checked configuration: what the rest of the product works with.
//!
//! Values of these types satisfy the cross checks of this crate when they come from [`Config::parse`] or
//! [`Config::load`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

pub use overlay_wire::gossip::Grant;
use overlay_wire::policy::PolicySet;
use overlay_wire::{Encapsulation, Mtu, Prefix};
use serde::{Deserialize, Serialize};

use crate::effective::Origins;
use crate::key::PublicKey;

/// What makes this host a member of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Nothing: neither the file nor a membership. Name, prefixes and pool are empty then.
    Standby,
    /// The file, which names every member.
    Static,
    /// A membership, from `init` or `join`.
    Certified,
}

/// The whole checked configuration of one daemon.
#[derive(Debug, Clone)]
pub struct Config {
    /// What makes this host a member.
    pub role: Role,
    /// This host.
    pub node: Node,
    /// The overlay network this host is part of.
    pub overlay: Overlay,
    /// Numbers and names used in the host's kernel.
    pub plumbing: Plumbing,
    /// Members of the cluster; an entry for this host itself is allowed.
    pub members: Vec<Member>,
    /// The encapsulation that the command line asks for with single members by certificate, by name.
    pub certified: BTreeMap<String, Encapsulation>,
    /// Peers that do not run this daemon, in configuration order (file first, then the CLI layer).
    pub peers: Vec<ForeignPeer>,
    /// The packet filter.
    pub policy: PolicySet,
    /// Bounds of tables.
    pub limits: Limits,
    /// Where files are.
    pub paths: Paths,
    /// Logging.
    pub log: Log,
    /// The page of figures.
    pub metrics: Metrics,
    /// Names.
    pub dns: Dns,
    /// Where each value came from.
    pub origins: Origins,
}

impl Config {
    /// The encapsulation asked for with a member, by its name.
    #[must_use]
    pub fn encapsulation_with(&self, name: &str) -> Encapsulation {
        let in_file = self.members.iter().find(|member| member.name == name).map(|member| member.encapsulation);
        in_file.unwrap_or_else(|| self.certified.get(name).copied()).unwrap_or(self.overlay.encapsulation)
    }
}

/// This host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The host's name: 1 to 63 lower-case letters, digits and hyphens.
    pub name: String,
    /// File that holds the Ed25519 identity key.
    pub identity_file: PathBuf,
    /// The host's own container prefixes, inside the pool. The first address of the first prefix of each family is the
    /// host address.
    pub prefixes: Vec<Prefix>,
    /// Further prefixes behind this host that it announces.
    pub announce: Vec<Prefix>,
    /// Underlay addresses told to the others; empty: found from the routes to them.
    pub endpoints: Vec<SocketAddr>,
}

/// The overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The cluster's name; hosts of different clusters never talk.
    pub cluster: String,
    /// Prefixes that all host prefixes are part of.
    pub pool: Vec<Prefix>,
    /// The name of the TUN device.
    pub interface: String,
    /// The UDP port for WireGuard and gossip.
    pub listen_port: u16,
    /// MTU of the TUN and of containers; `None`: underlay MTU − 80.
    pub mtu: Option<Mtu>,
    /// The encapsulation asked for where a peer names none.
    pub encapsulation: Encapsulation,
    /// Underlay prefixes inside which unencrypted encapsulations are acceptable.
    pub trusted_underlay: Vec<Prefix>,
    /// Whether to use super-packets (virtio-net headers, segmentation offloads) on the TUN.
    pub offload: bool,
    /// File that holds the X25519 key for foreign WireGuard peers; `None`: a fresh key at every start.
    pub private_key_file: Option<PathBuf>,
}

/// Numbers and names used in the host's kernel; configurable so that they never collide with another program's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plumbing {
    /// Route table of local containers.
    pub table_local: u32,
    /// Route table of the overlay prefixes.
    pub table_overlay: u32,
    /// Route table for what containers send.
    pub table_egress: u32,
    /// Priority of the first of our rules; up to 20 behind it are used.
    pub rule_priority: u32,
    /// Route protocol number that marks our routes.
    pub route_protocol: u8,
    /// Packet mark bit set on what containers send.
    pub mark_container: u32,
    /// Packet mark bit of our own underlay sockets.
    pub mark_socket: u32,
    /// Device group of container links.
    pub group: u32,
    /// Name of our nft table.
    pub nft_table: String,
    /// Whether containers reach the outside through the host's address.
    pub masquerade: bool,
}

/// A member of the cluster, named by the file (static mode).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The member's name.
    pub name: String,
    /// The member's Ed25519 identity.
    pub identity: PublicKey,
    /// Where the member is reached; `None`: it has to reach us first.
    pub endpoint: Option<SocketAddr>,
    /// What the member may announce.
    pub allow: Vec<Grant>,
    /// The encapsulation asked for with this member; `None`: the overlay's.
    pub encapsulation: Option<Encapsulation>,
}

/// A peer that does not run this daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignPeer {
    /// The peer's name, unique among members and peers.
    pub name: String,
    /// Prefixes behind the peer: sent to it, and accepted from it as sources.
    pub allowed_ips: Vec<Prefix>,
    /// How the peer is reached.
    #[serde(flatten)]
    pub kind: ForeignKind,
}

/// How a foreign peer is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "encapsulation", rename_all = "lowercase")]
pub enum ForeignKind {
    /// Any WireGuard implementation.
    Wireguard {
        /// The peer's X25519 public key.
        public_key: PublicKey,
        /// Where the peer is reached; `None`: it has to reach us first.
        endpoint: Option<SocketAddr>,
        /// File that holds the preshared key.
        preshared_key_file: Option<PathBuf>,
        /// Seconds between keepalives, 1 to 65,535; `None`: off.
        persistent_keepalive: Option<u16>,
    },
    /// A GRE tunnel end, as a Linux `gre` device.
    Gre {
        /// The peer's underlay address.
        endpoint: IpAddr,
        /// The key, the same in both directions.
        key: Option<u32>,
        /// Whether checksums are sent.
        checksum: bool,
        /// Whether sequence numbers are sent.
        sequence: bool,
    },
    /// An IP-in-IP tunnel end, as a Linux `ipip` or `sit` device.
    Ipip {
        /// The peer's underlay address.
        endpoint: IpAddr,
    },
}

impl ForeignKind {
    /// The encapsulation used.
    #[must_use]
    pub fn encapsulation(&self) -> Encapsulation {
        match self {
            Self::Wireguard { .. } => Encapsulation::Wireguard,
            Self::Gre { .. } => Encapsulation::Gre,
            Self::Ipip { .. } => Encapsulation::Ipip,
        }
    }

    /// The peer's underlay address, where one is configured.
    #[must_use]
    pub fn endpoint_ip(&self) -> Option<IpAddr> {
        match self {
            Self::Wireguard { endpoint, .. } => endpoint.map(|endpoint| endpoint.ip()),
            Self::Gre { endpoint, .. } | Self::Ipip { endpoint } => Some(*endpoint),
        }
    }
}

/// Bounds of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Flows tracked at most.
    pub conntrack_entries: u32,
    /// Seconds of packets kept for `overlayctl capture --back`; 0: none.
    pub capture_back_seconds: u32,
}

/// Where files are; all absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// State that outlives a restart.
    pub state_dir: PathBuf,
    /// State that does not outlive a boot.
    pub runtime_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
}

impl Paths {
    /// The file that holds changes made by the command line.
    #[must_use]
    pub fn cli_layer(&self) -> PathBuf {
        self.state_dir.join("cli-layer.toml")
    }
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
}

/// The page of figures for a collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Where it is served; `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

/// The server of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Whether it runs.
    pub enabled: bool,
    /// The domain of hosts and containers, in lower case.
    pub domain: String,
    /// Servers that are asked about everything else; `None`: those of the host's `/etc/resolv.conf`.
    pub forward: Option<Vec<IpAddr>>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Someone must act.
    Error,
    /// Something is not as it should be.
    Warn,
    /// One line per change of state.
    Info,
    /// What leads to a change of state.
    Debug,
    /// Single packets.
    Trace,
}

impl LogLevel {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The name used in configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The text names no log level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a log level")]
pub struct LogLevelError(String);

impl FromStr for LogLevel {
    type Err = LogLevelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| LogLevelError(text.chars().take(32).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grant_permits_inside_up_to_its_length_only() {
        let grant: Grant = "10.42.0.0/16 max 24".parse().expect("a grant");
        let permits = |text: &str| grant.permits(&text.parse().expect("a prefix"));
        assert!(permits("10.42.0.0/16") && permits("10.42.7.0/24"));
        assert!(!permits("10.42.7.0/25") && !permits("10.0.0.0/8") && !permits("10.43.0.0/24"));
        let named: Grant = "10.42.2.0/24".parse().expect("a grant");
        assert!(named.permits(&"10.42.2.0/25".parse().expect("a prefix")));
        assert!(!named.permits(&"10.42.0.0/16".parse().expect("a prefix")));
    }

    #[test]
    fn grant_text_parses_back_and_odd_texts_are_refused() {
        for text in ["10.42.2.0/24", "10.42.0.0/16 max 24", "fd42::/48 max 64"] {
            assert_eq!(text.parse::<Grant>().expect("a grant").to_string(), text);
        }
        for text in [
            "",
            "10.42.2.0",
            "10.42.0.0/16 max",
            "10.42.0.0/16 max 8",
            "10.42.0.0/16 max 33",
            "10.42.0.0/16 min 24",
            "10.42.0.0/16 max 24 x",
            "10.42.0.0/16 max +24",
        ] {
            assert!(text.parse::<Grant>().is_err(), "{text} was accepted");
        }
    }
}

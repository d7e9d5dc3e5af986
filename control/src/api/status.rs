//! The status model: this host, and every peer with control and data apart.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_config::PublicKey;
use overlay_wire::{Encapsulation, HostId, Prefix};
use serde::{Deserialize, Serialize};

use super::error::Problem;
use crate::time::Timestamp;

/// How well the host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All is as it should be.
    Healthy,
    /// Something is not as it should be; packets flow.
    Degraded,
    /// Packets do not flow.
    Unhealthy,
}

/// Whether gossip reaches a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlState {
    /// It answered the last probes.
    Up,
    /// It does not answer some probes; not yet given up.
    Suspect,
    /// It does not answer.
    Down,
    /// It was never heard of.
    Unknown,
    /// A foreign peer: there is no gossip with it.
    None,
}

/// Whether packets reach a peer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataState {
    /// A packet came back from the peer lately.
    Up,
    /// Packets were sent and none came back.
    Down,
    /// Nothing has been sent lately, so nothing is known.
    #[default]
    Idle,
}

/// What kind of peer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    /// A member of the cluster.
    Member,
    /// A peer that does not run this daemon.
    Foreign,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer's name.
    pub name: String,
    /// Member or foreign.
    pub kind: PeerKind,
    /// The host id of a member.
    pub id: Option<HostId>,
    /// The identity of a member, or the public key of a foreign WireGuard peer.
    pub public_key: Option<PublicKey>,
    /// Prefixes the peer owns.
    pub subnets: Vec<Prefix>,
    /// The encapsulation in use.
    pub encapsulation: Encapsulation,
    /// Whether what comes from the peer is authenticated.
    pub authenticated: bool,
    /// The underlay address in use: `ADDRESS:PORT`, or an address for a plain peer.
    pub endpoint: Option<String>,
    /// Every underlay address at which a member is tried, the one in use first.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Whether gossip reaches it.
    pub control: ControlState,
    /// Whether packets reach it and come back.
    pub data: DataState,
    /// Whether packets arrive from it, which sends some each second: `up` while `data` is `down` means that only the way
    /// there fails.
    #[serde(default)]
    pub arriving: DataState,
    /// The last round trip, in microseconds.
    pub rtt_us: Option<u64>,
    /// Probes lost of the last ones, in percent.
    pub loss_percent: Option<f64>,
    /// The time since the last WireGuard handshake, in milliseconds.
    pub handshake_age_ms: Option<u64>,
    /// Bytes sent to the peer, inner packets.
    pub tx_bytes: u64,
    /// Bytes received from the peer, inner packets.
    pub rx_bytes: u64,
    /// Packets sent to the peer.
    pub tx_packets: u64,
    /// Packets received from the peer.
    pub rx_packets: u64,
    /// The largest inner packet, in bytes.
    pub mtu: Option<u16>,
    /// What is wrong with this peer.
    pub problems: Vec<Problem>,
}

/// This host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The host's name.
    pub name: String,
    /// Its host id.
    pub id: HostId,
    /// Its public identity.
    pub identity: PublicKey,
    /// The cluster's name.
    pub cluster: String,
    /// The host's addresses, also the containers' gateways.
    pub addresses: Vec<IpAddr>,
    /// Its own prefixes.
    pub prefixes: Vec<Prefix>,
    /// Prefixes behind it that it announces.
    pub announce: Vec<Prefix>,
    /// The TUN device.
    pub interface: String,
    /// The MTU of the TUN and of containers, in bytes.
    pub mtu: u16,
    /// The UDP port.
    pub listen_port: u16,
    /// The encapsulation asked for where a peer names none.
    pub encapsulation: Encapsulation,
    /// The containers attached.
    pub endpoints: u32,
}

/// How full the flow table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowUse {
    /// Flows tracked.
    pub count: u64,
    /// Flows tracked at most.
    pub limit: u64,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The release.
    pub version: String,
    /// The control protocol version.
    pub protocol: u32,
    /// The process id.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
}

/// Everything `status` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// How well the host does.
    pub health: Health,
    /// Whether start-up is complete: device, sockets and plumbing stand, every member was tried.
    pub ready: bool,
    /// The daemon.
    pub daemon: VersionInfo,
    /// This host.
    pub host: HostInfo,
    /// Every peer, members first, each group by name.
    pub peers: Vec<PeerStatus>,
    /// How full the flow table is.
    pub flows: FlowUse,
    /// Packets dropped since the start, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What is wrong with this host.
    pub problems: Vec<Problem>,
}

//! The path of one packet: every decision on both hosts, in order.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Which packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// Who sends it: an address, a container of this host, or a host.
    pub from: String,
    /// Who gets it.
    pub to: String,
    /// The protocol number; absent: an echo request of the addresses' family.
    pub protocol: Option<u8>,
    /// The source port of TCP and UDP.
    pub source_port: u16,
    /// The destination port of TCP and UDP.
    pub port: u16,
    /// Its length in bytes; 0: as short as can be.
    pub size: u16,
    /// Whether it may be fragmented.
    pub may_fragment: bool,
    /// Send it, too, where it is an echo request.
    pub send: bool,
}

/// How a step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceOutcome {
    /// The packet goes on.
    Pass,
    /// The filter forbids it.
    Denied,
    /// Nobody has the destination.
    NoRoute,
    /// The way is down.
    PathDown,
    /// It is too big.
    TooBig,
    /// Its source may not be used from there.
    AntiSpoof,
    /// It is dropped for another reason.
    Dropped,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStep {
    /// The host that decides.
    pub host: String,
    /// What is decided.
    pub step: String,
    /// How it ends.
    pub outcome: TraceOutcome,
    /// What was found.
    pub text: String,
    /// What would permit it, where it refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<String>,
}

/// The path of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The packet in words.
    pub packet: String,
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// The protocol number.
    pub protocol: u8,
    /// Source port, or 0.
    pub source_port: u16,
    /// Destination port, or 0.
    pub port: u16,
    /// Every step that is known, in order; the last one decides.
    pub steps: Vec<TraceStep>,
    /// How it ends.
    pub outcome: TraceOutcome,
    /// Why a part is missing, where a host could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// How the packet that was sent, too, was decided here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<String>,
}

//! Attaching a container in two steps.
//!
//! The daemon has no right to enter other namespaces and its caller has no place in the host's plumbing. So the daemon
//! makes the link pair and the host side ([`super::Request::EndpointPrepare`]), the caller (root, short-lived) moves the other
//! end into the namespace and configures it, then says so ([`super::Request::EndpointCommit`]). A lease neither committed
//! nor aborted is undone by the daemon.

use std::net::IpAddr;

use overlay_wire::Prefix;
use overlay_wire::gossip::Labels;
use serde::{Deserialize, Serialize};

/// The alias of the host's end of an endpoint's link: by it the link is known as ours without asking the daemon.
#[must_use]
pub fn link_alias(endpoint: &str, interface: &str) -> String {
    format!("{endpoint} {interface}")
}

/// What is to be attached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndpointRequest {
    /// The endpoint's name, unique on the host.
    pub name: String,
    /// The interface's name inside the container.
    pub interface: String,
    /// The namespace as the caller named it, for display and for cleaning up.
    pub netns: String,
    /// Addresses wanted; empty: the daemon chooses one per family.
    pub addresses: Vec<IpAddr>,
    /// Who asked, as `cni/NETWORK`: by this a plugin finds its own endpoints again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What an engine decides that gives each of its networks a gateway of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineNetwork>,
    /// The network it is to be in; absent: the network `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Its labels, which rules of the policy may name.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Labels to be given to an endpoint, and taken from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelChange {
    /// The endpoint.
    pub endpoint: String,
    /// Labels it is to have, whatever value it had for their keys.
    #[serde(default)]
    pub set: Labels,
    /// Keys it is to have no more.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// Properties of an engine's network that an endpoint gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineNetwork {
    /// Gateways, held addresses of this host: the host answers for them on the endpoint's link. Empty: the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// A smaller MTU than the host's, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Whether the endpoint reaches the overlay only.
    #[serde(default)]
    pub internal: bool,
}

/// What the caller has to configure in the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointLease {
    /// Names the lease in commit and abort.
    pub lease: u64,
    /// The endpoint's name.
    pub name: String,
    /// The end of the link pair that stays on the host.
    pub host_interface: String,
    /// The end to be moved, as it is named in the host's namespace.
    pub peer_interface: String,
    /// The name that end gets inside the container.
    pub interface: String,
    /// Addresses, each with a host prefix (/32 or /128).
    pub addresses: Vec<IpAddr>,
    /// One gateway per family in use: reached on the link, then the default route.
    pub gateways: Vec<IpAddr>,
    /// The network it is in; absent: the network `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What is reached on the link without the gateway: neighbours on the same bridge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_link: Vec<Prefix>,
    /// The MTU of the interface, in bytes.
    pub mtu: u16,
    /// How long the daemon waits for commit or abort, in milliseconds.
    pub expires_ms: u64,
}

/// How far an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// The host side stands, the caller has not committed.
    Prepared,
    /// Attached.
    Attached,
    /// Attached once; its link is gone.
    Gone,
}

/// One container on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// The endpoint's name.
    pub name: String,
    /// How far it is.
    pub state: EndpointState,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The host's end of its link.
    pub host_interface: String,
    /// The interface's name inside.
    pub interface: String,
    /// The namespace as the caller named it.
    pub netns: String,
    /// Who asked for it, as given then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The network it is in; absent: the network `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

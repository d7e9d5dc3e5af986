//! What dockerd sends to network and IPAM plugins, and what it gets.
//!
//! Unknown fields are for others; `null` counts as absent, because dockerd sends it for empty maps.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// `IpamDriver.RequestPool`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PoolRequest {
    #[serde(deserialize_with = "or_default")]
    pub(super) pool: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) sub_pool: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: BTreeMap<String, String>,
    pub(super) v6: bool,
}

/// `IpamDriver.RequestAddress`, `ReleaseAddress` and `ReleasePool`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct AddressRequest {
    #[serde(rename = "PoolID")]
    pub(super) pool: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) address: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: BTreeMap<String, String>,
}

/// One pool of a network in `NetworkDriver.CreateNetwork`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PoolData {
    #[serde(deserialize_with = "or_default")]
    pub(super) address_space: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) pool: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) gateway: String,
}

/// `NetworkDriver.CreateNetwork` and `DeleteNetwork`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct NetworkRequest {
    #[serde(rename = "NetworkID")]
    pub(super) network: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: Map<String, Value>,
    #[serde(rename = "IPv4Data", deserialize_with = "or_default")]
    pub(super) v4: Vec<PoolData>,
    #[serde(rename = "IPv6Data", deserialize_with = "or_default")]
    pub(super) v6: Vec<PoolData>,
}

/// What dockerd decided about an interface.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct InterfaceData {
    #[serde(deserialize_with = "or_default")]
    pub(super) address: String,
    #[serde(rename = "AddressIPv6", deserialize_with = "or_default")]
    pub(super) address_v6: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) mac_address: String,
}

/// Every call about an endpoint.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct EndpointCall {
    #[serde(rename = "NetworkID")]
    pub(super) network: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) interface: InterfaceData,
    #[serde(deserialize_with = "or_default")]
    pub(super) sandbox_key: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: Map<String, Value>,
}

/// A published port, as in the option `com.docker.network.portmap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PortBinding {
    /// Protocol number: 6, 17 or 132.
    pub(super) proto: u8,
    /// The port inside.
    pub(super) port: u16,
    /// The host's address; empty: all.
    #[serde(rename = "HostIP", default)]
    pub(super) host_ip: String,
    /// The host's port; 0: any.
    #[serde(default)]
    pub(super) host_port: u16,
    /// The last one to choose from.
    #[serde(default)]
    pub(super) host_port_end: u16,
}

/// A route that dockerd adds inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StaticRoute {
    pub(super) destination: String,
    /// 0: by a next hop; 1: on the link.
    pub(super) route_type: u8,
    pub(super) next_hop: String,
}

/// The answer to `NetworkDriver.Join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct JoinAnswer {
    pub(super) interface_name: InterfaceName,
    pub(super) gateway: String,
    #[serde(rename = "GatewayIPv6")]
    pub(super) gateway_v6: String,
    pub(super) static_routes: Vec<StaticRoute>,
    pub(super) disable_gateway_service: bool,
}

/// Which interface is moved, and what its name begins with inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    pub(super) src_name: String,
    pub(super) dst_prefix: &'static str,
}

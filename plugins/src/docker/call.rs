//! A call of dockerd: which it is, and its body.

use serde::de::DeserializeOwned;

use super::message::{AddressRequest, EndpointCall, NetworkRequest, PoolRequest};
use super::refusal::Refusal;

/// Every call there is.
#[derive(Debug)]
pub(super) enum Call {
    Activate,
    NetworkCapabilities,
    AddressCapabilities,
    AddressSpaces,
    RequestPool(PoolRequest),
    ReleasePool(AddressRequest),
    RequestAddress(AddressRequest),
    ReleaseAddress(AddressRequest),
    CreateNetwork(NetworkRequest),
    DeleteNetwork(NetworkRequest),
    CreateEndpoint(EndpointCall),
    DeleteEndpoint(EndpointCall),
    Join(EndpointCall),
    Leave(EndpointCall),
    /// `ProgramExternalConnectivity`.
    Publish(EndpointCall),
    /// `RevokeExternalConnectivity`.
    Unpublish(EndpointCall),
    OperInfo,
    Discover,
}

impl Call {
    /// Reads a call; the bodies of those that say nothing are not looked at.
    pub(super) fn read(path: &str, body: &[u8]) -> Result<Self, Refusal> {
        Ok(match path {
            "/Plugin.Activate" => Self::Activate,
            "/NetworkDriver.GetCapabilities" => Self::NetworkCapabilities,
            "/IpamDriver.GetCapabilities" => Self::AddressCapabilities,
            "/IpamDriver.GetDefaultAddressSpaces" => Self::AddressSpaces,
            "/IpamDriver.RequestPool" => Self::RequestPool(read(body)?),
            "/IpamDriver.ReleasePool" => Self::ReleasePool(read(body)?),
            "/IpamDriver.RequestAddress" => Self::RequestAddress(read(body)?),
            "/IpamDriver.ReleaseAddress" => Self::ReleaseAddress(read(body)?),
            "/NetworkDriver.CreateNetwork" => Self::CreateNetwork(read(body)?),
            "/NetworkDriver.DeleteNetwork" => Self::DeleteNetwork(read(body)?),
            "/NetworkDriver.CreateEndpoint" => Self::CreateEndpoint(read(body)?),
            "/NetworkDriver.DeleteEndpoint" => Self::DeleteEndpoint(read(body)?),
            "/NetworkDriver.Join" => Self::Join(read(body)?),
            "/NetworkDriver.Leave" => Self::Leave(read(body)?),
            "/NetworkDriver.ProgramExternalConnectivity" => Self::Publish(read(body)?),
            "/NetworkDriver.RevokeExternalConnectivity" => Self::Unpublish(read(body)?),
            "/NetworkDriver.EndpointOperInfo" => Self::OperInfo,
            "/NetworkDriver.DiscoverNew" | "/NetworkDriver.DiscoverDelete" => Self::Discover,
            _ => {
                let shown: String = path.chars().take(64).collect();
                return Err(Refusal::unreadable(format_args!("there is no call {shown:?}")));
            }
        })
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(Refusal::unreadable)
}

//! Containers: the daemon's half of attaching one (`overlay_control::api::EndpointRequest`).

use overlay_control::api::{EndpointInfo, EndpointRequest, EndpointState, Response};
use overlay_control::{ApiError, Code};

use super::{Api, done};
use crate::plumbing::PlumbingError;
use crate::plumbing::lease::LeaseState;

pub(super) fn refused(error: &PlumbingError) -> ApiError {
    let code = match error {
        PlumbingError::EndpointExists { .. }
        | PlumbingError::AddressRefused { .. }
        | PlumbingError::AddressTaken { .. } => Code::Conflict,
        PlumbingError::EndpointUnknown { .. } => Code::NotFound,
        PlumbingError::PrefixExhausted(_) | PlumbingError::NoOwnPrefix | PlumbingError::NotOwnPrefix(_) => Code::Invalid,
        PlumbingError::File { .. } => Code::Io,
        _ => Code::Plumbing,
    };
    ApiError::new(code, "the container cannot be attached or detached", error.to_string(), error.next())
}

impl Api {
    pub(super) async fn endpoint_prepare(&self, request: EndpointRequest) -> Result<Response, ApiError> {
        let lease = self.core.plumbing.prepare(request).await.map_err(|error| refused(&error))?;
        Ok(Response::Lease(lease.to_api()))
    }

    pub(super) async fn endpoint_commit(&self, lease: u64) -> Result<Response, ApiError> {
        let lease = self.core.plumbing.commit(lease).await.map_err(|error| refused(&error))?;
        let addresses = lease.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        self.core.events.info("endpoint-attached", Some(&lease.name), format!("it has {addresses}"));
        Ok(done(true, Vec::new()))
    }

    pub(super) async fn endpoint_abort(&self, lease: u64) -> Result<Response, ApiError> {
        self.core.plumbing.abort(lease).await.map_err(|error| refused(&error))?;
        Ok(done(true, Vec::new()))
    }

    pub(super) async fn endpoint_remove(&self, name: &str) -> Result<Response, ApiError> {
        self.core.plumbing.remove(name.to_owned()).await.map_err(|error| refused(&error))?;
        self.core.events.info("endpoint-detached", Some(name), "asked for");
        Ok(done(true, vec![format!("endpoint {name} is detached")]))
    }

    pub(super) async fn endpoint_list(&self) -> Result<Response, ApiError> {
        let leases = self.core.plumbing.endpoints().await.map_err(|error| refused(&error))?;
        let shown = leases.into_iter().filter(|lease| lease.state != LeaseState::Cooling).map(|lease| EndpointInfo {
            state: match lease.state {
                LeaseState::Prepared => EndpointState::Prepared,
                LeaseState::Committed => EndpointState::Attached,
                LeaseState::Cooling => EndpointState::Gone,
            },
            name: lease.name,
            addresses: lease.addresses,
            host_interface: lease.host_ifname,
            interface: lease.interface,
            netns: lease.netns,
            owner: lease.owner,
        });
        Ok(Response::Endpoints(shown.collect()))
    }
}

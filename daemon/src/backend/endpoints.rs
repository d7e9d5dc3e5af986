//! Containers: the daemon's half of attaching one (`overlay_control::api::EndpointRequest`).

use std::collections::BTreeMap;

use overlay_control::api::{EndpointInfo, EndpointLease, EndpointRequest, EndpointState, Response};
use overlay_control::{ApiError, Code};
use parking_lot::Mutex;

use super::{Api, done, not_found};
use crate::plumbing::endpoint::EndpointRequest as Wanted;
use crate::plumbing::lease::{Lease, LeaseKey, LeaseState, PREPARE_TIMEOUT};
use crate::plumbing::PlumbingError;

/// Leases under way by the number the caller knows them by.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<(u64, BTreeMap<u64, LeaseKey>)>);

/// Leases remembered; committed ones are forgotten at once, the oldest when callers vanish.
const KEPT: usize = 4096;

impl Leases {
    fn add(&self, key: LeaseKey) -> u64 {
        let mut state = self.0.lock();
        if state.1.len() >= KEPT {
            state.1.pop_first();
        }
        state.0 += 1;
        let number = state.0;
        state.1.insert(number, key);
        number
    }

    fn take(&self, number: u64) -> Result<LeaseKey, ApiError> {
        self.0.lock().1.remove(&number).ok_or_else(|| not_found("lease", &number.to_string(), "overlayctl endpoint list"))
    }
}

fn refused(error: &PlumbingError) -> ApiError {
    let code = match error {
        PlumbingError::EndpointExists { .. } | PlumbingError::AddressRefused { .. } => Code::Conflict,
        PlumbingError::EndpointUnknown { .. } => Code::NotFound,
        PlumbingError::PrefixExhausted(_) | PlumbingError::NoOwnPrefix => Code::Invalid,
        PlumbingError::File { .. } => Code::Io,
        _ => Code::Plumbing,
    };
    ApiError::new(code, "the container cannot be attached or detached", error.to_string(), error.next())
}

impl Api {
    pub(super) async fn endpoint_prepare(&self, request: EndpointRequest) -> Result<Response, ApiError> {
        let wanted = Wanted {
            container: request.name.clone(),
            ifname: request.interface.clone(),
            netns: request.netns,
            addresses: request.addresses,
        };
        let plan = self.core.plumbing.prepare(wanted).await.map_err(|error| refused(&error))?;
        let lease = plan.lease;
        let number = self.leases.add(lease.key());
        Ok(Response::Lease(EndpointLease {
            lease: number,
            name: request.name,
            host_interface: lease.host_ifname,
            peer_interface: lease.peer_ifname,
            interface: lease.ifname,
            addresses: lease.addresses,
            gateways: lease.gateways,
            mtu: u16::try_from(lease.mtu).unwrap_or(u16::MAX),
            expires_ms: PREPARE_TIMEOUT.as_millis() as u64,
        }))
    }

    pub(super) async fn endpoint_commit(&self, lease: u64) -> Result<Response, ApiError> {
        let key = self.leases.take(lease)?;
        let name = key.0.clone();
        let lease = self.core.plumbing.commit(key).await.map_err(|error| refused(&error))?;
        self.core.events.info("endpoint-attached", Some(&name), format!("addresses {:?}", lease.addresses));
        Ok(done(true, Vec::new()))
    }

    pub(super) async fn endpoint_abort(&self, lease: u64) -> Result<Response, ApiError> {
        let key = self.leases.take(lease)?;
        self.core.plumbing.abort(key).await.map_err(|error| refused(&error))?;
        Ok(done(true, Vec::new()))
    }

    pub(super) async fn endpoint_remove(&self, name: &str) -> Result<Response, ApiError> {
        let leases = self.live().await?;
        let keys: Vec<LeaseKey> = leases.iter().filter(|lease| lease.container == name).map(Lease::key).collect();
        if keys.is_empty() {
            return Err(not_found("endpoint", name, "overlayctl endpoint list"));
        }
        for key in keys {
            self.core.plumbing.remove(key).await.map_err(|error| refused(&error))?;
        }
        self.core.events.info("endpoint-detached", Some(name), "asked for");
        Ok(done(true, vec![format!("endpoint {name} is detached")]))
    }

    async fn live(&self) -> Result<Vec<Lease>, ApiError> {
        let mut leases = self.core.plumbing.endpoints().await.map_err(|error| refused(&error))?;
        leases.retain(|lease| lease.state != LeaseState::Cooling);
        Ok(leases)
    }

    pub(super) async fn endpoint_list(&self) -> Result<Response, ApiError> {
        let shown = self.live().await?.into_iter().map(|lease| EndpointInfo {
            state: match lease.state {
                LeaseState::Prepared => EndpointState::Prepared,
                LeaseState::Committed => EndpointState::Attached,
                LeaseState::Cooling => EndpointState::Gone,
            },
            name: lease.container,
            addresses: lease.addresses,
            host_interface: lease.host_ifname,
            interface: lease.ifname,
            netns: lease.netns,
        });
        Ok(Response::Endpoints(shown.collect()))
    }
}

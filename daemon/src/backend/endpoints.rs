//! Containers: the daemon's half of attaching one (`overlay_control::api::EndpointRequest`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use overlay_control::api::{EndpointRequest, LabelChange, Response};
use overlay_control::{ApiError, Code};
use overlay_wire::gossip::NetworkEntry;
use tokio::sync::oneshot;

use super::{Api, done, ended};
use crate::core::Change;
use crate::plumbing::PlumbingError;
use crate::plumbing::lease::{Lease, LeaseState};

/// How often a plumbing that is behind is asked again.
const PLUMBING_TRIES: u32 = 5;

pub(super) fn refused(error: &PlumbingError) -> ApiError {
    let code = match error {
        PlumbingError::EndpointExists { .. }
        | PlumbingError::AddressRefused { .. }
        | PlumbingError::AddressElsewhere { .. } => Code::Conflict,
        PlumbingError::EndpointUnknown { .. } | PlumbingError::NetworkUnknown(_) => Code::NotFound,
        PlumbingError::PrefixExhausted { .. }
        | PlumbingError::OutsidePool { .. }
        | PlumbingError::TooManyNetworks(_)
        | PlumbingError::NoOwnPrefix
        | PlumbingError::Labels(_)
        | PlumbingError::NotOwnPrefix(_) => Code::Invalid,
        PlumbingError::File { .. } => Code::Io,
        _ => Code::Plumbing,
    };
    ApiError::new(code, "the container cannot be attached or detached", error.to_string(), error.next())
}

impl Api {
    pub(super) async fn endpoint_prepare(&self, request: EndpointRequest) -> Result<Response, ApiError> {
        let before = self.core.plumbing.own_networks();
        let prepared = self.core.plumbing.prepare(request).await;
        self.tell_of_blocks(&before).await?;
        let lease = prepared.map_err(|error| refused(&self.with_owner(error)))?;
        // Before the caller can let the container send anything.
        if let Err(error) = self.labels_in_force().await {
            // What cannot be undone now expires by itself.
            let _ = self.core.plumbing.abort(lease.id).await;
            return Err(error);
        }
        self.prune_limits().await;
        Ok(Response::Lease(lease.to_api()))
    }

    /// Where a network has a block more than before: nobody is to take its first packets for another network's.
    pub(super) async fn tell_of_blocks(&self, before: &Arc<BTreeMap<String, NetworkEntry>>) -> Result<(), ApiError> {
        if !Arc::ptr_eq(before, &self.core.plumbing.own_networks()) {
            self.announce_networks().await?;
            self.members_aware().await;
        }
        Ok(())
    }

    /// Says whose an address is that is not this host's, where somebody owns it.
    pub(super) fn with_owner(&self, error: PlumbingError) -> PlumbingError {
        let PlumbingError::AddressElsewhere { address, .. } = error else { return error };
        let best = self.core.view.load().rib.why_ip(address).best;
        PlumbingError::AddressElsewhere { address, owner: best.map(|claim| claim.name) }
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
        self.labels_in_force().await?;
        self.prune_limits().await;
        self.core.events.info("endpoint-detached", Some(name), "asked for");
        Ok(done(true, vec![format!("endpoint {name} is detached")]))
    }

    pub(super) async fn endpoint_label(&self, change: LabelChange) -> Result<Response, ApiError> {
        let name = change.endpoint.clone();
        if !self.core.plumbing.change_labels(change).await.map_err(|error| refused(&error))? {
            return Ok(done(false, Vec::new()));
        }
        self.labels_in_force().await?;
        self.core.events.info("endpoint-labelled", Some(&name), "its labels were changed");
        Ok(done(true, vec![format!("the labels of {name} are changed")]))
    }

    /// Publishes the labels of this host's containers and waits until the packet path and the kernel go by them.
    async fn labels_in_force(&self) -> Result<(), ApiError> {
        for _ in 0..PLUMBING_TRIES {
            let (told, answer) = oneshot::channel();
            self.core.changes.send(Change::Identities(told)).await.map_err(|_| ended("director"))?;
            let given = answer.await.map_err(|_| ended("director"))?;
            let settled = &self.core.host_policy_settled;
            if given.is_some_and(|given| given <= settled.load(Relaxed)) {
                return Ok(());
            }
            // What it was given before this is done when it answers.
            self.core.plumbing.settled().await.map_err(|error| refused(&error))?;
            if let Some(given) = given {
                settled.fetch_max(given, Relaxed);
                return Ok(());
            }
        }
        Err(ApiError::new(Code::Busy, "the labels are not in force yet", "the host plumbing is behind", "try again"))
    }

    pub(super) async fn endpoint_list(&self) -> Result<Response, ApiError> {
        let leases = self.core.plumbing.endpoints().await.map_err(|error| refused(&error))?;
        let shown = leases.iter().filter(|lease| lease.state != LeaseState::Cooling).map(Lease::to_info);
        Ok(Response::Endpoints(shown.collect()))
    }
}

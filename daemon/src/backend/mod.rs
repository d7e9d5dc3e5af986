//! What requests on the control socket mean.

mod addresses;
mod ask;
mod capture;
mod change;
mod cluster_policy;
mod dns;
mod endpoints;
mod held;
mod limits;
mod look;
mod membership;
mod metrics;
mod networks;
mod no_path;
mod pings;
mod policy;
mod ports;
mod problems;
mod routes;
mod status;
mod trace;

use std::sync::Arc;

use overlay_control::api::{CaptureRequest, Event, Request, Response};
use overlay_control::{ApiError, Code};
use tokio::sync::broadcast;

use crate::api::{Backend, Caller};
use crate::core::Core;
use capture::Reading;

/// Answers requests.
#[derive(Debug)]
pub struct Api {
    core: Arc<Core>,
}

impl Api {
    /// Answers from this state.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// What it answers from.
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }
}

impl Backend for Api {
    type Batches = Reading;

    async fn handle(&self, caller: Caller, request: Request) -> Result<Response, ApiError> {
        if request.is_change() {
            tracing::info!(?caller, request = request_name(&request), "change asked for");
        }
        match request {
            Request::Status => Ok(Response::Status(Box::new(self.status().await))),
            Request::PeerList => Ok(Response::Peers(self.peers())),
            Request::PeerShow { name } => self
                .peers()
                .into_iter()
                .find(|peer| peer.name == name)
                .map(|peer| Response::Peer(Box::new(peer)))
                .ok_or_else(|| not_found("peer", &name, "overlayctl peer list")),
            Request::PeerAdd { peer } => self.peer_add(peer).await,
            Request::PeerRemove { name } => self.peer_remove(&name).await,
            Request::PeerSet { name, encapsulation } => self.peer_set(name, encapsulation).await,
            Request::RouteList => Ok(Response::Routes(self.routes())),
            Request::RouteGet { address } => self.route_get(address),
            Request::RouteAdd { prefix } => self.route_add(prefix).await,
            Request::RouteRemove { prefix } => self.route_remove(prefix).await,
            Request::RouteWhy { prefix } => Ok(self.route_why(prefix)),
            Request::PolicyShow => Ok(self.policy_show()),
            Request::PolicyCheck { policy } => Ok(self.policy_check(&policy)),
            Request::PolicyApply { policy } => self.policy_apply(policy).await,
            Request::ClusterPolicy(request) => self.cluster_policy(request).await,
            Request::PolicyTest(test) => Ok(self.policy_test(&test)),
            Request::Limit(request) => self.limit(request).await,
            Request::Trace(request) => self.trace(&request).await,
            Request::FlowList { selector, limit } => self.flow_list(&selector, limit),
            Request::FlowKill { selector } => self.flow_kill(&selector),
            Request::EndpointPrepare(request) => self.endpoint_prepare(request).await,
            Request::EndpointCommit { lease } => self.endpoint_commit(lease).await,
            Request::EndpointAbort { lease } => self.endpoint_abort(lease).await,
            Request::EndpointRemove { name } => self.endpoint_remove(&name).await,
            Request::EndpointLabel(change) => self.endpoint_label(change).await,
            Request::EndpointList => self.endpoint_list().await,
            Request::AddressHold(wanted) => self.address_hold(wanted).await,
            Request::AddressRelease { owner, address } => self.address_release(owner, address).await,
            Request::AddressList => self.address_list().await,
            Request::Nat(request) => self.nat(request).await,
            Request::Dns(request) => self.dns(request).await,
            Request::Network(request) => self.network(request).await,
            Request::Ipam(request) => self.ipam(request).await,
            Request::ConfigCheck { text } => self.config_check(text),
            Request::ConfigShow => Ok(Response::Settings(self.core.config.load().settings())),
            Request::ConfigDiff => self.config_diff(),
            Request::ConfigReload => self.config_reload().await,
            Request::Membership(request) => self.membership(request).await,
            Request::PingStart { target, count, size, interval_ms } => {
                self.ping_start(&target, count, size, interval_ms)
            }
            Request::PingPoll { id } => self
                .core
                .shared
                .pings
                .progress(id)
                .map(Response::Ping)
                .ok_or_else(|| not_found("ping", &id.to_string(), "overlayctl ping PEER")),
            Request::WaitReady => Ok(self.ready()),
            Request::Doctor { mode, peer } => self.doctor(mode, peer).await,
            // The server follows events and packets itself; this opens the stream.
            Request::EventsFollow | Request::Capture(_) => Ok(Response::Done { changed: false, notes: Vec::new() }),
            Request::Version => Ok(Response::Version(self.version())),
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.core.events.subscribe()
    }

    async fn capture(&self, request: &CaptureRequest) -> Result<Reading, ApiError> {
        tracing::info!(filter = %request.filter, "capture begins");
        self.begin_capture(request).await
    }
}

fn request_name(request: &Request) -> String {
    let text = format!("{request:?}");
    text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn not_found(what: &str, name: &str, list: &str) -> ApiError {
    ApiError::new(
        Code::NotFound,
        format!("there is no {what} `{name}`"),
        format!("no {what} of this name is known here"),
        format!("see what there is with `{list}`"),
    )
}

fn ended(part: &str) -> ApiError {
    ApiError::new(Code::Internal, format!("the {part} does not answer"), "it is stopping", "try again after a restart")
}

fn done(changed: bool, notes: Vec<String>) -> Response {
    Response::Done { changed, notes }
}

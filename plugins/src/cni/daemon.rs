//! The daemon, asked within the time an engine waits.

use std::path::Path;
use std::time::{Duration, Instant};

use overlay_control::api::{
    DnsRequest, DnsStatus, EndpointInfo, EndpointLease, EndpointRequest, LimitRate, LimitRequest, NatRequest,
    PublishRequest, PublishedPort, Request, Response,
};
use overlay_control::{Client, Code, ControlError};

/// All calls to the daemon together: an engine hears of a daemon that hangs within 3 s.
const BUDGET: Duration = Duration::from_millis(2500);

/// A connection with a deadline.
pub(super) struct Daemon {
    client: Client,
    deadline: Instant,
}

impl Daemon {
    pub(super) fn connect(socket: &Path) -> Result<Self, ControlError> {
        let deadline = Instant::now() + BUDGET;
        Ok(Self { client: Client::connect(socket)?, deadline })
    }

    fn call(&mut self, request: Request) -> Result<Response, ControlError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ControlError::Timeout(BUDGET));
        }
        self.client.set_timeout(left)?;
        self.client.call(request)
    }

    pub(super) fn prepare(&mut self, request: EndpointRequest) -> Result<EndpointLease, ControlError> {
        match self.call(Request::EndpointPrepare(request))? {
            Response::Lease(lease) => Ok(lease),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    /// Publishes a port; it ends with the endpoint.
    pub(super) fn publish(&mut self, request: PublishRequest) -> Result<(), ControlError> {
        self.call(Request::Nat(NatRequest::Publish(request))).map(drop)
    }

    /// Gives an endpoint names; they end with it.
    pub(super) fn name(&mut self, endpoint: &str, names: Vec<String>) -> Result<(), ControlError> {
        let endpoint = endpoint.to_owned();
        self.call(Request::Dns(DnsRequest::SetNames { endpoint, names })).map(drop)
    }

    /// The server of names.
    pub(super) fn dns(&mut self) -> Result<DnsStatus, ControlError> {
        match self.call(Request::Dns(DnsRequest::Status))? {
            Response::Dns(status) => Ok(status),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    pub(super) fn published(&mut self) -> Result<Vec<PublishedPort>, ControlError> {
        match self.call(Request::Nat(NatRequest::List))? {
            Response::PublishedPorts(ports) => Ok(ports),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    pub(super) fn commit(&mut self, lease: u64) -> Result<(), ControlError> {
        self.call(Request::EndpointCommit { lease }).map(drop)
    }

    /// Limits what an endpoint sends and gets.
    pub(super) fn limit(&mut self, selector: String, from: LimitRate, to: LimitRate) -> Result<(), ControlError> {
        self.call(Request::Limit(LimitRequest::Set { selector, from: Some(from), to: Some(to) })).map(drop)
    }

    pub(super) fn abort(&mut self, lease: u64) -> Result<(), ControlError> {
        self.call(Request::EndpointAbort { lease }).map(drop)
    }

    /// Removes an endpoint; false when there was none.
    pub(super) fn remove(&mut self, name: &str) -> Result<bool, ControlError> {
        match self.call(Request::EndpointRemove { name: name.to_owned() }) {
            Ok(_) => Ok(true),
            Err(ControlError::Api(error)) if error.code.as_str() == Code::NotFound.name() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn endpoints(&mut self) -> Result<Vec<EndpointInfo>, ControlError> {
        match self.call(Request::EndpointList)? {
            Response::Endpoints(endpoints) => Ok(endpoints),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }
}

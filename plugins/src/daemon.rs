//! The daemon, asked within the time an engine waits.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use overlay_control::api::{
    AddressBook, AddressHold, DnsRequest, DnsStatus, EndpointInfo, EndpointLease, EndpointRequest, HeldAddress,
    LimitRate, LimitRequest, NatRequest, NetworkCreate, NetworkInfo, NetworkRequest, PortSelector, PublishRequest,
    PublishedPort, Request, Response,
};
use overlay_control::{Client, Code, ControlError};

/// All calls to the daemon together: an engine hears of a daemon that hangs within 3 s.
const BUDGET: Duration = Duration::from_millis(2500);

/// A connection with a deadline.
pub(crate) struct Daemon {
    client: Client,
    deadline: Instant,
}

impl Daemon {
    pub(crate) fn connect(socket: &Path) -> Result<Self, ControlError> {
        Self::connect_until(socket, Instant::now() + BUDGET)
    }

    /// Connects; all calls together end at the deadline.
    pub(crate) fn connect_until(socket: &Path, deadline: Instant) -> Result<Self, ControlError> {
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

    pub(crate) fn prepare(&mut self, request: EndpointRequest) -> Result<EndpointLease, ControlError> {
        match self.call(Request::EndpointPrepare(request))? {
            Response::Lease(lease) => Ok(lease),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    /// Publishes a port; it ends with the endpoint. The port that was taken.
    pub(crate) fn publish(&mut self, request: PublishRequest) -> Result<Vec<PublishedPort>, ControlError> {
        match self.call(Request::Nat(NatRequest::Publish(request)))? {
            Response::PublishedPorts(ports) => Ok(ports),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    /// Gives an endpoint names; they end with it.
    pub(crate) fn name(&mut self, endpoint: &str, names: Vec<String>) -> Result<(), ControlError> {
        let endpoint = endpoint.to_owned();
        self.call(Request::Dns(DnsRequest::SetNames { endpoint, names })).map(drop)
    }

    /// The server of names.
    pub(crate) fn dns(&mut self) -> Result<DnsStatus, ControlError> {
        match self.call(Request::Dns(DnsRequest::Status))? {
            Response::Dns(status) => Ok(status),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    /// Makes a network of the cluster or takes part in it; whether that is new to this host.
    pub(crate) fn create_network(&mut self, create: NetworkCreate) -> Result<bool, ControlError> {
        match self.call(Request::Network(NetworkRequest::Create(create)))? {
            Response::Done { changed, .. } => Ok(changed),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    /// Takes this host out of a network; that it is not in it, or that others on it use it, is fine.
    pub(crate) fn leave_network(&mut self, name: &str) -> Result<(), ControlError> {
        let fine = [Code::NotFound.name(), Code::Conflict.name()];
        match self.call(Request::Network(NetworkRequest::Remove { name: name.to_owned() })) {
            Err(ControlError::Api(error)) if fine.contains(&error.code.as_str()) => Ok(()),
            other => other.map(drop),
        }
    }

    /// A network of the cluster; `None` where nobody knows it.
    pub(crate) fn show_network(&mut self, name: &str) -> Result<Option<NetworkInfo>, ControlError> {
        match self.call(Request::Network(NetworkRequest::Show { name: name.to_owned() })) {
            Ok(Response::Networks(mut networks)) => Ok(networks.pop()),
            Ok(other) => Err(ControlError::Unexpected(other.name())),
            Err(ControlError::Api(error)) if error.code.as_str() == Code::NotFound.name() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes back every port of an owner.
    pub(crate) fn unpublish(&mut self, owner: &str) -> Result<(), ControlError> {
        let selector = PortSelector { owner: Some(owner.to_owned()), ..PortSelector::default() };
        self.call(Request::Nat(NatRequest::Unpublish(selector))).map(drop)
    }

    pub(crate) fn published(&mut self) -> Result<Vec<PublishedPort>, ControlError> {
        match self.call(Request::Nat(NatRequest::List))? {
            Response::PublishedPorts(ports) => Ok(ports),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    pub(crate) fn commit(&mut self, lease: u64) -> Result<(), ControlError> {
        self.call(Request::EndpointCommit { lease }).map(drop)
    }

    /// Limits what an endpoint sends and gets.
    pub(crate) fn limit(&mut self, selector: String, from: LimitRate, to: LimitRate) -> Result<(), ControlError> {
        self.call(Request::Limit(LimitRequest::Set { selector, from: Some(from), to: Some(to) })).map(drop)
    }

    pub(crate) fn abort(&mut self, lease: u64) -> Result<(), ControlError> {
        self.call(Request::EndpointAbort { lease }).map(drop)
    }

    /// Removes an endpoint; false when there was none.
    pub(crate) fn remove(&mut self, name: &str) -> Result<bool, ControlError> {
        match self.call(Request::EndpointRemove { name: name.to_owned() }) {
            Ok(_) => Ok(true),
            Err(ControlError::Api(error)) if error.code.as_str() == Code::NotFound.name() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn endpoints(&mut self) -> Result<Vec<EndpointInfo>, ControlError> {
        match self.call(Request::EndpointList)? {
            Response::Endpoints(endpoints) => Ok(endpoints),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    pub(crate) fn hold(&mut self, wanted: AddressHold) -> Result<HeldAddress, ControlError> {
        match self.call(Request::AddressHold(wanted))? {
            Response::Held(held) => Ok(held),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }

    pub(crate) fn release(&mut self, owner: &str, address: IpAddr) -> Result<(), ControlError> {
        self.call(Request::AddressRelease { owner: owner.to_owned(), address }).map(drop)
    }

    pub(crate) fn addresses(&mut self) -> Result<AddressBook, ControlError> {
        match self.call(Request::AddressList)? {
            Response::Addresses(book) => Ok(book),
            other => Err(ControlError::Unexpected(other.name())),
        }
    }
}

//! Published ports (`-p`): the daemon publishes them for the endpoint, and ends them with it.

use std::net::{IpAddr, SocketAddr};

use overlay_control::api::{PortProtocol, PublishRequest};
use overlay_control::{Code, ControlError};
use serde_json::{Value, json};

use super::driver::{Deadline, Driver, OWNER};
use super::message::{EndpointCall, PortBinding};
use super::network::{check_ids, ports};
use super::refusal::Refusal;
use super::state::Endpoint;
use crate::daemon::Daemon;

/// The owner of an endpoint's ports.
pub(super) fn owner(endpoint: &str) -> String {
    format!("{OWNER}{endpoint}")
}

impl Driver {
    pub(super) fn publish(&self, call: &EndpointCall, deadline: Deadline) -> Result<Value, Refusal> {
        check_ids(&[&call.network, &call.endpoint])?;
        let (mut endpoint, network) = self.known(call)?;
        if let Some(ports) = ports(&call.options)? {
            endpoint.ports.clone_from(&ports);
            self.state.lock().endpoints.change(&call.endpoint, |endpoint| endpoint.ports = ports)?;
        }
        // A network without a way to the outside has none to a port either: Docker's own internal networks publish nothing.
        if endpoint.ports.is_empty() || network.internal {
            return Ok(json!({}));
        }
        let _alone = self.settle_alone(deadline);
        let mut daemon = self.daemon(deadline)?;
        let owner = owner(&call.endpoint);
        let published = endpoint.ports.iter().try_for_each(|port| publish(&mut daemon, &owner, port, &endpoint));
        if let Err(error) = published {
            // dockerd ends the container; what is published by now ends with it, or here.
            let _ = daemon.unpublish(&owner);
            return Err(error);
        }
        self.state.lock().endpoints.change(&call.endpoint, |endpoint| endpoint.unpublishing = false)?;
        Ok(json!({}))
    }

    pub(super) fn unpublish(&self, call: &EndpointCall) -> Result<Value, Refusal> {
        check_ids(&[&call.network, &call.endpoint])?;
        self.state
            .lock()
            .endpoints
            .change(&call.endpoint, |endpoint| endpoint.unpublishing = !endpoint.ports.is_empty())?;
        self.settle_quietly();
        Ok(json!({}))
    }
}

/// Publishes one port on every address of the endpoint that the host's address fits.
fn publish(daemon: &mut Daemon, owner: &str, port: &PortBinding, endpoint: &Endpoint) -> Result<(), Refusal> {
    let protocol = protocol(port.proto)?;
    let host_ip = host_ip(&port.host_ip)?;
    let fits = |address: &&IpAddr| host_ip.is_none_or(|ip| ip.is_ipv4() == address.is_ipv4());
    let mut chosen = None;
    let mut none = true;
    for address in endpoint.addresses.iter().filter(fits) {
        none = false;
        let request = |number| PublishRequest {
            owner: owner.to_owned(),
            host_ip,
            host_port: number,
            protocol,
            target: SocketAddr::new(*address, port.port),
        };
        // The same port for both families.
        let (first, last) = chosen.map_or((port.host_port, port.host_port.max(port.host_port_end)), |one| (one, one));
        chosen = Some(first_free(daemon, first, last, request)?);
    }
    if none {
        let text = format!(
            "overlayd: port {} cannot be published on {}: the container has no address of that family",
            port.port, port.host_ip
        );
        return Err(Refusal::new(text));
    }
    Ok(())
}

/// Publishes on the first port of a range that nobody has; which one.
fn first_free(
    daemon: &mut Daemon,
    first: u16,
    last: u16,
    request: impl Fn(u16) -> PublishRequest,
) -> Result<u16, Refusal> {
    let mut number = first;
    loop {
        match daemon.publish(request(number)) {
            Ok(published) => return Ok(published.first().map_or(number, |port| port.host_port)),
            Err(ControlError::Api(api)) if api.code.as_str() == Code::Conflict.name() && number < last => number += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn protocol(number: u8) -> Result<PortProtocol, Refusal> {
    let all = [PortProtocol::Tcp, PortProtocol::Udp];
    let found = all.into_iter().find(|protocol| protocol.number() == number);
    found.ok_or_else(|| Refusal::new("overlayd: only tcp and udp ports can be published"))
}

/// The host's address; every one where dockerd names none, or the unspecified IPv4 address, which it puts for none.
fn host_ip(text: &str) -> Result<Option<IpAddr>, Refusal> {
    match text {
        "" | "0.0.0.0" | "::" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| Refusal::unreadable(format_args!("{text:?} is no address"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_and_addresses_are_read_or_refused() {
        assert_eq!((protocol(6).unwrap(), protocol(17).unwrap()), (PortProtocol::Tcp, PortProtocol::Udp));
        assert!(protocol(132).is_err());
        assert_eq!((host_ip("").unwrap(), host_ip("0.0.0.0").unwrap()), (None, None));
        assert_eq!(host_ip("127.0.0.1").unwrap(), Some("127.0.0.1".parse().unwrap()));
        assert!(host_ip("localhost").is_err());
    }
}

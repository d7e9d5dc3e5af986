//! The capability `portMappings`: ports of the host that lead to the container.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use overlay_control::api::{EndpointLease, PortProtocol, PublishRequest, PublishedPort};
use serde_json::{Map, Value};

use super::error::{self, CniError};

/// One mapping that an engine asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    host_ip: Option<IpAddr>,
    host_port: u16,
    container_port: u16,
    protocol: PortProtocol,
}

/// Reads the value of the capability; keys differ in case between engines. Ports of the container alone are nothing to do.
pub(super) fn parse(value: Option<&Value>) -> Result<Vec<Mapping>, CniError> {
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong("it is no list")),
    };
    let mut found = Vec::with_capacity(list.len());
    for entry in list {
        let Value::Object(entry) = entry else { return Err(wrong("an entry is no object")) };
        found.extend(mapping(entry)?);
    }
    Ok(found)
}

fn mapping(entry: &Map<String, Value>) -> Result<Option<Mapping>, CniError> {
    let field = |key: &str| entry.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
    let text = |key: &str| match field(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.trim()),
        Some(_) => Err(wrong(&format!("{key} is no text"))),
    };
    let port = |key: &str| match field(key) {
        None | Some(Value::Null) => Ok(0),
        // Some engines write -1 for "none".
        Some(value) if value.as_i64().is_some_and(|number| number <= 0) => Ok(0),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
            number.ok_or_else(|| wrong(&format!("{key} is no port")))
        }
    };
    let host_port = port("hostPort")?;
    if host_port == 0 {
        return Ok(None);
    }
    let container_port = port("containerPort")?;
    if container_port == 0 {
        return Err(wrong("containerPort is missing"));
    }
    let protocol = match text("protocol")? {
        "" => PortProtocol::Tcp,
        name => name.parse().map_err(|refused| wrong(&format!("{refused}, and this is {}", shown(name))))?,
    };
    let host_ip = match text("hostIP")? {
        "" => None,
        text => Some(text.parse().map_err(|_| wrong(&format!("hostIP {} is no address", shown(text))))?),
    };
    Ok(Some(Mapping { host_ip, host_port, container_port, protocol }))
}

impl Mapping {
    /// What is to be asked of the daemon: one for each address of the container that the host's address fits.
    pub(super) fn requests(&self, owner: &str, lease: &EndpointLease) -> Vec<PublishRequest> {
        let fits = |ip: &&IpAddr| self.host_ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4());
        let request = |ip: &IpAddr| PublishRequest {
            owner: owner.to_owned(),
            host_ip: self.host_ip,
            host_port: self.host_port,
            protocol: self.protocol,
            target: SocketAddr::new(*ip, self.container_port),
        };
        lease.addresses.iter().filter(fits).map(request).collect()
    }

    /// Whether one of these published ports is this mapping to an endpoint.
    pub(super) fn is_among(&self, published: &[PublishedPort], endpoint: &str) -> bool {
        published.iter().any(|port| {
            port.endpoint.as_deref() == Some(endpoint)
                && (port.host_port, port.protocol) == (self.host_port, self.protocol)
                && port.target.port() == self.container_port
                && port.host_ip == self.host_ip.filter(|ip| !ip.is_unspecified())
        })
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

fn wrong(why: &str) -> CniError {
    CniError::new(error::CONFIG, "runtimeConfig.portMappings is not acceptable", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mappings_of_podman_and_of_cri_are_read() {
        let podman = json!([{ "hostPort": 18091, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1" },
            { "hostPort": 18090, "containerPort": 80, "protocol": "tcp" }]);
        let cri = json!([{ "HostPort": 18091, "ContainerPort": 53, "Protocol": "UDP", "HostIP": "127.0.0.1" },
            { "HostPort": 18090, "ContainerPort": 80, "Protocol": "", "HostIP": "" },
            { "HostPort": 0, "ContainerPort": 81, "Protocol": "sctp" }, { "HostPort": -1, "ContainerPort": 81 }]);
        let found = parse(Some(&podman)).unwrap();
        assert_eq!(found, parse(Some(&cri)).unwrap());
        let (udp, loopback) = (PortProtocol::Udp, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(found[0], Mapping { host_ip: loopback, host_port: 18091, container_port: 53, protocol: udp });
        assert_eq!((found[1].host_ip, found[1].protocol), (None, PortProtocol::Tcp));
        assert_eq!(parse(None).unwrap(), parse(Some(&Value::Null)).unwrap());
    }

    #[test]
    fn host_address_chooses_the_family() {
        let lease = EndpointLease {
            lease: 1,
            name: "n".into(),
            host_interface: "ov1".into(),
            peer_interface: "op1".into(),
            interface: "eth0".into(),
            addresses: vec!["10.42.1.4".parse().unwrap(), "fd42::4".parse().unwrap()],
            gateways: vec![],
            network: None,
            on_link: vec![],
            mtu: 1420,
            expires_ms: 1,
        };
        let both = parse(Some(&json!([{ "hostPort": 8080, "containerPort": 80 }]))).unwrap();
        let targets: Vec<String> =
            both[0].requests("cni/n", &lease).iter().map(|request| request.target.to_string()).collect();
        assert_eq!(targets, ["10.42.1.4:80", "[fd42::4]:80"]);
        let one = parse(Some(&json!([{ "hostPort": 8080, "containerPort": 80, "hostIP": "::" }]))).unwrap();
        assert_eq!(one[0].requests("cni/n", &lease).len(), 1);
    }

    #[test]
    fn wrong_mappings_are_refused_with_the_reason() {
        for bad in [
            json!({}),
            json!([1]),
            json!([{ "hostPort": 8080 }]),
            json!([{ "hostPort": 80_800, "containerPort": 80 }]),
            json!([{ "hostPort": "8080", "containerPort": 80 }]),
            json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "sctp" }]),
            json!([{ "hostPort": 8080, "containerPort": 80, "hostIP": "nowhere" }]),
        ] {
            assert_eq!(parse(Some(&bad)).unwrap_err().code, error::CONFIG, "{bad}");
        }
    }
}

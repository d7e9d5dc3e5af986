//! Ports of this host that lead to a container, here or on another host.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A protocol with ports that can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl PortProtocol {
    /// Its number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Its name, as in rules.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no protocol that can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("only tcp and udp ports can be published")]
pub struct UnknownProtocol;

impl FromStr for PortProtocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        let all = [Self::Tcp, Self::Udp];
        all.into_iter().find(|one| one.name().eq_ignore_ascii_case(text)).ok_or(UnknownProtocol)
    }
}

/// A port of the host that is to lead to a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRequest {
    /// Who asks, as `docker/ENDPOINT`, `cni/NETWORK` or `cli`: by this it is found again.
    pub owner: String,
    /// The host's address; absent or unspecified: every one of the target's family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The host's port; 0: one that is free.
    pub host_port: u16,
    /// The protocol.
    pub protocol: PortProtocol,
    /// A container of this host, or another address of the overlay, with its port.
    pub target: SocketAddr,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Who asked for it.
    pub owner: String,
    /// The host's address; absent: every one of the target's family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The protocol.
    pub protocol: PortProtocol,
    /// Where it leads.
    pub target: SocketAddr,
    /// The container of this host that it leads to, and ends with; absent where the target is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = if self.target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let host = SocketAddr::new(self.host_ip.unwrap_or(any), self.host_port);
        write!(f, "{host}/{} to {}", self.protocol, self.target)
    }
}

/// Which published ports are meant; every field given must match, and one is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSelector {
    /// Who asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The host's address they are published on; the unspecified address means those of every address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// The protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<PortProtocol>,
}

impl PortSelector {
    /// Whether it names nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a published port is meant.
    #[must_use]
    pub fn matches(&self, port: &PublishedPort) -> bool {
        let address = match self.host_ip {
            None => true,
            Some(ip) if ip.is_unspecified() => port.host_ip.is_none() && ip.is_ipv4() == port.target.is_ipv4(),
            Some(ip) => port.host_ip == Some(ip),
        };
        address
            && self.owner.as_ref().is_none_or(|owner| *owner == port.owner)
            && self.host_port.is_none_or(|number| number == port.host_port)
            && self.protocol.is_none_or(|protocol| protocol == port.protocol)
    }
}

/// What can be asked about published ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatRequest {
    /// Publishes a port, kept over restarts until it is taken back or its container goes. The same again is fine.
    /// Answer: `PublishedPorts` with the one.
    Publish(PublishRequest),
    /// Takes ports back. Answer: `Done`; unchanged where there is none.
    Unpublish(PortSelector),
    /// Every published port. Answer: `PublishedPorts`.
    List,
}

impl NatRequest {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>, target: &str) -> PublishedPort {
        PublishedPort {
            owner: "cli".into(),
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 8080,
            protocol: PortProtocol::Tcp,
            target: target.parse().unwrap(),
            endpoint: None,
        }
    }

    #[test]
    fn selector_matches_what_it_names_and_nothing_else() {
        let (all, one) = (port(None, "10.42.1.4:80"), port(Some("192.0.2.1"), "10.42.1.4:80"));
        let by_ip = |ip: &str| PortSelector { host_ip: Some(ip.parse().unwrap()), ..PortSelector::default() };
        assert!(by_ip("0.0.0.0").matches(&all) && !by_ip("::").matches(&all) && !by_ip("0.0.0.0").matches(&one));
        assert!(by_ip("192.0.2.1").matches(&one) && !by_ip("192.0.2.1").matches(&all));
        let owner = |owner: &str| PortSelector { owner: Some(owner.into()), ..PortSelector::default() };
        assert!(owner("cli").matches(&all) && !owner("docker/x").matches(&all));
        let udp = PortSelector { protocol: Some(PortProtocol::Udp), ..PortSelector::default() };
        assert!(!udp.matches(&all) && PortSelector::default().matches(&all) && PortSelector::default().is_empty());
    }

    #[test]
    fn published_port_reads_as_a_sentence() {
        assert_eq!(port(None, "10.42.1.4:80").to_string(), "0.0.0.0:8080/tcp to 10.42.1.4:80");
        assert_eq!(port(None, "[fd42::4]:80").to_string(), "[::]:8080/tcp to [fd42::4]:80");
        assert_eq!("UDP".parse(), Ok(PortProtocol::Udp));
        assert_eq!("sctp".parse::<PortProtocol>(), Err(UnknownProtocol));
    }
}

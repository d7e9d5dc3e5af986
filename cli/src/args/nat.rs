//! The commands for published ports.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::Subcommand;
use overlay_control::api::PortProtocol;

#[derive(Debug, Subcommand)]
pub(crate) enum Nat {
    /// Let a port of this host lead to a container, here or on another host.
    Publish {
        /// The host's side; without an address: every address of the target's family. Port 0: one that is free.
        #[arg(value_name = "[ADDRESS:]PORT[/tcp|udp]")]
        port: HostPort,
        /// An address of the overlay, or an endpoint of this host by its name.
        #[arg(value_name = "TARGET:PORT")]
        target: Target,
        /// Who asks: by this the port can be found again.
        #[arg(long, default_value = "cli")]
        owner: String,
    },
    /// Every published port.
    List,
    /// Take ports back.
    Unpublish {
        /// The host's side, as it was published; without a protocol: both.
        #[arg(value_name = "[ADDRESS:]PORT[/tcp|udp]", required_unless_present = "owner")]
        port: Option<HostPort>,
        /// Who asked for it. With a port the default is `cli`: an engine takes back its own ports.
        #[arg(long)]
        owner: Option<String>,
    },
}

/// A port of the host as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) protocol: Option<PortProtocol>,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, protocol) = match text.split_once('/') {
            Some((place, protocol)) => (
                place,
                Some(protocol.parse().map_err(|error: overlay_control::api::UnknownProtocol| error.to_string())?),
            ),
            None => (text, None),
        };
        if let Ok(port) = place.parse() {
            return Ok(Self { ip: None, port, protocol });
        }
        match place.parse::<SocketAddr>() {
            Ok(address) => Ok(Self { ip: Some(address.ip()), port: address.port(), protocol }),
            Err(_) => Err("expected PORT, ADDRESS:PORT or [ADDRESS]:PORT, then /tcp or /udp".into()),
        }
    }
}

/// Where a port leads, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// An address.
    Address(SocketAddr),
    /// An endpoint of this host.
    Endpoint(String, u16),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (name, port) = text.rsplit_once(':').ok_or("expected ADDRESS:PORT, [ADDRESS]:PORT or ENDPOINT:PORT")?;
        let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        if name.is_empty() || name.contains([':', '[', ']']) {
            return Err(format!("{name:?} is neither an address nor an endpoint"));
        }
        Ok(Self::Endpoint(name.to_owned(), port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_side_is_read_in_each_of_its_forms() {
        let read = |text: &str| text.parse::<HostPort>();
        let ip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(read("8080").unwrap(), HostPort { ip: None, port: 8080, protocol: None });
        let udp = Some(PortProtocol::Udp);
        assert_eq!(read("192.0.2.1:53/udp").unwrap(), HostPort { ip: ip("192.0.2.1"), port: 53, protocol: udp });
        let tcp = Some(PortProtocol::Tcp);
        assert_eq!(read("[fd42::1]:80/tcp").unwrap(), HostPort { ip: ip("fd42::1"), port: 80, protocol: tcp });
        for bad in ["", "80/sctp", "host:80", "70000", "192.0.2.1", "fd42::1:80x", "80/"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn target_is_an_address_or_a_name() {
        assert_eq!("10.42.1.4:80".parse(), Ok(Target::Address("10.42.1.4:80".parse().unwrap())));
        assert_eq!("[fd42::4]:80".parse(), Ok(Target::Address("[fd42::4]:80".parse().unwrap())));
        assert_eq!("web:80".parse(), Ok(Target::Endpoint("web".into(), 80)));
        for bad in ["web", "web:", ":80", "fd42::4:80", "web:99999"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}

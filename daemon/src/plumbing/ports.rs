//! Published ports: which ports of this host lead to which container, kept on disk, and the checks before one is added.
//!
//! One file in the state directory holds all of them, replaced by atomic rename. A port that leads to a container of this
//! host carries the number of its lease and ends with it; one that leads elsewhere stays until it is taken back.

pub mod listeners;
pub mod table;
mod tracked;

pub use tracked::{Flow, forget};

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use overlay_control::api::{PortProtocol, PortSelector, PublishRequest, PublishedPort};
use overlay_dataplane::{Opening, Published};
use overlay_wire::Prefix;
use serde::{Deserialize, Serialize};

use super::desired::Attachment;
use super::lease::write_durably;
use super::{PlumbingConfig, PlumbingError};

/// Version of the file.
const VERSION: u32 = 1;

/// Ports published at once: each is a rule that every new connection to this host may walk past.
pub const MAX_PORTS: usize = 4096;

/// Where a free port is looked for when the caller names none: the kernel's own range for such.
const FREE: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// A published port with the lease it ends with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// What is shown.
    #[serde(flatten)]
    pub port: PublishedPort,
    /// The lease of the container it leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    ports: Vec<Publication>,
}

/// The published ports of this host.
#[derive(Debug)]
pub struct Ports {
    path: PathBuf,
    ports: Vec<Publication>,
}

impl Ports {
    /// Reads the file; a host without one has published nothing.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or of a newer release.
    pub fn open(state_dir: &Path) -> Result<Self, PlumbingError> {
        let path = state_dir.join("ports.json");
        let ports = match std::fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(PlumbingError::file("read", &path)(error)),
        };
        Ok(Self { path, ports })
    }

    /// Every published port, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Publication> + Clone {
        self.ports.iter()
    }

    /// The port that is the same in everything a caller asks for, if there is one.
    #[must_use]
    pub fn same(&self, request: &PublishRequest, host_ip: Option<IpAddr>) -> Option<&PublishedPort> {
        let is_same = |port: &&PublishedPort| {
            port.owner == request.owner
                && port.host_ip == host_ip
                && port.host_port == request.host_port
                && port.protocol == request.protocol
                && port.target == request.target
        };
        self.ports.iter().map(|one| &one.port).find(is_same)
    }

    /// The published port that stands in the way of another one.
    #[must_use]
    pub fn holder(
        &self,
        host_ip: Option<IpAddr>,
        ipv4: bool,
        protocol: PortProtocol,
        number: u16,
    ) -> Option<&PublishedPort> {
        let overlaps = |port: &&PublishedPort| {
            let addresses = match (port.host_ip, host_ip) {
                (Some(theirs), Some(ours)) => theirs == ours,
                _ => true,
            };
            port.protocol == protocol && port.host_port == number && port.target.is_ipv4() == ipv4 && addresses
        };
        self.ports.iter().map(|one| &one.port).find(overlaps)
    }

    /// A port of the usual range that nobody holds; the search begins at a place that differs from target to target.
    ///
    /// # Errors
    /// When none is free.
    pub fn free(
        &self,
        request: &PublishRequest,
        host_ip: Option<IpAddr>,
        is_taken: impl Fn(u16) -> bool,
    ) -> Result<u16, PlumbingError> {
        let (first, count) = (*FREE.start(), u32::from(*FREE.end() - *FREE.start()) + 1);
        let begin =
            u32::try_from(self.ports.len()).unwrap_or_default().wrapping_mul(7919) + u32::from(request.target.port());
        let candidates = (0..count).map(|step| first + ((begin + step) % count) as u16);
        let held = |number: &u16| self.holder(host_ip, request.target.is_ipv4(), request.protocol, *number).is_none();
        candidates.filter(held).find(|number| !is_taken(*number)).ok_or(PlumbingError::TooManyPorts(MAX_PORTS))
    }

    /// Adds a port, durably.
    ///
    /// # Errors
    /// When there are too many, or the file cannot be written; then nothing has changed.
    pub fn add(&mut self, publication: Publication) -> Result<(), PlumbingError> {
        if self.ports.len() >= MAX_PORTS {
            return Err(PlumbingError::TooManyPorts(MAX_PORTS));
        }
        let mut ports = self.ports.clone();
        ports.push(publication);
        self.replace(ports)
    }

    /// Removes the ports that a selector means, durably; which they were.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub fn remove(&mut self, selector: &PortSelector) -> Result<Vec<PublishedPort>, PlumbingError> {
        self.keep(|one| !selector.matches(&one.port))
    }

    /// Keeps the ports for which `wanted` is true, durably; which others there were.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub fn keep(&mut self, wanted: impl Fn(&Publication) -> bool) -> Result<Vec<PublishedPort>, PlumbingError> {
        let (kept, gone): (Vec<_>, Vec<_>) = self.ports.iter().cloned().partition(wanted);
        if !gone.is_empty() {
            self.replace(kept)?;
        }
        Ok(gone.into_iter().map(|one| one.port).collect())
    }

    fn replace(&mut self, ports: Vec<Publication>) -> Result<(), PlumbingError> {
        let file = File { version: VERSION, ports };
        let bytes = serde_json::to_vec_pretty(&file).expect("a list of ports serialises");
        write_durably(&self.path, &bytes)?;
        self.ports = file.ports;
        Ok(())
    }

    /// What the packet path must know.
    #[must_use]
    pub fn openings(&self, config: &PlumbingConfig) -> Published {
        published(self.ports.iter().map(|one| &one.port), config)
    }

    /// The interfaces that must take answers to packets from the host's loopback addresses.
    #[must_use]
    pub fn loopback_interfaces(&self, config: &PlumbingConfig, attachments: &[Attachment]) -> Vec<String> {
        let reached = self
            .ports
            .iter()
            .map(|one| &one.port)
            .filter(|port| port.target.is_ipv4() && port.host_ip.is_none_or(|ip| ip.is_loopback()));
        let mut names: Vec<String> = reached
            .map(|port| {
                let own = attachments.iter().find(|one| one.addresses.contains(&port.target.ip()));
                own.map_or_else(|| config.interface.clone(), |own| own.interface().to_owned())
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Publication>, PlumbingError> {
    let format = |why: String| PlumbingError::StateFormat { path: path.to_owned(), why };
    let file: File = serde_json::from_slice(bytes).map_err(|error| format(error.to_string()))?;
    if file.version > VERSION {
        return Err(format(format!("version {} is newer than {VERSION}", file.version)));
    }
    Ok(file.ports)
}

/// What the packet path must know of published ports.
fn published<'a>(ports: impl Iterator<Item = &'a PublishedPort>, config: &PlumbingConfig) -> Published {
    let (mut targets, mut host): (Vec<Opening>, Vec<Opening>) = (Vec::new(), Vec::new());
    for port in ports {
        if port.endpoint.is_none() {
            continue;
        }
        targets.push((port.protocol.number(), port.target.ip(), port.target.port()));
        let reached = config
            .host_addresses
            .iter()
            .filter(|own| own.is_ipv4() == port.target.is_ipv4() && port.host_ip.is_none_or(|ip| ip == **own));
        host.extend(reached.map(|own| (port.protocol.number(), *own, port.host_port)));
    }
    Published::new(targets, host, service_addresses(config))
}

/// The service addresses of this host: the second of its first prefix of each family. No interface has them; they stand
/// for containers of this host that come back to another one through the host's address.
#[must_use]
pub fn service_addresses(config: &PlumbingConfig) -> Vec<IpAddr> {
    let first = |ipv4: bool| config.own_prefixes.iter().find(|prefix| prefix.is_ipv4() == ipv4);
    [first(true), first(false)].into_iter().flatten().filter_map(|prefix: &Prefix| prefix.nth(2)).collect()
}

/// The host address of a request, checked: `None` for every address of the family.
///
/// # Errors
/// When the address cannot be published on.
pub fn host_address(request: &PublishRequest) -> Result<Option<IpAddr>, PlumbingError> {
    let refuse = |address, why| PlumbingError::PortAddress { address, why };
    let Some(ip) = request.host_ip else { return Ok(None) };
    if ip.is_ipv4() != request.target.is_ipv4() {
        return Err(refuse(ip, "its family is not that of the target"));
    }
    if ip.is_unspecified() {
        return Ok(None);
    }
    if ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        return Err(refuse(ip, "it is not the address of one host"));
    }
    if ip.is_ipv6() && ip.is_loopback() {
        return Err(refuse(ip, "the kernel does not translate from ::1; use an address of an interface"));
    }
    Ok(Some(ip))
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    pub(super) fn publication(
        host_ip: Option<&str>,
        host_port: u16,
        target: &str,
        endpoint: Option<&str>,
    ) -> Publication {
        Publication {
            port: PublishedPort {
                owner: "cli".into(),
                host_ip: host_ip.map(|ip| ip.parse().unwrap()),
                host_port,
                protocol: PortProtocol::Tcp,
                target: target.parse().unwrap(),
                endpoint: endpoint.map(str::to_owned),
            },
            lease: endpoint.map(|_| 7),
        }
    }

    #[test]
    fn reopened_file_holds_what_was_added_and_a_torn_write_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut ports = Ports::open(dir.path()).unwrap();
        ports.add(publication(None, 8080, "10.42.1.4:80", Some("web"))).unwrap();
        ports.add(publication(None, 8081, "10.42.2.4:80", None)).unwrap();
        std::fs::write(dir.path().join("ports.tmp"), b"{\"ver").unwrap();
        let again = Ports::open(dir.path()).unwrap();
        assert_eq!(again.ports, ports.ports);
        assert_eq!(ports.keep(|one| one.lease.is_none()).unwrap().len(), 1);
        assert_eq!(Ports::open(dir.path()).unwrap().iter().count(), 1);
        for bad in [&b"{}"[..], b"{\"version\":2,\"ports\":[]}", b"garbage"] {
            std::fs::write(dir.path().join("ports.json"), bad).unwrap();
            assert!(matches!(Ports::open(dir.path()), Err(PlumbingError::StateFormat { .. })));
        }
    }

    #[test]
    fn holder_is_found_where_addresses_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let mut ports = Ports::open(dir.path()).unwrap();
        ports.add(publication(Some("192.0.2.1"), 80, "10.42.1.4:80", None)).unwrap();
        ports.add(publication(None, 81, "10.42.1.4:80", None)).unwrap();
        let ip = |text: &str| Some(text.parse().unwrap());
        let held = |host_ip, ipv4, protocol, port| ports.holder(host_ip, ipv4, protocol, port).is_some();
        assert!(held(ip("192.0.2.1"), true, PortProtocol::Tcp, 80) && held(None, true, PortProtocol::Tcp, 80));
        assert!(held(ip("192.0.2.9"), true, PortProtocol::Tcp, 81));
        assert!(!held(ip("192.0.2.2"), true, PortProtocol::Tcp, 80));
        assert!(!held(None, true, PortProtocol::Udp, 80) && !held(None, false, PortProtocol::Tcp, 80));
    }

    #[test]
    fn packet_path_learns_of_local_targets_only() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (local, remote) =
            (publication(None, 8080, "10.42.1.4:80", Some("web")), publication(None, 8081, "10.42.2.4:80", None));
        let found = published([&local.port, &remote.port].into_iter(), &config);
        let wanted = Published::new(
            vec![(6, ip("10.42.1.4"), 80)],
            vec![(6, ip("10.42.1.1"), 8080)],
            vec![ip("10.42.1.2"), ip("fd42:0:0:1::2")],
        );
        assert_eq!(found, wanted);
        let elsewhere = publication(Some("192.0.2.1"), 8080, "10.42.1.4:80", Some("web"));
        let found = published([&elsewhere.port].into_iter(), &config);
        let sources = vec![ip("10.42.1.2"), ip("fd42:0:0:1::2")];
        assert_eq!(found, Published::new(vec![(6, ip("10.42.1.4"), 80)], vec![], sources));
    }

    #[test]
    fn addresses_that_cannot_be_published_on_are_refused() {
        let request = |host_ip: &str, target: &str| PublishRequest {
            owner: "cli".into(),
            host_ip: Some(host_ip.parse().unwrap()),
            host_port: 1,
            protocol: PortProtocol::Tcp,
            target: target.parse().unwrap(),
        };
        let (v4, v6) = ("10.42.1.4:80", "[fd42::4]:80");
        assert_eq!(host_address(&request("0.0.0.0", v4)).unwrap(), None);
        assert_eq!(host_address(&request("127.0.0.1", v4)).unwrap(), Some("127.0.0.1".parse().unwrap()));
        for (ip, target) in [("::", v4), ("192.0.2.1", v6), ("224.0.0.1", v4), ("255.255.255.255", v4), ("::1", v6)] {
            assert!(host_address(&request(ip, target)).is_err(), "{ip} {target}");
        }
    }

    #[test]
    fn free_port_is_one_that_nobody_holds() {
        let dir = tempfile::tempdir().unwrap();
        let mut ports = Ports::open(dir.path()).unwrap();
        let request = PublishRequest {
            owner: "cli".into(),
            host_ip: None,
            host_port: 0,
            protocol: PortProtocol::Tcp,
            target: "10.42.1.4:80".parse().unwrap(),
        };
        let first = ports.free(&request, None, |_| false).unwrap();
        assert!(FREE.contains(&first));
        let second = ports.free(&request, None, |number| number == first).unwrap();
        assert_ne!(first, second);
        ports.add(publication(None, second, "10.42.1.4:81", None)).unwrap();
        let third = ports.free(&request, None, |number| number == first).unwrap();
        assert!(third != first && third != second);
        assert!(ports.free(&request, None, |_| true).is_err());
    }
}

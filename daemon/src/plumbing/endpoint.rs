//! Container endpoints: what is prepared for a container and what the caller does inside the container.
//!
//! The daemon makes the veth pair and everything on the host side; the caller, who may enter the container, moves the
//! other end in and configures it as the [`AttachPlan`] says. Over IPv4 the host answers ARP for its own address on every
//! interface; over IPv6 it answers only for addresses of the interface itself, so each host end has `fe80::1`.

use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::PlumbingError;
use super::lease::Lease;

/// The IPv6 gateway of every container: an address of the host end of its own veth.
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// The longest interface name the kernel takes, in bytes.
const IFNAME_MAX: usize = 15;

/// The longest container name kept in a lease, in bytes.
const CONTAINER_MAX: usize = 128;

/// A request for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRequest {
    /// The container, as its runtime names it.
    pub container: String,
    /// The interface inside the container, often `eth0`.
    pub ifname: String,
    /// Addresses wanted; empty: the lowest free ones.
    pub addresses: Vec<IpAddr>,
}

/// What the caller does in the container's network namespace between `prepare` and `commit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachPlan {
    /// The endpoint.
    pub lease: Lease,
}

impl AttachPlan {
    /// The commands, as argument lists: the first moves the veth end out of the host into the namespace `netns` (a name
    /// known to `ip netns`, or a path), the others run for that namespace. None of them disturbs another interface.
    #[must_use]
    pub fn commands(&self, netns: &str) -> Vec<Vec<String>> {
        let lease = &self.lease;
        let (peer, name) = (lease.peer_ifname.as_str(), lease.ifname.as_str());
        let mut commands = vec![words(&["ip", "link", "set", peer, "netns", netns])];
        let mut inside = |arguments: &[&str]| {
            let mut command = words(&["ip", "-n", netns]);
            command.extend(words(arguments));
            commands.push(command);
        };
        inside(&["link", "set", peer, "name", name]);
        inside(&["link", "set", "lo", "up"]);
        for address in &lease.addresses {
            match address {
                IpAddr::V4(v4) => inside(&["address", "replace", &format!("{v4}/32"), "dev", name]),
                IpAddr::V6(v6) => inside(&["-6", "address", "replace", &format!("{v6}/128"), "dev", name, "nodad"]),
            }
        }
        inside(&["link", "set", name, "mtu", &lease.mtu.to_string(), "up"]);
        for gateway in &lease.gateways {
            match gateway {
                IpAddr::V4(v4) => {
                    let via = v4.to_string();
                    inside(&["route", "replace", &format!("{via}/32"), "dev", name, "scope", "link"]);
                    inside(&["route", "replace", "default", "via", &via, "dev", name]);
                }
                IpAddr::V6(v6) => inside(&["-6", "route", "replace", "default", "via", &v6.to_string(), "dev", name]),
            }
        }
        commands
    }

    /// Settings under `/proc/sys` of the container to write before the interface goes up: no foreign router may
    /// configure it.
    #[must_use]
    pub fn sysctls(&self) -> Vec<(String, &'static str)> {
        let name = &self.lease.ifname;
        vec![
            (format!("net/ipv6/conf/{name}/accept_ra"), "0"),
            (format!("net/ipv6/conf/{name}/autoconf"), "0"),
            (format!("net/ipv6/conf/{name}/disable_ipv6"), "0"),
        ]
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// The gateways for a container's addresses.
#[must_use]
pub(super) fn gateways(addresses: &[IpAddr], host_addresses: &[IpAddr]) -> Vec<IpAddr> {
    let gateway = |address: &IpAddr| match address {
        IpAddr::V4(_) => host_addresses.iter().copied().find(IpAddr::is_ipv4),
        IpAddr::V6(_) => Some(GATEWAY_V6),
    };
    addresses.iter().filter_map(gateway).collect()
}

/// Host and peer interface names of an endpoint; the same for the same arguments, also after a restart.
#[must_use]
pub(super) fn interface_names(tun: &str, container: &str, ifname: &str) -> (String, String) {
    // FNV-1a: stable across releases, and a clash is found when the link is made.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in tun.bytes().chain([0]).chain(container.bytes()).chain([0]).chain(ifname.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let short = (hash ^ (hash >> 24)) & 0xff_ffff_ffff;
    (format!("ov{short:010x}"), format!("op{short:010x}"))
}

/// Refuses names that could be misread in a rule, a file name or a command.
pub(super) fn check_names(request: &EndpointRequest) -> Result<(), PlumbingError> {
    check_name(&request.container, CONTAINER_MAX)?;
    check_name(&request.ifname, IFNAME_MAX)
}

fn check_name(name: &str, longest: usize) -> Result<(), PlumbingError> {
    let bad = |why| Err(PlumbingError::BadName { name: name.to_owned(), why });
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match name {
        "" => bad("it is empty"),
        "." | ".." | "lo" | "all" | "default" => bad("it has a meaning of its own"),
        _ if name.len() > longest => bad("it is too long"),
        _ if !name.chars().all(allowed) => bad("it has other characters than letters, digits, `-`, `_` and `.`"),
        _ if name.starts_with('-') => bad("it starts with `-`"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_misread_are_refused() {
        let request = |container: &str, ifname: &str| EndpointRequest {
            container: container.into(),
            ifname: ifname.into(),
            addresses: vec![],
        };
        assert!(check_names(&request("web-1.prod_2", "eth0")).is_ok());
        for (container, ifname) in
            [("", "eth0"), ("a/../b", "eth0"), ("a b", "eth0"), ("-n", "eth0"), ("a", "eth0\" drop"), ("a", "lo")]
        {
            assert!(check_names(&request(container, ifname)).is_err(), "{container:?} {ifname:?}");
        }
        assert!(check_names(&request("a", "sixteen-bytes-xx")).is_err());
        assert!(check_names(&request(&"a".repeat(129), "eth0")).is_err());
    }

    #[test]
    fn interface_names_fit_the_kernel_and_differ() {
        let (host, peer) = interface_names("overlay0", "web", "eth0");
        assert!(host.len() <= IFNAME_MAX && peer.len() <= IFNAME_MAX);
        assert_ne!(host, peer);
        assert_ne!(host, interface_names("overlay0", "web", "eth1").0);
        assert_ne!(host, interface_names("overlay1", "web", "eth0").0);
        assert_eq!(host, interface_names("overlay0", "web", "eth0").0);
    }
}

//! Container endpoints: what is prepared for a container and what the caller does inside the container.
//!
//! The daemon makes the veth pair and everything on the host side; the caller, who may enter the container, moves the
//! other end in and configures it as the lease says. Over IPv4 the host answers ARP for its own address on every
//! interface; over IPv6 it answers only for addresses of the interface itself, so each host end has `fe80::1`.

use std::net::{IpAddr, Ipv6Addr};

use overlay_control::api::EndpointRequest;
use overlay_wire::gossip::identities::check_labels;
use overlay_wire::gossip::networks::DEFAULT_NETWORK;

use super::PlumbingError;

/// The IPv6 gateway of every container: an address of the host end of its own veth.
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// The longest interface name the kernel takes, in bytes.
const IFNAME_MAX: usize = 15;

/// The longest endpoint name kept in a lease, in bytes.
const NAME_MAX: usize = 128;

/// The longest network name, in bytes.
const NETWORK_MAX: usize = 63;

/// The longest part of an owner, in bytes.
const OWNER_MAX: usize = 1024;

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
pub(super) fn interface_names(tun: &str, name: &str) -> (String, String) {
    // FNV-1a: stable across releases, and a clash is found when the link is made.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in tun.bytes().chain([0]).chain(name.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let short = (hash ^ (hash >> 24)) & 0xff_ffff_ffff;
    (format!("ov{short:010x}"), format!("op{short:010x}"))
}

/// The bridge of a network; the same for the same arguments, also after a restart.
#[must_use]
pub(super) fn bridge_name(tun: &str, network: &str) -> String {
    let (host, _) = interface_names(tun, &format!("{network} bridge"));
    host.replacen("ov", "ob", 1)
}

/// Refuses names that could be misread in a rule, a file name or a command.
pub(super) fn check_names(request: &EndpointRequest) -> Result<(), PlumbingError> {
    check_name(&request.name, NAME_MAX)?;
    check_name(&request.interface, IFNAME_MAX)?;
    if let Some(network) = request.network.as_deref().filter(|network| *network != DEFAULT_NETWORK) {
        check_name(network, NETWORK_MAX)?;
    }
    check_labels(&request.labels)?;
    request.owner.iter().try_for_each(|owner| check_owner(owner))
}

/// Refuses owners that could be misread: a kind, or a kind and a name, each under the rules of names.
pub(super) fn check_owner(owner: &str) -> Result<(), PlumbingError> {
    owner.splitn(2, '/').try_for_each(|part| check_name(part, OWNER_MAX))
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
        let request = |name: &str, interface: &str| EndpointRequest {
            name: name.into(),
            interface: interface.into(),
            netns: "n".into(),
            ..EndpointRequest::default()
        };
        assert!(check_names(&request("web-1.prod_2", "eth0")).is_ok());
        for (container, ifname) in
            [("", "eth0"), ("a/../b", "eth0"), ("a b", "eth0"), ("-n", "eth0"), ("a", "eth0\" drop"), ("a", "lo")]
        {
            assert!(check_names(&request(container, ifname)).is_err(), "{container:?} {ifname:?}");
        }
        assert!(check_names(&request("a", "sixteen-bytes-xx")).is_err());
        assert!(check_names(&request(&"a".repeat(129), "eth0")).is_err());
        let labelled = |value: &str| {
            let labels = [("role".to_owned(), value.to_owned())].into();
            check_names(&EndpointRequest { labels, ..request("a", "eth0") })
        };
        assert!(labelled("web").is_ok() && labelled("we b").is_err());
        let owned = |owner: &str| check_names(&EndpointRequest { owner: Some(owner.into()), ..request("a", "eth0") });
        assert!(owned("cni/overlay").is_ok());
        assert!(["cni/", "cni/a/b", "cni/a b", ""].iter().all(|owner| owned(owner).is_err()));
    }

    #[test]
    fn interface_names_fit_the_kernel_and_differ() {
        let (host, peer) = interface_names("overlay0", "web");
        assert!(host.len() <= IFNAME_MAX && peer.len() <= IFNAME_MAX);
        assert_ne!(host, peer);
        assert_ne!(host, interface_names("overlay0", "api").0);
        assert_ne!(host, interface_names("overlay1", "web").0);
        assert_eq!(host, interface_names("overlay0", "web").0);
    }
}

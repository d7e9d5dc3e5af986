//! The addresses at which others may reach this host, as the kernel has them, and word of it when they change.
//!
//! An interface counts when it carries an address that the kernel uses towards a member, has a route through a gateway, or
//! is a network card. So the bridges and cables of containers, tunnels and the loopback do not count unless packets to
//! members leave there. Addresses that are no use to others do not count either: loopback, link-local, of the overlay
//! itself, being detected as duplicate, deprecated, and the changing ones of IPv6 (RFC 8981).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use overlay_routing::gossip::is_reachable_from_elsewhere;
use overlay_wire::Prefix;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::Notify;

use super::interfaces::Interface;
use super::netlink::{Kernel, KernelAddress, Link};
use super::watch::{Watching, concerns_uplinks, follow_kernel};
use super::{PlumbingConfig, PlumbingError};

/// What must not be taken for an address of the underlay.
#[derive(Debug, Clone)]
pub struct Ours {
    /// The TUN device.
    pub interface: String,
    /// The interface group of the host ends of container veths.
    pub group: u32,
    /// Prefixes of the overlay, and those behind this host.
    pub prefixes: Vec<Prefix>,
}

/// Asks the kernel for this host's addresses.
#[derive(Debug)]
pub struct Uplinks {
    kernel: Kernel,
}

impl Uplinks {
    /// Opens a connection in this thread's network namespace; must run inside a tokio runtime.
    ///
    /// # Errors
    /// When netlink cannot be opened.
    pub fn open() -> Result<Self, PlumbingError> {
        Ok(Self { kernel: Kernel::open()? })
    }

    /// The addresses that count, those in `sources` included, IPv4 first. `sources` are the addresses that the kernel uses
    /// towards members.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn addresses(&self, sources: &BTreeSet<IpAddr>, ours: &Ours) -> Result<BTreeSet<IpAddr>, PlumbingError> {
        let links = self.kernel.links().await?;
        let addresses = self.kernel.all_addresses().await?;
        let gateways = self.kernel.gateway_links().await?;
        Ok(counting(&links, &addresses, &gateways, sources, ours))
    }
}

/// Tells `changed` whenever links, addresses or routes of the host change; must run inside a tokio runtime.
///
/// # Errors
/// When netlink cannot be opened.
pub fn watch(config: &PlumbingConfig, changed: Arc<Notify>) -> Result<(), PlumbingError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let tables = config.tables;
    let tell = move |message: Option<&RouteNetlinkMessage>| {
        if message.is_none_or(|message| concerns_uplinks(message, tables)) {
            changed.notify_one();
        }
        Watching::Goes
    };
    follow_kernel(&groups, tell).map_err(PlumbingError::NetlinkSocket)
}

fn counting(
    links: &[Link],
    addresses: &[KernelAddress],
    gateways: &BTreeSet<u32>,
    sources: &BTreeSet<IpAddr>,
    ours: &Ours,
) -> BTreeSet<IpAddr> {
    let carries_source =
        |link: &Link| addresses.iter().any(|address| address.link == link.index && sources.contains(&address.ip));
    let uplinks: BTreeSet<u32> = links
        .iter()
        .filter(|link| link.up && link.name != ours.interface && link.group != ours.group)
        .filter(|link| {
            carries_source(link) || gateways.contains(&link.index) || Interface::from(*link).hardware.is_some()
        })
        .map(|link| link.index)
        .collect();
    let is_ours = |ip: IpAddr| ours.prefixes.iter().any(|prefix| prefix.contains(ip));
    addresses
        .iter()
        .filter(|address| uplinks.contains(&address.link) && address.is_lasting && !is_ours(address.ip))
        .map(|address| address.ip)
        .filter(|ip| is_reachable_from_elsewhere(*ip))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::InfoKind;

    const GROUP: u32 = 0x6f76;

    fn link(index: u32, name: &str, kind: Option<InfoKind>) -> Link {
        let hardware = if name == "lo" { vec![0; 6] } else { vec![2, 0, 0, 0, 0, index as u8] };
        Link {
            index,
            name: name.into(),
            mtu: 1500,
            up: true,
            group: 0,
            txqueuelen: 0,
            kind,
            hardware,
            controller: None,
        }
    }

    fn address(link: u32, ip: &str) -> KernelAddress {
        KernelAddress { link, ip: ip.parse().expect("an address"), is_lasting: true }
    }

    fn found(links: &[Link], addresses: &[KernelAddress], gateways: &[u32], sources: &[&str]) -> Vec<String> {
        let sources = sources.iter().map(|ip| ip.parse().expect("an address")).collect();
        let prefixes = vec!["10.42.0.0/16".parse().expect("a prefix")];
        let ours = Ours { interface: "overlay0".into(), group: GROUP, prefixes };
        let found = counting(links, addresses, &gateways.iter().copied().collect(), &sources, &ours);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_of_network_cards_count_and_those_of_containers_do_not() {
        let mut container = link(5, "veth5", Some(InfoKind::Veth));
        container.group = GROUP;
        let links = [
            link(1, "lo", None),
            link(2, "eth0", None),
            link(3, "docker0", Some(InfoKind::Bridge)),
            link(4, "overlay0", Some(InfoKind::Tun)),
            container,
        ];
        let addresses = [
            address(1, "127.0.0.1"),
            address(1, "198.51.100.1"),
            address(2, "192.0.2.1"),
            address(2, "2001:db8::1"),
            address(2, "fe80::1"),
            address(2, "169.254.0.5"),
            address(2, "10.42.1.9"),
            address(3, "172.17.0.1"),
            address(4, "10.42.1.1"),
            address(5, "203.0.113.1"),
        ];
        assert_eq!(found(&links, &addresses, &[], &[]), ["192.0.2.1", "2001:db8::1"]);
        // Where packets to members leave from the loopback's address, it counts.
        let all = ["192.0.2.1", "198.51.100.1", "2001:db8::1"];
        assert_eq!(found(&links, &addresses, &[], &["198.51.100.1"]), all);
    }

    #[test]
    fn bridge_or_cable_counts_with_a_gateway_or_a_source_only() {
        let links = [link(2, "br0", Some(InfoKind::Bridge)), link(3, "v0", Some(InfoKind::Veth))];
        let addresses = [address(2, "192.0.2.1"), address(2, "192.0.2.9"), address(3, "198.51.100.1")];
        assert_eq!(found(&links, &addresses, &[], &[]), [] as [&str; 0]);
        assert_eq!(found(&links, &addresses, &[3], &[]), ["198.51.100.1"]);
        assert_eq!(found(&links, &addresses, &[], &["192.0.2.9"]), ["192.0.2.1", "192.0.2.9"]);
    }

    #[test]
    fn passing_addresses_and_links_that_are_down_do_not_count() {
        let mut down = link(3, "eth1", None);
        down.up = false;
        let passing = KernelAddress { is_lasting: false, ..address(2, "2001:db8::77") };
        let addresses = [address(2, "2001:db8::1"), passing, address(3, "192.0.2.1")];
        assert_eq!(found(&[link(2, "eth0", None), down], &addresses, &[], &[]), ["2001:db8::1"]);
    }
}

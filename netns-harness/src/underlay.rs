//! The underlay: addresses, links, and the switch namespace that routes between the hosts.
//!
//! The switch is a router, so that a link with a smaller MTU answers with "fragmentation needed" as a real network does.
//! Each host has 192.0.2.N and 2001:db8::N with a default route to the switch.

use anyhow::{Result, bail};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::command::ip_batch;
use crate::lab::{HostSpec, Topology};
use crate::nat::{self, Nat};
use crate::netns;

/// The switch's address on each of its ports.
const GATEWAY_V4: &str = "192.0.2.254";
const GATEWAY_V6: &str = "fe80::1";

/// The underlay IPv4 address of the host with this index.
pub(crate) fn ipv4(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number(index))
}

/// The underlay IPv6 address of the host with this index.
pub(crate) fn ipv6(index: usize) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number(index)))
}

fn number(index: usize) -> u8 {
    u8::try_from(index + 1).expect("a lab has at most 200 hosts, checked when it is made")
}

/// Builds the links. The host namespaces, and the switch where the topology has one, are there already.
pub(crate) fn build(topology: Topology, switch: &str, hosts: &[(HostSpec, String)]) -> Result<()> {
    match topology {
        Topology::Routed => {
            netns::within(switch, || {
                netns::sysctl("net/ipv4/ip_forward", "1")?;
                netns::sysctl("net/ipv6/conf/all/forwarding", "1")?;
                netns::sysctl("net/ipv4/icmp_ratelimit", "0")?;
                netns::sysctl("net/ipv6/icmp/ratelimit", "0")
            })?;
            for (index, (host, namespace)) in hosts.iter().enumerate() {
                routed(switch, index, host, namespace)?;
            }
            Ok(())
        }
        Topology::Direct => {
            let [(first, one), (_, two)] = hosts else { bail!("a direct underlay joins exactly two hosts") };
            let mtu = first.mtu;
            let link = format!("link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {two}");
            ip_batch(one, &[link])?;
            for (index, namespace) in [one, two].into_iter().enumerate() {
                ip_batch(
                    namespace,
                    &[
                        format!("addr add {}/24 dev eth0", ipv4(index)),
                        format!("addr add {}/64 dev eth0 nodad", ipv6(index)),
                        "link set eth0 up".to_owned(),
                    ],
                )?;
            }
            Ok(())
        }
    }
}

/// The namespace of the router in front of a host's namespace.
pub(crate) fn router(namespace: &str) -> String {
    format!("{namespace}-nat")
}

fn behind_router(switch: &str, index: usize, host: &HostSpec, namespace: &str, kind: Nat) -> Result<()> {
    if host.wire.is_some() {
        bail!("{} cannot be behind a router and a userspace wire", host.name);
    }
    let (router, port, mtu, v4) = (router(namespace), &host.name, host.mtu, ipv4(index));
    ip_batch(switch, &[format!("link add {port} mtu {mtu} type veth peer name wan mtu {mtu} netns {router}")])?;
    ip_batch(
        &router,
        &[
            format!("addr add {v4}/32 dev wan"),
            "link set wan up".to_owned(),
            format!("route add default via {GATEWAY_V4} dev wan onlink"),
        ],
    )?;
    ip_batch(
        switch,
        &[
            format!("link set {port} addrgenmode none"),
            format!("addr add {GATEWAY_V4}/32 dev {port}"),
            format!("link set {port} up"),
            format!("route add {v4}/32 dev {port}"),
        ],
    )?;
    nat::build(&router, namespace, number(index), mtu, kind)
}

fn routed(switch: &str, index: usize, host: &HostSpec, namespace: &str) -> Result<()> {
    if let Some(kind) = host.nat {
        return behind_router(switch, index, host, namespace, kind);
    }
    let (port, mtu) = (&host.name, host.mtu);
    if host.wire.is_none() {
        ip_batch(switch, &[format!("link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}")])?;
    } else {
        // The wire process has made both ends as taps.
        ip_batch(switch, &[format!("link set {port} mtu {mtu}")])?;
        ip_batch(namespace, &[format!("link set eth0 mtu {mtu}")])?;
    }
    let (v4, v6) = (ipv4(index), ipv6(index));
    ip_batch(
        namespace,
        &[
            format!("addr add {v4}/32 dev eth0"),
            format!("addr add {v6}/128 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            format!("route add default via {GATEWAY_V4} dev eth0 onlink"),
            format!("route add ::/0 via {GATEWAY_V6} dev eth0 onlink"),
        ],
    )?;
    ip_batch(
        switch,
        &[
            format!("link set {port} addrgenmode none"),
            format!("addr add {GATEWAY_V4}/32 dev {port}"),
            format!("addr add {GATEWAY_V6}/64 dev {port} nodad"),
            format!("link set {port} up"),
            format!("route add {v4}/32 dev {port}"),
            format!("route add {v6}/128 dev {port}"),
        ],
    )
}

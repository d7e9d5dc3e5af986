//! A NAT in front of a host: a router namespace between the host and the switch, as a home router is.
//!
//! The host has 172.31.N.2, the router the underlay address that the host would have. What comes from outside without being an
//! answer is dropped before it leaves a trace, so that two hosts may open a way by sending to each other.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

use crate::command::{ip_batch, nft};
use crate::netns;

/// How a router chooses the source port outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nat {
    /// The host's own port while it is free: the same towards everybody.
    KeepsPort,
    /// A random port, another one towards everybody.
    Symmetric,
}

/// The address of the host behind a router, by its number.
pub(crate) fn inside(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, number, 2)
}

/// Joins a host to its router, whose port to the switch is `wan` and there already.
pub(crate) fn build(router: &str, namespace: &str, number: u8, mtu: u32, kind: Nat) -> Result<()> {
    netns::within(router, || netns::sysctl("net/ipv4/ip_forward", "1"))?;
    let (host, gateway) = (inside(number), Ipv4Addr::new(172, 31, number, 1));
    ip_batch(
        router,
        &[
            format!("link add lan mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}"),
            format!("addr add {gateway}/24 dev lan"),
            "link set lan up".to_owned(),
        ],
    )?;
    ip_batch(
        namespace,
        &[
            format!("addr add {host}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via {gateway}"),
        ],
    )?;
    let ports = match kind {
        Nat::KeepsPort => "",
        Nat::Symmetric => "random,fully-random",
    };
    let script = format!(
        "table ip lab_nat {{\n  chain out {{\n    type nat hook postrouting priority srcnat; policy accept;\n    \
         oifname \"wan\" masquerade {ports}\n  }}\n}}\ntable inet lab_wall {{\n  chain input {{\n    type filter hook \
         input priority 0; policy accept;\n    iifname \"wan\" ct state new drop\n  }}\n  chain forward {{\n    type \
         filter hook forward priority 0; policy accept;\n    iifname \"wan\" ct state new drop\n  }}\n}}\n"
    );
    nft(router, &script)
}

/// Lets a UDP port of a router lead to the host behind it, as a person sets in a home router.
pub(crate) fn forward(router: &str, number: u8, port: u16) -> Result<()> {
    let host = inside(number);
    let script = format!(
        "table ip lab_nat {{\n  chain in {{\n    type nat hook prerouting priority dstnat; policy accept;\n    iifname \"wan\" \
         udp dport {port} dnat to {host}\n  }}\n}}\ninsert rule inet lab_wall forward ct status dnat accept\n"
    );
    nft(router, &script)
}

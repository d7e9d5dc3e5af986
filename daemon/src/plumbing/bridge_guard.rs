//! The nft table `bridge NAME`: what containers on a bridge are bound to.
//!
//! Neighbours on a bridge reach each other without passing any other table of ours, and unfiltered; that is what the mode
//! is for. Nobody there may speak for another all the same: packets, ARP and neighbour advertisements are taken from each
//! port for its own addresses only, and nobody but the host is a router.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::PlumbingConfig;
use super::desired::Attachment;
use super::nft::line;

/// The script that installs the table.
#[must_use]
pub fn script(config: &PlumbingConfig, attachments: &[Attachment]) -> String {
    let (name, group) = (&config.nft_table, config.group);
    let ports: Vec<&Attachment> = attachments.iter().filter(|attachment| attachment.bridge.is_some()).collect();
    let mut text = String::with_capacity(2048);
    line(&mut text, 0, format_args!("table bridge {name}"));
    line(&mut text, 0, format_args!("delete table bridge {name}"));
    line(&mut text, 0, format_args!("table bridge {name} {{"));
    let bound = |wanted: fn(&IpAddr) -> bool| {
        let pairs =
            ports.iter().flat_map(|port| port.addresses.iter().map(move |address| (&port.host_ifname, address)));
        let list: Vec<String> = pairs
            .filter(|(_, address)| wanted(address))
            .map(|(ifname, address)| format!("\"{ifname}\" . {address}"))
            .collect();
        if list.is_empty() { String::new() } else { format!(" elements = {{ {} }}", list.join(", ")) }
    };
    let (v4, v6) = (bound(IpAddr::is_ipv4), bound(IpAddr::is_ipv6));
    line(&mut text, 1, format_args!("set bound4 {{ typeof iifname . ip saddr;{v4} }}"));
    line(&mut text, 1, format_args!("set bound6 {{ typeof iifname . ip6 saddr;{v6} }}"));
    line(&mut text, 1, format_args!("set boundarp {{ typeof iifname . arp saddr ip;{v4} }}"));
    let router = "nd-router-solicit, nd-router-advert, nd-redirect";
    let mut lines = vec![
        "chain prerouting {".to_owned(),
        "  type filter hook prerouting priority filter; policy accept;".to_owned(),
        format!("  iifgroup != {group} accept"),
        "  ether type arp iifname . arp saddr ip @boundarp accept".to_owned(),
        format!("  ether type ip6 icmpv6 type {{ {router} }} counter drop comment \"router messages of a container\""),
        "  ether type ip6 ip6 saddr fe80::1 counter drop comment \"the gateway's address\"".to_owned(),
        "  ether type ip6 icmpv6 type nd-neighbor-advert jump advert".to_owned(),
        "  ether type ip6 ip6 saddr { ::, fe80::/10 } icmpv6 type nd-neighbor-solicit accept".to_owned(),
        "  ether type ip iifname . ip saddr @bound4 accept".to_owned(),
        "  ether type ip6 iifname . ip6 saddr @bound6 accept".to_owned(),
        "  counter drop comment \"not bound to this port\"".to_owned(),
        "}".to_owned(),
        // The target stands behind eight bytes of the message.
        "chain advert {".to_owned(),
        "  @th,64,128 0xfe800000000000000000000000000001 counter drop comment \"the gateway's address\"".to_owned(),
        "  @th,64,10 0x3fa accept".to_owned(),
    ];
    for port in &ports {
        for address in &port.addresses {
            let IpAddr::V6(address) = address else { continue };
            let target = u128::from(*address);
            lines.push(format!("  iifname \"{}\" @th,64,128 0x{target:032x} accept", port.host_ifname));
        }
    }
    lines.push("  counter drop comment \"advertisement of another's address\"".to_owned());
    lines.push("}".to_owned());
    for content in lines {
        line(&mut text, 1, format_args!("{content}"));
    }
    writeln!(text, "}}").expect("writing to a String cannot fail");
    text
}

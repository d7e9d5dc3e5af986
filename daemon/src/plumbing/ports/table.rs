//! The nft table `inet NAME-nat`: what translates packets to published ports, as text.
//!
//! A packet to an address of this host gets the target's address, and its source where the answer would otherwise not come
//! back this way:
//!
//! | from | to a container of this host | to another host |
//! | --- | --- | --- |
//! | outside | kept | the host's overlay address |
//! | a container of this host | the service address | the host's overlay address |
//! | another host, by this host's overlay address | the host's overlay address | not carried on |
//! | this host | kept, or the host's overlay address instead of 127.0.0.0/8 | the host's overlay address |
//!
//! So packets of containers cross the TUN and the filter as all others do, and the answer to each packet comes back to
//! where the kernel knows its connection. The chains stand before those of others, and a source that is kept is kept
//! against later chains too.

use std::net::{IpAddr, SocketAddr};

use overlay_control::api::{PortProtocol, PublishedPort};

use super::super::PlumbingConfig;
use super::super::nft::line;
use super::service_addresses;

/// The name of the table. A hyphen is in no configured name, so it is nobody else's.
#[must_use]
pub fn table(config: &PlumbingConfig) -> String {
    format!("{}-nat", config.nft_table)
}

/// Where the server of names listens on an address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameServer {
    /// The address, whose port 53 leads there.
    pub address: IpAddr,
    /// The UDP port.
    pub udp: u16,
    /// The TCP port.
    pub tcp: u16,
}

/// The whole script that installs the table.
#[must_use]
pub fn script<'a>(
    config: &PlumbingConfig,
    names: &[NameServer],
    ports: impl Iterator<Item = &'a PublishedPort> + Clone,
) -> String {
    let name = table(config);
    let mut text = String::with_capacity(2048);
    // Adding first makes the deletion succeed on a host that has no such table.
    line(&mut text, 0, format_args!("table inet {name}"));
    line(&mut text, 0, format_args!("delete table inet {name}"));
    line(&mut text, 0, format_args!("table inet {name} {{"));
    for protocol in [PortProtocol::Tcp, PortProtocol::Udp] {
        published_set(&mut text, protocol, ports.clone());
    }
    loopback_guard(&mut text, config);
    name_servers(&mut text, names);
    translations(&mut text, ports);
    sources(&mut text, config);
    entrances(&mut text, config);
    line(&mut text, 0, format_args!("}}"));
    text
}

fn published_set<'a>(text: &mut String, protocol: PortProtocol, ports: impl Iterator<Item = &'a PublishedPort>) {
    let mut numbers: Vec<u16> = ports.filter(|port| port.protocol == protocol).map(|port| port.host_port).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let elements: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    let elements = match elements.is_empty() {
        true => String::new(),
        false => format!(" elements = {{ {} }}", elements.join(", ")),
    };
    line(text, 1, format_args!("set published_{protocol} {{ type inet_service;{elements} }}"));
}

/// Interfaces that take answers for 127.0.0.0/8 must take nothing else for it. Before tracking an answer still has the
/// address it was sent to.
fn loopback_guard(text: &mut String, config: &PlumbingConfig) {
    let (tun, group) = (&config.interface, config.group);
    for content in [
        "chain raw {".to_owned(),
        "  type filter hook prerouting priority raw - 10; policy accept;".to_owned(),
        format!("  iifgroup {group} ip daddr 127.0.0.0/8 counter drop comment \"loopback address of the host\""),
        format!("  iifname \"{tun}\" ip daddr 127.0.0.0/8 counter drop comment \"loopback address of the host\""),
        "}".to_owned(),
    ] {
        line(text, 1, format_args!("{content}"));
    }
}

/// Questions about names to this host's overlay addresses.
fn name_servers(text: &mut String, servers: &[NameServer]) {
    line(text, 1, format_args!("chain names {{"));
    for NameServer { address, udp, tcp } in servers {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        for (protocol, port) in [("udp", udp), ("tcp", tcp)] {
            let to = SocketAddr::new(*address, *port);
            line(text, 2, format_args!("{family} daddr {address} {protocol} dport 53 dnat {family} to {to}"));
        }
    }
    line(text, 1, format_args!("}}"));
}

/// One line for each port, in a chain that packets from elsewhere and those of this host share.
fn translations<'a>(text: &mut String, ports: impl Iterator<Item = &'a PublishedPort>) {
    line(text, 1, format_args!("chain published {{"));
    for port in ports {
        let family = if port.target.is_ipv4() { "ip" } else { "ip6" };
        let to = match port.host_ip {
            Some(ip) => format!("{family} daddr {ip}"),
            None if port.target.is_ipv4() => "meta nfproto ipv4".to_owned(),
            None => "ip6 daddr != ::1".to_owned(),
        };
        let (protocol, number, target) = (port.protocol, port.host_port, target(port.target));
        // The owner's characters are those of names.
        let owner = &port.owner;
        line(
            text,
            2,
            format_args!("{to} {protocol} dport {number} counter dnat {family} to {target} comment \"{owner}\""),
        );
    }
    line(text, 1, format_args!("}}"));
}

fn target(target: SocketAddr) -> String {
    target.to_string()
}

fn sources(text: &mut String, config: &PlumbingConfig) {
    let (tun, group) = (&config.interface, config.group);
    line(text, 1, format_args!("chain sources {{"));
    for ipv4 in [true, false] {
        let family = if ipv4 { "ip" } else { "ip6" };
        let of_family = |addresses: &[IpAddr]| addresses.iter().copied().find(|ip| ip.is_ipv4() == ipv4);
        let Some(host) = of_family(&config.host_addresses) else { continue };
        let own: Vec<String> =
            config.own_prefixes.iter().filter(|p| p.is_ipv4() == ipv4).map(ToString::to_string).collect();
        let own = own.join(", ");
        if ipv4 {
            line(text, 2, format_args!("ip saddr 127.0.0.0/8 snat ip to {host}"));
        }
        if let Some(service) = of_family(&service_addresses(config)) {
            let to = format!("{family} daddr {{ {own} }}");
            line(text, 2, format_args!("iifgroup {group} oifname \"{tun}\" {to} snat {family} to {service}"));
        }
        line(text, 2, format_args!("oifname \"{tun}\" {family} daddr != {{ {own} }} snat {family} to {host}"));
        line(text, 2, format_args!("iifname \"{tun}\" {family} daddr {{ {own} }} snat {family} to {host}"));
        line(text, 2, format_args!("snat {family} to {family} saddr"));
    }
    line(text, 1, format_args!("}}"));
}

fn entrances(text: &mut String, config: &PlumbingConfig) {
    let mut contents = Vec::new();
    // Packets from elsewhere for a loopback address are none; before a translation the kernel has not seen that yet.
    let guard = ["  ip daddr 127.0.0.0/8 return", "  ip6 daddr ::1 return"];
    let asks = format!("iifgroup {} ", config.group);
    for (hook, priority, asks, guard) in
        [("prerouting", "dstnat - 5", asks.as_str(), &guard[..]), ("output", "-105", "", &[])]
    {
        contents.push(format!("chain {hook} {{"));
        contents.push(format!("  type nat hook {hook} priority {priority}; policy accept;"));
        contents.extend(guard.iter().map(|&rule| rule.to_owned()));
        contents.push(format!("  {asks}meta l4proto {{ 6, 17 }} th dport 53 jump names"));
        for protocol in ["tcp", "udp"] {
            contents.push(format!("  {protocol} dport @published_{protocol} fib daddr type local jump published"));
        }
        contents.push("}".to_owned());
    }
    contents.push("chain postrouting {".to_owned());
    contents.push("  type nat hook postrouting priority srcnat - 5; policy accept;".to_owned());
    for (protocol, number) in [("tcp", 6), ("udp", 17)] {
        let translated = "ct status & dnat == dnat";
        contents.push(format!(
            "  {translated} meta l4proto {number} ct original proto-dst @published_{protocol} jump sources"
        ));
    }
    contents.push("}".to_owned());
    for content in contents {
        line(text, 1, format_args!("{content}"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::nft;
    use super::super::super::tests::config;
    use super::super::tests::publication;
    use super::*;

    #[test]
    fn each_port_is_one_line_with_its_owner() {
        let ports = [
            publication(None, 8080, "10.42.1.4:80", Some("web")).port,
            publication(None, 8080, "[fd42:0:0:1::4]:80", Some("web")).port,
            publication(Some("192.0.2.1"), 53, "10.42.2.4:5353", None).port,
        ];
        let names = [NameServer { address: "10.42.1.1".parse().unwrap(), udp: 4001, tcp: 4002 }];
        let text = script(&config(Path::new("/nowhere")), &names, ports.iter());
        for wanted in [
            "table inet overlay-nat {",
            "ip daddr 10.42.1.1 tcp dport 53 dnat ip to 10.42.1.1:4002",
            "iifgroup 42 meta l4proto { 6, 17 } th dport 53 jump names",
            "set published_tcp { type inet_service; elements = { 53, 8080 } }",
            "set published_udp { type inet_service; }",
            "meta nfproto ipv4 tcp dport 8080 counter dnat ip to 10.42.1.4:80 comment \"cli\"",
            "ip6 daddr != ::1 tcp dport 8080 counter dnat ip6 to [fd42:0:0:1::4]:80 comment \"cli\"",
            "ip daddr 192.0.2.1 tcp dport 53 counter dnat ip to 10.42.2.4:5353 comment \"cli\"",
            "iifgroup 42 oifname \"overlay0\" ip daddr { 10.42.1.0/24 } snat ip to 10.42.1.2",
            "oifname \"overlay0\" ip6 daddr != { fd42:0:0:1::/64 } snat ip6 to fd42:0:0:1::1",
        ] {
            assert!(text.contains(wanted), "{wanted}\nis not in\n{text}");
        }
    }

    #[test]
    fn kernel_takes_the_table() {
        let many: Vec<_> = (1..200)
            .map(|number| publication(None, number, &format!("10.42.1.{number}:80"), Some("web")).port)
            .collect();
        for ports in [&many[..], &[]] {
            let names =
                ["10.42.1.1", "fd42:0:0:1::1"].map(|ip| NameServer { address: ip.parse().unwrap(), udp: 1, tcp: 2 });
            let text = script(&config(Path::new("/nowhere")), &names, ports.iter());
            match nft::run(&["-c", "-f", "-"], &text) {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(said.contains("Operation not permitted"), "{said}\n{text}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

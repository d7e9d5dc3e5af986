//! Checks that need no tables and leave no state: addresses and messages that never belong on an overlay.
//!
//! Address blocks follow RFC 6890 and RFC 5735; IP options RFC 7126; routing headers RFC 5095.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_wire::packet::{Headers, Transport, protocol};

use crate::reason::DropReason;

/// The IPv4 address of most clouds' metadata service.
const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The IPv6 address of a cloud metadata service (`fd00:ec2::254`).
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254);

/// Refuses a packet by its headers alone.
#[inline]
pub(crate) fn check(headers: &Headers) -> Result<(), DropReason> {
    if headers.has_options || headers.has_source_route {
        if headers.has_source_route {
            return Err(DropReason::SourceRoute);
        }
        if headers.is_ipv4() {
            return Err(DropReason::IpOptions);
        }
    }
    addresses(headers.src, headers.dst)?;
    tunnel(headers.protocol)?;
    match headers.transport {
        Transport::Icmp(icmp) => message(headers.is_ipv4(), icmp.kind),
        Transport::Other => family(headers.is_ipv4(), headers.protocol),
        _ => Ok(()),
    }
}

/// Refuses ICMP of the other family, which has no meaning.
#[inline]
pub(crate) fn family(ipv4: bool, number: u8) -> Result<(), DropReason> {
    let other = if ipv4 { protocol::ICMPV6 } else { protocol::ICMP };
    if number == other { Err(DropReason::IcmpType) } else { Ok(()) }
}

/// Refuses addresses that never belong on an overlay.
#[inline]
pub(crate) fn addresses(src: IpAddr, dst: IpAddr) -> Result<(), DropReason> {
    if src == dst {
        return Err(DropReason::Land);
    }
    address(src)?;
    address(dst)
}

#[inline]
fn address(address: IpAddr) -> Result<(), DropReason> {
    match address {
        IpAddr::V4(v4) => address_v4(v4),
        IpAddr::V6(v6) => address_v6(v6),
    }
}

#[inline]
fn address_v4(v4: Ipv4Addr) -> Result<(), DropReason> {
    match v4.octets() {
        [0 | 127, ..] => Err(DropReason::Martian),
        [169, 254, ..] if v4 == METADATA_V4 => Err(DropReason::Metadata),
        [169, 254, ..] => Err(DropReason::LinkLocal),
        [224..=239, ..] => Err(DropReason::Multicast),
        [255, 255, 255, 255] => Err(DropReason::Broadcast),
        [240..=255, ..] => Err(DropReason::Martian),
        _ => Ok(()),
    }
}

#[inline]
fn address_v6(v6: Ipv6Addr) -> Result<(), DropReason> {
    let segments = v6.segments();
    match segments {
        [0xff00..=0xffff, ..] => Err(DropReason::Multicast),
        [0xfe80..=0xfebf, ..] => Err(DropReason::LinkLocal),
        // Site-local, deprecated (RFC 3879).
        [0xfec0..=0xfeff, ..] => Err(DropReason::Martian),
        // Unspecified, loopback, IPv4-mapped and IPv4-compatible.
        [0, 0, 0, 0, 0, ..] => Err(DropReason::Martian),
        // Discard only (RFC 6666).
        [0x100, 0, 0, 0, ..] => Err(DropReason::Martian),
        _ if v6 == METADATA_V6 => Err(DropReason::Metadata),
        _ => Ok(()),
    }
}

/// Refuses tunnels inside the overlay: they would carry inner packets past every check.
#[inline]
pub(crate) fn tunnel(number: u8) -> Result<(), DropReason> {
    if matches!(number, protocol::IPV4 | protocol::IPV6 | protocol::GRE) {
        return Err(DropReason::NestedTunnel);
    }
    Ok(())
}

/// Lets pass echo and the errors hosts need; refuses messages that configure hosts, and all else.
#[inline]
fn message(ipv4: bool, kind: u8) -> Result<(), DropReason> {
    match (ipv4, kind) {
        (true, 0 | 8 | 3 | 11 | 12) | (false, 128 | 129 | 1..=4) => Ok(()),
        // Redirect, router advertisement and solicitation.
        (true, 5 | 9 | 10) => Err(DropReason::IcmpControl),
        // Group membership, neighbour discovery, redirect.
        (false, 130..=137 | 143) => Err(DropReason::IcmpControl),
        _ => Err(DropReason::IcmpType),
    }
}

/// Whether an ICMP message asks for an echo.
#[inline]
pub(crate) fn is_echo_request(kind: u8) -> bool {
    matches!(kind, 8 | 128)
}

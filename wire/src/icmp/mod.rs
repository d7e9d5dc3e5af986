//! Building answers to a packet: ICMP and ICMPv6 errors, TCP resets and echo replies; and reading the packet quoted in
//! an error.
//!
//! Errors follow RFC 792, RFC 1122 section 3.2.2 and RFC 1812 section 4.3.2 (at most 576 bytes) for IPv4, RFC 4443
//! section 2.4 (at most 1,280 bytes) for IPv6. None is built in answer to an error or redirect, to a fragment other
//! than the first, to a multicast or broadcast destination, or to a source that names no single host. Rate limits are
//! the caller's.
//!
//! Every builder writes a whole IP packet into `out` and returns its length, or 0 when no answer may be sent or `out`
//! is too short.

mod quote;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};

pub use quote::{Quote, QuotedTransport, reported_mtu};

use crate::checksum;
use crate::packet::{Headers, IPV4_HEADER_LEN, IPV6_HEADER_LEN, TcpFlags, Transport, protocol};

/// Longest ICMP error packet (RFC 1812, section 4.3.2.3).
pub const MAX_IPV4_ERROR_LEN: usize = 576;
/// Longest ICMPv6 error packet: the minimum IPv6 MTU (RFC 4443, section 2.4).
pub const MAX_IPV6_ERROR_LEN: usize = 1280;
/// Time to live, or hop limit, of packets built here (the IANA recommended default).
pub const REPLY_TTL: u8 = 64;

/// DSCP CS6 for errors (RFC 1812, section 4.3.2.5: precedence 6).
const ERROR_TOS: u8 = 0xc0;
/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;
/// Bytes of a TCP header without options.
const TCP_LEN: usize = 20;

/// An error to report to a packet's sender.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IcmpError {
    /// The packet exceeds this MTU and must not be fragmented: 3/4 in IPv4, type 2 in IPv6.
    TooBig {
        /// The largest packet that fits, in bytes.
        mtu: u16,
    },
    /// No route to the destination: 3/0 and 1/0.
    NoRoute,
    /// The destination host does not answer: 3/1 and 1/3.
    HostUnreachable,
    /// Nothing listens on the port: 3/3 and 1/4.
    PortUnreachable,
    /// Policy forbids the packet: 3/13 and 1/1.
    AdminProhibited,
    /// The time to live or hop limit ran out: 11/0 and 3/0.
    TimeExceeded,
    /// Fragments did not arrive in time: 11/1 and 3/1.
    ReassemblyTimeout,
}

impl IcmpError {
    /// Type, code and the second header word.
    fn fields(self, is_ipv4: bool) -> (u8, u8, u32) {
        match (self, is_ipv4) {
            (Self::TooBig { mtu }, true) => (3, 4, mtu.into()),
            (Self::TooBig { mtu }, false) => (2, 0, mtu.into()),
            (Self::NoRoute, true) => (3, 0, 0),
            (Self::NoRoute, false) => (1, 0, 0),
            (Self::HostUnreachable, true) => (3, 1, 0),
            (Self::HostUnreachable, false) => (1, 3, 0),
            (Self::PortUnreachable, true) => (3, 3, 0),
            (Self::PortUnreachable, false) => (1, 4, 0),
            (Self::AdminProhibited, true) => (3, 13, 0),
            (Self::AdminProhibited, false) => (1, 1, 0),
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::ReassemblyTimeout, true) => (11, 1, 0),
            (Self::ReassemblyTimeout, false) => (3, 1, 0),
        }
    }
}

/// Builds fragmentation needed (IPv4) or packet too big (IPv6); see [`build_error`].
pub fn build_too_big(original: &[u8], headers: &Headers, source: IpAddr, mtu: u16, out: &mut [u8]) -> usize {
    build_error(original, headers, source, IcmpError::TooBig { mtu }, out)
}

/// Builds communication administratively prohibited; see [`build_error`].
pub fn build_admin_prohibited(original: &[u8], headers: &Headers, source: IpAddr, out: &mut [u8]) -> usize {
    build_error(original, headers, source, IcmpError::AdminProhibited, out)
}

/// Builds no route to destination; see [`build_error`].
pub fn build_unreachable(original: &[u8], headers: &Headers, source: IpAddr, out: &mut [u8]) -> usize {
    build_error(original, headers, source, IcmpError::NoRoute, out)
}

/// Builds time exceeded in transit; see [`build_error`].
pub fn build_time_exceeded(original: &[u8], headers: &Headers, source: IpAddr, out: &mut [u8]) -> usize {
    build_error(original, headers, source, IcmpError::TimeExceeded, out)
}

/// Builds an ICMP or ICMPv6 error from `source` to the sender of `original`, quoting as much of it as allowed.
///
/// Returns the length written; 0 when the rules forbid an error, `source` is of the other family, or `out` cannot hold
/// the error with at least the original's IP header and eight more bytes.
pub fn build_error(original: &[u8], headers: &Headers, source: IpAddr, error: IcmpError, out: &mut [u8]) -> usize {
    if !error_allowed(headers, error) || source.is_ipv4() != headers.is_ipv4() {
        return 0;
    }
    let Some(original) = original.get(..usize::from(headers.total_len)) else { return 0 };
    let (ip_len, max_len) =
        if headers.is_ipv4() { (IPV4_HEADER_LEN, MAX_IPV4_ERROR_LEN) } else { (IPV6_HEADER_LEN, MAX_IPV6_ERROR_LEN) };
    let quote_at = ip_len + ICMP_LEN;
    let quote_len = original.len().min(max_len.min(out.len()).saturating_sub(quote_at));
    if quote_len < original.len().min(usize::from(headers.l4_offset) + 8) {
        return 0;
    }
    let Some(packet) = out.get_mut(..quote_at + quote_len) else { return 0 };
    let (kind, code, word) = error.fields(headers.is_ipv4());
    packet[ip_len..quote_at].copy_from_slice(&icmp_header(kind, code, word));
    packet[quote_at..].copy_from_slice(&original[..quote_len]);
    finish_icmp(packet, ip_len, source, headers.src, ERROR_TOS)
}

/// Builds the reset that answers a TCP segment (RFC 9293, section 3.10.7.1), from its destination to its source.
///
/// Returns the length written; 0 for anything but a whole TCP segment without RST between two single hosts.
pub fn build_tcp_reset(headers: &Headers, out: &mut [u8]) -> usize {
    let Transport::Tcp(tcp) = headers.transport else { return 0 };
    if tcp.flags.rst() || headers.is_partial() || !is_single_host(headers.src) || !is_single_host(headers.dst) {
        return 0;
    }
    let ip_len = if headers.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
    let Some(packet) = out.get_mut(..ip_len + TCP_LEN) else { return 0 };
    let (seq, ack, flags) = if tcp.flags.ack() {
        (tcp.ack, 0, TcpFlags::RST)
    } else {
        // A TCP payload is below 65,536 bytes.
        let len = headers.payload_len() as u32 + u32::from(tcp.flags.syn()) + u32::from(tcp.flags.fin());
        (0, tcp.seq.wrapping_add(len), TcpFlags::RST | TcpFlags::ACK)
    };
    let segment = &mut packet[ip_len..];
    segment.fill(0);
    segment[..2].copy_from_slice(&tcp.dst_port.to_be_bytes());
    segment[2..4].copy_from_slice(&tcp.src_port.to_be_bytes());
    segment[4..8].copy_from_slice(&seq.to_be_bytes());
    segment[8..12].copy_from_slice(&ack.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    let pseudo = checksum::pseudo_header(headers.dst, headers.src, protocol::TCP, TCP_LEN as u16);
    let value = !checksum::add(pseudo, checksum::sum(segment));
    checksum::write_word(segment, 16, value);
    write_ip_header(packet, headers.dst, headers.src, protocol::TCP, 0)
}

/// Builds the echo reply to an echo request, from its destination to its source, with its payload and DSCP.
///
/// Returns the length written; 0 for anything but a whole echo request with a right checksum between two single hosts,
/// or when `out` cannot hold the whole reply.
pub fn build_echo_reply(original: &[u8], headers: &Headers, out: &mut [u8]) -> usize {
    let Transport::Icmp(icmp) = headers.transport else { return 0 };
    let (ip_len, request, reply) =
        if headers.is_ipv4() { (IPV4_HEADER_LEN, 8, 0) } else { (IPV6_HEADER_LEN, 128, 129) };
    if (icmp.kind, icmp.code) != (request, 0)
        || headers.is_partial()
        || !is_single_host(headers.src)
        || !is_single_host(headers.dst)
        || !checksum::verify_transport(original, headers)
    {
        return 0;
    }
    let Some(message) = original.get(usize::from(headers.l4_offset)..usize::from(headers.total_len)) else {
        return 0;
    };
    let Some(packet) = out.get_mut(..ip_len + message.len()) else { return 0 };
    packet[ip_len..].copy_from_slice(message);
    packet[ip_len] = reply;
    finish_icmp(packet, ip_len, headers.dst, headers.src, headers.tos & !crate::ecn::MASK)
}

/// Whether the rules allow this error in answer to this packet.
fn error_allowed(headers: &Headers, error: IcmpError) -> bool {
    let answers_error = match headers.transport {
        // A redirect is informational by number, but must not be answered either (RFC 4443, section 2.4 e.2).
        Transport::Icmp(icmp) => icmp.is_error || (!headers.is_ipv4() && icmp.kind == 137),
        _ => false,
    };
    // Packet too big answers multicast as well, so that path MTU discovery works for it (RFC 4443, section 2.4 e.3).
    let multicast_exempt = matches!((error, headers.dst), (IcmpError::TooBig { .. }, IpAddr::V6(_)));
    !answers_error
        && !headers.is_later_fragment()
        && is_single_host(headers.src)
        && (is_single_host(headers.dst) || (multicast_exempt && headers.dst.is_multicast()))
}

/// Whether an address names one host other than the reader itself.
fn is_single_host(address: IpAddr) -> bool {
    match address {
        // Class E and the limited broadcast address; the network 0 is "this host" (RFC 1122, section 3.2.1.3).
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            !v4.is_multicast() && first < 240 && first != 0 && first != 127 && v4 != Ipv4Addr::BROADCAST
        }
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified() && !v6.is_loopback(),
    }
}

fn icmp_header(kind: u8, code: u8, word: u32) -> [u8; ICMP_LEN] {
    let [a, b, c, d] = word.to_be_bytes();
    [kind, code, 0, 0, a, b, c, d]
}

/// Fills the ICMP checksum and the IP header of a packet whose message stands behind `ip_len` bytes.
fn finish_icmp(packet: &mut [u8], ip_len: usize, src: IpAddr, dst: IpAddr, tos: u8) -> usize {
    let message = &mut packet[ip_len..];
    checksum::write_word(message, 2, 0);
    let data = checksum::sum(message);
    let (kind, value) = if src.is_ipv4() {
        (protocol::ICMP, !data)
    } else {
        // A message is shorter than the packet that caused it or than 1,280 bytes.
        let pseudo = checksum::pseudo_header(src, dst, protocol::ICMPV6, message.len() as u16);
        (protocol::ICMPV6, !checksum::add(pseudo, data))
    };
    checksum::write_word(message, 2, value);
    write_ip_header(packet, src, dst, kind, tos)
}

/// Writes an IP header over the start of a packet already sized; returns the packet's length, 0 if it cannot be.
fn write_ip_header(packet: &mut [u8], src: IpAddr, dst: IpAddr, protocol: u8, tos: u8) -> usize {
    let ip_len = crate::ipip::outer_len(dst);
    let Some(payload_len) = packet.len().checked_sub(ip_len).and_then(|len| u16::try_from(len).ok()) else {
        return 0;
    };
    let header = crate::ipip::Outer { src, dst, protocol, tos, ttl: REPLY_TTL, payload_len };
    header.emit(packet).map_or(0, |_| packet.len())
}

//! Reading the packet quoted in an ICMP or ICMPv6 error.
//!
//! A quote may end anywhere behind the IP header and eight bytes (RFC 792), so it is read more leniently than a packet:
//! lengths are not checked against the bytes there are, and of TCP only ports and sequence number are read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::extension::Chain;
use crate::packet::{Headers, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Transport, protocol};

/// The packet an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote {
    /// Its source: the host the error is sent to, unless an address was translated on the way.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Its upper-layer protocol.
    pub protocol: u8,
    /// Its total length, as it claims.
    pub total_len: u32,
    /// Where it starts in the packet that carries the error.
    pub offset: u16,
    /// Where its upper-layer header starts in the packet that carries the error.
    pub l4_offset: u16,
    /// Its upper-layer header, as far as eight bytes show it.
    pub transport: QuotedTransport,
}

/// The first eight bytes of a quoted upper-layer header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuotedTransport {
    /// TCP.
    Tcp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Sequence number.
        seq: u32,
    },
    /// UDP.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The fifth and sixth byte: the identifier of an echo.
        id: u16,
    },
    /// Another protocol.
    Other,
    /// A fragment other than the first.
    LaterFragment,
}

impl Quote {
    /// Reads the quote of an error; `headers` must come from this packet.
    ///
    /// `None` when the packet is no error, or quotes less than the IP header and eight bytes behind it, or the quote is
    /// not of the error's own family.
    #[must_use]
    pub fn parse(packet: &[u8], headers: &Headers) -> Option<Self> {
        match headers.transport {
            Transport::Icmp(icmp) if icmp.is_error && !headers.is_partial() => {}
            _ => return None,
        }
        let start = headers.payload_offset();
        let quoted = packet.get(start..usize::from(headers.total_len))?;
        if headers.is_ipv4() { Self::parse_ipv4(quoted, start) } else { Self::parse_ipv6(quoted, start) }
    }

    fn parse_ipv4(quoted: &[u8], start: usize) -> Option<Self> {
        let fixed = quoted.first_chunk::<IPV4_HEADER_LEN>()?;
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        if fixed[0] >> 4 != 4 || header_len < IPV4_HEADER_LEN {
            return None;
        }
        let is_later = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff != 0;
        Some(Self {
            src: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
            dst: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
            protocol: fixed[9],
            total_len: u16::from_be_bytes([fixed[2], fixed[3]]).into(),
            offset: u16::try_from(start).ok()?,
            l4_offset: u16::try_from(start + header_len).ok()?,
            transport: QuotedTransport::parse(quoted.get(header_len..)?, fixed[9], protocol::ICMP, is_later)?,
        })
    }

    fn parse_ipv6(quoted: &[u8], start: usize) -> Option<Self> {
        let fixed = quoted.first_chunk::<IPV6_HEADER_LEN>()?;
        if fixed[0] >> 4 != 6 {
            return None;
        }
        let total_len = 40 + u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let chain = Chain::walk(quoted, fixed[6], u16::try_from(total_len).unwrap_or(u16::MAX)).ok()?;
        let is_later = chain.fragment.is_some_and(|fragment| fragment.offset_bytes != 0);
        let l4 = quoted.get(usize::from(chain.l4_offset)..)?;
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&fixed[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Some(Self {
            src: address(8),
            dst: address(24),
            protocol: chain.protocol,
            total_len,
            offset: u16::try_from(start).ok()?,
            l4_offset: u16::try_from(start + usize::from(chain.l4_offset)).ok()?,
            transport: QuotedTransport::parse(l4, chain.protocol, protocol::ICMPV6, is_later)?,
        })
    }

    /// Source and destination port of a quoted TCP or UDP packet.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.transport {
            QuotedTransport::Tcp { src_port, dst_port, .. } | QuotedTransport::Udp { src_port, dst_port } => {
                Some((src_port, dst_port))
            }
            _ => None,
        }
    }
}

impl QuotedTransport {
    /// `None` when a protocol we know has fewer than eight bytes quoted.
    fn parse(bytes: &[u8], kind: u8, icmp: u8, is_later: bool) -> Option<Self> {
        if is_later {
            return Some(Self::LaterFragment);
        }
        if !matches!(kind, protocol::TCP | protocol::UDP) && kind != icmp {
            return Some(Self::Other);
        }
        let first = bytes.first_chunk::<8>()?;
        let src_port = u16::from_be_bytes([first[0], first[1]]);
        let dst_port = u16::from_be_bytes([first[2], first[3]]);
        Some(match kind {
            protocol::TCP => {
                let seq = u32::from_be_bytes([first[4], first[5], first[6], first[7]]);
                Self::Tcp { src_port, dst_port, seq }
            }
            protocol::UDP => Self::Udp { src_port, dst_port },
            _ => Self::Icmp { kind: first[0], code: first[1], id: u16::from_be_bytes([first[4], first[5]]) },
        })
    }
}

/// The MTU reported by a fragmentation needed or packet too big message; `None` for anything else.
///
/// Zero in IPv4 means a router older than RFC 1191 that reports none. `headers` must come from this packet.
#[must_use]
pub fn reported_mtu(packet: &[u8], headers: &Headers) -> Option<u32> {
    let Transport::Icmp(icmp) = headers.transport else { return None };
    let word = packet.get(usize::from(headers.l4_offset) + 4..)?.first_chunk::<4>()?;
    match (headers.is_ipv4(), icmp.kind, icmp.code) {
        (true, 3, 4) => Some(u16::from_be_bytes([word[2], word[3]]).into()),
        (false, 2, _) => Some(u32::from_be_bytes(*word)),
        _ => None,
    }
}

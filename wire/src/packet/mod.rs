//! One-pass parse of an inner IP packet into a small value.
//!
//! [`Headers`] is `Copy` and borrows nothing: it is made once per packet (or super-packet) and every later stage reads
//! it instead of the bytes. Lengths are checked here and nowhere else: `total_len <= packet.len()`, `l4_offset <=
//! total_len`, and the whole TCP, UDP or ICMP header lies inside `total_len` whenever [`Transport`] says so.
//!
//! Follows RFC 791 and RFC 1858 (IPv4 and its fragments), RFC 8200 and RFC 7112 (IPv6 and its header chain), RFC 9293
//! (TCP), RFC 768 (UDP), RFC 792 and RFC 4443 (ICMP).

pub(crate) mod extension;
mod tcp_options;
mod transport;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use tcp_options::{TcpOption, TcpOptions};
pub use transport::{Icmp, Tcp, TcpFlags, Transport, Udp};

/// IP protocol numbers used by the overlay (IANA registry "Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 inside IP (RFC 2003).
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 inside IP (RFC 4213).
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Generic routing encapsulation.
    pub const GRE: u8 = 47;
    /// Encapsulating security payload.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// No next header (RFC 8200, section 4.7).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
}

/// Length of an IPv4 header without options, in bytes.
pub const IPV4_HEADER_LEN: usize = 20;
/// Length of the fixed IPv6 header, in bytes.
pub const IPV6_HEADER_LEN: usize = 40;
/// Most IPv6 extension headers accepted in one packet; more serve only to hide the upper layer.
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// Most bytes of IPv6 extension headers accepted in one packet.
pub const MAX_EXTENSION_BYTES: usize = 256;

/// Where a fragment lies in its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Place of the payload in the datagram, in bytes; a multiple of eight.
    pub offset_bytes: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// What one pass over a packet's headers found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Final upper-layer protocol, behind any IPv6 extension headers.
    pub protocol: u8,
    /// Offset of the upper-layer header, or of the payload of a later fragment.
    pub l4_offset: u16,
    /// Length of the whole IP packet; bytes behind it are padding.
    pub total_len: u16,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// DSCP (upper six bits) and ECN (lower two).
    pub tos: u8,
    /// Whether routers must not fragment; always true in IPv6.
    pub dont_fragment: bool,
    /// Set when the packet is a fragment, also an IPv6 atomic one.
    pub fragment: Option<Fragment>,
    /// IPv4 loose or strict source route, IPv6 routing header type 0 or any with segments left.
    pub has_source_route: bool,
    /// IPv4 options, or IPv6 extension headers other than the fragment header.
    pub has_options: bool,
    /// The upper-layer header.
    pub transport: Transport,
}

/// Why a packet could not be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No bytes at all.
    #[error("packet is empty")]
    Empty,
    /// The version nibble is neither 4 nor 6.
    #[error("IP version {0} is neither 4 nor 6")]
    Version(u8),
    /// The bytes end before the IP header does.
    #[error("IP header needs {needed} bytes, {available} available")]
    IpHeaderCut {
        /// Bytes the header needs.
        needed: u16,
        /// Bytes there are.
        available: u16,
    },
    /// The IPv4 header length field is below five words or beyond the packet.
    #[error("IPv4 header length of {0} bytes is invalid")]
    Ipv4HeaderLength(u8),
    /// The length field claims more than was received, less than the header, or more than 65,535 bytes.
    #[error("IP length field says {claimed} bytes, {available} available")]
    TotalLength {
        /// What the length field amounts to.
        claimed: u32,
        /// Bytes there are.
        available: u32,
    },
    /// An IPv4 option runs past the header or has a length below two.
    #[error("IPv4 option {kind} at byte {offset} is malformed")]
    Ipv4Option {
        /// The option's type.
        kind: u8,
        /// Its place in the packet.
        offset: u8,
    },
    /// The fragment's end lies beyond 65,535 bytes, or a fragment other than the last is not a multiple of eight.
    #[error("fragment at offset {offset_bytes} with {len} bytes is invalid")]
    Fragment {
        /// Place in the datagram.
        offset_bytes: u16,
        /// Bytes carried.
        len: u16,
    },
    /// An IPv6 extension header is cut off, repeated where it must not be, or out of place.
    #[error("IPv6 extension header {kind} at byte {offset} is malformed")]
    ExtensionHeader {
        /// Its protocol number.
        kind: u8,
        /// Its place in the packet.
        offset: u16,
    },
    /// More extension headers, or bytes of them, than accepted.
    #[error("IPv6 extension headers exceed {MAX_EXTENSION_HEADERS} headers or {MAX_EXTENSION_BYTES} bytes")]
    ExtensionLimit,
    /// The packet, or first fragment, ends inside the upper-layer header.
    #[error("header of protocol {protocol} needs {needed} bytes, {available} available")]
    TransportCut {
        /// The upper-layer protocol.
        protocol: u8,
        /// Bytes the header needs.
        needed: u16,
        /// Bytes there are.
        available: u16,
    },
    /// A length field inside the upper-layer header contradicts the packet.
    #[error("length field of protocol {protocol} says {claimed} bytes, {available} available")]
    TransportLength {
        /// The upper-layer protocol.
        protocol: u8,
        /// What the field amounts to.
        claimed: u16,
        /// Bytes there are.
        available: u16,
    },
}

impl ParseError {
    /// A short, stable name fit for a counter label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Version(_) => "ip_version",
            Self::IpHeaderCut { .. } => "ip_header_cut",
            Self::Ipv4HeaderLength(_) => "ipv4_header_length",
            Self::TotalLength { .. } => "ip_length",
            Self::Ipv4Option { .. } => "ipv4_option",
            Self::Fragment { .. } => "fragment_invalid",
            Self::ExtensionHeader { .. } => "ipv6_extension",
            Self::ExtensionLimit => "ipv6_extension_limit",
            Self::TransportCut { .. } => "transport_cut",
            Self::TransportLength { .. } => "transport_length",
        }
    }
}

impl Headers {
    /// Parses the headers of an IPv4 or IPv6 packet.
    ///
    /// # Errors
    /// When a header is cut off, a length contradicts another, or the extension headers exceed the limits.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        match packet.first() {
            Some(first) if first >> 4 == 4 => Self::parse_ipv4(packet),
            Some(first) if first >> 4 == 6 => Self::parse_ipv6(packet),
            Some(first) => Err(ParseError::Version(first >> 4)),
            None => Err(ParseError::Empty),
        }
    }

    #[inline(always)]
    fn parse_ipv4(packet: &[u8]) -> Result<Self, ParseError> {
        let Some(fixed) = packet.first_chunk::<IPV4_HEADER_LEN>() else {
            return Err(ParseError::IpHeaderCut { needed: 20, available: clip(packet.len()) });
        };
        let header_len = (fixed[0] & 0x0f) * 4;
        if header_len < 20 {
            return Err(ParseError::Ipv4HeaderLength(header_len));
        }
        let total_len = u16::from_be_bytes([fixed[2], fixed[3]]);
        if usize::from(total_len) > packet.len() || total_len < u16::from(header_len) {
            return Err(ParseError::TotalLength { claimed: total_len.into(), available: clip32(packet.len()) });
        }
        let has_options = header_len > 20;
        let has_source_route = has_options && ipv4_options_hold_source_route(packet, header_len)?;
        let word = u16::from_be_bytes([fixed[6], fixed[7]]);
        let payload_len = total_len - u16::from(header_len);
        let fragment = if word & 0x3fff == 0 {
            None
        } else {
            let id = u16::from_be_bytes([fixed[4], fixed[5]]);
            Some(Fragment::checked(id.into(), (word & 0x1fff) * 8, word & 0x2000 != 0, payload_len)?)
        };
        let protocol = fixed[9];
        let l4_offset = u16::from(header_len);
        let transport = Transport::parse(packet, protocol, l4_offset, total_len, fragment, Family::V4)?;
        Ok(Self {
            src: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
            dst: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
            protocol,
            l4_offset,
            total_len,
            ttl: fixed[8],
            tos: fixed[1],
            dont_fragment: word & 0x4000 != 0,
            fragment,
            has_source_route,
            has_options,
            transport,
        })
    }

    #[inline(always)]
    fn parse_ipv6(packet: &[u8]) -> Result<Self, ParseError> {
        let Some(fixed) = packet.first_chunk::<IPV6_HEADER_LEN>() else {
            return Err(ParseError::IpHeaderCut { needed: 40, available: clip(packet.len()) });
        };
        let claimed = 40 + u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let total_len = match u16::try_from(claimed) {
            Ok(len) if usize::from(len) <= packet.len() => len,
            _ => return Err(ParseError::TotalLength { claimed, available: clip32(packet.len()) }),
        };
        let chain = extension::Chain::walk(packet, fixed[6], total_len)?;
        let transport =
            Transport::parse(packet, chain.protocol, chain.l4_offset, total_len, chain.fragment, Family::V6)?;
        Ok(Self {
            src: ipv6_at::<8>(fixed),
            dst: ipv6_at::<24>(fixed),
            protocol: chain.protocol,
            l4_offset: chain.l4_offset,
            total_len,
            ttl: fixed[7],
            tos: fixed[0] << 4 | fixed[1] >> 4,
            dont_fragment: true,
            fragment: chain.fragment,
            has_source_route: chain.has_source_route,
            has_options: chain.has_options,
            transport,
        })
    }

    /// Whether the packet is IPv4.
    #[inline]
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.src.is_ipv4()
    }

    /// Length of the transport header in bytes; zero where none was parsed.
    #[inline]
    #[must_use]
    pub fn l4_header_len(&self) -> usize {
        match self.transport {
            Transport::Tcp(tcp) => tcp.header_len.into(),
            Transport::Udp(_) | Transport::Icmp(_) => 8,
            Transport::Other | Transport::None => 0,
        }
    }

    /// Bytes behind the transport header, up to the end of the IP packet.
    #[inline]
    #[must_use]
    pub fn payload_len(&self) -> usize {
        usize::from(self.total_len).saturating_sub(self.payload_offset())
    }

    /// Offset of the first byte behind the transport header.
    #[inline]
    #[must_use]
    pub fn payload_offset(&self) -> usize {
        usize::from(self.l4_offset) + self.l4_header_len()
    }

    /// Source and destination port of TCP and UDP.
    #[inline]
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.transport {
            Transport::Tcp(tcp) => Some((tcp.src_port, tcp.dst_port)),
            Transport::Udp(udp) => Some((udp.src_port, udp.dst_port)),
            Transport::Icmp(_) | Transport::Other | Transport::None => None,
        }
    }

    /// The TCP header, if there is one.
    #[inline]
    #[must_use]
    pub fn tcp(&self) -> Option<&Tcp> {
        match &self.transport {
            Transport::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }

    /// Whether the packet is a fragment other than the first, so that it holds no transport header.
    #[inline]
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset_bytes != 0)
    }

    /// Whether the packet is one of several fragments, so that its transport checksum cannot be verified alone.
    #[inline]
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.more || fragment.offset_bytes != 0)
    }

    /// The two ECN bits.
    #[inline]
    #[must_use]
    pub fn ecn(&self) -> u8 {
        self.tos & 0b11
    }
}

impl Fragment {
    #[inline]
    fn checked(id: u32, offset_bytes: u16, more: bool, len: u16) -> Result<Self, ParseError> {
        let beyond = u32::from(offset_bytes) + u32::from(len) > 65_535;
        if beyond || (more && (!len.is_multiple_of(8) || len == 0)) || (offset_bytes != 0 && len == 0) {
            return Err(ParseError::Fragment { offset_bytes, len });
        }
        Ok(Self { id, offset_bytes, more })
    }
}

/// The family the upper layer rides on; it decides which ICMP is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Walks the options of an IPv4 header whose bounds are already checked.
#[cold]
fn ipv4_options_hold_source_route(packet: &[u8], header_len: u8) -> Result<bool, ParseError> {
    let mut found = false;
    for option in Ipv4Options::new(packet, header_len) {
        let option = option?;
        found |= matches!(option.kind, 0x83 | 0x89);
    }
    Ok(found)
}

/// One IPv4 option other than padding, as a byte range of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ipv4Option {
    /// Type byte: copied flag, class and number.
    pub(crate) kind: u8,
    /// Offset in the packet.
    pub(crate) offset: u8,
    /// Length with the type and length bytes.
    pub(crate) len: u8,
}

/// Iterates over the options of an IPv4 header up to the end-of-list option; padding is skipped.
pub(crate) struct Ipv4Options<'a> {
    header: &'a [u8],
    next: usize,
}

impl<'a> Ipv4Options<'a> {
    pub(crate) fn new(packet: &'a [u8], header_len: u8) -> Self {
        Self { header: packet.get(..usize::from(header_len)).unwrap_or_default(), next: IPV4_HEADER_LEN }
    }
}

impl Iterator for Ipv4Options<'_> {
    type Item = Result<Ipv4Option, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = self.next;
            let kind = *self.header.get(at)?;
            // A header is at most 60 bytes, so both fit.
            let offset = at as u8;
            match kind {
                0 => {
                    self.next = self.header.len();
                    return None;
                }
                1 => self.next += 1,
                _ => {
                    let len = self.header.get(at + 1).copied().unwrap_or(0);
                    if len < 2 || at + usize::from(len) > self.header.len() {
                        self.next = self.header.len();
                        return Some(Err(ParseError::Ipv4Option { kind, offset }));
                    }
                    self.next += usize::from(len);
                    return Some(Ok(Ipv4Option { kind, offset, len }));
                }
            }
        }
    }
}

#[inline]
fn ipv6_at<const AT: usize>(fixed: &[u8; IPV6_HEADER_LEN]) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&fixed[AT..AT + 16]);
    IpAddr::V6(Ipv6Addr::from(octets))
}

/// A length for an error message; anything above the field's range reads as its maximum.
fn clip(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn clip32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

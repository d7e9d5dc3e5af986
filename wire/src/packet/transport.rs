//! The upper-layer headers the overlay understands: TCP, UDP, ICMP and ICMPv6.

use super::{Family, Fragment, ParseError, TcpOption, TcpOptions, protocol};

/// The upper-layer header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// ICMP or ICMPv6, by the packet's family.
    Icmp(Icmp),
    /// Another protocol, not looked into.
    Other,
    /// None: a fragment other than the first, or no next header.
    None,
}

/// The TCP flag byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TcpFlags(pub u8);

/// The fixed part of a TCP header, and the window scale of a SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; meaningful when [`TcpFlags::ack`] is set.
    pub ack: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// Window as written, not scaled.
    pub window: u16,
    /// Header length with options, in bytes: 20 to 60.
    pub header_len: u8,
    /// Window scale option of a SYN, 0 to 14 (RFC 7323, section 2.2); `None` otherwise.
    pub window_scale: Option<u8>,
}

/// A UDP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Udp {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Length field: header and payload of the whole datagram.
    pub length: u16,
}

/// The first eight bytes of an ICMP or ICMPv6 message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier of an echo, timestamp, information or address mask message.
    pub id: Option<u16>,
    /// Whether the message reports an error (or a redirect) and quotes a packet.
    pub is_error: bool,
}

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number is meaningful.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is meaningful.
    pub const URG: u8 = 0x20;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;

    /// Whether every flag of `mask` is set.
    #[inline]
    #[must_use]
    pub fn contains(self, mask: u8) -> bool {
        self.0 & mask == mask
    }

    /// Whether FIN is set.
    #[inline]
    #[must_use]
    pub fn fin(self) -> bool {
        self.contains(Self::FIN)
    }

    /// Whether SYN is set.
    #[inline]
    #[must_use]
    pub fn syn(self) -> bool {
        self.contains(Self::SYN)
    }

    /// Whether RST is set.
    #[inline]
    #[must_use]
    pub fn rst(self) -> bool {
        self.contains(Self::RST)
    }

    /// Whether ACK is set.
    #[inline]
    #[must_use]
    pub fn ack(self) -> bool {
        self.contains(Self::ACK)
    }
}

impl Transport {
    /// Parses the header at `l4_offset`, which lies within `total_len`, which lies within the packet.
    #[inline(always)]
    pub(super) fn parse(
        packet: &[u8],
        kind: u8,
        l4_offset: u16,
        total_len: u16,
        fragment: Option<Fragment>,
        family: Family,
    ) -> Result<Self, ParseError> {
        if fragment.is_some_and(|fragment| fragment.offset_bytes != 0) {
            return Ok(Self::None);
        }
        let Some(segment) = packet.get(usize::from(l4_offset)..usize::from(total_len)) else {
            return Ok(Self::None);
        };
        match (kind, family) {
            (protocol::TCP, _) => Tcp::parse(segment).map(Self::Tcp),
            (protocol::UDP, _) => Udp::parse(segment, fragment.is_some_and(|f| f.more)).map(Self::Udp),
            (protocol::ICMP, Family::V4) | (protocol::ICMPV6, Family::V6) => {
                Icmp::parse(segment, kind, family).map(Self::Icmp)
            }
            (protocol::NO_NEXT_HEADER, Family::V6) => Ok(Self::None),
            _ => Ok(Self::Other),
        }
    }
}

impl Tcp {
    #[inline(always)]
    fn parse(segment: &[u8]) -> Result<Self, ParseError> {
        let Some(fixed) = segment.first_chunk::<20>() else {
            return Err(cut(protocol::TCP, 20, segment));
        };
        let header_len = (fixed[12] >> 4) * 4;
        if header_len < 20 {
            return Err(ParseError::TransportLength {
                protocol: protocol::TCP,
                claimed: header_len.into(),
                available: segment.len() as u16,
            });
        }
        let Some(header) = segment.get(..usize::from(header_len)) else {
            return Err(cut(protocol::TCP, header_len.into(), segment));
        };
        let flags = TcpFlags(fixed[13]);
        Ok(Self {
            src_port: u16::from_be_bytes([fixed[0], fixed[1]]),
            dst_port: u16::from_be_bytes([fixed[2], fixed[3]]),
            seq: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ack: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            flags,
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            header_len,
            window_scale: if flags.syn() { window_scale(header) } else { None },
        })
    }
}

#[cold]
fn window_scale(header: &[u8]) -> Option<u8> {
    TcpOptions::new(header).find_map(|option| match option {
        TcpOption::WindowScale(shift) => Some(shift.min(14)),
        _ => None,
    })
}

impl Udp {
    #[inline(always)]
    fn parse(segment: &[u8], more_fragments: bool) -> Result<Self, ParseError> {
        let Some(fixed) = segment.first_chunk::<8>() else {
            return Err(cut(protocol::UDP, 8, segment));
        };
        let length = u16::from_be_bytes([fixed[4], fixed[5]]);
        if length < 8 || (!more_fragments && usize::from(length) > segment.len()) {
            return Err(ParseError::TransportLength {
                protocol: protocol::UDP,
                claimed: length,
                available: segment.len() as u16,
            });
        }
        Ok(Self {
            src_port: u16::from_be_bytes([fixed[0], fixed[1]]),
            dst_port: u16::from_be_bytes([fixed[2], fixed[3]]),
            length,
        })
    }
}

impl Icmp {
    #[inline(always)]
    fn parse(segment: &[u8], protocol: u8, family: Family) -> Result<Self, ParseError> {
        let Some(fixed) = segment.first_chunk::<8>() else {
            return Err(cut(protocol, 8, segment));
        };
        let kind = fixed[0];
        let has_id = match family {
            Family::V4 => matches!(kind, 0 | 8 | 13..=18),
            Family::V6 => matches!(kind, 128 | 129),
        };
        let is_error = match family {
            Family::V4 => matches!(kind, 3 | 4 | 5 | 11 | 12),
            Family::V6 => kind < 128,
        };
        let id = if has_id { Some(u16::from_be_bytes([fixed[4], fixed[5]])) } else { None };
        Ok(Self { kind, code: fixed[1], id, is_error })
    }
}

/// A segment lies within `total_len`, so its length fits a u16.
#[cold]
fn cut(protocol: u8, needed: u16, segment: &[u8]) -> ParseError {
    ParseError::TransportCut { protocol, needed, available: segment.len() as u16 }
}

//! IP in IP: IPv4 (protocol 4, RFC 2003) or IPv6 (protocol 41, RFC 4213 and RFC 2473) directly inside an outer IP
//! header, and that outer header itself.
//!
//! All four pairs are covered: 4in4, 6in4, 4in6, 6in6. There is no header between the two.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum;
use crate::packet::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, protocol};

/// The time to live, or hop limit, of outer headers (the IANA recommended default).
pub const OUTER_TTL: u8 = 64;

/// An outer header, as received or to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// Underlay source.
    pub src: IpAddr,
    /// Underlay destination; the same family as the source.
    pub dst: IpAddr,
    /// Protocol of what follows: 4, 41 or 47.
    pub protocol: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Bytes behind the outer header.
    pub payload_len: u16,
}

/// Why an outer header or its payload was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IpipError {
    /// The bytes end before the header does.
    #[error("outer IP header needs {needed} bytes, {available} available")]
    Cut {
        /// Bytes the header needs.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// The version nibble is not the expected one.
    #[error("IP version {found} where {expected} belongs")]
    Version {
        /// 4 or 6.
        expected: u8,
        /// The nibble found.
        found: u8,
    },
    /// A length field contradicts the received bytes.
    #[error("outer IP length field says {claimed} bytes, {available} available")]
    Length {
        /// What the length field amounts to.
        claimed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// The outer packet is a fragment; reassembly is the kernel's work, before we see it.
    #[error("outer packet is a fragment")]
    Fragment,
    /// The outer protocol number carries no IP packet.
    #[error("protocol {0} does not carry an IP packet")]
    Protocol(u8),
    /// The payload is empty.
    #[error("outer packet carries nothing")]
    Empty,
}

/// The protocol number that announces this inner packet: 4 for IPv4, 41 for IPv6, `None` for anything else.
#[inline]
#[must_use]
pub fn protocol_for(inner: &[u8]) -> Option<u8> {
    match inner.first()? >> 4 {
        4 => Some(protocol::IPV4),
        6 => Some(protocol::IPV6),
        _ => None,
    }
}

/// Length of an outer header without options to this underlay address.
#[inline]
#[must_use]
pub fn outer_len(underlay: IpAddr) -> usize {
    if underlay.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN }
}

/// Checks that the payload of an outer packet has the IP version its protocol number announces.
///
/// # Errors
/// When the protocol is neither 4 nor 41, the payload is empty, or the version differs.
#[inline]
pub fn check_inner(outer_protocol: u8, inner: &[u8]) -> Result<(), IpipError> {
    let expected = match outer_protocol {
        protocol::IPV4 => 4,
        protocol::IPV6 => 6,
        other => return Err(IpipError::Protocol(other)),
    };
    match inner.first().ok_or(IpipError::Empty)? >> 4 {
        found if found == expected => Ok(()),
        found => Err(IpipError::Version { expected, found }),
    }
}

impl Outer {
    /// Parses the outer IPv4 header that a raw IPv4 socket delivers, and returns it with the payload behind it.
    ///
    /// Options are skipped; bytes behind the total length are left out.
    ///
    /// # Errors
    /// When the header is cut off, not IPv4, contradicts the length received, or belongs to a fragment.
    #[inline]
    pub fn parse_ipv4(datagram: &[u8]) -> Result<(Self, &[u8]), IpipError> {
        let available = datagram.len();
        let Some(fixed) = datagram.first_chunk::<IPV4_HEADER_LEN>() else {
            return Err(IpipError::Cut { needed: IPV4_HEADER_LEN, available });
        };
        if fixed[0] >> 4 != 4 {
            return Err(IpipError::Version { expected: 4, found: fixed[0] >> 4 });
        }
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        let claimed = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_len < IPV4_HEADER_LEN {
            return Err(IpipError::Length { claimed: header_len, available });
        }
        let Some(payload) = datagram.get(header_len..claimed) else {
            return Err(IpipError::Length { claimed, available });
        };
        if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0 {
            return Err(IpipError::Fragment);
        }
        let outer = Self {
            src: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
            dst: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
            protocol: fixed[9],
            tos: fixed[1],
            ttl: fixed[8],
            // The payload lies within the total length, a u16.
            payload_len: payload.len() as u16,
        };
        Ok((outer, payload))
    }

    /// Parses an outer IPv6 header without extension headers, and returns it with the payload behind it.
    ///
    /// A raw IPv6 socket delivers the payload alone, with addresses and traffic class beside it; this form is for
    /// captures and for sockets that deliver whole packets.
    ///
    /// # Errors
    /// When the header is cut off, not IPv6, or contradicts the length received.
    #[inline]
    pub fn parse_ipv6(datagram: &[u8]) -> Result<(Self, &[u8]), IpipError> {
        let available = datagram.len();
        let Some(fixed) = datagram.first_chunk::<IPV6_HEADER_LEN>() else {
            return Err(IpipError::Cut { needed: IPV6_HEADER_LEN, available });
        };
        if fixed[0] >> 4 != 6 {
            return Err(IpipError::Version { expected: 6, found: fixed[0] >> 4 });
        }
        let payload_len = u16::from_be_bytes([fixed[4], fixed[5]]);
        let claimed = IPV6_HEADER_LEN + usize::from(payload_len);
        let Some(payload) = datagram.get(IPV6_HEADER_LEN..claimed) else {
            return Err(IpipError::Length { claimed, available });
        };
        if fixed[6] == protocol::FRAGMENT {
            return Err(IpipError::Fragment);
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&fixed[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let outer = Self {
            src: address(8),
            dst: address(24),
            protocol: fixed[6],
            tos: fixed[0] << 4 | fixed[1] >> 4,
            ttl: fixed[7],
            payload_len,
        };
        Ok((outer, payload))
    }

    /// Length of the header in bytes.
    #[inline]
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        outer_len(self.dst)
    }

    /// Writes the header to the start of `out`: IPv4 with DF, identification 0 (RFC 6864) and a right checksum, or IPv6
    /// with flow label 0. Returns its length.
    ///
    /// Returns `None` when the buffer is too short, the families differ, or the packet would exceed 65,535 bytes.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = out.first_chunk_mut::<IPV4_HEADER_LEN>()?;
                let total_len = self.payload_len.checked_add(IPV4_HEADER_LEN as u16)?;
                header[..2].copy_from_slice(&[0x45, self.tos]);
                header[2..4].copy_from_slice(&total_len.to_be_bytes());
                header[4..12].copy_from_slice(&[0, 0, 0x40, 0, self.ttl, self.protocol, 0, 0]);
                header[12..16].copy_from_slice(&src.octets());
                header[16..].copy_from_slice(&dst.octets());
                checksum::fill_ipv4_header(header, IPV4_HEADER_LEN);
                Some(IPV4_HEADER_LEN)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = out.first_chunk_mut::<IPV6_HEADER_LEN>()?;
                header[..4].copy_from_slice(&[0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                header[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
                header[6..8].copy_from_slice(&[self.protocol, self.ttl]);
                header[8..24].copy_from_slice(&src.octets());
                header[24..].copy_from_slice(&dst.octets());
                Some(IPV6_HEADER_LEN)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::Headers;

    fn outer(v6: bool, protocol: u8, payload_len: u16) -> Outer {
        let (src, dst) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.2.2") };
        Outer { src: src.parse().unwrap(), dst: dst.parse().unwrap(), protocol, tos: 0x01, ttl: OUTER_TTL, payload_len }
    }

    #[test]
    fn outer_ipv4_is_written_as_rfc_2003_shows() {
        let mut out = [0xff; 20];
        assert_eq!(outer(false, 4, 1400).emit(&mut out), Some(20));
        let expected = [0x45, 0x01, 0x05, 0x8c, 0, 0, 0x40, 0, 64, 4, 0xb1, 0x69, 192, 0, 2, 1, 192, 0, 2, 2];
        assert_eq!(out, expected);
    }

    #[test]
    fn all_four_pairs_emit_and_parse_back() {
        for v6 in [false, true] {
            for (proto, version) in [(4, 0x45), (41, 0x60)] {
                let mut bytes = vec![0; if v6 { 40 } else { 20 }];
                let header = outer(v6, proto, 28);
                header.emit(&mut bytes).unwrap();
                bytes.push(version);
                bytes.extend([0; 27]);
                bytes.extend([0; 6]); // link padding
                let (parsed, inner) = if v6 { Outer::parse_ipv6(&bytes) } else { Outer::parse_ipv4(&bytes) }.unwrap();
                assert_eq!((parsed, inner.len()), (header, 28));
                assert_eq!(check_inner(parsed.protocol, inner), Ok(()));
                assert_eq!(protocol_for(inner), Some(proto));
                assert!(check_inner(45 - proto, inner).is_err());
                let headers = Headers::parse(&bytes).unwrap();
                assert!(checksum::verify_ipv4_header(&bytes, &headers));
                assert_eq!((headers.protocol, headers.tos, headers.dont_fragment), (proto, 0x01, true));
            }
        }
    }

    #[test]
    fn fragment_wrong_version_and_wrong_protocol_are_refused() {
        let mut bytes = [0; 20];
        outer(false, 4, 0).emit(&mut bytes).unwrap();
        bytes[7] = 1;
        assert_eq!(Outer::parse_ipv4(&bytes), Err(IpipError::Fragment));
        bytes[0] = 0x65;
        assert_eq!(Outer::parse_ipv4(&bytes), Err(IpipError::Version { expected: 4, found: 6 }));
        assert_eq!(check_inner(47, &[0x45]), Err(IpipError::Protocol(47)));
        assert_eq!(check_inner(4, &[]), Err(IpipError::Empty));
    }

    #[test]
    fn payload_too_long_or_buffer_too_short_writes_nothing() {
        assert_eq!(outer(false, 4, 65_516).emit(&mut [0; 20]), None);
        assert_eq!(outer(false, 4, 0).emit(&mut [0; 19]), None);
        assert_eq!(outer(true, 4, 0).emit(&mut [0; 39]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), v4: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if v4 { 0x40 | *first & 0x0f } else { 0x60 };
            }
            for (outer, payload) in [Outer::parse_ipv4(&bytes), Outer::parse_ipv6(&bytes)].into_iter().flatten() {
                prop_assert_eq!(usize::from(outer.payload_len), payload.len());
                let _ = check_inner(outer.protocol, payload);
            }
        }
    }
}

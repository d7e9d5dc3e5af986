//! Explicit congestion notification through a tunnel (RFC 6040, normal mode), and rewriting the traffic class.

use crate::checksum;
use crate::packet::Headers;

/// The ECN bits.
pub const MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
pub const ECT_1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The underlay marked congestion on a packet whose sender would not understand the mark, so the packet must be
/// dropped (RFC 6040, figure 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("congestion was marked on a packet that is not ECN-capable")]
pub struct CongestionDrop;

/// The outer traffic class for an inner one: ECN copied (RFC 6040, section 4.1, normal mode). DSCP is not: a container
/// would choose the class of the underlay's packets.
#[inline]
#[must_use]
pub fn encapsulate(inner_tos: u8) -> u8 {
    inner_tos & MASK
}

/// The new inner traffic class at decapsulation (RFC 6040, section 4.2). DSCP stays the inner one.
///
/// # Errors
/// When the outer header carries CE and the inner one is not ECN-capable.
#[inline]
pub fn decapsulate(outer_tos: u8, inner_tos: u8) -> Result<u8, CongestionDrop> {
    let ecn = match (inner_tos & MASK, outer_tos & MASK) {
        (NOT_ECT, CE) => return Err(CongestionDrop),
        (NOT_ECT, _) => NOT_ECT,
        (_, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (inner, _) => inner,
    };
    Ok(inner_tos & !MASK | ecn)
}

/// Applies [`decapsulate`] to an inner packet in place.
///
/// # Errors
/// When the packet must be dropped; it is unchanged then.
#[inline]
pub fn decapsulate_packet(outer_tos: u8, packet: &mut [u8], headers: &mut Headers) -> Result<(), CongestionDrop> {
    let tos = decapsulate(outer_tos, headers.tos)?;
    set_tos(packet, headers, tos);
    Ok(())
}

/// Rewrites DSCP and ECN in place, with the IPv4 header checksum; `headers` must come from this packet and is kept in
/// step.
#[inline]
pub fn set_tos(packet: &mut [u8], headers: &mut Headers, tos: u8) {
    if tos == headers.tos {
        return;
    }
    if headers.is_ipv4() {
        let version = packet.first().copied().unwrap_or_default();
        checksum::replace_ipv4_word(packet, 0, u16::from_be_bytes([version, tos]));
    } else if let Some(start) = packet.first_chunk_mut::<2>() {
        start[0] = 0x60 | tos >> 4;
        start[1] = tos << 4 | start[1] & 0x0f;
    }
    headers.tos = tos;
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn packet(v6: bool, tos: u8) -> (Vec<u8>, Headers) {
        let mut bytes = Vec::new();
        if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 9).udp(1, 2).write(&mut bytes, b"x").unwrap();
            bytes[0] = 0x60 | tos >> 4;
            bytes[1] = tos << 4 | 0x0a;
        } else {
            PacketBuilder::ipv4([1; 4], [2; 4], 9).udp(1, 2).write(&mut bytes, b"x").unwrap();
            bytes[1] = tos;
            checksum::fill_ipv4_header(&mut bytes, 20);
        }
        let headers = Headers::parse(&bytes).unwrap();
        (bytes, headers)
    }

    /// RFC 6040, figure 4, rows by inner and columns by outer codepoint in numeric order.
    const TABLE: [[Option<u8>; 4]; 4] = [
        [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
        [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
        [Some(ECT_0), Some(ECT_1), Some(ECT_0), Some(CE)],
        [Some(CE), Some(CE), Some(CE), Some(CE)],
    ];

    #[test]
    fn every_pair_decapsulates_as_the_rfc_table_in_both_families() {
        for v6 in [false, true] {
            for inner in 0..4u8 {
                for outer in 0..4u8 {
                    let (mut bytes, mut headers) = packet(v6, 0xb8 | inner);
                    let before = bytes.clone();
                    let result = decapsulate_packet(0x10 | outer, &mut bytes, &mut headers);
                    match TABLE[usize::from(inner)][usize::from(outer)] {
                        None => assert_eq!((result, &bytes), (Err(CongestionDrop), &before)),
                        Some(ecn) => {
                            assert_eq!(result, Ok(()), "inner {inner:02b} outer {outer:02b}");
                            assert_eq!(headers.tos, 0xb8 | ecn);
                            assert_eq!(Headers::parse(&bytes).unwrap(), headers);
                            assert!(checksum::verify_ipv4_header(&bytes, &headers));
                            assert!(checksum::verify_transport(&bytes, &headers));
                            if v6 {
                                assert_eq!(bytes[1] & 0x0f, 0x0a, "flow label is kept");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn ecn_is_copied_outside_and_dscp_is_not() {
        for tos in 0..=255 {
            assert_eq!(encapsulate(tos), tos & 3);
        }
    }
}

//! The Internet checksum: full (RFC 1071), incremental (RFC 1624, equation 3) and with pseudo header (RFC 768, RFC
//! 9293, RFC 8200 section 8.1).
//!
//! A *sum* here is the folded one's complement sum before the final complement; a *checksum* is the value that stands
//! in the header.

use std::net::IpAddr;

use crate::packet::{Headers, Transport, protocol};

/// One's complement sum of the bytes as big-endian 16-bit words; an odd last byte is padded with zero.
#[inline]
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on byte order, nor on the width of the words added with end-around carry (RFC 1071,
    // section 2): words are added as the machine reads them, eight bytes at a time, and only the folded result is
    // swapped. The inner loop compiles to a chain of add-with-carry.
    let mut total = 0u64;
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        total = add_words(total, block.as_chunks::<8>().0);
    }
    let (words, rest) = rest.as_chunks::<8>();
    total = add_words(total, words);
    // Up to seven bytes are left: three words of two and a byte padded with zero.
    let (words, rest) = rest.as_chunks::<2>();
    let mut tail = rest.first().map_or(0, |last| u64::from(u16::from_ne_bytes([*last, 0])));
    for word in words {
        tail += u64::from(u16::from_ne_bytes(*word));
    }
    u16::from_be(fold(add_words(total, &[tail.to_ne_bytes()])))
}

/// Adds words with end-around carry.
#[inline(always)]
fn add_words(total: u64, words: &[[u8; 8]]) -> u64 {
    let (mut total, mut carry) = (total, false);
    for word in words {
        let (sum, first) = total.overflowing_add(u64::from_ne_bytes(*word));
        let (sum, second) = sum.overflowing_add(u64::from(carry));
        total = sum;
        carry = first | second;
    }
    // A carry out leaves a total below the maximum, so this cannot overflow.
    total.wrapping_add(u64::from(carry))
}

/// Folds a wide sum of 16-bit words into 16 bits with end-around carry.
#[inline]
#[must_use]
pub fn fold(wide: u64) -> u16 {
    let sum = (wide & 0xffff_ffff) + (wide >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    // 33 bits fold to 18, these to 17, these to 16.
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Adds two sums with end-around carry.
#[inline]
#[must_use]
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The checksum of a block: the complement of its sum. A block that holds a correct checksum yields zero.
#[inline]
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// Sum of the pseudo header in front of a transport segment of `length` bytes.
#[inline]
#[must_use]
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: u16) -> u16 {
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => add(sum(&src.octets()), sum(&dst.octets())),
        (IpAddr::V6(src), IpAddr::V6(dst)) => add(sum(&src.octets()), sum(&dst.octets())),
        (IpAddr::V4(src), IpAddr::V6(dst)) => add(sum(&src.octets()), sum(&dst.octets())),
        (IpAddr::V6(src), IpAddr::V4(dst)) => add(sum(&src.octets()), sum(&dst.octets())),
    };
    add(add(addresses, u16::from(protocol)), length)
}

/// The checksum after one 16-bit word of the covered data changed (RFC 1624, equation 3).
#[inline]
#[must_use]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

/// The checksum after covered bytes at an even offset changed from `old` to `new`.
///
/// The two may differ in length: a missing tail counts as zero.
#[inline]
#[must_use]
pub fn update_bytes(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    update(checksum, sum(old), sum(new))
}

/// Offset of the transport checksum in the packet; `None` where the protocol has none that we know.
#[inline]
#[must_use]
pub fn transport_field(headers: &Headers) -> Option<usize> {
    let inside = match headers.transport {
        Transport::Tcp(_) => 16,
        Transport::Udp(_) => 6,
        Transport::Icmp(_) => 2,
        Transport::Other | Transport::None => return None,
    };
    Some(usize::from(headers.l4_offset) + inside)
}

/// Sum over pseudo header and segment as they stand, the checksum field included.
#[inline]
fn transport_sum(packet: &[u8], headers: &Headers) -> Option<u16> {
    let start = usize::from(headers.l4_offset);
    let end = match headers.transport {
        // The UDP length may be shorter than the IP payload; what lies behind is not covered.
        Transport::Udp(udp) => start + usize::from(udp.length),
        _ => usize::from(headers.total_len),
    };
    let segment = packet.get(start..end)?;
    let data = sum(segment);
    if headers.protocol == protocol::ICMP {
        return Some(data);
    }
    // `end` never exceeds `total_len`, a u16.
    Some(add(data, pseudo_header(headers.src, headers.dst, headers.protocol, segment.len() as u16)))
}

/// Whether the transport checksum is right.
///
/// True where there is nothing to verify: an unknown protocol, a part of a fragmented datagram, or UDP over IPv4 sent
/// without checksum. `headers` must come from this packet. A packet with a routing header that still has segments left
/// is not understood here (its pseudo header holds another destination): drop those before.
#[inline]
#[must_use]
pub fn verify_transport(packet: &[u8], headers: &Headers) -> bool {
    let Some(field) = transport_field(headers) else { return true };
    if headers.is_partial() {
        return true;
    }
    if matches!(headers.transport, Transport::Udp(_)) && packet.get(field..field + 2) == Some(&[0, 0]) {
        return headers.is_ipv4();
    }
    transport_sum(packet, headers) == Some(0xffff)
}

/// Writes the transport checksum; does nothing for an unknown protocol or a part of a fragmented datagram.
///
/// Returns whether a checksum was written.
pub fn fill_transport(packet: &mut [u8], headers: &Headers) -> bool {
    let Some(field) = transport_field(headers) else { return false };
    if headers.is_partial() || !write_word(packet, field, 0) {
        return false;
    }
    let Some(sum) = transport_sum(packet, headers) else { return false };
    let value = match (headers.transport, !sum) {
        // Zero means "no checksum" in UDP; its other representation is sent (RFC 768).
        (Transport::Udp(_), 0) => 0xffff,
        (_, value) => value,
    };
    write_word(packet, field, value)
}

/// Whether the IPv4 header checksum is right; always true for IPv6, which has none.
#[inline]
#[must_use]
pub fn verify_ipv4_header(packet: &[u8], headers: &Headers) -> bool {
    !headers.is_ipv4() || packet.get(..usize::from(headers.l4_offset)).is_some_and(|header| sum(header) == 0xffff)
}

/// Writes the checksum of an IPv4 header of `header_len` bytes at the start of the packet.
pub fn fill_ipv4_header(packet: &mut [u8], header_len: usize) {
    let Some(header) = packet.get_mut(..header_len) else { return };
    if write_word(header, 10, 0) {
        let value = checksum(header);
        write_word(header, 10, value);
    }
}

/// Replaces a 16-bit word in an IPv4 header and updates the header checksum; does nothing out of bounds.
pub(crate) fn replace_ipv4_word(packet: &mut [u8], at: usize, new: u16) {
    if let (Some(old), Some(before)) = (read_word(packet, at), read_word(packet, 10)) {
        write_word(packet, at, new);
        write_word(packet, 10, update(before, old, new));
    }
}

#[inline]
pub(crate) fn read_word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().copied().map(u16::from_be_bytes)
}

#[inline]
pub(crate) fn write_word(bytes: &mut [u8], at: usize, value: u16) -> bool {
    match bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        Some(place) => {
            *place = value.to_be_bytes();
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition of RFC 1071, word by word.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example_sums_to_ddf2() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn rfc_1624_example_updates_to_zero() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn largest_packet_of_ones_keeps_every_carry() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(sum(&bytes), slow_sum(&bytes));
        assert_eq!(fold(u64::MAX), 0xffff);
    }

    proptest! {
        #[test]
        fn any_bytes_sum_as_defined(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(sum(&bytes), slow_sum(&bytes));
        }

        #[test]
        fn any_change_updates_as_a_full_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..80),
            at in any::<proptest::sample::Index>(),
            new in any::<[u8; 2]>(),
        ) {
            // A non-zero word outside the change keeps the data from being all zero, the one case where the two
            // representations of zero differ.
            bytes.extend([0x12, 0x34]);
            if bytes.len() % 2 == 1 {
                bytes.insert(0, 1);
            }
            let at = at.index((bytes.len() - 2) / 2) * 2;
            let before = checksum(&bytes);
            let old = [bytes[at], bytes[at + 1]];
            bytes[at..at + 2].copy_from_slice(&new);
            prop_assert_eq!(update_bytes(before, &old, &new), checksum(&bytes));
            prop_assert_eq!(update(before, u16::from_be_bytes(old), u16::from_be_bytes(new)), checksum(&bytes));
        }
    }
}

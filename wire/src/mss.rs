//! Clamping the TCP maximum segment size of a SYN to what the path carries (RFC 9293 section 3.7.1, RFC 6691).

use crate::checksum;
use crate::encapsulation::Mtu;
use crate::packet::{Headers, TcpOption, TcpOptions};

/// The largest TCP payload in a packet of `mtu` bytes without IP or TCP options: MTU − 40 for IPv4, − 60 for IPv6.
#[inline]
#[must_use]
pub fn largest(mtu: Mtu, headers: &Headers) -> u16 {
    mtu.get() - if headers.is_ipv4() { 40 } else { 60 }
}

/// Lowers the MSS option of a SYN or SYN-ACK to `max_mss` in place and updates the TCP checksum; never raises it.
///
/// Returns whether the packet was changed. The TCP checksum must be complete before: a partial checksum (only the
/// pseudo header summed, to be finished by an offload) would be updated wrongly. A SYN without the option is left
/// alone: its peer then assumes 536 or 1,220 bytes.
pub fn clamp(packet: &mut [u8], headers: &Headers, max_mss: u16) -> bool {
    let Some(tcp) = headers.tcp() else { return false };
    if !tcp.flags.syn() {
        return false;
    }
    let start = usize::from(headers.l4_offset);
    let Some(header) = packet.get_mut(start..start + usize::from(tcp.header_len)) else {
        return false;
    };
    let mut changed = false;
    // A repeated option is clamped too: which one counts is up to the receiver. The options are walked again after each
    // change because the iterator borrows them; values already low enough are passed over.
    while let Some((mss, at)) = first_above(header, max_mss) {
        let Some(before) = checksum::read_word(header, 16) else { return changed };
        // A value at an odd offset straddles two words: it counts with its bytes swapped (RFC 1071, section 2B).
        let after = if at % 2 == 0 {
            checksum::update(before, mss, max_mss)
        } else {
            checksum::update(before, mss.swap_bytes(), max_mss.swap_bytes())
        };
        checksum::write_word(header, at, max_mss);
        checksum::write_word(header, 16, after);
        changed = true;
    }
    changed
}

fn first_above(header: &[u8], max_mss: u16) -> Option<(u16, usize)> {
    TcpOptions::new(header).find_map(|option| match option {
        TcpOption::MaximumSegmentSize { mss, offset } if mss > max_mss => Some((mss, offset.into())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    /// A SYN whose options are the given bytes, checksums filled.
    fn syn(v6: bool, options: &[u8]) -> (Vec<u8>, Headers) {
        let mut bytes = Vec::new();
        if v6 {
            let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(1, 2, 3, 4).syn();
            builder.options_raw(options).unwrap().write(&mut bytes, &[]).unwrap();
        } else {
            let builder = PacketBuilder::ipv4([1; 4], [2; 4], 64).tcp(1, 2, 3, 4).syn();
            builder.options_raw(options).unwrap().write(&mut bytes, &[]).unwrap();
        }
        let headers = Headers::parse(&bytes).unwrap();
        (bytes, headers)
    }

    #[test]
    fn mss_above_the_limit_is_lowered_at_even_and_odd_offsets() {
        for v6 in [false, true] {
            for options in [&[2, 4, 0x05, 0xb4][..], &[1, 2, 4, 0x05, 0xb4, 1, 1, 1]] {
                let (mut bytes, headers) = syn(v6, options);
                assert!(clamp(&mut bytes, &headers, 1300));
                assert!(checksum::verify_transport(&bytes, &headers));
                let tcp = &bytes[usize::from(headers.l4_offset)..];
                let found = TcpOptions::new(tcp).find_map(|option| match option {
                    TcpOption::MaximumSegmentSize { mss, .. } => Some(mss),
                    _ => None,
                });
                assert_eq!(found, Some(1300));
            }
        }
    }

    #[test]
    fn mss_within_the_limit_and_other_packets_are_left_alone() {
        let (mut bytes, headers) = syn(false, &[2, 4, 0x05, 0x14]);
        let before = bytes.clone();
        assert!(!clamp(&mut bytes, &headers, 1300));
        assert_eq!(bytes, before);
        let (mut bytes, _) = syn(false, &[2, 4, 0x05, 0xb4]);
        bytes[33] = 0x10; // ACK only
        let headers = Headers::parse(&bytes).unwrap();
        assert!(!clamp(&mut bytes, &headers, 1300));
    }

    #[test]
    fn repeated_option_is_lowered_everywhere() {
        let (mut bytes, headers) = syn(false, &[2, 4, 0x01, 0x00, 2, 4, 0x05, 0xb4, 2, 4, 0xff, 0xff]);
        assert!(clamp(&mut bytes, &headers, 1300));
        assert_eq!(bytes[42..44], [0x01, 0x00]);
        assert_eq!(bytes[46..48], 1300u16.to_be_bytes());
        assert_eq!(bytes[50..52], 1300u16.to_be_bytes());
        assert!(checksum::verify_transport(&bytes, &headers));
    }

    #[test]
    fn malformed_option_list_ends_the_search() {
        let (mut bytes, headers) = syn(false, &[3, 0, 2, 4, 0x05, 0xb4, 0, 0]);
        assert!(!clamp(&mut bytes, &headers, 500));
    }

    proptest! {
        #[test]
        fn any_options_clamp_to_a_right_checksum(
            v6: bool, options in proptest::collection::vec(prop_oneof![any::<u8>(), 0u8..6], 40..=40), max: u16,
        ) {
            let (mut bytes, headers) = syn(v6, &options);
            let before = bytes.clone();
            let changed = clamp(&mut bytes, &headers, max);
            prop_assert_eq!(changed, before != bytes);
            prop_assert!(checksum::verify_transport(&bytes, &headers));
            prop_assert!(!clamp(&mut bytes, &headers, max));
        }
    }
}

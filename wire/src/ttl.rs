//! Time to live and hop limit.

use crate::checksum;
use crate::packet::Headers;

/// Decrements the time to live or hop limit in place, with the IPv4 header checksum (RFC 1141, RFC 1624).
///
/// Returns false and changes nothing when it is already 0 or 1: the packet has expired (RFC 1812, section 5.3.1).
/// `headers` must come from this packet and is kept in step.
#[must_use]
pub fn decrement(packet: &mut [u8], headers: &mut Headers) -> bool {
    if headers.ttl <= 1 {
        return false;
    }
    let ttl = headers.ttl - 1;
    if headers.is_ipv4() {
        checksum::replace_ipv4_word(packet, 8, u16::from_be_bytes([ttl, headers.protocol]));
    } else if let Some(place) = packet.get_mut(7) {
        *place = ttl;
    }
    headers.ttl = ttl;
    true
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_packet_decrements_with_a_right_checksum(src: [u8; 4], dst: [u8; 4], ttl: u8) {
            let mut bytes = Vec::new();
            PacketBuilder::ipv4(src, dst, ttl).udp(1, 2).write(&mut bytes, &[]).unwrap();
            let mut headers = Headers::parse(&bytes).unwrap();
            let before = headers;
            let alive = decrement(&mut bytes, &mut headers);
            prop_assert_eq!(alive, ttl > 1);
            prop_assert_eq!(Headers::parse(&bytes).unwrap(), headers);
            prop_assert!(checksum::verify_ipv4_header(&bytes, &headers));
            prop_assert_eq!(headers, Headers { ttl: if alive { ttl - 1 } else { ttl }, ..before });
        }
    }

    #[test]
    fn hop_limit_decrements_until_it_expires() {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 2).udp(1, 2).write(&mut bytes, &[]).unwrap();
        let mut headers = Headers::parse(&bytes).unwrap();
        assert!(decrement(&mut bytes, &mut headers));
        assert_eq!((bytes[7], headers.ttl), (1, 1));
        assert!(!decrement(&mut bytes, &mut headers));
        assert_eq!(bytes[7], 1);
    }
}

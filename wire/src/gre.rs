//! Generic routing encapsulation: RFC 2784 with the key and sequence number of RFC 2890.
//!
//! Accepted: version 0 with any of checksum, key and sequence. Refused: the routing bit and the other bits among 1 to 5
//! that RFC 2784 tells a receiver to discard on, any other version, and payloads other than IPv4 and IPv6. Bits 6 to 12
//! are ignored on receipt and sent as zero (RFC 2784, section 2.3).

use crate::checksum;

/// Ether type of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ether type of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Longest header: base, checksum, key and sequence.
pub const MAX_HEADER_LEN: usize = 16;

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
/// Bits 1, 4 and 5: routing, strict source route, and the first recursion bit of RFC 1701.
const REFUSED: u16 = 0x4c00;
const VERSION: u16 = 0x0007;

/// A GRE header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GreHeader {
    /// Ether type of the payload.
    pub protocol: u16,
    /// Key, where present.
    pub key: Option<u32>,
    /// Sequence number, where present.
    pub sequence: Option<u32>,
    /// Whether header and payload are covered by a checksum.
    pub checksum: bool,
}

/// Why a GRE packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GreError {
    /// The bytes end before the header does.
    #[error("GRE header needs {needed} bytes, {available} available")]
    Cut {
        /// Bytes the header needs.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// A version other than 0.
    #[error("GRE version {0} is not 0")]
    Version(u8),
    /// A flag bit that must be zero is set.
    #[error("GRE flags {0:#06x} hold a routing or reserved bit")]
    Flags(u16),
    /// The checksum is wrong.
    #[error("GRE checksum is wrong")]
    Checksum,
    /// The key is missing, surplus or another one.
    #[error("GRE key is missing, surplus or wrong")]
    Key,
    /// The payload is neither IPv4 nor IPv6, or its version nibble contradicts the ether type.
    #[error("GRE payload with ether type {0:#06x} is not the IP packet it should be")]
    Payload(u16),
}

impl GreHeader {
    /// The ether type of an inner IP packet, by its version nibble.
    #[inline]
    #[must_use]
    pub fn ethertype_for(inner: &[u8]) -> Option<u16> {
        match inner.first()? >> 4 {
            4 => Some(ETHERTYPE_IPV4),
            6 => Some(ETHERTYPE_IPV6),
            _ => None,
        }
    }

    /// Length of the header in bytes: 4 to 16.
    #[inline]
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        4 + 4 * (usize::from(self.checksum) + usize::from(self.key.is_some()) + usize::from(self.sequence.is_some()))
    }

    /// Parses a GRE packet (what follows the outer IP header), verifies its checksum where present, and returns the
    /// header and the payload.
    ///
    /// # Errors
    /// When the header is cut off, has a refused bit or version, or its checksum is wrong.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<(Self, &[u8]), GreError> {
        let available = packet.len();
        let Some(&[flags_high, flags_low, protocol_high, protocol_low]) = packet.first_chunk::<4>() else {
            return Err(GreError::Cut { needed: 4, available });
        };
        let flags = u16::from_be_bytes([flags_high, flags_low]);
        if flags & VERSION != 0 {
            return Err(GreError::Version((flags & VERSION) as u8));
        }
        if flags & REFUSED != 0 {
            return Err(GreError::Flags(flags));
        }
        let mut header = Self {
            protocol: u16::from_be_bytes([protocol_high, protocol_low]),
            key: (flags & KEY != 0).then_some(0),
            sequence: (flags & SEQUENCE != 0).then_some(0),
            checksum: flags & CHECKSUM != 0,
        };
        let needed = header.buffer_len();
        let (Some(fields), Some(payload)) = (packet.get(4..needed), packet.get(needed..)) else {
            return Err(GreError::Cut { needed, available });
        };
        let mut words = fields.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
        if header.checksum {
            words.next();
            if checksum::sum(packet) != 0xffff {
                return Err(GreError::Checksum);
            }
        }
        if header.key.is_some() {
            header.key = words.next();
        }
        if header.sequence.is_some() {
            header.sequence = words.next();
        }
        Ok((header, payload))
    }

    /// Writes the header in front of a payload that already stands in `packet` behind [`Self::buffer_len`] bytes, and
    /// the checksum over both where asked for. Returns the header length, or `None` when `packet` is shorter than it.
    pub fn emit(&self, packet: &mut [u8]) -> Option<usize> {
        let len = self.buffer_len();
        let header = packet.get_mut(..len)?;
        let flags = if self.checksum { CHECKSUM } else { 0 }
            | if self.key.is_some() { KEY } else { 0 }
            | if self.sequence.is_some() { SEQUENCE } else { 0 };
        let mut words = header.as_chunks_mut::<4>().0.iter_mut();
        let first = u32::from(flags) << 16 | u32::from(self.protocol);
        let fields = [Some(first), self.checksum.then_some(0), self.key, self.sequence];
        for (place, value) in words.by_ref().zip(fields.into_iter().flatten()) {
            *place = value.to_be_bytes();
        }
        if self.checksum {
            let value = checksum::checksum(packet);
            checksum::write_word(packet, 4, value);
        }
        Some(len)
    }

    /// Checks the key against the one configured: a missing, surplus or different key is refused.
    ///
    /// # Errors
    /// When the two are not equal.
    #[inline]
    pub fn check_key(&self, expected: Option<u32>) -> Result<(), GreError> {
        if self.key == expected { Ok(()) } else { Err(GreError::Key) }
    }

    /// Checks that the payload is the IP packet its ether type announces.
    ///
    /// # Errors
    /// When the ether type is not IPv4 or IPv6, or the version nibble differs.
    #[inline]
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), GreError> {
        if Self::ethertype_for(payload) == Some(self.protocol) { Ok(()) } else { Err(GreError::Payload(self.protocol)) }
    }
}

/// The receiving side of GRE sequence numbers: refuses what is older than, or equal to, the newest accepted (RFC 2890,
/// section 2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReceiveSequence {
    newest: Option<u32>,
}

impl ReceiveSequence {
    /// Accepts a sequence number that is ahead of the newest by less than 2³¹, or the first one.
    ///
    /// A jump back by more than `RESTART_GAP` is taken as a restarted sender, which RFC 2890 tells to begin at 0.
    pub fn accept(&mut self, sequence: u32) -> bool {
        let fresh = match self.newest {
            None => true,
            Some(newest) => {
                let ahead = sequence.wrapping_sub(newest);
                (ahead != 0 && ahead < 1 << 31) || newest.wrapping_sub(sequence) > Self::RESTART_GAP
            }
        };
        if fresh {
            self.newest = Some(sequence);
        }
        fresh
    }

    /// How far back a sequence number must lie to count as a restart rather than reordering: more packets than a
    /// second of 64-byte packets at 500,000 per second leaves in flight over any sane path.
    pub const RESTART_GAP: u32 = 1 << 16;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn header_without_options_is_four_bytes() {
        let header = GreHeader { protocol: ETHERTYPE_IPV4, key: None, sequence: None, checksum: false };
        let mut packet = [0xff, 0xff, 0xff, 0xff, 0x45];
        assert_eq!(header.emit(&mut packet), Some(4));
        assert_eq!(packet, [0, 0, 0x08, 0, 0x45]);
        assert_eq!(GreHeader::parse(&packet), Ok((header, &[0x45][..])));
    }

    #[test]
    fn full_header_is_laid_out_as_rfc_2890_shows() {
        let header =
            GreHeader { protocol: ETHERTYPE_IPV6, key: Some(0x0102_0304), sequence: Some(0x0506_0708), checksum: true };
        let mut packet = [0xff; 17];
        packet[16] = 0x60;
        assert_eq!(header.emit(&mut packet), Some(16));
        assert_eq!(packet, [0xb0, 0, 0x86, 0xdd, 0x59, 0x0d, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x60]);
        assert_eq!(GreHeader::parse(&packet), Ok((header, &[0x60][..])));
        packet[16] = 0x61;
        assert_eq!(GreHeader::parse(&packet), Err(GreError::Checksum));
    }

    #[test]
    fn routing_reserved_bits_and_versions_are_refused() {
        for bit in [0x4000u16, 0x0800, 0x0400] {
            let [high, low] = bit.to_be_bytes();
            assert_eq!(GreHeader::parse(&[high, low, 8, 0]), Err(GreError::Flags(bit)));
        }
        for version in 1..8 {
            assert_eq!(GreHeader::parse(&[0, version, 8, 0]), Err(GreError::Version(version)));
        }
        for bit in [0x0200u16, 0x0100, 0x0080, 0x0008] {
            let [high, low] = bit.to_be_bytes();
            assert!(GreHeader::parse(&[high, low, 8, 0]).is_ok(), "bit {bit:#x} is ignored");
        }
    }

    #[test]
    fn missing_surplus_and_wrong_keys_are_refused() {
        let with = |key| GreHeader { protocol: ETHERTYPE_IPV4, key, sequence: None, checksum: false };
        assert_eq!(with(Some(7)).check_key(Some(7)), Ok(()));
        assert_eq!(with(None).check_key(None), Ok(()));
        for (found, expected) in [(None, Some(7)), (Some(7), None), (Some(8), Some(7)), (Some(0), None)] {
            assert_eq!(with(found).check_key(expected), Err(GreError::Key));
        }
    }

    #[test]
    fn payload_of_another_version_or_type_is_refused() {
        let with = |protocol| GreHeader { protocol, key: None, sequence: None, checksum: false };
        assert_eq!(with(ETHERTYPE_IPV4).check_payload(&[0x45]), Ok(()));
        assert_eq!(with(ETHERTYPE_IPV6).check_payload(&[0x60]), Ok(()));
        for (protocol, first) in [(ETHERTYPE_IPV4, 0x60), (ETHERTYPE_IPV6, 0x45), (0x6558, 0x45)] {
            assert_eq!(with(protocol).check_payload(&[first]), Err(GreError::Payload(protocol)));
        }
        assert!(with(ETHERTYPE_IPV4).check_payload(&[]).is_err());
    }

    #[test]
    fn old_and_repeated_sequence_numbers_are_refused() {
        let mut receive = ReceiveSequence::default();
        assert!(receive.accept(u32::MAX - 1));
        assert!(receive.accept(u32::MAX));
        assert!(receive.accept(1), "numbers wrap");
        assert!(!receive.accept(0));
        assert!(!receive.accept(1));
        assert!(!receive.accept(u32::MAX));
        assert!(receive.accept(1_000_000));
        assert!(receive.accept(0), "a far jump back is a restart");
    }

    proptest! {
        #[test]
        fn any_header_emits_and_parses_back(
            protocol: u16, key: Option<u32>, sequence: Option<u32>, checksum: bool,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let header = GreHeader { protocol, key, sequence, checksum };
            let mut packet = vec![0xa5; header.buffer_len()];
            packet.extend(&payload);
            prop_assert_eq!(header.emit(&mut packet), Some(header.buffer_len()));
            prop_assert_eq!(GreHeader::parse(&packet), Ok((header, &payload[..])));
            for len in 0..header.buffer_len() {
                prop_assert!(GreHeader::parse(&packet[..len]).is_err());
                prop_assert_eq!(header.emit(&mut vec![0; len]), None);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok((header, payload)) = GreHeader::parse(&bytes) {
                prop_assert_eq!(header.buffer_len() + payload.len(), bytes.len());
            }
        }
    }
}

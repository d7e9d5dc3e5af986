//! Telling apart what arrives on the one UDP port: WireGuard messages and gossip envelopes.
//!
//! WireGuard messages start with a type of 1 to 4 and three zero bytes (WireGuard whitepaper, section 5.4); a gossip
//! envelope starts with any other byte.

/// Length of a WireGuard handshake initiation, in bytes.
pub const INITIATION_LEN: usize = 148;
/// Length of a WireGuard handshake response, in bytes.
pub const RESPONSE_LEN: usize = 92;
/// Length of a WireGuard cookie reply, in bytes.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length of the header of a WireGuard data message, in bytes.
pub const DATA_HEADER_LEN: usize = 16;
/// Length of the authentication tag behind a WireGuard data message, in bytes.
pub const DATA_TAG_LEN: usize = 16;

/// What a UDP datagram holds, judged by its first bytes and length alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Datagram {
    /// WireGuard handshake initiation.
    HandshakeInitiation {
        /// The sender's session index.
        sender: u32,
    },
    /// WireGuard handshake response.
    HandshakeResponse {
        /// The sender's session index.
        sender: u32,
        /// The receiver's session index.
        receiver: u32,
    },
    /// WireGuard cookie reply.
    CookieReply {
        /// The receiver's session index.
        receiver: u32,
    },
    /// WireGuard transport data.
    Data {
        /// The receiver's session index.
        receiver: u32,
        /// The nonce counter.
        counter: u64,
    },
    /// A gossip envelope, unchecked.
    Envelope,
}

/// Why a datagram is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClassifyError {
    /// The datagram has no bytes.
    #[error("datagram is empty")]
    Empty,
    /// The reserved bytes behind the WireGuard type are not zero.
    #[error("reserved bytes of WireGuard message type {0} are not zero")]
    Reserved(u8),
    /// The length does not fit the WireGuard type.
    #[error("WireGuard message type {kind} cannot have {len} bytes")]
    Length {
        /// The message type.
        kind: u8,
        /// The datagram's length.
        len: usize,
    },
}

impl Datagram {
    /// Classifies a UDP payload.
    ///
    /// # Errors
    /// When it is empty, or starts like WireGuard with a length or reserved bytes that WireGuard never has.
    #[inline]
    pub fn classify(datagram: &[u8]) -> Result<Self, ClassifyError> {
        let kind = *datagram.first().ok_or(ClassifyError::Empty)?;
        if !matches!(kind, 1..=4) {
            return Ok(Self::Envelope);
        }
        let len = datagram.len();
        let Some(start) = datagram.first_chunk::<DATA_HEADER_LEN>() else {
            return Err(ClassifyError::Length { kind, len });
        };
        if start[1..4] != [0; 3] {
            return Err(ClassifyError::Reserved(kind));
        }
        let first = u32::from_le_bytes([start[4], start[5], start[6], start[7]]);
        let second = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
        let third = u32::from_le_bytes([start[12], start[13], start[14], start[15]]);
        match (kind, len) {
            (1, INITIATION_LEN) => Ok(Self::HandshakeInitiation { sender: first }),
            (2, RESPONSE_LEN) => Ok(Self::HandshakeResponse { sender: first, receiver: second }),
            (3, COOKIE_REPLY_LEN) => Ok(Self::CookieReply { receiver: first }),
            (4, _) if len >= DATA_HEADER_LEN + DATA_TAG_LEN => {
                Ok(Self::Data { receiver: first, counter: u64::from(third) << 32 | u64::from(second) })
            }
            _ => Err(ClassifyError::Length { kind, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = kind;
        for (at, byte) in bytes.iter_mut().enumerate().skip(4) {
            *byte = at as u8;
        }
        bytes
    }

    #[test]
    fn wireguard_messages_yield_their_indices() {
        let (four, eight) = (0x0706_0504, 0x0b0a_0908);
        assert_eq!(Datagram::classify(&message(1, 148)), Ok(Datagram::HandshakeInitiation { sender: four }));
        assert_eq!(
            Datagram::classify(&message(2, 92)),
            Ok(Datagram::HandshakeResponse { sender: four, receiver: eight })
        );
        assert_eq!(Datagram::classify(&message(3, 64)), Ok(Datagram::CookieReply { receiver: four }));
        let data = Datagram::Data { receiver: four, counter: 0x0f0e_0d0c_0b0a_0908 };
        assert_eq!(Datagram::classify(&message(4, 32)), Ok(data));
    }

    #[test]
    fn every_other_first_byte_is_an_envelope() {
        for first in (0..=255u8).filter(|first| !(1..=4).contains(first)) {
            assert_eq!(Datagram::classify(&[first]), Ok(Datagram::Envelope));
        }
    }

    #[test]
    fn wireguard_of_a_wrong_length_or_with_reserved_bytes_is_refused() {
        assert_eq!(Datagram::classify(&[]), Err(ClassifyError::Empty));
        for (kind, len) in [(1, 147), (1, 149), (2, 93), (3, 63), (4, 31), (4, 4)] {
            assert_eq!(Datagram::classify(&message(kind, len)), Err(ClassifyError::Length { kind, len }));
        }
        let mut bytes = message(4, 32);
        bytes[2] = 1;
        assert_eq!(Datagram::classify(&bytes), Err(ClassifyError::Reserved(4)));
    }

    proptest! {
        #[test]
        fn any_datagram_is_classified_by_its_first_byte(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let envelope = Datagram::classify(&bytes) == Ok(Datagram::Envelope);
            prop_assert_eq!(envelope, !(1..=4).contains(&bytes[0]));
        }
    }
}

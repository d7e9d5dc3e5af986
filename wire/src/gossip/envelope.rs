//! The envelope of a gossip datagram: what travels in clear around the sealed part.
//!
//! The first byte tells gossip (32 and above) from WireGuard (1 to 4) on the shared UDP port; the second is the envelope
//! version. Sealing and opening are done by the gossip state machine; here is only the layout.

use std::net::SocketAddr;

use crate::gossip::codec::{DecodeError, Reader, put_optional_socket_addr};
use crate::gossip::record::Record;

/// The envelope format written today.
pub const ENVELOPE_VERSION: u8 = 1;
/// First byte of a sealed pairwise datagram.
pub const SEALED: u8 = 0x20;
/// First byte of a first contact.
pub const INTRODUCE: u8 = 0x21;
/// First byte of the answer to a first contact.
pub const INTRODUCE_ACK: u8 = 0x22;
/// First byte of a request to become a member.
pub const JOIN: u8 = 0x23;
/// First byte of the answer to a request to become a member.
pub const JOIN_ACK: u8 = 0x24;
/// The largest datagram accepted.
pub const MAX_DATAGRAM_BYTES: usize = 1400;
/// The largest datagram sent: 1,280 (the smallest IPv6 MTU) less IPv6 and UDP headers.
pub const MAX_SENT_BYTES: usize = 1232;
/// Bytes of the Poly1305 tag.
pub const AEAD_TAG_BYTES: usize = 16;
/// Sealed content is padded with zeros to a multiple of this.
pub const PADDING_BYTES: usize = 16;
/// The largest message that fits a sealed datagram of [`MAX_SENT_BYTES`].
pub const MAX_MESSAGE_BYTES: usize =
    (MAX_SENT_BYTES - SEALED_HEADER_BYTES - AEAD_TAG_BYTES) / PADDING_BYTES * PADDING_BYTES - CONTENT_HEADER_BYTES;
/// Bytes in clear before a sealed datagram's ciphertext.
pub const SEALED_HEADER_BYTES: usize = 2 + 8 + 24;
/// Bytes in clear before a JOIN's ciphertext: kind, version, ephemeral key, token id, nonce.
pub const JOIN_HEADER_BYTES: usize = 2 + 32 + 8 + 24;
/// Bytes before the message inside a sealed datagram: boot epoch, sequence, length.
pub const CONTENT_HEADER_BYTES: usize = 8 + 8 + 2;

/// A datagram cut at its layout, before anything is authenticated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Envelope<'a> {
    /// A sealed pairwise datagram.
    Sealed {
        /// Everything before the ciphertext; authenticated with it.
        header: &'a [u8],
        /// Names the pair and direction to the receiver, and nothing to others.
        tag: [u8; 8],
        /// Random, 192 bits.
        nonce: [u8; 24],
        /// Ciphertext and authentication tag.
        ciphertext: &'a [u8],
    },
    /// A first contact.
    Introduce {
        /// Everything before the ciphertext.
        header: &'a [u8],
        /// The sender's fresh X25519 key.
        ephemeral: [u8; 32],
        /// Random, 192 bits.
        nonce: [u8; 24],
        /// Ciphertext and authentication tag.
        ciphertext: &'a [u8],
    },
    /// The answer to a first contact.
    IntroduceAck {
        /// Everything before the ciphertext.
        header: &'a [u8],
        /// Names the INTRODUCE that is answered.
        tag: [u8; 8],
        /// The answering host's box key.
        box_key: [u8; 32],
        /// Random, 192 bits.
        nonce: [u8; 24],
        /// Ciphertext and authentication tag.
        ciphertext: &'a [u8],
    },
    /// A request to become a member.
    Join {
        /// Everything before the ciphertext.
        header: &'a [u8],
        /// The joiner's fresh X25519 key.
        ephemeral: [u8; 32],
        /// Names the token.
        token: [u8; 8],
        /// Random, 192 bits.
        nonce: [u8; 24],
        /// Ciphertext and authentication tag.
        ciphertext: &'a [u8],
    },
    /// The answer to a request to become a member.
    JoinAck {
        /// Everything before the ciphertext.
        header: &'a [u8],
        /// Names the JOIN that is answered.
        tag: [u8; 8],
        /// Random, 192 bits.
        nonce: [u8; 24],
        /// Ciphertext and authentication tag.
        ciphertext: &'a [u8],
    },
}

impl<'a> Envelope<'a> {
    /// Cuts a datagram.
    ///
    /// # Errors
    /// When it is too short, too long, or of an unknown kind or version.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DecodeError> {
        if datagram.len() > MAX_DATAGRAM_BYTES {
            return Err(DecodeError::TooLong { field: "datagram", max: MAX_DATAGRAM_BYTES });
        }
        let mut reader = Reader::new(datagram);
        let kind = reader.u8("envelope kind")?;
        let version = reader.u8("envelope version")?;
        if !matches!(kind, SEALED | INTRODUCE | INTRODUCE_ACK | JOIN | JOIN_ACK) {
            return Err(DecodeError::Value { field: "envelope kind" });
        }
        if version != ENVELOPE_VERSION {
            return Err(DecodeError::Version { what: "envelope", version });
        }
        let envelope = match kind {
            SEALED => {
                let (tag, nonce) = (reader.array("tag")?, reader.array("nonce")?);
                let (header, ciphertext) = split(datagram, reader)?;
                Self::Sealed { header, tag, nonce, ciphertext }
            }
            INTRODUCE => {
                let (ephemeral, nonce) = (reader.array("ephemeral key")?, reader.array("nonce")?);
                let (header, ciphertext) = split(datagram, reader)?;
                Self::Introduce { header, ephemeral, nonce, ciphertext }
            }
            JOIN => {
                let (ephemeral, token) = (reader.array("ephemeral key")?, reader.array("token id")?);
                let nonce = reader.array("nonce")?;
                let (header, ciphertext) = split(datagram, reader)?;
                Self::Join { header, ephemeral, token, nonce, ciphertext }
            }
            JOIN_ACK => {
                let (tag, nonce) = (reader.array("tag")?, reader.array("nonce")?);
                let (header, ciphertext) = split(datagram, reader)?;
                Self::JoinAck { header, tag, nonce, ciphertext }
            }
            _ => {
                let tag = reader.array("tag")?;
                let (box_key, nonce) = (reader.array("box key")?, reader.array("nonce")?);
                let (header, ciphertext) = split(datagram, reader)?;
                Self::IntroduceAck { header, tag, box_key, nonce, ciphertext }
            }
        };
        Ok(envelope)
    }
}

/// The clear part of a sealed datagram.
#[must_use]
pub fn sealed_header(tag: &[u8; 8], nonce: &[u8; 24]) -> Vec<u8> {
    [&[SEALED, ENVELOPE_VERSION][..], tag, nonce].concat()
}

/// The clear part of a first contact.
#[must_use]
pub fn introduce_header(ephemeral: &[u8; 32], nonce: &[u8; 24]) -> Vec<u8> {
    [&[INTRODUCE, ENVELOPE_VERSION][..], ephemeral, nonce].concat()
}

/// The clear part of the answer to a first contact.
#[must_use]
pub fn introduce_ack_header(tag: &[u8; 8], box_key: &[u8; 32], nonce: &[u8; 24]) -> Vec<u8> {
    [&[INTRODUCE_ACK, ENVELOPE_VERSION][..], tag, box_key, nonce].concat()
}

/// The clear part of a request to become a member.
#[must_use]
pub fn join_header(ephemeral: &[u8; 32], token: &[u8; 8], nonce: &[u8; 24]) -> Vec<u8> {
    [&[JOIN, ENVELOPE_VERSION][..], ephemeral, token, nonce].concat()
}

/// The clear part of the answer to a request to become a member.
#[must_use]
pub fn join_ack_header(tag: &[u8; 8], nonce: &[u8; 24]) -> Vec<u8> {
    [&[JOIN_ACK, ENVELOPE_VERSION][..], tag, nonce].concat()
}

/// The content of a sealed datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Content<'a> {
    /// The sender's boot epoch.
    pub boot_epoch: u64,
    /// Counts the datagrams of this pair and direction, from 1.
    pub sequence: u64,
    /// One encoded message.
    pub message: &'a [u8],
}

impl<'a> Content<'a> {
    /// The bytes to seal, padded.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let len = (CONTENT_HEADER_BYTES + self.message.len()).next_multiple_of(PADDING_BYTES);
        let mut out = Vec::with_capacity(len + AEAD_TAG_BYTES);
        out.extend_from_slice(&self.boot_epoch.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&(self.message.len() as u16).to_be_bytes());
        out.extend_from_slice(self.message);
        out.resize(len, 0);
        out
    }

    /// Reads opened bytes.
    ///
    /// # Errors
    /// When cut short, or when the padding is not the shortest run of zeros.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let boot_epoch = reader.u64("boot epoch")?;
        let sequence = reader.u64("sequence")?;
        let len = usize::from(reader.u16("message length")?);
        let message = reader.bytes("message", len)?;
        let padding = reader.rest();
        if !bytes.len().is_multiple_of(PADDING_BYTES)
            || padding.len() >= PADDING_BYTES
            || padding.iter().any(|b| *b != 0)
        {
            return Err(DecodeError::Value { field: "padding" });
        }
        Ok(Self { boot_epoch, sequence, message })
    }
}

/// The content of a first contact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IntroduceContent {
    /// The sender's Ed25519 identity.
    pub identity: [u8; 32],
    /// The sender's boot epoch.
    pub boot_epoch: u64,
    /// Grows with every INTRODUCE of this run.
    pub counter: u64,
    /// Random; echoed by the answer.
    pub nonce: u64,
    /// The sender's HOST record.
    pub record: Record,
    /// The sender's CERTIFICATE record, where an authority vouches for it.
    pub certificate: Option<Record>,
    /// Ed25519 by the identity over domain tag, cluster id, recipient, ephemeral key and the fields above.
    pub signature: [u8; 64],
}

impl IntroduceContent {
    /// Every field before the signature.
    #[must_use]
    pub fn unsigned_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(56 + self.record.encoded_len() + 64);
        out.extend_from_slice(&self.identity);
        out.extend_from_slice(&self.boot_epoch.to_be_bytes());
        out.extend_from_slice(&self.counter.to_be_bytes());
        out.extend_from_slice(&self.nonce.to_be_bytes());
        self.record.encode(&mut out);
        match &self.certificate {
            Some(record) => {
                out.push(1);
                record.encode(&mut out);
            }
            None => out.push(0),
        }
        out
    }

    /// The bytes to seal.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.unsigned_bytes();
        out.extend_from_slice(&self.signature);
        out
    }

    /// Reads opened bytes.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let content = Self {
            identity: reader.array("identity")?,
            boot_epoch: reader.u64("boot epoch")?,
            counter: reader.u64("counter")?,
            nonce: reader.u64("nonce")?,
            record: Record::decode(&mut reader)?,
            certificate: match reader.u8("certificate presence")? {
                0 => None,
                1 => Some(Record::decode(&mut reader)?),
                _ => return Err(DecodeError::Value { field: "certificate presence" }),
            },
            signature: reader.array("signature")?,
        };
        reader.finish()?;
        Ok(content)
    }
}

/// The content of the answer to a first contact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IntroduceAckContent {
    /// The INTRODUCE's nonce.
    pub nonce: u64,
    /// The answering host's boot epoch.
    pub boot_epoch: u64,
    /// The source address the INTRODUCE came from.
    pub observed: Option<SocketAddr>,
    /// The answering host's HOST record.
    pub record: Record,
}

impl IntroduceAckContent {
    /// The bytes to seal.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40 + self.record.encoded_len());
        out.extend_from_slice(&self.nonce.to_be_bytes());
        out.extend_from_slice(&self.boot_epoch.to_be_bytes());
        put_optional_socket_addr(&mut out, self.observed);
        self.record.encode(&mut out);
        out
    }

    /// Reads opened bytes.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let content = Self {
            nonce: reader.u64("nonce")?,
            boot_epoch: reader.u64("boot epoch")?,
            observed: reader.optional_socket_addr("observed address")?,
            record: Record::decode(&mut reader)?,
        };
        reader.finish()?;
        Ok(content)
    }
}

fn split<'a>(datagram: &'a [u8], reader: Reader<'a>) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
    let ciphertext = reader.rest();
    if ciphertext.len() < AEAD_TAG_BYTES {
        return Err(DecodeError::Truncated {
            field: "ciphertext",
            needed: AEAD_TAG_BYTES,
            available: ciphertext.len(),
        });
    }
    Ok((&datagram[..datagram.len() - ciphertext.len()], ciphertext))
}

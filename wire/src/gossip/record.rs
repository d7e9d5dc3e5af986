//! Signed records: the only thing gossip spreads. Each belongs to one owner, who alone can write or withdraw it.
//!
//! Bodies of kinds this version does not know stay opaque and are relayed unchanged.

use crate::HostId;
use crate::gossip::codec::{DecodeError, Reader};

/// The record format written today.
pub const RECORD_VERSION: u8 = 1;
/// The largest body, so that every record fits one datagram; more data means more shards.
pub const MAX_BODY_BYTES: usize = 1024;
/// What the owner's signature covers begins with this text.
pub const RECORD_DOMAIN: &[u8] = b"overlay gossip record v1\0";
/// Bytes of a record beside its body.
pub const RECORD_OVERHEAD_BYTES: usize = 1 + 16 + 2 + 2 + 8 + 2 + 64;

/// What a record describes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordKind(pub u16);

impl RecordKind {
    /// The host itself: keys, endpoints, prefixes.
    pub const HOST: Self = Self(1);
    /// Prefixes behind the host.
    pub const ROUTES: Self = Self(2);
    /// The owner's certificate; the only record by which an unknown owner becomes a member.
    pub const CERTIFICATE: Self = Self(3);
    /// Trusted authority keys and revoked hosts; the owner is the authority itself.
    pub const AUTHORITY: Self = Self(4);
    /// Pieces of the cluster's policy text.
    pub const POLICY: Self = Self(5);
    /// What the host made of the cluster's policy.
    pub const POLICY_STATUS: Self = Self(6);
    /// The networks the host takes part in, and its blocks of them.
    pub const NETWORKS: Self = Self(7);
    /// Names of containers on the host.
    pub const NAMES: Self = Self(8);
    /// Labels of containers on the host, by address.
    pub const IDENTITIES: Self = Self(9);
}

/// The name of a record; versions of one key replace each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordKey {
    /// The host that signed it.
    pub owner: HostId,
    /// What it describes.
    pub kind: RecordKind,
    /// Which part, where one record does not hold all.
    pub shard: u16,
}

/// A signed, versioned record. An empty body withdraws what the key said before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The name.
    pub key: RecordKey,
    /// Strictly increasing per key.
    pub version: u64,
    /// The content, at most [`MAX_BODY_BYTES`].
    pub body: Vec<u8>,
    /// Ed25519 by the owner over [`Self::signed_bytes`].
    pub signature: [u8; 64],
}

impl Record {
    /// The bytes the owner signs: domain tag, cluster id, then every field before the signature.
    #[must_use]
    pub fn signed_bytes(&self, cluster: &[u8; 32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(RECORD_DOMAIN.len() + 32 + self.encoded_len());
        out.extend_from_slice(RECORD_DOMAIN);
        out.extend_from_slice(cluster);
        self.put_unsigned(&mut out);
        out
    }

    /// Whether the record withdraws its key.
    #[must_use]
    pub fn is_withdrawal(&self) -> bool {
        self.body.is_empty()
    }

    /// The size [`Self::encode`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        RECORD_OVERHEAD_BYTES + self.body.len()
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.put_unsigned(out);
        out.extend_from_slice(&self.signature);
    }

    /// Takes one record.
    ///
    /// # Errors
    /// When cut short, of another format version, or with a body beyond the limit.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = reader.u8("record format")?;
        if version != RECORD_VERSION {
            return Err(DecodeError::Version { what: "record", version });
        }
        let key = RecordKey::decode(reader)?;
        let version = reader.u64("record version")?;
        let len = usize::from(reader.u16("record body length")?);
        if len > MAX_BODY_BYTES {
            return Err(DecodeError::TooLong { field: "record body", max: MAX_BODY_BYTES });
        }
        let body = reader.bytes("record body", len)?.to_vec();
        Ok(Self { key, version, body, signature: reader.array("record signature")? })
    }

    fn put_unsigned(&self, out: &mut Vec<u8>) {
        out.push(RECORD_VERSION);
        self.key.encode(out);
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&(self.body.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.body);
    }
}

impl RecordKey {
    /// Bytes of an encoded key.
    pub const LEN: usize = 20;

    /// Appends the key.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.owner.0);
        out.extend_from_slice(&self.kind.0.to_be_bytes());
        out.extend_from_slice(&self.shard.to_be_bytes());
    }

    /// Takes a key.
    ///
    /// # Errors
    /// When cut short.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: reader.host_id("record owner")?,
            kind: RecordKind(reader.u16("record kind")?),
            shard: reader.u16("record shard")?,
        })
    }
}

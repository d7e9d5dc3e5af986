//! The body of AUTHORITY records: which keys are trusted, and which hosts are revoked.
//!
//! The owner of such a record is the authority itself. Shard 0 speaks of keys; each issuer has shards of its own for the
//! hosts it revoked, so that two issuers that sign at the same time never replace each other's word.

use crate::HostId;
use crate::gossip::body::{BODY_VERSION, BodyError};
use crate::gossip::codec::{DecodeError, Reader};
use crate::membership::certificate::CaId;

/// The most revoked hosts in one record.
pub const REVOKED_PER_RECORD: usize = 63;
/// The most retired authorities one authority names.
pub const MAX_RETIRED: usize = 8;
/// The shard that speaks of keys.
pub const KEYS_SHARD: u16 = 0;

/// The shard of an issuer's revocation chunk: the slot above, the chunk from 1 below.
#[must_use]
pub fn authority_shard(slot: u8, chunk: u8) -> u16 {
    u16::from(slot) << 8 | u16::from(chunk)
}

/// What an authority says about keys, or about revoked hosts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthorityBody {
    /// About keys.
    Keys {
        /// Its own Ed25519 key; its hash is the owner of the record.
        key: [u8; 32],
        /// The authority that will follow it and is trusted beside it from now on.
        successor: Option<[u8; 32]>,
        /// Authorities it has followed and that count no more, ascending.
        retired: Vec<CaId>,
    },
    /// Hosts that are no members any more, for ever; ascending, 1 to 63.
    Revoked(Vec<HostId>),
}

impl AuthorityBody {
    /// The body's bytes.
    ///
    /// # Errors
    /// When a list is too long or out of order.
    pub fn encode(&self) -> Result<Vec<u8>, BodyError> {
        let mut out = vec![BODY_VERSION];
        match self {
            Self::Keys { key, successor, retired } => {
                out.push(1);
                out.extend_from_slice(key);
                match successor {
                    Some(key) => {
                        out.push(1);
                        out.extend_from_slice(key);
                    }
                    None => out.push(0),
                }
                out.push(retired.len().min(255) as u8);
                retired.iter().for_each(|ca| out.extend_from_slice(&ca.0));
            }
            Self::Revoked(hosts) => {
                out.push(2);
                out.push(hosts.len().min(255) as u8);
                hosts.iter().for_each(|host| out.extend_from_slice(&host.0));
            }
        }
        Self::decode(&out)?;
        Ok(out)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        match reader.u8("AUTHORITY body")? {
            BODY_VERSION => {}
            version => return Err(DecodeError::Version { what: "AUTHORITY body", version }),
        }
        let value = match reader.u8("statement")? {
            1 => {
                let key = reader.array("authority key")?;
                let successor = match reader.u8("successor")? {
                    0 => None,
                    1 => Some(reader.array("successor key")?),
                    _ => return Err(DecodeError::Value { field: "successor" }),
                };
                let mut retired = Vec::new();
                for _ in 0..reader.count("retired authorities", MAX_RETIRED)? {
                    let ca = CaId(reader.array("retired authority")?);
                    if retired.last().is_some_and(|last| *last >= ca) {
                        return Err(DecodeError::Value { field: "retired authorities" });
                    }
                    retired.push(ca);
                }
                Self::Keys { key, successor, retired }
            }
            2 => {
                let mut hosts: Vec<HostId> = Vec::new();
                let count = reader.count("revoked hosts", REVOKED_PER_RECORD)?;
                for _ in 0..count {
                    let host = reader.host_id("revoked host")?;
                    if hosts.last().is_some_and(|last| *last >= host) {
                        return Err(DecodeError::Value { field: "revoked hosts" });
                    }
                    hosts.push(host);
                }
                if hosts.is_empty() {
                    return Err(DecodeError::Value { field: "revoked hosts" });
                }
                Self::Revoked(hosts)
            }
            _ => return Err(DecodeError::Value { field: "statement" }),
        };
        reader.finish()?;
        Ok(value)
    }

    /// Whether the body may stand in this shard.
    #[must_use]
    pub fn fits_shard(&self, shard: u16) -> bool {
        match self {
            Self::Keys { .. } => shard == KEYS_SHARD,
            Self::Revoked(_) => shard & 0xff != 0,
        }
    }
}

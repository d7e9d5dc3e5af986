//! The bodies of POLICY and POLICY-STATUS records: pieces of one policy text, and what a host made of it.

use crate::gossip::body::{BODY_VERSION, BodyError};
use crate::gossip::codec::{DecodeError, Reader};

/// Text bytes in every piece but the last.
pub const POLICY_PIECE_BYTES: usize = 960;
/// The most pieces of one text.
pub const MAX_POLICY_SHARDS: usize = 32;
/// The longest reason of a refusal, in bytes.
pub const MAX_REASON_BYTES: usize = 200;
/// The longest policy text.
pub const MAX_POLICY_BYTES: usize = POLICY_PIECE_BYTES * MAX_POLICY_SHARDS;

/// One piece of a policy text; its place is the record's shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyShard {
    /// The revision of the whole text.
    pub revision: u64,
    /// The hash of the whole text.
    pub hash: [u8; 32],
    /// How many pieces there are, 1 to 32.
    pub count: u8,
    /// This piece: 960 bytes, the last one 1 to 960 (an empty text has one empty piece).
    pub piece: Vec<u8>,
}

impl PolicyShard {
    /// Cuts a text of valid length into the pieces of all shards.
    ///
    /// # Errors
    /// When the text is longer than [`MAX_POLICY_BYTES`].
    pub fn cut(revision: u64, hash: [u8; 32], text: &[u8]) -> Result<Vec<Self>, BodyError> {
        if text.len() > MAX_POLICY_BYTES {
            return Err(BodyError::TooLarge { bytes: text.len(), max: MAX_POLICY_BYTES });
        }
        let pieces: Vec<&[u8]> = if text.is_empty() { vec![&[]] } else { text.chunks(POLICY_PIECE_BYTES).collect() };
        let count = pieces.len() as u8;
        Ok(pieces.into_iter().map(|piece| Self { revision, hash, count, piece: piece.to_vec() }).collect())
    }

    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![BODY_VERSION];
        out.extend_from_slice(&self.revision.to_be_bytes());
        out.extend_from_slice(&self.hash);
        out.push(self.count);
        out.extend_from_slice(&self.piece);
        out
    }

    /// Reads the body of a record with this shard.
    ///
    /// # Errors
    /// When the bytes are not what [`Self::cut`] and [`Self::encode`] give for this shard.
    pub fn decode(body: &[u8], shard: u16) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        match reader.u8("POLICY body")? {
            BODY_VERSION => {}
            version => return Err(DecodeError::Version { what: "POLICY body", version }),
        }
        let revision = reader.u64("policy revision")?;
        let hash = reader.array("policy hash")?;
        let count = reader.u8("policy pieces")?;
        if !(1..=MAX_POLICY_SHARDS).contains(&usize::from(count)) || shard >= u16::from(count) {
            return Err(DecodeError::Value { field: "policy pieces" });
        }
        let piece = reader.rest().to_vec();
        let is_last = shard + 1 == u16::from(count);
        let fits = if is_last {
            piece.len() <= POLICY_PIECE_BYTES && (count == 1 || !piece.is_empty())
        } else {
            piece.len() == POLICY_PIECE_BYTES
        };
        if !fits {
            return Err(DecodeError::Value { field: "policy piece" });
        }
        Ok(Self { revision, hash, count, piece })
    }
}

/// What a host made of the cluster's policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyOutcome {
    /// It is in force there.
    Applied,
    /// It could not be put in force there; the one before is still in force.
    Refused,
    /// Nobody confirmed it in time, so the one before is in force again.
    Lapsed,
}

/// The body of a POLICY-STATUS record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyStatus {
    /// The revision.
    pub revision: u64,
    /// The hash of its text.
    pub hash: [u8; 32],
    /// What became of it.
    pub outcome: PolicyOutcome,
    /// Why it was refused; empty otherwise. Longer ones than [`MAX_REASON_BYTES`] are cut.
    pub reason: String,
}

impl PolicyStatus {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![BODY_VERSION];
        out.extend_from_slice(&self.revision.to_be_bytes());
        out.extend_from_slice(&self.hash);
        out.push(match self.outcome {
            PolicyOutcome::Applied => 1,
            PolicyOutcome::Refused => 2,
            PolicyOutcome::Lapsed => 3,
        });
        if self.outcome == PolicyOutcome::Refused {
            let mut ends = (0..=MAX_REASON_BYTES.min(self.reason.len())).rev();
            let end = ends.find(|at| self.reason.is_char_boundary(*at)).unwrap_or(0);
            out.extend_from_slice(self.reason.get(..end).unwrap_or_default().as_bytes());
        }
        out
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        match reader.u8("POLICY-STATUS body")? {
            BODY_VERSION => {}
            version => return Err(DecodeError::Version { what: "POLICY-STATUS body", version }),
        }
        let (revision, hash) = (reader.u64("policy revision")?, reader.array("policy hash")?);
        let outcome = match reader.u8("policy outcome")? {
            1 => PolicyOutcome::Applied,
            2 => PolicyOutcome::Refused,
            3 => PolicyOutcome::Lapsed,
            _ => return Err(DecodeError::Value { field: "policy outcome" }),
        };
        let reason = reader.rest();
        if reason.len() > MAX_REASON_BYTES || (outcome != PolicyOutcome::Refused && !reason.is_empty()) {
            return Err(DecodeError::Value { field: "policy reason" });
        }
        let reason = String::from_utf8(reason.to_vec()).map_err(|_| DecodeError::Value { field: "policy reason" })?;
        Ok(Self { revision, hash, outcome, reason })
    }
}

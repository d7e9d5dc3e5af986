//! Membership formats: certificates, the bodies of authority and policy records, and the join exchange.
//!
//! As everywhere in gossip: fixed order, big-endian, one encoding per value. Signing and checking is done in `routing`.

pub mod authority;
pub mod certificate;
pub mod document;
pub mod join;
pub mod policy;

#[cfg(test)]
pub(crate) mod tests;

pub use authority::{AuthorityBody, REVOKED_PER_RECORD, authority_shard};
pub use certificate::{CaId, Certificate, Labels, Rights, Serial, SignedCertificate};
pub use document::{DocumentError, PolicyDocument, PolicyMade, PolicyTrial, PreviousPolicy};
pub use join::{Admission, ClusterSettings, JoinAnswer, JoinContent, JoinRefusal, TokenId};
pub use policy::{MAX_POLICY_BYTES, PolicyOutcome, PolicyShard, PolicyStatus};

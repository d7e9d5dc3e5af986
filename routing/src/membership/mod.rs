//! Membership by certificate: the authority, its issuers with their ledger of tokens and slice of the pool, and the join
//! exchange.
//!
//! Pure as the rest of the crate: the wall clock is an argument (`unix_now`, seconds), and so is randomness. An [`Issuer`]
//! changes only through [`Pending`] values, whose state the caller makes durable before it can take the answer out.

mod ca;
mod export;
mod issuer;
pub(crate) mod join_keys;
mod joiner;
mod slice;
mod state;
#[cfg(test)]
mod tests;
mod token;

pub use ca::{CaKey, CertificateError, ca_id, verify_certificate};
pub use export::{ExportError, KdfCost};
pub use issuer::{
    Forgotten, Issuer, IssuerConfig, IssuerError, JoinContext, JoinDecision, JoinSilence, Pending, StaleError,
    TokenRequest, TokenView,
};
pub use joiner::{JoinEvent, Joiner, JoinerError};
pub use slice::{Family, Slice};
pub use state::StateError;
pub use token::{Token, TokenError};

/// Validity of a certificate unless the cluster says otherwise: 30 days.
pub const DEFAULT_VALIDITY_SECS: u64 = 30 * 24 * 3600;
/// How much earlier than its making a certificate is valid, so that a slow clock elsewhere does not refuse it.
pub const BACKDATE_SECS: u64 = 300;
/// How long after the last certificate's end a freed prefix is kept back.
pub const COOLDOWN_SECS: u64 = 24 * 3600;

//! Gossip formats: grants, signed records, messages and the envelope that carries them.
//!
//! Everything is fixed-order binary with one encoding per value: decoding accepts exactly what encoding emits.

pub mod grant;

pub use grant::{Grant, GrantError, GrantKind};

//! Names of hosts and containers, and the answers of the domain name system to questions about them.
//!
//! The crate is pure: the daemon builds a [`Zone`], hands in the bytes of a query and gets bytes to send, or hears that the
//! question is for somebody else. Bytes are read and written by the crate `domain`; no query makes this crate panic, and no
//! answer is larger than the client takes.

#![forbid(unsafe_code)]

mod answer;
mod forward;
mod reverse;
mod zone;

pub use answer::{Answered, MAX_TCP_BYTES, Transport, answer, failure};
pub use forward::{
    NAME_BITS_BYTES, Question, as_asked, essence, is_answer, is_spelled_alike, question, with_case, with_id,
};
pub use zone::{Addresses, Found, Zone, ZoneError};

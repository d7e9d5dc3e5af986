//! Gossip formats: grants, signed records, messages and the envelope that carries them.
//!
//! Everything is fixed-order big-endian binary with one encoding per value: decoding accepts exactly what encoding emits.

pub mod body;
pub mod codec;
pub mod envelope;
pub mod grant;
pub mod identities;
pub mod message;
pub mod names;
pub mod networks;
pub mod record;
pub mod trace;

#[cfg(test)]
mod tests;

pub use body::{BodyError, HostBody, RouteAnnouncement, RoutesBody};
pub use codec::DecodeError;
pub use grant::{Grant, GrantError, GrantKind};
pub use identities::{IdentitiesBody, Labels};
pub use message::{Message, PlainStatus, RouteVerdict};
pub use names::NamesBody;
pub use networks::{NetworkEntry, NetworkMode, NetworkOptions, NetworksBody};
pub use record::{Record, RecordKey, RecordKind};
pub use trace::{TraceAnswer, TraceOutcome, TraceStep, TracedPacket};

//! The underlay: one UDP port for WireGuard and gossip, and raw sockets for protocols 4, 41 and 47.
//!
//! Every socket carries a mark that our routing rules keep out of the overlay, so the overlay can never swallow its
//! own datagrams.

mod address;
pub mod receive;
pub mod refusal;
pub mod route;
pub mod send;
pub mod socket;

pub use receive::{ReceiveBatch, Received};
pub use send::{Destination, Flushed, OuterFragments, SendBatch};
pub use socket::{Family, RawProtocol, SocketError, open_raw, open_udp};

//! Byte formats and shared value types of the overlay network.
//!
//! This crate is pure: it has no sockets, clock, threads or ambient randomness. Every decoder is total: it returns a
//! value or an error, never panics, and allocates nothing before lengths are validated.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod ecn;
pub mod encapsulation;
pub mod envelope;
pub mod fragment;
pub mod gossip;
pub mod gre;
pub mod icmp;
pub mod id;
pub mod ipip;
pub mod membership;
pub mod mss;
pub mod offload;
pub mod packet;
pub mod policy;
pub mod prefix;
pub mod ttl;

pub use encapsulation::{Encapsulation, Mtu};
pub use id::{HostId, PeerIndex};
pub use prefix::Prefix;

//! Gossip state machine, record store, ownership, and route tables.
//!
//! This crate is pure: it has no sockets, files, threads, clock or ambient randomness. Time and seeds are arguments.

#![forbid(unsafe_code)]

pub mod fib;
pub mod gossip;
pub mod identities;
pub mod identity;
pub mod membership;
pub mod networks;
pub mod ownership;
pub mod policy;
pub mod rib;

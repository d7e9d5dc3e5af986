//! overlayd, the overlay network daemon: devices, sockets, clocks, workers and the control socket around the pure crates.

#![deny(unsafe_code)]

pub mod counters;
pub mod device;
pub mod handshake;
pub mod peers;
pub mod probe;
pub mod shared;
pub mod snapshot;
pub mod underlay;
pub mod wireguard;
pub mod worker;

//! overlayd, the overlay network daemon: devices, sockets, clocks, workers and the control socket around the pure crates.

#![deny(unsafe_code)]

#[expect(dead_code, unused_imports, reason = "bound to the backend by the supervisor")]
mod api;
pub mod counters;
pub mod device;
pub mod plumbing;
pub mod probe;
pub mod underlay;
pub mod wireguard;

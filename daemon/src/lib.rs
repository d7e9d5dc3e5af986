//! overlayd, the overlay network daemon: devices, sockets, clocks, workers and the control socket around the pure crates.

#![deny(unsafe_code)]

mod api;
pub mod asking;
pub mod backend;
pub mod capture;
mod cluster_policy;
pub mod core;
pub mod counters;
pub mod device;
pub mod director;
pub mod doctor;
pub mod events;
pub mod flow_store;
pub mod handshake;
pub mod limits;
mod logging;
mod membership;
pub mod metrics;
pub mod names;
pub mod peers;
pub mod ping;
pub mod plumbing;
pub mod probe;
pub mod rebuild;
pub mod shared;
pub mod sizes;
pub mod snapshot;
mod standby;
pub mod start;
pub mod state;
mod uapi;
pub mod underlay;
pub mod wireguard;
pub mod worker;

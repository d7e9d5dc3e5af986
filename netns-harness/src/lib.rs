//! Clusters of overlay hosts in network namespaces.
//!
//! A [`Lab`] is a set of hosts joined by an underlay. Each host is a named network namespace (`ip netns` shows it) with
//! its own underlay addresses, `/run` and `/var/lib`; containers are further namespaces. Everything a lab makes carries
//! its prefix `ovl-<lab>-`, is written to a journal before it is used, and is removed when the lab is dropped, when the
//! process exits, or later by [`clean`].

mod binaries;
pub mod clean;
mod cluster;
mod command;
mod daemon;
mod debian;
pub mod engine;
mod impair;
mod journal;
mod lab;
pub mod load;
mod nat;
pub mod netns;
pub mod packages;
mod ping;
mod plain;
pub mod qemu;
mod state;
mod underlay;
mod wait;
pub mod wire;

pub use binaries::{Binaries, Profile, target_directory, workspace};
pub use cluster::{Cluster, Family, Identity};
pub use command::{ip, ip_batch, nft, run, run_in};
pub use daemon::{CONFIG_PATH, SOCKET_PATH};
pub use impair::Impairment;
pub use lab::{Container, Host, HostSpec, Lab, LogsOnFailure, Topology};
pub use nat::Nat;
pub use ping::{PingReport, Pings, ping};
pub use wait::{WaitError, wait_for};

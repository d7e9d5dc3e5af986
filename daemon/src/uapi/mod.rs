//! The WireGuard cross-platform interface (wireguard.com/xplatform): a socket by which `wg` shows this host's peers and
//! changes the foreign ones.
//!
//! Bounds: 16 connections, 1 MiB per request, 5 s for a request to arrive, to be worked on, and for its answer to be
//! taken. The socket has mode 0600. Secrets are told to root alone.

mod plan;
mod request;
mod server;
mod show;
mod state;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub(crate) use server::Server;

/// Where `wg` looks for sockets.
const DIRECTORY: &str = "/var/run/wireguard";

/// The socket of an interface.
pub(crate) fn socket_path(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
}

//! The commands about names.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Dns {
    /// The server of names on this host.
    Status,
    /// Give an endpoint of this host names, instead of those it was given before.
    Name {
        /// The endpoint.
        endpoint: String,
        /// Its names; none takes them back.
        names: Vec<String>,
    },
    /// Let dockerd hand this host's server to its containers: edits daemon.json and shows the difference (needs root). dockerd
    /// reads the file at its next start.
    Docker {
        /// Take it back.
        #[arg(long)]
        undo: bool,
        /// dockerd's configuration.
        #[arg(long, value_name = "FILE", default_value = overlay_plugins::docker_dns::DAEMON_JSON)]
        file: PathBuf,
    },
    /// Let this host itself ask for names of the overlay: by systemd-resolved where it runs (needs root), else the lines to add
    /// are shown. resolv.conf is never written.
    Host {
        /// Take it back.
        #[arg(long)]
        undo: bool,
    },
}

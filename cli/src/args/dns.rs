//! The commands about names.

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
    /// Let this host itself ask for names of the overlay: by systemd-resolved where it runs (needs root), else the lines to add
    /// are shown. resolv.conf is never written.
    Host {
        /// Take it back.
        #[arg(long)]
        undo: bool,
    },
}

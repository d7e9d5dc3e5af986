//! The commands for container engines.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Plugin {
    /// The CNI plugin: podman, containerd, Kubernetes.
    #[command(subcommand)]
    Cni(Cni),
    /// The Docker plugin: `docker network create -d overlayd --ipam-driver overlayd NAME`.
    #[command(subcommand)]
    Docker(Docker),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Docker {
    /// Have systemd hold the plugin's socket from now on, and dockerd hand this host's server of names to its containers: edits
    /// daemon.json and shows the difference. dockerd reads the file at its next start.
    Install(DockerParts),
    /// Take both back; daemon.json becomes what it was.
    Remove(DockerParts),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DockerParts {
    /// Leave daemon.json alone.
    #[arg(long, conflicts_with = "no_units")]
    pub(crate) no_dns: bool,
    /// Leave systemd alone: something else starts the plugin before dockerd.
    #[arg(long)]
    pub(crate) no_units: bool,
    /// dockerd's configuration.
    #[arg(long, value_name = "FILE", default_value = overlay_plugins::docker_dns::DAEMON_JSON)]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cni {
    /// Link the plugin where engines look for it, and write a network that uses it.
    Install(CniPlaces),
    /// Remove both again.
    Remove(CniPlaces),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CniPlaces {
    /// The network's name.
    #[arg(long, default_value = "overlay")]
    pub(crate) name: String,
    /// Where engines look for plugins. By default /opt/cni/bin, and where containerd's configuration says.
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Where engines look for networks.
    #[arg(long, value_name = "DIR", default_value = overlay_plugins::cni_install::CONF_DIR)]
    pub(crate) conf_dir: PathBuf,
}

//! Arguments of `overlayctl trace` and `overlayctl capture`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Trace {
    /// Who sends: an address, a container of this host, or a host.
    pub(crate) from: String,
    /// Who gets it.
    pub(crate) to: String,
    /// `tcp`, `udp`, `icmp` or a number; default: `tcp` with a port, else `icmp`.
    #[arg(long, short)]
    pub(crate) protocol: Option<String>,
    /// Destination port.
    #[arg(long)]
    pub(crate) dport: Option<u16>,
    /// Source port.
    #[arg(long, default_value_t = 49152)]
    pub(crate) sport: u16,
    /// Length of the packet in bytes; default: as short as can be.
    #[arg(long, default_value_t = 0)]
    pub(crate) size: u16,
    /// The packet may be fragmented.
    #[arg(long)]
    pub(crate) fragment: bool,
    /// Also show what is decided about real packets of the flow; sends one where it is an echo request.
    #[arg(long)]
    pub(crate) live: bool,
    /// How long packets are watched with --live.
    #[arg(long = "for", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) watch: Duration,
    /// Show only what refuses the packet, and what would permit it.
    #[arg(long)]
    pub(crate) why_not: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CaptureVerdictWord {
    /// Packets that pass.
    Allow,
    /// Packets that are dropped.
    Deny,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Capture {
    /// Which packets: `tcp/443 and host 10.42.1.5`, `from 10.42.1.0/24 to any`, `not port 22`; default: all.
    pub(crate) filter: Vec<String>,
    /// Packets to and from this peer only.
    #[arg(long, value_name = "NAME")]
    pub(crate) peer: Option<String>,
    /// Packets of this container only.
    #[arg(long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Packets with this verdict only.
    #[arg(long, value_enum)]
    pub(crate) verdict: Option<CaptureVerdictWord>,
    /// Begin with the packets of the last so long, where the daemon keeps them.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) back: Option<Duration>,
    /// Bytes of each packet.
    #[arg(long, default_value_t = 65535, value_parser = clap::value_parser!(u32).range(1..=65535))]
    pub(crate) snaplen: u32,
    /// End after so many packets.
    #[arg(short, long)]
    pub(crate) count: Option<u64>,
    /// End after this time.
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// The file; `-` is standard output.
    #[arg(short, long, value_name = "FILE|-")]
    pub(crate) write: PathBuf,
}

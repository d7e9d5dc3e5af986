//! The words of `overlayctl policy`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::lifetime;

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// The rules in force here, and whose they are.
    Show,
    /// Whether a file of rules would be accepted.
    Check {
        /// A file of rules, one per line, `default ACTION` among them; `-` for standard input.
        file: PathBuf,
    },
    /// Put a file of rules in force on all hosts, or with --local on this one.
    Apply {
        /// A file of rules, one per line, `default ACTION` among them; `-` for standard input.
        #[arg(required_unless_present = "reset")]
        file: Option<PathBuf>,
        /// Go back by itself after this time, as in 60s or 5m, unless `policy confirm` comes before.
        #[arg(long, value_name = "TIME", value_parser = lifetime, conflicts_with = "local")]
        confirm: Option<Duration>,
        /// This host alone: its own policy, which counts where the cluster has none.
        #[arg(long)]
        local: bool,
        /// With --local: go back to the policy of the configuration file.
        #[arg(long, conflicts_with = "file", requires = "local")]
        reset: bool,
    },
    /// Keep what `policy apply --confirm` put in force.
    Confirm,
    /// Put an earlier revision in force again on all hosts.
    Rollback {
        /// The revision, as `policy status` lists them; 0: no policy of the cluster, each host's own counts.
        revision: u64,
        /// Go back by itself after this time unless `policy confirm` comes before.
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        confirm: Option<Duration>,
    },
    /// The newest revision, and which hosts have it.
    Status,
    /// What a file would change on the cluster's policy; without one, how this host's own differs from it.
    Diff {
        /// A file of rules; `-` for standard input.
        file: Option<PathBuf>,
    },
    /// Say what would happen to a packet and which rule decides.
    Test {
        /// The source address.
        from: IpAddr,
        /// The destination address.
        to: IpAddr,
        /// `tcp/443`, `udp/53`, `icmp`, `icmpv6` or a protocol number.
        #[arg(default_value = "icmp")]
        protocol: String,
        /// The source port.
        #[arg(long, default_value_t = 40_000)]
        source_port: u16,
        /// Judge by this host's policy alone (the only kind of test so far).
        #[arg(long)]
        local: bool,
    },
}

//! The commands of membership.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, Prefix};

use super::{duration, lifetime};

#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// The cluster's name.
    pub(crate) cluster: String,
    /// The prefixes that all subnets come from: one of IPv4, and one of IPv6 where wanted.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',', required = true)]
    pub(crate) pool: Vec<Prefix>,
    /// This host's name; default: the machine's.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Underlay prefixes inside which this host accepts unencrypted packets.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) trusted_underlay: Vec<Prefix>,
    /// The encapsulation of the cluster; gre and ipip need a trusted underlay.
    #[arg(long, short, default_value = "wireguard")]
    pub(crate) encapsulation: Encapsulation,
    /// What happens to packets that no rule matches: open, members or deny.
    #[arg(long, default_value = "members")]
    pub(crate) policy: DefaultPolicy,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Invite {
    /// How many hosts the token admits.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) uses: u32,
    /// How long it counts.
    #[arg(long, default_value = "1h", value_parser = lifetime)]
    pub(crate) ttl: Duration,
    /// A label that the hosts get, as KEY=VALUE.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// The host's subnet, one per family; default: the next free ones.
    #[arg(long = "subnet", value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) subnets: Vec<Prefix>,
    /// The host's name; default: what the host asks for.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Let the hosts change the policy of the whole cluster.
    #[arg(long)]
    pub(crate) allow_policy: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Join {
    /// What `overlayctl invite` printed; `@FILE` reads it from a file, `-` from standard input.
    pub(crate) token: String,
    /// The name to ask for; default: the machine's.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Underlay prefixes inside which this host accepts unencrypted packets.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) trusted_underlay: Vec<Prefix>,
    /// How long to wait for the first packets.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Every token made here.
    List,
    /// Withdraw a token; hosts it admitted stay members.
    Revoke {
        /// Its id, as `token list` shows it.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    /// The certificates of all members.
    List,
    /// One certificate in full.
    Show {
        /// The member's name or host id; default: this host.
        member: Option<String>,
    },
    /// Ask an issuer for a new certificate for this host now.
    Renew,
    /// Cut a member off for good: its key is never accepted again.
    Revoke {
        /// The member's name or host id.
        member: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Cut a member off for good, and give its subnets to others once its certificate has ended.
    Forget {
        /// The member's name or host id.
        member: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Write the authority's key to a file, encrypted with a passphrase, for a backup or a second issuer.
    Export {
        /// The file; an existing one is never overwritten.
        file: PathBuf,
        /// A file of mode 0600 with the passphrase; default: ask on the terminal.
        #[arg(long, value_name = "PATH")]
        passphrase_file: Option<PathBuf>,
    },
    /// Make this member an issuer with a file that `ca export` wrote.
    Import {
        /// The file.
        file: PathBuf,
        /// A file of mode 0600 with the passphrase; default: ask on the terminal.
        #[arg(long, value_name = "PATH")]
        passphrase_file: Option<PathBuf>,
    },
    /// Replace the authority's key; the old one stays trusted until `--finish`.
    Rotate {
        /// Retire the old key: what it signed counts no more.
        #[arg(long)]
        finish: bool,
    },
}

//! The words of `overlayctl network` and `overlayctl ipam`.

use std::net::IpAddr;

use clap::{Subcommand, ValueEnum};
use overlay_wire::Prefix;
use overlay_wire::gossip::NetworkMode;

#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Make a network, or take part in one that another host made.
    Create(NetworkCreate),
    /// Every network of the cluster.
    List,
    /// One network: its blocks on all hosts, its endpoints on this one, hosts that disagree.
    Show {
        /// The network's name.
        name: String,
    },
    /// Take this host out of a network; refused while endpoints here use it. The last host ends it.
    Rm {
        /// The network's name.
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct NetworkCreate {
    /// The network's name, the same on all hosts.
    pub(crate) name: String,
    /// Confine its addresses to this part of the overlay; a pool of one family makes a network of that family.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) pool: Vec<Prefix>,
    /// No way to the outside, whatever the policy says.
    #[arg(long)]
    pub(crate) internal: bool,
    /// How its containers on one host are linked.
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,
}

/// How containers are linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Each on a link of its own; everything passes the filter.
    Routed,
    /// All on one bridge; nothing is filtered between them.
    Bridge,
}

impl From<Mode> for NetworkMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Routed => Self::Routed,
            Mode::Bridge => Self::Bridge,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ipam {
    /// How full this host's prefix and the blocks of networks are.
    Show,
    /// Every address that is held, by whom.
    List,
    /// Compare leases with links and with each other; exits with 10 when something is wrong and was not put right.
    Check {
        /// Put right what is found.
        #[arg(long)]
        fix: bool,
    },
    /// Free an address that rests after use or is reserved.
    Release {
        /// The address.
        address: IpAddr,
    },
    /// Keep an address from being given.
    Reserve {
        /// The address.
        address: IpAddr,
    },
}

//! The command line as `clap` parses it.

mod capture;
mod dns;
mod limit;
mod membership;
mod nat;
mod network;
mod plugin;
mod policy;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use overlay_config::PublicKey;
use overlay_wire::{Encapsulation, Prefix};

pub(crate) use dns::Dns;
pub(crate) use nat::{HostPort, Nat, Target};
pub(crate) use plugin::{Cni, CniPlaces, Docker, DockerParts, Plugin};

pub(crate) use capture::{Capture, CaptureVerdictWord, Trace};
pub(crate) use limit::{Limit, LimitDirection};
pub(crate) use membership::{Ca, Cert, Init, Invite, Join, Node, Token};
pub(crate) use network::{Ipam, Network};
pub(crate) use policy::Policy;

/// Shows and changes the overlay network of this host.
#[derive(Debug, Parser)]
#[command(name = "overlayctl", version, max_term_width = 100, infer_subcommands = false)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Without a command: `status`.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Print JSON with a `schema` field.
    #[arg(short, long, global = true)]
    pub(crate) json: bool,
    /// The control socket of the daemon.
    #[arg(long, global = true, value_name = "PATH", env = "OVERLAY_SOCKET", default_value = overlay_config::defaults::SOCKET)]
    pub(crate) socket: PathBuf,
    /// Print nothing but what was asked for: changes succeed silently.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// This host, its peers, and what is wrong.
    Status {
        /// Exit with 10 when degraded and 11 when unhealthy.
        #[arg(long)]
        check: bool,
        /// Show the problems only.
        #[arg(long)]
        problems: bool,
    },
    /// Found a cluster, with this host as its first member and issuer.
    Init(Init),
    /// Make a token that admits a host.
    Invite(Invite),
    /// Become a member with a token.
    Join(Join),
    /// Give the membership up.
    Leave {
        /// Keep the identity key, to come back as the same host.
        #[arg(long)]
        keep_identity: bool,
    },
    /// Tokens of this issuer.
    #[command(subcommand)]
    Token(Token),
    /// Certificates of the members.
    #[command(subcommand)]
    Cert(Cert),
    /// Hosts of the cluster.
    #[command(subcommand)]
    Node(Node),
    /// The authority's key.
    #[command(subcommand)]
    Ca(Ca),
    /// Peers: members of the cluster and foreign ones.
    #[command(subcommand)]
    Peer(Peer),
    /// Prefixes, who owns them and why.
    #[command(subcommand)]
    Route(Route),
    /// The packet filter.
    #[command(subcommand)]
    Policy(Policy),
    /// Tracked flows.
    #[command(subcommand)]
    Flow(Flow),
    /// Containers attached to the overlay on this host.
    #[command(subcommand)]
    Endpoint(Endpoint),
    /// Limits on rates.
    #[command(subcommand)]
    Limit(Limit),
    /// Ports of this host that lead to containers.
    #[command(subcommand)]
    Nat(Nat),
    /// Names of hosts and containers.
    #[command(subcommand)]
    Dns(Dns),
    /// Networks of the cluster: containers of different ones do not talk unless the policy says so.
    #[command(subcommand)]
    Network(Network),
    /// Addresses of this host: who has them, and whether that is right.
    #[command(subcommand)]
    Ipam(Ipam),
    /// Plugins of container engines.
    #[command(subcommand)]
    Plugin(Plugin),
    /// The configuration in force.
    #[command(subcommand)]
    Config(Config),
    /// Measure the way to a peer or an overlay address.
    Ping {
        /// A peer's name or an overlay address.
        target: String,
        /// How many probes.
        #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        /// Inner packet size in bytes.
        #[arg(long, default_value_t = 84, value_parser = clap::value_parser!(u16).range(28..))]
        size: u16,
        /// The time between probes.
        #[arg(long, default_value = "200ms", value_parser = duration)]
        interval: Duration,
    },
    /// Every decision on a packet, on this host and on the other, in order.
    Trace(Trace),
    /// Capture inner packets with what was decided about them, as pcapng.
    Capture(Capture),
    /// Wait for something.
    #[command(subcommand)]
    Wait(Wait),
    /// Look for what is wrong around the daemon, and put it right.
    Doctor {
        /// Put right what can be put right.
        #[arg(long, conflicts_with = "undo")]
        fix: bool,
        /// Take back what `--fix` did.
        #[arg(long)]
        undo: bool,
        /// Ask this peer right now: its UDP port, the data path, sizes and its clock. Takes at most 10 s.
        #[arg(long, value_name = "NAME")]
        peer: Option<String>,
    },
    /// Changes of state.
    Events {
        /// Follow until interrupted.
        #[arg(short, long, required = true)]
        follow: bool,
        /// End after this many.
        #[arg(short, long, value_name = "COUNT")]
        count: Option<u64>,
    },
    /// The release of this program and of the daemon.
    Version,
    /// Keys in files.
    #[command(subcommand)]
    Key(Key),
    /// Print completions for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one per command.
    Man {
        /// The directory to write to; it must exist.
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Peer {
    /// Every peer.
    List,
    /// One peer in full.
    Show {
        /// Its name.
        name: String,
    },
    /// Add a foreign peer, one that does not run this daemon.
    Add(PeerAdd),
    /// Remove a peer that `peer add` added.
    Rm {
        /// Its name.
        name: String,
    },
    /// Change a member: `peer set h2 encapsulation=gre`.
    Set {
        /// The member's name.
        #[arg(required_unless_present = "default")]
        name: Option<String>,
        /// Change the default of all members that name no encapsulation.
        #[arg(long, conflicts_with = "name")]
        default: bool,
        /// `encapsulation=wireguard|gre|ipip`, or `encapsulation=config` to go back to the file.
        #[arg(long, short, value_name = "KIND")]
        encapsulation: Option<String>,
        /// Settings as KEY=VALUE.
        #[arg(value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct PeerAdd {
    /// Its name.
    pub(crate) name: String,
    /// How it is reached.
    #[arg(long, short, default_value = "wireguard")]
    pub(crate) encapsulation: Encapsulation,
    /// ADDRESS:PORT, or ADDRESS for gre and ipip.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub(crate) endpoint: Option<String>,
    /// Prefixes behind it.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',', required = true)]
    pub(crate) allowed_ips: Vec<Prefix>,
    /// Its WireGuard public key.
    #[arg(long, value_name = "KEY")]
    pub(crate) public_key: Option<PublicKey>,
    /// A file of mode 0600 that holds the preshared key, readable by the daemon.
    #[arg(long, value_name = "PATH")]
    pub(crate) preshared_key_file: Option<PathBuf>,
    /// Seconds between keepalives.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) persistent_keepalive: Option<u16>,
    /// The GRE key.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) gre_key: Option<u32>,
    /// Send GRE checksums.
    #[arg(long)]
    pub(crate) gre_checksum: bool,
    /// Send GRE sequence numbers.
    #[arg(long)]
    pub(crate) gre_sequence: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Route {
    /// Every known prefix and its owner.
    List,
    /// The route a packet to an address takes.
    Get {
        /// The address.
        address: IpAddr,
    },
    /// Announce a prefix behind this host.
    Add {
        /// The prefix.
        prefix: Prefix,
    },
    /// Withdraw a prefix that `route add` announced.
    Rm {
        /// The prefix.
        prefix: Prefix,
    },
    /// Who claims a prefix or address, and which claim counts.
    Why {
        /// A prefix or an address.
        target: String,
    },
}

/// Which flows are meant; every option given must match.
#[derive(Debug, clap::Args)]
pub(crate) struct FlowSelect {
    /// Source prefix or address.
    #[arg(long, value_parser = prefix_or_address)]
    pub(crate) from: Option<Prefix>,
    /// Destination prefix or address.
    #[arg(long, value_parser = prefix_or_address)]
    pub(crate) to: Option<Prefix>,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    #[arg(long, short)]
    pub(crate) protocol: Option<String>,
    /// Destination port.
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// The peer the flow crosses to.
    #[arg(long)]
    pub(crate) peer: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Flow {
    /// Tracked flows.
    List {
        #[command(flatten)]
        select: FlowSelect,
        /// At most this many.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=4000))]
        limit: u32,
    },
    /// Cut flows.
    Kill {
        #[command(flatten)]
        select: FlowSelect,
        /// Cut every flow; needed when nothing else is given.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Endpoint {
    /// Attach a network namespace to the overlay (needs root).
    Add(EndpointAdd),
    /// Detach.
    Rm {
        /// The endpoint's name.
        name: String,
    },
    /// Give a container labels and take labels from it; in force at once, also for what it talks to already.
    Label {
        /// The endpoint's name.
        name: String,
        /// Labels to give (KEY=VALUE) and keys to take away (KEY-).
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<String>,
    },
    /// Every container on this host.
    List,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EndpointAdd {
    /// The endpoint's name; default: the namespace's.
    pub(crate) name: Option<String>,
    /// The namespace: a name below /run/netns, or a path.
    #[arg(long, value_name = "NAME|PATH", required_unless_present = "pid", conflicts_with = "pid")]
    pub(crate) netns: Option<String>,
    /// The namespace of this process.
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// The interface's name inside.
    #[arg(long, default_value = "eth0")]
    pub(crate) interface: String,
    /// An address wanted, one per family; default: the next free.
    #[arg(long = "ip", value_name = "ADDRESS")]
    pub(crate) addresses: Vec<IpAddr>,
    /// The network it is to be in; default: the one of all hosts, `default`.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// A label, which rules of the policy may name; as often as needed.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check a file without touching anything; works without a daemon.
    Check {
        /// The file; default: /etc/overlay/overlayd.toml.
        file: Option<PathBuf>,
    },
    /// The values in force.
    Show {
        /// Also where each came from.
        #[arg(long)]
        origin: bool,
    },
    /// What a reload would change.
    Diff,
    /// Read the file again and apply it, whole or not at all.
    Reload,
    /// Print an example configuration to start from.
    Example,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Wait {
    /// Until the host is ready: device, sockets and plumbing stand, every member was tried.
    Ready {
        /// Give up after this time.
        #[arg(long, default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyKind {
    /// The Ed25519 identity of a host.
    Identity,
    /// An X25519 key for foreign WireGuard peers.
    Wireguard,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Write a new secret key to a file of mode 0600 and print its public half.
    Generate {
        /// The file; an existing one is never overwritten.
        #[arg(long, value_name = "PATH")]
        out: PathBuf,
        /// What the key is for.
        #[arg(long, value_enum, default_value = "identity")]
        kind: KeyKind,
    },
    /// Print the public half of a secret key file.
    Public {
        /// The file.
        file: PathBuf,
        /// What the key is for.
        #[arg(long, value_enum, default_value = "identity")]
        kind: KeyKind,
    },
}

/// Parses a time span of up to a year, as in `1h` or `7d`; seconds without a unit.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number and a unit, as in 90s, 30m, 1h or 7d, at most 365d".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let seconds = number.checked_mul(unit).filter(|seconds| (1..=31_536_000).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(expected)
}

/// Parses `500ms`, `2s`, `1m`, or seconds without a unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number and a unit, as in 500ms, 2s or 1m".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let ms = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    // A day is longer than anyone waits, and keeps later sums far from overflow.
    ms.filter(|ms| *ms <= 86_400_000).map(Duration::from_millis).ok_or_else(expected)
}

/// Parses a prefix, or an address as a prefix of one.
pub(crate) fn prefix_or_address(text: &str) -> Result<Prefix, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Prefix::host(address)),
        Err(_) => text.parse::<Prefix>().map_err(|error| error.to_string()),
    }
}

/// Parses `ADDRESS:PORT`.
pub(crate) fn socket_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_tree_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn lifetimes_parse_and_odd_ones_are_refused() {
        assert_eq!(lifetime("90"), Ok(Duration::from_secs(90)));
        assert_eq!(lifetime("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(lifetime("365d"), Ok(Duration::from_secs(31_536_000)));
        for text in ["", "0", "h", "1 h", "-1h", "366d", "1w", "99999999999999999999d"] {
            assert!(lifetime(text).is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn durations_parse_and_odd_ones_are_refused() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        for text in ["", "s", "2 s", "-1s", "1d", "99999999999999999999s", "25h"] {
            assert!(duration(text).is_err(), "{text} was accepted");
        }
    }
}

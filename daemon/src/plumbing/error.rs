//! What can go wrong while plumbing, and how it is told to a person.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use overlay_control::api::{ApiError, PortProtocol, Problem};
use overlay_control::codes::Code;
use overlay_wire::Prefix;
use overlay_wire::gossip::identities::LabelError;

use super::ipam::Counts;

/// A failed step of the host plumbing.
#[derive(Debug, thiserror::Error)]
pub enum PlumbingError {
    /// The kernel refused a netlink request.
    #[error("the kernel refused to {what}: {source}")]
    Netlink {
        /// The request in words.
        what: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    NetlinkSocket(#[source] io::Error),
    /// The TUN device does not exist.
    #[error("interface {0} does not exist")]
    InterfaceMissing(String),
    /// The `nft` program could not be run.
    #[error("cannot run `nft`: {0}")]
    NftMissing(#[source] io::Error),
    /// `nft` refused a script.
    #[error("nft refused to {what}: {stderr}")]
    Nft {
        /// What was tried.
        what: &'static str,
        /// What `nft` printed.
        stderr: String,
    },
    /// A file of ours could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A state file was written by a newer release or is damaged.
    #[error("{} is not a lease file of this release: {why}", path.display())]
    StateFormat {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Every address of a network in a prefix is in use or cooling down.
    #[error("no free address for network {network} in {prefix}: {counts}")]
    PrefixExhausted {
        /// The network.
        network: String,
        /// The prefix.
        prefix: Prefix,
        /// What its addresses are held by.
        counts: Counts,
    },
    /// No own prefix lies in what a network is confined to.
    #[error("network {network} is confined to {}, and no prefix of this host lies there", list(pool))]
    OutsidePool {
        /// The network.
        network: String,
        /// What it is confined to.
        pool: Vec<Prefix>,
    },
    /// Nobody knows the network.
    #[error("there is no network {0}")]
    NetworkUnknown(String),
    /// The network is in use.
    #[error("network {name} is used by {}", endpoints.join(", "))]
    NetworkUsed {
        /// The network.
        name: String,
        /// Its endpoints on this host.
        endpoints: Vec<String>,
    },
    /// More networks or blocks than can be announced.
    #[error("too many networks: {0}")]
    TooManyNetworks(String),
    /// A prefix asked for is not of this host.
    #[error("{0} does not lie in a prefix of this host")]
    NotOwnPrefix(Prefix),
    /// The requested address is not this host's.
    #[error("address {address} cannot be given: it is outside this host's prefixes{}", owner.as_ref().map_or_else(String::new, |owner| format!(", and {owner} owns it")))]
    AddressElsewhere {
        /// The address asked for.
        address: IpAddr,
        /// Whose it is, where that is known.
        owner: Option<String>,
    },
    /// Nothing holds the address.
    #[error("nothing holds {0}")]
    AddressFree(IpAddr),
    /// This host has no prefix to take container addresses from.
    #[error("this host has no prefix of its own")]
    NoOwnPrefix,
    /// The requested address cannot be given.
    #[error("address {address} cannot be given: {why}")]
    AddressRefused {
        /// The address asked for.
        address: IpAddr,
        /// Why not.
        why: String,
    },
    /// Labels are not acceptable.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// An endpoint of that name is attached.
    #[error("endpoint {0} exists already")]
    EndpointExists(String),
    /// The lease is committed and cannot be aborted.
    #[error("lease {0} is committed already")]
    LeaseCommitted(u64),
    /// There is no such lease, or it expired.
    #[error("there is no lease {0}")]
    LeaseUnknown(u64),
    /// There is no such endpoint.
    #[error("there is no endpoint {0}")]
    EndpointUnknown(String),
    /// An endpoint or interface name that would not be safe in a rule or a file name.
    #[error("`{name}` is not a usable name: {why}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A port cannot be published because somebody has it.
    #[error("port {port}/{protocol} is in use: {by}")]
    PortHeld {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: PortProtocol,
        /// Who has it.
        by: String,
    },
    /// A port cannot lead there.
    #[error("a port cannot lead to {target}: {why}")]
    PortTarget {
        /// The target asked for.
        target: SocketAddr,
        /// Why not.
        why: &'static str,
    },
    /// A port cannot be published on an address.
    #[error("a port cannot be published on {address}: {why}")]
    PortAddress {
        /// The address asked for.
        address: IpAddr,
        /// Why not.
        why: &'static str,
    },
    /// As many ports are published as can be.
    #[error("no port is left: this host publishes at most {0}")]
    TooManyPorts(usize),
    /// A request that takes ports back names none.
    #[error("the request names no port and no owner")]
    NoSelector,
    /// The plumbing thread has ended.
    #[error("the host plumbing has stopped")]
    Stopped,
}

impl PlumbingError {
    /// Wraps a kernel answer.
    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        move |source| Self::Netlink { what: what.into(), source: Box::new(source) }
    }

    /// Wraps a file error.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path: path.into(), source }
    }

    /// What follows from it.
    #[must_use]
    pub fn why(&self) -> &'static str {
        match self {
            Self::PrefixExhausted { .. } | Self::NoOwnPrefix | Self::NotOwnPrefix(_) | Self::OutsidePool { .. } => {
                "containers get their addresses from this host's prefixes"
            }
            Self::PortHeld { .. } => "packets to a port go to one place",
            Self::TooManyPorts(_) => "every port is a rule that each new connection may walk past",
            Self::NetworkUsed { .. } => "a network is left only when nothing on this host needs it",
            Self::NetworkUnknown(_) => "no host of the cluster has announced a network of this name",
            Self::AddressFree(_) => "only what is held can be released",
            Self::AddressElsewhere { .. } => "a host gives addresses of its own prefixes only",
            Self::TooManyNetworks(_) => "what a host announces of its networks must fit into a few records",
            Self::AddressRefused { .. }
            | Self::BadName { .. }
            | Self::PortTarget { .. }
            | Self::PortAddress { .. }
            | Self::NoSelector => "the request cannot be carried out as it is",
            Self::EndpointExists(_) => "a name stands for one endpoint of this host",
            Self::EndpointUnknown(_) | Self::LeaseUnknown(_) => "it was never made, was removed, or expired",
            Self::LeaseCommitted(_) => "only a lease that is not yet in use can be aborted",
            Self::Stopped => "the daemon is stopping, or its plumbing thread failed",
            _ => "container packets may not reach the overlay, or not be filtered",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn next(&self) -> String {
        match self {
            Self::Netlink { source, .. } if errno(source) == Some(libc::EPERM) => {
                "give overlayd CAP_NET_ADMIN (the shipped overlayd.service does) and restart it".into()
            }
            Self::Netlink { .. } | Self::NetlinkSocket(_) => {
                "see `journalctl -u overlayd`; run `overlayctl doctor`".into()
            }
            Self::InterfaceMissing(_) => "overlayd makes it again by itself; if this stays, restart overlayd".into(),
            Self::NftMissing(_) => "install the package `nftables`".into(),
            Self::Nft { .. } => "run `nft list ruleset` as root to see what is in the way".into(),
            Self::File { path, .. } => format!("check space and permissions of {}", path.display()),
            Self::StateFormat { path, .. } => {
                format!("install the release that wrote it, or remove {}", path.display())
            }
            Self::PrefixExhausted { .. } => {
                "see who has them with `overlayctl ipam list`; remove endpoints, or give this host another prefix"
                    .into()
            }
            Self::OutsidePool { .. } => "use another network here, or make it again with a wider --pool".into(),
            Self::NetworkUnknown(name) => format!("make it first: `overlayctl network create {name}`"),
            Self::NetworkUsed { .. } => "remove them first: `overlayctl endpoint rm NAME`".into(),
            Self::TooManyNetworks(_) => "remove networks that are not used: `overlayctl network list`".into(),
            Self::AddressElsewhere { .. } => "leave the address out to get a free one".into(),
            Self::AddressFree(_) => "see `overlayctl ipam list`".into(),
            Self::NotOwnPrefix(_) => "choose a part of one of the host's prefixes (`overlayctl status`)".into(),
            Self::NoOwnPrefix => "set `prefixes` under [node] in the configuration".into(),
            Self::PortHeld { .. } => "choose another port; `overlayctl nat list` shows what is published".into(),
            Self::PortTarget { .. } => "name a container of `overlayctl endpoint list`, or an overlay address".into(),
            Self::PortAddress { .. } => "leave the address out to publish on every address of the host".into(),
            Self::TooManyPorts(_) => "take ports back: `overlayctl nat unpublish PORT`".into(),
            Self::NoSelector => "name a port or an owner; `overlayctl nat list` shows them".into(),
            Self::AddressRefused { .. } => "leave the address out to get a free one".into(),
            Self::EndpointExists(name) => format!("remove it first: `overlayctl endpoint rm {name}`"),
            Self::LeaseCommitted(_) => "remove the endpoint: `overlayctl endpoint rm NAME`".into(),
            Self::LeaseUnknown(_) => "start again with `overlayctl endpoint add`".into(),
            Self::EndpointUnknown(_) => "see `overlayctl endpoint list`".into(),
            Self::Labels(_) => "give fewer or shorter labels, as in role=web".into(),
            Self::BadName { .. } => "use letters, digits, `-`, `_` and `.`".into(),
            Self::Stopped => "restart overlayd".into(),
        }
    }
}

/// The positive errno inside a netlink error, if it is one.
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// Every step of a teardown that failed; the other steps were done.
#[derive(Debug, thiserror::Error)]
#[error("{} step(s) of the teardown failed: {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct TeardownErrors(pub Vec<PlumbingError>);

impl From<PlumbingError> for ApiError {
    fn from(error: PlumbingError) -> Self {
        let code = match &error {
            PlumbingError::EndpointUnknown(_)
            | PlumbingError::LeaseUnknown(_)
            | PlumbingError::NetworkUnknown(_)
            | PlumbingError::AddressFree(_) => Code::NotFound,
            PlumbingError::EndpointExists(_)
            | PlumbingError::LeaseCommitted(_)
            | PlumbingError::NetworkUsed { .. }
            | PlumbingError::PortHeld { .. }
            | PlumbingError::AddressElsewhere { .. }
            | PlumbingError::AddressRefused { .. } => Code::Conflict,
            PlumbingError::BadName { .. }
            | PlumbingError::PortTarget { .. }
            | PlumbingError::PortAddress { .. }
            | PlumbingError::TooManyPorts(_)
            | PlumbingError::NoSelector
            | PlumbingError::PrefixExhausted { .. }
            | PlumbingError::OutsidePool { .. }
            | PlumbingError::NoOwnPrefix
            | PlumbingError::NotOwnPrefix(_)
            | PlumbingError::TooManyNetworks(_) => Code::Invalid,
            PlumbingError::StateFormat { .. } => Code::StateNewer,
            PlumbingError::File { .. } => Code::Io,
            _ => Code::Plumbing,
        };
        let next = error.next();
        Self::new(code, error.to_string(), error.why(), next)
    }
}

impl From<&PlumbingError> for Problem {
    fn from(error: &PlumbingError) -> Self {
        problem("PLUMBING", error.to_string(), error.why(), error.next())
    }
}

/// Builds a standing problem.
pub(crate) fn problem(code: &str, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Problem {
    Problem { code: code.to_owned(), what: what.into(), why: why.into(), next: next.into() }
}

fn list(prefixes: &[Prefix]) -> String {
    prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

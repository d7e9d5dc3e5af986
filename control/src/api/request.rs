//! What can be asked, and the answers.

use std::net::IpAddr;

use overlay_config::{Change, ForeignPeer, Setting};
use overlay_wire::policy::PolicySet;
use overlay_wire::{Encapsulation, Prefix};
use serde::{Deserialize, Serialize};

use super::address::{AddressBook, AddressHold, HeldAddress};
use super::capture::{CaptureRequest, Captured};
use super::dns::{DnsRequest, DnsStatus};
use super::endpoint::{EndpointInfo, EndpointLease, EndpointRequest, LabelChange};
use super::limit::{LimitInfo, LimitRequest};
use super::membership::{MembershipRequest, MembershipResponse};
use super::nat::{NatRequest, PublishedPort};
use super::network::{
    DoctorMode, Event, Finding, Flow, FlowSelector, PingProgress, PolicyTest, PolicyView, RouteAdded, RouteEntry,
    RouteWhy, TestVerdict,
};
use super::networks::{IpamRequest, IpamResponse, NetworkInfo, NetworkRequest};
use super::policy::{ClusterPolicyStatus, PolicyRequest, PolicyTexts, PolicyWritten};
use super::status::{PeerStatus, Status, VersionInfo};
use super::trace::{Trace, TraceRequest};

/// An encapsulation, or the one the configuration file asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncapsulationSetting {
    /// Drop the change made by the command line.
    Config,
    /// Use this one.
    #[serde(untagged)]
    Use(Encapsulation),
}

/// A configuration text sent by a caller that read the file itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigText {
    /// What problems call it.
    pub name: String,
    /// The text.
    pub text: String,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Everything about the host and its peers. Answer: `Status`.
    Status,
    /// Every peer. Answer: `Peers`.
    PeerList,
    /// One peer. Answer: `Peer`.
    PeerShow {
        /// Its name.
        name: String,
    },
    /// Adds a foreign peer, kept in the CLI layer. Answer: `Done`.
    PeerAdd {
        /// The peer.
        peer: ForeignPeer,
    },
    /// Removes a foreign peer that the command line added. Answer: `Done`.
    PeerRemove {
        /// Its name.
        name: String,
    },
    /// Sets the encapsulation with a member, or the default one, kept in the CLI layer. Answer: `Done`.
    PeerSet {
        /// The member's name; absent: the default of all that name none.
        name: Option<String>,
        /// The encapsulation.
        encapsulation: EncapsulationSetting,
    },
    /// Every known prefix. Answer: `Routes`.
    RouteList,
    /// The route a packet to an address takes. Answer: `Route`.
    RouteGet {
        /// The address.
        address: IpAddr,
    },
    /// Announces a prefix behind this host, kept in the CLI layer. Answer: `RouteAdded`.
    RouteAdd {
        /// The prefix.
        prefix: Prefix,
    },
    /// Withdraws a prefix that the command line announced. Answer: `Done`.
    RouteRemove {
        /// The prefix.
        prefix: Prefix,
    },
    /// Who claims a prefix and which claim counts. Answer: `RouteWhy`.
    RouteWhy {
        /// The prefix; a single address as /32 or /128.
        prefix: Prefix,
    },
    /// The policy in force. Answer: `Policy`.
    PolicyShow,
    /// Whether a policy would be accepted. Answer: `Done`.
    PolicyCheck {
        /// The policy.
        policy: PolicySet,
    },
    /// Replaces the policy of the CLI layer, which counts where the cluster has none. Answer: `Done`.
    PolicyApply {
        /// The policy; absent: drop the one of the CLI layer.
        policy: Option<PolicySet>,
    },
    /// The policy of the whole cluster.
    ClusterPolicy(PolicyRequest),
    /// Judges a packet. Answer: `Verdict`.
    PolicyTest(PolicyTest),
    /// The path of a packet, on this host and on the other. Answer: `Trace`.
    Trace(TraceRequest),
    /// Limits on rates.
    Limit(LimitRequest),
    /// Tracked flows. Answer: `Flows`.
    FlowList {
        /// Which.
        selector: FlowSelector,
        /// At most this many.
        limit: u32,
    },
    /// Cuts flows. Answer: `Killed`.
    FlowKill {
        /// Which.
        selector: FlowSelector,
    },
    /// Begins to attach a container. Answer: `Lease`.
    EndpointPrepare(EndpointRequest),
    /// The caller has configured the namespace. Answer: `Done`.
    EndpointCommit {
        /// The lease.
        lease: u64,
    },
    /// The caller could not configure the namespace. Answer: `Done`.
    EndpointAbort {
        /// The lease.
        lease: u64,
    },
    /// Detaches a container. Answer: `Done`.
    EndpointRemove {
        /// Its name.
        name: String,
    },
    /// Changes the labels of a container. Answer: `Done`.
    EndpointLabel(LabelChange),
    /// Every container on this host. Answer: `Endpoints`.
    EndpointList,
    /// Holds an address for a plugin. Answer: `Held`.
    AddressHold(AddressHold),
    /// Releases a held address; one that is not held is fine. Answer: `Done`.
    AddressRelease {
        /// For whom it was held.
        owner: String,
        /// The address.
        address: IpAddr,
    },
    /// Where addresses come from and which are held. Answer: `Addresses`.
    AddressList,
    /// Published ports.
    Nat(NatRequest),
    /// Names of containers.
    Dns(DnsRequest),
    /// Networks of the cluster. Answer: `Networks`, or `Done`.
    Network(NetworkRequest),
    /// Addresses of this host. Answer: `Ipam`, or `Done`.
    Ipam(IpamRequest),
    /// Checks a configuration, or the daemon's own file again. Answer: `Done`.
    ConfigCheck {
        /// The text; absent: the daemon's own file.
        text: Option<ConfigText>,
    },
    /// Every value in force with its origin. Answer: `Settings`.
    ConfigShow,
    /// What a reload would change. Answer: `Changes`.
    ConfigDiff,
    /// Reads the file again and applies it whole or not at all. Answer: `Changes`.
    ConfigReload,
    /// Begins to ping a peer by name or address. Answer: `PingStarted`.
    PingStart {
        /// A peer's name or an overlay address.
        target: String,
        /// How many probes, 1 to 1000.
        count: u32,
        /// Inner packet size in bytes.
        size: u16,
        /// The time between probes, in milliseconds.
        interval_ms: u32,
    },
    /// How far a ping is. Answer: `Ping`.
    PingPoll {
        /// Which.
        id: u64,
    },
    /// Whether the host is ready. Answer: `Ready`.
    WaitReady,
    /// Looks for what is wrong around the daemon. Answer: `Findings`.
    Doctor {
        /// Check, fix or undo.
        mode: DoctorMode,
        /// Ask this peer right now.
        peer: Option<String>,
    },
    /// Membership, certificates and tokens. Answer: `Membership`, or `Done`.
    Membership(MembershipRequest),
    /// Follow packets: `Done`, then a `Captured` for each batch until the connection closes.
    Capture(CaptureRequest),
    /// Follow events: `Done`, then an `Event` for each until the connection closes.
    EventsFollow,
    /// What runs. Answer: `Version`.
    Version,
}

impl Request {
    /// Whether the request changes anything, and so needs more than the right to look.
    #[must_use]
    pub fn is_change(&self) -> bool {
        match self {
            Self::PeerAdd { .. }
            | Self::PeerRemove { .. }
            | Self::PeerSet { .. }
            | Self::RouteAdd { .. }
            | Self::RouteRemove { .. }
            | Self::PolicyApply { .. }
            | Self::FlowKill { .. }
            | Self::EndpointPrepare(_)
            | Self::EndpointCommit { .. }
            | Self::EndpointAbort { .. }
            | Self::EndpointRemove { .. }
            | Self::EndpointLabel(_)
            | Self::Capture(_)
            | Self::AddressHold(_)
            | Self::AddressRelease { .. }
            | Self::ConfigReload => true,
            Self::Trace(request) => request.send,
            Self::Limit(request) => request.is_change(),
            Self::Membership(request) => request.is_change(),
            Self::Nat(request) => request.is_change(),
            Self::Dns(request) => request.is_change(),
            Self::ClusterPolicy(request) => request.is_change(),
            Self::Network(request) => request.is_change(),
            Self::Ipam(request) => request.is_change(),
            Self::Doctor { mode, .. } => *mode != DoctorMode::Check,
            Self::Status
            | Self::PeerList
            | Self::PeerShow { .. }
            | Self::RouteList
            | Self::RouteGet { .. }
            | Self::RouteWhy { .. }
            | Self::PolicyShow
            | Self::PolicyCheck { .. }
            | Self::PolicyTest(_)
            | Self::FlowList { .. }
            | Self::EndpointList
            | Self::AddressList
            | Self::ConfigCheck { .. }
            | Self::ConfigShow
            | Self::ConfigDiff
            | Self::PingStart { .. }
            | Self::PingPoll { .. }
            | Self::WaitReady
            | Self::EventsFollow
            | Self::Version => false,
        }
    }
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It was done.
    Done {
        /// Whether anything changed.
        changed: bool,
        /// What changed, one sentence each; also notes worth showing.
        notes: Vec<String>,
    },
    /// Everything about the host.
    Status(Box<Status>),
    /// Peers.
    Peers(Vec<PeerStatus>),
    /// One peer.
    Peer(Box<PeerStatus>),
    /// Routes.
    Routes(Vec<RouteEntry>),
    /// One route.
    Route(RouteEntry),
    /// The outcome of an announcement.
    RouteAdded(RouteAdded),
    /// Claims and refusals.
    RouteWhy(RouteWhy),
    /// The policy in force.
    Policy(PolicyView),
    /// The policy of the whole cluster, and who has it.
    ClusterPolicy(Box<ClusterPolicyStatus>),
    /// A revision that was published.
    PolicyWritten(PolicyWritten),
    /// Policies to compare.
    PolicyTexts(Box<PolicyTexts>),
    /// The outcome of a policy test.
    Verdict(TestVerdict),
    /// Limits on rates.
    Limits(Vec<LimitInfo>),
    /// The path of a packet.
    Trace(Box<Trace>),
    /// Flows.
    Flows {
        /// The flows, at most as many as asked for.
        flows: Vec<Flow>,
        /// Whether there are more.
        more: bool,
    },
    /// Flows cut.
    Killed {
        /// How many.
        count: u64,
    },
    /// What to configure in the namespace.
    Lease(EndpointLease),
    /// Containers.
    Endpoints(Vec<EndpointInfo>),
    /// An address that is held now.
    Held(HeldAddress),
    /// Prefixes and held addresses.
    Addresses(AddressBook),
    /// Published ports.
    PublishedPorts(Vec<PublishedPort>),
    /// The server of names.
    Dns(DnsStatus),
    /// Networks.
    Networks(Vec<NetworkInfo>),
    /// Addresses of this host.
    Ipam(IpamResponse),
    /// Values in force.
    Settings(Vec<Setting>),
    /// Values that differ.
    Changes(Vec<Change>),
    /// A ping has begun.
    PingStarted {
        /// Names it.
        id: u64,
    },
    /// How far a ping is.
    Ping(PingProgress),
    /// Whether the host is ready.
    Ready {
        /// Ready or not.
        ready: bool,
        /// What is still missing.
        missing: Vec<String>,
    },
    /// What `doctor` found.
    Findings(Vec<Finding>),
    /// An answer about membership.
    Membership(MembershipResponse),
    /// Packets of a capture.
    Captured(Box<Captured>),
    /// One event of a stream.
    Event(Event),
    /// What runs.
    Version(VersionInfo),
}

impl Response {
    /// The name of the variant.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done { .. } => "done",
            Self::Status(_) => "status",
            Self::Peers(_) => "peers",
            Self::Peer(_) => "peer",
            Self::Routes(_) => "routes",
            Self::Route(_) => "route",
            Self::RouteAdded(_) => "route_added",
            Self::RouteWhy(_) => "route_why",
            Self::Policy(_) => "policy",
            Self::ClusterPolicy(_) => "cluster_policy",
            Self::PolicyWritten(_) => "policy_written",
            Self::PolicyTexts(_) => "policy_texts",
            Self::Verdict(_) => "verdict",
            Self::Limits(_) => "limits",
            Self::Trace(_) => "trace",
            Self::Flows { .. } => "flows",
            Self::Killed { .. } => "killed",
            Self::Lease(_) => "lease",
            Self::Endpoints(_) => "endpoints",
            Self::Held(_) => "held",
            Self::Addresses(_) => "addresses",
            Self::PublishedPorts(_) => "published_ports",
            Self::Dns(_) => "dns",
            Self::Networks(_) => "networks",
            Self::Ipam(_) => "ipam",
            Self::Settings(_) => "settings",
            Self::Changes(_) => "changes",
            Self::PingStarted { .. } => "ping_started",
            Self::Ping(_) => "ping",
            Self::Ready { .. } => "ready",
            Self::Findings(_) => "findings",
            Self::Membership(response) => response.name(),
            Self::Captured(_) => "captured",
            Self::Event(_) => "event",
            Self::Version(_) => "version",
        }
    }
}

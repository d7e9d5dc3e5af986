//! What the control side shares: configuration in force, the published view of gossip, peers, and handles to the
//! threads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashMap;
use overlay_config::{Config, MembershipLayer};
use overlay_control::ApiError;
use overlay_control::api::Problem;
use overlay_dataplane::Conntrack;
use overlay_routing::gossip::{GossipCounters, MemberView};
use overlay_routing::identities::Identities;
use overlay_routing::identity::IdentityPublic;
use overlay_routing::networks::Networks;
use overlay_routing::rib::{ClaimSource, Rib};
use overlay_services::Zone;
use overlay_wire::gossip::{Record, RouteVerdict, TraceAnswer, TracedPacket};
use overlay_wire::membership::SignedCertificate;
use overlay_wire::policy::PolicySet;
use overlay_wire::{HostId, Mtu, PeerIndex, Prefix};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::asking::{Question, Told};
use crate::cluster_policy::{Heard, PolicyChange, PolicyState};
use crate::events::EventLog;
use crate::flow_store::SaveFigures;
use crate::limits::Limits;
use crate::membership::{IssuerView, Store, Work};
use crate::names::{NameCounters, Upstreams};
use crate::peers::{Peer, PeerKind};
use crate::plumbing::PlumbingHandle;
use crate::shared::SharedRef;
use crate::wireguard::Keys;
use crate::worker::WorkerHandle;

/// What gossip last reported.
#[derive(Debug, Default)]
pub struct View {
    /// Every member.
    pub members: Vec<MemberView>,
    /// Routes.
    pub rib: Arc<Rib>,
    /// What members made of our announcements.
    pub verdicts: BTreeMap<HostId, Vec<(Prefix, RouteVerdict)>>,
    /// Where members see us.
    pub observed: Vec<SocketAddr>,
    /// Addresses of a NAT in front of this host, as members see it there.
    pub outside: Vec<SocketAddr>,
    /// Whether members see this host at an address that is not its own.
    pub is_behind_nat: bool,
    /// What became of gossip datagrams.
    pub counters: GossipCounters,
    /// The networks of the cluster.
    pub networks: Arc<Networks>,
    /// Which labels addresses carry.
    pub identities: Arc<Identities>,
    /// Members that answer and have not said yet that they have all that this host published.
    pub unaware: Vec<HostId>,
}

impl View {
    /// A member by host id.
    #[must_use]
    pub fn member(&self, host: HostId) -> Option<&MemberView> {
        self.members.iter().find(|member| member.host == host)
    }
}

/// What the API asks of the director, the one task that may change things.
#[derive(Debug)]
pub enum Change {
    /// Read file and CLI layer again and apply the result.
    Reload(oneshot::Sender<Result<Vec<overlay_config::Change>, ApiError>>),
    /// Apply this configuration, read already.
    Apply(Box<Config>, oneshot::Sender<Result<Vec<overlay_config::Change>, ApiError>>),
    /// Ask members something by gossip; what they say is told until the receiver is dropped. Changes nothing.
    Ask(Vec<HostId>, Question, mpsc::Sender<Told>),
    /// What is known of a member at this moment. Changes nothing.
    Look(HostId, oneshot::Sender<Option<MemberView>>),
    /// Ask a member what it would do with a packet; `None` when it cannot be asked. Changes nothing.
    AskTrace(HostId, Box<TracedPacket>, oneshot::Sender<Option<TraceAnswer>>),
    /// What a member that asked is told.
    TellTrace(HostId, u64, TraceAnswer),
    /// Build what the packet path works with anew, from limits and from what the plumbing has told.
    Rebuild(oneshot::Sender<()>),
    /// Something about membership.
    Membership(MembershipChange),
    /// Something about the policy of the whole cluster.
    Policy(PolicyChange),
    /// Announce the networks that the plumbing has now.
    Networks(oneshot::Sender<Result<(), ApiError>>),
    /// Publish the labels that the plumbing has now; the number of the policy that follows from them, if the plumbing got it.
    Identities(oneshot::Sender<Option<u64>>),
}

/// What the issuer and the API ask of the director about membership.
#[derive(Debug)]
pub enum MembershipChange {
    /// Publish records of the authority.
    PublishAuthority(Vec<Record>),
    /// Give a member the certificate it asked for.
    AnswerCertificate {
        /// The member.
        host: HostId,
        /// From its request.
        nonce: u64,
        /// The certificate.
        certificate: Box<SignedCertificate>,
    },
    /// This host has a new certificate.
    OwnCertificate(Box<SignedCertificate>),
    /// This host holds the authority's key now.
    BecomeIssuer,
    /// Ask an issuer for a new certificate now.
    RenewNow,
}

/// Shared by every task of the control side.
#[derive(Debug)]
pub struct Core {
    /// Shared with the packet path.
    pub shared: SharedRef,
    /// The configuration in force.
    pub config: ArcSwap<Config>,
    /// The file it came from.
    pub config_path: PathBuf,
    /// What gossip last reported.
    pub view: ArcSwap<View>,
    /// The worker.
    pub worker: WorkerHandle,
    /// The flow table.
    pub conntrack: Arc<Conntrack>,
    /// Limits on rates.
    pub limits: Limits,
    /// The host plumbing.
    pub plumbing: PlumbingHandle,
    /// Our WireGuard keys.
    pub keys: Keys,
    /// Our identity.
    pub identity: IdentityPublic,
    /// Our host id.
    pub host: HostId,
    /// MTU of the TUN.
    pub mtu: Mtu,
    /// Our overlay addresses.
    pub host_addresses: Vec<IpAddr>,
    /// Events.
    pub events: EventLog,
    /// When the daemon started, by the wall clock.
    pub started: SystemTime,
    /// To the director.
    pub changes: mpsc::Sender<Change>,
    /// Whether a kernel tunnel stands in the way of plain encapsulations.
    pub kernel_tunnels: BTreeMap<String, String>,
    /// Whether super-packets cross the device.
    pub offload: crate::device::Offload,
    /// The CLI layer's file may be written by one change at a time.
    pub layer_lock: tokio::sync::Mutex<()>,
    /// Whether start-up was complete once.
    pub was_ready: AtomicBool,
    /// The text of the file in force: changes of the command line are laid over it, not over later edits.
    pub file_text: Mutex<String>,
    /// Why there is no socket for the wg tools, if so.
    pub uapi_problem: OnceLock<Problem>,
    /// Why there is no page of figures, if so.
    pub metrics_problem: OnceLock<Problem>,
    /// What saving the flow table did.
    pub flow_saves: Arc<SaveFigures>,
    /// Reloads so far.
    pub reloads: Reloads,
    /// Where another machine speaks with this host's identity, if one was seen.
    pub twin: Mutex<Option<String>>,
    /// The layer of the membership, where this host has one.
    pub layer: Option<MembershipLayer>,
    /// Told when this host leaves the cluster.
    pub leave: watch::Sender<bool>,
    /// To the issuer's task.
    pub(crate) work: mpsc::Sender<Work>,
    /// The state files of the membership.
    pub(crate) store: Store,
    /// The issuer, where this host is one.
    pub(crate) issuer: ArcSwapOption<IssuerView>,
    /// Why the issuer's last change could not be stored, if so.
    pub issuer_problem: Mutex<Option<ApiError>>,
    /// Why what is kept of the membership could not be stored, if so.
    pub keep_problem: Mutex<Option<ApiError>>,
    /// The own certificate, where there is one.
    pub own_certificate: ArcSwapOption<SignedCertificate>,
    /// The authorities that are trusted.
    pub trusted: ArcSwap<Vec<IdentityPublic>>,
    /// Every host known to be revoked.
    pub revoked: ArcSwap<BTreeSet<HostId>>,
    /// Whether this host's clock must be wrong.
    pub is_clock_suspect: AtomicBool,
    /// Where members reach this host.
    pub own_endpoints: ArcSwap<Vec<SocketAddr>>,
    /// The policy of the whole cluster, and what this host made of it.
    pub(crate) cluster_policy: ArcSwap<PolicyState>,
    /// What members, this host included, made of it, and when that was heard first.
    pub(crate) policy_heard: ArcSwap<Heard>,
    /// The number of the policy between containers and this host that is known to be in force.
    pub host_policy_settled: AtomicU64,
    /// Addresses of containers whose labels do not fit what this host may publish.
    pub identities_left_out: AtomicUsize,
    /// What is known by name.
    pub zone: Arc<ArcSwap<Zone>>,
    /// What the server of names did.
    pub name_counters: Arc<NameCounters>,
    /// Who is asked about all other names.
    pub(crate) upstreams: Arc<Upstreams>,
    /// Why there is no server of names, if so.
    pub names_problem: OnceLock<Problem>,
    peers: DashMap<PeerKind, Arc<Peer>>,
    order: Mutex<PeerOrder>,
    revision: AtomicU64,
}

/// How reloads of the configuration ended.
#[derive(Debug, Default)]
pub struct Reloads {
    /// Put in force, changes or not.
    pub applied: AtomicU64,
    /// Refused whole.
    pub refused: AtomicU64,
}

#[derive(Debug, Default)]
struct PeerOrder {
    all: Vec<Arc<Peer>>,
    receivers: HashMap<u32, PeerIndex>,
}

/// The parts of [`Core`] that are settled before it is made.
#[derive(Debug)]
pub struct CoreParts {
    /// See [`Core`].
    pub shared: SharedRef,
    /// See [`Core`].
    pub config: Arc<Config>,
    /// See [`Core`].
    pub config_path: PathBuf,
    /// See [`Core`].
    pub worker: WorkerHandle,
    /// See [`Core`].
    pub conntrack: Arc<Conntrack>,
    /// See [`Core`].
    pub limits: Limits,
    /// See [`Core`].
    pub plumbing: PlumbingHandle,
    /// See [`Core`].
    pub keys: Keys,
    /// See [`Core`].
    pub identity: IdentityPublic,
    /// See [`Core`].
    pub mtu: Mtu,
    /// See [`Core`].
    pub host_addresses: Vec<IpAddr>,
    /// See [`Core`].
    pub changes: mpsc::Sender<Change>,
    /// See [`Core`].
    pub kernel_tunnels: BTreeMap<String, String>,
    /// See [`Core`].
    pub offload: crate::device::Offload,
    /// See [`Core`].
    pub events: EventLog,
    /// See [`Core`].
    pub file_text: String,
    /// See [`Core`].
    pub layer: Option<MembershipLayer>,
    /// See [`Core`].
    pub leave: watch::Sender<bool>,
    /// See [`Core`].
    pub(crate) work: mpsc::Sender<Work>,
    /// See [`Core`].
    pub(crate) store: Store,
    /// See [`Core`].
    pub(crate) cluster_policy: PolicyState,
}

impl Core {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: CoreParts) -> Self {
        let zone = Zone::new(&parts.config.dns.domain, &[], &[], 1).expect("the configured domain was checked");
        let upstreams = Upstreams::new(parts.config.dns.forward.clone(), &parts.host_addresses);
        Self {
            zone: Arc::new(ArcSwap::from_pointee(zone)),
            name_counters: Arc::default(),
            upstreams: Arc::new(upstreams),
            names_problem: OnceLock::new(),
            shared: parts.shared,
            config: ArcSwap::new(parts.config),
            config_path: parts.config_path,
            view: ArcSwap::default(),
            worker: parts.worker,
            conntrack: parts.conntrack,
            limits: parts.limits,
            plumbing: parts.plumbing,
            keys: parts.keys,
            host: parts.identity.host_id(),
            identity: parts.identity,
            mtu: parts.mtu,
            host_addresses: parts.host_addresses,
            events: parts.events,
            started: SystemTime::now(),
            changes: parts.changes,
            kernel_tunnels: parts.kernel_tunnels,
            offload: parts.offload,
            layer_lock: tokio::sync::Mutex::default(),
            was_ready: AtomicBool::new(false),
            file_text: Mutex::new(parts.file_text),
            uapi_problem: OnceLock::new(),
            metrics_problem: OnceLock::new(),
            flow_saves: Arc::default(),
            reloads: Reloads::default(),
            twin: Mutex::default(),
            layer: parts.layer,
            leave: parts.leave,
            work: parts.work,
            store: parts.store,
            issuer: ArcSwapOption::empty(),
            issuer_problem: Mutex::default(),
            keep_problem: Mutex::default(),
            own_certificate: ArcSwapOption::empty(),
            trusted: ArcSwap::default(),
            revoked: ArcSwap::default(),
            is_clock_suspect: AtomicBool::new(false),
            own_endpoints: ArcSwap::default(),
            cluster_policy: ArcSwap::from_pointee(parts.cluster_policy),
            policy_heard: ArcSwap::default(),
            host_policy_settled: AtomicU64::new(0),
            identities_left_out: AtomicUsize::new(0),
            peers: DashMap::new(),
            order: Mutex::default(),
            revision: AtomicU64::new(0),
        }
    }

    /// Where a new host may reach this one: at its NAT first, then at its own addresses.
    pub fn reached_at(&self) -> Vec<SocketAddr> {
        let (own, view) = (self.own_endpoints.load(), self.view.load());
        let own = own.iter().filter(|endpoint| !view.outside.contains(endpoint));
        view.outside.iter().chain(own).copied().collect()
    }

    /// The peer of this kind, made when it is new.
    pub fn peer(&self, kind: &PeerKind, name: &str) -> Arc<Peer> {
        if let Some(peer) = self.peers.get(kind) {
            return Arc::clone(peer.value());
        }
        let mut order = self.order.lock();
        let index = PeerIndex(order.all.len() as u32);
        let receiver = loop {
            let candidate = rand_core::RngCore::next_u32(&mut rand_core::OsRng) >> 8;
            if !order.receivers.contains_key(&candidate) {
                break candidate;
            }
        };
        let peer = Arc::new(Peer::new(index, kind.clone(), name.to_owned(), receiver));
        order.receivers.insert(receiver, index);
        order.all.push(Arc::clone(&peer));
        self.peers.insert(kind.clone(), Arc::clone(&peer));
        peer
    }

    /// The peer of this kind, if there ever was one.
    #[must_use]
    pub fn find_peer(&self, kind: &PeerKind) -> Option<Arc<Peer>> {
        self.peers.get(kind).map(|peer| Arc::clone(peer.value()))
    }

    /// Every peer that ever was, by place.
    #[must_use]
    pub fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.order.lock().all.clone()
    }

    /// The own certificate, where there is one.
    #[must_use]
    pub fn certificate(&self) -> Option<SignedCertificate> {
        self.own_certificate.load().as_deref().cloned()
    }

    /// Whether an authority of this key is trusted.
    #[must_use]
    pub fn trusts(&self, key: &IdentityPublic) -> bool {
        self.trusted.load().contains(key)
    }

    /// The cluster id.
    #[must_use]
    pub fn cluster(&self) -> [u8; 32] {
        overlay_routing::gossip::cluster_id(&self.config.load().overlay.cluster)
    }

    /// The name of a host, as it was known last.
    #[must_use]
    pub fn name_of(&self, host: HostId) -> String {
        let view = self.view.load();
        let peer = || self.find_peer(&PeerKind::Member(host)).map(|peer| peer.name.clone());
        view.member(host).map(|member| member.name.clone()).or_else(peer).unwrap_or_else(|| host.to_string())
    }

    /// The prefixes behind this host that no other owner's prefix overlaps.
    #[must_use]
    pub fn announced_in_use(&self, rib: &Rib) -> Vec<Prefix> {
        rib.best().filter(|claim| claim.source == ClaimSource::OwnAnnouncement).map(|claim| claim.prefix).collect()
    }

    /// The policy in force: the cluster's, where there is one that this host could take, else its own.
    #[must_use]
    pub fn policy(&self) -> Arc<PolicySet> {
        let cluster = self.cluster_policy.load().rules.clone();
        cluster.unwrap_or_else(|| Arc::new(self.config.load().policy.clone()))
    }

    /// The next revision of the packet path's tables.
    pub fn next_revision(&self) -> u64 {
        self.revision.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The revision in force.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// How long ago something at `millis` after the start was.
    #[must_use]
    pub fn age_of(&self, millis: u64, now: Instant) -> Option<Duration> {
        (millis > 0).then(|| Duration::from_millis(self.shared.millis(now).saturating_sub(millis)))
    }
}

/// The wall clock, in milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// The host's own address in a prefix, which is also its containers' gateway: the first behind the network address.
#[must_use]
pub fn host_address(prefix: &Prefix) -> IpAddr {
    prefix.nth(1).unwrap_or_else(|| prefix.addr())
}

/// The host's addresses: that of the first prefix of each family.
#[must_use]
pub fn host_addresses(prefixes: &[Prefix]) -> Vec<IpAddr> {
    let first = |ipv4: bool| prefixes.iter().find(|prefix| prefix.is_ipv4() == ipv4).map(host_address);
    [first(true), first(false)].into_iter().flatten().collect()
}

//! Building the packet path's snapshot from configuration and gossip: peers, tunnels, encapsulations, owners, policy.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use overlay_config::{Config, ForeignKind, ForeignPeer};
use overlay_dataplane::policy::HostResolver;
use overlay_dataplane::{CompiledPolicy, HostPolicy, LocalAddresses, PeerInfo, Route, Tables};
use overlay_routing::fib::Fib;
use overlay_routing::gossip::MemberView;
use overlay_routing::identities::{HostIdentities, Identities};
use overlay_routing::networks::{Announcement, Networks};
use overlay_routing::ownership::Owner;
use overlay_routing::rib::{LocalClaims, Rib, RibInput};
use overlay_wire::gossip::{NetworkEntry, PlainStatus, identities};
use overlay_wire::gre::ReceiveSequence;
use overlay_wire::policy::PolicySet;
use overlay_wire::{Encapsulation, HostId, Mtu, PeerIndex, Prefix};

use crate::core::Core;
use crate::peers::{Peer, PeerKind, TunnelSettings};
use crate::sizes;
use crate::snapshot::{GreOptions, PathPeer, Snapshot};
use crate::underlay::Destination;
use crate::underlay::route::{UnderlayRoute, route_to};
use crate::wireguard::{Tunnel, is_low_order};

/// MTU assumed while a peer's address is not known.
const ASSUMED_MTU: u16 = 1500;

/// A member together with its configuration and keys.
#[derive(Debug)]
pub struct MemberInput<'a> {
    /// What gossip says.
    pub view: &'a MemberView,
    /// The encapsulation that the configuration asks for with it, where it names one.
    pub encapsulation: Option<Encapsulation>,
    /// GRE key shared with it, and the previous one.
    pub gre: Option<(u32, Option<u32>)>,
}

/// The snapshot, and what gossip must be told.
#[derive(Debug)]
pub struct Rebuilt {
    /// For the packet path.
    pub snapshot: Snapshot,
    /// What we accept from each member.
    pub plain: BTreeMap<HostId, PlainStatus>,
    /// Prefixes owned by others, for the kernel's routes.
    pub remote: Vec<Prefix>,
    /// What the kernel is to let pass between this host and its containers.
    pub host_policy: HostPolicy,
}

/// Builds everything anew. Tunnels are kept unless the peer's key changed.
#[must_use]
pub fn rebuild(core: &Core, config: &Config, members: &[MemberInput<'_>], known: Known<'_>) -> Rebuilt {
    let mut builder = Builder {
        core,
        config,
        paths: HashMap::new(),
        infos: HashMap::new(),
        by_source: HashMap::new(),
        plain: BTreeMap::new(),
        owners: HashMap::new(),
    };
    let shared_sources = duplicate_sources(members);
    for member in members {
        builder.member(member, &shared_sources);
    }
    for (place, foreign) in config.peers.iter().enumerate() {
        builder.foreign(place as u32, foreign);
    }
    builder.finish(known)
}

/// What gossip knows of the overlay's addresses.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Whose they are.
    pub rib: &'a Rib,
    /// Which networks they are in.
    pub networks: &'a Networks,
    /// Which labels they carry.
    pub identities: &'a Identities,
}

/// Underlay addresses from which more than one member answers: plain packets from them cannot be told apart.
fn duplicate_sources(members: &[MemberInput<'_>]) -> Vec<IpAddr> {
    let mut seen: Vec<IpAddr> =
        members.iter().filter_map(|member| member.view.validated_source).map(|source| source.ip()).collect();
    seen.sort_unstable();
    let mut twice: Vec<IpAddr> = seen.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    twice.dedup();
    twice
}

struct Builder<'a> {
    core: &'a Core,
    config: &'a Config,
    paths: HashMap<PeerIndex, PathPeer>,
    infos: HashMap<PeerIndex, PeerInfo>,
    by_source: HashMap<(IpAddr, Encapsulation), PeerIndex>,
    plain: BTreeMap<HostId, PlainStatus>,
    owners: HashMap<Owner, PeerIndex>,
}

impl Builder<'_> {
    fn trusted(&self, ip: IpAddr) -> bool {
        self.config.overlay.trusted_underlay.iter().any(|prefix| prefix.contains(ip))
    }

    fn route(&self, to: SocketAddr) -> Option<UnderlayRoute> {
        route_to(to, self.config.plumbing.mark_socket).ok()
    }

    fn member(&mut self, input: &MemberInput<'_>, shared_sources: &[IpAddr]) {
        let view = input.view;
        let peer = self.core.peer(&PeerKind::Member(view.host), &view.name);
        let endpoint = view.validated_source.or(view.endpoint);
        let route = endpoint.and_then(|endpoint| self.route(endpoint));
        if let Some(record) = &view.host_record {
            self.tunnel(&peer, &record.wireguard_key, endpoint, TunnelSettings::default());
        }
        let asked = input.encapsulation.unwrap_or(self.config.overlay.encapsulation);
        let (ours, plain_to) = self.judge_plain(asked, view, route, shared_sources);
        self.plain.insert(view.host, ours);
        let theirs = asked_for(view.plain);
        let mine = asked_for(ours);
        // Both ends must ask for a plain kind, and then the stronger of the two is used.
        let plain_kind = mine.zip(theirs).map(|(mine, theirs)| mine.max(theirs));
        // Accepted as soon as both have asked, sent only when the other has heard us ask: so it accepts by then.
        let heard = view.plain_heard == ours;
        let (encapsulation, plain) = match (plain_kind, plain_to) {
            (Some(kind), Some(destination)) if heard => (kind, Some(destination)),
            _ => (Encapsulation::Wireguard, None),
        };
        let gre = GreOptions {
            key: input.gre.map(|(key, _)| key),
            previous_key: input.gre.and_then(|(_, previous)| previous),
            ..GreOptions::default()
        };
        // What the other end will use once it hears that we accept: the stronger of both, as it computes it too.
        let accepts_plain = plain_kind.filter(|_| plain_to.is_some());
        if let (Some(kind), Some(destination)) = (accepts_plain, plain_to) {
            self.by_source.insert((destination.to.ip(), kind), peer.index);
        }
        let theirs_mtu = view.host_record.as_ref().map(|record| record.mtu);
        let inner = self.inner_mtu(encapsulation, endpoint, route, &gre, theirs_mtu);
        self.owners.insert(Owner::Member(view.host), peer.index);
        self.add(peer, &view.name, true, inner, encapsulation, accepts_plain, plain, gre);
    }

    /// Whether packets of a member may be carried in clear, and where to.
    fn judge_plain(
        &self,
        asked: Encapsulation,
        view: &MemberView,
        route: Option<UnderlayRoute>,
        shared_sources: &[IpAddr],
    ) -> (PlainStatus, Option<Destination>) {
        let wish = match asked {
            Encapsulation::Wireguard => return (PlainStatus::Refused, None),
            Encapsulation::Ipip => PlainStatus::Ipip,
            Encapsulation::Gre => PlainStatus::Gre,
        };
        if !self.core.kernel_tunnels.is_empty() {
            return (PlainStatus::Refused, None);
        }
        let (Some(source), Some(route)) = (view.validated_source, route) else {
            return (PlainStatus::Unknown, None);
        };
        let valid = self.trusted(source.ip()) && self.trusted(route.source) && !shared_sources.contains(&source.ip());
        if !valid {
            return (PlainStatus::Refused, None);
        }
        let to = SocketAddr::new(source.ip(), 0);
        (wish, Some(Destination { to, source: Some(route.source), tos: 0 }))
    }

    fn foreign(&mut self, place: u32, foreign: &ForeignPeer) {
        let encapsulation = foreign.kind.encapsulation();
        let (kind, endpoint, gre) = match &foreign.kind {
            ForeignKind::Wireguard { public_key, endpoint, .. } => {
                (PeerKind::ForeignWireguard(public_key.0), *endpoint, GreOptions::default())
            }
            ForeignKind::Gre { endpoint, key, checksum, sequence } => {
                let gre = GreOptions { key: *key, previous_key: None, checksum: *checksum, sequence: *sequence };
                (PeerKind::ForeignPlain(*endpoint), Some(SocketAddr::new(*endpoint, 0)), gre)
            }
            ForeignKind::Ipip { endpoint } => {
                (PeerKind::ForeignPlain(*endpoint), Some(SocketAddr::new(*endpoint, 0)), GreOptions::default())
            }
        };
        let peer = self.core.peer(&kind, &foreign.name);
        // Connecting a UDP socket to port zero is refused; any port asks the same route.
        let asked = endpoint.map(|endpoint| SocketAddr::new(endpoint.ip(), endpoint.port().max(1)));
        let route = asked.and_then(|endpoint| self.route(endpoint));
        let mut plain = None;
        match &foreign.kind {
            ForeignKind::Wireguard { public_key, preshared_key_file, persistent_keepalive, .. } => {
                let preshared =
                    preshared_key_file.as_ref().and_then(|path| match overlay_config::secret::read_key(path) {
                        Ok(key) => Some(*key),
                        Err(error) => {
                            tracing::error!(peer = %foreign.name, cause = %error, "the preshared key cannot be read");
                            None
                        }
                    });
                // Never without the preshared key that the file asks for.
                if preshared.is_some() || preshared_key_file.is_none() {
                    let settings = TunnelSettings { preshared, keepalive: *persistent_keepalive, endpoint };
                    self.tunnel(&peer, &public_key.0, endpoint, settings);
                }
            }
            ForeignKind::Gre { endpoint, .. } | ForeignKind::Ipip { endpoint } => {
                let local_trusted = route.is_some_and(|route| self.trusted(route.source));
                if self.trusted(*endpoint) && local_trusted && self.core.kernel_tunnels.is_empty() {
                    let source = route.map(|route| route.source);
                    plain = Some(Destination { to: SocketAddr::new(*endpoint, 0), source, tos: 0 });
                    self.by_source.insert((*endpoint, encapsulation), peer.index);
                }
            }
        }
        let accepts_plain = plain.map(|_| encapsulation);
        let inner = self.inner_mtu(encapsulation, asked, route, &gre, None);
        self.owners.insert(Owner::Foreign(place), peer.index);
        self.add(peer, &foreign.name, false, inner, encapsulation, accepts_plain, plain, gre);
    }

    /// Builds a peer's tunnel, or keeps the one it has when nothing it was built from changed.
    fn tunnel(&self, peer: &Peer, public_key: &[u8; 32], found: Option<SocketAddr>, settings: TunnelSettings) {
        let mut state = peer.state.lock();
        if state.public_key.as_ref() != Some(public_key) || state.settings != settings {
            if is_low_order(public_key) {
                tracing::error!(peer = %peer.name, "the peer's WireGuard key is a low-order point; no tunnel");
                return;
            }
            let (preshared, keepalive) = (settings.preshared, settings.keepalive);
            state.tunnel = Some(Tunnel::new(&self.core.keys, public_key, preshared, keepalive, peer.receiver));
            state.public_key = Some(*public_key);
            state.settings = settings;
            state.path = None;
        }
        if let (None, Some(to)) = (state.path, found) {
            state.path = Some(Destination { to, source: None, tos: 0 });
        }
    }

    fn inner_mtu(
        &self,
        encapsulation: Encapsulation,
        endpoint: Option<SocketAddr>,
        route: Option<UnderlayRoute>,
        gre: &GreOptions,
        theirs: Option<Mtu>,
    ) -> Mtu {
        let underlay = endpoint.map_or(IpAddr::from([0, 0, 0, 0]), |endpoint| endpoint.ip());
        let overhead = sizes::overhead(encapsulation, underlay, gre);
        sizes::inner_mtu(route.map_or(ASSUMED_MTU, |route| route.mtu), overhead, self.core.mtu, theirs)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of two records")]
    fn add(
        &mut self,
        peer: Arc<Peer>,
        name: &str,
        member: bool,
        inner_mtu: Mtu,
        encapsulation: Encapsulation,
        accepts_plain: Option<Encapsulation>,
        plain: Option<Destination>,
        gre: GreOptions,
    ) {
        // Who may also send in clear is not authenticated, whatever is sent to it.
        let authenticated = encapsulation.is_encrypted() && accepts_plain.is_none_or(Encapsulation::is_encrypted);
        let info = PeerInfo { name: name.to_owned(), inner_mtu, authenticated, member };
        self.infos.insert(peer.index, info);
        self.paths.insert(peer.index, PathPeer { peer, encapsulation, accepts_plain, plain, gre });
    }

    fn finish(mut self, known: Known<'_>) -> Rebuilt {
        let Known { rib, networks, .. } = known;
        let mut routes = Vec::new();
        let mut remote = Vec::new();
        for claim in rib.best() {
            let route = match claim.owner {
                Owner::Local => Route::Local,
                other => match self.owners.get(&other) {
                    Some(index) => {
                        remote.push(claim.prefix);
                        Route::Peer(*index)
                    }
                    None => continue,
                },
            };
            routes.push((claim.prefix, route));
        }
        let names = Names::new(self.config, known);
        let in_force = self.core.policy();
        let host_policy = HostPolicy::new(&in_force, &names, &self.config.node.prefixes);
        let policy = CompiledPolicy::compile(&in_force, &names)
            .with_hits_of(&self.core.shared.snapshot.load().tables.policy)
            .with_published(self.core.plumbing.openings().borrow().clone())
            .with_networks(networks);
        let mut snapshot = Snapshot {
            tables: Tables {
                owners: Fib::build(routes),
                policy,
                revision: self.core.next_revision(),
                peers: Vec::new(),
                local: LocalAddresses {
                    host: self.core.host_addresses.clone(),
                    prefixes: self.config.node.prefixes.clone(),
                    pool: self.config.overlay.pool.clone(),
                    announced: self.core.announced_in_use(rib),
                },
                rates: self.core.limits.table(|name| {
                    let peers = self.core.all_peers();
                    peers.iter().find(|peer| peer.name == name).map(|peer| peer.index)
                }),
            },
            by_source: std::mem::take(&mut self.by_source),
            ..Snapshot::default()
        };
        for peer in self.core.all_peers() {
            let (path, info) = match (self.paths.remove(&peer.index), self.infos.remove(&peer.index)) {
                (Some(path), Some(info)) => {
                    snapshot.by_receiver.insert(peer.receiver, peer.index);
                    (path, info)
                }
                // Removed from the configuration: it keeps its place and nothing else.
                _ => gone(peer, self.core.mtu),
            };
            snapshot.peers.push(path);
            snapshot.tables.peers.push(info);
        }
        Rebuilt { snapshot, plain: self.plain, remote, host_policy }
    }
}

/// What rules name: members and networks.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    members: HashMap<String, Vec<Prefix>>,
    networks: &'a Networks,
    identities: &'a Identities,
}

impl<'a> Names<'a> {
    pub(crate) fn new(config: &Config, known: Known<'a>) -> Self {
        let Known { rib, networks, identities } = known;
        let mut members: HashMap<String, Vec<Prefix>> = HashMap::new();
        members.insert(config.node.name.clone(), config.node.prefixes.clone());
        for claim in rib.best() {
            members.entry(claim.name.clone()).or_default().push(claim.prefix);
        }
        for member in &config.members {
            members.entry(member.name.clone()).or_default();
        }
        Self { members, networks, identities }
    }
}

impl HostResolver for Names<'_> {
    fn prefixes(&self, name: &str) -> Option<Vec<Prefix>> {
        self.members.get(name).cloned()
    }

    fn network(&self, name: &str) -> Option<Vec<Prefix>> {
        self.networks.prefixes(name)
    }

    fn identities(&self) -> Option<&Identities> {
        Some(self.identities)
    }
}

/// What the kernel is to let pass between this host and its containers under a policy.
#[must_use]
pub fn host_policy(config: &Config, policy: &PolicySet, known: Known<'_>) -> HostPolicy {
    HostPolicy::new(policy, &Names::new(config, known), &config.node.prefixes)
}

/// What the kernel is to let pass between this host and its containers before anything is learned of other members.
#[must_use]
pub fn first_host_policy(
    config: &Config,
    policy: &PolicySet,
    own: &BTreeMap<String, NetworkEntry>,
    labels: identities::Identities,
) -> HostPolicy {
    let announcement = Announcement { host: None, name: config.node.name.clone(), networks: own.clone() };
    let local =
        LocalClaims { name: config.node.name.clone(), prefixes: config.node.prefixes.clone(), announced: Vec::new() };
    let rib = Rib::build(&RibInput { local, ..RibInput::default() });
    let networks = Networks::new(&[announcement], &rib, Vec::new());
    let addresses = labels.into_iter().map(|(address, labels)| (address, Arc::new(labels))).collect();
    let hosts = BTreeMap::from([(None, Arc::new(HostIdentities { addresses }))]);
    let identities = Identities::new(hosts, Vec::new());
    host_policy(config, policy, Known { rib: &rib, networks: &networks, identities: &identities })
}

fn asked_for(status: PlainStatus) -> Option<Encapsulation> {
    match status {
        PlainStatus::Ipip => Some(Encapsulation::Ipip),
        PlainStatus::Gre => Some(Encapsulation::Gre),
        PlainStatus::Unknown | PlainStatus::Refused => None,
    }
}

fn gone(peer: Arc<Peer>, mtu: Mtu) -> (PathPeer, PeerInfo) {
    {
        let mut state = peer.state.lock();
        state.tunnel = None;
        state.public_key = None;
        state.path = None;
        // When it comes back it is new, as a tunnel device that was deleted and made again.
        state.gre_sequence = 0;
        state.gre_received = ReceiveSequence::default();
    }
    let info = PeerInfo { name: peer.name.clone(), inner_mtu: mtu, authenticated: false, member: false };
    let path = PathPeer {
        peer,
        encapsulation: Encapsulation::Wireguard,
        accepts_plain: None,
        plain: None,
        gre: GreOptions::default(),
    };
    (path, info)
}

//! Where members reach this host, and where it reaches them: own addresses found and published, followed when the kernel
//! says that something changed, and paths left on which packets die.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_config::{Config, Role};
use overlay_routing::gossip::{DataPath, Gossip, GossipError, MemberView, OwnHost, ReflexiveUse, Transmit};
use overlay_wire::HostId;
use overlay_wire::gossip::body::{BodyError, MAX_ENDPOINTS};
use overlay_wire::gossip::envelope::MAX_DATAGRAM_BYTES;
use tokio::sync::Notify;

use super::{ANYWHERE, Director, GossipSockets};
use crate::core::Core;
use crate::peers::{Peer, PeerKind};
use crate::plumbing::uplinks::{Ours, Uplinks, watch};
use crate::probe::DataState;
use crate::shared::Datagram;
use crate::start::plumbing_config;
use crate::underlay::route::route_to;
use crate::underlay::{Destination, OuterFragments, SendBatch};

/// Addresses of this host that are published at most: room is left for one of each family seen from outside.
const MAX_OWN: usize = MAX_ENDPOINTS - 2;
/// How long word of changes is gathered before a look, and the least pause between two looks.
const GATHER: Duration = Duration::from_millis(100);
const LEAST_GAP: Duration = Duration::from_secs(1);

/// Addresses of members remembered with the own address that they send to: each member's few, at the most members.
const MAX_ARRIVALS: usize = 4096;

/// What is known of this host's underlay.
#[derive(Debug, Default)]
pub struct Underlay {
    uplinks: Option<Uplinks>,
    /// Addresses that others may reach.
    found: BTreeSet<IpAddr>,
    /// The source address that the kernel uses towards each address of a member.
    ways: BTreeMap<SocketAddr, IpAddr>,
    last_look: Option<Instant>,
    /// The own address that authentic datagrams from an address last came to, on a host with several of that family.
    arrivals: BTreeMap<SocketAddr, IpAddr>,
    pub(super) replies: Replies,
}

impl Underlay {
    /// Opens netlink; what is told whenever the kernel reports a change. Without netlink the timer alone brings looks.
    pub(super) fn open(&mut self, core: &Core) -> Arc<Notify> {
        let changed = Arc::new(Notify::new());
        let config = plumbing_config(&core.config.load(), core.mtu);
        let opened = watch(&config, Arc::clone(&changed)).and_then(|()| Uplinks::open());
        match opened {
            Ok(uplinks) => self.uplinks = Some(uplinks),
            Err(error) => {
                let why = format!("own addresses are looked at every 10 s only: {error}");
                core.events.warn("underlay-not-watched", None, why);
            }
        }
        changed
    }

    /// Addresses that others may reach.
    pub(super) fn found(&self) -> &BTreeSet<IpAddr> {
        &self.found
    }

    /// The own address to send from, where it is not the kernel's choice: what came in over one uplink is answered over it.
    pub(super) fn source_towards(&self, to: &SocketAddr) -> Option<IpAddr> {
        self.arrivals.get(to).copied()
    }

    fn arrived(&mut self, from: SocketAddr, local: IpAddr) {
        let same_family = self.found.iter().filter(|ip| ip.is_ipv4() == local.is_ipv4());
        if same_family.count() < 2 {
            return;
        }
        if self.arrivals.len() >= MAX_ARRIVALS && !self.arrivals.contains_key(&from) {
            self.arrivals.clear();
        }
        self.arrivals.insert(from, local);
    }

    /// When to look after word of a change.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        self.last_look.map_or(now + GATHER, |last| (now + GATHER).max(last + LEAST_GAP))
    }
}

/// Sends gossip datagrams from an address of choice.
pub(super) struct Replies(SendBatch);

impl Default for Replies {
    fn default() -> Self {
        Self(SendBatch::new(MAX_DATAGRAM_BYTES, false))
    }
}

impl std::fmt::Debug for Replies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replies(..)")
    }
}

impl Replies {
    /// Sends one; what cannot be sent is lost, as any datagram may be. A source that is gone is left to the kernel.
    pub(super) fn send(&mut self, sockets: &GossipSockets, transmit: &Transmit, source: IpAddr) {
        let socket = if transmit.to.is_ipv4() { &sockets.udp4 } else { &sockets.udp6 };
        let destination = Destination { to: transmit.to, source: Some(source), tos: 0 };
        if let Some(socket) = socket
            && self.0.push(&transmit.bytes, &destination, OuterFragments::Never)
        {
            self.0.flush(socket.as_raw_fd());
            self.0.clear();
        }
    }
}

impl Director {
    /// Hands a datagram to gossip, and remembers to which own address an authentic one came.
    pub(super) fn take_datagram(&mut self, datagram: &Datagram) {
        let before = self.gossip.counters().received;
        self.gossip.handle_datagram(datagram.from, &datagram.bytes, Instant::now());
        if let (Some(local), true) = (datagram.local, self.gossip.counters().received > before) {
            self.underlay.arrived(datagram.from, local);
        }
    }

    /// Looks at the underlay again: own addresses may have changed, the sources the kernel uses, and MTUs.
    pub(super) async fn refresh_underlay(&mut self) {
        let config = self.core.config.load_full();
        let view = self.core.view.load_full();
        let ways = ways(&config, &view.members);
        let sources: BTreeSet<IpAddr> = ways.values().copied().collect();
        let is_first = self.underlay.last_look.is_none();
        self.underlay.last_look = Some(Instant::now());
        if let Some(uplinks) = &self.underlay.uplinks {
            match uplinks.addresses(&sources, &ours(&config)).await {
                Ok(found) => self.underlay.found = found,
                Err(error) => tracing::warn!(cause = %error, "own addresses could not be listed"),
            }
        }
        let now = Instant::now();
        let reflexive = if config.node.endpoints.is_empty() { ReflexiveUse::Publish } else { ReflexiveUse::Ignore };
        let local = self.underlay.found.union(&sources).copied().collect();
        self.gossip.set_local_addresses(local, reflexive, now);
        let endpoints = endpoints_of(&config, &ways, &self.underlay.found);
        let is_other =
            |(to, source): (&SocketAddr, &IpAddr)| self.underlay.ways.get(to).is_some_and(|before| before != source);
        let is_rerouted = ways.iter().any(is_other);
        self.underlay.ways = ways;
        let is_moved = endpoints != self.endpoints;
        if is_moved {
            if !is_first {
                self.core.events.info("underlay-changed", None, format!("own endpoints are now {endpoints:?}"));
            }
            self.endpoints = endpoints;
            self.core.own_endpoints.store(Arc::new(self.endpoints.clone()));
            let own = super::own_host(&self.core, &config, &self.endpoints);
            if let Err(error) = set_own(&mut self.gossip, &config, own, now) {
                self.core.events.warn("own-record", None, error.to_string());
            }
        }
        if is_moved || is_rerouted {
            // What is sent now leaves from where the kernel says, and its arrival tells the members where we are.
            self.underlay.arrivals.clear();
            for peer in self.core.all_peers() {
                if let Some(path) = &mut peer.state.lock().path {
                    path.source = None;
                }
            }
            self.gossip.probe_now(now);
        }
        self.drain(true);
    }

    /// A member answers at another address: its tunnel follows unless packets prove a newer one later.
    pub(super) fn move_path(&self, host: HostId, endpoint: SocketAddr) {
        if let Some(peer) = self.core.find_peer(&PeerKind::Member(host)) {
            Peer::learn_path(&mut peer.state.lock(), endpoint, self.underlay.source_towards(&endpoint));
        }
    }

    /// Takes note of what data-path probes of a member found.
    pub(super) fn note_data_path(&mut self, member: &MemberView, state: DataState, now: Instant) {
        let found = if state == DataState::Down { DataPath::Fails } else { DataPath::Works };
        self.gossip.note_data_path(member.host, found, now);
        if let (DataPath::Fails, true, Some(endpoint)) = (found, member.state.is_reachable(), member.endpoint) {
            // The tunnel may have been led astray by a packet that came another way.
            self.move_path(member.host, endpoint);
        }
    }
}

/// Publishes what this host says about itself; addresses that were found give way where all do not fit.
pub(super) fn set_own(gossip: &mut Gossip, config: &Config, mut own: OwnHost, now: Instant) -> Result<(), GossipError> {
    loop {
        match gossip.set_own_host(own.clone(), now) {
            Err(GossipError::OwnRecord(BodyError::TooLarge { .. }))
                if config.node.endpoints.is_empty() && own.endpoints.len() > 1 =>
            {
                own.endpoints.pop();
            }
            other => return other,
        }
    }
}

fn ours(config: &Config) -> Ours {
    let prefixes = config.overlay.pool.iter().chain(&config.node.prefixes).chain(&config.node.announce);
    Ours {
        interface: config.overlay.interface.clone(),
        group: config.plumbing.group,
        prefixes: prefixes.copied().collect(),
    }
}

/// The sources the kernel uses towards the members.
fn ways(config: &Config, known: &[MemberView]) -> BTreeMap<SocketAddr, IpAddr> {
    let mut towards: Vec<SocketAddr> = config.members.iter().filter_map(|member| member.endpoint).collect();
    if config.role == Role::Certified {
        // Members that are not known yet come from anywhere.
        towards.extend(known.iter().filter_map(|member| member.endpoint));
        towards.extend(ANYWHERE);
    }
    let route = |to: SocketAddr| route_to(to, config.plumbing.mark_socket).ok().map(|route| (to, route.source));
    towards.into_iter().filter_map(route).filter(|(_, source)| !source.is_loopback()).collect()
}

/// Where members reach this host: what the file says, else the sources the kernel uses towards the members, and behind them
/// the other addresses that were found.
#[must_use]
pub fn own_endpoints(config: &Config, known: &[MemberView], found: &BTreeSet<IpAddr>) -> Vec<SocketAddr> {
    endpoints_of(config, &ways(config, known), found)
}

fn endpoints_of(config: &Config, ways: &BTreeMap<SocketAddr, IpAddr>, found: &BTreeSet<IpAddr>) -> Vec<SocketAddr> {
    if !config.node.endpoints.is_empty() {
        return config.node.endpoints.clone();
    }
    let mut sources: Vec<IpAddr> = ways.values().copied().collect();
    sources.sort_unstable();
    sources.dedup();
    let others = found.iter().filter(|ip| !sources.contains(ip));
    let all = sources.iter().chain(others).take(MAX_OWN);
    all.map(|ip| SocketAddr::new(*ip, config.overlay.listen_port)).collect()
}

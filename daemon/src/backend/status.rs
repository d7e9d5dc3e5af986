//! Status: this host, its peers with control and data apart, and every problem with why and next.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use overlay_config::PublicKey;
use overlay_control::Code;
use overlay_control::api::{
    ControlState, DataState, FlowUse, Health, HostInfo, PeerKind as ShownKind, PeerStatus, Problem, Response, Status,
    VersionInfo,
};
use overlay_control::frame::PROTOCOL_VERSION;
use overlay_dataplane::Counters;
use overlay_routing::gossip::MemberState;
use overlay_routing::ownership::Owner;
use overlay_wire::{Mtu, Prefix};

use super::no_path::OwnSide;
use super::problems::Here;
use super::{Api, networks, problems};
use crate::core::{Core, unix_ms};
use crate::device::Offload;
use crate::peers::{Peer, PeerKind};
use crate::probe;
use crate::shared::{WorkerCommand, WorkerReport};
use crate::snapshot::PathPeer;
use crate::state::EARLIEST_UNIX;

/// A foreign peer that sent nothing for this long is no longer known to be up: two keepalives of the longest usual kind
/// and a rekey.
const FOREIGN_IDLE: Duration = Duration::from_secs(180);
/// How long the daemon waits for members that do not answer before it calls itself ready.
const READY_WITHOUT_MEMBERS: Duration = Duration::from_secs(3);

/// The problem of a cluster whose authority is on one disk only: worth a word, and packets flow as they should.
const NO_BACKUP: &str = "NO_BACKUP";

impl Api {
    /// What is wrong with the membership and its files.
    fn state_problems(&self) -> Vec<Problem> {
        let core = &self.core;
        let mut problems = Vec::new();
        if core.issuer.load().as_ref().is_some_and(|issuer| issuer.exports == 0) && !self.other_issuer() {
            problems.push(Problem {
                code: NO_BACKUP.to_owned(),
                what: "the authority's key is on this host alone".to_owned(),
                why: "without it no host can be admitted, renewed or revoked".to_owned(),
                next:
                    "`overlayctl ca export FILE`, and keep the file elsewhere; `overlayctl ca import FILE` on another \
                       member makes a second issuer"
                        .to_owned(),
            });
        }
        let unsaved = [core.issuer_problem.lock().clone(), core.keep_problem.lock().clone()];
        for error in unsaved.into_iter().flatten() {
            problems.push(Problem {
                code: "STATE_NOT_SAVED".to_owned(),
                what: "state cannot be stored; packets flow, and hosts cannot be admitted".to_owned(),
                why: error.why,
                next: error.next,
            });
        }
        for damage in core.store.damage() {
            problems.push(Problem {
                code: "STATE_DAMAGED".to_owned(),
                what: "a copy of a state file was damaged and is written anew from the other".to_owned(),
                why: damage.clone(),
                next: "look at the disk; the message goes away with a restart".to_owned(),
            });
        }
        problems.extend(self.policy_problems());
        problems.extend(networks::problems(&self.core));
        if core.revoked.load().contains(&core.host) {
            problems.push(Problem {
                code: "REVOKED".to_owned(),
                what: "this host is revoked".to_owned(),
                why: "an authority cut it off for good: no member talks to it".to_owned(),
                next: "`overlayctl leave`, then `overlayctl join` with a new token".to_owned(),
            });
        }
        if core.is_clock_suspect.load(Relaxed) {
            problems.push(Problem {
                code: "CLOCK".to_owned(),
                what: "this host's clock must be wrong".to_owned(),
                why: "most certificates are out of their time at once; they all count for now".to_owned(),
                next: "set the clock: `timedatectl set-ntp true`".to_owned(),
            });
        }
        if self.certificates().iter().any(|certificate| certificate.own && certificate.state == "expired") {
            problems.push(Problem {
                code: "CERTIFICATE_EXPIRED".to_owned(),
                what: "this host's certificate has expired".to_owned(),
                why: "no issuer renewed it; packets flow, and nothing new can be announced".to_owned(),
                next: "bring an issuer up, or `overlayctl ca import FILE` on a member, then `overlayctl cert renew`"
                    .to_owned(),
            });
        }
        problems
    }

    pub(super) fn version(&self) -> VersionInfo {
        VersionInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            pid: std::process::id(),
            started: self.core.started.into(),
        }
    }

    pub(super) fn ready(&self) -> Response {
        let missing = self.missing();
        Response::Ready { ready: missing.is_empty(), missing }
    }

    /// What start-up still waits for; nothing once it was complete.
    pub(super) fn missing(&self) -> Vec<String> {
        let missing = self.missing_now();
        if self.core.was_ready.load(Relaxed) {
            return Vec::new();
        }
        if missing.is_empty() {
            self.core.was_ready.store(true, Relaxed);
        }
        missing
    }

    fn missing_now(&self) -> Vec<String> {
        let now = Instant::now();
        let view = self.core.view.load();
        let mut missing = Vec::new();
        let tried = now.saturating_duration_since(self.core.shared.start) >= READY_WITHOUT_MEMBERS;
        for member in &view.members {
            let peer = self.core.find_peer(&PeerKind::Member(member.host));
            let up = peer.is_some_and(|peer| peer.probes.lock().state() == probe::DataState::Up);
            if !up && (!tried || member.state.is_reachable()) {
                missing.push(format!("no packet has come back from {} yet", member.name));
            }
        }
        missing
    }

    pub(super) async fn status(&self) -> Status {
        let core = &self.core;
        let config = core.config.load();
        let counters = self.report().await.unwrap_or_default().engine;
        let peers = self.peers();
        let problems = self.all_problems();
        let down = peers.iter().filter(|peer| peer.data == DataState::Down).count();
        let health = if !peers.is_empty() && down == peers.len() {
            Health::Unhealthy
        } else if down > 0
            || problems.iter().any(|problem| problem.code != NO_BACKUP)
            || peers.iter().any(|peer| !peer.problems.is_empty())
        {
            Health::Degraded
        } else {
            Health::Healthy
        };
        let endpoints = core.plumbing.endpoints().await.map_or(0, |leases| leases.len() as u32);
        Status {
            health,
            ready: self.missing().is_empty(),
            daemon: self.version(),
            host: HostInfo {
                name: config.node.name.clone(),
                id: core.host,
                identity: PublicKey(*core.identity.as_bytes()),
                cluster: config.overlay.cluster.clone(),
                addresses: core.host_addresses.clone(),
                prefixes: config.node.prefixes.clone(),
                announce: config.node.announce.clone(),
                interface: config.overlay.interface.clone(),
                mtu: core.mtu.get(),
                listen_port: config.overlay.listen_port,
                encapsulation: config.overlay.encapsulation,
                endpoints,
            },
            flows: FlowUse { count: core.conntrack.len() as u64, limit: u64::from(config.limits.conntrack_entries) },
            drops: self.drops(&counters),
            peers,
            problems,
        }
    }

    /// Everything that is wrong with this host.
    pub(super) fn all_problems(&self) -> Vec<Problem> {
        let plumbing = self.core.plumbing.problems().into_iter().map(|problem| Problem {
            code: problem.code.to_ascii_uppercase(),
            what: problem.what,
            why: problem.why,
            next: problem.next,
        });
        plumbing.chain(self.host_problems()).chain(self.state_problems()).collect()
    }

    /// What the worker did; `None` when it does not answer.
    pub(super) async fn report(&self) -> Option<WorkerReport> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        if !self.core.worker.send(WorkerCommand::Counters(answer)) {
            return None;
        }
        tokio::time::timeout(Duration::from_secs(1), answered).await.ok()?.ok()
    }

    fn drops(&self, counters: &Counters) -> BTreeMap<String, u64> {
        let filter = counters.drops().map(|(reason, count)| (reason.name().to_owned(), count));
        let path = self.core.shared.counters.all().map(|(reason, count)| (reason.name().to_owned(), count));
        filter.chain(path).filter(|(_, count)| *count > 0).collect()
    }

    fn host_problems(&self) -> Vec<Problem> {
        let core = &self.core;
        let config = core.config.load();
        let problems =
            core.uapi_problem.get().into_iter().chain(core.metrics_problem.get()).chain(core.names_problem.get());
        let mut problems: Vec<Problem> = problems.cloned().collect();
        if let Some(why) = core.flow_saves.problem.lock().clone() {
            problems.push(Problem {
                code: "FLOWS_NOT_SAVED".to_owned(),
                what: "tracked flows cannot be saved for a restart".to_owned(),
                why,
                next: format!(
                    "make room, or make {} writable for the daemon's user; until then a restart forgets what passes by state",
                    config.paths.state_dir.display()
                ),
            });
        }
        if config.overlay.offload && core.offload == Offload::None {
            problems.push(Problem {
                code: "NO_OFFLOAD".to_owned(),
                what: "the TUN device takes no super-packets".to_owned(),
                why: "the kernel refused virtio-net headers; throughput is several times lower".to_owned(),
                next: "use a kernel from Linux 4.x on with TUN offloads, or set overlay.offload = false".to_owned(),
            });
        }
        if unix_ms() < EARLIEST_UNIX * 1000 {
            problems.push(Problem {
                code: Code::Clock.name().to_owned(),
                what: "the clock of this host is years behind".to_owned(),
                why: "logs are wrong, and were its state lost, the next start would be refused".to_owned(),
                next: "set the clock: timedatectl set-ntp true".to_owned(),
            });
        }
        if core.mtu < Mtu::IPV6_MIN && config.node.prefixes.iter().any(|prefix| !prefix.is_ipv4()) {
            problems.push(Problem {
                code: "MTU_IPV6".to_owned(),
                what: format!("the overlay's MTU of {} is too small for IPv6", core.mtu),
                why: "the kernel turns IPv6 off on a device of less than 1280 bytes (RFC 8200, section 5)".to_owned(),
                next: "set overlay.mtu to 1280 or more, or leave it out; or use IPv4 prefixes only".to_owned(),
            });
        }
        for refused in core.view.load().rib.refused() {
            problems.push(Problem {
                code: "CLAIM_REFUSED".to_owned(),
                what: format!("{} claims {}, which changes nothing", refused.claim.name, refused.claim.prefix),
                why: refused.claim.refusal_reason().unwrap_or_default(),
                next: refused.missing_line.map_or_else(
                    || format!("see `overlayctl route why {}`; stop announcing it there", refused.claim.prefix),
                    |line| format!("if it should count, add {line} on every host and reload"),
                ),
            });
        }
        for warning in core.shared.snapshot.load().tables.policy.warnings() {
            problems.push(Problem {
                code: "POLICY_RULE".to_owned(),
                what: "a policy rule does not do what it seems to".to_owned(),
                why: warning.to_string(),
                next: "correct or remove the rule; `overlayctl policy show` lists them".to_owned(),
            });
        }
        problems
    }

    /// Every peer of the configuration, members first, each group by name.
    pub(super) fn peers(&self) -> Vec<PeerStatus> {
        let core = &self.core;
        let (view, snapshot, config) = (core.view.load(), core.shared.snapshot.load(), core.config.load());
        let now = Instant::now();
        let subnets = |owner: Owner| -> Vec<Prefix> {
            view.rib.best().filter(|claim| claim.owner == owner).map(|claim| claim.prefix).collect()
        };
        let mut shown = Vec::new();
        for member in &view.members {
            let Some(peer) = core.find_peer(&PeerKind::Member(member.host)) else { continue };
            let Some(path) = snapshot.peer(peer.index) else { continue };
            let mut status = self.peer_status(&peer, path, now);
            status.name.clone_from(&member.name);
            status.id = Some(member.host);
            status.public_key = Some(PublicKey(*member.identity.as_bytes()));
            status.subnets = subnets(Owner::Member(member.host));
            status.control = control_state(member.state);
            self.add_probes(&mut status, &peer, now);
            status.arriving = match (self.data_heard(Some(member.host)), status.data) {
                (true, _) => DataState::Up,
                (false, DataState::Idle) => DataState::Idle,
                (false, DataState::Up | DataState::Down) => DataState::Down,
            };
            let asked = config.encapsulation_with(&member.name);
            status.endpoints = member.candidates.iter().map(ToString::to_string).collect();
            let here = Here { port: config.overlay.listen_port, side: OwnSide::of(view.is_behind_nat) };
            status.problems = problems::of_member(member, &status, asked, here);
            let theirs = member.host_record.as_ref().map(|record| record.mtu);
            status.problems.extend(problems::of_sizes(core, path, &status, theirs));
            shown.push(status);
        }
        shown.sort_by(|a, b| a.name.cmp(&b.name));
        let mut foreign: Vec<PeerStatus> = Vec::new();
        for (place, configured) in config.peers.iter().enumerate() {
            let kind = match &configured.kind {
                overlay_config::ForeignKind::Wireguard { public_key, .. } => PeerKind::ForeignWireguard(public_key.0),
                overlay_config::ForeignKind::Gre { endpoint, .. } | overlay_config::ForeignKind::Ipip { endpoint } => {
                    PeerKind::ForeignPlain(*endpoint)
                }
            };
            let Some(peer) = core.find_peer(&kind) else { continue };
            let Some(path) = snapshot.peer(peer.index) else { continue };
            let mut status = self.peer_status(&peer, path, now);
            status.name.clone_from(&configured.name);
            status.kind = ShownKind::Foreign;
            if let PeerKind::ForeignWireguard(key) = &kind {
                status.public_key = Some(PublicKey(*key));
            }
            status.subnets = subnets(Owner::Foreign(place as u32));
            status.data = foreign_state(core, &peer, now);
            status.arriving = status.data;
            status.problems = problems::of_sizes(core, path, &status, None).into_iter().collect();
            foreign.push(status);
        }
        foreign.sort_by(|a, b| a.name.cmp(&b.name));
        shown.extend(foreign);
        shown
    }

    fn peer_status(&self, peer: &Peer, path: &PathPeer, now: Instant) -> PeerStatus {
        let state = peer.state.lock();
        let endpoint = match path.plain {
            Some(plain) => Some(plain.to.ip().to_string()),
            None => state.path.map(|path| path.to.to_string()),
        };
        let handshake = state.tunnel.as_ref().and_then(|tunnel| tunnel.last_handshake());
        let snapshot = self.core.shared.snapshot.load();
        PeerStatus {
            name: peer.name.clone(),
            kind: ShownKind::Member,
            id: None,
            public_key: None,
            subnets: Vec::new(),
            encapsulation: path.encapsulation,
            authenticated: path.encapsulation.is_encrypted(),
            endpoint,
            endpoints: Vec::new(),
            control: ControlState::None,
            data: DataState::Idle,
            arriving: DataState::Idle,
            rtt_us: None,
            loss_percent: None,
            handshake_age_ms: handshake.map(|at| now.saturating_duration_since(at).as_millis() as u64),
            tx_bytes: peer.counters.tx_bytes.load(Relaxed),
            rx_bytes: peer.counters.rx_bytes.load(Relaxed),
            tx_packets: peer.counters.tx_packets.load(Relaxed),
            rx_packets: peer.counters.rx_packets.load(Relaxed),
            mtu: snapshot.tables.peer(peer.index).map(|info| info.inner_mtu.get()),
            problems: Vec::new(),
        }
    }

    fn add_probes(&self, status: &mut PeerStatus, peer: &Peer, now: Instant) {
        let probes = peer.probes.lock();
        status.data = data_state(probes.state());
        status.rtt_us = probes.round_trip().map(|rtt| rtt.as_micros() as u64);
        if probes.state() != probe::DataState::Unknown {
            status.loss_percent = Some((probes.loss(now) * 1000.0).round() / 10.0);
        }
    }
}

/// What probes of a member say.
pub(super) fn data_state(state: probe::DataState) -> DataState {
    match state {
        probe::DataState::Up => DataState::Up,
        probe::DataState::Down => DataState::Down,
        probe::DataState::Unknown => DataState::Idle,
    }
}

/// What the last packet of a foreign peer says.
pub(super) fn foreign_state(core: &Core, peer: &Peer, now: Instant) -> DataState {
    match core.age_of(peer.counters.last_rx_ms.load(Relaxed), now) {
        Some(age) if age < FOREIGN_IDLE => DataState::Up,
        _ => DataState::Idle,
    }
}

pub(super) fn control_state(state: MemberState) -> ControlState {
    match state {
        MemberState::New => ControlState::Unknown,
        MemberState::Up => ControlState::Up,
        MemberState::Suspect | MemberState::Degraded => ControlState::Suspect,
        MemberState::Down => ControlState::Down,
    }
}

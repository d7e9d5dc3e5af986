//! The director: the one task that owns gossip and may change what is in force. It drives the gossip state machine,
//! applies configuration changes whole, rebuilds the packet path's snapshot, and sends data-path probes.

mod endpoints;
mod identities;
mod membership;
mod names;
mod networks;
mod policy;
mod traces;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use overlay_config::{Applies, Config};
use overlay_control::api::Severity;
use overlay_control::{ApiError, Code};
use overlay_dataplane::{HostPolicy, RuleEvent};
use overlay_routing::gossip::{Authority, ForeignPrefixes, Gossip, GossipEvent, OwnHost, StaticMember, Transmit};
use overlay_routing::identity::IdentityPublic;
use overlay_wire::gossip::RouteAnnouncement;
use overlay_wire::gossip::body::{FEATURE_CLOCK, FEATURE_PATHS, FEATURE_TRACE};
use overlay_wire::gossip::identities::Identities;
use overlay_wire::{HostId, Prefix};
use tokio::sync::mpsc;

pub(crate) use traces::TraceDesk;

use crate::asking::{Listeners, Question, Told};
use crate::core::{Change, Core, View, host_address, unix_ms};
use crate::membership::{Kept, Work};
use crate::peers::PeerKind;
use crate::plumbing::LearnedRoutes;
use crate::probe::{self, DataState};
use crate::rebuild::{Known, MemberInput, rebuild};
use crate::shared::{Datagram, WorkerCommand, WorkerEvent};
use crate::underlay::route::route_to;

/// How often a peer is probed whose data path is up.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How often one is probed that has not answered yet in its first seconds.
const PROBE_FIRST: Duration = Duration::from_millis(100);
/// How long the quick probes last.
const PROBE_FIRST_FOR: Duration = Duration::from_secs(5);
/// How often addresses, routes and MTUs of the underlay are looked at again.
const UNDERLAY_EVERY: Duration = Duration::from_secs(10);
/// How often the kernel is asked whether a router has told it of a smaller MTU towards a peer. A stream stalls until then,
/// so it is well below the time after which TCP backs off for long.
const PATHS_EVERY: Duration = Duration::from_millis(250);

/// How often what gossip learned is kept on disk.
const KEEP_EVERY: Duration = Duration::from_secs(2);

pub use endpoints::{Underlay, own_endpoints};
pub(crate) use membership::{enter, publish};
pub(crate) use policy::{PolicyDriver, made as policy_made};

/// Addresses of no host in particular: the way to them is the default route (RFC 5737, RFC 3849).
pub(crate) const ANYWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// Sends gossip datagrams.
#[derive(Debug)]
pub struct GossipSockets {
    /// UDP over IPv4.
    pub udp4: Option<std::net::UdpSocket>,
    /// UDP over IPv6.
    pub udp6: Option<std::net::UdpSocket>,
}

impl GossipSockets {
    /// Sends one; what cannot be sent is lost, as any datagram may be.
    pub(crate) fn send(&self, transmit: &Transmit) {
        let socket = if transmit.to.is_ipv4() { &self.udp4 } else { &self.udp6 };
        if let Some(socket) = socket
            && let Err(error) = socket.send_to(&transmit.bytes, transmit.to)
        {
            tracing::debug!(to = %transmit.to, cause = %error, "gossip datagram not sent");
        }
    }
}

/// The director's state.
pub struct Director {
    /// Shared state.
    pub core: Arc<Core>,
    /// Gossip.
    pub gossip: Gossip,
    /// To send with.
    pub sockets: GossipSockets,
    /// Gossip datagrams from the worker.
    pub datagrams: mpsc::Receiver<Datagram>,
    /// What the worker reports.
    pub worker_events: mpsc::Receiver<WorkerEvent>,
    /// What the API asks for.
    pub changes: mpsc::Receiver<Change>,
    /// What is known of this host's underlay.
    pub underlay: Underlay,
    /// Own endpoints as last published.
    pub endpoints: Vec<SocketAddr>,
    /// The routes the plumbing was last given.
    pub learned: Option<LearnedRoutes>,
    /// The policy between containers and this host that the plumbing was last given.
    pub host_policy: Option<Arc<HostPolicy>>,
    /// Labels of this host's containers as last published.
    pub labels_published: Identities,
    /// Whether the plumbing was given what the last rebuilding found.
    pub host_policy_taken: bool,
    /// How many policies it was given.
    pub host_policies_given: u64,
    /// When a loop was last reported.
    pub loop_told: Option<Instant>,
    /// Who waits for what members say.
    pub listeners: Listeners,
    /// Questions about packets, asked and to be answered.
    pub(crate) traces: TraceDesk,
    /// To the issuer's task.
    pub(crate) work: mpsc::Sender<Work>,
    /// To the keeper; holds what it was last given.
    pub(crate) keeper: tokio::sync::watch::Sender<Option<Kept>>,
    /// Whether gossip learned something worth keeping.
    pub(crate) is_unkept: bool,
    /// Whether it is to be kept at once.
    pub(crate) must_keep: bool,
    /// The policy of the whole cluster.
    pub(crate) policy: PolicyDriver,
}

impl Director {
    /// Runs until `stop` is told.
    pub async fn run(mut self, mut stop: tokio::sync::watch::Receiver<bool>) {
        self.gossip.handle_timeout(Instant::now());
        self.drain(true);
        let changed = self.underlay.open(&self.core);
        let mut look: Option<Instant> = None;
        let mut probe = tokio::time::interval(PROBE_FIRST);
        probe.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let quick_until = Instant::now() + PROBE_FIRST_FOR;
        let mut slow = false;
        let mut underlay = tokio::time::interval(UNDERLAY_EVERY);
        underlay.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut paths = tokio::time::interval(PATHS_EVERY);
        paths.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut mtus = Vec::new();
        let mut openings = self.core.plumbing.openings();
        let mut names = self.core.plumbing.names();
        let mut identities = self.core.plumbing.identities();
        self.publish_names();
        let mut keep = tokio::time::interval(KEEP_EVERY);
        keep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.gossip.poll_timeout().into_iter().chain(self.policy.poll_timeout()).min();
            let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
            tokio::select! {
                _ = stop.changed() => {
                    self.gossip.leave(Instant::now());
                    self.transmit();
                    return;
                }
                Some(datagram) = self.datagrams.recv() => {
                    self.take_datagram(&datagram);
                    // What else waits already is taken in the same turn.
                    for _ in 0..64 {
                        let Ok(datagram) = self.datagrams.try_recv() else { break };
                        self.take_datagram(&datagram);
                    }
                    self.drain(false);
                }
                () = tokio::time::sleep_until(due.into()) => {
                    self.gossip.handle_timeout(Instant::now());
                    self.drain(false);
                }
                Some(change) = self.changes.recv() => self.change(change),
                Some(event) = self.worker_events.recv() => self.worker_event(event).await,
                _ = probe.tick() => {
                    self.probe();
                    if !slow && Instant::now() > quick_until {
                        slow = true;
                        probe = tokio::time::interval(PROBE_EVERY);
                        probe.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                    }
                }
                _ = underlay.tick() => {
                    self.tell_time();
                    self.refresh_underlay().await;
                }
                () = changed.notified() => look = look.or_else(|| Some(self.underlay.next_look(Instant::now()))),
                () = tokio::time::sleep_until(look.unwrap_or(due).into()), if look.is_some() => {
                    look = None;
                    self.refresh_underlay().await;
                }
                Ok(()) = openings.changed() => self.drain(true),
                Ok(()) = names.changed() => {
                    self.publish_names();
                    self.drain(false);
                }
                Ok(()) = identities.changed() => self.settle_labels(),
                _ = keep.tick(), if self.is_unkept => self.keep(),
                _ = paths.tick() => {
                    let now = path_mtus(&self.core);
                    if now != mtus {
                        mtus = now;
                        self.drain(true);
                    }
                }
            }
        }
    }

    fn transmit(&mut self) {
        while let Some(transmit) = self.gossip.poll_transmit() {
            match self.underlay.source_towards(&transmit.to) {
                Some(source) => self.underlay.replies.send(&self.sockets, &transmit, source),
                None => self.sockets.send(&transmit),
            }
        }
    }

    /// Sends what gossip wants sent, records what it reports, and rebuilds when that matters.
    fn drain(&mut self, force: bool) {
        let (mut changed, mut renamed) = (force, force);
        let (mut moved, mut cut) = (Vec::new(), Vec::new());
        while let Some(event) = self.gossip.poll_event() {
            changed |= matters(&event);
            renamed |= names::concerns(&event);
            if let GossipEvent::EndpointChanged { host, endpoint } = &event {
                moved.push((*host, *endpoint));
            }
            if let GossipEvent::ClockAsked { host, nonce } = &event {
                self.gossip.tell_clock(*host, *nonce, unix_ms());
                self.transmit();
            }
            self.trace_event(&event);
            self.listeners.tell(&event);
            self.record(&event);
            self.policy_event(&event);
            cut.extend(self.membership_event(&event));
        }
        if renamed {
            self.rebuild_zone();
        }
        if changed {
            self.rebuild();
            for (host, endpoint) in moved {
                self.move_path(host, endpoint);
            }
        }
        for host in cut {
            self.cut(host);
        }
        self.policy_turn();
        if self.must_keep {
            self.keep();
        }
        // Last, so that what an answer says of this host is in force before the answer leaves.
        self.transmit();
    }

    fn ask(&mut self, members: &[HostId], question: Question, listener: mpsc::Sender<Told>) {
        let now = Instant::now();
        for host in members {
            match question {
                Question::Reach => self.gossip.check(*host, now),
                Question::Clock => {
                    if !self.gossip.ask_clock(*host, now) {
                        let _ = listener.try_send(Told::NoClock { host: *host });
                    }
                }
            }
        }
        self.listeners.add(listener);
        // First contact with a member that is not reachable is due at once.
        self.gossip.handle_timeout(now);
        self.drain(false);
    }

    fn rebuild(&mut self) {
        let now = Instant::now();
        let core = Arc::clone(&self.core);
        let config = core.config.load_full();
        let members = self.gossip.members();
        let rib = self.gossip.rib();
        let by_identity: BTreeMap<HostId, &overlay_config::Member> = config
            .members
            .iter()
            .filter_map(|member| Some((IdentityPublic::from_bytes(&member.identity.0).ok()?.host_id(), member)))
            .collect();
        let inputs: Vec<MemberInput<'_>> = members
            .iter()
            .filter_map(|view| {
                let in_file = by_identity.get(&view.host);
                // Its peer may be in the file no more while gossip still holds it.
                if in_file.is_none() && view.authority == Authority::Static {
                    return None;
                }
                let encapsulation = match in_file {
                    Some(member) => member.encapsulation,
                    None => config.certified.get(&view.name).copied(),
                };
                Some(MemberInput { view, encapsulation, gre: self.gossip.gre_keys(view.host, now) })
            })
            .collect();
        let (networks, identities) = (self.gossip.networks(), self.gossip.identities());
        let known = Known { rib: &rib, networks: &networks, identities: &identities };
        let rebuilt = rebuild(&core, &config, &inputs, known);
        for (host, status) in &rebuilt.plain {
            self.gossip.set_plain_status(*host, *status, now);
        }
        core.shared.snapshot.store(Arc::new(rebuilt.snapshot));
        if core.shared.waits_for_labels.load(Relaxed) {
            core.worker.send(WorkerCommand::LookAgain);
        }
        let announced = core.announced_in_use(&rib);
        core.view.store(Arc::new(View {
            verdicts: self.gossip.announced_verdicts(),
            observed: self.gossip.observed_addresses().into_iter().collect(),
            outside: self.gossip.outside_endpoints().to_vec(),
            is_behind_nat: self.gossip.is_behind_nat(),
            counters: self.gossip.counters(),
            rib,
            members,
            networks: Arc::clone(&networks),
            identities,
            unaware: self.gossip.unaware_members(),
        }));
        let options = networks.iter().map(|(name, network)| (name.to_owned(), network.options.clone())).collect();
        let learned = LearnedRoutes { remote: rebuilt.remote, announced, networks: options };
        if self.learned.as_ref() != Some(&learned) && core.plumbing.try_set_routes(learned.clone()) {
            self.learned = Some(learned);
        }
        self.host_policy_taken = true;
        if self.host_policy.as_deref() != Some(&rebuilt.host_policy) {
            let policy = Arc::new(rebuilt.host_policy);
            self.host_policy_taken = core.plumbing.try_set_host_policy(Arc::clone(&policy));
            if self.host_policy_taken {
                self.host_policy = Some(policy);
                self.host_policies_given += 1;
            }
        }
    }

    fn record(&self, event: &GossipEvent) {
        let events = &self.core.events;
        let view = |host: &HostId| self.gossip.member(*host).map_or_else(|| host.to_string(), |member| member.name);
        match event {
            GossipEvent::MemberUp { host } => events.info("member-up", Some(&view(host)), "it answers gossip probes"),
            GossipEvent::MemberDegraded { host } => {
                events.warn("member-degraded", Some(&view(host)), "it does not answer this host, but others reach it");
            }
            GossipEvent::MemberDown { host, reason } => {
                events.warn("member-down", Some(&view(host)), reason.name());
            }
            GossipEvent::KeysChanged { host } => {
                events.info("member-keys", Some(&view(host)), "it started anew with fresh keys");
            }
            GossipEvent::EndpointChanged { host, endpoint } => {
                events.info("member-moved", Some(&view(host)), format!("authentic datagrams come from {endpoint}"));
            }
            GossipEvent::RouteRefused(refused) => events.warn(
                "route-refused",
                Some(&refused.claim.prefix.to_string()),
                format!("{} claims it: {}", refused.claim.name, refused.claim.refusal_reason().unwrap_or_default()),
            ),
            GossipEvent::IdentityRefused { host, address, count } => events.warn(
                "labels-refused",
                Some(&view(host)),
                format!(
                    "it gives labels to {count} addresses that are not its containers', as {address}; they do not count"
                ),
            ),
            GossipEvent::Equivocation { key, version } => {
                events.record(
                    Severity::Error,
                    "equivocation",
                    Some(&key.owner.to_string()),
                    format!("it signed two different records with version {version}: its key is in two hands"),
                );
            }
            GossipEvent::OwnIdentityElsewhere { .. } => {
                *self.core.twin.lock() = Some("another machine of this cluster".to_owned());
                events.record(
                    Severity::Error,
                    "identity-cloned",
                    None,
                    "another machine uses this host's identity; make a new one there with overlayctl key generate",
                );
            }
            GossipEvent::IdentityInUseTwice { host, .. } => events.record(
                Severity::Error,
                "identity-cloned",
                Some(&view(host)),
                "two machines use its identity, or its clock and state went back",
            ),
            GossipEvent::ReflexiveAddress { address } => {
                let told = format!("members see this host at {address}, which is not its own: there is a NAT between");
                events.info("underlay-nat", None, told);
            }
            GossipEvent::RoutesChanged => events.info("routes-changed", None, "the routes in use changed"),
            GossipEvent::RecordChanged { .. }
            | GossipEvent::SourceValidated { .. }
            | GossipEvent::NetworksChanged
            | GossipEvent::IdentitiesChanged
            | GossipEvent::PlainStatusChanged { .. }
            | GossipEvent::PlainStatusHeard { .. }
            | GossipEvent::VerdictsReceived { .. }
            | GossipEvent::CheckAnswered { .. }
            | GossipEvent::ClockAsked { .. }
            | GossipEvent::ClockTold { .. }
            | GossipEvent::TraceAsked { .. }
            | GossipEvent::TraceTold { .. }
            | GossipEvent::MemberAdded { .. }
            | GossipEvent::MemberRevoked { .. }
            | GossipEvent::OwnIdentityRevoked
            | GossipEvent::StandingChanged { .. }
            | GossipEvent::TrustChanged
            | GossipEvent::JoinReceived { .. }
            | GossipEvent::CertificateRequested { .. }
            | GossipEvent::CertificateRenewed { .. }
            | GossipEvent::PolicyChanged(_)
            | GossipEvent::ClockSuspected { .. } => {
                tracing::debug!(?event, "gossip");
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Apply(config, done) => {
                let _ = done.send(self.apply(*config));
            }
            Change::Ask(members, question, listener) => self.ask(&members, question, listener),
            Change::Look(host, answer) => {
                let _ = answer.send(self.gossip.member(host));
            }
            Change::AskTrace(host, packet, answer) => self.ask_trace(host, *packet, answer),
            Change::TellTrace(host, nonce, answer) => self.gossip.tell_trace(host, nonce, answer),
            Change::Rebuild(done) => {
                self.drain(true);
                let _ = done.send(());
            }
            Change::Membership(change) => self.membership_change(change),
            Change::Policy(change) => self.policy_change(change),
            Change::Networks(done) => {
                let _ = done.send(self.publish_networks());
            }
            Change::Identities(done) => {
                let _ = done.send(self.publish_identities());
            }
            Change::Reload(done) => {
                let (path, layer) = (&self.core.config_path, self.core.layer.as_ref());
                let text = if layer.is_some() { Config::text_or_empty(path) } else { Config::text(path) };
                let loaded = text.and_then(|text| Ok((Config::load_text(&text, path, layer)?, text)));
                let outcome = match loaded {
                    Ok((config, text)) => self.apply(config).inspect(|_| *self.core.file_text.lock() = text),
                    Err(problems) => Err(ApiError::new(
                        Code::Config,
                        "the configuration was not reloaded",
                        problems.to_string(),
                        "correct the file and reload; the old configuration stays in force",
                    )),
                };
                match &outcome {
                    Ok(changes) => {
                        self.core.reloads.applied.fetch_add(1, Relaxed);
                        self.core.events.info("config-reloaded", None, format!("{} values changed", changes.len()));
                    }
                    Err(error) => {
                        self.core.reloads.refused.fetch_add(1, Relaxed);
                        self.core.events.warn("config-refused", None, error.why.clone());
                    }
                }
                let _ = done.send(outcome);
            }
        }
    }

    /// Puts a configuration in force whole, or refuses it whole.
    fn apply(&mut self, next: Config) -> Result<Vec<overlay_config::Change>, ApiError> {
        let now = Instant::now();
        crate::start::check_identities(&next)?;
        let changes = overlay_config::diff(&self.core.config.load(), &next);
        let restart: Vec<&str> = changes
            .iter()
            .filter(|change| change.applies == Applies::Restart)
            .map(|change| change.key.as_str())
            .collect();
        if !restart.is_empty() {
            return Err(ApiError::new(
                Code::RestartNeeded,
                "nothing was changed",
                format!("{} takes effect at a restart only", restart.join(", ")),
                "restart overlayd, or take these values back and reload",
            ));
        }
        let refused = |error: overlay_routing::gossip::GossipError| {
            ApiError::new(Code::Config, "nothing was changed", error.to_string(), "shorten the list and try again")
        };
        let endpoints = own_endpoints(&next, &self.core.view.load().members, self.underlay.found());
        let old = self.core.config.load_full();
        // Each step refuses or takes effect; earlier ones are taken back when a later one refuses.
        let steps = self
            .gossip
            .set_members(static_members(&next), now)
            .and_then(|()| self.gossip.announce(announcements(&next), now))
            .and_then(|()| endpoints::set_own(&mut self.gossip, &next, own_host(&self.core, &next, &endpoints), now));
        if let Err(error) = steps {
            let _ = self.gossip.set_members(static_members(&old), now);
            let _ = self.gossip.announce(announcements(&old), now);
            return Err(refused(error));
        }
        self.gossip.set_foreign(foreign_prefixes(&next), now);
        self.endpoints = endpoints;
        self.core.own_endpoints.store(Arc::new(self.endpoints.clone()));
        if next.log.level != old.log.level {
            crate::logging::set_level(next.log.level);
        }
        self.core.config.store(Arc::new(next));
        self.drain(true);
        Ok(changes)
    }

    async fn worker_event(&mut self, event: WorkerEvent) {
        let events = &self.core.events;
        match event {
            WorkerEvent::DeviceLost => events.warn("device-lost", None, "the TUN device vanished; it is made again"),
            WorkerEvent::DeviceBack => match self.core.plumbing.reconcile().await {
                Ok(_) => events.info("device-back", None, "addresses and routes are back"),
                Err(error) => events.warn("device-back", None, error.to_string()),
            },
            WorkerEvent::Loop => {
                let now = Instant::now();
                if self.loop_told.is_none_or(|told| now.saturating_duration_since(told) > Duration::from_secs(10)) {
                    self.loop_told = Some(now);
                    events.warn(
                        "underlay-loop",
                        None,
                        "our own datagrams came back through the TUN and were dropped; rules are looked at again",
                    );
                    // The outcome is reported by the plumbing itself.
                    let _ = self.core.plumbing.reconcile().await;
                }
            }
            WorkerEvent::Rules(decided, suppressed) => self.record_rules(&decided, suppressed),
            WorkerEvent::LabelsWanted(addresses) => self.want_labels(&addresses),
            WorkerEvent::FlowsBegan(pairs) => self.introduce(&pairs),
            WorkerEvent::SegmentationLost => {
                events.warn("segmentation-off", None, "the kernel refused UDP_SEGMENT; datagrams go one by one");
            }
        }
    }

    fn record_rules(&self, decided: &[RuleEvent], suppressed: u64) {
        let snapshot = self.core.shared.snapshot.load();
        for event in decided {
            // A policy that was replaced meanwhile no longer says which rule it was.
            let rule = (event.revision == snapshot.tables.revision)
                .then(|| snapshot.tables.policy.rules().get(event.rule as usize))
                .flatten()
                .map_or_else(|| format!("rule {}", event.rule + 1), ToString::to_string);
            let kind = if event.audit { "policy-audit" } else { "policy-log" };
            self.core.events.info(kind, Some(&event.tuple.to_string()), format!("{}: {rule}", event.action));
        }
        if suppressed > 0 {
            self.core.events.warn("policy-log", None, format!("{suppressed} more decisions were not logged"));
        }
    }

    /// Sends one probe to every member whose address is known.
    fn probe(&mut self) {
        let now = Instant::now();
        let view = self.core.view.load_full();
        for member in &view.members {
            let Some(record) = &member.host_record else { continue };
            let Some(peer) = self.core.find_peer(&PeerKind::Member(member.host)) else { continue };
            let target = record.prefixes.iter().map(host_address).find_map(|to| {
                let from = self.core.host_addresses.iter().find(|from| from.is_ipv4() == to.is_ipv4())?;
                Some((*from, to))
            });
            let Some((from, to)) = target else { continue };
            let (sequence, before) = {
                let mut probes = peer.probes.lock();
                let before = probes.state();
                (probes.send(now), before)
            };
            let after = peer.probes.lock().state();
            self.note_data_path(member, after, now);
            if before != after && after == DataState::Down {
                self.core.events.warn("data-down", Some(&member.name), "three data-path probes in a row were lost");
            }
            if let Some(packet) = probe::echo_request(from, to, self.core.shared.probe_id, sequence, probe::PAYLOAD) {
                self.core.worker.send(WorkerCommand::Inject(packet));
            }
        }
        self.transmit();
    }
}

fn matters(event: &GossipEvent) -> bool {
    match event {
        GossipEvent::MemberUp { .. }
        | GossipEvent::MemberDegraded { .. }
        | GossipEvent::MemberDown { .. }
        | GossipEvent::RecordChanged { .. }
        | GossipEvent::KeysChanged { .. }
        | GossipEvent::EndpointChanged { .. }
        | GossipEvent::SourceValidated { .. }
        | GossipEvent::PlainStatusChanged { .. }
        | GossipEvent::PlainStatusHeard { .. }
        | GossipEvent::RoutesChanged
        | GossipEvent::NetworksChanged
        | GossipEvent::IdentitiesChanged
        | GossipEvent::RouteRefused(_)
        | GossipEvent::VerdictsReceived { .. }
        | GossipEvent::MemberAdded { .. }
        | GossipEvent::MemberRevoked { .. }
        | GossipEvent::StandingChanged { .. }
        | GossipEvent::TrustChanged => true,
        GossipEvent::Equivocation { .. }
        | GossipEvent::IdentityRefused { .. }
        | GossipEvent::OwnIdentityElsewhere { .. }
        | GossipEvent::IdentityInUseTwice { .. }
        | GossipEvent::CheckAnswered { .. }
        | GossipEvent::ClockAsked { .. }
        | GossipEvent::ClockTold { .. }
        | GossipEvent::TraceAsked { .. }
        | GossipEvent::TraceTold { .. }
        | GossipEvent::ReflexiveAddress { .. }
        | GossipEvent::OwnIdentityRevoked
        | GossipEvent::JoinReceived { .. }
        | GossipEvent::CertificateRequested { .. }
        | GossipEvent::CertificateRenewed { .. }
        | GossipEvent::PolicyChanged(_)
        | GossipEvent::ClockSuspected { .. } => false,
    }
}

/// The members as gossip wants them; an identity that does not parse was refused with the configuration already.
#[must_use]
pub fn static_members(config: &Config) -> Vec<StaticMember> {
    config
        .members
        .iter()
        .filter_map(|member| {
            Some(StaticMember {
                name: member.name.clone(),
                identity: IdentityPublic::from_bytes(&member.identity.0).ok()?,
                endpoints: member.endpoint.into_iter().collect(),
                allow: member.allow.clone(),
            })
        })
        .collect()
}

/// The foreign peers' prefixes, in configuration order.
#[must_use]
pub fn foreign_prefixes(config: &Config) -> Vec<ForeignPrefixes> {
    config
        .peers
        .iter()
        .map(|peer| ForeignPrefixes { name: peer.name.clone(), allowed_ips: peer.allowed_ips.clone() })
        .collect()
}

/// The prefixes behind this host.
#[must_use]
pub fn announcements(config: &Config) -> Vec<RouteAnnouncement> {
    let mut prefixes: Vec<Prefix> = config.node.announce.clone();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes.into_iter().map(|prefix| RouteAnnouncement { prefix, metric: 0 }).collect()
}

/// The MTU on the way to each configured peer, as the kernel knows it now.
fn path_mtus(core: &Core) -> Vec<(SocketAddr, u16)> {
    let (config, view) = (core.config.load(), core.view.load());
    let configured = config.members.iter().filter_map(|member| member.endpoint);
    let certified = view.members.iter().filter(|member| member.authority != Authority::Static);
    let members = configured.chain(certified.filter_map(|member| member.endpoint));
    let mark = config.plumbing.mark_socket;
    members.filter_map(|to| route_to(to, mark).ok().map(|route| (to, route.mtu))).collect()
}

/// What this host says about itself.
#[must_use]
pub fn own_host(core: &Core, config: &Config, endpoints: &[SocketAddr]) -> OwnHost {
    OwnHost {
        name: config.node.name.clone(),
        endpoints: endpoints.to_vec(),
        wireguard_key: core.keys.public(),
        encapsulation: config.overlay.encapsulation,
        mtu: core.mtu,
        features: FEATURE_CLOCK | FEATURE_PATHS | FEATURE_TRACE,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        prefixes: config.node.prefixes.clone(),
    }
}

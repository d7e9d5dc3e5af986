//! The gossip state machine: who is a member, who is up, and which signed records exist.
//!
//! Sans-IO: `handle_*` change state, `poll_*` say what to send, what happened and when to call again. It has no clock and
//! no ambient randomness; the same inputs with the same seed give the same outputs, byte for byte. Every table is
//! bounded: members, records per owner, pending contacts, relays, sources, and both output queues.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::envelope::Envelope;
use overlay_wire::gossip::identities::Identities as PublishedIdentities;
use overlay_wire::gossip::{Message, NetworkEntry, PlainStatus, RecordKey, RecordKind, RouteAnnouncement};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use x25519_dalek::{PublicKey, StaticSecret};

mod check;
mod config;
mod contact;
pub(crate) mod crypto;
mod detect;
mod identities;
mod introduced;
mod limiter;
mod membership;
mod names;
mod networks;
mod pair;
mod paths;
mod peer;
mod peers;
mod policy;
mod publish;
mod reflexive;
mod renewal;
mod report;
mod reunion;
mod spread;
mod store;
#[cfg(test)]
mod tests;
mod trust;
mod view;

pub use config::{ForeignPrefixes, GossipConfig, GossipError, OwnHost, StaticMember, cluster_id};
pub use membership::{Authority, ClusterPolicy, Introduction, Membership, Standing};
pub use paths::DataPath;
pub use reflexive::{ReflexiveUse, is_reachable_from_elsewhere};
pub use view::{DownReason, GossipCounters, GossipEvent, MemberState, MemberView, Transmit};

use crate::identities::Identities;
use crate::identity::IdentityKey;
use crate::networks::Networks;
use crate::rib::Rib;
use check::Questions;
use crypto::Sealed;
use identities::IdentityCache;
use limiter::{Bucket, ContactLimiter};
use pair::OpenError;
use peer::{MEMBER_RATE, Outcomes, Peer};
use peers::Peers;
use reflexive::Reflexive;
use spread::{EXCHANGE_RATE, GREETING_RATE};
use store::Store;
use trust::Trust;

/// The most members in one cluster.
pub const MAX_MEMBERS: usize = 1024;
/// The protocol versions this software speaks.
pub const PROTOCOL_VERSIONS: (u16, u16) = (1, 1);
/// The most datagrams or events waiting to be polled.
const MAX_QUEUED: usize = 8192;
/// The protocol period: probes, one digest exchange, questions about our routes.
const TICK: Duration = Duration::from_secs(1);
/// A timer this late means that this process stood still.
const STALL: Duration = Duration::from_secs(2);
/// The least pause between probes out of turn to one member.
const PROMPT_GAP: Duration = Duration::from_millis(200);
/// The least pause between two alarms about one member's identity.
const ALARM_GAP: Duration = Duration::from_secs(60);
/// The least pause between two answers to one record of ours that came back newer than we hold it.
const RECLAIM_GAP: Duration = Duration::from_secs(10);
/// The pause between the first contacts with two members at start.
const START_SPACING: Duration = Duration::from_millis(2);

/// The gossip state machine.
///
/// The driver calls [`Self::handle_datagram`] for each datagram whose first byte is 32 or above, [`Self::handle_timeout`]
/// when [`Self::poll_timeout`] is due, and drains [`Self::poll_transmit`] and [`Self::poll_event`] after each call.
pub struct Gossip {
    identity: IdentityKey,
    host: HostId,
    cluster: [u8; 32],
    boot_epoch: u64,
    box_secret: StaticSecret,
    box_public: PublicKey,
    own: OwnHost,
    announced: Vec<RouteAnnouncement>,
    foreign: Vec<ForeignPrefixes>,
    peers: Peers,
    /// Receive tags of all pairs.
    tags: BTreeMap<[u8; 8], HostId>,
    wireguard_keys: BTreeMap<HostId, [u8; 32]>,
    store: Store,
    /// Records of ours that were signed in this run.
    published_here: BTreeSet<RecordKey>,
    /// When a record of ours that came back was last overruled.
    reclaimed: BTreeMap<RecordKey, Instant>,
    next_version: u64,
    own_version: u64,
    introduce_counter: u64,
    contacts: ContactLimiter,
    relays: BTreeMap<u64, Relay>,
    questions: Questions,
    reflexive: Reflexive,
    /// Tags of first contacts that await their answer.
    contact_tags: BTreeMap<[u8; 8], HostId>,
    pushes: BTreeMap<RecordKey, u32>,
    next_push: Option<Instant>,
    next_tick: Instant,
    last_probed: Option<HostId>,
    /// The member that was tried last because another came back.
    last_sought: Option<HostId>,
    trust: Trust,
    rib: Arc<Rib>,
    own_networks: BTreeMap<String, NetworkEntry>,
    networks: Arc<Networks>,
    own_identities: PublishedIdentities,
    identities: Arc<Identities>,
    identity_cache: IdentityCache,
    routes_stale: bool,
    /// When stale routes are rebuilt at the latest.
    next_settle: Instant,
    /// Every address under which a member is known.
    endpoints: BTreeSet<SocketAddr>,
    /// Members whose first contact is awaited, counted once a second.
    crowd: u32,
    /// Loss of round trips to members that live.
    loss: Outcomes,
    /// How many digests may still be sent to members that came up, and how many version lists in answer to digests.
    greetings: Bucket,
    exchanges: Bucket,
    next_verdicts: Instant,
    rng: ChaCha20Rng,
    transmits: VecDeque<Transmit>,
    events: VecDeque<GossipEvent>,
    counters: GossipCounters,
}

/// A probe made for another member.
#[derive(Debug, Clone, Copy)]
struct Relay {
    requester: HostId,
    nonce: u64,
    target: HostId,
    sent: Instant,
}

impl Gossip {
    /// Starts the state machine; first contacts go out with the first [`Self::handle_timeout`].
    ///
    /// `boot_epoch` must be greater than in every earlier run of this identity, and `seed` must come from the operating
    /// system's generator: the sealing keys of this run are drawn from it.
    ///
    /// # Errors
    /// When the own record does not fit or there are too many members.
    pub fn new(config: GossipConfig, seed: [u8; 32], now: Instant, boot_epoch: u64) -> Result<Self, GossipError> {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let box_secret = StaticSecret::random_from_rng(&mut rng);
        let host = config.identity.host_id();
        let mut gossip = Self {
            host,
            identity: config.identity,
            cluster: config.cluster,
            boot_epoch,
            box_public: PublicKey::from(&box_secret),
            box_secret,
            own: config.own,
            announced: Vec::new(),
            foreign: config.foreign,
            peers: Peers::default(),
            tags: BTreeMap::new(),
            wireguard_keys: BTreeMap::new(),
            store: Store::default(),
            published_here: BTreeSet::new(),
            reclaimed: BTreeMap::new(),
            next_version: boot_epoch.max(1),
            own_version: 0,
            introduce_counter: 0,
            contacts: ContactLimiter::new(now),
            relays: BTreeMap::new(),
            questions: Questions::default(),
            reflexive: Reflexive::default(),
            contact_tags: BTreeMap::new(),
            pushes: BTreeMap::new(),
            next_push: None,
            next_tick: now + TICK,
            // Everybody begins elsewhere: hosts that started together would otherwise probe the same members in step.
            last_probed: Some(host),
            last_sought: Some(host),
            trust: Trust::default(),
            rib: Arc::default(),
            own_networks: BTreeMap::new(),
            networks: Arc::default(),
            own_identities: PublishedIdentities::new(),
            identities: Arc::default(),
            identity_cache: IdentityCache::default(),
            routes_stale: true,
            next_settle: now,
            endpoints: BTreeSet::new(),
            crowd: 0,
            loss: Outcomes::default(),
            greetings: Bucket::full(GREETING_RATE, now),
            exchanges: Bucket::full(EXCHANGE_RATE, now),
            next_verdicts: now,
            rng,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: GossipCounters::default(),
        };
        let body = gossip.host_body(&gossip.own)?;
        gossip.set_members(config.members, now)?;
        gossip.publish(gossip.own_key(RecordKind::HOST), body, now);
        // Whatever an earlier run announced is withdrawn until it is announced again.
        gossip.publish(gossip.own_key(RecordKind::ROUTES), Vec::new(), now);
        gossip.settle_routes();
        Ok(gossip)
    }

    /// Takes a datagram from the underlay; what does not authenticate is counted and answered with silence.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        let from = match from.ip().to_canonical() {
            ip @ std::net::IpAddr::V4(_) => SocketAddr::new(ip, from.port()),
            std::net::IpAddr::V6(_) => from,
        };
        match Envelope::parse(bytes) {
            Err(_) => self.counters.malformed += 1,
            Ok(Envelope::Sealed { header, tag, nonce, ciphertext }) => {
                self.handle_sealed(from, tag, &Sealed { header, nonce, ciphertext }, now);
            }
            Ok(Envelope::Introduce { header, ephemeral, nonce, ciphertext }) => {
                self.handle_introduce(from, &ephemeral, &Sealed { header, nonce, ciphertext }, now);
            }
            Ok(Envelope::Join { .. }) => self.handle_join(from, bytes, now),
            // A joiner has its own machine; a member has asked for nothing.
            Ok(Envelope::JoinAck { .. }) => self.counters.unknown_sender += 1,
            Ok(Envelope::IntroduceAck { header, tag, box_key, nonce, ciphertext }) => {
                self.handle_introduce_ack(from, tag, &box_key, &Sealed { header, nonce, ciphertext }, now);
            }
        }
        self.settle_in_time(now);
        self.peers.settle_timers();
    }

    /// Does what is due: first contacts, probe rounds, pushes, and once a second the protocol period.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.peers.settle_timers();
        if self.poll_timeout().is_some_and(|due| now.saturating_duration_since(due) > STALL) {
            self.forgive_all(now);
            self.peers.settle_timers();
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for host in self.peers.due(now) {
            if self.peers.get(&host).is_some_and(|peer| due(peer.probe.map(|probe| probe.deadline))) {
                self.probe_deadline(host, now);
            }
            let round = self.peers.get(&host).is_some_and(|peer| peer.probe.is_none() && due(peer.verification.next));
            if round {
                if let Some(peer) = self.peers.get_mut(&host) {
                    // Set again when the round fails; cleared for good when the member answers.
                    peer.verification.next = Some(now + TICK);
                }
                self.start_probe(host, now);
            }
            if self.peers.get(&host).is_some_and(|peer| due(peer.contact.next)) {
                self.send_introduce(host, now);
            }
        }
        if due(self.next_push) {
            self.push_tick(now);
        }
        if self.next_tick <= now {
            self.next_tick = now + TICK;
            self.probe_tick(now);
            self.digest_tick();
            self.verdict_tick(now);
            self.settle_standing(now);
            self.renewal_tick(now);
            self.settle_reflexive(now);
            self.return_tick(now);
            self.keepalive_tick(now);
        }
        self.settle_in_time(now);
        self.peers.settle_timers();
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let transmit = self.transmits.pop_front();
        self.counters.sent += u64::from(transmit.is_some());
        transmit
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<GossipEvent> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let settle = if self.routes_stale { Some(self.next_settle) } else { None };
        [self.peers.next_timer(), self.next_push, Some(self.next_tick), settle].into_iter().flatten().min()
    }

    /// Replaces the member list and grants, as after a reload; records of hosts that are members no more are forgotten.
    ///
    /// # Errors
    /// When there are too many members; nothing changes then.
    pub fn set_members(&mut self, members: Vec<StaticMember>, now: Instant) -> Result<(), GossipError> {
        if members.len() > MAX_MEMBERS {
            return Err(GossipError::TooManyMembers { count: members.len(), max: MAX_MEMBERS });
        }
        let mut wanted: BTreeMap<HostId, StaticMember> =
            members.into_iter().map(|member| (member.host_id(), member)).collect();
        wanted.remove(&self.host);
        wanted.retain(|host, _| !self.trust.revoked.contains(host));
        let is_gone = |peer: &&Peer| peer.authority == Authority::Static && !wanted.contains_key(&peer.host);
        let gone: Vec<HostId> = self.peers.values().filter(is_gone).map(|peer| peer.host).collect();
        // Whoever also has a certificate stays by that.
        for host in gone {
            if !self.fall_back_to_certificate(host) {
                self.remove_member(host);
            }
        }
        // Each host begins behind its own id: otherwise all would contact the lowest one first, in one instant.
        let behind = wanted.split_off(&self.host);
        let mut first_contact = now;
        for (host, member) in behind.into_iter().chain(wanted) {
            match self.peers.get_mut(&host) {
                Some(peer) => {
                    let moved = peer.member.endpoints != member.endpoints;
                    peer.member = member;
                    peer.authority = Authority::Static;
                    peer.standing = Standing::Full;
                    if moved && !peer.state.is_reachable() {
                        peer.seek(now);
                    }
                }
                None => {
                    self.peers.insert(host, Peer::new(member, Authority::Static, now, first_contact));
                    first_contact += START_SPACING;
                }
            }
        }
        self.refresh_endpoints();
        self.routes_stale = true;
        self.settle_standing(now);
        self.settle_routes();
        Ok(())
    }

    /// Replaces the foreign peers' prefixes.
    pub fn set_foreign(&mut self, foreign: Vec<ForeignPrefixes>, _now: Instant) {
        self.foreign = foreign;
        self.routes_stale = true;
        self.settle_routes();
    }

    /// Replaces what this host says about itself and publishes it when it differs.
    ///
    /// # Errors
    /// When the record does not fit; nothing changes then.
    pub fn set_own_host(&mut self, own: OwnHost, now: Instant) -> Result<(), GossipError> {
        let body = self.host_body(&own)?;
        self.own = own;
        self.routes_stale = true;
        self.publish(self.own_key(RecordKind::HOST), body, now);
        self.settle_routes();
        Ok(())
    }

    /// Replaces the announced prefixes and publishes them when they differ.
    ///
    /// # Errors
    /// When there are more than 46; nothing changes then.
    pub fn announce(&mut self, mut routes: Vec<RouteAnnouncement>, now: Instant) -> Result<(), GossipError> {
        routes.sort_by_key(|route| (route.prefix, route.metric));
        routes.dedup_by_key(|route| route.prefix);
        let body = Self::routes_body(&routes)?;
        self.announced = routes;
        self.routes_stale = true;
        self.publish(self.own_key(RecordKind::ROUTES), body, now);
        self.settle_routes();
        Ok(())
    }

    /// Says what this host thinks of carrying a member's packets without encryption; sent along with probes.
    pub fn set_plain_status(&mut self, member: HostId, plain: PlainStatus, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&member)
            && peer.plain_ours != plain
        {
            peer.plain_ours = plain;
            if peer.state.is_reachable() && peer.probe.is_none() {
                self.start_probe(member, now);
            }
        }
    }

    /// Asks every member for an answer right now, as after an address change of this host.
    pub fn probe_now(&mut self, now: Instant) {
        let hosts: Vec<HostId> = self.peers.keys().copied().collect();
        for host in hosts {
            let Some(peer) = self.peers.get_mut(&host) else { continue };
            if peer.state.is_reachable() {
                self.start_probe(host, now);
            } else {
                peer.seek(now);
            }
        }
    }

    /// Tells every reachable member that this host is stopping.
    pub fn leave(&mut self, _now: Instant) {
        let hosts: Vec<HostId> =
            self.peers.values().filter(|peer| peer.state.is_reachable()).map(|peer| peer.host).collect();
        hosts.into_iter().for_each(|host| self.send(host, &Message::Leave));
    }

    /// Forgets a host that is no member any more: records, keys, channel, and what was done for it.
    fn remove_member(&mut self, host: HostId) {
        if let Some(pair) = self.peers.remove(&host).and_then(|peer| peer.pair) {
            self.tags.remove(&pair.receive_tag());
        }
        self.wireguard_keys.remove(&host);
        self.store.remove_owner(host);
        self.relays.retain(|_, relay| relay.requester != host && relay.target != host);
        self.questions.forget(host);
        self.reflexive.forget(host);
        self.routes_stale = true;
    }

    fn handle_sealed(&mut self, from: SocketAddr, tag: [u8; 8], sealed: &Sealed<'_>, now: Instant) {
        let Some(host) = self.tags.get(&tag).copied() else {
            self.counters.unknown_sender += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(&host) else { return };
        if !peer.bucket.take(MEMBER_RATE, sealed.len() as u64, now) {
            self.counters.rate_limited += 1;
            return;
        }
        let Some(pair) = peer.pair.as_mut() else { return };
        let opened = match pair.open(sealed) {
            Ok(opened) => opened,
            Err(OpenError::Unauthenticated) => {
                self.counters.unauthenticated += 1;
                return;
            }
            Err(OpenError::Replayed) => {
                self.counters.replayed += 1;
                return;
            }
        };
        self.counters.received += 1;
        self.heard_from(host, from, now);
        let message = Message::decode(&opened.message);
        // Path probes and their answers look at another path than the one in use.
        let moves = !matches!(message, Ok(Message::PathProbe { .. } | Message::PathAck { .. }));
        if opened.is_newest && moves {
            self.follow(host, from, now);
        }
        match message {
            Ok(message) => self.handle_message(host, from, message, now),
            Err(_) => self.counters.unknown_message += 1,
        }
    }

    fn handle_message(&mut self, host: HostId, from: SocketAddr, message: Message, now: Instant) {
        let is_answer = matches!(message, Message::Ack { .. } | Message::PathAck { .. });
        match message {
            Message::Probe { nonce, plain } => self.handle_probe(host, from, nonce, plain),
            Message::Ack { nonce, plain, observed } => self.handle_ack(host, from, nonce, plain, observed, now),
            Message::IndirectProbe { nonce, target } => self.handle_indirect_probe(host, nonce, target, now),
            Message::IndirectAck { nonce, target } => self.handle_indirect_ack(nonce, target),
            Message::Digest(hashes) => self.handle_digest(host, &hashes, now),
            Message::Versions { bucket, after, through, entries } => {
                self.handle_versions(host, bucket, (after, through), &entries, now);
            }
            Message::Want(keys) => self.handle_want(host, &keys),
            Message::Records(records) => {
                records.into_iter().for_each(|record| self.accept_record(record, now));
            }
            Message::Suspect { host: suspect } => self.handle_suspect(suspect, now),
            Message::Leave => {
                self.member_down(host, DownReason::Left, now);
                return;
            }
            Message::VerdictRequest { .. } => self.handle_verdict_request(host, now),
            Message::Verdicts { version, entries } => self.handle_verdicts(host, version, entries),
            Message::ClockRequest { nonce } => self.emit(GossipEvent::ClockAsked { host, nonce }),
            Message::Clock { nonce, unix_ms } => self.handle_clock(host, nonce, unix_ms, now),
            Message::TraceRequest { nonce, packet } => self.emit(GossipEvent::TraceAsked { host, nonce, packet }),
            Message::Trace { nonce, answer } => self.handle_trace(host, nonce, answer, now),
            Message::CertificateRequest { nonce } => self.handle_certificate_request(host, nonce, now),
            Message::PathProbe { nonce } => self.handle_path_probe(host, from, nonce),
            Message::PathAck { nonce, observed } => self.handle_path_ack(host, from, nonce, observed, now),
            Message::Certificate { nonce, certificate } => self.handle_certificate(nonce, *certificate, now),
        }
        if !is_answer {
            self.prompt_probe(host, now);
        }
    }

    /// Seals a message for a member and queues it for the member's usual address.
    fn send(&mut self, host: HostId, message: &Message) {
        if let Some(to) = self.peers.get(&host).and_then(Peer::address) {
            self.send_to(host, message, to);
        }
    }

    fn send_to(&mut self, host: HostId, message: &Message, to: SocketAddr) {
        let Some(pair) = self.peers.get_mut(&host).and_then(|peer| peer.pair.as_mut()) else { return };
        if let Some(datagram) = pair.seal(message, self.boot_epoch, &mut self.rng) {
            self.transmit(to, datagram);
        }
    }

    fn transmit(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.transmits.len() >= MAX_QUEUED {
            self.counters.queue_full += 1;
            return;
        }
        self.transmits.push_back(Transmit { to, bytes });
    }

    fn emit(&mut self, event: GossipEvent) {
        if self.events.len() >= MAX_QUEUED {
            self.counters.queue_full += 1;
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

//! Failure detection: probe rounds, verification before any verdict, and what others say.
//!
//! Only an answer to an own probe (or to an own INTRODUCE) proves that a member can be reached from here. A rumour makes
//! this host look for itself, and nothing else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::{Message, PlainStatus};
use rand_core::RngCore as _;

use super::peer::{Outcomes, Peer, Probe, ProbeStage, Verification};
use super::spread::GREETING_RATE;
use super::view::{DownReason, GossipEvent, MemberState};
use super::{Gossip, Relay};

/// Time from the start of one round of a verification to the next.
const ROUND_GAP: Duration = Duration::from_millis(500);
/// The shortest time from the first failed round to a verdict; real loss comes in bursts.
const VERDICT_FLOOR: Duration = Duration::from_secs(3);
/// Up to so many members, all are probed in every tick.
const SMALL_CLUSTER: usize = 8;
/// Members of a large cluster probed in one tick.
const PROBES_PER_TICK: usize = 4;
/// Members asked to probe for us in one round.
const HELPERS: usize = 3;
/// Own checks of one member because of rumours are this far apart at least.
const RUMOUR_GAP: Duration = Duration::from_secs(5);
/// Probes made for others at once.
const MAX_RELAYS: usize = 1024;
/// Failed rounds of one verification that count as loss.
const MAX_LOSSES: u32 = 4;
/// How long a probe for another host may take.
const RELAY_LIFE: Duration = Duration::from_secs(2);

impl Gossip {
    /// Starts the probes of one tick: every member of a small cluster, a few in turn of a large one.
    pub(super) fn probe_tick(&mut self, now: Instant) {
        self.crowd = self.peers.values().filter(|peer| peer.contact.next.is_some()).count() as u32;
        let mut hosts: Vec<HostId> = self
            .peers
            .after(self.last_probed)
            .filter(|peer| peer.pair.is_some() && peer.probe.is_none() && peer.verification.next.is_none())
            .filter(|peer| peer.state != MemberState::New)
            .map(|peer| peer.host)
            .take(SMALL_CLUSTER + 1)
            .collect();
        if hosts.len() > SMALL_CLUSTER {
            hosts.truncate(PROBES_PER_TICK);
        }
        for host in hosts {
            self.last_probed = Some(host);
            self.start_probe(host, now);
        }
    }

    /// Starts one round with a member.
    pub(super) fn start_probe(&mut self, host: HostId, now: Instant) {
        let nonce = self.rng.next_u64();
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let Some(to) = peer.probe_address().filter(|_| peer.pair.is_some()) else { return };
        let (stage, pause) = match peer.probe_repetition() {
            Some(pause) => (ProbeStage::First, pause),
            None => (ProbeStage::Direct, peer.probe_timeout()),
        };
        peer.round_began = now;
        let (deadline, plain) = (now + pause, peer.plain_ours);
        peer.probe =
            Some(Probe { nonce, to, sent: now, deadline, stage, repeated: None, others_reach_it: false, plain });
        let message = Message::Probe { nonce, plain };
        self.send_to(host, &message, to);
    }

    /// Moves a round on whose deadline has passed.
    pub(super) fn probe_deadline(&mut self, host: HostId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let (timeout, repetition) = (peer.probe_timeout(), peer.probe_repetition().unwrap_or_default());
        let is_reachable = peer.state.is_reachable();
        let Some(probe) = peer.probe.as_mut() else { return };
        if probe.stage == ProbeStage::Indirect {
            let others_reach_it = probe.others_reach_it;
            self.round_failed(host, others_reach_it, now);
            return;
        }
        if probe.stage == ProbeStage::First {
            let nonce = self.rng.next_u64();
            probe.stage = ProbeStage::Direct;
            // Counted from here: a timer that was handled late leaves the repetition its time all the same.
            probe.deadline = now + (timeout - repetition.min(timeout));
            probe.repeated = Some((nonce, now));
            let (message, to) = (Message::Probe { nonce, plain: probe.plain }, probe.to);
            self.send_to(host, &message, to);
            return;
        }
        if !is_reachable {
            // There is no verdict to prepare; the next attempt of first contact comes anyway.
            peer.probe = None;
            return;
        }
        probe.stage = ProbeStage::Indirect;
        probe.deadline = now + timeout.max(Duration::from_millis(200));
        let nonce = probe.nonce;
        let helpers = self.random_reachable(HELPERS, host);
        if helpers.is_empty() {
            self.round_failed(host, false, now);
            return;
        }
        helpers.into_iter().for_each(|helper| self.send(helper, &Message::IndirectProbe { nonce, target: host }));
    }

    fn round_failed(&mut self, host: HostId, reached_by_others: bool, now: Instant) {
        let has_helpers = self.peers.values().any(|peer| peer.host != host && peer.state == MemberState::Up);
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let sent = 1 + u32::from(peer.probe.take().is_some_and(|probe| probe.repeated.is_some()));
        let own = if peer.rounds.tell_loss() { peer.rounds.loss_percent() } else { 0 };
        let loss_before = own.max(self.loss.loss_percent());
        (0..sent).for_each(|_| peer.outcomes.push(true));
        peer.rounds.push(true);
        let next_round = (peer.round_began + ROUND_GAP).max(now);
        if !peer.state.is_reachable() {
            return;
        }
        let verification = &mut peer.verification;
        if verification.failed == 0 {
            *verification = Verification { started: Some(now), loss_before, ..Verification::default() };
        }
        verification.failed += 1;
        verification.reached_by_others += u32::from(reached_by_others);
        verification.next = Some(next_round);
        let long_enough = verification.started.is_some_and(|at| now.saturating_duration_since(at) >= VERDICT_FLOOR);
        let verdict = verification.failed >= verification.rounds_needed(has_helpers) && long_enough;
        let (failed, by_others) = (verification.failed, verification.reached_by_others);
        if peer.state == MemberState::Up {
            peer.state = MemberState::Suspect;
            peer.since = now;
        }
        if failed == 2 {
            // It may have restarted, and its own first contact may not reach us.
            peer.seek(now);
        }
        if verdict && by_others * 2 >= failed {
            // Others reach it: only our path is broken. Start counting anew.
            peer.verification =
                Verification { started: Some(now), loss_before, next: Some(now + ROUND_GAP * 2), ..Default::default() };
            peer.verification.failed = 1;
            if peer.state != MemberState::Degraded {
                peer.state = MemberState::Degraded;
                peer.since = now;
                peer.validated_source = None;
                self.emit(GossipEvent::MemberDegraded { host });
            }
        } else if verdict {
            self.member_down(host, DownReason::NoAnswer, now);
        } else if !reached_by_others {
            let told = self.random_reachable(HELPERS, host);
            told.into_iter().for_each(|helper| self.send(helper, &Message::Suspect { host }));
        }
    }

    pub(super) fn member_down(&mut self, host: HostId, reason: DownReason, now: Instant) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        if peer.state == MemberState::Down {
            return;
        }
        peer.state = MemberState::Down;
        peer.since = now;
        peer.down_reason = Some(reason);
        peer.probe = None;
        peer.verification = Verification::default();
        peer.validated_source = None;
        peer.rtt = None;
        if peer.contact.next.is_none() {
            let delay = if reason == DownReason::Left { Duration::from_secs(1) } else { Duration::ZERO };
            peer.seek(now + delay);
        }
        self.emit(GossipEvent::MemberDown { host, reason });
    }

    /// A member answered something only it could have received from us: it is up.
    pub(super) fn member_answers(&mut self, host: HostId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        peer.verification = Verification::default();
        peer.contact.next = None;
        let was = peer.state;
        if was == MemberState::Up {
            return;
        }
        peer.state = MemberState::Up;
        peer.since = now;
        peer.down_reason = None;
        let was_given_up = was == MemberState::Down;
        if was != MemberState::Suspect {
            (peer.outcomes, peer.rounds) = (Outcomes::default(), Outcomes::default());
            peer.offered.clear();
            self.emit(GossipEvent::MemberUp { host });
            self.hand_over_authority(host);
            if self.greetings.take(GREETING_RATE, 1, now) {
                self.greet(host);
            }
        }
        if was_given_up {
            self.seek_others(now);
        }
    }

    pub(super) fn handle_probe(&mut self, host: HostId, from: SocketAddr, nonce: u64, plain: PlainStatus) {
        self.note_plain(host, plain);
        let Some(ours) = self.peers.get(&host).map(|peer| peer.plain_ours) else { return };
        self.send_to(host, &Message::Ack { nonce, plain: ours, observed: Some(from) }, from);
    }

    pub(super) fn handle_ack(
        &mut self,
        host: HostId,
        from: SocketAddr,
        nonce: u64,
        plain: PlainStatus,
        observed: Option<SocketAddr>,
        now: Instant,
    ) {
        self.note_plain(host, plain);
        if self.check_answered(host, nonce, now) {
            return;
        }
        if let Some(relay) = self.relays.get(&nonce).filter(|relay| relay.target == host).copied() {
            self.relays.remove(&nonce);
            self.send(relay.requester, &Message::IndirectAck { nonce: relay.nonce, target: host });
            return;
        }
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let Some((probe, sent)) = peer.probe.and_then(|probe| Some((probe, probe.sent_with(nonce)?))) else { return };
        peer.probe = None;
        if probe.sent != sent {
            peer.outcomes.push(true);
        }
        peer.outcomes.push(false);
        peer.rounds.push(false);
        // Rounds that failed before a member answered after all were lost, not unanswered.
        (0..peer.verification.failed.min(MAX_LOSSES)).for_each(|_| self.loss.push(true));
        self.loss.push(false);
        peer.measure(now.saturating_duration_since(sent));
        let validated = (from == probe.to && peer.validated_source != Some(from)).then_some(from);
        if validated.is_some() {
            peer.validated_source = validated;
        }
        let heard = peer.plain_heard != probe.plain;
        peer.plain_heard = probe.plain;
        let outdated = probe.plain != peer.plain_ours;
        self.note_observed(host, observed, now);
        self.member_answers(host, now);
        if let Some(source) = validated {
            self.emit(GossipEvent::SourceValidated { host, source });
        }
        if heard {
            self.emit(GossipEvent::PlainStatusHeard { host });
        }
        if outdated {
            self.start_probe(host, now);
        }
    }

    /// Probes `target` for another member.
    pub(super) fn handle_indirect_probe(&mut self, requester: HostId, nonce: u64, target: HostId, now: Instant) {
        self.relays.retain(|_, relay| now.saturating_duration_since(relay.sent) < RELAY_LIFE);
        let known = self.peers.get(&target).is_some_and(|peer| peer.pair.is_some());
        if !known || target == requester || self.relays.len() >= MAX_RELAYS {
            return;
        }
        let own_nonce = self.rng.next_u64();
        self.relays.insert(own_nonce, Relay { requester, nonce, target, sent: now });
        let Some(plain) = self.peers.get(&target).map(|peer| peer.plain_ours) else { return };
        self.send(target, &Message::Probe { nonce: own_nonce, plain });
    }

    pub(super) fn handle_indirect_ack(&mut self, nonce: u64, target: HostId) {
        if let Some(probe) = self.peers.get_mut(&target).and_then(|peer| peer.probe.as_mut()) {
            probe.others_reach_it |= probe.nonce == nonce && probe.stage == ProbeStage::Indirect;
        }
    }

    /// Another member could not reach `suspect`: look for ourselves, now and then.
    pub(super) fn handle_suspect(&mut self, suspect: HostId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&suspect) else { return };
        let recent = peer.last_rumour.is_some_and(|last| now.saturating_duration_since(last) < RUMOUR_GAP);
        if recent || peer.state != MemberState::Up || peer.probe.is_some() {
            return;
        }
        peer.last_rumour = Some(now);
        self.start_probe(suspect, now);
    }

    /// After this process itself stood still, nobody else is to blame for missing answers.
    pub(super) fn forgive_all(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.probe = None;
            if peer.state.is_reachable() {
                peer.verification = Verification::default();
                if peer.state == MemberState::Suspect {
                    peer.state = MemberState::Up;
                    peer.since = now;
                }
            }
        }
    }

    fn note_plain(&mut self, host: HostId, plain: PlainStatus) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        if peer.plain_theirs != plain {
            peer.plain_theirs = plain;
            self.emit(GossipEvent::PlainStatusChanged { host, plain });
        }
    }

    /// Something authenticated came from a member.
    pub(super) fn heard_from(&mut self, host: HostId, from: SocketAddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        peer.last_heard = Some(now);
        if peer.endpoint.is_none() {
            self.move_endpoint(host, from);
        }
    }

    /// Sends to another address from now on.
    pub(super) fn move_endpoint(&mut self, host: HostId, endpoint: SocketAddr) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        if peer.endpoint != Some(endpoint) {
            peer.endpoint = Some(endpoint);
            self.endpoints.insert(endpoint);
            if peer.validated_source != Some(endpoint) {
                peer.validated_source = None;
            }
            self.emit(GossipEvent::EndpointChanged { host, endpoint });
        }
    }

    /// Up to `count` reachable members in random order, without `except`.
    pub(super) fn random_reachable(&mut self, count: usize, except: HostId) -> Vec<HostId> {
        let members = self.peers.len();
        let wanted = |peer: &&Peer| peer.state == MemberState::Up && peer.host != except;
        if members > 8 * count {
            // Drawing until enough are found reaches few members where most are up.
            let mut found = Vec::with_capacity(count);
            for _ in 0..4 * count {
                let place = self.rng.next_u64() as usize % members;
                if let Some(peer) = self.peers.at(place).filter(wanted)
                    && !found.contains(&peer.host)
                {
                    found.push(peer.host);
                    if found.len() == count {
                        return found;
                    }
                }
            }
        }
        let mut hosts: Vec<HostId> = self.peers.values().filter(wanted).map(|peer| peer.host).collect();
        let count = count.min(hosts.len());
        for at in 0..count {
            let other = at + self.rng.next_u64() as usize % (hosts.len() - at);
            hosts.swap(at, other);
        }
        hosts.truncate(count);
        hosts
    }
}

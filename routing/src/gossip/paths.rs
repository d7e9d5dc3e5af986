//! Several addresses per member: leaving one that does not carry packets, returning to the preferred one, following a
//! member to addresses it publishes anew, and keeping the mappings of a NAT open.
//!
//! A path probe tests one address in both directions and moves nothing, so a healthy path stays in use while another is
//! looked at. What moves a path otherwise is the newest authenticated datagram, and first contact, which goes to all
//! addresses at once. Only one of two members returns to a preferred address, the one with the lower host id, and the
//! other follows: two that prefer different families would otherwise move each other for ever.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::body::FEATURE_PATHS;
use overlay_wire::gossip::{HostBody, Message, Record, RecordKey, RecordKind};
use rand_core::RngCore as _;

use super::Gossip;
use super::peer::{MAX_CANDIDATES, Peer};
use super::view::{GossipEvent, MemberState};

/// How long the answer to a path probe may take.
const TRIAL_LIFE: Duration = Duration::from_secs(3);
/// Answers in a row from the preferred address before it is returned to.
const RETURN_AFTER: u32 = 3;
/// The first and the longest pause between two looks at the preferred address of one member.
const RETURN_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// How long an address is not returned to after packets died on the way to it.
const SHUN: Duration = Duration::from_secs(300);
/// The first and the longest pause between two attempts to leave a path on which packets die.
const DETOUR_PAUSE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(64));
/// How long packets must have died before the path is left; a handshake may be under way.
const DETOUR_AFTER: Duration = Duration::from_secs(2);
/// How much longer the member with the higher host id waits before it leaves such a path.
const DETOUR_COURTESY: Duration = Duration::from_secs(5);
/// How long the member with the lower host id stays at an address after it moved there. Without it two members that move
/// at once may follow each other past each other for ever.
const HOLD: Duration = Duration::from_millis(1500);
/// A member behind a NAT sends to each member at least this often. Mappings live for 30 s and more (RFC 4787, section 4.3,
/// asks for two minutes; the shortest in use are of half a minute).
const KEEPALIVE: Duration = Duration::from_secs(25);
/// Members kept open in one tick.
const KEEPALIVES_PER_TICK: usize = 64;

/// Whether packets reach a member and come back, as the data path found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// They do.
    Works,
    /// Three in a row were lost.
    Fails,
}

/// What is known of a member's other addresses.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Path probes whose answers are awaited, at most one per address.
    trials: Vec<Trial>,
    /// An address on which packets died, and until when it is not returned to.
    shunned: Option<(SocketAddr, Instant)>,
    /// When the preferred address is looked at next, and the pause after that.
    next_return: Option<Instant>,
    return_pause: Duration,
    /// Answers from the preferred address in a row.
    answers: u32,
    /// When the path in use is left next, while packets die on it, and the pause after that.
    next_detour: Option<Instant>,
    detour_pause: Duration,
    /// When the address in use last changed.
    moved: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Trial {
    nonce: u64,
    to: SocketAddr,
    sent: Instant,
    purpose: Purpose,
}

/// What an answer to a path probe leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The address is used from now on.
    Detour,
    /// It is one of several answers before the address is used.
    Return,
}

impl Peer {
    /// The address that is used as long as it answers: the first that is written down or published.
    fn preferred(&self) -> Option<SocketAddr> {
        self.member.endpoints.first().or_else(|| self.published.first()).copied()
    }
}

impl Gossip {
    /// Says what the data path to a member found; to be called about once a second. While gossip gets through and packets
    /// do not, the member's other addresses are tried, and the first that answers is used.
    pub fn note_data_path(&mut self, member: HostId, found: DataPath, now: Instant) {
        let courtesy = if self.host < member { Duration::ZERO } else { DETOUR_COURTESY };
        let Some(peer) = self.peers.get_mut(&member) else { return };
        let paths = &mut peer.paths;
        if found == DataPath::Works || peer.state != MemberState::Up {
            paths.next_detour = None;
            return;
        }
        let due = *paths.next_detour.get_or_insert_with(|| {
            paths.detour_pause = DETOUR_PAUSE.0;
            now + DETOUR_AFTER + courtesy
        });
        let (Some(current), true) = (peer.endpoint, due <= now) else { return };
        paths.next_detour = Some(now + paths.detour_pause);
        paths.detour_pause = (paths.detour_pause * 2).min(DETOUR_PAUSE.1);
        paths.shunned = Some((current, now + SHUN));
        let others: Vec<SocketAddr> = peer.candidates().into_iter().filter(|other| *other != current).collect();
        others.into_iter().for_each(|other| self.try_path(member, other, Purpose::Detour, now));
    }

    fn answers_path_probes(&self, host: HostId) -> bool {
        let key = RecordKey { owner: host, kind: RecordKind::HOST, shard: 0 };
        let body = self.store.get(&key).and_then(|record| HostBody::decode(&record.body).ok());
        body.is_some_and(|body| body.features & FEATURE_PATHS != 0)
    }

    fn try_path(&mut self, host: HostId, to: SocketAddr, purpose: Purpose, now: Instant) {
        if !self.answers_path_probes(host) {
            return;
        }
        let nonce = self.rng.next_u64();
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let trials = &mut peer.paths.trials;
        trials.retain(|trial| trial.to != to && now.saturating_duration_since(trial.sent) < TRIAL_LIFE);
        if trials.len() >= MAX_CANDIDATES {
            trials.remove(0);
        }
        trials.push(Trial { nonce, to, sent: now, purpose });
        self.send_to(host, &Message::PathProbe { nonce }, to);
    }

    /// Answers to where the path probe came from, and goes on sending to where it sent before.
    pub(super) fn handle_path_probe(&mut self, host: HostId, from: SocketAddr, nonce: u64) {
        self.send_to(host, &Message::PathAck { nonce, observed: Some(from) }, from);
    }

    pub(super) fn handle_path_ack(
        &mut self,
        host: HostId,
        from: SocketAddr,
        nonce: u64,
        observed: Option<SocketAddr>,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let trials = &mut peer.paths.trials;
        let Some(at) = trials.iter().position(|trial| trial.nonce == nonce && trial.to == from) else { return };
        let trial = trials.remove(at);
        if now.saturating_duration_since(trial.sent) >= TRIAL_LIFE {
            return;
        }
        let proven = match trial.purpose {
            Purpose::Detour => true,
            Purpose::Return => {
                peer.paths.answers += 1;
                peer.paths.answers >= RETURN_AFTER && peer.preferred() == Some(from)
            }
        };
        if proven {
            peer.paths.trials.clear();
            self.use_path(host, from, now);
        }
        self.note_observed(host, observed, now);
    }

    /// Sends to where the newest authenticated datagram came from.
    pub(super) fn follow(&mut self, host: HostId, from: SocketAddr, now: Instant) {
        let leads = self.host < host;
        let Some(peer) = self.peers.get_mut(&host) else { return };
        if peer.endpoint == Some(from) {
            return;
        }
        let is_recent = peer.paths.moved.is_some_and(|at| now.saturating_duration_since(at) < HOLD);
        // Only at an address that the member gave or that was written down: whoever copies a datagram and is faster than
        // the original must not be held on to.
        let is_known = |at: &SocketAddr| peer.member.endpoints.contains(at) || peer.published.contains(at);
        if leads && is_recent && peer.endpoint.as_ref().is_some_and(is_known) {
            return;
        }
        peer.paths.moved = Some(now);
        self.move_endpoint(host, from);
    }

    /// Sends to an address from now on that has answered, and has the member follow.
    fn use_path(&mut self, host: HostId, to: SocketAddr, now: Instant) {
        self.move_endpoint(host, to);
        let Some(peer) = self.peers.get_mut(&host) else { return };
        peer.paths.answers = 0;
        peer.paths.moved = Some(now);
        peer.probe = None;
        if peer.validated_source != Some(to) {
            peer.validated_source = Some(to);
            self.emit(GossipEvent::SourceValidated { host, source: to });
        }
        // A probe is newer than all before it, so the member moves too.
        self.start_probe(host, now);
    }

    /// Looks at the preferred address of one member that is reached at another.
    pub(super) fn return_tick(&mut self, now: Instant) {
        let is_due = |peer: &&Peer| {
            let paths = &peer.paths;
            let home = peer.preferred().filter(|home| peer.endpoint.is_some_and(|current| current != *home));
            let shunned = |home| paths.shunned.is_some_and(|(to, until)| to == home && now < until);
            peer.state == MemberState::Up
                && peer.pair.is_some()
                && home.is_some_and(|home| !shunned(home))
                && paths.next_return.is_none_or(|at| at <= now)
        };
        // Members with a higher id only: the others return to us.
        let due = self.peers.above(self.host).filter(is_due);
        let Some((host, Some(home))) =
            due.min_by_key(|peer| peer.paths.next_return).map(|peer| (peer.host, peer.preferred()))
        else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&host) {
            let paths = &mut peer.paths;
            if paths.trials.iter().any(|trial| trial.purpose == Purpose::Return) || paths.return_pause.is_zero() {
                // The last one was not answered, or this is the first.
                paths.answers = 0;
                paths.return_pause = (paths.return_pause * 2).clamp(RETURN_PAUSE.0, RETURN_PAUSE.1);
            } else {
                paths.return_pause = RETURN_PAUSE.0;
            }
            paths.next_return = Some(now + paths.return_pause);
            paths.trials.retain(|trial| trial.purpose != Purpose::Return);
        }
        self.try_path(host, home, Purpose::Return, now);
    }

    /// Behind a NAT, sends to members that nothing was sent to for long.
    pub(super) fn keepalive_tick(&mut self, now: Instant) {
        if !self.reflexive.is_behind_nat() {
            return;
        }
        let idle = |peer: &&Peer| {
            peer.state == MemberState::Up
                && peer.probe.is_none()
                && peer.verification.next.is_none()
                && now.saturating_duration_since(peer.round_began) >= KEEPALIVE
        };
        let hosts: Vec<HostId> =
            self.peers.values().filter(idle).map(|peer| peer.host).take(KEEPALIVES_PER_TICK).collect();
        hosts.into_iter().for_each(|host| self.start_probe(host, now));
    }

    /// A member that is not reachable published addresses that are new to us: both ends try each other at once, which is
    /// what opens a way through two NATs.
    pub(super) fn seek_moved(&mut self, record: &Record, now: Instant) {
        let endpoints = HostBody::decode(&record.body).map(|body| body.endpoints).unwrap_or_default();
        let Some(peer) = self.peers.get_mut(&record.key.owner) else { return };
        let candidates = peer.candidates();
        if !peer.state.is_reachable() && endpoints.iter().any(|endpoint| !candidates.contains(endpoint)) {
            peer.seek(now);
        }
    }
}

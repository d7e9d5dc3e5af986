//! What this host knows about one member beside its records: channel, addresses, probes, verdicts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_wire::gossip::{PlainStatus, RecordKey, RouteVerdict};
use overlay_wire::{HostId, Prefix};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;
use x25519_dalek::StaticSecret;

use super::config::StaticMember;
use super::crypto::IntroduceKeys;
use super::limiter::{Bucket, Rate};
use super::membership::{Authority, Standing};
use super::pair::Pair;
use super::paths::Paths;
use super::view::{DownReason, MemberState};

/// Datagram bytes accepted from one member.
pub(super) const MEMBER_RATE: Rate = Rate { per_second: 64 * 1024, burst: 256 * 1024 };
/// The first retry of a first contact.
const CONTACT_FIRST: Duration = Duration::from_millis(100);
/// The longest pause between first contacts.
const CONTACT_LONGEST: Duration = Duration::from_secs(5);
/// First contacts whose answers are still awaited, per member.
pub(super) const MAX_PENDING_CONTACTS: usize = 4;
/// Outcomes remembered.
const OUTCOMES: u32 = 64;
/// Outcomes of one member that say something about loss; a member of a large cluster is probed once in minutes.
const ENOUGH_OUTCOMES: u32 = 24;
/// How long the previous GRE key stays valid.
pub(super) const GRE_KEY_OVERLAP: Duration = Duration::from_secs(5);
/// Addresses tried for one member.
pub(super) const MAX_CANDIDATES: usize = 12;

/// One member.
pub(super) struct Peer {
    pub(super) member: StaticMember,
    pub(super) authority: Authority,
    pub(super) standing: Standing,
    /// What it may go on to announce out of pools while its certificate is out of its time.
    pub(super) frozen: BTreeSet<Prefix>,
    /// When it last asked for a certificate.
    pub(super) last_certificate_request: Option<Instant>,
    pub(super) host: HostId,
    pub(super) state: MemberState,
    pub(super) since: Instant,
    pub(super) down_reason: Option<DownReason>,
    pub(super) pair: Option<Pair>,
    pub(super) previous_gre_key: Option<(u32, Instant)>,
    /// The source of the newest authenticated datagram.
    pub(super) endpoint: Option<SocketAddr>,
    /// Endpoints of its HOST record.
    pub(super) published: Vec<SocketAddr>,
    pub(super) validated_source: Option<SocketAddr>,
    pub(super) observed: Option<SocketAddr>,
    pub(super) last_heard: Option<Instant>,
    pub(super) rtt: Option<Duration>,
    /// Single probes, for display.
    pub(super) outcomes: Outcomes,
    /// Rounds: lost when neither the probe nor its repetition was answered.
    pub(super) rounds: Outcomes,
    pub(super) contact: Contact,
    pub(super) probe: Option<Probe>,
    /// When the last round began.
    pub(super) round_began: Instant,
    pub(super) verification: Verification,
    pub(super) paths: Paths,
    pub(super) plain_ours: PlainStatus,
    /// What it heard from us last: the status in the newest probe that it answered.
    pub(super) plain_heard: PlainStatus,
    pub(super) plain_theirs: PlainStatus,
    pub(super) bucket: Bucket,
    /// When it was last probed out of turn, because something unexpected came from it.
    pub(super) last_prompt_probe: Option<Instant>,
    /// When another host's word last made us probe it.
    pub(super) last_rumour: Option<Instant>,
    /// When an older run with its identity was last reported.
    pub(super) last_older_run: Option<Instant>,
    /// Records sent on request of a digest, so that one it does not want is not sent every second.
    pub(super) offered: BTreeMap<RecordKey, Offer>,
    pub(super) verdicts: Verdicts,
    pub(super) identities: IdentityExchange,
    /// What the index of timers holds for it.
    pub(super) timer: Option<Instant>,
}

/// First contact with a member.
pub(super) struct Contact {
    /// When to send the next; `None` while the member answers.
    pub(super) next: Option<Instant>,
    pub(super) pause: Duration,
    /// Counts the attempts.
    pub(super) turn: u32,
    pub(super) pending: VecDeque<PendingContact>,
    /// When it was last tried early because another member came back.
    pub(super) sought: Option<Instant>,
    /// The newest (boot epoch, counter) taken from it.
    pub(super) newest_seen: Option<(u64, u64)>,
}

/// An INTRODUCE whose answer is awaited.
pub(super) struct PendingContact {
    pub(super) tag: [u8; 8],
    pub(super) nonce: u64,
    pub(super) secret: StaticSecret,
    pub(super) ephemeral: [u8; 32],
    pub(super) keys: IntroduceKeys,
    pub(super) sent: Instant,
}

/// A probe round in progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    pub(super) nonce: u64,
    pub(super) to: SocketAddr,
    pub(super) sent: Instant,
    pub(super) deadline: Instant,
    pub(super) stage: ProbeStage,
    /// The nonce of its repetition, and when that was sent.
    pub(super) repeated: Option<(u64, Instant)>,
    pub(super) others_reach_it: bool,
    /// The plain status it carries.
    pub(super) plain: PlainStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeStage {
    /// Sent once; repeated at the deadline.
    First,
    /// Sent, repeated where that makes sense; others are asked at the deadline.
    Direct,
    /// Others were asked; the round has failed at the deadline.
    Indirect,
}

impl Probe {
    /// When the probe that this nonce belongs to was sent.
    pub(super) fn sent_with(&self, nonce: u64) -> Option<Instant> {
        let repeated = self.repeated.filter(|(again, _)| *again == nonce).map(|(_, sent)| sent);
        if nonce == self.nonce { Some(self.sent) } else { repeated }
    }
}

/// The own rounds that precede a verdict.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Verification {
    pub(super) failed: u32,
    /// Failed rounds in which another member reached it.
    pub(super) reached_by_others: u32,
    pub(super) started: Option<Instant>,
    pub(super) next: Option<Instant>,
    /// Lost rounds in percent before these began.
    pub(super) loss_before: u8,
}

/// The last 64 probes or rounds: a set bit is a lost one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outcomes {
    lost: u64,
    count: u32,
}

/// A record that was offered to a member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) version: u64,
    pub(super) next: Instant,
    pub(super) pause: Duration,
}

/// What the member made of this host's prefixes.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdicts {
    pub(super) version: u64,
    pub(super) entries: Vec<(Prefix, RouteVerdict)>,
    pub(super) next_request: Option<Instant>,
    pub(super) pause: Duration,
}

/// What was told and asked about labels of containers.
#[derive(Debug, Clone, Default)]
pub(super) struct IdentityExchange {
    /// The versions of this host's IDENTITIES records sent to the member, by shard.
    pub(super) told: BTreeMap<u16, u64>,
    /// When the member was last asked for its own.
    pub(super) asked: Option<Instant>,
}

impl Peer {
    pub(super) fn new(member: StaticMember, authority: Authority, now: Instant, first_contact: Instant) -> Self {
        Self {
            authority,
            standing: Standing::Full,
            frozen: BTreeSet::new(),
            last_certificate_request: None,
            host: member.host_id(),
            member,
            state: MemberState::New,
            since: now,
            down_reason: None,
            pair: None,
            previous_gre_key: None,
            endpoint: None,
            published: Vec::new(),
            validated_source: None,
            observed: None,
            last_heard: None,
            rtt: None,
            outcomes: Outcomes::default(),
            rounds: Outcomes::default(),
            contact: Contact {
                next: Some(first_contact),
                pause: CONTACT_FIRST,
                turn: 0,
                pending: VecDeque::new(),
                sought: None,
                newest_seen: None,
            },
            probe: None,
            round_began: now,
            verification: Verification::default(),
            paths: Paths::default(),
            plain_ours: PlainStatus::default(),
            plain_heard: PlainStatus::default(),
            plain_theirs: PlainStatus::default(),
            bucket: Bucket::full(MEMBER_RATE, now),
            last_prompt_probe: None,
            last_rumour: None,
            last_older_run: None,
            offered: BTreeMap::new(),
            verdicts: Verdicts::default(),
            identities: IdentityExchange::default(),
            timer: None,
        }
    }

    /// When it next has something due: first contact, the deadline of a probe, the next round.
    pub(super) fn due(&self) -> Option<Instant> {
        let round = if self.probe.is_some() { None } else { self.verification.next };
        [self.contact.next, self.probe.map(|probe| probe.deadline), round].into_iter().flatten().min()
    }

    /// The addresses to try, the learned one first.
    pub(super) fn candidates(&self) -> Vec<SocketAddr> {
        let mut all: Vec<SocketAddr> = Vec::new();
        for address in self.endpoint.iter().chain(&self.member.endpoints).chain(&self.published) {
            if !all.contains(address) && all.len() < MAX_CANDIDATES {
                all.push(*address);
            }
        }
        all
    }

    /// Where datagrams go.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.endpoint.or_else(|| self.candidates().first().copied())
    }

    /// Where the next probe goes: the usual address, after a few failed rounds of verification the others in turn, and so
    /// when the member is not reachable.
    pub(super) fn probe_address(&self) -> Option<SocketAddr> {
        let candidates = self.candidates();
        let reachable = self.state.is_reachable();
        let turn = if reachable { self.verification.failed.saturating_sub(2) } else { self.contact.turn } as usize;
        if candidates.is_empty() { None } else { Some(candidates[turn % candidates.len()]) }
    }

    /// Every address under which it is known.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.endpoint.iter().chain(&self.member.endpoints).chain(&self.published).copied()
    }

    /// The place among the awaited first contacts of the one with this tag.
    pub(super) fn awaits_contact(&self, tag: &[u8; 8]) -> Option<usize> {
        self.contact.pending.iter().position(|pending| pending.tag == *tag)
    }

    /// How long to wait for a probe's answer: three round trips, 100 ms to 1 s.
    pub(super) fn probe_timeout(&self) -> Duration {
        self.rtt.map_or(Duration::from_millis(500), |rtt| {
            (rtt * 3).clamp(Duration::from_millis(100), Duration::from_secs(1))
        })
    }

    /// After how long a probe without an answer is repeated: half its time, but one and a half round trips at least; never
    /// where that is no less than its time.
    pub(super) fn probe_repetition(&self) -> Option<Duration> {
        let timeout = self.probe_timeout();
        let pause = (timeout / 2).max(self.rtt.unwrap_or_default() * 3 / 2);
        (pause < timeout).then_some(pause)
    }

    /// Takes a measured round trip into the smoothed one (RFC 6298: one eighth).
    pub(super) fn measure(&mut self, rtt: Duration) {
        self.rtt = Some(self.rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
    }

    /// Starts trying first contact from the beginning.
    pub(super) fn seek(&mut self, at: Instant) {
        self.contact.pause = CONTACT_FIRST;
        self.contact.turn = 0;
        self.contact.next = Some(at);
    }

    /// The pause before the next first contact: doubled each time, with up to a quarter of jitter.
    pub(super) fn next_contact_pause(&mut self, rng: &mut ChaCha20Rng) -> Duration {
        let pause = self.contact.pause;
        self.contact.pause = (pause * 2).min(CONTACT_LONGEST);
        let jitter = pause / 4 * (rng.next_u32() % 1000) / 1000;
        pause + jitter
    }

    pub(super) fn remember_contact(&mut self, pending: PendingContact) {
        if self.contact.pending.len() >= MAX_PENDING_CONTACTS {
            self.contact.pending.pop_front();
        }
        self.contact.pending.push_back(pending);
    }

    pub(super) fn gre_keys(&self, now: Instant) -> Option<(u32, Option<u32>)> {
        let previous = self.previous_gre_key.filter(|(_, until)| now < *until).map(|(key, _)| key);
        self.pair.as_ref().map(|pair| (pair.gre_key(), previous))
    }
}

impl Verification {
    /// Failed rounds in a row that make a verdict.
    ///
    /// By the share of lost rounds measured before, so that a false verdict stays rarer than once in 10^9 rounds
    /// with helpers, and in 10^7 without (section "Detection" of docs/gossip.md).
    pub(super) fn rounds_needed(&self, has_helpers: bool) -> u32 {
        match (self.loss_before, has_helpers) {
            (0..=10, true) => 6,
            (11..=30, true) => 10,
            (31..=45, true) => 14,
            (_, true) => 20,
            (0..=2, false) => 6,
            (3..=10, false) => 9,
            (11..=20, false) => 13,
            (21..=35, false) => 20,
            (_, false) => 30,
        }
    }
}

impl Outcomes {
    pub(super) fn push(&mut self, lost: bool) {
        self.lost = self.lost << 1 | u64::from(lost);
        self.count = (self.count + 1).min(OUTCOMES);
    }

    /// Whether there are enough to speak of loss.
    pub(super) fn tell_loss(&self) -> bool {
        self.count >= ENOUGH_OUTCOMES
    }

    /// Lost ones in percent of those remembered.
    pub(super) fn loss_percent(&self) -> u8 {
        let known = if self.count == 0 { 0 } else { u64::MAX >> (OUTCOMES - self.count) };
        let lost = (self.lost & known).count_ones();
        (lost * 100).checked_div(self.count).unwrap_or(0) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_counts_the_last_64_probes() {
        let mut outcomes = Outcomes::default();
        assert_eq!(outcomes.loss_percent(), 0);
        outcomes.push(true);
        assert_eq!(outcomes.loss_percent(), 100);
        (0..3).for_each(|_| outcomes.push(false));
        assert_eq!(outcomes.loss_percent(), 25);
        (0..64).for_each(|_| outcomes.push(false));
        assert_eq!(outcomes.loss_percent(), 0);
    }

    #[test]
    fn more_loss_needs_more_rounds() {
        let rounds = |loss_before, helpers| Verification { loss_before, ..Default::default() }.rounds_needed(helpers);
        assert_eq!([rounds(0, true), rounds(19, true), rounds(36, true), rounds(51, true)], [6, 10, 14, 20]);
        assert_eq!([rounds(0, false), rounds(19, false), rounds(51, false)], [6, 13, 30]);
    }
}

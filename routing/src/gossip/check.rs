//! Questions asked on demand: whether a member answers right now, what its clock says, what becomes of a packet there.
//!
//! They stand beside the probe rounds and change nothing of their timing. An answer proves a path as any answer does; a
//! question without an answer is forgotten and counts for nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::body::{FEATURE_CLOCK, FEATURE_TRACE};
use overlay_wire::gossip::{Message, TraceAnswer, TracedPacket};
use rand_core::RngCore as _;

use super::Gossip;
use super::view::GossipEvent;

/// Questions whose answers are awaited; the oldest is forgotten first.
const MAX_QUESTIONS: usize = 256;
/// How long an answer may take.
const QUESTION_LIFE: Duration = Duration::from_secs(5);

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Reach,
    Clock,
    Trace,
}

/// A question whose answer is awaited.
#[derive(Debug, Clone, Copy)]
struct Question {
    host: HostId,
    subject: Subject,
    sent: Instant,
}

/// The questions under way, by nonce.
#[derive(Debug, Default)]
pub(super) struct Questions(BTreeMap<u64, Question>);

impl Questions {
    fn ask(&mut self, nonce: u64, question: Question) {
        self.0.retain(|_, asked| question.sent.saturating_duration_since(asked.sent) < QUESTION_LIFE);
        if self.0.len() >= MAX_QUESTIONS
            && let Some(oldest) = self.0.iter().min_by_key(|(_, asked)| asked.sent).map(|(nonce, _)| *nonce)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(nonce, question);
    }

    /// Takes the question that an answer belongs to; how long it was under way.
    fn answered(&mut self, nonce: u64, host: HostId, subject: Subject, now: Instant) -> Option<Duration> {
        let asked = self.0.get(&nonce).filter(|asked| asked.host == host && asked.subject == subject)?;
        let took = now.saturating_duration_since(asked.sent);
        self.0.remove(&nonce);
        (took < QUESTION_LIFE).then_some(took)
    }

    /// Forgets the questions to a host that is a member no more.
    pub(super) fn forget(&mut self, host: HostId) {
        self.0.retain(|_, asked| asked.host != host);
    }
}

impl Gossip {
    /// Asks a member for an answer right now: by a probe where the two share keys, and by first contact where it is not
    /// reachable. [`GossipEvent::CheckAnswered`] or [`GossipEvent::MemberUp`] follows when it answers.
    pub fn check(&mut self, member: HostId, now: Instant) {
        let nonce = self.rng.next_u64();
        let Some(peer) = self.peers.get_mut(&member) else { return };
        if !peer.state.is_reachable() {
            peer.seek(now);
        }
        if peer.pair.is_some() {
            let message = Message::Probe { nonce, plain: peer.plain_ours };
            self.questions.ask(nonce, Question { host: member, subject: Subject::Reach, sent: now });
            self.send(member, &message);
        }
    }

    /// Asks a member what its clock says; false when it is not known to answer that. [`GossipEvent::ClockTold`] follows.
    pub fn ask_clock(&mut self, member: HostId, now: Instant) -> bool {
        let answers = self.answers(member, FEATURE_CLOCK);
        if answers {
            let nonce = self.rng.next_u64();
            self.questions.ask(nonce, Question { host: member, subject: Subject::Clock, sent: now });
            self.send(member, &Message::ClockRequest { nonce });
        }
        answers
    }

    /// Whether a member is reachable and its release answers questions of this kind.
    fn answers(&self, member: HostId, feature: u64) -> bool {
        self.member(member).is_some_and(|view| {
            view.state.is_reachable() && view.host_record.is_some_and(|body| body.features & feature != 0)
        })
    }

    /// Asks a member what it would do with a packet; `None` when it is not known to answer that. [`GossipEvent::TraceTold`]
    /// with the same nonce follows.
    pub fn ask_trace(&mut self, member: HostId, packet: TracedPacket, now: Instant) -> Option<u64> {
        if !self.answers(member, FEATURE_TRACE) {
            return None;
        }
        let nonce = self.rng.next_u64();
        self.questions.ask(nonce, Question { host: member, subject: Subject::Trace, sent: now });
        self.send(member, &Message::TraceRequest { nonce, packet });
        Some(nonce)
    }

    /// Answers [`GossipEvent::TraceAsked`].
    pub fn tell_trace(&mut self, member: HostId, nonce: u64, answer: TraceAnswer) {
        self.send(member, &Message::Trace { nonce, answer });
    }

    pub(super) fn handle_trace(&mut self, host: HostId, nonce: u64, answer: TraceAnswer, now: Instant) {
        if self.questions.answered(nonce, host, Subject::Trace, now).is_some() {
            self.emit(GossipEvent::TraceTold { nonce, answer });
        }
    }

    /// Answers [`GossipEvent::ClockAsked`] with this host's wall clock, in milliseconds since 1970.
    pub fn tell_clock(&mut self, member: HostId, nonce: u64, unix_ms: u64) {
        self.send(member, &Message::Clock { nonce, unix_ms });
    }

    /// Takes the answer to a probe if it was asked on demand.
    pub(super) fn check_answered(&mut self, host: HostId, nonce: u64, now: Instant) -> bool {
        let Some(round_trip) = self.questions.answered(nonce, host, Subject::Reach, now) else { return false };
        self.member_answers(host, now);
        self.emit(GossipEvent::CheckAnswered { host, round_trip });
        true
    }

    pub(super) fn handle_clock(&mut self, host: HostId, nonce: u64, unix_ms: u64, now: Instant) {
        if let Some(round_trip) = self.questions.answered(nonce, host, Subject::Clock, now) {
            self.emit(GossipEvent::ClockTold { host, unix_ms, round_trip });
        }
    }
}

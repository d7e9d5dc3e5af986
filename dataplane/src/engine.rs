//! The packet path of one worker: every packet enters here and leaves with a verdict.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_wire::packet::{Headers, ParseError, Transport};
use overlay_wire::{Mtu, PeerIndex, mss};

use crate::conntrack::{Admission, Conntrack, FlowCache, FlowSelector, FlowSnapshot, Packet};
use crate::early;
use crate::fragment::{Fragments, Later};
use crate::limiter::ReplyLimiter;
use crate::note::{Notes, Recorder, Rehearsal, Silent, SizeNote, Stage};
use crate::path::{Exit, Path, PathCache};
use crate::policy::{RuleEvent, RuleLog};
use crate::rate::Load;
use crate::reason::{Counters, DropReason};
use crate::reply::{self, Answer};
use crate::tables::Tables;
use crate::verdict::{Origin, Released, Reply, Verdict};

/// The shortest time between two sweeps.
const EXPIRE_PAUSE: Duration = Duration::from_millis(20);

/// Bounds of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Flows tracked at once. 256 bytes of memory each, touched only as flows come.
    pub conntrack_entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { conntrack_entries: 262_144 }
    }
}

/// The packet path of one worker: a handle to the shared flow table, with the worker's own fragments and counters.
///
/// The TCP checksum of a SYN must be complete when it is handed in, because its MSS option may be lowered in place.
#[derive(Debug)]
pub struct Engine {
    conntrack: Arc<Conntrack>,
    cache: FlowCache,
    paths: PathCache,
    log: RuleLog,
    fragments: Fragments,
    limiter: ReplyLimiter,
    counters: Counters,
    start: Instant,
    expired: Instant,
    delay: Duration,
}

/// How the checks end, before the verdict is written.
enum Fate {
    Go(Path),
    Held,
    Wait(IpAddr),
    Drop(DropReason),
    Answer(DropReason, Answer),
}

/// A packet to be decided, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Where it comes from.
    pub origin: Origin,
    /// Its headers.
    pub headers: &'a Headers,
    /// The largest IP packet after segmentation; from a peer 0.
    pub segment_len: usize,
    /// How many packets there will be.
    pub segments: u32,
}

/// One packet with its circumstances.
struct Input<'a> {
    tables: &'a Tables,
    origin: Origin,
    headers: &'a Headers,
    segment_len: usize,
    segments: u32,
    now: Instant,
}

impl Engine {
    /// Makes the first worker's engine and the flow table. `seed` keys the table's hashes; mid-stream TCP segments may
    /// create flows for 60 s after `start`.
    #[must_use]
    pub fn new(limits: Limits, seed: [u8; 16], start: Instant) -> Self {
        Self::for_worker(&Arc::new(Conntrack::new(limits.conntrack_entries, seed, start)), start)
    }

    /// Makes another worker's engine over the same flow table.
    #[must_use]
    pub fn for_worker(conntrack: &Arc<Conntrack>, start: Instant) -> Self {
        Self {
            conntrack: Arc::clone(conntrack),
            cache: FlowCache::new(),
            paths: PathCache::new(),
            log: RuleLog::new(),
            fragments: Fragments::default(),
            limiter: ReplyLimiter::new(),
            counters: Counters::default(),
            start,
            expired: start,
            delay: Duration::ZERO,
        }
    }

    /// The flow table, shared by all workers; flows can be listed and removed through it from any thread.
    #[must_use]
    pub fn conntrack(&self) -> &Arc<Conntrack> {
        &self.conntrack
    }

    /// Decides a packet read from the TUN. `segment_len` is the largest IP packet after segmentation and `segments` how
    /// many there will be (the packet's length and 1 unless it is a super-packet).
    #[expect(clippy::too_many_arguments, reason = "one call per packet; a struct would be built for each")]
    pub fn outbound(
        &mut self,
        tables: &Tables,
        headers: &Headers,
        packet: &mut [u8],
        segment_len: usize,
        segments: u32,
        now: Instant,
        reply: &mut Reply,
    ) -> Verdict {
        let input = Input { tables, origin: Origin::Tun, headers, segment_len, segments, now };
        self.run(&mut Silent, &input, packet, reply)
    }

    /// Decides a packet decapsulated from the peer that was authenticated, or whose outer source was checked.
    #[expect(clippy::too_many_arguments, reason = "one call per packet; a struct would be built for each")]
    pub fn inbound(
        &mut self,
        tables: &Tables,
        from: PeerIndex,
        headers: &Headers,
        packet: &mut [u8],
        segments: u32,
        now: Instant,
        reply: &mut Reply,
    ) -> Verdict {
        let input = Input { tables, origin: Origin::Peer(from), headers, segment_len: 0, segments, now };
        self.run(&mut Silent, &input, packet, reply)
    }

    /// As [`Engine::outbound`] or [`Engine::inbound`], by where the packet came from, and tells how it was decided.
    pub fn explained(
        &mut self,
        tables: &Tables,
        question: &Question<'_>,
        packet: &mut [u8],
        now: Instant,
        reply: &mut Reply,
    ) -> (Verdict, Notes) {
        let Question { origin, headers, segment_len, segments } = *question;
        let input = Input { tables, origin, headers, segment_len, segments, now };
        let mut notes = Notes::default();
        let verdict = self.run(&mut notes, &input, packet, reply);
        (verdict, notes)
    }

    /// How long the packet decided last is to wait before it goes where its verdict says: a limit on its rate.
    #[inline]
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Counts packets that there was no room to keep for their delay.
    pub fn count_no_room(&mut self, segments: u32) {
        self.counters.count_drop(DropReason::RateLimit, segments);
    }

    /// Counts a packet that could not be parsed.
    pub fn malformed(&mut self, _error: &ParseError) -> Verdict {
        self.counters.count_drop(DropReason::Malformed, 1);
        Verdict::Drop(DropReason::Malformed)
    }

    #[inline]
    fn run<R: Recorder>(
        &mut self,
        recorder: &mut R,
        input: &Input<'_>,
        packet: &mut [u8],
        reply: &mut Reply,
    ) -> Verdict {
        let headers = input.headers;
        self.delay = Duration::ZERO;
        match self.decide(recorder, input, packet) {
            Fate::Go(path) => {
                recorder.note(|notes| {
                    notes.way(&path);
                    notes.reached = Stage::Size;
                    notes.size = size_note(input, &path);
                });
                clamp(input, &path, packet);
                let mtu = match fit(input.tables, &path, headers, input.segment_len) {
                    Fit::Whole => None,
                    Fit::Fragmented(mtu) => Some(mtu),
                    Fit::TooBig(mtu) => {
                        return self.answer(input, packet, DropReason::TooBig, Answer::TooBig(mtu), reply);
                    }
                };
                if !input.tables.rates.is_empty() {
                    match limit(recorder, input, &path) {
                        Ok(delay) => self.delay = delay,
                        Err(reason) => {
                            self.counters.count_drop(reason, input.segments);
                            return Verdict::Drop(reason);
                        }
                    }
                }
                self.accept(input, &path, mtu)
            }
            Fate::Held => Verdict::Held,
            Fate::Wait(address) => Verdict::Wait(address),
            Fate::Drop(reason) => {
                self.counters.count_drop(reason, input.segments);
                Verdict::Drop(reason)
            }
            Fate::Answer(reason, answer) => self.answer(input, packet, reason, answer, reply),
        }
    }

    /// Every check up to the MTU.
    #[inline]
    fn decide<R: Recorder>(&mut self, recorder: &mut R, input: &Input<'_>, packet: &[u8]) -> Fate {
        let Input { tables, origin, headers, segments, now, .. } = *input;
        if let Err(reason) = early::check(headers) {
            return Fate::Drop(reason);
        }
        recorder.note(|notes| {
            notes.reached = Stage::Path;
            notes.source = Some(tables.owners.lookup(headers.src).copied());
            notes.target = Some(tables.owners.lookup(headers.dst).copied());
        });
        let path = match self.paths.find(tables, origin, headers.src, headers.dst) {
            Ok(path) => path,
            Err(DropReason::NoOwner) => return Fate::Answer(DropReason::NoOwner, Answer::Unreachable),
            Err(reason) => return Fate::Drop(reason),
        };
        recorder.note(|notes| notes.way(&path));
        let peer = match (origin, path.exit) {
            (Origin::Peer(peer), _) | (_, Exit::Peer(peer)) => Some(peer),
            (Origin::Tun, Exit::Tun) => None,
        };
        let packet_of_flow = Packet { tables, headers, path: &path, peer, segments, now };
        if headers.is_partial() {
            return self.fragment(recorder, &packet_of_flow, origin, packet);
        }
        self.admit(recorder, &packet_of_flow, packet)
    }

    #[inline]
    fn admit<R: Recorder>(&mut self, recorder: &mut R, packet: &Packet<'_>, bytes: &[u8]) -> Fate {
        let admission = match packet.headers.transport {
            Transport::Icmp(icmp) if icmp.is_error => self.conntrack.icmp_error(recorder, packet, bytes),
            _ => self.conntrack.packet(&mut self.cache, &mut self.log, recorder, packet),
        };
        match admission {
            Admission::Pass => Fate::Go(*packet.path),
            Admission::Drop(reason) => Fate::Drop(reason),
            Admission::Wait(address) => Fate::Wait(address),
            Admission::Reject(reason) => Fate::Answer(reason, Answer::Rejected),
        }
    }

    #[cold]
    fn fragment<R: Recorder>(&mut self, recorder: &mut R, packet: &Packet<'_>, origin: Origin, bytes: &[u8]) -> Fate {
        recorder.note(|notes| notes.reached = Stage::Fragment);
        let now_ms = self.now_ms(packet.now);
        let fate = if packet.headers.is_later_fragment() {
            match self.fragments.later(origin, bytes, packet.headers, now_ms) {
                Later::Pass(path) => Fate::Go(path),
                Later::Held => Fate::Held,
                Later::Drop(reason) => Fate::Drop(reason),
            }
        } else {
            match self.fragments.first(origin, bytes, packet.headers, now_ms) {
                Ok(()) => {
                    let fate = match self.admit(recorder, packet, bytes) {
                        // Nobody keeps a datagram in pieces.
                        Fate::Wait(_) => Fate::Drop(DropReason::IdentityUnknown),
                        fate => fate,
                    };
                    let passed = if let Fate::Go(path) = &fate { Some(*path) } else { None };
                    self.fragments.settle(origin, packet.headers, passed);
                    fate
                }
                Err(reason) => Fate::Drop(reason),
            }
        };
        self.count_lost_fragments();
        fate
    }

    fn count_lost_fragments(&mut self) {
        for (reason, count) in self.fragments.lost() {
            self.counters.count_drop(reason, count);
        }
    }

    /// Hands out held fragments whose first fragment has passed since; call after a batch. Fragments that have become
    /// too big for their peer are dropped and counted.
    pub fn take_released(&mut self, tables: &Tables, now: Instant, out: &mut Vec<Released>) {
        for freed in self.fragments.freed() {
            let Ok(headers) = Headers::parse(&freed.packet) else { continue };
            let verdict = match fit(tables, &freed.path, &headers, freed.packet.len()) {
                Fit::Whole => verdict(&freed.path, None),
                Fit::Fragmented(mtu) => verdict(&freed.path, Some(mtu)),
                Fit::TooBig(_) => {
                    self.counters.count_drop(DropReason::TooBig, 1);
                    continue;
                }
            };
            let traffic = match freed.origin {
                Origin::Tun => &mut self.counters.outbound,
                Origin::Peer(_) => &mut self.counters.inbound,
            };
            traffic.add(1, freed.packet.len());
            // Held before, so it is charged and not refused: the debt is paid by what follows.
            if !tables.rates.is_empty() {
                tables.rates.charge(
                    (headers.src, headers.dst),
                    peers(freed.origin, &freed.path),
                    Load::of(&headers, 1),
                    now,
                );
            }
            out.push(Released { packet: freed.packet, origin: freed.origin, verdict });
        }
    }

    #[inline]
    fn accept(&mut self, input: &Input<'_>, path: &Path, mtu: Option<Mtu>) -> Verdict {
        let traffic = match input.origin {
            Origin::Tun => &mut self.counters.outbound,
            Origin::Peer(_) => &mut self.counters.inbound,
        };
        traffic.add(input.segments, input.headers.total_len.into());
        verdict(path, mtu)
    }

    #[cold]
    fn answer(
        &mut self,
        input: &Input<'_>,
        packet: &[u8],
        reason: DropReason,
        answer: Answer,
        reply: &mut Reply,
    ) -> Verdict {
        self.counters.count_drop(reason, input.segments);
        let allowed = self.limiter.take(self.now_ms(input.now));
        if allowed && reply::write(input.tables, packet, input.headers, answer, reply) {
            self.counters.replies += 1;
            Verdict::DropWithReply(reason)
        } else {
            Verdict::Drop(reason)
        }
    }

    /// Counts packets that waited for labels in vain.
    pub fn give_up(&mut self, packets: u32) {
        self.counters.count_drop(DropReason::IdentityUnknown, packets);
    }

    /// Containers of this host that began flows to peers since last asked, where the policy speaks of labels.
    pub fn take_introductions(&mut self) -> Vec<(IpAddr, PeerIndex)> {
        if self.log.introductions.is_empty() { Vec::new() } else { self.log.introductions.take() }
    }

    /// Moves what rules with `log` or `audit` decided to `out`; returns how many events had no room since the last call.
    pub fn take_rule_events(&mut self, out: &mut Vec<RuleEvent>) -> u64 {
        self.log.take(out)
    }

    /// Ends flows and fragments whose time is over, with a bounded amount of work. Call about every 100 ms; calls within
    /// 20 ms of the last do nothing.
    pub fn expire(&mut self, now: Instant) {
        if now.saturating_duration_since(self.expired) < EXPIRE_PAUSE {
            return;
        }
        self.expired = now;
        self.conntrack.expire(now);
        if !self.fragments.is_empty() {
            let now_ms = self.now_ms(now);
            self.fragments.expire(now_ms);
            self.count_lost_fragments();
        }
    }

    /// Up to `limit` live flows that `selector` chooses; see [`Conntrack::flows`].
    #[must_use]
    pub fn flows(&self, selector: &FlowSelector, limit: usize, now: Instant) -> Vec<FlowSnapshot> {
        self.conntrack.flows(selector, limit, now)
    }

    /// Removes the flows that `selector` chooses; returns how many.
    pub fn kill(&mut self, selector: &FlowSelector) -> usize {
        self.conntrack.kill(selector)
    }

    /// What this engine did so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn now_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    #[cfg(test)]
    pub(crate) fn held_fragment_bytes(&self) -> usize {
        self.fragments.held_bytes()
    }

    #[cfg(test)]
    pub(crate) fn fragments_are_empty(&self) -> bool {
        self.fragments.is_empty()
    }
}

/// Decides a packet as an engine over `conntrack` would at `now`, by the same code, and changes nothing: no flow, no count, no
/// bucket. Fragments are judged as if none of their datagram had been seen.
#[must_use]
pub fn rehearse(
    conntrack: &Conntrack,
    tables: &Tables,
    question: &Question<'_>,
    packet: &mut [u8],
    now: Instant,
) -> (Verdict, Notes) {
    let Question { origin, headers, segment_len, segments } = *question;
    let shadow = Arc::new(conntrack.shadow(headers, packet, now));
    let mut engine = Engine::for_worker(&shadow, now);
    let input = Input { tables, origin, headers, segment_len, segments, now };
    let mut rehearsal = Rehearsal::default();
    let verdict = engine.run(&mut rehearsal, &input, packet, &mut Reply::new());
    (verdict, rehearsal.0)
}

/// The peers a packet comes from and goes to.
#[inline]
fn peers(origin: Origin, path: &Path) -> (Option<PeerIndex>, Option<PeerIndex>) {
    let from = if let Origin::Peer(peer) = origin { Some(peer) } else { None };
    let to = if let Exit::Peer(peer) = path.exit { Some(peer) } else { None };
    (from, to)
}

/// Asks the limits on rates.
fn limit<R: Recorder>(recorder: &mut R, input: &Input<'_>, path: &Path) -> Result<Duration, DropReason> {
    recorder.note(|notes| notes.reached = Stage::Rate);
    let Input { tables, origin, headers, segments, now, .. } = *input;
    let load = Load::of(headers, segments);
    let checked = tables.rates.check((headers.src, headers.dst), peers(origin, path), load, R::IS_REAL, now);
    checked.map_err(|(reason, place)| {
        recorder.note(|notes| notes.limit = Some(place));
        reason
    })
}

fn size_note(input: &Input<'_>, path: &Path) -> Option<SizeNote> {
    let Exit::Peer(peer) = path.exit else { return None };
    let peer = input.tables.peer(peer)?;
    Some(SizeNote { size: input.segment_len, mtu: inner_mtu(peer.inner_mtu, input.headers.src) })
}

#[inline]
fn verdict(path: &Path, mtu: Option<Mtu>) -> Verdict {
    match (path.exit, mtu) {
        (Exit::Peer(peer), None) => Verdict::Forward(peer),
        (Exit::Peer(peer), Some(mtu)) => Verdict::ForwardFragmented(peer, mtu),
        (Exit::Tun, _) => Verdict::Deliver,
    }
}

/// Whether a packet fits its peer.
enum Fit {
    Whole,
    Fragmented(Mtu),
    TooBig(u16),
}

#[inline]
fn fit(tables: &Tables, path: &Path, headers: &Headers, segment_len: usize) -> Fit {
    let Exit::Peer(peer) = path.exit else { return Fit::Whole };
    let Some(peer) = tables.peer(peer) else { return Fit::Whole };
    let mtu = inner_mtu(peer.inner_mtu, headers.src);
    if segment_len <= usize::from(mtu.get()) {
        Fit::Whole
    } else if headers.dont_fragment {
        Fit::TooBig(mtu.get())
    } else {
        Fit::Fragmented(mtu)
    }
}

/// What a packet to a peer may measure. IPv6 needs 1,280 bytes whatever the path; beyond the path's MTU such packets are
/// fragmented outside.
#[inline]
fn inner_mtu(mtu: Mtu, family: IpAddr) -> Mtu {
    if family.is_ipv4() { mtu } else { mtu.max(Mtu::IPV6_MIN) }
}

/// Lowers the MSS of SYN and SYN-ACK to what fits the far end, in both directions.
#[inline]
fn clamp(input: &Input<'_>, path: &Path, packet: &mut [u8]) {
    let Transport::Tcp(tcp) = &input.headers.transport else { return };
    if !tcp.flags.syn() {
        return;
    }
    let peer = match (input.origin, path.exit) {
        (Origin::Peer(peer), _) | (_, Exit::Peer(peer)) => peer,
        (Origin::Tun, Exit::Tun) => return,
    };
    if let Some(peer) = input.tables.peer(peer) {
        mss::clamp(packet, input.headers, mss::largest(peer.inner_mtu, input.headers));
    }
}

#[cfg(test)]
mod labels;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod rehearsal;

//! Connection tracking: which packets belong to flows that the filter allowed.
//!
//! The table is shared by all workers, of fixed capacity and split into shards by a keyed hash that is equal for both
//! directions of a flow. A call holds one lock at a time and never across a system call. A source holds at most an eighth of the
//! table; when a shard is full, flows that nobody answered go first, and an established flow is never evicted for a
//! new one. When the tables' revision moves, every flow is checked against the filter again at its next packet.

mod entry;
mod key;
mod saved;
mod shadow;
mod shard;
mod share;
mod snapshot;
mod tcp;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use overlay_wire::PeerIndex;
use overlay_wire::icmp::{Quote, QuotedTransport};
use overlay_wire::packet::{Headers, Transport};
use overlay_wire::policy::Action;
use parking_lot::Mutex;

pub use saved::{Cursor, FLOW_BYTES, Pass, Restored, SavedWhile};
pub(crate) use snapshot::state_of;
pub use snapshot::{FlowSelector, FlowSnapshot, FlowState};

use crate::early;
use crate::note::{FlowNote, Recorder, Stage};
use crate::path::{End, Exit, Path};
use crate::policy::{DecidedBy, Decision, RuleLog, Tuple};
use crate::reason::DropReason;
use crate::tables::Tables;
pub(crate) use entry::Entry;
use entry::{TICKS_PER_SECOND, Tick, Track};
use key::FlowKey;
use shard::{Handle, Shard};
use share::Shares;
pub(crate) use tcp::Direction;
use tcp::{TcpState, TcpTrack, TcpVerdict};

/// Flows in a shard, at most; small enough that a lock is held for nanoseconds.
const SHARD_FLOWS: usize = 4096;
/// One source holds at most this part of the table.
const SOURCE_SHARE: usize = 8;
/// How long after a start without saved flows a mid-stream segment may create a flow.
const PICKUP_TICKS: Tick = 60 * TICKS_PER_SECOND;
/// Slots swept by one call of [`Conntrack::expire`].
const SWEEP_SLOTS: usize = 4096;
/// Slots of the last-flow cache.
const CACHE_SLOTS: usize = 256;

/// The flow table.
#[derive(Debug)]
pub struct Conntrack {
    shards: Box<[Mutex<Shard>]>,
    shares: Shares,
    secret: [u8; 16],
    start: Instant,
    /// Until then a mid-stream segment may create a flow.
    pickup_until: AtomicU32,
    sweep: AtomicUsize,
}

/// One packet that passed the source checks, with all the table needs to know of it.
pub(crate) struct Packet<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) headers: &'a Headers,
    pub(crate) path: &'a Path,
    /// The peer at the far end.
    pub(crate) peer: Option<PeerIndex>,
    pub(crate) segments: u32,
    pub(crate) now: Instant,
}

/// Whether a packet may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    Pass,
    Drop(DropReason),
    /// Drop and tell the sender.
    Reject(DropReason),
    /// Labels of this address must be known first.
    Wait(IpAddr),
}

/// Where the last flows were found, so that the packets of one flow cost one comparison each.
#[derive(Clone, Debug)]
pub(crate) struct FlowCache([Cached; CACHE_SLOTS]);

#[derive(Clone, Copy, Debug)]
struct Cached {
    key: FlowKey,
    shard: u32,
    handle: Handle,
    direction: Direction,
}

impl FlowCache {
    pub(crate) fn new() -> Self {
        // No packet has an all-zero key: the unspecified address is refused before.
        let none =
            Cached { key: FlowKey::default(), shard: 0, handle: Handle::default(), direction: Direction::Original };
        Self([none; CACHE_SLOTS])
    }
}

/// What the table makes of a packet's upper layer.
enum Message<'a> {
    Tcp(&'a overlay_wire::packet::Tcp),
    EchoRequest,
    EchoReply,
    Udp,
    Other,
}

impl Conntrack {
    /// Makes a table for about `capacity` flows; `secret` keys its hashes and `start` is its time zero.
    #[must_use]
    pub fn new(capacity: usize, secret: [u8; 16], start: Instant) -> Self {
        let capacity = capacity.max(64);
        let shards = capacity.div_ceil(SHARD_FLOWS).next_power_of_two();
        let per_shard = capacity.div_ceil(shards);
        let limit = u32::try_from(capacity.div_ceil(SOURCE_SHARE)).unwrap_or(u32::MAX);
        Self {
            shards: (0..shards).map(|_| Mutex::new(Shard::new(per_shard))).collect(),
            shares: Shares::new(limit, secret.map(|byte| !byte)),
            secret,
            start,
            pickup_until: AtomicU32::new(PICKUP_TICKS),
            sweep: AtomicUsize::new(0),
        }
    }

    /// The number of flows in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().live()).sum()
    }

    /// Whether the table holds no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory reserved for flows, in bytes; it is touched only as flows come.
    #[must_use]
    pub fn reserved_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().reserved_bytes()).sum()
    }

    /// Removes expired flows with a bounded amount of work; called every 100 ms it visits the whole table within seconds.
    pub fn expire(&self, now: Instant) -> usize {
        let now = self.tick(now);
        let mut removed = 0;
        let visits = SWEEP_SLOTS.div_ceil(SHARD_FLOWS).max(1);
        for _ in 0..visits {
            let at = self.sweep.fetch_add(1, Ordering::Relaxed) % self.shards.len();
            removed += self.shards[at].lock().expire(now, SWEEP_SLOTS / visits, &self.shares);
        }
        removed
    }

    #[inline]
    fn tick(&self, now: Instant) -> Tick {
        let elapsed = now.saturating_duration_since(self.start);
        // A Tick holds 13 years.
        elapsed.as_secs() as Tick * TICKS_PER_SECOND + elapsed.subsec_millis() / (1000 / TICKS_PER_SECOND)
    }

    #[inline]
    fn shard_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.shards.len() - 1)
    }

    /// Decides a packet other than an ICMP error or a later fragment, and tracks its flow.
    #[inline]
    pub(crate) fn packet<R: Recorder>(
        &self,
        cache: &mut FlowCache,
        log: &mut RuleLog,
        recorder: &mut R,
        packet: &Packet<'_>,
    ) -> Admission {
        recorder.note(|notes| notes.reached = Stage::Flow);
        let headers = packet.headers;
        let (message, ports) = match &headers.transport {
            Transport::Tcp(tcp) => {
                if !tcp::flags_are_valid(tcp.flags) {
                    return Admission::Drop(DropReason::TcpFlags);
                }
                (Message::Tcp(tcp), (tcp.src_port, tcp.dst_port))
            }
            Transport::Udp(udp) => (Message::Udp, (udp.src_port, udp.dst_port)),
            Transport::Icmp(icmp) => {
                let Some(ports) = echo_ports(icmp.kind, icmp.id.unwrap_or(0)) else {
                    return Admission::Drop(DropReason::IcmpType);
                };
                let request = early::is_echo_request(icmp.kind);
                (if request { Message::EchoRequest } else { Message::EchoReply }, ports)
            }
            Transport::Other | Transport::None => (Message::Other, (0, 0)),
        };
        let key = FlowKey::new(headers.src, headers.dst, headers.protocol, ports.0, ports.1);
        let now = self.tick(packet.now);
        let slot = key.cache_slot(CACHE_SLOTS);
        let cached = cache.0[slot];
        if cached.key == key {
            let mut shard = self.shards[cached.shard as usize].lock();
            if shard.get(cached.handle).is_some() {
                return match self.known(&mut shard, recorder, (cached.handle, cached.direction), &message, packet, now)
                {
                    Some(admission) => admission,
                    None => {
                        let hash = key.symmetric_hash(&self.secret);
                        self.admit(&mut shard, log, recorder, (&key, hash), &message, packet, now)
                    }
                };
            }
        }
        let hash = key.symmetric_hash(&self.secret);
        let at = self.shard_of(hash);
        let mut shard = self.shards[at].lock();
        if let Some((handle, direction)) = shard.find(&key, hash) {
            cache.0[slot] = Cached { key, shard: at as u32, handle, direction };
            if let Some(admission) = self.known(&mut shard, recorder, (handle, direction), &message, packet, now) {
                return admission;
            }
        }
        self.admit(&mut shard, log, recorder, (&key, hash), &message, packet, now)
    }

    /// Decides a packet of a flow in the table; `None` when the flow is over and the packet may open another.
    #[inline]
    fn known<R: Recorder>(
        &self,
        shard: &mut Shard,
        recorder: &mut R,
        (handle, direction): (Handle, Direction),
        message: &Message<'_>,
        packet: &Packet<'_>,
        now: Tick,
    ) -> Option<Admission> {
        let entry = shard.get(handle)?;
        if entry.expires <= now {
            shard.remove(handle.slot, &self.shares);
            return None;
        }
        recorder.note(|notes| notes.flow = Some(FlowNote::of(entry, direction)));
        if entry.revision != packet.tables.revision
            && let Err(admission) = recheck(entry, direction, recorder, packet)
        {
            // A flow whose labels have to be asked for again is not over.
            if !matches!(admission, Admission::Wait(_)) {
                shard.remove(handle.slot, &self.shares);
            }
            return Some(admission);
        }
        recorder.note(|notes| {
            // What keeps the flow allowed: under these tables the filter was asked before, and answers the same.
            if notes.decision.is_none() {
                notes.decision = Some(ask(packet, &entry.original.tuple(), direction));
            }
        });
        let was_assured = entry.assured;
        let mut assured = was_assured;
        match (&mut entry.track, message) {
            (Track::Tcp(track), Message::Tcp(segment)) => {
                if packet.headers.is_partial() {
                    track.set_liberal();
                }
                match track.segment(segment, packet.headers.payload_len() as u32, direction) {
                    TcpVerdict::Pass => {
                        assured |= track.state == TcpState::Established;
                        entry.refresh(now);
                    }
                    TcpVerdict::PassUntouched => {}
                    TcpVerdict::Reopen => {
                        shard.remove(handle.slot, &self.shares);
                        return None;
                    }
                    TcpVerdict::Drop(reason) => return Some(Admission::Drop(reason)),
                }
                entry.replied |= direction == Direction::Reply;
            }
            (track, message) => {
                let expected = match message {
                    Message::EchoRequest => direction == Direction::Original,
                    Message::EchoReply => direction == Direction::Reply,
                    Message::Tcp(_) | Message::Udp | Message::Other => true,
                };
                if !expected || matches!(track, Track::Tcp(_)) {
                    return Some(Admission::Drop(DropReason::IcmpNoFlow));
                }
                entry.replied |= direction == Direction::Reply;
                assured |= entry.replied;
                entry.refresh(now);
            }
        }
        entry.count(direction, packet.segments, packet.headers.total_len.into());
        if assured && !was_assured {
            shard.assure(handle);
        }
        Some(Admission::Pass)
    }

    /// Decides a packet of no flow: asks the filter, and tracks the flow if it may pass.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "all of it is at hand where it is called")]
    fn admit<R: Recorder>(
        &self,
        shard: &mut Shard,
        log: &mut RuleLog,
        recorder: &mut R,
        (key, hash): (&FlowKey, u64),
        message: &Message<'_>,
        packet: &Packet<'_>,
        now: Tick,
    ) -> Admission {
        let payload_len = packet.headers.payload_len() as u32;
        let tables = packet.tables;
        recorder.note(|notes| (notes.flow, notes.decision) = (None, None));
        let (mut original, mut direction) = (*key, Direction::Original);
        let track = match message {
            Message::Tcp(tcp) if tcp.flags.syn() && !tcp.flags.ack() => Track::Tcp(TcpTrack::open(tcp, payload_len)),
            Message::Tcp(tcp) => {
                let pickup_until = self.pickup_until.load(Ordering::Relaxed);
                if tcp.flags.rst() || tcp.flags.syn() || now >= pickup_until {
                    return Admission::Drop(DropReason::TcpNoFlow);
                }
                let forward = ask(packet, &key.tuple(), Direction::Original);
                let backward = ask(packet, &key.reversed().tuple(), Direction::Reply);
                recorder.note(|notes| notes.decision = Some(if forward.allows() { forward } else { backward }));
                if !forward.allows() {
                    if !backward.allows() {
                        let missing = |decision: Decision, tuple| Some(decision.missing()?.of(&tuple));
                        let missing = missing(forward, key.tuple()).or(missing(backward, key.reversed().tuple()));
                        if let Some(address) = missing {
                            recorder.note(|notes| notes.reached = Stage::Policy);
                            return Admission::Wait(address);
                        }
                        return Admission::Drop(DropReason::TcpNoFlow);
                    }
                    (original, direction) = (key.reversed(), Direction::Reply);
                }
                Track::Tcp(TcpTrack::pick_up(tcp, payload_len, direction))
            }
            Message::EchoReply => return Admission::Drop(DropReason::IcmpNoFlow),
            Message::EchoRequest => Track::Echo,
            Message::Udp => Track::Udp,
            Message::Other => Track::Other,
        };
        if direction == Direction::Original {
            let tuple = key.tuple();
            let decision = ask(packet, &tuple, Direction::Original);
            recorder.note(|notes| (notes.reached, notes.decision) = (Stage::Policy, Some(decision)));
            if R::IS_REAL {
                tables.policy.record(&tuple, decision, tables.revision, log);
            }
            if let Some(of) = decision.missing() {
                return Admission::Wait(of.of(&tuple));
            }
            let by_rule = matches!(decision.by, DecidedBy::Rule(_));
            match decision.action {
                Action::Allow => {
                    if R::IS_REAL
                        && tables.policy.speaks_of_labels()
                        && let Exit::Peer(peer) = packet.path.exit
                    {
                        log.introductions.note(tuple.src, peer, tables.revision);
                    }
                }
                Action::Deny if by_rule => return Admission::Drop(DropReason::PolicyDeny),
                Action::Reject if by_rule => return Admission::Reject(DropReason::PolicyReject),
                Action::Deny => return Admission::Drop(DropReason::PolicyDefault),
                Action::Reject => return Admission::Reject(DropReason::PolicyDefault),
            }
        }
        recorder.note(|notes| notes.reached = Stage::Table);
        if !self.shares.allows(original.source()) {
            return Admission::Drop(DropReason::SourceShare);
        }
        let peer = packet.peer.map_or(u32::MAX, |peer| peer.0);
        let mut entry = Entry::new(original, track, now, tables.revision, peer);
        if direction == Direction::Reply {
            entry.replied = true;
        }
        if let Track::Tcp(track) = &mut entry.track {
            entry.assured = track.state == TcpState::Established;
            if packet.headers.is_partial() {
                track.set_liberal();
            }
        }
        entry.count(direction, packet.segments, packet.headers.total_len.into());
        match shard.insert(entry, hash, now, &self.shares) {
            Some(_) => Admission::Pass,
            None => Admission::Drop(DropReason::ConntrackFull),
        }
    }

    /// Decides an ICMP error by the packet it quotes, which must have been sent by the error's receiver in a live flow.
    pub(crate) fn icmp_error<R: Recorder>(&self, recorder: &mut R, packet: &Packet<'_>, bytes: &[u8]) -> Admission {
        recorder.note(|notes| notes.reached = Stage::Flow);
        let quote = Quote::parse(bytes, packet.headers).filter(|quote| quote.src == packet.headers.dst);
        let Some((key, quoted_seq)) = quote.as_ref().and_then(quoted_flow) else {
            return Admission::Drop(DropReason::IcmpUnrelated);
        };
        let now = self.tick(packet.now);
        let hash = key.symmetric_hash(&self.secret);
        let mut shard = self.shards[self.shard_of(hash)].lock();
        let Some((handle, direction)) = shard.find(&key, hash) else {
            return Admission::Drop(DropReason::IcmpUnrelated);
        };
        let Some(entry) = shard.get(handle).filter(|entry| entry.expires > now) else {
            return Admission::Drop(DropReason::IcmpUnrelated);
        };
        recorder.note(|notes| notes.flow = Some(FlowNote::of(entry, direction.opposite())));
        if entry.revision != packet.tables.revision {
            // The error travels against the packet it quotes.
            match recheck(entry, direction.opposite(), recorder, packet) {
                Ok(()) => {}
                Err(Admission::Wait(_)) => return Admission::Drop(DropReason::IdentityUnknown),
                Err(admission) => {
                    shard.remove(handle.slot, &self.shares);
                    return admission;
                }
            }
        }
        let sent = direction == Direction::Original || entry.replied;
        let plausible = match (&entry.track, quoted_seq) {
            (Track::Tcp(track), Some(seq)) => track.quotes(seq, direction),
            _ => true,
        };
        if !sent || !plausible {
            return Admission::Drop(DropReason::IcmpUnrelated);
        }
        match entry.icmp_error(now) {
            Ok(()) => Admission::Pass,
            Err(reason) => Admission::Drop(reason),
        }
    }
}

/// The two "ports" of an echo message: the request's source port is the identifier; other messages belong to no flow.
#[inline]
fn echo_ports(kind: u8, id: u16) -> Option<(u16, u16)> {
    match kind {
        8 | 128 => Some((id, 0)),
        0 | 129 => Some((0, id)),
        _ => None,
    }
}

/// The flow a quote belongs to, and its TCP sequence number.
fn quoted_flow(quote: &Quote) -> Option<(FlowKey, Option<u32>)> {
    let (ports, seq) = match quote.transport {
        QuotedTransport::Tcp { src_port, dst_port, seq } => ((src_port, dst_port), Some(seq)),
        QuotedTransport::Udp { src_port, dst_port } => ((src_port, dst_port), None),
        QuotedTransport::Icmp { kind, id, .. } => (echo_ports(kind, id)?, None),
        QuotedTransport::Other => ((0, 0), None),
        QuotedTransport::LaterFragment => return None,
    };
    Some((FlowKey::new(quote.src, quote.dst, quote.protocol, ports.0, ports.1), seq))
}

/// Asks the filter again about a flow admitted under other tables. `direction` is that of the packet at hand, whose path
/// tells what the two ends are now.
#[cold]
fn recheck<R: Recorder>(
    entry: &mut Entry,
    direction: Direction,
    recorder: &mut R,
    packet: &Packet<'_>,
) -> Result<(), Admission> {
    let tuple = entry.original.tuple();
    let decision = ask(packet, &tuple, direction);
    recorder.note(|notes| (notes.reached, notes.decision) = (Stage::Policy, Some(decision)));
    if let Some(of) = decision.missing() {
        return Err(Admission::Wait(of.of(&tuple)));
    }
    match decision.action {
        Action::Allow => {
            recorder.note(|notes| notes.reached = Stage::Flow);
            entry.revision = packet.tables.revision;
            if let Some(peer) = packet.peer {
                entry.peer = peer.0;
            }
            Ok(())
        }
        Action::Deny => Err(Admission::Drop(DropReason::PolicyRevoked)),
        Action::Reject => Err(Admission::Reject(DropReason::PolicyRevoked)),
    }
}

/// Asks the filter about a flow by the tuple of its first packet; `direction` is that of the packet at hand.
#[inline]
fn ask(packet: &Packet<'_>, tuple: &Tuple, direction: Direction) -> Decision {
    let (from, to) = ends(direction, packet.path);
    packet.tables.policy.decide_with(tuple, from, to, packet.path.labels)
}

/// The two ends of a flow's first packet, from the path of a packet in this direction.
#[inline]
fn ends(direction: Direction, path: &Path) -> (End, End) {
    if direction == Direction::Original { (path.from, path.to) } else { (path.to, path.from) }
}

/// Whether `ip` matches an optional prefix.
fn selected(prefix: Option<overlay_wire::Prefix>, ip: IpAddr) -> bool {
    prefix.is_none_or(|prefix| prefix.contains(ip))
}

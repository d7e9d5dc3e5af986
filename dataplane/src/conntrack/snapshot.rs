//! Flows as shown to people, and their removal by selector.

use std::time::{Duration, Instant};

use overlay_wire::{PeerIndex, Prefix};

use super::entry::{Entry, TICKS_PER_SECOND, Tick, Track};
use super::tcp::TcpState;
use super::{Conntrack, selected};
use crate::policy::Tuple;
use crate::reason::Traffic;

/// The state of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowState {
    /// TCP: SYN sent.
    SynSent,
    /// TCP: SYN answered.
    SynReceived,
    /// TCP: open.
    Established,
    /// TCP: one side has closed.
    FinWait,
    /// TCP: both sides have closed, not all acknowledged.
    LastAck,
    /// TCP: closed.
    TimeWait,
    /// TCP: reset.
    Closed,
    /// Other protocols: nothing came back yet.
    Unreplied,
    /// Other protocols: both sides have spoken.
    Replied,
}

impl FlowState {
    /// The stable name used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::FinWait => "fin-wait",
            Self::LastAck => "last-ack",
            Self::TimeWait => "time-wait",
            Self::Closed => "closed",
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
        }
    }
}

impl std::fmt::Display for FlowState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// One flow at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowSnapshot {
    /// The first packet's tuple.
    pub tuple: Tuple,
    /// The tuple of packets in the other direction; differs from the reverse only under translation.
    pub reply_tuple: Tuple,
    /// The state.
    pub state: FlowState,
    /// What went in the original direction.
    pub original: Traffic,
    /// What came back.
    pub reply: Traffic,
    /// Time since the first packet.
    pub age: Duration,
    /// Time since the last packet.
    pub idle: Duration,
    /// Time until the flow ends without another packet.
    pub timeout: Duration,
    /// The peer at the far end; `None` where both ends are on this host or beyond the overlay.
    pub peer: Option<PeerIndex>,
}

/// Chooses flows; fields that are `None` match everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowSelector {
    /// Upper-layer protocol.
    pub protocol: Option<u8>,
    /// Original source.
    pub src: Option<Prefix>,
    /// Original destination.
    pub dst: Option<Prefix>,
    /// Original source port.
    pub src_port: Option<u16>,
    /// Original destination port.
    pub dst_port: Option<u16>,
    /// The peer at the far end.
    pub peer: Option<PeerIndex>,
}

impl FlowSelector {
    /// Whether a flow with this tuple and peer is chosen.
    #[must_use]
    pub fn matches(&self, tuple: &Tuple, peer: Option<PeerIndex>) -> bool {
        self.protocol.is_none_or(|protocol| protocol == tuple.protocol)
            && selected(self.src, tuple.src)
            && selected(self.dst, tuple.dst)
            && self.src_port.is_none_or(|port| port == tuple.src_port)
            && self.dst_port.is_none_or(|port| port == tuple.dst_port)
            && self.peer.is_none_or(|own| Some(own) == peer)
    }
}

fn peer_of(entry: &Entry) -> Option<PeerIndex> {
    (entry.peer != u32::MAX).then_some(PeerIndex(entry.peer))
}

fn span(from: Tick, to: Tick) -> Duration {
    Duration::from_millis(u64::from(to.saturating_sub(from)) * u64::from(1000 / TICKS_PER_SECOND))
}

/// The state of a flow as people see it.
pub(crate) fn state_of(entry: &Entry) -> FlowState {
    match (&entry.track, entry.replied) {
        (Track::Tcp(tcp), _) => match tcp.state {
            TcpState::SynSent => FlowState::SynSent,
            TcpState::SynReceived => FlowState::SynReceived,
            TcpState::Established => FlowState::Established,
            TcpState::FinWait => FlowState::FinWait,
            TcpState::LastAck => FlowState::LastAck,
            TcpState::TimeWait => FlowState::TimeWait,
            TcpState::Closed => FlowState::Closed,
        },
        (Track::Udp | Track::Echo | Track::Other, true) => FlowState::Replied,
        (Track::Udp | Track::Echo | Track::Other, false) => FlowState::Unreplied,
    }
}

fn snapshot(entry: &Entry, now: Tick) -> FlowSnapshot {
    let state = state_of(entry);
    FlowSnapshot {
        tuple: entry.original.tuple(),
        reply_tuple: entry.reply.tuple(),
        state,
        original: entry.traffic[0],
        reply: entry.traffic[1],
        age: span(0, now.wrapping_sub(entry.created)),
        idle: entry.timeout().saturating_sub(span(now, entry.expires)),
        timeout: span(now, entry.expires),
        peer: peer_of(entry),
    }
}

impl Conntrack {
    /// Up to `limit` live flows that `selector` chooses, ordered by tuple. Each shard is locked once, in turn.
    #[must_use]
    pub fn flows(&self, selector: &FlowSelector, limit: usize, now: Instant) -> Vec<FlowSnapshot> {
        let now = self.tick(now);
        let mut flows = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let chosen = shard
                .iter()
                .filter(|(_, entry)| entry.expires > now)
                .filter(|(_, entry)| selector.matches(&entry.original.tuple(), peer_of(entry)))
                .take(limit - flows.len())
                .map(|(_, entry)| snapshot(entry, now));
            flows.extend(chosen);
            if flows.len() >= limit {
                break;
            }
        }
        flows.sort_by_key(|flow| {
            let tuple = flow.tuple;
            (tuple.src, tuple.dst, tuple.protocol, tuple.src_port, tuple.dst_port)
        });
        flows
    }

    /// Removes every flow that `selector` chooses; returns how many. Their next packets are decided as new.
    pub fn kill(&self, selector: &FlowSelector) -> usize {
        let mut killed = 0;
        for shard in &self.shards {
            let mut shard = shard.lock();
            let chosen: Vec<u32> = shard
                .iter()
                .filter(|(_, entry)| selector.matches(&entry.original.tuple(), peer_of(entry)))
                .map(|(slot, _)| slot)
                .collect();
            killed += chosen.len();
            for slot in chosen {
                shard.remove(slot, &self.shares);
            }
        }
        killed
    }
}

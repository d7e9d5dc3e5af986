//! What workers and the control side share, and the messages between them. Every queue is bounded; what does not fit is
//! dropped and counted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use crossbeam_channel::Sender;
use overlay_dataplane::RuleEvent;
use overlay_wire::PeerIndex;

use crate::counters::PathCounters;
use crate::snapshot::Snapshot;

/// A datagram handed from a worker to the control side.
#[derive(Debug)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// Our address it came to.
    pub local: Option<IpAddr>,
    /// Its bytes.
    pub bytes: Box<[u8]>,
}

/// What a worker asks of the handshake thread.
#[derive(Debug)]
pub enum HandshakeMessage {
    /// A WireGuard message of kind 1 to 3.
    Received(Datagram),
    /// A packet waits for a session with this peer.
    Wanted(PeerIndex),
    /// End the thread.
    Stop,
}

/// What a worker tells the supervisor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WorkerEvent {
    /// The TUN device vanished.
    DeviceLost,
    /// The TUN device is open again: addresses and routes must be put back.
    DeviceBack,
    /// The kernel refused segmentation on an underlay socket, once.
    SegmentationLost,
    /// Our own underlay datagrams came back to us through the TUN: the rule that keeps them out is missing.
    Loop,
    /// Rules with `log` or `audit` decided; the second number counts decisions that did not fit.
    Rules(Vec<RuleEvent>, u64),
    /// Packets wait for the labels of these addresses.
    LabelsWanted(Vec<IpAddr>),
    /// Containers of this host began flows to peers, and the policy speaks of labels.
    FlowsBegan(Vec<(IpAddr, PeerIndex)>),
}

/// What a worker did since its start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WorkerReport {
    /// Decisions.
    pub engine: overlay_dataplane::Counters,
    /// The loop.
    pub turns: TurnCounters,
}

/// How a worker's loop turned; counted by the worker alone, once per turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TurnCounters {
    /// Turns.
    pub turns: u64,
    /// Turns that ended in waiting.
    pub sleeps: u64,
    /// Messages received from the underlay.
    pub received: u64,
    /// Packets and super-packets read from the device.
    pub read: u64,
}

/// What the control side asks of a worker.
#[derive(Debug)]
pub enum WorkerCommand {
    /// Treat this packet as if read from the TUN.
    Inject(Vec<u8>),
    /// Decide about the packets that wait for labels again: the tables moved.
    LookAgain,
    /// What it did so far.
    Counters(tokio::sync::oneshot::Sender<WorkerReport>),
    /// End the worker; remove the device's persistence when asked to.
    Stop {
        /// Whether the device goes with the daemon.
        remove_device: bool,
    },
}

/// Shared by all threads.
#[derive(Debug)]
pub struct Shared {
    /// What packets are decided with.
    pub snapshot: ArcSwap<Snapshot>,
    /// Drops outside the filter.
    pub counters: PathCounters,
    /// The daemon's start, the zero of millisecond stamps.
    pub start: Instant,
    /// The identifier of our data-path probes.
    pub probe_id: u16,
    /// Whether packets wait for labels.
    pub waits_for_labels: AtomicBool,
    /// Pings under way.
    pub pings: crate::ping::Pings,
    /// Captures of packets.
    pub captures: Arc<crate::capture::Captures>,
    /// To the handshake thread.
    pub handshakes: Sender<HandshakeMessage>,
    /// To the gossip task.
    pub gossip: tokio::sync::mpsc::Sender<Datagram>,
    /// To the supervisor.
    pub events: tokio::sync::mpsc::Sender<WorkerEvent>,
}

/// Shared state behind a counted pointer.
pub type SharedRef = Arc<Shared>;

impl Shared {
    /// Milliseconds since the start.
    #[must_use]
    pub fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }
}

//! One simulated host: its state machine, its clock, its disk and its socket.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_routing::gossip::Gossip;

use super::disk::Disk;
use super::liar::Liar;

/// Bytes the socket of a stalled host keeps.
const SOCKET_BUFFER: usize = 212_992;

/// What runs on a host.
pub(crate) enum Role {
    /// The state machine.
    Honest(Box<Gossip>),
    /// A member that signs anything with its own key.
    Liar(Box<Liar>),
    /// Nothing: it crashed.
    Dead,
}

/// Datagrams and bytes, IP and UDP headers included.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
}

/// One host.
pub(crate) struct Node {
    pub(crate) role: Role,
    pub(crate) disk: Disk,
    /// How far its clock is ahead of virtual time.
    pub(crate) ahead: Duration,
    /// Its process stands still until then.
    pub(crate) stalled_until: Option<Duration>,
    /// What arrives meanwhile.
    pub(crate) inbox: VecDeque<(SocketAddr, Vec<u8>)>,
    inbox_bytes: usize,
    /// The wake-up in the event queue.
    pub(crate) wake: Option<Duration>,
    pub(crate) sent: Traffic,
    /// The last time anything was wrong with it: a crash, a stall, a jump of its clock.
    pub(crate) disturbed: Option<Duration>,
}

impl Node {
    pub(crate) fn new(role: Role, disk: Disk) -> Self {
        Self {
            role,
            disk,
            ahead: Duration::ZERO,
            stalled_until: None,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            wake: None,
            sent: Traffic::default(),
            disturbed: None,
        }
    }

    /// The state machine of an honest host that runs.
    pub(crate) fn engine(&self) -> Option<&Gossip> {
        match &self.role {
            Role::Honest(gossip) => Some(gossip),
            Role::Liar(_) | Role::Dead => None,
        }
    }

    /// The same, for changes.
    pub(crate) fn engine_mut(&mut self) -> Option<&mut Gossip> {
        match &mut self.role {
            Role::Honest(gossip) => Some(gossip),
            Role::Liar(_) | Role::Dead => None,
        }
    }

    pub(crate) fn is_liar(&self) -> bool {
        matches!(self.role, Role::Liar(_))
    }

    /// Its own clock at a virtual time.
    pub(crate) fn clock(&self, base: Instant, now: Duration) -> Instant {
        base + now + self.ahead
    }

    /// Keeps a datagram for a stalled process, as long as the socket has room.
    pub(crate) fn keep(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        // The kernel counts more than the payload.
        let charge = bytes.len() + 576;
        if self.inbox_bytes + charge <= SOCKET_BUFFER {
            self.inbox_bytes += charge;
            self.inbox.push_back((from, bytes));
        }
    }

    /// What arrived while the process stood still.
    pub(crate) fn take_inbox(&mut self) -> VecDeque<(SocketAddr, Vec<u8>)> {
        self.inbox_bytes = 0;
        std::mem::take(&mut self.inbox)
    }
}

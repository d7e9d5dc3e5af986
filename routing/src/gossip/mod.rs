//! The gossip state machine: who is a member, who is up, and which signed records exist.
//!
//! Sans-IO: `handle_*` change state, `poll_*` say what to send, what happened and when to call again. It has no clock and
//! no ambient randomness; the same inputs with the same seed give the same outputs, byte for byte.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use overlay_wire::gossip::{PlainStatus, Record, RouteAnnouncement, RouteVerdict};
use overlay_wire::{HostId, Prefix};

mod config;
mod view;

pub use config::{ForeignPrefixes, GossipConfig, GossipError, OwnHost, StaticMember, cluster_id};
pub use view::{DownReason, GossipCounters, GossipEvent, MemberState, MemberView, Transmit};

use crate::rib::Rib;

/// The gossip state machine.
///
/// The driver calls [`Self::handle_datagram`] for each datagram whose first byte is 32 or above, [`Self::handle_timeout`]
/// when [`Self::poll_timeout`] is due, and drains [`Self::poll_transmit`] and [`Self::poll_event`] after each.
pub struct Gossip {
    config: GossipConfig,
    rib: Arc<Rib>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<GossipEvent>,
    counters: GossipCounters,
}

impl Gossip {
    /// Starts the state machine; first contacts go out with the first [`Self::handle_timeout`].
    ///
    /// `boot_epoch` must be greater than in every earlier run of this identity.
    ///
    /// # Errors
    /// When the own record does not fit or there are too many members.
    pub fn new(config: GossipConfig, _seed: [u8; 32], _now: Instant, _boot_epoch: u64) -> Result<Self, GossipError> {
        Ok(Self {
            config,
            rib: Arc::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: GossipCounters::default(),
        })
    }

    /// Takes a datagram from the underlay; what does not authenticate is counted and answered with silence.
    pub fn handle_datagram(&mut self, _from: SocketAddr, _bytes: &[u8], _now: Instant) {}

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<GossipEvent> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Replaces the member list and grants, as after a reload.
    ///
    /// # Errors
    /// When there are too many members; nothing changes then.
    pub fn set_members(&mut self, members: Vec<StaticMember>, _now: Instant) -> Result<(), GossipError> {
        self.config.members = members;
        Ok(())
    }

    /// Replaces the foreign peers' prefixes.
    pub fn set_foreign(&mut self, foreign: Vec<ForeignPrefixes>, _now: Instant) {
        self.config.foreign = foreign;
    }

    /// Replaces what this host says about itself and publishes it when it differs.
    ///
    /// # Errors
    /// When the record does not fit; nothing changes then.
    pub fn set_own_host(&mut self, own: OwnHost, _now: Instant) -> Result<(), GossipError> {
        self.config.own = own;
        Ok(())
    }

    /// Replaces the announced prefixes and publishes them when they differ.
    ///
    /// # Errors
    /// When there are too many; nothing changes then.
    pub fn announce(&mut self, _routes: Vec<RouteAnnouncement>, _now: Instant) -> Result<(), GossipError> {
        Ok(())
    }

    /// Says what this host thinks of carrying a member's packets without encryption; sent along with probes.
    pub fn set_plain_status(&mut self, _member: HostId, _plain: PlainStatus) {}

    /// Asks a member for an answer right now, as after an address change.
    pub fn probe_now(&mut self, _now: Instant) {}

    /// Tells every reachable member that this host is stopping.
    pub fn leave(&mut self, _now: Instant) {}

    /// The host id of this host.
    #[must_use]
    pub fn host_id(&self) -> HostId {
        self.config.identity.host_id()
    }

    /// The state of every member, in host id order.
    #[must_use]
    pub fn members(&self) -> Vec<MemberView> {
        Vec::new()
    }

    /// The state of one member.
    #[must_use]
    pub fn member(&self, _host: HostId) -> Option<MemberView> {
        None
    }

    /// The routes that follow from configuration and records.
    #[must_use]
    pub fn rib(&self) -> Arc<Rib> {
        Arc::clone(&self.rib)
    }

    /// Every record held, in key order.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        std::iter::empty()
    }

    /// What each member made of the prefixes this host announces.
    #[must_use]
    pub fn announced_verdicts(&self) -> BTreeMap<HostId, Vec<(Prefix, RouteVerdict)>> {
        BTreeMap::new()
    }

    /// The GRE key shared with a member, and the previous one for 5 s after a change.
    #[must_use]
    pub fn gre_keys(&self, _member: HostId, _now: Instant) -> Option<(u32, Option<u32>)> {
        None
    }

    /// The addresses under which members see this host.
    #[must_use]
    pub fn observed_addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    /// What became of datagrams.
    #[must_use]
    pub fn counters(&self) -> GossipCounters {
        self.counters
    }
}

//! One flow in the table.

use std::time::Duration;

use super::key::FlowKey;
use super::tcp::{Direction, TcpState, TcpTrack};
use crate::reason::{DropReason, Traffic};

/// Tenths of a second since the table was made: what timeouts are counted in.
pub(crate) type Tick = u32;
/// Ticks in a second.
pub(crate) const TICKS_PER_SECOND: u32 = 10;

/// ICMP errors passed per flow and second (RFC 1812, section 4.3.2.8, leaves the figure open).
const ICMP_ERRORS_PER_SECOND: u8 = 10;

/// No place in a list.
pub(super) const NOWHERE: u32 = u32::MAX;

/// State by protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Track {
    Tcp(TcpTrack),
    Udp,
    Echo,
    Other,
}

/// A flow.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The first packet's key.
    pub(crate) original: FlowKey,
    /// The key of packets in the other direction.
    pub(crate) reply: FlowKey,
    pub(crate) track: Track,
    pub(crate) traffic: [Traffic; 2],
    /// Revision of the tables the filter was last asked with.
    pub(crate) revision: u64,
    /// Modulo 2^32: a restored flow began before the table's time.
    pub(crate) created: Tick,
    pub(crate) expires: Tick,
    /// The peer at the far end; `u32::MAX` where both ends are local.
    pub(crate) peer: u32,
    icmp_second: Tick,
    icmp_errors: u8,
    /// A packet came back.
    pub(crate) replied: bool,
    /// Both sides agreed to the flow; it is never evicted for another.
    pub(crate) assured: bool,
    pub(super) live: bool,
    /// Moves when the slot is reused, so that a stale handle finds nothing.
    pub(super) generation: u32,
    pub(super) hash: u64,
    pub(super) previous: u32,
    pub(super) next: u32,
}

impl Entry {
    pub(crate) fn new(original: FlowKey, track: Track, now: Tick, revision: u64, peer: u32) -> Self {
        let mut entry = Self {
            original,
            reply: original.reversed(),
            track,
            traffic: [Traffic::default(); 2],
            revision,
            created: now,
            expires: 0,
            peer,
            icmp_second: 0,
            icmp_errors: 0,
            replied: false,
            assured: false,
            live: true,
            generation: 0,
            hash: 0,
            previous: NOWHERE,
            next: NOWHERE,
        };
        entry.refresh(now);
        entry
    }

    /// Whether the slot holds a flow.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// How long the flow lives without another packet.
    pub(crate) fn timeout(&self) -> Duration {
        let seconds = match (&self.track, self.replied) {
            (Track::Tcp(tcp), _) => match tcp.state {
                TcpState::SynSent => 30,
                TcpState::SynReceived => 60,
                // Longer than the two hours of RFC 5382, requirement 5, and keepalives of two hours.
                TcpState::Established => 24 * 3600,
                TcpState::FinWait => 120,
                TcpState::LastAck => 30,
                TcpState::TimeWait => 60,
                TcpState::Closed => 10,
            },
            (Track::Udp | Track::Other, true) => 120,
            (Track::Udp | Track::Echo | Track::Other, _) => 30,
        };
        Duration::from_secs(seconds)
    }

    #[inline]
    pub(crate) fn refresh(&mut self, now: Tick) {
        self.expires = now.saturating_add(self.timeout().as_secs() as u32 * TICKS_PER_SECOND);
    }

    /// Counts an ICMP error that quotes this flow.
    pub(crate) fn icmp_error(&mut self, now: Tick) -> Result<(), DropReason> {
        if now.wrapping_sub(self.icmp_second) >= TICKS_PER_SECOND {
            self.icmp_second = now;
            self.icmp_errors = 0;
        }
        if self.icmp_errors >= ICMP_ERRORS_PER_SECOND {
            return Err(DropReason::IcmpRate);
        }
        self.icmp_errors += 1;
        Ok(())
    }

    #[inline]
    pub(crate) fn count(&mut self, direction: Direction, packets: u32, bytes: usize) {
        self.traffic[direction as usize].add(packets, bytes);
    }
}

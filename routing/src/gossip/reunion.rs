//! When a partition ends: a member that comes back speaks for others that were given up.
//!
//! Members that do not answer are tried every five seconds or less often, because most of them are gone for long. The end of a
//! partition brings back hundreds at once, and to wait for the turn of each would take several turns where datagrams are
//! lost. So whoever comes back makes a few others due at once. If those come back too, so do the next: after a
//! partition the number grows like a rumour, while a single host that returns costs a handful of probes.

use std::time::{Duration, Instant};

use overlay_wire::HostId;
use rand_core::RngCore as _;

use super::Gossip;
use super::view::{DownReason, MemberState};

/// Others that are tried for each member that comes back.
const TRIED_FOR_ONE: usize = 4;
/// The pause after that try; doubled from try to try as always.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// They are tried within this time, not in one burst.
const SPREAD: Duration = Duration::from_millis(100);
/// A member is made due like this once in such a time, and tried with short pauses for so long.
pub(super) const GAP: Duration = Duration::from_secs(15);
/// The longest of these pauses: nine tries, of which a million pairs at 10 % loss hardly lose all.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Gossip {
    /// Tries a few others that were given up, now that one of them is back.
    pub(super) fn seek_others(&mut self, now: Instant) {
        let is_rested = |at: Option<Instant>| at.is_none_or(|at| now.saturating_duration_since(at) >= GAP);
        let others: Vec<HostId> = self
            .peers
            .after(self.last_sought)
            .filter(|peer| peer.state == MemberState::Down && peer.down_reason == Some(DownReason::NoAnswer))
            .filter(|peer| peer.contact.next.is_some_and(|next| next > now + SPREAD) && is_rested(peer.contact.sought))
            .map(|peer| peer.host)
            .take(TRIED_FOR_ONE)
            .collect();
        self.last_sought = others.last().copied().or(self.last_sought);
        for host in others {
            let delay = SPREAD * (self.rng.next_u32() % 1000) / 1000;
            let Some(peer) = self.peers.get_mut(&host) else { continue };
            peer.contact.sought = Some(now);
            peer.contact.pause = FIRST_PAUSE;
            peer.contact.next = Some(now + delay);
        }
    }
}

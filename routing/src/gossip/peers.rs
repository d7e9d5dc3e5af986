//! All members by host id, with an index of their timers.
//!
//! Asking for a member mutably marks it; the index is brought up to date from the marks. So no change of a member's timers
//! can be missed, and finding what is due costs nothing for members that are not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Instant;

use overlay_wire::HostId;

use super::peer::Peer;

/// The members, and when each wants to be looked at.
#[derive(Default)]
pub(super) struct Peers {
    members: BTreeMap<HostId, Peer>,
    /// The keys of `members`, for picking by number.
    order: Vec<HostId>,
    timers: BTreeSet<(Instant, HostId)>,
    /// Members whose timers may differ from the index.
    touched: Vec<HostId>,
    all_touched: bool,
}

impl Peers {
    pub(super) fn get(&self, host: &HostId) -> Option<&Peer> {
        self.members.get(host)
    }

    pub(super) fn get_mut(&mut self, host: &HostId) -> Option<&mut Peer> {
        let peer = self.members.get_mut(host)?;
        if self.touched.last() != Some(host) {
            self.touched.push(*host);
        }
        Some(peer)
    }

    pub(super) fn contains_key(&self, host: &HostId) -> bool {
        self.members.contains_key(host)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &HostId> {
        self.members.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Peer> {
        self.members.values()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.all_touched = true;
        self.members.values_mut()
    }

    /// The members in a circle, beginning behind `last`.
    pub(super) fn after(&self, last: Option<HostId>) -> impl Iterator<Item = &Peer> {
        let low = last.map_or(Bound::Unbounded, Bound::Excluded);
        let wrapped = last.map(|last| self.members.range(..=last)).into_iter().flatten();
        self.members.range((low, Bound::Unbounded)).chain(wrapped).map(|(_, peer)| peer)
    }

    /// The members with a higher host id.
    pub(super) fn above(&self, host: HostId) -> impl Iterator<Item = &Peer> {
        self.members.range((Bound::Excluded(host), Bound::Unbounded)).map(|(_, peer)| peer)
    }

    /// The member at a place in host id order.
    pub(super) fn at(&self, place: usize) -> Option<&Peer> {
        self.members.get(self.order.get(place)?)
    }

    pub(super) fn insert(&mut self, host: HostId, peer: Peer) {
        self.remove(&host);
        self.members.insert(host, peer);
        self.order.insert(self.order.partition_point(|other| *other < host), host);
        self.touched.push(host);
    }

    pub(super) fn remove(&mut self, host: &HostId) -> Option<Peer> {
        let peer = self.members.remove(host)?;
        self.order.retain(|other| other != host);
        if let Some(at) = peer.timer {
            self.timers.remove(&(at, *host));
        }
        Some(peer)
    }

    /// Brings the index of timers up to date.
    pub(super) fn settle_timers(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if std::mem::take(&mut self.all_touched) {
            self.members.values_mut().for_each(|peer| settle_timer(&mut self.timers, peer));
        } else {
            for host in &touched {
                if let Some(peer) = self.members.get_mut(host) {
                    settle_timer(&mut self.timers, peer);
                }
            }
        }
        self.touched = touched;
        self.touched.clear();
    }

    /// The members with something due, the longest overdue first; complete after [`Self::settle_timers`].
    pub(super) fn due(&self, now: Instant) -> Vec<HostId> {
        self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, host)| *host).collect()
    }

    /// When the next member has something due.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        if self.all_touched {
            return self.members.values().filter_map(Peer::due).min();
        }
        let indexed = self.timers.first().map(|(at, _)| *at);
        let touched = self.touched.iter().filter_map(|host| self.members.get(host)?.due()).min();
        [indexed, touched].into_iter().flatten().min()
    }
}

fn settle_timer(timers: &mut BTreeSet<(Instant, HostId)>, peer: &mut Peer) {
    let due = peer.due();
    if due == peer.timer {
        return;
    }
    if let Some(old) = peer.timer {
        timers.remove(&(old, peer.host));
    }
    if let Some(new) = due {
        timers.insert((new, peer.host));
    }
    peer.timer = due;
}

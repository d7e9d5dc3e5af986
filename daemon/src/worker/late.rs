//! Packets over a limited rate, kept until their turn, which the limit named when it let them pass.
//!
//! What is kept is bounded here for all limits together; each of them bounds how long its own packets wait. Buffers are used
//! again, so that a steady stream allocates nothing.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use overlay_dataplane::Verdict;
use overlay_wire::offload::coalesce::Joining;
use overlay_wire::offload::{GsoKind, Segments, VnetHeader};
use overlay_wire::packet::Headers;
use overlay_wire::{Mtu, PeerIndex};

use super::{MAX_PACKET, Worker};
use crate::peers::Peer;
use crate::snapshot::Snapshot;

/// Buffers for single packets and for super-packets, in bytes.
const SIZES: [usize; 2] = [2048, MAX_PACKET + 1];
/// Bytes of buffers in use, at most.
const MOST: usize = 32 << 20;
/// Buffers of each size kept for use again: 3 MiB in all.
const SPARE: [usize; 2] = [512, 32];
/// Packets sent in one turn.
const TURN: usize = 64;

/// Where a packet goes.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// Into the TUN.
    Device,
    /// To a peer: the place it had, and what its inner packets are fragmented to.
    Peer(Arc<Peer>, PeerIndex, Option<Mtu>),
}

/// A packet that waits.
#[derive(Debug)]
struct Late {
    leaves: Instant,
    /// Those that leave at the same time keep their order.
    number: u64,
    target: Target,
    vnet: VnetHeader,
    bytes: Vec<u8>,
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Late {}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Late {
    /// The first to leave is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.leaves, other.number).cmp(&(self.leaves, self.number))
    }
}

/// All packets of a worker that wait.
#[derive(Debug, Default)]
pub(super) struct Lates {
    waiting: BinaryHeap<Late>,
    spare: [Vec<Vec<u8>>; 2],
    used: usize,
    number: u64,
}

impl Lates {
    /// When the next one leaves.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.peek().map(|late| late.leaves)
    }

    /// Keeps a packet; whether there was room.
    fn keep(&mut self, leaves: Instant, target: Target, vnet: VnetHeader, parts: &[IoSlice<'_>]) -> bool {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let Some(class) = SIZES.iter().position(|size| length <= *size) else { return false };
        if self.used + SIZES[class] > MOST {
            return false;
        }
        self.used += SIZES[class];
        let mut bytes = self.spare[class].pop().unwrap_or_else(|| Vec::with_capacity(SIZES[class]));
        bytes.clear();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        self.number += 1;
        self.waiting.push(Late { leaves, number: self.number, target, vnet, bytes });
        true
    }

    fn due(&mut self, now: Instant) -> Option<Late> {
        if self.next()? > now { None } else { self.waiting.pop() }
    }

    fn give_back(&mut self, bytes: Vec<u8>) {
        let class = usize::from(bytes.capacity() > SIZES[0]);
        self.used -= SIZES[class];
        if self.spare[class].len() < SPARE[class] {
            self.spare[class].push(bytes);
        }
    }
}

impl Worker {
    /// Keeps a packet that was decided last until the limit on its rate lets it go; false when it may go now. A packet
    /// that there is no room for is dropped and counted.
    pub(super) fn put_off(
        &mut self,
        snapshot: &Snapshot,
        verdict: Verdict,
        (vnet, parts): (VnetHeader, &[IoSlice<'_>]),
        segments: u32,
        now: Instant,
    ) -> bool {
        let delay = self.engine.delay();
        if delay.is_zero() {
            return false;
        }
        let peer = |index, mtu| snapshot.peer(index).map(|path| Target::Peer(Arc::clone(&path.peer), index, mtu));
        let target = match verdict {
            Verdict::Deliver => Some(Target::Device),
            Verdict::Forward(index) => peer(index, None),
            Verdict::ForwardFragmented(index, mtu) => peer(index, Some(mtu)),
            Verdict::Held | Verdict::Wait(_) | Verdict::Drop(_) | Verdict::DropWithReply(_) => return false,
        };
        if let Some(target) = target
            && !self.lates.keep(now + delay, target, vnet, parts)
        {
            self.engine.count_no_room(segments);
        }
        true
    }

    /// Sends the packets whose turn has come; how many.
    pub(super) fn send_late(&mut self, snapshot: &Snapshot, now: Instant) -> usize {
        let (mut held, mut count) = (None, 0);
        while count < TURN
            && let Some(Late { target, vnet, bytes, .. }) = self.lates.due(now)
        {
            count += 1;
            match target {
                Target::Device => self.deliver_late(&vnet, &bytes),
                Target::Peer(peer, index, mtu) => {
                    let verdict =
                        |index| mtu.map_or(Verdict::Forward(index), |mtu| Verdict::ForwardFragmented(index, mtu));
                    // Peers may have moved in the snapshot since, and one that is gone gets nothing.
                    let place = place_of(snapshot, &peer, index);
                    if let (Some(index), Ok(headers)) = (place, Headers::parse(&bytes)) {
                        let segments = Segments::new(&bytes, &headers, &vnet).map_or(1, |segments| segments.count());
                        let packet = (&bytes[..], &headers, &vnet, segments as u32);
                        self.carry(snapshot, &mut held, packet, verdict(index), now);
                    }
                }
            }
            self.lates.give_back(bytes);
        }
        count
    }

    fn deliver_late(&mut self, vnet: &VnetHeader, bytes: &[u8]) {
        let takes_joined = self.queue.as_ref().is_some_and(|queue| queue.joining() != Joining::Off);
        if vnet.gso == GsoKind::None || takes_joined {
            self.write_device(vnet, &[IoSlice::new(bytes)]);
        } else {
            self.write_cut(vnet, bytes);
        }
    }
}

fn place_of(snapshot: &Snapshot, peer: &Arc<Peer>, index: PeerIndex) -> Option<PeerIndex> {
    let is_same = |path: &crate::snapshot::PathPeer| Arc::ptr_eq(&path.peer, peer);
    if snapshot.peer(index).is_some_and(is_same) {
        return Some(index);
    }
    let place = snapshot.peers.iter().position(is_same)?;
    Some(PeerIndex(place as _))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn keep(lates: &mut Lates, leaves: Instant, bytes: &[u8]) -> bool {
        lates.keep(leaves, Target::Device, VnetHeader::default(), &[IoSlice::new(bytes)])
    }

    #[test]
    fn packets_leave_in_time_and_in_order() {
        let (mut lates, now) = (Lates::default(), Instant::now());
        let ms = Duration::from_millis;
        for (leaves, byte) in [(20, 1), (10, 2), (10, 3), (30, 4)] {
            assert!(keep(&mut lates, now + ms(leaves), &[byte]));
        }
        assert_eq!(lates.next(), Some(now + ms(10)));
        assert!(lates.due(now + ms(9)).is_none());
        let order: Vec<u8> = std::iter::from_fn(|| lates.due(now + ms(20)).map(|late| late.bytes[0])).collect();
        assert_eq!(order, [2, 3, 1]);
        assert_eq!(lates.next(), Some(now + ms(30)));
    }

    #[test]
    fn room_is_bounded_and_free_again_afterwards() {
        let (mut lates, now) = (Lates::default(), Instant::now());
        let packet = vec![7; MAX_PACKET];
        let kept = (0..1000).filter(|_| keep(&mut lates, now, &packet)).count();
        assert_eq!(kept, MOST / SIZES[1]);
        assert!(keep(&mut lates, now, &[1; 1400]) || lates.used + SIZES[0] > MOST);
        while let Some(late) = lates.due(now) {
            lates.give_back(late.bytes);
        }
        assert_eq!(lates.used, 0);
        assert!(keep(&mut lates, now, &packet));
        assert!(!keep(&mut lates, now, &vec![0; MAX_PACKET + 2]), "larger than any packet");
    }
}

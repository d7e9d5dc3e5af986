//! Packets that wait for the labels of an address: kept, asked for, and decided again when the tables have moved.

use std::io::IoSlice;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use overlay_dataplane::{DropReason, Notes, Origin, Verdict};
use overlay_wire::PeerIndex;
use overlay_wire::offload::coalesce::{Entry, Joining};
use overlay_wire::offload::{GsoKind, VnetHeader};
use overlay_wire::packet::Headers;

use super::Worker;
use super::transmit::{Outgoing, hold};
use super::{inner_mtu, release};
use crate::capture::Seen;
use crate::shared::WorkerEvent;
use crate::snapshot::Snapshot;

/// A packet or super-packet that waits.
#[derive(Debug)]
pub(super) struct Kept {
    origin: Origin,
    vnet: VnetHeader,
    segments: u32,
    packet: Vec<u8>,
}

impl Worker {
    /// Keeps a packet read from the TUN.
    #[cold]
    pub(super) fn keep_outbound(
        &mut self,
        snapshot: &Snapshot,
        address: IpAddr,
        packet: &[u8],
        vnet: VnetHeader,
        segments: u32,
        now: Instant,
    ) {
        if !self.waiting.has_room(address, packet.len(), now) {
            return self.deny(snapshot, Origin::Tun, segments, packet);
        }
        // The checksum of a single packet is complete by now.
        let vnet = if vnet.gso == GsoKind::None { VnetHeader::default() } else { vnet };
        self.keep(snapshot, address, Kept { origin: Origin::Tun, vnet, segments, packet: packet.to_vec() }, now);
    }

    /// Keeps a packet or super-packet from a peer.
    #[cold]
    pub(super) fn keep_inbound(
        &mut self,
        snapshot: &Snapshot,
        address: IpAddr,
        entry: &Entry,
        arena: &mut [u8],
        now: Instant,
    ) {
        let length = entry.headers.total_len.into();
        if !self.waiting.has_room(address, length, now) && !self.shared.captures.is_active() {
            // Nobody looks at it, so it need not be put together.
            return self.engine.give_up(entry.segments);
        }
        let vnet = entry.finish(arena);
        let mut packet = arena[entry.first()].to_vec();
        for (at, len) in entry.payloads() {
            packet.extend_from_slice(&arena[*at..at + len]);
        }
        let origin = Origin::Peer(PeerIndex(entry.tag));
        self.keep(snapshot, address, Kept { origin, vnet, segments: entry.segments, packet }, now);
    }

    fn keep(&mut self, snapshot: &Snapshot, address: IpAddr, kept: Kept, now: Instant) {
        let bytes = kept.packet.len();
        if let Err(kept) = self.waiting.keep(address, kept, bytes, now) {
            self.deny(snapshot, kept.origin, kept.segments, &kept.packet);
        }
        self.shared.waits_for_labels.store(true, Ordering::Relaxed);
        self.ask_for_labels(now);
    }

    fn ask_for_labels(&mut self, now: Instant) {
        let questions = self.waiting.questions(now);
        if !questions.is_empty() {
            // Asked again in a second if there is no room.
            let _ = self.shared.events.try_send(WorkerEvent::LabelsWanted(questions));
        }
    }

    /// Counts a packet that waited in vain.
    fn deny(&mut self, snapshot: &Snapshot, origin: Origin, segments: u32, packet: &[u8]) {
        self.engine.give_up(segments);
        if self.shared.captures.is_active() {
            let headers = Headers::parse(packet).ok();
            self.shared.captures.see(&Seen {
                origin,
                verdict: Verdict::Drop(DropReason::IdentityUnknown),
                notes: &Notes::default(),
                revision: snapshot.tables.revision,
                headers: headers.as_ref(),
                parts: &[packet],
            });
        }
    }

    /// Decides again about packets that wait when the tables have moved, and denies those whose time is over.
    #[cold]
    pub(super) fn look_at_waiting(&mut self, snapshot: &Snapshot, now: Instant) {
        if self.waiting_revision != snapshot.tables.revision {
            self.waiting_revision = snapshot.tables.revision;
            let mut held = None;
            for kept in self.waiting.take() {
                match kept.origin {
                    Origin::Tun => {
                        let Kept { vnet, mut packet, .. } = kept;
                        self.outbound(snapshot, &mut held, &mut packet, vnet, now);
                        release(&mut held);
                    }
                    Origin::Peer(peer) => self.deliver_kept(snapshot, peer, kept, now),
                }
            }
            self.waiting.settle(now);
            self.blocked |= self.transmitter.flush();
        }
        for kept in self.waiting.expire(now) {
            self.deny(snapshot, kept.origin, kept.segments, &kept.packet);
        }
        self.ask_for_labels(now);
        self.shared.waits_for_labels.store(!self.waiting.is_empty(), Ordering::Relaxed);
    }

    /// Decides again about a packet from a peer.
    fn deliver_kept(&mut self, snapshot: &Snapshot, peer: PeerIndex, mut kept: Kept, now: Instant) {
        let Ok(headers) = Headers::parse(&kept.packet) else { return };
        let segments = kept.segments;
        let verdict = if self.shared.captures.is_active() {
            self.decide_kept(snapshot, &headers, &mut kept, now)
        } else {
            self.engine.inbound(&snapshot.tables, peer, &headers, &mut kept.packet, segments, now, &mut self.reply)
        };
        match verdict {
            Verdict::Deliver => {
                if self.put_off(snapshot, verdict, (kept.vnet, &[IoSlice::new(&kept.packet)]), segments, now) {
                    return;
                }
                let joining = self.queue.as_ref().map_or(Joining::Off, |queue| queue.joining());
                if kept.vnet.gso != GsoKind::None && joining == Joining::Off {
                    self.write_cut(&kept.vnet, &kept.packet);
                } else {
                    self.write_device(&kept.vnet, &[IoSlice::new(&kept.packet)]);
                }
            }
            Verdict::DropWithReply(_) => {
                let reply = std::mem::take(&mut self.reply);
                let mut held = None;
                if let Some(held) = hold(&mut held, snapshot, peer) {
                    let mtu = inner_mtu(snapshot, peer);
                    self.transmitter.send_to(held, &Outgoing::Packet(reply.packet()), 0, mtu, now);
                }
                self.reply = reply;
            }
            Verdict::Wait(address) => self.keep(snapshot, address, kept, now),
            Verdict::Forward(_) | Verdict::ForwardFragmented(..) | Verdict::Held | Verdict::Drop(_) => {}
        }
    }

    fn decide_kept(&mut self, snapshot: &Snapshot, headers: &Headers, kept: &mut Kept, now: Instant) -> Verdict {
        let (tables, origin) = (&snapshot.tables, kept.origin);
        let question = overlay_dataplane::Question { origin, headers, segment_len: 0, segments: kept.segments };
        let (verdict, notes) = self.engine.explained(tables, &question, &mut kept.packet, now, &mut self.reply);
        self.shared.captures.see(&Seen {
            origin,
            verdict,
            notes: &notes,
            revision: tables.revision,
            headers: Some(headers),
            parts: &[&kept.packet],
        });
        verdict
    }

    /// Tells which containers began flows to peers, where the policy speaks of labels.
    pub(super) fn tell_introductions(&mut self) {
        let pairs = self.engine.take_introductions();
        if !pairs.is_empty() {
            let _ = self.shared.events.try_send(WorkerEvent::FlowsBegan(pairs));
        }
    }
}

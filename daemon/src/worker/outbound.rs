//! From the TUN to the peers: read, parse once, decide once, cut, encapsulate.

use std::io::{self, IoSlice};
use std::time::Instant;

use overlay_dataplane::{Notes, Origin, Question, Released, Verdict};
use overlay_wire::PeerIndex;
use overlay_wire::fragment;
use overlay_wire::offload::{GsoKind, Segments, VnetHeader, complete_checksum};
use overlay_wire::packet::{Headers, Transport};

use super::transmit::{Held, Outgoing, hold};
use super::{MAX_PACKET, READS, Worker, inner_mtu, release};
use crate::capture::Seen;
use crate::counters::PathDrop;
use crate::device;
use crate::shared::WorkerEvent;
use crate::snapshot::Snapshot;

impl Worker {
    /// Reads and sends at most a batch; how many packets or super-packets were read.
    pub(super) fn read_device(&mut self, snapshot: &Snapshot, now: Instant) -> usize {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut held = None;
        let mut count = 0;
        while count < READS {
            let Some(queue) = &self.queue else { break };
            match queue.read(&mut buffer[..MAX_PACKET]) {
                Ok((vnet, len)) => {
                    count += 1;
                    self.outbound(snapshot, &mut held, &mut buffer[..len], vnet, now);
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    count += 1;
                    self.shared.counters.add(PathDrop::Offload, 1);
                }
                Err(error) => {
                    if device::vanished(&error) {
                        self.device_lost();
                    }
                    break;
                }
            }
        }
        release(&mut held);
        self.read_buffer = buffer;
        count
    }

    /// Treats a packet of our own as if it had been read.
    pub(super) fn inject(&mut self, snapshot: &Snapshot, packet: &mut [u8], now: Instant) {
        let mut held = None;
        self.outbound(snapshot, &mut held, packet, VnetHeader::default(), now);
    }

    pub(super) fn outbound<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        held: &mut Option<Held<'s>>,
        packet: &mut [u8],
        vnet: VnetHeader,
        now: Instant,
    ) {
        let headers = match Headers::parse(packet) {
            Ok(headers) => headers,
            Err(error) => {
                let verdict = self.engine.malformed(&error);
                if self.shared.captures.is_active() {
                    let (notes, revision) = (&Notes::default(), snapshot.tables.revision);
                    let seen = Seen { origin: Origin::Tun, verdict, notes, revision, headers: None, parts: &[packet] };
                    self.shared.captures.see(&seen);
                }
                return;
            }
        };
        if self.is_own_datagram(snapshot, &headers) {
            self.shared.counters.add(PathDrop::Loop, 1);
            let _ = self.shared.events.try_send(WorkerEvent::Loop);
            return;
        }
        let (segment_len, segments) = if vnet.gso == GsoKind::None {
            if vnet.needs_checksum && complete_checksum(packet, &vnet).is_err() {
                self.shared.counters.add(PathDrop::Offload, 1);
                return;
            }
            (usize::from(headers.total_len), 1)
        } else {
            match Segments::new(packet, &headers, &vnet) {
                Ok(segments) => (segments.segment_len(), segments.count() as u32),
                Err(_) => {
                    self.shared.counters.add(PathDrop::Offload, 1);
                    return;
                }
            }
        };
        let verdict = if self.shared.captures.is_active() {
            let question = Question { origin: Origin::Tun, headers: &headers, segment_len, segments };
            self.decide_captured(snapshot, &question, packet, now)
        } else {
            self.engine.outbound(&snapshot.tables, &headers, packet, segment_len, segments, now, &mut self.reply)
        };
        let whole = &packet[..usize::from(headers.total_len)];
        // What goes back to the kernel goes as it came, its checksum completed above if single.
        let offload = if vnet.gso == GsoKind::None { VnetHeader::default() } else { vnet };
        if !self.put_off(snapshot, verdict, (offload, &[IoSlice::new(whole)]), segments, now) {
            self.carry(snapshot, held, (whole, &headers, &offload, segments), verdict, now);
        }
        if headers.fragment.is_some() {
            release(held);
            self.release_fragments(snapshot, now);
        }
    }

    /// Does what a verdict says with a packet or super-packet from the TUN.
    pub(super) fn carry<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        held: &mut Option<Held<'s>>,
        (packet, headers, vnet, segments): (&[u8], &Headers, &VnetHeader, u32),
        verdict: Verdict,
        now: Instant,
    ) {
        match verdict {
            Verdict::Forward(peer) => {
                let Some(held) = hold(held, snapshot, peer) else { return };
                let mtu = inner_mtu(snapshot, peer);
                let outgoing = match (vnet.gso, Segments::new(packet, headers, vnet)) {
                    (GsoKind::None, _) | (_, Err(_)) => Outgoing::Packet(packet),
                    (_, Ok(segments)) => Outgoing::Segments(segments),
                };
                self.transmitter.send_to(held, &outgoing, headers.tos, mtu, now);
            }
            Verdict::ForwardFragmented(peer, mtu) => {
                if segments > 1 {
                    self.forward_segments_fragmented(snapshot, held, packet, headers, vnet, (peer, mtu), now);
                } else {
                    self.forward_fragmented(snapshot, held, packet, headers, (peer, mtu), now);
                }
            }
            // Same host, or to the outside: back to the kernel.
            Verdict::Deliver => self.write_device(vnet, &[IoSlice::new(packet)]),
            Verdict::DropWithReply(_) => {
                let reply = std::mem::take(&mut self.reply);
                self.write_device(&VnetHeader::default(), &[IoSlice::new(reply.packet())]);
                self.reply = reply;
            }
            Verdict::Wait(address) => self.keep_outbound(snapshot, address, packet, *vnet, segments, now),
            Verdict::Drop(_) | Verdict::Held => {}
        }
    }

    /// Decides a packet while somebody captures.
    #[cold]
    fn decide_captured(
        &mut self,
        snapshot: &Snapshot,
        question: &Question<'_>,
        packet: &mut [u8],
        now: Instant,
    ) -> Verdict {
        let tables = &snapshot.tables;
        let (verdict, notes) = self.engine.explained(tables, question, packet, now, &mut self.reply);
        self.shared.captures.see(&Seen {
            origin: question.origin,
            verdict,
            notes: &notes,
            revision: tables.revision,
            headers: Some(question.headers),
            parts: &[packet],
        });
        verdict
    }

    /// Whether the packet is a datagram of our own underlay socket: sent from our port with our overlay address, as the
    /// kernel does when the rule that keeps marked sockets out of the overlay is gone.
    fn is_own_datagram(&self, snapshot: &Snapshot, headers: &Headers) -> bool {
        matches!(headers.transport, Transport::Udp(udp) if udp.src_port == self.listen_port)
            && snapshot.tables.local.host.contains(&headers.src)
    }

    fn forward_fragmented<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        held: &mut Option<Held<'s>>,
        packet: &[u8],
        headers: &Headers,
        (peer, mtu): (PeerIndex, overlay_wire::Mtu),
        now: Instant,
    ) {
        let Some(held) = hold(held, snapshot, peer) else { return };
        let mut buffer = std::mem::take(&mut self.fragment_buffer);
        let transmitter = &mut self.transmitter;
        let split = fragment::split(packet, headers, mtu, &mut buffer, |piece| {
            transmitter.send_to(held, &Outgoing::Packet(piece), headers.tos, usize::from(mtu.get()), now);
        });
        if split.is_err() {
            self.shared.counters.add(PathDrop::Offload, 1);
        }
        self.fragment_buffer = buffer;
    }

    /// A super-packet whose segments are larger than the peer takes and may be fragmented: cut, then fragment each.
    #[expect(clippy::too_many_arguments, reason = "one call site, all of them borrowed from it")]
    fn forward_segments_fragmented<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        held: &mut Option<Held<'s>>,
        packet: &[u8],
        headers: &Headers,
        vnet: &VnetHeader,
        target: (PeerIndex, overlay_wire::Mtu),
        now: Instant,
    ) {
        let Ok(segments) = Segments::new(packet, headers, vnet) else { return };
        let mut piece = vec![0; segments.segment_len()];
        for i in 0..segments.count() {
            let len = segments.emit(i, &mut piece);
            if let Ok(headers) = Headers::parse(&piece[..len]) {
                self.forward_fragmented(snapshot, held, &piece[..len], &headers, target, now);
            }
        }
    }

    /// Sends fragments that the engine held until their first one passed.
    pub(super) fn release_fragments(&mut self, snapshot: &Snapshot, now: Instant) {
        let mut released: Vec<Released> = Vec::new();
        self.engine.take_released(&snapshot.tables, now, &mut released);
        let mut held = None;
        for fragment in released {
            let Ok(headers) = Headers::parse(&fragment.packet) else { continue };
            match fragment.verdict {
                Verdict::Forward(peer) => {
                    if let Some(held) = hold(&mut held, snapshot, peer) {
                        let mtu = inner_mtu(snapshot, peer);
                        self.transmitter.send_to(held, &Outgoing::Packet(&fragment.packet), headers.tos, mtu, now);
                    }
                }
                Verdict::ForwardFragmented(peer, mtu) => {
                    self.forward_fragmented(snapshot, &mut held, &fragment.packet, &headers, (peer, mtu), now);
                }
                Verdict::Deliver => {
                    self.write_device(&VnetHeader::default(), &[IoSlice::new(&fragment.packet)]);
                }
                Verdict::Held | Verdict::Wait(_) | Verdict::Drop(_) | Verdict::DropWithReply(_) => {}
            }
        }
    }

    /// Writes one packet or super-packet to the device; drops and counts when it is down or gone.
    pub(super) fn write_device(&mut self, header: &VnetHeader, packet: &[IoSlice<'_>]) {
        /// The device header, the first packet, and the further payloads of 64 segments.
        const PARTS: usize = 66;
        let Some(queue) = &self.queue else {
            self.shared.counters.add(PathDrop::Device, 1);
            return;
        };
        let bytes = header.emit();
        let mut parts = [IoSlice::new(&[]); PARTS];
        parts[0] = IoSlice::new(&bytes);
        let count = packet.len().min(PARTS - 1);
        parts[1..=count].copy_from_slice(&packet[..count]);
        if let Err(error) = queue.write(&parts[..=count]) {
            self.shared.counters.add(PathDrop::Device, 1);
            if device::vanished(&error) {
                self.device_lost();
            }
        }
    }
}

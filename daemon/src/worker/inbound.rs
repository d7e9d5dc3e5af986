//! From the peers to the TUN: receive, open or strip, join, decide once per super-packet, write.

use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use overlay_dataplane::{Origin, Question, Verdict};
use overlay_wire::checksum;
use overlay_wire::gre::{GreHeader, ReceiveSequence};
use overlay_wire::ipip::{self, Outer};
use overlay_wire::offload::coalesce::{Coalescer, Entry, Joining, Trust};
use overlay_wire::offload::{GsoKind, Segments, VnetHeader};
use overlay_wire::packet::Headers;
use overlay_wire::{Encapsulation, PeerIndex, ecn};

use super::transmit::{Held, Outgoing, hold};
use super::{ReceiveSockets, Worker, inner_mtu, release};
use crate::capture::Seen;
use crate::counters::PathDrop;
use crate::peers::Peer;
use crate::probe;
use crate::shared::{Datagram, HandshakeMessage, SharedRef};
use crate::snapshot::{GreOptions, Snapshot};
use crate::underlay::{Family, RawProtocol, ReceiveBatch, Received};
use crate::wireguard::{OpenError, message_kind, receiver_index};

/// Messages received with one call from the UDP socket; each may hold 64 datagrams.
const UDP_MESSAGES: usize = 16;
/// Messages received with one call from a raw socket.
const RAW_MESSAGES: usize = 64;
/// Largest UDP message.
const UDP_BUFFER: usize = 65_535;
/// Room for the inner packets of one batch.
const ARENA: usize = (RAW_MESSAGES + 1) * RAW_BUFFER;
/// Largest message of a raw socket: the kernel's receive offload joins the TCP segments inside IPIP and GRE packets.
const RAW_BUFFER: usize = 65_535;

/// The receiving half of a worker.
pub(super) struct Inbound {
    shared: SharedRef,
    udp: Vec<Arc<OwnedFd>>,
    raw: Vec<(Arc<OwnedFd>, Family, RawProtocol)>,
    udp_batch: ReceiveBatch,
    raw_batch: ReceiveBatch,
    mtu: usize,
    arena: Box<[u8]>,
    used: usize,
    coalescer: Coalescer,
}

impl Inbound {
    pub(super) fn new(shared: SharedRef, sockets: ReceiveSockets, mtu: usize) -> Self {
        Self {
            shared,
            udp: sockets.udp,
            raw: sockets.raw,
            udp_batch: ReceiveBatch::new(UDP_MESSAGES, UDP_BUFFER),
            raw_batch: ReceiveBatch::new(RAW_MESSAGES, RAW_BUFFER),
            mtu,
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            coalescer: Coalescer::new(),
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        let raw = self.raw.iter().map(|(fd, ..)| fd.as_raw_fd());
        self.udp.iter().map(|fd| fd.as_raw_fd()).chain(raw)
    }

    fn clear(&mut self) {
        self.used = 0;
        self.coalescer.clear();
    }

    /// Takes every datagram of a UDP message.
    fn take_udp<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        held: &mut Option<Held<'s>>,
        message: &Received<'_>,
        joining: Joining,
        now: Instant,
    ) {
        if message.truncated {
            self.shared.counters.add(PathDrop::Truncated, 1);
            return;
        }
        for datagram in message.bytes.chunks(message.segment) {
            match message_kind(datagram) {
                Some(4) => self.take_data(snapshot, held, datagram, message, joining, now),
                Some(_) => {
                    let message = HandshakeMessage::Received(copy(datagram, message));
                    if self.shared.handshakes.try_send(message).is_err() {
                        self.shared.counters.add(PathDrop::HandshakeQueue, 1);
                    }
                }
                None if datagram.first().is_some_and(|kind| *kind > 4) => {
                    if self.shared.gossip.try_send(copy(datagram, message)).is_err() {
                        self.shared.counters.add(PathDrop::GossipQueue, 1);
                    }
                }
                None => self.shared.counters.add(PathDrop::Malformed, 1),
            }
        }
    }

    fn take_data<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        held: &mut Option<Held<'s>>,
        datagram: &[u8],
        message: &Received<'_>,
        joining: Joining,
        now: Instant,
    ) {
        let peer = receiver_index(datagram).and_then(|index| snapshot.by_receiver.get(&(index >> 8)).copied());
        let Some(held) = peer.and_then(|peer| hold(held, snapshot, peer)) else {
            self.shared.counters.add(PathDrop::UnknownSession, 1);
            return;
        };
        let index = held.index;
        let Some(tunnel) = held.state.tunnel.as_mut() else {
            self.shared.counters.add(PathDrop::UnknownSession, 1);
            return;
        };
        let start = self.used;
        let opened = match tunnel.open(datagram, &mut self.arena[start..]) {
            Ok(opened) => opened,
            Err(error) => {
                let reason = match error {
                    OpenError::NoSession => PathDrop::UnknownSession,
                    OpenError::Authentication => PathDrop::Authentication,
                    OpenError::Replay | OpenError::CounterLimit => PathDrop::Replay,
                    OpenError::Malformed | OpenError::OutputTooShort => PathDrop::Malformed,
                };
                self.shared.counters.add(reason, 1);
                return;
            }
        };
        // A responder's first session becomes usable with the first packet opened.
        held.usable = true;
        if opened.newest {
            Peer::learn_path(&mut held.state, message.from, message.local);
        }
        held.path.peer.counters.received(1, opened.len as u64, self.shared.millis(now));
        if opened.len > 0 {
            self.take_inner(start, opened.len, index, message.tos, joining, Trust::Authenticated);
        }
    }

    /// Parses an inner packet that lies in the arena at `start` and adds it to the batch.
    fn take_inner(&mut self, start: usize, len: usize, peer: PeerIndex, outer_tos: u8, joining: Joining, trust: Trust) {
        let packet = &mut self.arena[start..start + len];
        let Ok(mut headers) = Headers::parse(packet) else {
            self.shared.counters.add(PathDrop::Inner, 1);
            return;
        };
        // Only the ECN bits of the outer header count, and only when set (RFC 6040, section 4.2).
        if outer_tos & 3 != 0 && ecn::decapsulate_packet(outer_tos, packet, &mut headers).is_err() {
            self.shared.counters.add(PathDrop::Congestion, 1);
            return;
        }
        self.used = start + usize::from(headers.total_len);
        if trust == Trust::Unverified && joined_by_kernel(packet, &headers) {
            if usize::from(headers.total_len) > self.mtu {
                let segment = self.mtu.saturating_sub(headers.payload_offset());
                self.coalescer.push_joined(start, &headers, peer.0, segment);
                return;
            }
            // Short segments that fit one packet; the sum over the whole is right by chance or has to be written.
            checksum::fill_transport(packet, &headers);
        }
        self.coalescer.push(&self.arena, start, &headers, peer.0, joining, trust);
    }

    /// Takes one message of a raw socket.
    fn take_raw<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        held: &mut Option<Held<'s>>,
        message: &Received<'_>,
        (family, protocol): (Family, RawProtocol),
        joining: Joining,
        now: Instant,
    ) {
        if message.truncated {
            self.shared.counters.add(PathDrop::Truncated, 1);
            return;
        }
        // Before any look inside: is the sender a validated peer? (An IPv6 raw socket delivers the payload alone.)
        let source: IpAddr = message.from.ip();
        let kind = if protocol == RawProtocol::Gre { Encapsulation::Gre } else { Encapsulation::Ipip };
        let Some(index) = snapshot.by_source.get(&(source, kind)).copied() else {
            self.shared.counters.add(PathDrop::UnknownSource, 1);
            return;
        };
        let (payload, tos) = match family {
            Family::V4 => match Outer::parse_ipv4(message.bytes) {
                Ok((outer, payload)) => (payload, outer.tos),
                Err(_) => {
                    self.shared.counters.add(PathDrop::Inner, 1);
                    return;
                }
            },
            Family::V6 => (message.bytes, message.tos),
        };
        let Some(held) = hold(held, snapshot, index) else { return };
        if held.path.accepts_plain != Some(kind) {
            self.shared.counters.add(PathDrop::WrongEncapsulation, 1);
            return;
        }
        let inner = match protocol {
            RawProtocol::Gre => match strip_gre(payload, &held.path.gre, &mut held.state.gre_received) {
                Ok(inner) => inner,
                Err(reason) => {
                    self.shared.counters.add(reason, 1);
                    return;
                }
            },
            RawProtocol::Ipv4 | RawProtocol::Ipv6 => {
                if ipip::check_inner(protocol.number(), payload).is_err() {
                    self.shared.counters.add(PathDrop::Inner, 1);
                    return;
                }
                payload
            }
        };
        let start = self.used;
        let Some(room) = self.arena.get_mut(start..start + inner.len()) else {
            self.shared.counters.add(PathDrop::Truncated, 1);
            return;
        };
        room.copy_from_slice(inner);
        let len = inner.len();
        held.path.peer.counters.received(1, len as u64, self.shared.millis(now));
        self.take_inner(start, len, index, tos, joining, Trust::Unverified);
    }
}

/// Whether the kernel's receive offload joined this TCP packet from several: it then leaves the pseudo-header sum in the
/// checksum field, having verified each (`tcp4_gro_complete`).
fn joined_by_kernel(packet: &[u8], headers: &Headers) -> bool {
    let at = usize::from(headers.l4_offset) + 16;
    let length = headers.total_len - headers.l4_offset;
    let pseudo = checksum::pseudo_header(headers.src, headers.dst, headers.protocol, length);
    headers.tcp().is_some() && packet.get(at..at + 2) == Some(&pseudo.to_be_bytes()[..])
}

/// The parts of a packet or super-packet that lie in the arena.
fn gather<'p, 'a>(
    parts: &'p mut [IoSlice<'a>; 65],
    arena: &'a [u8],
    first: std::ops::Range<usize>,
    payloads: &[(usize, usize)],
) -> &'p [IoSlice<'a>] {
    parts[0] = IoSlice::new(&arena[first]);
    for (part, (at, len)) in parts[1..].iter_mut().zip(payloads) {
        *part = IoSlice::new(&arena[*at..at + len]);
    }
    &parts[..=payloads.len()]
}

fn copy(datagram: &[u8], message: &Received<'_>) -> Datagram {
    Datagram { from: message.from, local: message.local, bytes: datagram.into() }
}

/// Checks and removes a GRE header.
fn strip_gre<'a>(packet: &'a [u8], options: &GreOptions, received: &mut ReceiveSequence) -> Result<&'a [u8], PathDrop> {
    let (header, inner) = GreHeader::parse(packet).map_err(|_| PathDrop::GreHeader)?;
    let key_fits = header.key == options.key || (options.previous_key.is_some() && header.key == options.previous_key);
    if !key_fits {
        return Err(PathDrop::GreKey);
    }
    if header.checksum != options.checksum || header.check_payload(inner).is_err() {
        return Err(PathDrop::GreHeader);
    }
    // As Linux receives: a missing or older number is refused, a surplus one ignored.
    if options.sequence {
        let sequence = header.sequence.ok_or(PathDrop::GreHeader)?;
        if !received.accept(sequence) {
            return Err(PathDrop::GreHeader);
        }
    }
    Ok(inner)
}

impl Worker {
    /// Receives and delivers at most a batch per socket; how many messages came.
    pub(super) fn receive(&mut self, snapshot: &Snapshot, now: Instant) -> usize {
        let joining = self.queue.as_ref().map_or(Joining::Off, |queue| queue.joining());
        let mut total = 0;
        for i in 0..self.inbound.udp.len() {
            let fd = self.inbound.udp[i].as_raw_fd();
            let mut batch = std::mem::replace(&mut self.inbound.udp_batch, ReceiveBatch::new(0, 0));
            let count = batch.receive(fd).unwrap_or(0);
            if count > 0 {
                let mut held = None;
                for message in (0..count).filter_map(|i| batch.message(i)) {
                    self.inbound.take_udp(snapshot, &mut held, &message, joining, now);
                }
                release(&mut held);
                self.deliver_batch(snapshot, joining, now);
                total += count;
            }
            self.inbound.udp_batch = batch;
        }
        for i in 0..self.inbound.raw.len() {
            let (fd, family, protocol) =
                (self.inbound.raw[i].0.as_raw_fd(), self.inbound.raw[i].1, self.inbound.raw[i].2);
            let mut batch = std::mem::replace(&mut self.inbound.raw_batch, ReceiveBatch::new(0, 0));
            let count = batch.receive(fd).unwrap_or(0);
            if count > 0 {
                let mut held = None;
                for message in (0..count).filter_map(|i| batch.message(i)) {
                    self.inbound.take_raw(snapshot, &mut held, &message, (family, protocol), joining, now);
                }
                release(&mut held);
                self.deliver_batch(snapshot, joining, now);
                total += count;
            }
            self.inbound.raw_batch = batch;
        }
        total
    }

    /// Decides and writes the packets and super-packets of a batch.
    fn deliver_batch(&mut self, snapshot: &Snapshot, joining: Joining, now: Instant) {
        let mut arena = std::mem::take(&mut self.inbound.arena);
        let coalescer = std::mem::take(&mut self.inbound.coalescer);
        for entry in coalescer.entries() {
            let peer = PeerIndex(entry.tag);
            let headers = &entry.headers;
            let packet = &mut arena[entry.first()];
            let verdict = if self.shared.captures.is_active() {
                self.decide_joined(snapshot, entry, &mut arena, now)
            } else {
                self.engine.inbound(&snapshot.tables, peer, headers, packet, entry.segments, now, &mut self.reply)
            };
            match verdict {
                Verdict::Deliver => {
                    if self.consume_probe(snapshot, peer, headers, &arena[entry.first()], now) {
                        continue;
                    }
                    let header = entry.finish(&mut arena);
                    if !self.engine.delay().is_zero() {
                        let mut parts = [IoSlice::new(&[]); 65];
                        let parts = gather(&mut parts, &arena, entry.first(), entry.payloads());
                        self.put_off(snapshot, Verdict::Deliver, (header, parts), entry.segments, now);
                    } else if header.gso != GsoKind::None && joining == Joining::Off {
                        self.write_cut(&header, &arena[entry.first()]);
                    } else {
                        self.write_entry(&header, &arena, entry.first(), entry.payloads());
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
                Verdict::Wait(address) => self.keep_inbound(snapshot, address, entry, &mut arena, now),
                Verdict::Forward(_) | Verdict::ForwardFragmented(..) | Verdict::Held | Verdict::Drop(_) => {}
            }
            if headers.fragment.is_some() {
                self.release_fragments(snapshot, now);
            }
        }
        self.inbound.arena = arena;
        self.inbound.coalescer = coalescer;
        self.inbound.clear();
    }

    /// Decides a packet or super-packet while somebody captures.
    #[cold]
    fn decide_joined(&mut self, snapshot: &Snapshot, entry: &Entry, arena: &mut [u8], now: Instant) -> Verdict {
        let (tables, origin) = (&snapshot.tables, Origin::Peer(PeerIndex(entry.tag)));
        let question = Question { origin, headers: &entry.headers, segment_len: 0, segments: entry.segments };
        let (verdict, notes) =
            self.engine.explained(tables, &question, &mut arena[entry.first()], now, &mut self.reply);
        // Shown as the one packet that it is now.
        entry.finish(arena);
        let mut parts = [&[][..]; 65];
        parts[0] = &arena[entry.first()];
        let payloads = entry.payloads();
        for (part, (at, len)) in parts[1..].iter_mut().zip(payloads) {
            *part = &arena[*at..at + len];
        }
        let count = payloads.len().min(parts.len() - 1);
        self.shared.captures.see(&Seen {
            origin,
            verdict,
            notes: &notes,
            revision: tables.revision,
            headers: Some(&entry.headers),
            parts: &parts[..=count],
        });
        verdict
    }

    fn write_entry(
        &mut self,
        header: &VnetHeader,
        arena: &[u8],
        first: std::ops::Range<usize>,
        payloads: &[(usize, usize)],
    ) {
        let mut parts = [IoSlice::new(&[]); 65];
        self.write_device(header, gather(&mut parts, arena, first, payloads));
    }

    /// Cuts a super-packet that the kernel joined for a device that takes none.
    pub(super) fn write_cut(&mut self, header: &VnetHeader, packet: &[u8]) {
        let segments = Headers::parse(packet).ok().and_then(|headers| Segments::new(packet, &headers, header).ok());
        let Some(segments) = segments else {
            self.shared.counters.add(PathDrop::Offload, 1);
            return;
        };
        let mut buffer = std::mem::take(&mut self.fragment_buffer);
        for index in 0..segments.count() {
            let len = segments.emit(index, &mut buffer);
            self.write_device(&VnetHeader::default(), &[IoSlice::new(&buffer[..len])]);
        }
        self.fragment_buffer = buffer;
    }

    /// Takes the answer to one of our data-path probes; whether it was one.
    fn consume_probe(
        &mut self,
        snapshot: &Snapshot,
        peer: PeerIndex,
        headers: &Headers,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        let Some((id, sequence)) = probe::reply_ids(headers, packet) else { return false };
        if !snapshot.tables.local.host.contains(&headers.dst) {
            return false;
        }
        if id != self.shared.probe_id {
            return self.shared.pings.answered(id, sequence, now);
        }
        let Some(path) = snapshot.peer(peer) else { return false };
        path.peer.probes.lock().answer(sequence, now);
        true
    }
}

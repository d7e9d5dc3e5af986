//! Encapsulating packets to peers and handing them to the underlay in batches.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use overlay_wire::gre::GreHeader;
use overlay_wire::offload::Segments;
use overlay_wire::{Encapsulation, Mtu, PeerIndex, ecn};
use parking_lot::MutexGuard;

use crate::counters::PathDrop;
use crate::peers::PeerState;
use crate::shared::{HandshakeMessage, SharedRef, WorkerEvent};
use crate::snapshot::{PathPeer, Snapshot};
use crate::underlay::{Destination, Flushed, OuterFragments, RawProtocol, SendBatch};
use crate::wireguard::{DATA_OVERHEAD, HANDSHAKE_MAX};

/// Bytes of datagrams gathered before a flush: sixteen super-packets with their overhead.
const UDP_BATCH_BYTES: usize = 16 * (65_535 + 64 * 64);
/// The same for raw sockets, which take packets one by one.
const RAW_BATCH_BYTES: usize = 1 << 20;
/// Largest inner packet and its padding.
const SCRATCH: usize = 65_535 + 16;
/// WireGuard pads to this (WireGuard paper, section 5.4.6).
const PADDING: usize = 16;

/// What is to be sent: one packet, or the segments of a super-packet.
#[derive(Clone, Copy, Debug)]
pub enum Outgoing<'a> {
    /// One inner packet.
    Packet(&'a [u8]),
    /// A super-packet.
    Segments(Segments<'a>),
}

impl Outgoing<'_> {
    fn count(&self) -> usize {
        match self {
            Self::Packet(_) => 1,
            Self::Segments(segments) => segments.count(),
        }
    }

    fn longest(&self) -> usize {
        match self {
            Self::Packet(packet) => packet.len(),
            Self::Segments(segments) => segments.segment_len(),
        }
    }

    fn first_byte(&self) -> Option<u8> {
        match self {
            Self::Packet(packet) => packet.first().copied(),
            Self::Segments(segments) => Some(segments.first_byte()),
        }
    }

    /// Whether it may be fragmented outside: what the engine lets through beyond the peer's inner MTU, which is IPv6 up to
    /// its minimum.
    #[inline]
    fn fragments(&self, inner_mtu: usize) -> OuterFragments {
        if self.longest() <= inner_mtu {
            OuterFragments::Never
        } else {
            needs_fragments(self.first_byte(), self.longest())
        }
    }

    #[inline]
    fn emit(&self, index: usize, out: &mut [u8]) -> usize {
        match self {
            Self::Packet(packet) => {
                out[..packet.len()].copy_from_slice(packet);
                packet.len()
            }
            Self::Segments(segments) => segments.emit(index, out),
        }
    }
}

/// Whether a packet larger than its peer's inner MTU may be fragmented outside: IPv6 up to 1,280 bytes, which every link
/// must carry (RFC 8200, section 5). Everything else can be told "too big".
#[cold]
pub(crate) fn needs_fragments(first: Option<u8>, len: usize) -> OuterFragments {
    let ipv6 = first.is_some_and(|byte| byte >> 4 == 6);
    if ipv6 && len <= usize::from(Mtu::IPV6_MIN.get()) { OuterFragments::Allowed } else { OuterFragments::Never }
}

/// A peer whose lock is held, for as long as packets go to or come from it without a break.
pub(super) struct Held<'s> {
    pub index: PeerIndex,
    pub path: &'s PathPeer,
    pub state: MutexGuard<'s, PeerState>,
    pub usable: bool,
}

/// Takes a peer's lock unless it is the one held already.
#[inline]
pub(super) fn hold<'a, 's>(
    slot: &'a mut Option<Held<'s>>,
    snapshot: &'s Snapshot,
    index: PeerIndex,
) -> Option<&'a mut Held<'s>> {
    if slot.as_ref().is_none_or(|held| held.index != index) {
        *slot = None;
        let path = snapshot.peer(index)?;
        let state = path.peer.state.lock();
        let usable = state.tunnel.as_ref().is_some_and(|tunnel| tunnel.has_session());
        *slot = Some(Held { index, path, state, usable });
    }
    slot.as_mut()
}

/// One socket and what waits for it.
struct Outlet {
    fd: Arc<OwnedFd>,
    batch: SendBatch,
}

impl Outlet {
    fn new(fd: Arc<OwnedFd>, bytes: usize, segmentation: bool) -> Self {
        Self { fd, batch: SendBatch::new(bytes, segmentation) }
    }

    #[inline]
    fn commit(&mut self, len: usize, destination: &Destination, fragments: OuterFragments) {
        match fragments {
            OuterFragments::Never => self.batch.commit(len, destination),
            OuterFragments::Allowed => self.batch.commit_fragmentable(len, destination),
        }
    }
}

/// The sockets a worker sends with.
#[derive(Clone, Debug, Default)]
pub struct SendSockets {
    /// UDP over IPv4.
    pub udp4: Option<Arc<OwnedFd>>,
    /// UDP over IPv6.
    pub udp6: Option<Arc<OwnedFd>>,
    /// Raw sockets: over IPv4, then over IPv6, in the order of [`RawProtocol::ALL`].
    pub raw: [[Option<Arc<OwnedFd>>; 3]; 2],
}

/// The sending half of a worker.
pub(super) struct Transmitter {
    shared: SharedRef,
    udp: [Option<Outlet>; 2],
    raw: [[Option<Outlet>; 3]; 2],
    scratch: Box<[u8]>,
}

impl Transmitter {
    pub(super) fn new(shared: SharedRef, sockets: &SendSockets) -> Self {
        let udp = |fd: &Option<Arc<OwnedFd>>| fd.clone().map(|fd| Outlet::new(fd, UDP_BATCH_BYTES, true));
        let raw = |fd: &Option<Arc<OwnedFd>>| fd.clone().map(|fd| Outlet::new(fd, RAW_BATCH_BYTES, false));
        Self {
            shared,
            udp: [udp(&sockets.udp4), udp(&sockets.udp6)],
            raw: sockets.raw.each_ref().map(|family| family.each_ref().map(raw)),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
        }
    }

    /// Encapsulates to a peer. `tos` is the inner DSCP and ECN, `inner_mtu` the bound that padding keeps and beyond which
    /// IPv6 may be fragmented outside.
    pub(super) fn send_to(
        &mut self,
        held: &mut Held<'_>,
        outgoing: &Outgoing<'_>,
        tos: u8,
        inner_mtu: usize,
        now: Instant,
    ) {
        let (packets, bytes) = match held.path.encapsulation {
            Encapsulation::Wireguard => self.wireguard(held, outgoing, tos, inner_mtu, now),
            Encapsulation::Ipip | Encapsulation::Gre => self.plain(held, outgoing, tos, inner_mtu),
        };
        if packets > 0 {
            held.path.peer.counters.sent(packets, bytes);
        }
    }

    fn wireguard(
        &mut self,
        held: &mut Held<'_>,
        outgoing: &Outgoing<'_>,
        tos: u8,
        inner_mtu: usize,
        now: Instant,
    ) -> (u64, u64) {
        let Some(path) = held.state.path.filter(|_| held.usable) else {
            self.wait_for_session(held, outgoing, now);
            return (0, 0);
        };
        let destination = Destination { tos: ecn::encapsulate(tos), ..path };
        let Some(outlet) = &mut self.udp[usize::from(path.to.is_ipv6())] else {
            self.shared.counters.add(PathDrop::NoPath, outgoing.count() as u64);
            return (0, 0);
        };
        let Some(tunnel) = held.state.tunnel.as_mut() else { return (0, 0) };
        let fragments = outgoing.fragments(inner_mtu);
        let (mut packets, mut bytes) = (0, 0);
        for i in 0..outgoing.count() {
            let len = outgoing.emit(i, &mut self.scratch);
            let padded = len.next_multiple_of(PADDING).min(inner_mtu.max(len));
            self.scratch[len..padded].fill(0);
            let room = (padded + DATA_OVERHEAD).max(HANDSHAKE_MAX);
            if outlet.batch.reserve(room).is_none() {
                let flushed = outlet.batch.flush(outlet.fd.as_raw_fd());
                report(&self.shared, flushed);
            }
            let Some(out) = outlet.batch.reserve(room) else {
                self.shared.counters.add(PathDrop::UnderlayFull, (outgoing.count() - i) as u64);
                break;
            };
            match tunnel.seal(&self.scratch[..padded], out) {
                Ok(sealed) => {
                    outlet.commit(sealed, &destination, fragments);
                    packets += 1;
                    bytes += len as u64;
                }
                Err(_) => {
                    held.usable = false;
                    self.shared.counters.add(PathDrop::NoSession, (outgoing.count() - i) as u64);
                    break;
                }
            }
        }
        (packets, bytes)
    }

    fn wait_for_session(&mut self, held: &mut Held<'_>, outgoing: &Outgoing<'_>, now: Instant) {
        let mut dropped = 0;
        for i in 0..outgoing.count() {
            let len = outgoing.emit(i, &mut self.scratch);
            dropped += held.state.hold(&self.scratch[..len], now);
        }
        if dropped > 0 {
            self.shared.counters.add(PathDrop::NoSession, dropped);
        }
        // A full queue already holds a request.
        let _ = self.shared.handshakes.try_send(HandshakeMessage::Wanted(held.index));
    }

    fn plain(&mut self, held: &mut Held<'_>, outgoing: &Outgoing<'_>, tos: u8, inner_mtu: usize) -> (u64, u64) {
        let count = outgoing.count();
        let Some(path) = held.path.plain else {
            self.shared.counters.add(PathDrop::NoPath, count as u64);
            return (0, 0);
        };
        let inner_v4 = outgoing.first_byte().is_some_and(|byte| byte >> 4 == 4);
        let gre = (held.path.encapsulation == Encapsulation::Gre).then_some(held.path.gre);
        let protocol = match (gre, inner_v4) {
            (Some(_), _) => RawProtocol::Gre,
            (None, true) => RawProtocol::Ipv4,
            (None, false) => RawProtocol::Ipv6,
        };
        let family = usize::from(path.to.is_ipv6());
        let Some(outlet) = &mut self.raw[family][protocol as usize] else {
            self.shared.counters.add(PathDrop::NoPath, count as u64);
            return (0, 0);
        };
        let destination = Destination { tos: ecn::encapsulate(tos), ..path };
        let fragments = outgoing.fragments(inner_mtu);
        let (mut packets, mut bytes) = (0, 0);
        for i in 0..count {
            let header = gre.map(|options| GreHeader {
                protocol: if inner_v4 { 0x0800 } else { 0x86dd },
                key: options.key,
                sequence: options.sequence.then_some(held.state.gre_sequence),
                checksum: options.checksum,
            });
            let header_len = header.map_or(0, |header| header.buffer_len());
            let room = header_len + outgoing.longest();
            if outlet.batch.reserve(room).is_none() {
                let flushed = outlet.batch.flush(outlet.fd.as_raw_fd());
                report(&self.shared, flushed);
            }
            let Some(out) = outlet.batch.reserve(room) else {
                self.shared.counters.add(PathDrop::UnderlayFull, (count - i) as u64);
                break;
            };
            let len = outgoing.emit(i, &mut out[header_len..]);
            if let Some(header) = header {
                header.emit(&mut out[..header_len + len]);
                held.state.gre_sequence = held.state.gre_sequence.wrapping_add(1);
            }
            outlet.commit(header_len + len, &destination, fragments);
            packets += 1;
            bytes += len as u64;
        }
        (packets, bytes)
    }

    /// Hands everything to the kernel; whether any socket is full.
    pub(super) fn flush(&mut self) -> bool {
        let mut blocked = false;
        let raw = self.raw.iter_mut().flatten();
        for outlet in self.udp.iter_mut().chain(raw).flatten() {
            if !outlet.batch.is_empty() {
                let flushed = outlet.batch.flush(outlet.fd.as_raw_fd());
                report(&self.shared, flushed);
                blocked |= flushed.blocked;
            }
        }
        blocked
    }

    /// The sockets that have datagrams waiting, to poll for room.
    pub(super) fn waiting(&self) -> impl Iterator<Item = i32> + '_ {
        let raw = self.raw.iter().flatten();
        self.udp
            .iter()
            .chain(raw)
            .flatten()
            .filter(|outlet| !outlet.batch.is_empty())
            .map(|outlet| outlet.fd.as_raw_fd())
    }
}

fn report(shared: &SharedRef, flushed: Flushed) {
    if flushed == Flushed::default() {
        return;
    }
    shared.counters.add(PathDrop::UnderlayRefused, flushed.refused);
    shared.counters.add(PathDrop::UnderlayTooBig, flushed.too_big);
    if let Some(source) = flushed.source_lost {
        let snapshot = shared.snapshot.load();
        for path in &snapshot.peers {
            // A peer whose lock is held by this worker has its source cleared at its next packet.
            if let Some(mut state) = path.peer.state.try_lock()
                && let Some(destination) = &mut state.path
                && destination.source == Some(source)
            {
                destination.source = None;
            }
        }
    }
    if flushed.segmentation_lost {
        let _ = shared.events.try_send(WorkerEvent::SegmentationLost);
    }
}

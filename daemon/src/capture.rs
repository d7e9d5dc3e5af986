//! Captures of inner packets: bounded rings that the worker writes to while anybody captures, and the readers behind them.
//!
//! While nobody captures and nothing is kept, a packet costs one relaxed load. A ring that is full drops what comes and
//! counts it; the one of packets kept for `--back` drops its oldest.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use overlay_dataplane::capture::Filter;
use overlay_dataplane::{Notes, Origin, Verdict};
use overlay_wire::PeerIndex;
use overlay_wire::packet::Headers;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Captures at a time, without the packets that are kept.
pub(crate) const MAX_CAPTURES: usize = 4;
/// Memory of one ring, in bytes of packets and what is known of them.
const RING_BYTES: usize = 16 << 20;
/// What a packet costs besides its bytes.
const OVERHEAD: usize = size_of::<Packet>() + 16;
/// Bytes kept of each packet for `--back`.
const KEPT_SNAPLEN: usize = 256;

/// One packet with what was decided about it.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    /// When.
    pub at: SystemTime,
    /// Where it came from.
    pub origin: Origin,
    /// What became of it.
    pub verdict: Verdict,
    /// What the packet path found out.
    pub notes: Notes,
    /// The revision of the tables it was decided with.
    pub revision: u64,
    /// Its length, of which `bytes` may be a part.
    pub length: u32,
    /// Its headers; `None`: it is no valid IP packet.
    pub headers: Option<Headers>,
    /// Its first bytes.
    pub bytes: Box<[u8]>,
}

/// What the worker hands over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub origin: Origin,
    pub verdict: Verdict,
    pub notes: &'a Notes,
    pub revision: u64,
    pub headers: Option<&'a Headers>,
    /// The packet's parts in order.
    pub parts: &'a [&'a [u8]],
}

/// Which packets go into a ring.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    pub filter: Filter,
    pub peer: Option<PeerIndex>,
    pub addresses: Option<Vec<IpAddr>>,
    /// Dropped ones, or ones that pass.
    pub dropped: Option<bool>,
}

impl Choice {
    pub(crate) fn takes(&self, headers: Option<&Headers>, origin: Origin, verdict: Verdict, notes: &Notes) -> bool {
        if self.dropped.is_some_and(|dropped| dropped != verdict.drop_reason().is_some()) {
            return false;
        }
        if self.peer.is_some() && self.peer != peer_of(origin, notes) {
            return false;
        }
        let Some(headers) = headers else {
            return self.filter.is_everything() && self.addresses.is_none();
        };
        let own = |ip: IpAddr| self.addresses.as_ref().is_none_or(|own| own.contains(&ip));
        (own(headers.src) || own(headers.dst)) && self.filter.matches(headers)
    }
}

/// The peer that a packet came from, or would go to.
pub(crate) fn peer_of(origin: Origin, notes: &Notes) -> Option<PeerIndex> {
    match (origin, notes.target.flatten()) {
        (Origin::Peer(peer), _) | (_, Some(overlay_dataplane::Route::Peer(peer))) => Some(peer),
        _ => None,
    }
}

/// What happens to a packet that finds the ring full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    /// It is lost and counted.
    DropNewest,
    /// The oldest make room, also those older than this.
    DropOldest(Duration),
}

#[derive(Debug, Default)]
struct Ring {
    packets: VecDeque<Packet>,
    bytes: usize,
    lost: u64,
}

/// One ring and what goes into it.
#[derive(Debug)]
pub(crate) struct Tap {
    choice: Choice,
    snaplen: usize,
    when_full: WhenFull,
    ring: Mutex<Ring>,
    arrived: Notify,
}

impl Tap {
    fn new(choice: Choice, snaplen: usize, when_full: WhenFull) -> Self {
        Self { choice, snaplen, when_full, ring: Mutex::default(), arrived: Notify::new() }
    }

    fn see(&self, seen: &Seen<'_>) {
        if !self.choice.takes(seen.headers, seen.origin, seen.verdict, seen.notes) {
            return;
        }
        let length: usize = seen.parts.iter().map(|part| part.len()).sum();
        let mut bytes = Vec::with_capacity(length.min(self.snaplen));
        for part in seen.parts {
            let room = self.snaplen - bytes.len();
            bytes.extend_from_slice(&part[..part.len().min(room)]);
        }
        let packet = Packet {
            at: SystemTime::now(),
            origin: seen.origin,
            verdict: seen.verdict,
            notes: *seen.notes,
            revision: seen.revision,
            length: length as u32,
            headers: seen.headers.copied(),
            bytes: bytes.into_boxed_slice(),
        };
        self.push(packet);
    }

    fn push(&self, packet: Packet) {
        let cost = OVERHEAD + packet.bytes.len();
        let mut ring = self.ring.lock();
        match self.when_full {
            WhenFull::DropNewest if ring.bytes + cost > RING_BYTES => {
                ring.lost += 1;
                return;
            }
            WhenFull::DropNewest => {}
            WhenFull::DropOldest(age) => {
                let oldest = packet.at.checked_sub(age);
                while let Some(first) = ring.packets.front()
                    && (ring.bytes + cost > RING_BYTES || oldest.is_some_and(|oldest| first.at < oldest))
                {
                    ring.bytes -= OVERHEAD + first.bytes.len();
                    ring.packets.pop_front();
                }
            }
        }
        ring.bytes += cost;
        let was_empty = ring.packets.is_empty();
        ring.packets.push_back(packet);
        drop(ring);
        if was_empty && self.when_full == WhenFull::DropNewest {
            self.arrived.notify_one();
        }
    }

    /// Waits until there are packets, or some have been lost.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes packets of at most so many bytes, and how many were lost so far.
    pub(crate) fn take(&self, most: usize) -> (Vec<Packet>, u64) {
        let mut ring = self.ring.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < most
            && let Some(packet) = ring.packets.pop_front()
        {
            bytes += OVERHEAD + packet.bytes.len();
            taken.push(packet);
        }
        ring.bytes -= bytes;
        if !ring.packets.is_empty() {
            self.arrived.notify_one();
        }
        (taken, ring.lost)
    }
}

/// Every ring.
#[derive(Debug, Default)]
pub struct Captures {
    /// Whether any packet has to be looked at.
    active: AtomicBool,
    taps: ArcSwap<Vec<Arc<Tap>>>,
    kept: Option<Arc<Tap>>,
    /// Captures begin and end one at a time.
    changing: Mutex<()>,
}

impl Captures {
    /// Keeps the packets of this time, where it is not zero.
    #[must_use]
    pub fn new(back: Duration) -> Self {
        let choice = Choice::default();
        let kept = (!back.is_zero()).then(|| Arc::new(Tap::new(choice, KEPT_SNAPLEN, WhenFull::DropOldest(back))));
        let taps: Vec<Arc<Tap>> = kept.iter().cloned().collect();
        Self {
            active: AtomicBool::new(!taps.is_empty()),
            taps: ArcSwap::from_pointee(taps),
            kept,
            changing: Mutex::default(),
        }
    }

    /// Whether packets have to be handed over.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Takes a packet.
    #[cold]
    pub(crate) fn see(&self, seen: &Seen<'_>) {
        for tap in self.taps.load().iter() {
            tap.see(seen);
        }
    }

    /// Whether packets are kept for `--back`.
    pub(crate) fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    /// Begins a capture, with what is kept of the last `back` in front; `None` when there are as many as may be.
    pub(crate) fn begin(self: &Arc<Self>, choice: Choice, snaplen: usize, back: Option<Duration>) -> Option<Capture> {
        let _changing = self.changing.lock();
        let taps = self.taps.load();
        if taps.len() - usize::from(self.keeps()) >= MAX_CAPTURES {
            return None;
        }
        let tap = Arc::new(Tap::new(choice, snaplen, WhenFull::DropNewest));
        let since = back.and_then(|back| SystemTime::now().checked_sub(back));
        if let (Some(kept), Some(since)) = (&self.kept, since) {
            // The worker waits while they are copied, 16 MiB at most.
            let earlier: Vec<Packet> =
                kept.ring.lock().packets.iter().filter(|packet| packet.at >= since).cloned().collect();
            for mut packet in earlier {
                if tap.choice.takes(packet.headers.as_ref(), packet.origin, packet.verdict, &packet.notes) {
                    let keep = packet.bytes.len().min(snaplen);
                    packet.bytes = packet.bytes[..keep].into();
                    tap.push(packet);
                }
            }
        }
        let mut next: Vec<Arc<Tap>> = taps.iter().cloned().collect();
        next.push(Arc::clone(&tap));
        self.taps.store(Arc::new(next));
        self.active.store(true, Ordering::Relaxed);
        Some(Capture { captures: Arc::clone(self), tap })
    }
}

/// A capture under way; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Capture {
    captures: Arc<Captures>,
    pub(crate) tap: Arc<Tap>,
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _changing = self.captures.changing.lock();
        let left: Vec<Arc<Tap>> =
            self.captures.taps.load().iter().filter(|tap| !Arc::ptr_eq(tap, &self.tap)).cloned().collect();
        self.captures.active.store(!left.is_empty(), Ordering::Relaxed);
        self.captures.taps.store(Arc::new(left));
    }
}

#[cfg(test)]
mod tests {
    use overlay_dataplane::DropReason;

    use super::*;

    fn udp(port: u16, payload: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 42, 1, 4], [10, 42, 2, 4], 64).udp(1000, port);
        builder.write(&mut packet, &vec![7; payload]).expect("memory");
        packet
    }

    fn show(captures: &Captures, packet: &[u8], verdict: Verdict) {
        let headers = Headers::parse(packet).expect("a packet");
        if captures.is_active() {
            captures.see(&Seen {
                origin: Origin::Tun,
                verdict,
                notes: &Notes::default(),
                revision: 1,
                headers: Some(&headers),
                parts: &[&packet[..20], &packet[20..]],
            });
        }
    }

    fn choice(filter: &str, dropped: Option<bool>) -> Choice {
        Choice { filter: filter.parse().expect("a filter"), dropped, ..Choice::default() }
    }

    #[test]
    fn packets_are_looked_at_only_while_someone_captures() {
        let captures = Arc::new(Captures::new(Duration::ZERO));
        assert!(!captures.is_active());
        let capture = captures.begin(choice("udp/53", Some(true)), 40, None).expect("room");
        assert!(captures.is_active());
        show(&captures, &udp(53, 100), Verdict::Drop(DropReason::PolicyDeny));
        show(&captures, &udp(53, 100), Verdict::Deliver);
        show(&captures, &udp(80, 100), Verdict::Drop(DropReason::PolicyDeny));
        let (packets, lost) = capture.tap.take(usize::MAX);
        assert_eq!((packets.len(), lost), (1, 0));
        assert_eq!((packets[0].length, packets[0].bytes.len()), (128, 40), "cut, with the length it had");
        assert_eq!(packets[0].bytes[..], udp(53, 100)[..40]);
        drop(capture);
        assert!(!captures.is_active());
    }

    #[test]
    fn full_ring_drops_and_counts_and_captures_are_few() {
        let captures = Arc::new(Captures::new(Duration::ZERO));
        let capture = captures.begin(Choice::default(), 65_535, None).expect("room");
        let more: Vec<Capture> =
            (1..MAX_CAPTURES).filter_map(|_| captures.begin(choice("tcp", None), 64, None)).collect();
        assert_eq!(more.len(), MAX_CAPTURES - 1);
        assert!(captures.begin(Choice::default(), 64, None).is_none());
        let packet = udp(53, 60_000);
        let fit = RING_BYTES / (packet.len() + OVERHEAD);
        for _ in 0..fit + 10 {
            show(&captures, &packet, Verdict::Deliver);
        }
        let (packets, lost) = capture.tap.take(usize::MAX);
        assert_eq!((packets.len(), lost), (fit, 10));
        show(&captures, &packet, Verdict::Deliver);
        assert_eq!(capture.tap.take(usize::MAX).0.len(), 1, "there is room again");
    }

    #[test]
    fn what_was_kept_comes_first_and_no_more_than_was_asked_for() {
        let captures = Arc::new(Captures::new(Duration::from_secs(30)));
        assert!(captures.is_active() && captures.keeps());
        show(&captures, &udp(53, 1000), Verdict::Deliver);
        show(&captures, &udp(80, 1000), Verdict::Deliver);
        let capture = captures.begin(choice("udp/53", None), 65_535, Some(Duration::from_secs(20))).expect("room");
        show(&captures, &udp(53, 10), Verdict::Deliver);
        let (packets, _) = capture.tap.take(usize::MAX);
        let lengths: Vec<(u32, usize)> = packets.iter().map(|packet| (packet.length, packet.bytes.len())).collect();
        assert_eq!(lengths, [(1028, KEPT_SNAPLEN), (38, 38)]);
        let fresh = captures.begin(Choice::default(), 64, Some(Duration::ZERO)).expect("room");
        assert!(fresh.tap.take(usize::MAX).0.is_empty());
    }
}

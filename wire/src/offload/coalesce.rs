//! Joining adjacent segments of a flow into super-packets.
//!
//! A batch of packets lies in one arena; nothing is copied. Packets of a flow never change places: a packet that cannot
//! join its flow's open entry closes it and starts the next. Several flows may be open at once, so interleaved flows
//! coalesce too.
//!
//! Joined are only segments that a segmentation of the result would give back: same addresses, ports, acknowledgement,
//! window, options, TTL, DSCP and ECN, consecutive sequence numbers, equal sizes but for a shorter last one.

use super::{GsoKind, VnetHeader};
use crate::checksum;
use crate::packet::{Headers, Tcp, TcpFlags, Transport, protocol};

/// Open entries looked at for one packet. Beyond this many interleaved flows in one batch, flows stop coalescing.
const OPEN_FLOWS: usize = 16;
/// Most segments in one super-packet; the kernel counts UDP segments in at most 128 (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: u32 = 64;
/// Flags that only the last segment of a super-packet carries.
const ENDS_RUN: u8 = TcpFlags::FIN | TcpFlags::PSH;

/// Which packets may be joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joining {
    /// None: the device takes no super-packets.
    Off,
    /// TCP segments.
    Tcp,
    /// TCP segments and UDP datagrams: the device takes USO.
    TcpAndUdp,
}

/// Whether inner checksums must be verified before joining, because nothing else authenticated the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The packet was authenticated by its encapsulation.
    Authenticated,
    /// Bytes may be corrupt: verify first, leave wrong ones alone.
    Unverified,
}

/// One packet or super-packet of a batch.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The headers of the whole super-packet, as a parser would read them after [`Self::finish`]: its length, and the FIN
    /// and PSH of its last segment.
    pub headers: Headers,
    /// Caller's mark; only packets with the same tag are joined.
    pub tag: u32,
    /// Packets joined, at least one.
    pub segments: u32,
    start: usize,
    first_len: usize,
    payloads: Vec<(usize, usize)>,
    gso_size: usize,
    next_sequence: u32,
    open: bool,
}

impl Entry {
    /// Where the first packet lies in the arena, headers included.
    #[must_use]
    pub fn first(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.first_len
    }

    /// Places of the further segments' payloads in the arena, in order, as (offset, length).
    #[must_use]
    pub fn payloads(&self) -> &[(usize, usize)] {
        &self.payloads
    }

    /// Patches the first packet's headers in the arena to those of the super-packet and returns the device header.
    pub fn finish(&self, arena: &mut [u8]) -> VnetHeader {
        if self.segments == 1 {
            return VnetHeader::default();
        }
        let packet = &mut arena[self.start..self.start + self.first_len];
        let total = self.headers.total_len;
        let l4 = usize::from(self.headers.l4_offset);
        if self.headers.is_ipv4() {
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum::checksum(&packet[..l4]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
        }
        let transport_len = total - self.headers.l4_offset;
        let pseudo = checksum::pseudo_header(self.headers.src, self.headers.dst, self.headers.protocol, transport_len);
        let (gso, csum_offset) = match self.headers.transport {
            Transport::Tcp(tcp) => {
                packet[l4 + 13] |= tcp.flags.0 & ENDS_RUN;
                (if self.headers.is_ipv4() { GsoKind::TcpV4 } else { GsoKind::TcpV6 }, 16)
            }
            _ => {
                packet[l4 + 4..l4 + 6].copy_from_slice(&transport_len.to_be_bytes());
                (GsoKind::Udp, 6)
            }
        };
        packet[l4 + csum_offset..l4 + csum_offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        VnetHeader {
            needs_checksum: true,
            gso,
            header_len: self.headers.payload_offset() as u16,
            gso_size: self.gso_size as u16,
            csum_start: self.headers.l4_offset,
            csum_offset: csum_offset as u16,
        }
    }
}

/// The packets of one batch, in order, joined where possible. Reused from batch to batch without allocating.
#[derive(Debug, Default)]
pub struct Coalescer {
    entries: Vec<Entry>,
    used: usize,
}

impl Coalescer {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the batch, keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// The batch so far, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..self.used]
    }

    /// Adds the packet that lies at `start` in `arena` and whose headers were parsed there.
    #[inline]
    pub fn push(&mut self, arena: &[u8], start: usize, headers: &Headers, tag: u32, joining: Joining, trust: Trust) {
        let candidate = joinable(headers, joining);
        if candidate {
            if let Some(at) = self.find(headers, tag) {
                let fits = fits(&self.entries[at], arena, start, headers)
                    && (trust == Trust::Authenticated
                        || checksum::verify_transport(&arena[start..start + usize::from(headers.total_len)], headers));
                if fits {
                    append(&mut self.entries[at], start, headers);
                    return;
                }
                self.entries[at].open = false;
            }
        } else if let Some(at) = self.find(headers, tag) {
            self.entries[at].open = false;
        }
        let open = candidate
            && !ends_run(headers)
            && (trust == Trust::Authenticated
                || checksum::verify_transport(&arena[start..start + usize::from(headers.total_len)], headers));
        self.start_entry(start, headers, tag, open);
    }

    /// Adds a TCP super-packet that the kernel joined already (its receive offload looks into IPIP and GRE) and verified.
    /// Where its segments began is not known any more: it will be cut anew at `segment_payload` bytes, which TCP does
    /// not mind.
    pub fn push_joined(&mut self, start: usize, headers: &Headers, tag: u32, segment_payload: usize) {
        if let Some(at) = self.find(headers, tag) {
            self.entries[at].open = false;
        }
        self.start_entry(start, headers, tag, false);
        let entry = &mut self.entries[self.used - 1];
        entry.gso_size = segment_payload.max(1);
        entry.segments = headers.payload_len().div_ceil(entry.gso_size).max(1) as u32;
    }

    fn find(&self, headers: &Headers, tag: u32) -> Option<usize> {
        let entries = &self.entries[..self.used];
        let from = entries.len().saturating_sub(OPEN_FLOWS);
        entries[from..]
            .iter()
            .rposition(|entry| entry.open && entry.tag == tag && same_flow(&entry.headers, headers))
            .map(|at| from + at)
    }

    fn start_entry(&mut self, start: usize, headers: &Headers, tag: u32, open: bool) {
        if self.used == self.entries.len() {
            self.entries.push(Entry {
                headers: *headers,
                tag,
                segments: 0,
                start,
                first_len: 0,
                payloads: Vec::with_capacity(MAX_SEGMENTS as usize),
                gso_size: 0,
                next_sequence: 0,
                open,
            });
        }
        let entry = &mut self.entries[self.used];
        self.used += 1;
        let payload = headers.payload_len();
        entry.headers = *headers;
        entry.tag = tag;
        entry.segments = 1;
        entry.start = start;
        entry.first_len = usize::from(headers.total_len);
        entry.payloads.clear();
        entry.gso_size = payload;
        entry.open = open;
        if let Transport::Tcp(tcp) = headers.transport {
            entry.next_sequence = tcp.seq.wrapping_add(payload as u32);
        }
    }
}

fn joinable(headers: &Headers, joining: Joining) -> bool {
    if headers.fragment.is_some() || headers.has_options || headers.payload_len() == 0 {
        return false;
    }
    match headers.transport {
        Transport::Tcp(tcp) => joining != Joining::Off && tcp.flags.0 & !ENDS_RUN == TcpFlags::ACK,
        Transport::Udp(_) => joining == Joining::TcpAndUdp && headers.protocol == protocol::UDP,
        _ => false,
    }
}

fn ends_run(headers: &Headers) -> bool {
    matches!(headers.transport, Transport::Tcp(tcp) if tcp.flags.0 & ENDS_RUN != 0)
}

fn same_flow(a: &Headers, b: &Headers) -> bool {
    a.protocol == b.protocol && a.ports() == b.ports() && a.src == b.src && a.dst == b.dst
}

fn fits(entry: &Entry, arena: &[u8], start: usize, headers: &Headers) -> bool {
    let first = &entry.headers;
    let payload = headers.payload_len();
    if payload > entry.gso_size
        || entry.segments >= MAX_SEGMENTS
        || usize::from(first.total_len) + payload > usize::from(u16::MAX)
        || headers.ttl != first.ttl
        || headers.tos != first.tos
        || headers.dont_fragment != first.dont_fragment
        || headers.l4_offset != first.l4_offset
    {
        return false;
    }
    // The identification of an atomic datagram has no meaning (RFC 6864, section 4.1).
    if headers.is_ipv4() && !headers.dont_fragment {
        let id = |at: usize| u16::from_be_bytes([arena[at + 4], arena[at + 5]]);
        if id(start) != id(entry.start).wrapping_add(entry.segments as u16) {
            return false;
        }
    }
    match (first.transport, headers.transport) {
        (Transport::Tcp(a), Transport::Tcp(b)) => {
            let options = |at: usize, tcp: &Tcp| {
                let l4 = at + usize::from(headers.l4_offset);
                l4 + 20..l4 + usize::from(tcp.header_len)
            };
            b.seq == entry.next_sequence
                && a.ack == b.ack
                && a.window == b.window
                && a.header_len == b.header_len
                && arena[options(entry.start, &a)] == arena[options(start, &b)]
        }
        // A zero checksum means "none" over IPv4; the joined packet would have one.
        (Transport::Udp(_), Transport::Udp(_)) => {
            let field = |at: usize| {
                let at = at + usize::from(headers.l4_offset) + 6;
                arena[at..at + 2] != [0, 0]
            };
            field(entry.start) && field(start)
        }
        _ => false,
    }
}

fn append(entry: &mut Entry, start: usize, headers: &Headers) {
    let payload = headers.payload_len();
    entry.payloads.push((start + headers.payload_offset(), payload));
    entry.segments += 1;
    entry.headers.total_len += payload as u16;
    entry.open = payload == entry.gso_size && !ends_run(headers);
    match (&mut entry.headers.transport, headers.transport) {
        (Transport::Tcp(whole), Transport::Tcp(last)) => {
            entry.next_sequence = last.seq.wrapping_add(payload as u32);
            // Whoever decides by these headers must see that the stream ends here.
            whole.flags.0 |= last.flags.0 & ENDS_RUN;
        }
        (Transport::Udp(whole), Transport::Udp(_)) => whole.length += payload as u16,
        _ => {}
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

//! Packets to virtual addresses, and their answers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use overlay_wire::icmp::{Quote, QuotedTransport};
use overlay_wire::packet::{Headers, Transport, protocol};
use overlay_wire::rewrite::{self, Ends, Sums};
use parking_lot::Mutex;

use super::flows::{Flow, Flows, Name, Phase};
use super::opening;
use crate::reason::DropReason;
use crate::tables::{Route, Tables};

/// Datagrams whose first fragment was translated and whose others may follow.
const MAX_FRAGMENTED: usize = 1024;
/// How long they may, in milliseconds.
const FRAGMENT_TIME_MS: u64 = 5000;
/// A SYN that comes again after so long was not answered (the first one is sent again after a second, RFC 6298); one that
/// comes sooner is a copy.
const RESEND_MS: u64 = 200;
/// The longest SYN that is kept to be sent again.
const MAX_SYN: usize = 120;

/// What became of a packet from the TUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// It is not to a virtual address; nothing was changed.
    Direct,
    /// It has other ends now and must be parsed again.
    Translated,
    /// It cannot go anywhere: the sender is to be told.
    Refused(DropReason),
    /// It is dropped silently.
    Dropped(DropReason),
}

/// What became of a packet for the TUN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Back {
    /// It does not belong to a virtual address; nothing was changed.
    Direct,
    /// It comes from the virtual address now.
    Translated,
    /// It said that the backend does not take the flow. It is to be dropped, and this packet of the client, a SYN to the
    /// virtual address, to be taken as if it had come again: another backend has the flow.
    Retry(Box<[u8]>),
}

/// The flows through virtual addresses, shared by all workers.
#[derive(Debug)]
pub struct Translator {
    flows: Flows,
    fragmented: Mutex<HashMap<Datagram, (Ends, u64)>>,
    start: Instant,
}

/// One fragmented datagram.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Datagram {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
}

impl Datagram {
    fn of(headers: &Headers) -> Option<Self> {
        let id = headers.fragment?.id;
        Some(Self { src: headers.src, dst: headers.dst, protocol: headers.protocol, id })
    }
}

impl Translator {
    /// A table of so many flows at most. `seed` keys its hashes.
    #[must_use]
    pub fn new(capacity: usize, seed: [u8; 16], start: Instant) -> Self {
        Self { flows: Flows::new(capacity, seed), fragmented: Mutex::new(HashMap::new()), start }
    }

    /// Flows now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The clock of [`BackendState`](super::BackendState), in milliseconds.
    #[must_use]
    pub fn now_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends flows whose time is over, with a bounded amount of work. Call about every 100 ms.
    pub fn expire(&self, now: Instant) {
        let now_ms = self.now_ms(now);
        self.flows.expire(now_ms);
        self.fragmented.lock().retain(|_, (_, until)| *until > now_ms);
    }

    /// Leads a packet from the TUN to a backend. `sums` tells what its transport checksum field holds.
    pub fn forward(&self, tables: &Tables, headers: &Headers, packet: &mut [u8], sums: Sums, now: Instant) -> Way {
        if !tables.services.is_virtual(headers.dst) {
            return Way::Direct;
        }
        if tables.owners.lookup(headers.src) != Some(&Route::Local) {
            return Way::Dropped(DropReason::SpoofedSource);
        }
        let now_ms = self.now_ms(now);
        if headers.is_later_fragment() {
            return match self.later_fragment(headers, packet, now_ms) {
                true => Way::Translated,
                false => Way::Dropped(DropReason::FragmentRefused),
            };
        }
        if matches!(headers.transport, Transport::Icmp(icmp) if icmp.is_error) {
            return self.forward_error(headers, packet, now_ms);
        }
        let Some((src_port, dst_port)) = ports(headers) else { return Way::Refused(DropReason::NoService) };
        let (src, dst) = (SocketAddr::new(headers.src, src_port), SocketAddr::new(headers.dst, dst_port));
        let name = Name { protocol: headers.protocol, src, dst };
        let ends = match self.backend_of(tables, headers, &name, packet, now_ms) {
            Ok(ends) => ends,
            Err(way) => return way,
        };
        self.change(headers, packet, &ends, sums, now_ms);
        Way::Translated
    }

    /// The ends of a packet to a virtual address, of a flow that is there or begins with it.
    fn backend_of(
        &self,
        tables: &Tables,
        headers: &Headers,
        name: &Name,
        packet: &[u8],
        now_ms: u64,
    ) -> Result<Ends, Way> {
        let is_first = opens(headers);
        let mut shard = self.flows.shard(name.src);
        if let Some((at, flow)) = shard.find(name, now_ms) {
            let here = flow.revision == tables.services.revision
                || tables.services.find(flow.vip, flow.protocol).is_some_and(|it| it.backend(flow.backend).is_some());
            let is_tcp = flow.protocol == protocol::TCP;
            let is_copy = flow.phase == Phase::Opening && flow.idle_ms(now_ms) < RESEND_MS;
            if here && !(is_tcp && is_first && flow.phase != Phase::Open && !is_copy) {
                flow.revision = tables.services.revision;
                note_client(flow, headers);
                flow.touch(now_ms);
                return Ok(forward_ends(flow));
            }
            if is_tcp && !is_first {
                shard.remove(at);
                return Err(Way::Refused(DropReason::BackendGone));
            }
            if is_tcp && flow.phase == Phase::Opening && here {
                // The client asks again and the backend has said nothing: it gets another, or keeps this one.
                drop(opening::retry(&self.flows, shard, tables, at, now_ms));
                let mut shard = self.flows.shard(name.src);
                if let Some((_, flow)) = shard.find(name, now_ms) {
                    flow.touch(now_ms);
                    return Ok(forward_ends(flow));
                }
            } else {
                shard.remove(at);
                drop(shard);
            }
        } else {
            drop(shard);
            if headers.protocol == protocol::TCP && !is_first {
                return Err(Way::Refused(DropReason::TcpNoFlow));
            }
        }
        let frontend = tables.services.find(name.dst, name.protocol).ok_or(Way::Refused(DropReason::NoService))?;
        let mut flow = opening::open(&self.flows, tables, frontend, name, now_ms).map_err(Way::Refused)?;
        // A SYN with data is not kept: its data may have been delivered.
        let whole = packet.get(..usize::from(headers.total_len)).unwrap_or_default();
        if is_first && headers.payload_len() == 0 && whole.len() <= MAX_SYN {
            flow.syn = Some(whole.into());
        }
        let settled = opening::settle(&self.flows, tables, frontend, flow, now_ms);
        settled.map_err(|reason| match reason {
            DropReason::ServiceFlowsFull => Way::Dropped(reason),
            _ => Way::Refused(reason),
        })?;
        let mut shard = self.flows.shard(name.src);
        shard.find(name, now_ms).map(|(_, flow)| forward_ends(flow)).ok_or(Way::Dropped(DropReason::ServiceFlowsFull))
    }

    /// An error that a client sends about what came from a virtual address.
    fn forward_error(&self, headers: &Headers, packet: &mut [u8], now_ms: u64) -> Way {
        let quote = Quote::parse(packet, headers).filter(|quote| quote.src == headers.dst);
        let found = quote.and_then(|quote| {
            let (src, dst) = quoted_ends(&quote)?;
            let name = Name { protocol: quote.protocol, src: dst, dst: src };
            let mut shard = self.flows.shard(name.src);
            let (_, flow) = shard.find(&name, now_ms)?;
            Some((quote, flow.backend, flow.mask))
        });
        let Some((quote, backend, mask)) = found else { return Way::Dropped(DropReason::IcmpUnrelated) };
        rewrite::quoted_ends(packet, headers, &quote, &Ends { src: Some(backend), dst: mask });
        rewrite::ends(packet, headers, &Ends { src: mask, dst: Some(backend) }, Sums::Complete);
        Way::Translated
    }

    /// Makes a packet for the TUN come from its virtual address. `is_answer`: it is this host's own answer to a packet that was
    /// refused, which no other backend can change.
    pub fn backward(
        &self,
        tables: &Tables,
        headers: &Headers,
        packet: &mut [u8],
        sums: Sums,
        is_answer: bool,
        now: Instant,
    ) -> Back {
        if tables.services.is_empty() {
            return Back::Direct;
        }
        let now_ms = self.now_ms(now);
        if headers.is_later_fragment() {
            return if self.later_fragment(headers, packet, now_ms) { Back::Translated } else { Back::Direct };
        }
        if matches!(headers.transport, Transport::Icmp(icmp) if icmp.is_error) {
            return self.backward_error(tables, headers, packet, is_answer, now_ms);
        }
        let Some((src_port, dst_port)) = ports(headers) else { return Back::Direct };
        let (src, dst) = (SocketAddr::new(headers.src, src_port), SocketAddr::new(headers.dst, dst_port));
        let name = Name { protocol: headers.protocol, src, dst };
        let mut shard = self.flows.shard(dst);
        let Some((at, flow)) = shard.find(&name, now_ms).filter(|(_, flow)| flow.backend == src) else {
            return Back::Direct;
        };
        let refused = flow.phase == Phase::Opening && headers.tcp().is_some_and(|tcp| tcp.flags.rst());
        if refused && !is_answer {
            if let Some(syn) = opening::retry(&self.flows, shard, tables, at, now_ms) {
                return Back::Retry(syn);
            }
            shard = self.flows.shard(dst);
        }
        let Some((_, flow)) = shard.find(&name, now_ms) else { return Back::Direct };
        note_backend(flow, headers);
        flow.touch(now_ms);
        let ends = Ends { src: Some(flow.vip), dst: flow.mask.map(|_| flow.client) };
        drop(shard);
        self.change(headers, packet, &ends, sums, now_ms);
        Back::Translated
    }

    /// An error about what was sent to a backend.
    fn backward_error(
        &self,
        tables: &Tables,
        headers: &Headers,
        packet: &mut [u8],
        is_answer: bool,
        now_ms: u64,
    ) -> Back {
        let Some(quote) = Quote::parse(packet, headers).filter(|quote| quote.src == headers.dst) else {
            return Back::Direct;
        };
        let Some((src, dst)) = quoted_ends(&quote) else { return Back::Direct };
        let name = Name { protocol: quote.protocol, src: dst, dst: src };
        let mut shard = self.flows.shard(src);
        let Some((at, flow)) = shard.find(&name, now_ms).filter(|(_, flow)| flow.backend == dst) else {
            return Back::Direct;
        };
        let refused = flow.phase == Phase::Opening && flow.syn.is_some() && is_unreachable(headers);
        if refused && !is_answer {
            if let Some(syn) = opening::retry(&self.flows, shard, tables, at, now_ms) {
                return Back::Retry(syn);
            }
            shard = self.flows.shard(src);
        }
        let Some((_, flow)) = shard.find(&name, now_ms) else { return Back::Direct };
        let (client, vip) = (flow.mask.map(|_| flow.client), flow.vip);
        drop(shard);
        rewrite::quoted_ends(packet, headers, &quote, &Ends { src: client, dst: Some(vip) });
        // What a router in between says stays the router's.
        let from = (headers.src == dst.ip()).then_some(vip);
        rewrite::ends(packet, headers, &Ends { src: from, dst: client }, Sums::Complete);
        Back::Translated
    }

    /// Changes the ends, and keeps in mind what the datagram's further fragments get.
    fn change(&self, headers: &Headers, packet: &mut [u8], ends: &Ends, sums: Sums, now_ms: u64) {
        rewrite::ends(packet, headers, ends, sums);
        if let Some(datagram) = Datagram::of(headers).filter(|_| headers.is_partial()) {
            let mut fragmented = self.fragmented.lock();
            if fragmented.len() >= MAX_FRAGMENTED {
                fragmented.retain(|_, (_, until)| *until > now_ms);
            }
            if fragmented.len() < MAX_FRAGMENTED {
                fragmented.insert(datagram, (*ends, now_ms + FRAGMENT_TIME_MS));
            }
        }
    }

    fn later_fragment(&self, headers: &Headers, packet: &mut [u8], now_ms: u64) -> bool {
        let known = Datagram::of(headers).and_then(|datagram| self.fragmented.lock().get(&datagram).copied());
        let Some((ends, _)) = known.filter(|(_, until)| *until > now_ms) else { return false };
        rewrite::ends(packet, headers, &ends, Sums::Complete)
    }
}

fn ports(headers: &Headers) -> Option<(u16, u16)> {
    match headers.transport {
        Transport::Tcp(_) | Transport::Udp(_) => headers.ports(),
        _ => None,
    }
}

/// Whether a packet may begin a flow: a SYN, or any datagram.
fn opens(headers: &Headers) -> bool {
    headers.tcp().is_none_or(|tcp| tcp.flags.syn() && !tcp.flags.ack() && !tcp.flags.rst() && !tcp.flags.fin())
}

fn quoted_ends(quote: &Quote) -> Option<(SocketAddr, SocketAddr)> {
    match quote.transport {
        QuotedTransport::Tcp { src_port, dst_port, .. } | QuotedTransport::Udp { src_port, dst_port } => {
            Some((SocketAddr::new(quote.src, src_port), SocketAddr::new(quote.dst, dst_port)))
        }
        _ => None,
    }
}

/// Host, protocol or port unreachable (RFC 792, RFC 4443 section 3.1), and not "too big".
fn is_unreachable(headers: &Headers) -> bool {
    let Transport::Icmp(icmp) = headers.transport else { return false };
    match headers.protocol {
        protocol::ICMP => icmp.kind == 3 && icmp.code != 4,
        _ => icmp.kind == 1,
    }
}

fn forward_ends(flow: &Flow) -> Ends {
    Ends { src: flow.mask, dst: Some(flow.backend) }
}

/// What the client's packet says about the flow.
fn note_client(flow: &mut Flow, headers: &Headers) {
    let Some(tcp) = headers.tcp() else { return };
    if tcp.flags.rst() {
        flow.phase = Phase::Closing;
    } else if tcp.flags.fin() {
        flow.fins |= 1;
        if flow.fins == 3 {
            flow.phase = Phase::Closing;
        }
    }
}

/// What the backend's packet says about the flow.
fn note_backend(flow: &mut Flow, headers: &Headers) {
    use std::sync::atomic::Ordering;
    let was_opening = flow.phase == Phase::Opening;
    if was_opening {
        flow.phase = Phase::Open;
        flow.syn = None;
        flow.tried = Vec::new();
    }
    match headers.tcp() {
        Some(tcp) if tcp.flags.rst() => flow.phase = Phase::Closing,
        Some(tcp) if tcp.flags.fin() => {
            flow.fins |= 2;
            if flow.fins == 3 {
                flow.phase = Phase::Closing;
            }
        }
        _ if was_opening => {
            // It answers: what was held against it is forgotten.
            flow.state.failures.store(0, Ordering::Relaxed);
            flow.state.ejections.store(0, Ordering::Relaxed);
        }
        _ => {}
    }
}

//! Captures: which packets, and how each is shown.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_control::api::{CaptureRequest, CaptureVerdict, Captured, CapturedPacket, MAX_SNAPLEN};
use overlay_control::{ApiError, Code};
use overlay_dataplane::capture::Filter;
use overlay_dataplane::{Origin, Route, Tuple, Verdict, trace};
use overlay_wire::packet::{Headers, Transport};

use super::{Api, not_found};
use crate::api::Batches;
use crate::capture::{Capture, Choice, MAX_CAPTURES, Packet, peer_of};
use crate::shared::SharedRef;

/// Bytes of packets in one batch: with base64 and words around them below the 1 MiB of a frame.
const BATCH_BYTES: usize = 384 << 10;
/// How long packets are gathered.
const GATHER: Duration = Duration::from_millis(20);

/// A capture that is read.
pub(crate) struct Reading {
    shared: SharedRef,
    capture: Capture,
}

impl Api {
    /// Begins a capture.
    pub(super) async fn choice_of(&self, request: &CaptureRequest) -> Result<Choice, ApiError> {
        let filter: Filter = request.filter.parse().map_err(|error: overlay_dataplane::capture::FilterError| {
            ApiError::new(
                Code::Invalid,
                "the filter cannot be read",
                error.to_string(),
                "write it as in `tcp/443 and host 10.42.1.5`; docs/trace.md has all words",
            )
        })?;
        let peer = match &request.peer {
            None => None,
            Some(name) => {
                let peers = self.core.all_peers();
                let found = peers.iter().find(|peer| peer.name == *name);
                Some(found.ok_or_else(|| not_found("peer", name, "overlayctl peer list"))?.index)
            }
        };
        let addresses = match &request.container {
            None => None,
            Some(name) => {
                let leases = self.core.plumbing.endpoints().await.unwrap_or_default();
                let found = leases.into_iter().find(|lease| lease.name == *name);
                Some(found.ok_or_else(|| not_found("endpoint", name, "overlayctl endpoint list"))?.addresses)
            }
        };
        let dropped = request.verdict.map(|verdict| verdict == CaptureVerdict::Deny);
        Ok(Choice { filter, peer, addresses, dropped })
    }

    pub(super) async fn begin_capture(&self, request: &CaptureRequest) -> Result<Reading, ApiError> {
        let choice = self.choice_of(request).await?;
        let captures = &self.core.shared.captures;
        if request.back_ms.is_some() && !captures.keeps() {
            return Err(ApiError::new(
                Code::Unsupported,
                "nothing is kept to look back at",
                "limits.capture_back_seconds is 0",
                "set it, say to 30, and restart the daemon; or capture without --back",
            ));
        }
        if request.snaplen == 0 || request.snaplen > MAX_SNAPLEN {
            return Err(ApiError::new(
                Code::Invalid,
                format!("{} bytes of each packet cannot be captured", request.snaplen),
                "a packet has 1 to 65,535 bytes",
                "give --snaplen from 1 to 65535",
            ));
        }
        let back = request.back_ms.map(Duration::from_millis);
        let capture = captures.begin(choice, request.snaplen as usize, back).ok_or_else(|| {
            ApiError::new(
                Code::Busy,
                format!("{MAX_CAPTURES} captures are under way"),
                "that is as many as the daemon allows",
                "end one of them and try again",
            )
        })?;
        Ok(Reading { shared: self.core.shared.clone(), capture })
    }
}

impl Batches for Reading {
    async fn next(&mut self) -> Captured {
        self.capture.tap.arrived().await;
        tokio::time::sleep(GATHER).await;
        let (packets, lost) = self.capture.tap.take(BATCH_BYTES);
        Captured { packets: packets.iter().map(|packet| shown(&self.shared, packet)).collect(), lost }
    }
}

/// The tuple of a packet, as the filter sees it.
fn tuple_of(headers: &Headers) -> Tuple {
    let (src_port, dst_port) = match &headers.transport {
        Transport::Tcp(tcp) => (tcp.src_port, tcp.dst_port),
        Transport::Udp(udp) => (udp.src_port, udp.dst_port),
        Transport::Icmp(_) | Transport::Other | Transport::None => (0, 0),
    };
    Tuple { src: headers.src, dst: headers.dst, protocol: headers.protocol, src_port, dst_port }
}

fn shown(shared: &SharedRef, packet: &Packet) -> CapturedPacket {
    let snapshot = shared.snapshot.load();
    let tables = &snapshot.tables;
    let name = |peer| tables.peer_name(Route::Peer(peer));
    let verdict = match packet.verdict {
        Verdict::Forward(peer) => format!("forwarded to {}", name(peer)),
        Verdict::ForwardFragmented(peer, mtu) => format!("forwarded to {} in fragments of {mtu}", name(peer)),
        Verdict::Deliver => "delivered".to_owned(),
        Verdict::Held => "held until its first fragment comes".to_owned(),
        Verdict::Wait(address) => format!("waits for the labels of {address}"),
        Verdict::Drop(reason) => format!("dropped: {reason}"),
        Verdict::DropWithReply(reason) => format!("dropped, and the sender told: {reason}"),
    };
    // A rule has a number and a text for one revision only.
    let decision = packet.notes.decision.filter(|_| packet.revision == tables.revision);
    CapturedPacket {
        at_us: packet.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64),
        outbound: packet.origin == Origin::Tun,
        length: packet.length,
        verdict,
        dropped: packet.verdict.drop_reason().map(|reason| reason.name().to_owned()),
        rule: decision
            .zip(packet.headers.as_ref())
            .map(|(decision, headers)| trace::policy_words(tables, &tuple_of(headers), decision.by)),
        peer: peer_of(packet.origin, &packet.notes).map(name),
        data: STANDARD.encode(&packet.bytes),
    }
}

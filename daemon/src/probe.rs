//! Data-path probes: ICMP echoes between host addresses through the very encapsulation in use. Data is "up" only while
//! such an echo really comes back.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use overlay_wire::packet::{Headers, Transport};

/// Echoes remembered, in seconds at one per second.
const WINDOW: usize = 32;
/// Echoes lost in a row before the data path counts as down.
const LOST_IN_A_ROW: u32 = 3;

#[derive(Clone, Copy, Debug)]
struct Sent {
    sequence: u16,
    at: Instant,
    answered: bool,
}

/// What the probes of one peer found.
#[derive(Debug, Default)]
pub struct ProbeState {
    sent: [Option<Sent>; WINDOW],
    next: u16,
    unanswered: u32,
    round_trip: Option<Duration>,
    last_answer: Option<Instant>,
}

/// Whether packets reach a peer and come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataState {
    /// No echo was sent yet, or the first is still under way.
    Unknown,
    /// An echo came back and fewer than three in a row were lost since.
    Up,
    /// Three in a row were lost, or none ever came back.
    Down,
}

impl ProbeState {
    /// Takes note of an echo about to be sent; its sequence number.
    pub fn send(&mut self, now: Instant) -> u16 {
        if let Some(last) = self.sent[usize::from(self.next.wrapping_sub(1)) % WINDOW]
            && !last.answered
        {
            self.unanswered = self.unanswered.saturating_add(1);
        }
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        self.sent[usize::from(sequence) % WINDOW] = Some(Sent { sequence, at: now, answered: false });
        sequence
    }

    /// Takes note of an answer; its round trip, unless it answers nothing.
    pub fn answer(&mut self, sequence: u16, now: Instant) -> Option<Duration> {
        let sent = self.sent[usize::from(sequence) % WINDOW].as_mut()?;
        if sent.sequence != sequence || sent.answered {
            return None;
        }
        sent.answered = true;
        let round_trip = now.saturating_duration_since(sent.at);
        self.unanswered = 0;
        self.last_answer = Some(now);
        // Smoothed as TCP does (RFC 6298, section 2): seven parts old, one part new.
        self.round_trip = Some(self.round_trip.map_or(round_trip, |old| (old * 7 + round_trip) / 8));
        Some(round_trip)
    }

    /// The data path's state.
    #[must_use]
    pub fn state(&self) -> DataState {
        match (self.last_answer, self.unanswered) {
            (_, lost) if lost >= LOST_IN_A_ROW => DataState::Down,
            (Some(_), _) => DataState::Up,
            (None, _) => DataState::Unknown,
        }
    }

    /// Smoothed round trip.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Share of echoes lost of those remembered and due, 0 to 1.
    #[must_use]
    pub fn loss(&self, now: Instant) -> f64 {
        let due = |sent: &&Sent| sent.answered || now.saturating_duration_since(sent.at) > Duration::from_secs(1);
        let all = self.sent.iter().flatten().filter(due).count();
        let lost = self.sent.iter().flatten().filter(due).filter(|sent| !sent.answered).count();
        if all == 0 { 0.0 } else { lost as f64 / all as f64 }
    }
}

/// Payload of the echoes that are sent on their own account, in bytes.
pub const PAYLOAD: usize = 24;

/// Builds an echo request with `payload` bytes behind its header; `None` when the families differ.
#[must_use]
pub fn echo_request(from: IpAddr, to: IpAddr, id: u16, sequence: u16, payload: usize) -> Option<Vec<u8>> {
    let payload = vec![0x6f; payload];
    let mut out = Vec::with_capacity(payload.len() + 64);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .icmpv4_echo_request(id, sequence)
            .write(&mut out, &payload)
            .ok()?,
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .icmpv6_echo_request(id, sequence)
            .write(&mut out, &payload)
            .ok()?,
        _ => return None,
    }
    Some(out)
}

/// Identifier and sequence number of an echo reply.
#[must_use]
pub fn reply_ids(headers: &Headers, packet: &[u8]) -> Option<(u16, u16)> {
    let Transport::Icmp(icmp) = headers.transport else { return None };
    let is_reply = matches!((headers.is_ipv4(), icmp.kind), (true, 0) | (false, 129));
    let at = usize::from(headers.l4_offset) + 6;
    let sequence = packet.get(at..at + 2)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))?;
    is_reply.then_some((icmp.id?, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_lost_in_a_row_is_down_and_one_answer_is_up() {
        let mut probes = ProbeState::default();
        let start = Instant::now();
        assert_eq!(probes.state(), DataState::Unknown);
        let first = probes.send(start);
        assert_eq!(probes.answer(first, start + Duration::from_millis(3)), Some(Duration::from_millis(3)));
        assert_eq!(probes.state(), DataState::Up);
        for _ in 0..3 {
            probes.send(start);
            assert_eq!(probes.state(), DataState::Up);
        }
        let last = probes.send(start);
        assert_eq!(probes.state(), DataState::Down);
        assert!(probes.answer(last, start).is_some());
        assert_eq!(probes.state(), DataState::Up);
    }

    #[test]
    fn repeated_or_invented_answers_count_for_nothing() {
        let mut probes = ProbeState::default();
        let now = Instant::now();
        let sequence = probes.send(now);
        assert!(probes.answer(sequence, now).is_some());
        assert!(probes.answer(sequence, now).is_none());
        assert!(probes.answer(sequence + 7, now).is_none());
    }

    #[test]
    fn request_and_reply_carry_the_sequence() {
        for (from, to, request, reply) in [("10.0.0.1", "10.0.0.2", 8, 0), ("fd00::1", "fd00::2", 128, 129)] {
            let mut packet =
                echo_request(from.parse().expect("ip"), to.parse().expect("ip"), 77, 513, PAYLOAD).expect("one family");
            let headers = Headers::parse(&packet).expect("valid");
            assert_eq!(reply_ids(&headers, &packet), None, "a request is no reply");
            let at = usize::from(headers.l4_offset);
            assert_eq!(packet[at], request);
            packet[at] = reply;
            let headers = Headers::parse(&packet).expect("valid");
            assert_eq!(reply_ids(&headers, &packet), Some((77, 513)));
        }
    }
}

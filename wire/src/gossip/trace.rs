//! What one member asks another about a packet between them, and what it is told: the steps the packet would take there.

use std::net::IpAddr;

use crate::gossip::codec::{DecodeError, Reader, put_ip, put_name};

/// The most steps of an answer.
pub const MAX_STEPS: usize = 8;
/// The longest name of a step.
pub const MAX_STEP_NAME: usize = 16;
/// The longest text of a step: with all steps at their longest the answer still fits one datagram.
pub const MAX_STEP_TEXT: usize = 112;

/// A packet that is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TracedPacket {
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Source port, or 0.
    pub src_port: u16,
    /// Destination port, or 0.
    pub dst_port: u16,
    /// Its length in bytes.
    pub size: u16,
    /// Whether it may be fragmented.
    pub may_fragment: bool,
}

/// How a step ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceOutcome {
    /// The packet goes on.
    Pass,
    /// The filter forbids it.
    Denied,
    /// Nobody has the destination.
    NoRoute,
    /// The way is down.
    PathDown,
    /// It is too big.
    TooBig,
    /// Its source may not be used from there.
    AntiSpoof,
    /// It is dropped for another reason.
    Dropped,
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceStep {
    /// Its name, printable ASCII without spaces.
    pub name: String,
    /// How it ends.
    pub outcome: TraceOutcome,
    /// What was found, printable ASCII.
    pub text: String,
}

/// The steps of a packet through a host, in order; none: the host does not tell the one who asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TraceAnswer {
    /// The steps.
    pub steps: Vec<TraceStep>,
}

impl TraceOutcome {
    const ALL: [Self; 7] =
        [Self::Pass, Self::Denied, Self::NoRoute, Self::PathDown, Self::TooBig, Self::AntiSpoof, Self::Dropped];

    fn code(self) -> u8 {
        Self::ALL.iter().zip(0..).find(|(outcome, _)| **outcome == self).map_or(0, |(_, code)| code)
    }
}

impl TraceStep {
    /// A step with a text that is cut to what fits; what is not printable ASCII becomes `?`.
    #[must_use]
    pub fn new(name: &str, outcome: TraceOutcome, text: &str) -> Self {
        let clean = |text: &str, max: usize| -> String {
            let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
            text.chars().take(max).map(printable).collect()
        };
        let mut short = clean(text, MAX_STEP_TEXT);
        if text.chars().count() > MAX_STEP_TEXT {
            short.truncate(MAX_STEP_TEXT - 3);
            short.push_str("...");
        }
        Self { name: clean(name, MAX_STEP_NAME).replace(' ', "-"), outcome, text: short }
    }
}

impl TracedPacket {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.protocol);
        put_ip(out, self.src);
        put_ip(out, self.dst);
        for number in [self.src_port, self.dst_port, self.size] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.push(u8::from(self.may_fragment));
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let packet = Self {
            protocol: reader.u8("traced protocol")?,
            src: reader.ip("traced source")?,
            dst: reader.ip("traced destination")?,
            src_port: reader.u16("traced source port")?,
            dst_port: reader.u16("traced destination port")?,
            size: reader.u16("traced size")?,
            may_fragment: match reader.u8("traced fragmentation")? {
                0 => false,
                1 => true,
                _ => return Err(DecodeError::Value { field: "traced fragmentation" }),
            },
        };
        if packet.src.is_ipv4() == packet.dst.is_ipv4() {
            Ok(packet)
        } else {
            Err(DecodeError::Value { field: "traced destination" })
        }
    }
}

impl TraceAnswer {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.steps.len().min(255) as u8);
        for step in &self.steps {
            put_name(out, &step.name);
            out.push(step.outcome.code());
            put_name(out, &step.text);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.count("trace steps", MAX_STEPS)?;
        let mut steps = Vec::new();
        for _ in 0..count {
            let name = reader.name("step name", MAX_STEP_NAME)?;
            let code = usize::from(reader.u8("step outcome")?);
            let outcome = *TraceOutcome::ALL.get(code).ok_or(DecodeError::Value { field: "step outcome" })?;
            let len = reader.count("step text", MAX_STEP_TEXT)?;
            let text = reader.bytes("step text", len)?;
            if !text.iter().all(|byte| *byte == b' ' || byte.is_ascii_graphic()) {
                return Err(DecodeError::Value { field: "step text" });
            }
            steps.push(TraceStep { name, outcome, text: text.iter().copied().map(char::from).collect() });
        }
        Ok(Self { steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::Message;
    use crate::gossip::envelope::MAX_MESSAGE_BYTES;

    #[test]
    fn longest_answer_fits_one_datagram_and_reads_back() {
        let step = TraceStep::new("a name that is too long", TraceOutcome::Dropped, &"long \u{e9}\n".repeat(100));
        assert!(step.text.ends_with("...") && step.text.len() == MAX_STEP_TEXT, "{step:?}");
        let message = Message::Trace { nonce: 7, answer: TraceAnswer { steps: vec![step; MAX_STEPS] } };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{} bytes", bytes.len());
        assert_eq!(Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn texts_that_a_terminal_would_obey_are_refused() {
        let answer = TraceAnswer { steps: vec![TraceStep::new("path", TraceOutcome::Pass, "x")] };
        let mut bytes = Vec::new();
        Message::Trace { nonce: 7, answer }.encode(&mut bytes);
        *bytes.last_mut().expect("a text") = 0x1b;
        assert_eq!(Message::decode(&bytes), Err(DecodeError::Value { field: "step text" }));
    }

    #[test]
    fn packet_of_two_families_is_refused() {
        let packet = TracedPacket {
            protocol: 6,
            src: IpAddr::from([10, 42, 1, 5]),
            dst: IpAddr::from([10, 42, 2, 5]),
            src_port: 0,
            dst_port: 80,
            size: 60,
            may_fragment: false,
        };
        let mut bytes = Vec::new();
        Message::TraceRequest { nonce: 7, packet }.encode(&mut bytes);
        assert_eq!(Message::decode(&bytes), Ok(Message::TraceRequest { nonce: 7, packet }));
        let mixed = TracedPacket { dst: "fd42::5".parse().expect("an address"), ..packet };
        bytes.clear();
        Message::TraceRequest { nonce: 7, packet: mixed }.encode(&mut bytes);
        assert_eq!(Message::decode(&bytes), Err(DecodeError::Value { field: "traced destination" }));
    }
}

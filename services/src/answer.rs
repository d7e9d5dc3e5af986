//! From the bytes of a query to the bytes of an answer.
//!
//! RFC 1035, 2308 (negative answers), 6891 (EDNS), 8020 (names with nothing but names below), 8482 (ANY). What does not fit
//! is cut at whole records and says so.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::StaticCompressor;
use domain::base::name::{ParsedName, ToLabelIter};
use domain::base::{CharStr, Message, MessageBuilder, Question, Serial, ToName, Ttl};
use domain::rdata::{A, Aaaa, Hinfo, Ns, Ptr, Soa};

use crate::zone::{Addresses, Found, Zone};

/// The largest answer over TCP, in bytes.
pub const MAX_TCP_BYTES: usize = 65_535;
/// The largest answer over UDP to a client that names no size (RFC 1035), and to any but those of this host.
const PLAIN_BYTES: u16 = 512;
/// What we say that we take.
const OUR_BYTES: u16 = 1232;
/// Room for our OPT record: root, type, class, TTL, length.
const OPT_BYTES: usize = 11;
/// How long an answer and a denial may be kept.
const TTL: Ttl = Ttl::from_secs(30);
const NEGATIVE_TTL: Ttl = Ttl::from_secs(1);

/// How a query came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// In a datagram; the answer has at most this many bytes.
    Udp {
        /// The ceiling.
        ceiling: u16,
    },
    /// On a connection.
    Tcp,
}

/// What becomes of a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answered {
    /// These bytes go back.
    Reply(Vec<u8>),
    /// It is a proper question about a name that is not ours.
    Elsewhere,
    /// Nothing goes back: it is no query.
    Nothing,
}

/// The sections of an answer before they are written.
struct Draft<'a> {
    message: &'a Message<[u8]>,
    rcode: OptRcode,
    is_ours: bool,
    /// The client speaks EDNS.
    edns: bool,
    limit: usize,
    is_tcp: bool,
}

/// Answers one query. `turn` rotates the order of addresses.
#[must_use]
pub fn answer(zone: &Zone, query: &[u8], transport: Transport, turn: usize) -> Answered {
    let Ok(message) = Message::from_slice(query) else { return Answered::Nothing };
    let header = message.header();
    if header.qr() {
        return Answered::Nothing;
    }
    let opt = message.opt();
    let asked = opt.as_ref().map_or(PLAIN_BYTES, |opt| opt.udp_payload_size().max(PLAIN_BYTES));
    let limit = match transport {
        Transport::Udp { ceiling } => usize::from(asked.min(ceiling.max(PLAIN_BYTES))),
        Transport::Tcp => MAX_TCP_BYTES,
    };
    let is_tcp = transport == Transport::Tcp;
    let mut draft = Draft { message, rcode: OptRcode::NOERROR, is_ours: false, edns: opt.is_some(), limit, is_tcp };
    let refuse = |draft: &mut Draft<'_>, rcode: OptRcode| {
        draft.rcode = rcode;
        draft.write(|_| true, |_| true)
    };
    if header.opcode() != Opcode::QUERY {
        return refuse(&mut draft, OptRcode::NOTIMP);
    }
    let Ok(question) = message.sole_question() else { return refuse(&mut draft, OptRcode::FORMERR) };
    if opt.is_some_and(|opt| opt.version() > 0) {
        return refuse(&mut draft, OptRcode::BADVERS);
    }
    if question.qclass() != Class::IN || matches!(question.qtype(), Rtype::AXFR | Rtype::IXFR) {
        return refuse(&mut draft, OptRcode::REFUSED);
    }
    draft.is_ours = true;
    draft.found(zone, &question, turn)
}

/// An answer of one code and nothing else, to a question that could not be answered.
#[must_use]
pub fn failure(query: &[u8], rcode: u8) -> Option<Vec<u8>> {
    let message = Message::from_slice(query).ok().filter(|message| !message.header().qr())?;
    let (edns, limit) = (message.opt().is_some(), usize::from(PLAIN_BYTES));
    let rcode = OptRcode::from_rcode(Rcode::masked_from_int(rcode));
    let draft = Draft { message, rcode, is_ours: false, edns, limit, is_tcp: false };
    match draft.write(|_| true, |_| true) {
        Answered::Reply(bytes) => Some(bytes),
        Answered::Elsewhere | Answered::Nothing => None,
    }
}

type Answers = domain::base::message_builder::AnswerBuilder<StaticCompressor<Vec<u8>>>;
type Authorities = domain::base::message_builder::AuthorityBuilder<StaticCompressor<Vec<u8>>>;

impl Draft<'_> {
    fn found(mut self, zone: &Zone, question: &Question<ParsedName<&[u8]>>, turn: usize) -> Answered {
        let mut labels: [&[u8]; 128] = [&[]; 128];
        let mut count = 0;
        for label in question.qname().iter_labels().filter(|label| !label.is_root()) {
            let Some(slot) = labels.get_mut(count) else { break };
            *slot = label.as_slice();
            count += 1;
        }
        let labels = &labels[..count];
        let (name, kind) = (question.qname(), question.qtype());
        let found = zone.find(labels);
        if kind == Rtype::ANY && !matches!(found, Found::Empty | Found::Nothing | Found::Elsewhere) {
            return self.write(|answers| push_any(answers, name), |_| true);
        }
        match found {
            Found::Elsewhere => Answered::Elsewhere,
            Found::Addresses(addresses) if kind == Rtype::A && !addresses.v4.is_empty() => {
                self.write(|answers| push_v4(answers, name, addresses, turn), |_| true)
            }
            Found::Addresses(addresses) if kind == Rtype::AAAA && !addresses.v6.is_empty() => {
                self.write(|answers| push_v6(answers, name, addresses, turn), |_| true)
            }
            Found::Address(std::net::IpAddr::V4(v4)) if kind == Rtype::A => {
                self.write(|answers| answers.push((name, Class::IN, TTL, A::new(v4))).is_ok(), |_| true)
            }
            Found::Address(std::net::IpAddr::V6(v6)) if kind == Rtype::AAAA => {
                self.write(|answers| answers.push((name, Class::IN, TTL, Aaaa::new(v6))).is_ok(), |_| true)
            }
            Found::Pointer(target) if kind == Rtype::PTR => {
                self.write(|answers| answers.push((name, Class::IN, TTL, Ptr::new(target))).is_ok(), |_| true)
            }
            Found::Apex if kind == Rtype::SOA => {
                self.write(|answers| answers.push((name, Class::IN, TTL, soa(zone))).is_ok(), |_| true)
            }
            Found::Apex if kind == Rtype::NS => {
                self.write(|answers| answers.push((name, Class::IN, TTL, Ns::new(&zone.server))).is_ok(), |_| true)
            }
            other => {
                if other == Found::Nothing {
                    self.rcode = OptRcode::NXDOMAIN;
                }
                let apex = zone.zone_of(labels);
                self.write(|_| true, |authority| authority.push((apex, Class::IN, NEGATIVE_TTL, soa(zone))).is_ok())
            }
        }
    }

    /// Writes the answer: whole records as far as there is room.
    fn write(
        &self,
        answers: impl FnOnce(&mut Answers) -> bool,
        authorities: impl FnOnce(&mut Authorities) -> bool,
    ) -> Answered {
        let target = StaticCompressor::new(Vec::with_capacity(PLAIN_BYTES.into()));
        let Ok(mut builder) = MessageBuilder::from_target(target);
        let opt = if self.edns { OPT_BYTES } else { 0 };
        builder.set_push_limit(self.limit.saturating_sub(opt));
        // A question that cannot be read is not repeated.
        let unreadable = self.rcode == OptRcode::FORMERR;
        let mut answer = match unreadable {
            false => builder.start_error(self.message, self.rcode.rcode()),
            true => {
                let header = builder.header_mut();
                header.set_id(self.message.header().id());
                header.set_qr(true);
                header.set_opcode(self.message.header().opcode());
                header.set_rcode(Rcode::FORMERR);
                builder.answer()
            }
        };
        answer.header_mut().set_aa(self.is_ours);
        answer.header_mut().set_ra(true);
        let is_whole = answers(&mut answer);
        let mut authority = answer.authority();
        let _ = authorities(&mut authority);
        let mut additional = authority.additional();
        if !is_whole {
            // Over TCP there is nowhere to ask again; the first records are as good as others.
            additional.header_mut().set_tc(!self.is_tcp);
        }
        additional.clear_push_limit();
        if self.edns {
            let rcode = self.rcode;
            let written = additional.opt(|opt| {
                opt.set_udp_payload_size(OUR_BYTES);
                opt.set_rcode(rcode);
                Ok(())
            });
            if written.is_err() {
                return Answered::Nothing;
            }
        }
        Answered::Reply(additional.finish().into_target())
    }
}

fn soa(zone: &Zone) -> Soa<&crate::zone::Wire> {
    let second = Ttl::from_secs(1);
    Soa::new(&zone.server, &zone.mailbox, Serial(zone.serial), Ttl::from_secs(30), second, Ttl::from_secs(60), second)
}

fn rotated<T: Copy>(list: &[T], turn: usize) -> impl Iterator<Item = T> + '_ {
    let at = if list.is_empty() { 0 } else { turn % list.len() };
    list[at..].iter().chain(&list[..at]).copied()
}

fn push_v4(answers: &mut Answers, name: &impl ToName, addresses: &Addresses, turn: usize) -> bool {
    rotated(&addresses.v4, turn).all(|ip| answers.push((name, Class::IN, TTL, A::new(ip))).is_ok())
}

fn push_v6(answers: &mut Answers, name: &impl ToName, addresses: &Addresses, turn: usize) -> bool {
    rotated(&addresses.v6, turn).all(|ip| answers.push((name, Class::IN, TTL, Aaaa::new(ip))).is_ok())
}

fn push_any(answers: &mut Answers, name: &impl ToName) -> bool {
    let text = |text: &'static [u8]| CharStr::from_octets(text);
    match (text(b"RFC8482"), text(b"")) {
        (Ok(cpu), Ok(os)) => answers.push((name, Class::IN, TTL, Hinfo::new(cpu, os))).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;

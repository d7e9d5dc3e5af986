//! What a forwarder has to know of messages that it passes on.

use domain::base::Message;
use domain::base::name::ToLabelIter as _;

/// A question as it is compared: name in lower case, type and class, in wire form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Question(Vec<u8>);

/// The length of a message's header, in bytes (RFC 1035, section 4.1.1).
const HEADER_BYTES: usize = 12;
/// The bits that make a length byte a pointer (RFC 1035, section 4.1.4).
const POINTER: u8 = 0xc0;

/// The id and the question of a query or answer that asks exactly one thing. The name must be spelled out: nothing
/// stands before it that it could point to but the header, which changes on the way.
#[must_use]
pub fn question(bytes: &[u8]) -> Option<(u16, Question)> {
    if !is_spelled_out(bytes.get(HEADER_BYTES..)?) {
        return None;
    }
    let message = Message::from_slice(bytes).ok()?;
    let question = message.sole_question().ok()?;
    let mut text = Vec::with_capacity(64);
    for label in question.qname().iter_labels() {
        text.push(label.len() as u8);
        text.extend(label.as_slice().iter().map(u8::to_ascii_lowercase));
    }
    text.extend(question.qtype().to_int().to_be_bytes());
    text.extend(question.qclass().to_int().to_be_bytes());
    Some((message.header().id(), Question(text)))
}

/// Whether a name that begins here has no pointer.
fn is_spelled_out(mut rest: &[u8]) -> bool {
    while let Some((length, behind)) = rest.split_first() {
        match *length {
            0 => return true,
            length if length & POINTER != 0 => return false,
            length => rest = behind.get(usize::from(length)..).unwrap_or_default(),
        }
    }
    false
}

/// Whether these bytes answer a question that was asked under an id.
#[must_use]
pub fn is_answer(bytes: &[u8], id: u16, asked: &Question) -> bool {
    let is_response = Message::from_slice(bytes).is_ok_and(|message| message.header().qr());
    is_response && question(bytes).is_some_and(|(found, question)| found == id && question == *asked)
}

/// The same message under another id.
#[must_use]
pub fn with_id(bytes: &[u8], id: u16) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    if let Some(place) = copy.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
    copy
}

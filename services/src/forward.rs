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

/// The same query with the letters of its name in an arbitrary case: a server copies the name as it was asked, and whoever
/// forges an answer has to guess it too (draft-vixie-dnsext-dns0x20). Of `dice` each bit decides about one letter.
#[must_use]
pub fn with_case(query: &[u8], dice: &[u8; NAME_BITS_BYTES]) -> Vec<u8> {
    let mut copy = query.to_vec();
    for (number, byte) in letters(&mut copy).enumerate() {
        if dice[number / 8 % NAME_BITS_BYTES] >> (number % 8) & 1 == 1 {
            *byte ^= b' ';
        }
    }
    copy
}

/// Bytes with one bit for each letter that a name can have.
pub const NAME_BITS_BYTES: usize = 32;

/// Whether two messages about one question spell its name alike.
#[must_use]
pub fn is_spelled_alike(one: &[u8], other: &[u8]) -> bool {
    let name = |bytes: &[u8]| name_end(bytes).and_then(|end| bytes.get(HEADER_BYTES..end).map(<[u8]>::to_vec));
    name(one).is_some_and(|name_of_one| Some(name_of_one) == name(other))
}

/// An answer for a client: under its id, and with the name spelled as it asked.
#[must_use]
pub fn as_asked(answer: &[u8], query: &[u8]) -> Vec<u8> {
    let mut copy = answer.to_vec();
    if let (Some(end), Some(same)) = (name_end(query), name_end(answer))
        && end == same
    {
        copy[HEADER_BYTES..end].copy_from_slice(&query[HEADER_BYTES..end]);
    }
    match query.first_chunk::<2>() {
        Some(id) => with_id(&copy, u16::from_be_bytes(*id)),
        None => copy,
    }
}

/// What of a query decides about its answer: everything but the id and the spelling of the name.
#[must_use]
pub fn essence(query: &[u8]) -> Vec<u8> {
    let mut copy = with_id(query, 0);
    letters(&mut copy).for_each(|byte| byte.make_ascii_lowercase());
    copy
}

/// The letters of the name that a message asks for; none where it is not spelled out.
fn letters(message: &mut [u8]) -> impl Iterator<Item = &mut u8> {
    let end = name_end(message).unwrap_or(HEADER_BYTES).min(message.len());
    // A length byte is at most 63, which is no letter.
    message.get_mut(HEADER_BYTES..end).unwrap_or_default().iter_mut().filter(|byte| byte.is_ascii_alphabetic())
}

/// Where the name of the first question ends.
fn name_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & POINTER != 0 => return None,
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03wWw\x05x-7yz\x03org\x00\x00\x01\x00\x01";

    #[test]
    fn case_is_thrown_for_letters_alone_and_the_question_stays() {
        let all = with_case(QUERY, &[0xff; NAME_BITS_BYTES]);
        assert_eq!(&all[13..16], b"WwW");
        assert_eq!(&all[17..22], b"X-7YZ");
        assert_eq!((all[12], &all[26..]), (3, &QUERY[26..]));
        assert_eq!(question(&all), question(QUERY));
        assert!(!is_spelled_alike(&all, QUERY) && is_spelled_alike(&all, &with_id(&all, 7)));
        assert_eq!(with_case(QUERY, &[0; NAME_BITS_BYTES]), QUERY);
        assert_eq!(with_case(&all, &[0xff; NAME_BITS_BYTES]), QUERY);
    }

    #[test]
    fn answer_goes_back_as_it_was_asked() {
        let all = with_case(&with_id(QUERY, 99), &[0xff; NAME_BITS_BYTES]);
        assert_eq!(as_asked(&all, QUERY), QUERY);
        assert_eq!(essence(&all), essence(QUERY));
        let other = [QUERY, &[0][..]].concat();
        assert_ne!(essence(&other), essence(QUERY));
    }

    #[test]
    fn messages_cut_anywhere_and_pointers_are_left_alone() {
        for end in 0..QUERY.len() {
            let cut = &QUERY[..end];
            assert_eq!(with_case(cut, &[0xff; NAME_BITS_BYTES]).len(), end);
            assert_eq!(essence(cut).len(), end);
            assert!(end >= 26 || !is_spelled_alike(cut, cut), "{end}");
        }
        let pointed = [&QUERY[..12], b"\xc0\x0c\x00\x01\x00\x01"].concat();
        assert_eq!(with_case(&pointed, &[0xff; NAME_BITS_BYTES]), pointed);
        assert_eq!(as_asked(&pointed, QUERY)[2..], pointed[2..]);
    }
}

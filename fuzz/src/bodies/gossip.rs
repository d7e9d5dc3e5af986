//! Bodies over gossip formats: one encoding per value, so whatever decodes encodes back to the same bytes.

use overlay_wire::gossip::codec::Reader;
use overlay_wire::gossip::envelope::{Content, Envelope, IntroduceAckContent, IntroduceContent};
use overlay_wire::gossip::identities::{Identities, place};
use overlay_wire::gossip::{HostBody, IdentitiesBody, Message, NamesBody, NetworksBody, Record, RoutesBody};

/// The clear envelope, and the contents sealed in it.
pub fn envelope(bytes: &[u8]) {
    if let Ok(envelope) = Envelope::parse(bytes) {
        let (header, ciphertext) = match envelope {
            Envelope::Sealed { header, ciphertext, .. }
            | Envelope::Introduce { header, ciphertext, .. }
            | Envelope::IntroduceAck { header, ciphertext, .. }
            | Envelope::Join { header, ciphertext, .. }
            | Envelope::JoinAck { header, ciphertext, .. } => (header, ciphertext),
        };
        assert_eq!([header, ciphertext].concat(), bytes);
    }
    if let Ok(content) = Content::decode(bytes) {
        assert_eq!(content.encode(), bytes);
    }
    if let Ok(content) = IntroduceContent::decode(bytes) {
        assert_eq!(content.encode(), bytes);
    }
    if let Ok(content) = IntroduceAckContent::decode(bytes) {
        assert_eq!(content.encode(), bytes);
    }
}

/// Messages.
pub fn message(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(again, bytes);
    }
}

/// Records and their bodies.
pub fn record(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    if let Ok(record) = Record::decode(&mut reader) {
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(again.len(), record.encoded_len());
        assert_eq!([&again, reader.rest()].concat(), bytes);
    }
    if let Ok(body) = HostBody::decode(bytes) {
        assert_eq!(body.encode().as_deref(), Ok(bytes));
    }
    if let Ok(body) = NamesBody::decode(bytes) {
        assert_eq!(body.encode().as_deref(), Ok(bytes));
    }
    if let Ok(body) = IdentitiesBody::decode(bytes) {
        assert_eq!(body.encode().as_deref(), Ok(bytes));
        let all: Identities = body.iter().map(|(address, labels)| (address, labels.clone())).collect();
        // What fitted one record stays in it, and alone it needs no more.
        assert_eq!(place(std::slice::from_ref(&body), &all), (vec![body], 0));
        let (pieces, left_out) = place(&[], &all);
        assert!(left_out == 0 && pieces.len() <= 2 && pieces.iter().all(|piece| piece.encode().is_ok()));
    }
    if let Ok(body) = RoutesBody::decode(bytes) {
        assert_eq!(body.encode().as_deref(), Ok(bytes));
    }
    if let Ok(body) = NetworksBody::decode(bytes) {
        assert_eq!(body.encode(), bytes);
        if body.extension.is_empty() && !body.networks.is_empty() {
            assert_eq!(NetworksBody::pack(&body.networks).as_deref(), Ok([bytes.to_vec()].as_slice()));
        }
    }
}

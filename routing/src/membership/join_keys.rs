//! Keys and signature of the join exchange; docs/gossip.md gives the schedule and test vectors.
//!
//! Both datagrams need the token's secret and one half of an X25519 result to the issuer's identity: who lacks either can
//! neither read nor make them.

use overlay_wire::HostId;
use overlay_wire::gossip::envelope::{join_ack_header, join_header};
use overlay_wire::membership::join::JOIN_SIGNATURE_DOMAIN;
use overlay_wire::membership::{CaId, TokenId};
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};

use crate::gossip::crypto::{Key, diffie_hellman, first_eight, kdf, seal};

const JOIN_DOMAIN: &[u8] = b"overlay join v1\0";
const JOIN_TAG_DOMAIN: &[u8] = b"overlay join tag v1\0";
const JOIN_ACK_DOMAIN: &[u8] = b"overlay join-ack v1\0";

/// What both sides of one exchange agree on before the first byte.
pub(crate) struct JoinTranscript<'a> {
    pub(crate) ca: CaId,
    pub(crate) issuer: HostId,
    pub(crate) token: TokenId,
    pub(crate) ephemeral: [u8; 32],
    pub(crate) secret_digest: &'a [u8; 32],
}

/// The keys of one exchange.
pub(crate) struct JoinKeys(SharedSecret);

impl JoinKeys {
    /// From the joiner's ephemeral secret and the issuer's identity, or the other way round.
    pub(crate) fn new(secret: &StaticSecret, public: &PublicKey) -> Option<Self> {
        diffie_hellman(secret, public).map(Self)
    }

    pub(crate) fn request_key(&self, transcript: &JoinTranscript<'_>) -> Key {
        let t = transcript;
        let chain = kdf(self.0.as_bytes(), &[JOIN_DOMAIN, &t.ca.0, &t.issuer.0, &t.token.0, &t.ephemeral]);
        kdf(&chain, &[t.secret_digest])
    }

    /// The tag that names the JOIN in its answer.
    pub(crate) fn tag(&self, ephemeral: &[u8; 32]) -> [u8; 8] {
        first_eight(&kdf(self.0.as_bytes(), &[JOIN_TAG_DOMAIN, ephemeral]))
    }

    pub(crate) fn answer_key(&self, transcript: &JoinTranscript<'_>, joiner: HostId) -> Key {
        let t = transcript;
        let parts: [&[u8]; 6] = [JOIN_ACK_DOMAIN, &t.ca.0, &t.issuer.0, &t.token.0, &t.ephemeral, &joiner.0];
        kdf(&kdf(self.0.as_bytes(), &parts), &[t.secret_digest])
    }

    pub(crate) fn seal_request(&self, transcript: &JoinTranscript<'_>, nonce: &[u8; 24], content: &[u8]) -> Vec<u8> {
        let header = join_header(&transcript.ephemeral, &transcript.token.0, nonce);
        seal(&self.request_key(transcript), nonce, header, content)
    }

    pub(crate) fn seal_answer(
        &self,
        transcript: &JoinTranscript<'_>,
        joiner: HostId,
        nonce: &[u8; 24],
        content: &[u8],
    ) -> Vec<u8> {
        let header = join_ack_header(&self.tag(&transcript.ephemeral), nonce);
        seal(&self.answer_key(transcript, joiner), nonce, header, content)
    }
}

/// The bytes a joiner's signature covers.
pub(crate) fn join_signed_bytes(transcript: &JoinTranscript<'_>, unsigned: &[u8]) -> Vec<u8> {
    let t = transcript;
    [JOIN_SIGNATURE_DOMAIN, &t.ca.0, &t.issuer.0, &t.token.0, &t.ephemeral, unsigned].concat()
}

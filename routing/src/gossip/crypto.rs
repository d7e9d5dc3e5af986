//! Key schedule and sealing of gossip datagrams; docs/gossip.md gives the layout and test vectors.
//!
//! Every key is BLAKE2s-256 keyed with an X25519 shared secret over a domain tag, the cluster id and the public values
//! of both sides. Datagrams are sealed with XChaCha20-Poly1305 under random 192-bit nonces; the header in clear is
//! authenticated with them.

use blake2::Blake2sMac256;
use blake2::digest::Mac as _;
use chacha20poly1305::aead::{Aead as _, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use overlay_wire::HostId;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

pub(super) const SEAL_DOMAIN: &[u8] = b"overlay gossip seal v1\0";
pub(super) const TAG_DOMAIN: &[u8] = b"overlay gossip tag v1\0";
pub(super) const GRE_DOMAIN: &[u8] = b"overlay gre key v1\0";
pub(super) const INTRODUCE_DOMAIN: &[u8] = b"overlay introduce v1\0";
pub(super) const INTRODUCE_TAG_DOMAIN: &[u8] = b"overlay introduce tag v1\0";
pub(super) const INTRODUCE_ACK_DOMAIN: &[u8] = b"overlay introduce-ack v1\0";
pub(super) const INTRODUCE_SIGNATURE_DOMAIN: &[u8] = b"overlay introduce signature v1\0";

/// A 32-byte symmetric key, wiped when dropped.
pub(crate) type Key = Zeroizing<[u8; 32]>;

/// One direction of a pair: who seals, who opens, and under which box keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Direction<'a> {
    pub(super) cluster: &'a [u8; 32],
    pub(super) from: HostId,
    pub(super) to: HostId,
    pub(super) from_box: [u8; 32],
    pub(super) to_box: [u8; 32],
}

impl Direction<'_> {
    /// The key that seals this direction.
    pub(super) fn seal_key(&self, shared: &SharedSecret) -> Key {
        self.derive(SEAL_DOMAIN, shared)
    }

    /// The tag that names this direction to the receiver.
    pub(super) fn tag(&self, shared: &SharedSecret) -> [u8; 8] {
        first_eight(&self.derive(TAG_DOMAIN, shared))
    }

    /// The GRE key of the pair, the same for both directions: call it on the direction from the lower host id.
    pub(super) fn gre_key(&self, shared: &SharedSecret) -> u32 {
        let key = self.derive(GRE_DOMAIN, shared);
        u32::from_be_bytes([key[0], key[1], key[2], key[3]])
    }

    fn derive(&self, domain: &[u8], shared: &SharedSecret) -> Key {
        kdf(shared.as_bytes(), &[domain, self.cluster, &self.from.0, &self.to.0, &self.from_box, &self.to_box])
    }
}

/// The keys of one first contact.
pub(super) struct IntroduceKeys {
    shared: SharedSecret,
}

impl IntroduceKeys {
    /// From the initiator's ephemeral secret and the responder's identity, or the other way round.
    ///
    /// `None` when the shared secret does not depend on our half.
    pub(super) fn new(secret: &StaticSecret, public: &PublicKey) -> Option<Self> {
        diffie_hellman(secret, public).map(|shared| Self { shared })
    }

    /// The key that seals the INTRODUCE.
    pub(super) fn introduce_key(&self, cluster: &[u8; 32], responder: HostId, ephemeral: &[u8; 32]) -> Key {
        kdf(self.shared.as_bytes(), &[INTRODUCE_DOMAIN, cluster, &responder.0, ephemeral])
    }

    /// The tag that names the INTRODUCE in its answer.
    pub(super) fn tag(&self, ephemeral: &[u8; 32]) -> [u8; 8] {
        first_eight(&kdf(self.shared.as_bytes(), &[INTRODUCE_TAG_DOMAIN, ephemeral]))
    }

    /// The key that seals the answer: bound to both identities, the INTRODUCE, and the responder's box key.
    pub(super) fn ack_key(&self, transcript: &AckTranscript<'_>, box_shared: &SharedSecret) -> Key {
        let chain = kdf(
            self.shared.as_bytes(),
            &[
                INTRODUCE_ACK_DOMAIN,
                transcript.cluster,
                &transcript.initiator.0,
                &transcript.responder.0,
                transcript.ephemeral,
                transcript.responder_box,
                &transcript.nonce.to_be_bytes(),
            ],
        );
        kdf(&chain, &[box_shared.as_bytes()])
    }
}

/// What the key of an answer is bound to.
pub(super) struct AckTranscript<'a> {
    pub(super) cluster: &'a [u8; 32],
    pub(super) initiator: HostId,
    pub(super) responder: HostId,
    pub(super) ephemeral: &'a [u8; 32],
    pub(super) responder_box: &'a [u8; 32],
    pub(super) nonce: u64,
}

/// The bytes an INTRODUCE's signature covers.
pub(super) fn introduce_signed_bytes(
    cluster: &[u8; 32],
    responder: HostId,
    ephemeral: &[u8; 32],
    unsigned: &[u8],
) -> Vec<u8> {
    [INTRODUCE_SIGNATURE_DOMAIN, cluster, &responder.0, ephemeral, unsigned].concat()
}

/// A shared secret, refused where it is the same for every secret of ours.
pub(crate) fn diffie_hellman(secret: &StaticSecret, public: &PublicKey) -> Option<SharedSecret> {
    let shared = secret.diffie_hellman(public);
    shared.was_contributory().then_some(shared)
}

/// Seals `content` behind `header`, which is returned in front of it.
pub(crate) fn seal(key: &Key, nonce: &[u8; 24], header: Vec<u8>, content: &[u8]) -> Vec<u8> {
    let cipher = XChaCha20Poly1305::new((&**key).into());
    let ciphertext = cipher
        .encrypt(XNonce::from_slice(nonce), Payload { msg: content, aad: &header })
        .expect("a datagram is far below the cipher's length limit");
    let mut datagram = header;
    datagram.extend_from_slice(&ciphertext);
    datagram
}

/// The sealed part of a datagram as it came in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sealed<'a> {
    /// Everything before the ciphertext; authenticated with it.
    pub(crate) header: &'a [u8],
    pub(crate) nonce: [u8; 24],
    pub(crate) ciphertext: &'a [u8],
}

impl Sealed<'_> {
    /// Opens the ciphertext; `None` when it does not authenticate.
    pub(crate) fn open(&self, key: &Key) -> Option<Zeroizing<Vec<u8>>> {
        let cipher = XChaCha20Poly1305::new((&**key).into());
        let payload = Payload { msg: self.ciphertext, aad: self.header };
        cipher.decrypt(XNonce::from_slice(&self.nonce), payload).ok().map(Zeroizing::new)
    }

    pub(super) fn len(&self) -> usize {
        self.header.len() + self.ciphertext.len()
    }
}

pub(crate) fn kdf(key: &[u8; 32], parts: &[&[u8]]) -> Key {
    let mut mac = <Blake2sMac256 as blake2::digest::KeyInit>::new(key.into());
    parts.iter().for_each(|part| mac.update(part));
    Zeroizing::new(mac.finalize().into_bytes().into())
}

pub(crate) fn first_eight(key: &Key) -> [u8; 8] {
    let mut tag = [0; 8];
    tag.copy_from_slice(&key[..8]);
    tag
}

//! Sealed datagrams written anew from docs/gossip.md, for members that do not run our state machine.

use blake2::Blake2sMac256;
use blake2::digest::Mac as _;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use overlay_wire::HostId;
use overlay_wire::gossip::Message;
use overlay_wire::gossip::envelope::{Content, MAX_MESSAGE_BYTES, sealed_header};
use x25519_dalek::{PublicKey, StaticSecret};

/// One end of a pair of hosts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) host: HostId,
    pub(crate) box_key: [u8; 32],
}

/// The channel to one member, from our side.
pub(crate) struct Channel {
    seal_key: [u8; 32],
    open_key: [u8; 32],
    send_tag: [u8; 8],
    pub(crate) receive_tag: [u8; 8],
    sequence: u64,
}

impl Channel {
    pub(crate) fn new(cluster: &[u8; 32], secret: &StaticSecret, us: End, them: End) -> Self {
        let shared = secret.diffie_hellman(&PublicKey::from(them.box_key));
        let derive = |domain: &[u8], from: End, to: End| -> [u8; 32] {
            let mut mac = <Blake2sMac256 as KeyInit>::new(shared.as_bytes().into());
            for part in [domain, cluster, &from.host.0, &to.host.0, &from.box_key, &to.box_key] {
                mac.update(part);
            }
            mac.finalize().into_bytes().into()
        };
        let tag = |from, to| {
            let mut tag = [0; 8];
            tag.copy_from_slice(&derive(b"overlay gossip tag v1\0", from, to)[..8]);
            tag
        };
        Self {
            seal_key: derive(b"overlay gossip seal v1\0", us, them),
            open_key: derive(b"overlay gossip seal v1\0", them, us),
            send_tag: tag(us, them),
            receive_tag: tag(them, us),
            sequence: 0,
        }
    }

    /// Seals a message; `None` when it is too large.
    pub(crate) fn seal(&mut self, message: &Message, boot_epoch: u64, nonce: [u8; 24]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        if bytes.len() > MAX_MESSAGE_BYTES {
            return None;
        }
        self.sequence += 1;
        let content = Content { boot_epoch, sequence: self.sequence, message: &bytes }.encode();
        let mut datagram = sealed_header(&self.send_tag, &nonce);
        let payload = Payload { msg: &content, aad: &datagram };
        let ciphertext =
            XChaCha20Poly1305::new((&self.seal_key).into()).encrypt(XNonce::from_slice(&nonce), payload).ok()?;
        datagram.extend_from_slice(&ciphertext);
        Some(datagram)
    }

    /// Opens a datagram, without a replay window.
    pub(crate) fn open(&self, header: &[u8], nonce: &[u8; 24], ciphertext: &[u8]) -> Option<Message> {
        let payload = Payload { msg: ciphertext, aad: header };
        let content =
            XChaCha20Poly1305::new((&self.open_key).into()).decrypt(XNonce::from_slice(nonce), payload).ok()?;
        Message::decode(Content::decode(&content).ok()?.message).ok()
    }
}

//! The joiner: asks an issuer until it is answered, and believes only the authority its token names.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::body::MAX_NAME_BYTES;
use overlay_wire::gossip::codec::is_name;
use overlay_wire::gossip::envelope::Envelope;
use overlay_wire::membership::{Admission, JoinAnswer, JoinContent, JoinRefusal, Rights};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize as _, Zeroizing};

use super::join_keys::{JoinKeys, JoinTranscript, join_signed_bytes};
use super::{Token, ca_id, verify_certificate};
use crate::gossip::crypto::Sealed;
use crate::gossip::{Transmit, cluster_id};
use crate::identity::{IdentityKey, IdentityPublic};

/// How a join ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinEvent {
    /// The host is a member.
    Admitted(Box<Admission>),
    /// The issuer refuses it.
    Refused(JoinRefusal),
    /// Nobody answered in time.
    NoAnswer,
}

/// Why a join cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinerError {
    /// The wanted name is not valid.
    #[error("a name is 1 to 63 printable ASCII characters without spaces")]
    Name,
    /// The issuer's key gives no shared secret.
    #[error("the token's issuer is not a valid key")]
    Issuer,
}

/// The first pause before a JOIN is sent again.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The joining side of the exchange; sans-IO like the gossip machine.
///
/// The same datagram is sent to every endpoint until one answers: the issuer answers a repeated request with the same
/// certificate.
pub struct Joiner {
    token: Token,
    secret_digest: Zeroizing<[u8; 32]>,
    host: HostId,
    identity: IdentityPublic,
    keys: JoinKeys,
    ephemeral: [u8; 32],
    datagram: Vec<u8>,
    pause: Duration,
    next: Option<Instant>,
    deadline: Instant,
    transmits: VecDeque<Transmit>,
    event: Option<JoinEvent>,
}

impl Joiner {
    /// Begins; the first datagrams are there to be polled. `seed` must come from the operating system's generator.
    ///
    /// # Errors
    /// When the name or the token is not usable.
    pub fn new(
        token: Token,
        identity: &IdentityKey,
        name: &str,
        seed: [u8; 32],
        now: Instant,
        patience: Duration,
    ) -> Result<Self, JoinerError> {
        if name.len() > MAX_NAME_BYTES || !is_name(name.as_bytes()) {
            return Err(JoinerError::Name);
        }
        let mut rng = ChaCha20Rng::from_seed(seed);
        let secret = StaticSecret::random_from_rng(&mut rng);
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let ephemeral = PublicKey::from(&secret).to_bytes();
        let keys = JoinKeys::new(&secret, &token.issuer.to_x25519()).ok_or(JoinerError::Issuer)?;
        let secret_digest = token.secret_digest();
        let mut joiner = Self {
            host: identity.host_id(),
            identity: identity.public(),
            keys,
            ephemeral,
            datagram: Vec::new(),
            pause: FIRST_PAUSE,
            next: Some(now),
            deadline: now + patience,
            transmits: VecDeque::new(),
            event: None,
            secret_digest,
            token,
        };
        let mut content = JoinContent {
            identity: *joiner.identity.as_bytes(),
            name: name.to_owned(),
            secret: *joiner.token.secret,
            signature: [0; 64],
        };
        let transcript = joiner.transcript();
        let unsigned = Zeroizing::new(content.unsigned_bytes());
        let signed = Zeroizing::new(join_signed_bytes(&transcript, &unsigned));
        content.signature = identity.sign(&signed);
        let encoded = Zeroizing::new(content.encode());
        joiner.datagram = joiner.keys.seal_request(&transcript, &nonce, &encoded);
        content.secret.zeroize();
        joiner.handle_timeout(now);
        Ok(joiner)
    }

    /// Takes a datagram; whatever is not the issuer's answer is ignored. Where it came `from` is the first of the addresses at
    /// which the admission names the issuer: an issuer behind a NAT does not know that one.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8]) {
        if self.next.is_none() {
            return;
        }
        let Ok(Envelope::JoinAck { header, tag, nonce, ciphertext }) = Envelope::parse(bytes) else { return };
        if tag != self.keys.tag(&self.ephemeral) {
            return;
        }
        let key = self.keys.answer_key(&self.transcript(), self.host);
        let Some(content) = (Sealed { header, nonce, ciphertext }).open(&key) else { return };
        let event = match JoinAnswer::decode(&content) {
            Ok(JoinAnswer::Refused(refusal)) => JoinEvent::Refused(refusal),
            Ok(JoinAnswer::Admitted(mut admission)) if self.is_believable(&admission) => {
                admission.endpoints.retain(|endpoint| *endpoint != from);
                admission.endpoints.insert(0, from);
                JoinEvent::Admitted(admission)
            }
            _ => return,
        };
        self.next = None;
        self.transmits.clear();
        self.event = Some(event);
    }

    /// Asks again when it is time, or gives up.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(next) = self.next else { return };
        if now >= self.deadline {
            self.next = None;
            self.event = Some(JoinEvent::NoAnswer);
        } else if now >= next {
            self.next = Some((now + self.pause).min(self.deadline));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.transmits.clear();
            let datagrams = self.token.endpoints.iter().map(|to| Transmit { to: *to, bytes: self.datagram.clone() });
            self.transmits.extend(datagrams);
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// How it ended; at most one event.
    pub fn poll_event(&mut self) -> Option<JoinEvent> {
        self.event.take()
    }

    /// When to call [`Self::handle_timeout`] next; `None` when it ended.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// The authority must be the one in the token, the certificate ours, and the issuer the one in the token.
    fn is_believable(&self, admission: &Admission) -> bool {
        let Ok(ca) = IdentityPublic::from_bytes(&admission.ca) else { return false };
        if ca_id(&ca) != self.token.ca {
            return false;
        }
        let mut trusted = vec![ca];
        match admission.other_ca.map(|key| IdentityPublic::from_bytes(&key)) {
            Some(Ok(other)) => trusted.push(other),
            Some(Err(_)) => return false,
            None => {}
        }
        let cluster = cluster_id(&admission.settings.name);
        let subject = |certificate| verify_certificate(certificate, &cluster, &trusted).ok();
        subject(&admission.certificate) == Some(self.identity)
            && subject(&admission.issuer) == Some(self.token.issuer)
            && admission.issuer.certificate.rights.contains(Rights::ISSUER)
    }

    fn transcript(&self) -> JoinTranscript<'_> {
        JoinTranscript {
            ca: self.token.ca,
            issuer: self.token.issuer.host_id(),
            token: self.token.id,
            ephemeral: self.ephemeral,
            secret_digest: &self.secret_digest,
        }
    }
}

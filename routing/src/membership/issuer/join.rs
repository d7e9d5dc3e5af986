//! Deciding about a JOIN: who knows the token's secret is answered, nobody else.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use overlay_wire::HostId;
use overlay_wire::gossip::envelope::Envelope;
use overlay_wire::membership::join::MAX_ISSUER_ENDPOINTS;
use overlay_wire::membership::{Admission, CaId, JoinAnswer, JoinContent, JoinRefusal, SignedCertificate, TokenId};
use subtle::ConstantTimeEq as _;
use x25519_dalek::PublicKey;

use super::{Issuer, IssuerError, Pending};
use crate::gossip::MAX_MEMBERS;
use crate::gossip::crypto::Sealed;
use crate::identity::{IdentityKey, IdentityPublic};
use crate::membership::ca::ca_id;
use crate::membership::join_keys::{JoinKeys, JoinTranscript, join_signed_bytes};
use crate::membership::state::Entry;
use crate::membership::token::secret_digest;

/// What [`Issuer::handle_join`] needs beside the datagram.
#[derive(Debug, Clone, Copy)]
pub struct JoinContext<'a> {
    /// The issuer's host identity.
    pub identity: &'a IdentityKey,
    /// The issuer's own certificate.
    pub certificate: &'a SignedCertificate,
    /// Where the issuer can be reached; the first four are told.
    pub endpoints: &'a [SocketAddr],
    /// The names of all members this host knows, itself included.
    pub names: &'a BTreeMap<String, HostId>,
    /// The wall clock, Unix seconds.
    pub unix_now: u64,
    /// Fresh randomness for the answer's seal.
    pub nonce: [u8; 24],
}

/// Why a JOIN is met with silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinSilence {
    /// It is no JOIN.
    Malformed,
    /// The token is not in the ledger.
    UnknownToken,
    /// The seal, the secret, the identity or the signature is wrong.
    Unauthenticated,
}

/// What to do about a JOIN.
#[must_use = "an admission must be stored, and an answer sent"]
pub enum JoinDecision {
    /// Nothing.
    Silent(JoinSilence),
    /// Send this: a refusal, or the certificate that the same identity was given before.
    Answer {
        /// The datagram.
        datagram: Vec<u8>,
        /// Why the joiner is refused; `None` where it was admitted before.
        refusal: Option<JoinRefusal>,
    },
    /// Store the state, commit, and send what that gives.
    Admit {
        /// Gives the datagram with the certificate.
        pending: Pending<Vec<u8>>,
        /// The datagram to send where the state could not be stored.
        if_not_stored: Vec<u8>,
        /// Who is admitted.
        certificate: Box<SignedCertificate>,
    },
}

/// A JOIN whose sender proved the secret and its identity.
struct Opened<'a> {
    keys: JoinKeys,
    transcript: JoinTranscript<'a>,
    identity: IdentityPublic,
    name: String,
}

impl Issuer {
    /// Decides about a JOIN datagram.
    pub fn handle_join(&self, datagram: &[u8], context: &JoinContext<'_>) -> JoinDecision {
        let Ok(Envelope::Join { header, ephemeral, token, nonce, ciphertext }) = Envelope::parse(datagram) else {
            return JoinDecision::Silent(JoinSilence::Malformed);
        };
        let id = TokenId(token);
        let Some(entry) = self.state().tokens.get(&id) else {
            return JoinDecision::Silent(JoinSilence::UnknownToken);
        };
        let sealed = Sealed { header, nonce, ciphertext };
        let Some(opened) = open(id, entry, ephemeral, &sealed, context.identity) else {
            return JoinDecision::Silent(JoinSilence::Unauthenticated);
        };
        let refuse = |refusal| match self.sealed(&opened, &JoinAnswer::Refused(refusal), context) {
            Some(datagram) => JoinDecision::Answer { datagram, refusal: Some(refusal) },
            None => JoinDecision::Silent(JoinSilence::Malformed),
        };
        let host = opened.identity.host_id();
        if entry.is_revoked || self.state().revoked.contains(&host) || self.key_of(entry.ca).is_none() {
            return refuse(JoinRefusal::Revoked);
        }
        let before = self.state().issued.get(&host).filter(|_| entry.redeemed.contains_key(&host));
        if let Some(held) = before {
            // The answer was lost, or the host asks again: nothing is redeemed, the same certificate is told.
            return match self.admission(entry, held, context).and_then(|answer| self.sealed(&opened, &answer, context))
            {
                Some(datagram) => JoinDecision::Answer { datagram, refusal: None },
                None => refuse(JoinRefusal::Unavailable),
            };
        }
        if context.unix_now >= entry.expires {
            return refuse(JoinRefusal::Expired);
        }
        let Some(uses_left) = entry.uses_left.checked_sub(1) else {
            return refuse(JoinRefusal::UsedUp);
        };
        let name = entry.request.name.clone().unwrap_or_else(|| opened.name.clone());
        if self.is_name_taken(&name, host, context.names) {
            return refuse(JoinRefusal::NameTaken);
        }
        if context.names.len() >= MAX_MEMBERS && !context.names.values().any(|known| *known == host) {
            return refuse(JoinRefusal::Full);
        }
        let mut next = self.next(context.unix_now);
        let certificate = match self.certify(&mut next, &opened.identity, &name, &entry.request, context.unix_now) {
            Ok(certificate) => certificate,
            Err(IssuerError::NoSubnet | IssuerError::OutsidePool(_) | IssuerError::Request(_)) => {
                return refuse(JoinRefusal::NoSubnet);
            }
            Err(IssuerError::Revoked) => return refuse(JoinRefusal::Revoked),
            Err(_) => return refuse(JoinRefusal::Full),
        };
        if let Some(entry) = next.tokens.get_mut(&id) {
            entry.uses_left = uses_left;
            entry.redeemed.insert(host, certificate.certificate.serial);
        }
        let answer = self.admission(entry, &certificate, context);
        let datagram = answer.and_then(|answer| self.sealed(&opened, &answer, context));
        let fallback = self.sealed(&opened, &JoinAnswer::Refused(JoinRefusal::Unavailable), context);
        match (datagram, fallback) {
            (Some(datagram), Some(if_not_stored)) => JoinDecision::Admit {
                pending: Pending { next, value: datagram },
                if_not_stored,
                certificate: Box::new(certificate),
            },
            _ => refuse(JoinRefusal::Unavailable),
        }
    }

    fn key_of(&self, ca: CaId) -> Option<IdentityPublic> {
        self.trusted().into_iter().find(|key| ca_id(key) == ca)
    }

    fn is_name_taken(&self, name: &str, host: HostId, names: &BTreeMap<String, HostId>) -> bool {
        let elsewhere = names.get(name).is_some_and(|known| *known != host);
        let is_live = |known: &HostId| *known != host && !self.state().revoked.contains(known);
        elsewhere || self.state().issued.iter().any(|(known, held)| held.certificate.name == name && is_live(known))
    }

    fn admission(
        &self,
        entry: &Entry,
        certificate: &SignedCertificate,
        context: &JoinContext<'_>,
    ) -> Option<JoinAnswer> {
        let pinned = self.key_of(entry.ca)?;
        let other = self.trusted().into_iter().find(|key| *key != pinned);
        Some(JoinAnswer::Admitted(Box::new(Admission {
            ca: *pinned.as_bytes(),
            other_ca: other.map(|key| *key.as_bytes()),
            certificate: certificate.clone(),
            settings: self.settings().clone(),
            issuer: context.certificate.clone(),
            endpoints: context.endpoints.iter().copied().take(MAX_ISSUER_ENDPOINTS).collect(),
        })))
    }

    fn sealed(&self, opened: &Opened<'_>, answer: &JoinAnswer, context: &JoinContext<'_>) -> Option<Vec<u8>> {
        let content = answer.encode().ok()?;
        let host = opened.identity.host_id();
        Some(opened.keys.seal_answer(&opened.transcript, host, &context.nonce, &content))
    }
}

fn open<'a>(
    token: TokenId,
    entry: &'a Entry,
    ephemeral: [u8; 32],
    sealed: &Sealed<'_>,
    issuer: &IdentityKey,
) -> Option<Opened<'a>> {
    let keys = JoinKeys::new(&issuer.to_x25519(), &PublicKey::from(ephemeral))?;
    let transcript = JoinTranscript {
        ca: entry.ca,
        issuer: issuer.host_id(),
        token,
        ephemeral,
        secret_digest: &entry.secret_digest,
    };
    let bytes = sealed.open(&keys.request_key(&transcript))?;
    let content = JoinContent::decode(&bytes).ok()?;
    // The seal needs the digest only; the secret itself proves that the sender has the token and not the ledger.
    let digest = secret_digest(token, &content.secret);
    if !bool::from(digest.ct_eq(&*entry.secret_digest)) {
        return None;
    }
    let identity = IdentityPublic::from_bytes(&content.identity).ok()?;
    identity.verify(&join_signed_bytes(&transcript, &content.unsigned_bytes()), &content.signature).ok()?;
    Some(Opened { keys, transcript, identity, name: content.name })
}

//! The cluster authority: an Ed25519 key that signs certificates and authority records.

use std::fmt;

use blake2::{Blake2s256, Digest};
use overlay_wire::HostId;
use overlay_wire::gossip::body::BodyError;
use overlay_wire::gossip::{Record, RecordKey, RecordKind};
use overlay_wire::membership::{AuthorityBody, CaId, Certificate, SignedCertificate};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::identity::{IdentityKey, IdentityPublic};

/// Separates the hash that names an authority from every other hash of a public key.
const CA_ID_DOMAIN: &[u8] = b"overlay ca id v1\0";

/// The name of an authority that follows from its public key.
#[must_use]
pub fn ca_id(key: &IdentityPublic) -> CaId {
    let hash = Blake2s256::new().chain_update(CA_ID_DOMAIN).chain_update(key.as_bytes()).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    CaId(id)
}

/// The secret key of a cluster authority.
pub struct CaKey(IdentityKey);

impl CaKey {
    /// Draws a fresh key.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(IdentityKey::generate(rng))
    }

    /// Takes the 32-byte seed form that [`Self::to_bytes`] returns.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(IdentityKey::from_bytes(bytes))
    }

    /// The 32-byte seed form; wiped when dropped.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.to_bytes()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> IdentityPublic {
        self.0.public()
    }

    /// The authority's name.
    #[must_use]
    pub fn id(&self) -> CaId {
        ca_id(&self.public())
    }

    /// Signs a certificate; its authority becomes this one.
    ///
    /// # Errors
    /// When the certificate exceeds a limit.
    pub fn certify(&self, cluster: &[u8; 32], mut certificate: Certificate) -> Result<SignedCertificate, BodyError> {
        certificate.ca = self.id();
        certificate.check()?;
        let signature = self.0.sign(&certificate.signed_bytes(cluster));
        Ok(SignedCertificate { certificate, signature })
    }

    /// Signs an authority record.
    ///
    /// # Errors
    /// When the body exceeds a limit.
    pub fn record(
        &self,
        cluster: &[u8; 32],
        shard: u16,
        version: u64,
        body: &AuthorityBody,
    ) -> Result<Record, BodyError> {
        let key = RecordKey { owner: self.id().as_owner(), kind: RecordKind::AUTHORITY, shard };
        let mut record = Record { key, version, body: body.encode()?, signature: [0; 64] };
        record.signature = self.0.sign(&record.signed_bytes(cluster));
        Ok(record)
    }
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaKey({})", self.id())
    }
}

/// Why a certificate is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The authority is none of those that are trusted.
    #[error("the certificate is signed by authority {0}, which is not trusted")]
    Untrusted(CaId),
    /// The signature does not verify.
    #[error("the certificate's signature does not verify")]
    Signature,
    /// The certified identity is no valid key.
    #[error("the certified identity is not a valid key")]
    Identity,
}

/// Checks a certificate's signature by one of the trusted authorities; its validity in time is a separate question.
///
/// # Errors
/// When no trusted authority signed it, or the certified key is not valid.
pub fn verify_certificate(
    signed: &SignedCertificate,
    cluster: &[u8; 32],
    trusted: &[IdentityPublic],
) -> Result<IdentityPublic, CertificateError> {
    let ca = signed.certificate.ca;
    let key = trusted.iter().find(|key| ca_id(key) == ca).ok_or(CertificateError::Untrusted(ca))?;
    key.verify(&signed.certificate.signed_bytes(cluster), &signed.signature)
        .map_err(|_| CertificateError::Signature)?;
    IdentityPublic::from_bytes(&signed.certificate.identity).map_err(|_| CertificateError::Identity)
}

/// The host a certificate speaks of; `None` when its identity is no valid key.
#[must_use]
pub(crate) fn subject(certificate: &Certificate) -> Option<HostId> {
    IdentityPublic::from_bytes(&certificate.identity).ok().map(|identity| identity.host_id())
}

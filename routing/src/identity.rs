//! Host identity: the Ed25519 key that names a host for ever, and the host id derived from it.
//!
//! Public keys are checked on the way in: a key that is not the canonical encoding of a point, or that lies in the small
//! subgroup, never becomes an [`IdentityPublic`]. Signatures are verified strictly (RFC 8032 with the small-order checks
//! of `verify_strict`), so that all hosts agree on which signatures are valid.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2s256, Digest};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use overlay_wire::HostId;
use rand_core::CryptoRngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Separates the hash that makes a host id from every other hash of a public key.
const HOST_ID_DOMAIN: &[u8] = b"overlay host id v1\0";

/// The long-lived Ed25519 secret of a host.
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// Draws a fresh key.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(SigningKey::generate(rng))
    }

    /// Takes the 32-byte seed form that [`Self::to_bytes`] returns.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(bytes))
    }

    /// The 32-byte seed form, for the identity file; wiped when dropped.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> IdentityPublic {
        IdentityPublic(self.0.verifying_key())
    }

    /// The host id derived from the public half.
    #[must_use]
    pub fn host_id(&self) -> HostId {
        self.public().host_id()
    }

    /// Signs `message`; callers put their own domain tag in front.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The X25519 secret that belongs to this identity, used for first contact only.
    pub(crate) fn to_x25519(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(self.0.to_scalar_bytes())
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.public())
    }
}

/// The public half of an identity; shown as standard base64, 44 characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdentityPublic(VerifyingKey);

/// Why a public key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is not 44 characters of standard base64.
    #[error("an identity is 44 characters of base64")]
    Base64,
    /// The bytes are not the canonical encoding of a curve point.
    #[error("the identity is not a canonical Ed25519 public key")]
    NotCanonical,
    /// The point lies in the small subgroup, so anyone could sign for it.
    #[error("the identity is a small-order point, which proves nothing")]
    SmallOrder,
}

/// The signature does not belong to this key and message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct SignatureError;

impl IdentityPublic {
    /// Checks and takes a public key.
    ///
    /// # Errors
    /// When the bytes are not canonical or the point has small order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, IdentityError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| IdentityError::NotCanonical)?;
        if key.is_weak() {
            return Err(IdentityError::SmallOrder);
        }
        if key.to_edwards().compress().as_bytes() != bytes {
            return Err(IdentityError::NotCanonical);
        }
        Ok(Self(key))
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The host id: the first 16 bytes of BLAKE2s-256 over a domain tag and the key.
    #[must_use]
    pub fn host_id(&self) -> HostId {
        let hash = Blake2s256::new().chain_update(HOST_ID_DOMAIN).chain_update(self.as_bytes()).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        HostId(id)
    }

    /// Verifies strictly: non-canonical and small-order signatures are refused.
    ///
    /// # Errors
    /// When the signature does not belong to this key and message.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> Result<(), SignatureError> {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).map_err(|_| SignatureError)
    }

    /// The X25519 public key that belongs to this identity, used for first contact only.
    pub(crate) fn to_x25519(self) -> x25519_dalek::PublicKey {
        x25519_dalek::PublicKey::from(self.0.to_montgomery().to_bytes())
    }
}

impl fmt::Display for IdentityPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.as_bytes()))
    }
}

impl fmt::Debug for IdentityPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for IdentityPublic {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 44 {
            return Err(IdentityError::Base64);
        }
        let bytes = STANDARD.decode(text).map_err(|_| IdentityError::Base64)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| IdentityError::Base64)?;
        Self::from_bytes(&bytes)
    }
}

impl Serialize for IdentityPublic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdentityPublic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::generate(&mut ChaCha20Rng::from_seed([seed; 32]))
    }

    #[test]
    fn text_and_bytes_parse_back() {
        let key = key(1);
        let public = key.public();
        assert_eq!(public.to_string().len(), 44);
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(IdentityKey::from_bytes(&key.to_bytes()).host_id(), public.host_id());
    }

    #[test]
    fn small_order_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        for weak in [[0; 32], identity] {
            assert_eq!(IdentityPublic::from_bytes(&weak), Err(IdentityError::SmallOrder));
        }
    }

    #[test]
    fn non_canonical_keys_are_refused() {
        // y = p + 3 encodes the same point as y = 3, which lies on the curve with large order.
        let mut shifted = [0xff; 32];
        shifted[0] = 0xed + 3;
        shifted[31] = 0x7f;
        let mut plain = [0; 32];
        plain[0] = 3;
        assert!(IdentityPublic::from_bytes(&plain).is_ok());
        assert_eq!(IdentityPublic::from_bytes(&shifted), Err(IdentityError::NotCanonical));
    }

    #[test]
    fn signature_of_another_key_or_message_is_refused() {
        let (a, b) = (key(1), key(2));
        let signature = a.sign(b"text");
        assert_eq!(a.public().verify(b"text", &signature), Ok(()));
        assert_eq!(b.public().verify(b"text", &signature), Err(SignatureError));
        assert_eq!(a.public().verify(b"other", &signature), Err(SignatureError));
    }

    #[test]
    fn x25519_halves_of_an_identity_agree() {
        let (a, b) = (key(1), key(2));
        let left = a.to_x25519().diffie_hellman(&b.public().to_x25519());
        let right = b.to_x25519().diffie_hellman(&a.public().to_x25519());
        assert_eq!(left.as_bytes(), right.as_bytes());
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let key = key(1);
        assert_eq!(format!("{key:?}"), format!("IdentityKey({})", key.public()));
    }
}

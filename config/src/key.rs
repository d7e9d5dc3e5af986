//! A 32-byte public key in its usual text form: standard base64 with padding, 44 characters (as `wg pubkey` prints).

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An Ed25519 identity key or an X25519 WireGuard key; public, hence printable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// The text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key; expected 44 characters of base64 that hold 32 bytes")]
pub struct PublicKeyError;

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 44 {
            return Err(PublicKeyError);
        }
        let mut key = [0; 32];
        match STANDARD.decode_slice(text, &mut key) {
            Ok(32) => Ok(Self(key)),
            _ => Err(PublicKeyError),
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_text_parses_back() {
        let key = PublicKey([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn short_long_and_unpadded_texts_are_refused() {
        let good = PublicKey([7; 32]).to_string();
        for bad in ["", &good[..43], &format!("{good}="), &good.replace('=', "A"), &good.replace('B', "!")] {
            assert_eq!(bad.parse::<PublicKey>(), Err(PublicKeyError), "{bad} was accepted");
        }
    }
}

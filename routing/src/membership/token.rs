//! The token: one string that carries everything a new host needs to find and trust its issuer.
//!
//! `OVL1-` and groups of eight characters of RFC 4648 base32 (letters and the digits 2 to 7; case and dashes do not
//! matter) over: format, authority id, issuer identity, endpoints, token id, secret, and four bytes of checksum.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use blake2::{Blake2s256, Digest};
use overlay_wire::gossip::codec::{Reader, put_socket_addr};
use overlay_wire::membership::join::MAX_ISSUER_ENDPOINTS;
use overlay_wire::membership::{CaId, TokenId};
use zeroize::Zeroizing;

use crate::identity::IdentityPublic;

/// What every token begins with.
const TOKEN_PREFIX: &str = "OVL1-";
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const CHECKSUM_DOMAIN: &[u8] = b"overlay token checksum v1\0";
const SECRET_DOMAIN: &[u8] = b"overlay token secret v1\0";
const FORMAT: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// The longest token text that is looked at.
const MAX_TEXT: usize = 512;

/// What one token says.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The authority the joiner will trust: its key must have this id.
    pub ca: CaId,
    /// The identity of the host that redeems the token.
    pub issuer: IdentityPublic,
    /// Where it can be reached, 1 to 4.
    pub endpoints: Vec<SocketAddr>,
    /// Names the token.
    pub id: TokenId,
    /// What the joiner proves to know.
    pub secret: Zeroizing<[u8; 16]>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// Why a text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as tokens do.
    #[error("a token begins with {TOKEN_PREFIX}")]
    Prefix,
    /// It holds a character that no token holds.
    #[error("`{0}` cannot stand in a token")]
    Character(char),
    /// A character is wrong, missing or surplus.
    #[error("the token is damaged: its checksum is wrong")]
    Checksum,
    /// The content is of another format.
    #[error("the token is of format {0}, which is not known")]
    Format(u8),
    /// The content is not valid.
    #[error("the token's content is not valid")]
    Content,
}

impl Token {
    /// The string to hand to the new host. It is a secret: whoever has it can join.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TEXT));
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.ca.0);
        bytes.extend_from_slice(self.issuer.as_bytes());
        let endpoints = &self.endpoints[..self.endpoints.len().min(MAX_ISSUER_ENDPOINTS)];
        bytes.push(endpoints.len() as u8);
        endpoints.iter().for_each(|endpoint| put_socket_addr(&mut bytes, *endpoint));
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&*self.secret);
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT));
        text.push_str("OVL1");
        for (place, symbol) in symbols(&bytes).iter().enumerate() {
            if place % 8 == 0 {
                text.push('-');
            }
            text.push(char::from(*symbol));
        }
        text
    }

    /// The digest of the secret that the ledger holds and both sides mix into the keys of the exchange.
    #[must_use]
    pub fn secret_digest(&self) -> Zeroizing<[u8; 32]> {
        secret_digest(self.id, &self.secret)
    }
}

/// See [`Token::secret_digest`].
pub(super) fn secret_digest(id: TokenId, secret: &[u8; 16]) -> Zeroizing<[u8; 32]> {
    let hash = Blake2s256::new().chain_update(SECRET_DOMAIN).chain_update(id.0).chain_update(secret).finalize();
    Zeroizing::new(hash.into())
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let head = text.get(..TOKEN_PREFIX.len()).ok_or(TokenError::Prefix)?;
        if !head.eq_ignore_ascii_case(TOKEN_PREFIX) {
            return Err(TokenError::Prefix);
        }
        if text.len() > MAX_TEXT {
            return Err(TokenError::Checksum);
        }
        let bytes = unsymbol(&text[TOKEN_PREFIX.len()..])?;
        let at = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(TokenError::Checksum)?;
        let (content, sum) = bytes.split_at(at);
        if checksum(content) != sum {
            return Err(TokenError::Checksum);
        }
        let mut reader = Reader::new(content);
        let content_error = |_| TokenError::Content;
        let format = reader.u8("token format").map_err(content_error)?;
        if format != FORMAT {
            return Err(TokenError::Format(format));
        }
        let ca = CaId(reader.array("authority").map_err(content_error)?);
        let issuer = reader.array("issuer").map_err(content_error)?;
        let issuer = IdentityPublic::from_bytes(&issuer).map_err(|_| TokenError::Content)?;
        let mut endpoints = Vec::new();
        for _ in 0..reader.count("endpoints", MAX_ISSUER_ENDPOINTS).map_err(content_error)? {
            endpoints.push(reader.socket_addr("endpoint").map_err(content_error)?);
        }
        let id = TokenId(reader.array("token id").map_err(content_error)?);
        let secret = Zeroizing::new(reader.array("token secret").map_err(content_error)?);
        reader.finish().map_err(content_error)?;
        if endpoints.is_empty() {
            return Err(TokenError::Content);
        }
        Ok(Self { ca, issuer, endpoints, id, secret })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Blake2s256::new().chain_update(CHECKSUM_DOMAIN).chain_update(bytes).finalize();
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hash[..CHECKSUM_BYTES]);
    sum
}

/// Base32, five bits a character, the last one filled up with zeros.
fn symbols(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len().div_ceil(5) * 8));
    let (mut bits, mut held) = (0u32, 0u32);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            out.push(ALPHABET[(bits >> held & 31) as usize]);
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        out.push(ALPHABET[(bits << (5 - held) & 31) as usize]);
    }
    out
}

fn unsymbol(text: &str) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
    let (mut bits, mut held) = (0u32, 0u32);
    for character in text.chars().filter(|character| *character != '-') {
        let upper = character.to_ascii_uppercase();
        let value = ALPHABET.iter().position(|symbol| char::from(*symbol) == upper);
        bits = bits << 5 | value.ok_or(TokenError::Character(character))? as u32;
        held += 5;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held & 255) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // Only zeros shorter than a character fill the end up.
    if held >= 5 || bits != 0 {
        return Err(TokenError::Checksum);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::IdentityKey;
    use proptest::prelude::*;

    fn token(endpoints: usize, fill: u8) -> Token {
        Token {
            ca: CaId([fill; 16]),
            issuer: IdentityKey::from_bytes(&[fill; 32]).public(),
            endpoints: (0..endpoints).map(|n| SocketAddr::from(([192, 0, 2, n as u8 + 1], 51821))).collect(),
            id: TokenId([fill ^ 1; 8]),
            secret: Zeroizing::new([fill ^ 2; 16]),
        }
    }

    #[test]
    fn text_parses_back_in_any_case_and_grouping() {
        for endpoints in 1..=4 {
            let token = token(endpoints, 7);
            let text = token.to_text();
            assert_eq!(text.parse(), Ok(token.clone()));
            assert_eq!(text.to_lowercase().parse(), Ok(token.clone()));
            let joined = format!("OVL1-{}", text[5..].replace('-', ""));
            assert_eq!(joined.parse(), Ok(token));
        }
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let shown = format!("{:?}", token(1, 9));
        assert!(!shown.contains("11, 11") && shown.contains("id"), "{shown}");
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_noticed(place in 5usize..140, symbol in 0usize..32) {
            let text = token(1, 3).to_text();
            let mut bytes = text.as_bytes().to_vec();
            let place = place % bytes.len();
            prop_assume!(place >= 5 && bytes[place] != b'-' && bytes[place] != ALPHABET[symbol]);
            bytes[place] = ALPHABET[symbol];
            let damaged = String::from_utf8(bytes).expect("ASCII");
            prop_assert!(damaged.parse::<Token>().is_err());
        }

        #[test]
        fn any_text_is_judged_without_panic(text in ".{0,200}") {
            let _ = text.parse::<Token>();
            let _ = format!("OVL1-{text}").parse::<Token>();
        }
    }
}

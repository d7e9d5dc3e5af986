//! What a member may announce, as written in its `allow` list.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::prefix::{Prefix, PrefixError};

/// How strong a grant is against a competing one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantKind {
    /// Names the prefix for this member; beats a pool grant.
    Explicit,
    /// Lets the member take prefixes out of a shared pool.
    Pool,
}

/// One entry of an `allow` list: the member may announce prefixes inside `prefix` that are no longer than `longest`.
///
/// Text form: `10.42.2.0/24` (explicit, any length inside) or `10.42.0.0/16 max 24` (pool, no longer than /24).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    prefix: Prefix,
    longest: u8,
    kind: GrantKind,
}

/// Why a grant was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The prefix part is wrong.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// The text behind the prefix is not `max LENGTH`.
    #[error("`{0}` is not a grant; expected PREFIX or PREFIX max LENGTH, as in 10.42.0.0/16 max 24")]
    Syntax(String),
    /// The longest length lies outside the prefix's own length and the family's bits.
    #[error("max {longest} does not fit {prefix}; expected {} to {}", prefix.len(), family_bits(prefix))]
    Longest {
        /// The grant's prefix.
        prefix: Prefix,
        /// The length given.
        longest: u8,
    },
}

impl Grant {
    /// A grant of one prefix and everything inside it.
    #[must_use]
    pub fn explicit(prefix: Prefix) -> Self {
        Self { prefix, longest: family_bits(&prefix), kind: GrantKind::Explicit }
    }

    /// A grant of prefixes inside a pool, none longer than `longest`.
    ///
    /// # Errors
    /// When `longest` is shorter than the pool or longer than the family has bits.
    pub fn pool(prefix: Prefix, longest: u8) -> Result<Self, GrantError> {
        if longest < prefix.len() || longest > family_bits(&prefix) {
            return Err(GrantError::Longest { prefix, longest });
        }
        Ok(Self { prefix, longest, kind: GrantKind::Pool })
    }

    /// The covering prefix.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// The longest prefix length that may be announced.
    #[must_use]
    pub fn longest(&self) -> u8 {
        self.longest
    }

    /// Explicit or pool.
    #[must_use]
    pub fn kind(&self) -> GrantKind {
        self.kind
    }

    /// Whether `prefix` may be announced under this grant.
    #[must_use]
    pub fn permits(&self, prefix: &Prefix) -> bool {
        self.prefix.covers(prefix) && prefix.len() <= self.longest
    }
}

fn family_bits(prefix: &Prefix) -> u8 {
    if prefix.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            GrantKind::Explicit => f.pad(&self.prefix.to_string()),
            GrantKind::Pool => f.pad(&format!("{} max {}", self.prefix, self.longest)),
        }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || GrantError::Syntax(text.chars().take(64).collect());
        let mut words = text.split_ascii_whitespace();
        let prefix: Prefix = words.next().ok_or_else(syntax)?.parse()?;
        let grant = match (words.next(), words.next()) {
            (None, _) => Self::explicit(prefix),
            (Some("max"), Some(longest)) if longest.len() <= 3 && longest.bytes().all(|b| b.is_ascii_digit()) => {
                Self::pool(prefix, longest.parse().map_err(|_| syntax())?)?
            }
            _ => return Err(syntax()),
        };
        if words.next().is_some() { Err(syntax()) } else { Ok(grant) }
    }
}

impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Grant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a valid prefix in a test")
    }

    fn grant(text: &str) -> Grant {
        text.parse().expect("a valid grant in a test")
    }

    #[test]
    fn explicit_grant_permits_anything_inside() {
        let g = grant("10.42.2.0/24");
        assert_eq!(g.kind(), GrantKind::Explicit);
        for inside in ["10.42.2.0/24", "10.42.2.128/25", "10.42.2.7/32"] {
            assert!(g.permits(&prefix(inside)), "{inside}");
        }
        for outside in ["10.42.0.0/16", "10.42.3.0/24", "0.0.0.0/0", "::/0"] {
            assert!(!g.permits(&prefix(outside)), "{outside}");
        }
    }

    #[test]
    fn pool_grant_refuses_longer_prefixes() {
        let g = grant("10.42.0.0/16 max 24");
        assert_eq!(g.kind(), GrantKind::Pool);
        assert!(g.permits(&prefix("10.42.9.0/24")));
        assert!(!g.permits(&prefix("10.42.9.0/25")));
        assert!(!g.permits(&prefix("10.43.0.0/24")));
    }

    #[test]
    fn text_parses_back() {
        for text in ["10.42.2.0/24", "10.42.0.0/16 max 24", "fd42::/48 max 64", "10.42.0.0/16 max 16"] {
            assert_eq!(grant(text).to_string(), text);
        }
    }

    #[test]
    fn odd_texts_are_refused() {
        for text in [
            "",
            "10.42.0.0/16 max",
            "10.42.0.0/16 max 8",
            "10.42.0.0/16 max 33",
            "10.42.0.0/16 max 24 x",
            "10.42.0.0/16 min 24",
            "10.42.0.1/16",
            "10.42.0.0/16 max +24",
        ] {
            assert!(text.parse::<Grant>().is_err(), "{text} was accepted");
        }
    }
}

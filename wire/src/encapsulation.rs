//! The ways a packet is carried to another host, and the sizes that follow from them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How packets to a peer are carried over the underlay.
///
/// The order is by strength: `max` of the two ends' settings is the mode in use, so nothing learned from the network
/// ever lowers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulation {
    /// IP in IP: protocol 4 (RFC 2003), or 41 for IPv6 inside (RFC 4213). Neither encrypted nor authenticated.
    Ipip,
    /// Generic routing encapsulation, protocol 47 (RFC 2784, RFC 2890). Neither encrypted nor authenticated.
    Gre,
    /// WireGuard over UDP: encrypted and authenticated.
    Wireguard,
}

impl Encapsulation {
    /// Every kind, strongest first.
    pub const ALL: [Self; 3] = [Self::Wireguard, Self::Gre, Self::Ipip];

    /// The name used in configuration and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Gre => "gre",
            Self::Wireguard => "wireguard",
        }
    }

    /// Whether the carried packets are encrypted and authenticated.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Wireguard)
    }
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no encapsulation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an encapsulation; expected wireguard, gre or ipip")]
pub struct EncapsulationError(String);

impl FromStr for Encapsulation {
    type Err = EncapsulationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| EncapsulationError(text.chars().take(32).collect()))
    }
}

/// The largest IP packet a link carries, in bytes: 576 to 65,535.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Mtu(u16);

/// The MTU is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("MTU {0} is out of range; expected 576 to 65535")]
pub struct MtuError(pub u16);

impl Mtu {
    /// The smallest MTU accepted: what every IPv4 host must take in (RFC 791, section 3.2).
    pub const MIN: Self = Self(576);
    /// The smallest MTU on which IPv6 works (RFC 8200, section 5).
    pub const IPV6_MIN: Self = Self(1280);
    /// Ethernet's.
    pub const ETHERNET: Self = Self(1500);

    /// Builds an MTU.
    ///
    /// # Errors
    /// When below 576 bytes.
    pub fn new(bytes: u16) -> Result<Self, MtuError> {
        if bytes < Self::MIN.0 { Err(MtuError(bytes)) } else { Ok(Self(bytes)) }
    }

    /// The size in bytes.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Mtu {
    type Error = MtuError;

    fn try_from(bytes: u16) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<Mtu> for u16 {
    fn from(mtu: Mtu) -> Self {
        mtu.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stronger_is_greater() {
        assert_eq!(Encapsulation::Ipip.max(Encapsulation::Wireguard), Encapsulation::Wireguard);
        assert_eq!(Encapsulation::Ipip.max(Encapsulation::Gre), Encapsulation::Gre);
    }

    #[test]
    fn names_parse_back() {
        for kind in Encapsulation::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("vxlan".parse::<Encapsulation>().is_err());
    }

    #[test]
    fn mtu_below_576_is_refused() {
        assert_eq!(Mtu::new(575), Err(MtuError(575)));
        assert_eq!(Mtu::new(576).map(Mtu::get), Ok(576));
    }
}

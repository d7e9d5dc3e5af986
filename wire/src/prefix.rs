//! An IP prefix in canonical form: host bits are always zero.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IPv4 or IPv6 prefix whose host bits are zero.
///
/// Ordered by family (IPv4 first), then network address, then length, so that a covering prefix sorts before what it
/// covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

/// Why a prefix was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The length is longer than the address family has bits.
    #[error("prefix length {len} is longer than {max} bits")]
    TooLong {
        /// The length given.
        len: u8,
        /// 32 for IPv4, 128 for IPv6.
        max: u8,
    },
    /// Bits behind the prefix length are set.
    #[error("host bits are set in {addr}/{len}; the network is {network}/{len}")]
    HostBits {
        /// The address given.
        addr: IpAddr,
        /// The length given.
        len: u8,
        /// The address with its host bits cleared.
        network: IpAddr,
    },
    /// The text is not `ADDRESS/LENGTH`.
    #[error("`{0}` is not a prefix; expected ADDRESS/LENGTH, as in 10.42.1.0/24")]
    Syntax(String),
}

impl Prefix {
    /// Builds a prefix.
    ///
    /// # Errors
    /// When the length exceeds the family or host bits are set.
    pub fn new(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let prefix = Self::truncating(addr, len)?;
        if prefix.addr == addr { Ok(prefix) } else { Err(PrefixError::HostBits { addr, len, network: prefix.addr }) }
    }

    /// Builds a prefix and clears host bits.
    ///
    /// # Errors
    /// When the length exceeds the family.
    pub fn truncating(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let max = family_bits(addr);
        if len > max {
            return Err(PrefixError::TooLong { len, max });
        }
        let bits = to_bits(addr) & mask(len);
        Ok(Self { addr: from_bits(bits, addr.is_ipv4()), len })
    }

    /// The prefix that holds exactly one address (/32 or /128).
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, len: family_bits(addr) }
    }

    /// The network address.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a prefix length is not a collection length")]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether the family is IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// Whether the prefix holds one address only.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.len == family_bits(self.addr)
    }

    /// Whether `ip` lies inside; false for the other family.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.is_ipv4() == ip.is_ipv4() && to_bits(ip) & mask(self.len) == to_bits(self.addr)
    }

    /// Whether every address of `other` lies inside; true for the prefix itself.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.addr)
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The address at `index`, counted from the network address (0); `None` past the end.
    #[must_use]
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        let host_bits = family_bits(self.addr) - self.len;
        if host_bits < 128 && index >> host_bits != 0 {
            return None;
        }
        let host = if self.is_ipv4() { index << 96 } else { index };
        Some(from_bits(to_bits(self.addr) | host, self.is_ipv4()))
    }

    /// The network address left-aligned in 128 bits (an IPv4 address fills the upper 32).
    #[must_use]
    pub fn bits(&self) -> u128 {
        to_bits(self.addr)
    }
}

/// An address left-aligned in 128 bits: an IPv4 address fills the upper 32.
#[must_use]
pub fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn from_bits(bits: u128, ipv4: bool) -> IpAddr {
    if ipv4 { IpAddr::V4(Ipv4Addr::from((bits >> 96) as u32)) } else { IpAddr::V6(Ipv6Addr::from(bits)) }
}

/// The mask of `len` leading one bits in 128.
#[must_use]
pub fn mask(len: u8) -> u128 {
    match len {
        0 => 0,
        1..=127 => u128::MAX << (128 - u32::from(len)),
        _ => u128::MAX,
    }
}

fn family_bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.is_ipv4(), self.bits(), self.len).cmp(&(self.is_ipv4(), other.bits(), other.len))
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.addr, self.len))
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || PrefixError::Syntax(text.chars().take(64).collect());
        let (addr, len) = text.split_once('/').ok_or_else(syntax)?;
        if len.is_empty() || len.len() > 3 || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(syntax());
        }
        Self::new(addr.parse().map_err(|_| syntax())?, len.parse().map_err(|_| syntax())?)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a valid prefix in a test")
    }

    #[test]
    fn host_bits_set_is_refused_with_the_network() {
        let error = "10.42.1.7/24".parse::<Prefix>().expect_err("host bits are set");
        assert_eq!(error.to_string(), "host bits are set in 10.42.1.7/24; the network is 10.42.1.0/24");
    }

    #[test]
    fn odd_texts_are_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "fd00::/129", "10.0.0.0/+8", "10.0.0.0/0008", "x/8"] {
            assert!(text.parse::<Prefix>().is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn nth_counts_from_the_network_and_ends() {
        assert_eq!(prefix("10.42.1.0/24").nth(1), Some("10.42.1.1".parse().expect("address")));
        assert_eq!(prefix("10.42.1.0/24").nth(256), None);
        assert_eq!(prefix("fd42::/64").nth(2), Some("fd42::2".parse().expect("address")));
        assert_eq!(prefix("::/0").nth(u128::MAX), Some(IpAddr::V6(Ipv6Addr::from(u128::MAX))));
        assert_eq!(prefix("10.42.1.1/32").nth(1), None);
    }

    #[test]
    fn order_puts_ipv4_and_covering_first() {
        let mut all = [prefix("fd42::/64"), prefix("10.42.1.0/24"), prefix("10.42.0.0/16"), prefix("::/0")];
        all.sort();
        assert_eq!(all, [prefix("10.42.0.0/16"), prefix("10.42.1.0/24"), prefix("::/0"), prefix("fd42::/64")]);
    }

    #[test]
    fn families_never_mix() {
        assert!(!prefix("::/0").contains("10.0.0.1".parse().expect("address")));
        assert!(!prefix("0.0.0.0/0").overlaps(&prefix("::/0")));
    }

    proptest! {
        #[test]
        fn display_parses_back(addr in any::<IpAddr>(), len in 0u8..=128) {
            if let Ok(p) = Prefix::truncating(addr, len) {
                prop_assert!(p.contains(addr));
                prop_assert_eq!(p.to_string().parse::<Prefix>(), Ok(p));
            }
        }
    }
}

//! The body of the NAMES record: names of containers on the owner's host, with their addresses.
//!
//! A name is one label of the domain name system in lower case. An address counts only where its owner is who signed the
//! record; that is for the reader of the record to check.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::gossip::body::BodyError;
use crate::gossip::codec::{DecodeError, Reader, put_ip, put_name};
use crate::gossip::record::MAX_BODY_BYTES;

/// The body format written today.
const VERSION: u8 = 1;
/// The longest label (RFC 1035).
pub const MAX_LABEL_BYTES: usize = 63;
/// The most addresses of one name.
pub const MAX_NAME_ADDRESSES: usize = 8;
/// The most NAMES records of one host: about 450 names with an address of each family.
pub const MAX_NAME_SHARDS: usize = 16;
/// The most names in one record: what fits with the shortest entries.
const MAX_NAMES: usize = 200;

/// Names of containers with their addresses, the addresses ascending.
pub type ContainerNames = BTreeMap<String, Vec<IpAddr>>;

/// One piece of the names of a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NamesBody {
    /// The names in this piece.
    pub names: ContainerNames,
}

/// Whether a text is a label that can be published: letters in lower case, digits, `-` and `_`, not at its ends.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    bytes.len() <= MAX_LABEL_BYTES && bytes.iter().copied().all(inner) && ends(bytes.first()) && ends(bytes.last())
}

impl NamesBody {
    /// The body's bytes.
    ///
    /// # Errors
    /// When it is too long, or a name or its addresses are not acceptable.
    pub fn encode(&self) -> Result<Vec<u8>, BodyError> {
        let mut out = vec![VERSION, self.names.len().min(255) as u8];
        for (name, addresses) in &self.names {
            put_name(&mut out, name);
            out.push(addresses.len().min(255) as u8);
            addresses.iter().for_each(|address| put_ip(&mut out, *address));
        }
        if out.len() > MAX_BODY_BYTES {
            return Err(BodyError::TooLarge { bytes: out.len(), max: MAX_BODY_BYTES });
        }
        Self::decode(&out)?;
        Ok(out)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8("names format")?;
        if version != VERSION {
            return Err(DecodeError::Version { what: "names", version });
        }
        let count = reader.count("names", MAX_NAMES)?;
        let mut names = ContainerNames::new();
        for _ in 0..count {
            let name = reader.name("container name", MAX_LABEL_BYTES)?;
            let addresses = reader.count("addresses of a name", MAX_NAME_ADDRESSES)?;
            let addresses: Vec<IpAddr> =
                (0..addresses).map(|_| reader.ip("address of a name")).collect::<Result<_, _>>()?;
            let ascending = addresses.windows(2).all(|pair| pair[0] < pair[1]);
            let in_order = names.last_key_value().is_none_or(|(last, _)| *last < name);
            if !is_label(&name) || addresses.is_empty() || !ascending || !in_order {
                return Err(DecodeError::Value { field: "container name" });
            }
            names.insert(name, addresses);
        }
        reader.finish()?;
        Ok(Self { names })
    }

    fn room_for(&self, bytes: usize) -> bool {
        let used: usize = self.names.iter().map(|(name, addresses)| entry_len(name, addresses)).sum();
        2 + used + bytes <= MAX_BODY_BYTES && self.names.len() < MAX_NAMES
    }
}

fn entry_len(name: &str, addresses: &[IpAddr]) -> usize {
    let address = |ip: &IpAddr| if ip.is_ipv4() { 5 } else { 17 };
    2 + name.len() + addresses.iter().map(address).sum::<usize>()
}

/// Cuts the names of a host into pieces. What stays as it was stays in its piece, so that a change touches few records.
/// Names beyond the room of [`MAX_NAME_SHARDS`] are left out, the same ones whatever came first.
#[must_use]
pub fn place(previous: &[NamesBody], wanted: &ContainerNames) -> Vec<NamesBody> {
    let mut left: BTreeMap<&String, &Vec<IpAddr>> = wanted.iter().collect();
    let mut pieces: Vec<NamesBody> = Vec::with_capacity(previous.len());
    for piece in previous.iter().take(MAX_NAME_SHARDS) {
        let kept = piece.names.iter().filter(|(name, addresses)| wanted.get(*name) == Some(addresses));
        let kept: ContainerNames = kept.map(|(name, addresses)| (name.clone(), addresses.clone())).collect();
        for name in kept.keys() {
            left.remove(name);
        }
        pieces.push(NamesBody { names: kept });
    }
    for (name, addresses) in left {
        let len = entry_len(name, addresses);
        let at = match pieces.iter().position(|piece| piece.room_for(len)) {
            Some(at) => at,
            None if pieces.len() < MAX_NAME_SHARDS => {
                pieces.push(NamesBody::default());
                pieces.len() - 1
            }
            None => continue,
        };
        pieces[at].names.insert(name.clone(), addresses.clone());
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(count: u16) -> ContainerNames {
        let ip = |n: u16| IpAddr::from([10, 42, (n >> 8) as u8, n as u8]);
        (0..count).map(|n| (format!("container-{n}"), vec![ip(n)])).collect()
    }

    fn all(pieces: &[NamesBody]) -> ContainerNames {
        pieces.iter().flat_map(|piece| piece.names.clone()).collect()
    }

    #[test]
    fn labels_are_those_of_host_names_in_lower_case() {
        for good in ["a", "web", "web-1", "web_1", "0db", &"x".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "_a", "Web", "a.b", "a b", "ü", &"x".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }

    #[test]
    fn one_change_touches_one_piece_and_pieces_fit_their_records() {
        let before = place(&[], &names(150));
        assert!(before.len() > 1 && all(&before) == names(150));
        assert!(before.iter().all(|piece| piece.encode().is_ok()));
        let mut wanted = names(150);
        wanted.remove("container-77");
        wanted.insert("another".into(), vec!["fd42::1".parse().unwrap()]);
        let after = place(&before, &wanted);
        assert_eq!(all(&after), wanted);
        let changed = before.iter().zip(&after).filter(|(old, new)| old != new).count();
        assert!(changed <= 2, "{changed} of {} pieces changed", before.len());
        assert!(all(&place(&after, &ContainerNames::new())).is_empty());
    }

    #[test]
    fn too_many_names_fill_the_pieces_and_no_more() {
        let pieces = place(&[], &names(5000));
        assert_eq!(pieces.len(), MAX_NAME_SHARDS);
        assert!(pieces.iter().all(|piece| piece.encode().unwrap().len() <= MAX_BODY_BYTES));
    }

    proptest! {
        #[test]
        fn decoded_body_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(body) = NamesBody::decode(&bytes) {
                prop_assert_eq!(body.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn body_survives_being_written(count in 0u16..20, six in any::<bool>()) {
            let mut names = names(count);
            if six {
                names.insert("six".into(), vec!["10.1.2.3".parse().unwrap(), "fd42::9".parse().unwrap()]);
            }
            let body = NamesBody { names };
            let bytes = body.encode().unwrap();
            prop_assert_eq!(NamesBody::decode(&bytes).unwrap(), body);
            for cut in 0..bytes.len() {
                prop_assert!(NamesBody::decode(&bytes[..cut]).is_err());
            }
        }
    }
}

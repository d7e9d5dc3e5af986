//! The body of the IDENTITIES record: the labels of the containers on the owner's host, by address.
//!
//! Every container is in it, also one without labels: an address that is not there is not known yet, which is not the same
//! as having none. Addresses with the same labels stand together. An address counts only where its owner is who signed the
//! record; that is for the reader of the record to check.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::gossip::body::BodyError;
use crate::gossip::codec::{DecodeError, Reader, put_ip, put_name};
use crate::gossip::record::MAX_BODY_BYTES;
use crate::policy::{MAX_NAME_BYTES, is_label};

/// The body format written today.
const VERSION: u8 = 1;
/// The most labels of one container.
pub const MAX_LABELS: usize = 16;
/// The most bytes of one container's labels: keys, values, and two for each.
pub const MAX_LABELS_BYTES: usize = 512;
/// The most IDENTITIES records of one host: about 700 containers with labels of their own and an address of each family.
pub const MAX_IDENTITY_SHARDS: usize = 32;
/// The most groups in one record: what fits with the shortest entries.
const MAX_GROUPS: usize = 128;
/// The most addresses of one group.
const MAX_ADDRESSES: usize = 255;

/// The labels of one container, by key.
pub type Labels = BTreeMap<String, String>;

/// The labels of containers, by address.
pub type Identities = BTreeMap<IpAddr, Labels>;

/// Why labels are not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A key or value has other characters, or too many.
    #[error(
        "`{0}` is no label: key and value have letters, digits, `.`, `_`, `-` and `/`, begin with a letter or digit, and \
         have at most 63 characters each"
    )]
    Word(String),
    /// There are too many.
    #[error("{0} labels; an endpoint has at most {MAX_LABELS}")]
    TooMany(usize),
    /// They are too long together.
    #[error("the labels take {0} bytes; an endpoint has room for {MAX_LABELS_BYTES}")]
    TooLong(usize),
}

/// Checks the labels of one container.
///
/// # Errors
/// When a word is not acceptable, or they are too many or too long.
pub fn check_labels(labels: &Labels) -> Result<(), LabelError> {
    for (key, value) in labels {
        if !is_label(key) || !is_label(value) {
            let shown = |text: &str| text.chars().take(64).flat_map(char::escape_debug).collect::<String>();
            return Err(LabelError::Word(format!("{}={}", shown(key), shown(value))));
        }
    }
    if labels.len() > MAX_LABELS {
        return Err(LabelError::TooMany(labels.len()));
    }
    match labels_len(labels) {
        len if len > MAX_LABELS_BYTES => Err(LabelError::TooLong(len)),
        _ => Ok(()),
    }
}

fn labels_len(labels: &Labels) -> usize {
    labels.iter().map(|(key, value)| 2 + key.len() + value.len()).sum()
}

/// One piece of the identities of a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IdentitiesBody {
    /// The addresses with the same labels, ascending, by their labels.
    groups: BTreeMap<Labels, BTreeSet<IpAddr>>,
}

impl IdentitiesBody {
    /// Every address in this piece with its labels.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Labels)> {
        self.groups.iter().flat_map(|(labels, addresses)| addresses.iter().map(move |address| (*address, labels)))
    }

    /// The addresses with the same labels, by their labels.
    pub fn groups(&self) -> impl Iterator<Item = (&Labels, &BTreeSet<IpAddr>)> {
        self.groups.iter()
    }

    /// Whether nothing is in this piece.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether the address is in this piece.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.groups.values().any(|addresses| addresses.contains(&address))
    }

    /// The body's bytes.
    ///
    /// # Errors
    /// When it is too long, or labels are not acceptable.
    pub fn encode(&self) -> Result<Vec<u8>, BodyError> {
        let mut out = vec![VERSION, self.groups.len().min(255) as u8];
        for (labels, addresses) in &self.groups {
            out.push(labels.len().min(255) as u8);
            for (key, value) in labels {
                put_name(&mut out, key);
                put_name(&mut out, value);
            }
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
        const ODD: DecodeError = DecodeError::Value { field: "identities" };
        if bytes.len() > MAX_BODY_BYTES {
            return Err(DecodeError::TooLong { field: "identities", max: MAX_BODY_BYTES });
        }
        let mut reader = Reader::new(bytes);
        match reader.u8("identities format")? {
            VERSION => {}
            version => return Err(DecodeError::Version { what: "identities", version }),
        }
        let mut groups: BTreeMap<Labels, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut all: BTreeSet<IpAddr> = BTreeSet::new();
        for _ in 0..reader.count("identity groups", MAX_GROUPS)? {
            let labels = labels(&mut reader)?;
            let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
            for _ in 0..reader.count("addresses of a group", MAX_ADDRESSES)? {
                let address = reader.ip("address of a container")?;
                if addresses.last().is_some_and(|last| *last >= address) || !all.insert(address) {
                    return Err(ODD);
                }
                addresses.insert(address);
            }
            if addresses.is_empty() || groups.last_key_value().is_some_and(|(last, _)| *last >= labels) {
                return Err(ODD);
            }
            groups.insert(labels, addresses);
        }
        reader.finish()?;
        Ok(Self { groups })
    }

    fn len(&self) -> usize {
        let group = |(labels, addresses): (&Labels, &BTreeSet<IpAddr>)| {
            2 + labels_len(labels) + addresses.iter().map(address_len).sum::<usize>()
        };
        2 + self.groups.iter().map(group).sum::<usize>()
    }

    fn has_room_for(&self, address: &IpAddr, labels: &Labels) -> bool {
        let (group, is_free) = match self.groups.get(labels) {
            Some(addresses) => (0, addresses.len() < MAX_ADDRESSES),
            None => (2 + labels_len(labels), self.groups.len() < MAX_GROUPS),
        };
        is_free && self.len() + group + address_len(address) <= MAX_BODY_BYTES
    }

    fn insert(&mut self, address: IpAddr, labels: &Labels) {
        match self.groups.get_mut(labels) {
            Some(addresses) => drop(addresses.insert(address)),
            None => drop(self.groups.insert(labels.clone(), BTreeSet::from([address]))),
        }
    }
}

fn labels(reader: &mut Reader<'_>) -> Result<Labels, DecodeError> {
    let mut labels = Labels::new();
    for _ in 0..reader.count("labels of a group", MAX_LABELS)? {
        let key = reader.name("label key", MAX_NAME_BYTES)?;
        let value = reader.name("label value", MAX_NAME_BYTES)?;
        if labels.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(DecodeError::Value { field: "label key" });
        }
        labels.insert(key, value);
    }
    check_labels(&labels).map_err(|_| DecodeError::Value { field: "labels of a group" })?;
    Ok(labels)
}

fn address_len(address: &IpAddr) -> usize {
    if address.is_ipv4() { 5 } else { 17 }
}

/// Cuts the identities of a host into pieces. What stays as it was stays in its piece, so that a change touches few records.
/// Addresses beyond the room of [`MAX_IDENTITY_SHARDS`] are left out; how many.
#[must_use]
pub fn place(previous: &[IdentitiesBody], wanted: &Identities) -> (Vec<IdentitiesBody>, usize) {
    let mut left: BTreeMap<IpAddr, &Labels> = wanted.iter().map(|(address, labels)| (*address, labels)).collect();
    let mut homes: BTreeMap<IpAddr, usize> = BTreeMap::new();
    let mut pieces: Vec<IdentitiesBody> = Vec::with_capacity(previous.len());
    for (at, piece) in previous.iter().take(MAX_IDENTITY_SHARDS).enumerate() {
        let mut kept = IdentitiesBody::default();
        for (address, labels) in piece.iter() {
            homes.entry(address).or_insert(at);
            if left.get(&address) == Some(&labels) {
                left.remove(&address);
                kept.insert(address, labels);
            }
        }
        pieces.push(kept);
    }
    let mut left_out = 0;
    for (address, labels) in left {
        // Where it was, then where its labels are, then wherever there is room.
        let home = homes.get(&address).copied();
        let alike = pieces.iter().position(|piece| piece.groups.contains_key(labels));
        let at = home.into_iter().chain(alike).chain(0..pieces.len());
        let at = at.into_iter().find(|at| pieces[*at].has_room_for(&address, labels));
        match at {
            Some(at) => pieces[at].insert(address, labels),
            None if pieces.len() < MAX_IDENTITY_SHARDS => {
                let mut piece = IdentitiesBody::default();
                piece.insert(address, labels);
                pieces.push(piece);
            }
            None => left_out += 1,
        }
    }
    (pieces, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn ip(n: u16) -> IpAddr {
        IpAddr::from([10, 42, (n >> 8) as u8, n as u8])
    }

    fn own(count: u16) -> Identities {
        (0..count).map(|n| (ip(n), labels(&[("name", &format!("container-{n}")), ("role", "web")]))).collect()
    }

    fn all(pieces: &[IdentitiesBody]) -> Identities {
        pieces.iter().flat_map(|piece| piece.iter().map(|(ip, labels)| (ip, labels.clone()))).collect()
    }

    #[test]
    fn labels_are_words_few_and_short() {
        assert_eq!(check_labels(&labels(&[("app.kubernetes.io/name", "web-1_a")])), Ok(()));
        assert_eq!(check_labels(&Labels::new()), Ok(()));
        for (key, value) in [("", "a"), ("a", ""), ("a b", "c"), ("-a", "b"), ("a", "b=c"), (&"k".repeat(64), "v")] {
            assert!(matches!(check_labels(&labels(&[(key, value)])), Err(LabelError::Word(_))), "{key}={value}");
        }
        let many: Labels = (0..17).map(|n| (format!("k{n}"), "v".to_owned())).collect();
        assert_eq!(check_labels(&many), Err(LabelError::TooMany(17)));
        let long: Labels = (0..9).map(|n| (format!("{n}"), "v".repeat(60))).collect();
        assert_eq!(check_labels(&long), Err(LabelError::TooLong(9 * 63)));
    }

    #[test]
    fn containers_without_labels_are_listed_and_take_little() {
        let wanted: Identities = (0..200).map(|n| (ip(n), Labels::new())).collect();
        let (pieces, left_out) = place(&[], &wanted);
        assert_eq!((pieces.len(), left_out), (1, 0));
        assert_eq!(pieces[0].encode().unwrap().len(), pieces[0].len());
        assert_eq!(all(&pieces), wanted);
        assert!(pieces[0].contains(ip(7)) && !pieces[0].contains(ip(777)));
    }

    #[test]
    fn one_change_touches_one_piece_and_pieces_fit_their_records() {
        let (before, _) = place(&[], &own(150));
        assert!(before.len() > 1 && all(&before) == own(150));
        assert!(before.iter().all(|piece| piece.encode().is_ok()));
        let mut wanted = own(150);
        wanted.insert(ip(77), labels(&[("role", "db")]));
        let (after, _) = place(&before, &wanted);
        assert_eq!(all(&after), wanted);
        let changed = before.iter().zip(&after).filter(|(old, new)| old != new).count();
        assert_eq!((changed, before.len()), (1, after.len()));
        assert!(all(&place(&after, &Identities::new()).0).is_empty());
    }

    #[test]
    fn too_many_fill_the_pieces_and_the_rest_is_counted() {
        let (pieces, left_out) = place(&[], &own(5000));
        assert_eq!(pieces.len(), MAX_IDENTITY_SHARDS);
        assert!(pieces.iter().all(|piece| piece.encode().unwrap().len() <= MAX_BODY_BYTES));
        assert_eq!(all(&pieces).len() + left_out, 5000);
        assert!(left_out > 0);
    }

    #[test]
    fn what_no_host_would_write_is_refused() {
        type Group<'a> = (&'a [(&'a str, &'a str)], &'a [u16]);
        let body = |groups: &[Group<'_>]| {
            let mut out = vec![VERSION, groups.len() as u8];
            for (list, addresses) in groups {
                out.push(list.len() as u8);
                for (key, value) in *list {
                    put_name(&mut out, key);
                    put_name(&mut out, value);
                }
                out.push(addresses.len() as u8);
                addresses.iter().for_each(|n| put_ip(&mut out, ip(*n)));
            }
            IdentitiesBody::decode(&out).is_ok()
        };
        assert!(body(&[(&[], &[1, 2]), (&[("a", "b")], &[3])]));
        assert!(!body(&[(&[("a", "b")], &[3]), (&[], &[1])]), "groups out of order");
        assert!(!body(&[(&[("a", "b")], &[2, 1])]), "addresses out of order");
        assert!(!body(&[(&[], &[1]), (&[("a", "b")], &[1])]), "an address twice");
        assert!(!body(&[(&[("a", "b")], &[])]), "a group without addresses");
        assert!(!body(&[(&[("b", "b"), ("a", "b")], &[1])]), "keys out of order");
        assert!(!body(&[(&[("a", "b=c")], &[1])]), "a value that is none");
    }

    proptest! {
        #[test]
        fn decoded_body_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(body) = IdentitiesBody::decode(&bytes) {
                prop_assert_eq!(body.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn body_survives_being_written(count in 0u16..20, six in any::<bool>()) {
            let mut wanted = own(count);
            if six {
                wanted.insert("fd42::9".parse().unwrap(), Labels::new());
            }
            let (pieces, _) = place(&[], &wanted);
            for piece in &pieces {
                let bytes = piece.encode().unwrap();
                prop_assert_eq!(bytes.len(), piece.len());
                prop_assert_eq!(&IdentitiesBody::decode(&bytes).unwrap(), piece);
                for cut in 0..bytes.len() {
                    prop_assert!(IdentitiesBody::decode(&bytes[..cut]).is_err());
                }
            }
            prop_assert_eq!(all(&pieces), wanted);
        }
    }
}

//! The body of a NETWORKS record: the networks one host knows as its own, and the blocks of its prefixes they have.
//!
//! Each host announces what it was told, by name; the same name on two hosts is one network. A record holds as many whole
//! entries as fit, in ascending order of names; what does not fit stands in the next shard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Prefix;
use crate::gossip::body::{BODY_VERSION, BodyError, MAX_NAME_BYTES};
use crate::gossip::codec::{DecodeError, Reader, put_name, put_prefix};
use crate::gossip::record::MAX_BODY_BYTES;
use crate::policy::is_name;

/// The network that every endpoint without another one is in; it is never announced.
pub const DEFAULT_NETWORK: &str = "default";
/// The most NETWORKS records of one host: the store keeps 96 records of an owner, and policy may take 32.
pub const MAX_NETWORK_SHARDS: usize = 8;
/// The most networks of one host.
pub const MAX_NETWORKS: usize = 64;
/// The most prefixes a network can be confined to.
pub const MAX_POOL_PREFIXES: usize = 4;
/// The most blocks of one network on one host.
pub const MAX_NETWORK_BLOCKS: usize = 16;

const INTERNAL: u8 = 1;
const BRIDGE: u8 = 2;

/// How containers of one network on one host are linked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A link of its own for each; every packet passes the filter.
    #[default]
    Routed,
    /// One bridge; neighbours on one host are not filtered.
    Bridge,
}

impl NetworkMode {
    /// The word used on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
        }
    }
}

/// What a network is to be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct NetworkOptions {
    /// When it was made where it was made first, Unix seconds; others keep the value.
    pub created_unix: u64,
    /// How its containers are linked.
    #[serde(default)]
    pub mode: NetworkMode,
    /// Whether there is no way to the outside.
    #[serde(default)]
    pub internal: bool,
    /// Its blocks lie inside these prefixes, ascending; empty: anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pool: Vec<Prefix>,
}

impl NetworkOptions {
    /// Whether two say the same, whenever they were made.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        (self.mode, self.internal, &self.pool) == (other.mode, other.internal, &other.pool)
    }
}

/// One network as one host announces it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkEntry {
    /// What it is to be.
    pub options: NetworkOptions,
    /// The parts of the host's own prefixes that it has, ascending.
    #[serde(default)]
    pub blocks: Vec<Prefix>,
}

/// The networks in one NETWORKS record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NetworksBody {
    /// By name.
    pub networks: BTreeMap<String, NetworkEntry>,
    /// Bytes added by newer versions, kept as they are.
    pub extension: Vec<u8>,
}

/// Whether a text may name a network that somebody makes.
#[must_use]
pub fn is_network_name(text: &str) -> bool {
    is_name(text) && text != DEFAULT_NETWORK
}

impl NetworksBody {
    /// The bodies of all records that announce these networks, one for each shard from 0 on.
    ///
    /// # Errors
    /// When there are too many, or one would not decode again.
    pub fn pack(networks: &BTreeMap<String, NetworkEntry>) -> Result<Vec<Vec<u8>>, BodyError> {
        let too_many = |bytes: usize| BodyError::TooLarge { bytes, max: MAX_BODY_BYTES * MAX_NETWORK_SHARDS };
        let mut bodies: Vec<(Vec<u8>, usize)> = Vec::new();
        for (name, network) in networks {
            let entry = entry(name, network);
            match bodies.last_mut() {
                Some((body, count)) if body.len() + entry.len() <= MAX_BODY_BYTES => {
                    body.extend_from_slice(&entry);
                    *count += 1;
                }
                _ => {
                    let mut body = vec![BODY_VERSION, 0];
                    body.extend_from_slice(&entry);
                    bodies.push((body, 1));
                }
            }
        }
        if bodies.len() > MAX_NETWORK_SHARDS || networks.len() > MAX_NETWORKS {
            return Err(too_many(bodies.iter().map(|(body, _)| body.len()).sum()));
        }
        let finish = |(mut body, count): (Vec<u8>, usize)| {
            if let Some(place) = body.get_mut(1) {
                *place = count.min(255) as u8;
            }
            Self::decode(&body)?;
            Ok(body)
        };
        bodies.into_iter().map(finish).collect()
    }

    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![BODY_VERSION, self.networks.len().min(255) as u8];
        self.networks.iter().for_each(|(name, network)| out.extend(entry(name, network)));
        out.extend_from_slice(&self.extension);
        out
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(DecodeError::TooLong { field: "NETWORKS body", max: MAX_BODY_BYTES });
        }
        let mut reader = Reader::new(body);
        match reader.u8("NETWORKS body")? {
            BODY_VERSION => {}
            version => return Err(DecodeError::Version { what: "NETWORKS body", version }),
        }
        let mut networks: BTreeMap<String, NetworkEntry> = BTreeMap::new();
        for _ in 0..reader.count("networks", MAX_NETWORKS)? {
            let name = reader.name("network name", MAX_NAME_BYTES)?;
            if !is_network_name(&name) || networks.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(DecodeError::Value { field: "network name" });
            }
            let flags = reader.u8("network options")?;
            if flags & !(INTERNAL | BRIDGE) != 0 {
                return Err(DecodeError::Value { field: "network options" });
            }
            let created_unix = reader.u64("network creation")?;
            let pool = prefixes(&mut reader, "network pool", MAX_POOL_PREFIXES)?;
            let blocks = prefixes(&mut reader, "network blocks", MAX_NETWORK_BLOCKS)?;
            let mode = if flags & BRIDGE == 0 { NetworkMode::Routed } else { NetworkMode::Bridge };
            let options = NetworkOptions { created_unix, mode, internal: flags & INTERNAL != 0, pool };
            networks.insert(name, NetworkEntry { options, blocks });
        }
        Ok(Self { networks, extension: reader.rest().to_vec() })
    }
}

fn entry(name: &str, network: &NetworkEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_name(&mut out, name);
    let internal = if network.options.internal { INTERNAL } else { 0 };
    let bridge = if network.options.mode == NetworkMode::Bridge { BRIDGE } else { 0 };
    out.push(internal | bridge);
    out.extend_from_slice(&network.options.created_unix.to_be_bytes());
    for list in [&network.options.pool, &network.blocks] {
        out.push(list.len().min(255) as u8);
        list.iter().for_each(|prefix| put_prefix(&mut out, prefix));
    }
    out
}

/// A list of prefixes, ascending and apart from each other.
fn prefixes(reader: &mut Reader<'_>, field: &'static str, max: usize) -> Result<Vec<Prefix>, DecodeError> {
    let mut found: Vec<Prefix> = Vec::new();
    for _ in 0..reader.count(field, max)? {
        let prefix = reader.prefix(field)?;
        if found.last().is_some_and(|last| *last >= prefix || last.covers(&prefix)) {
            return Err(DecodeError::Value { field });
        }
        found.push(prefix);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(pool: &[&str], blocks: &[&str]) -> NetworkEntry {
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a prefix in a test")).collect();
        let options = NetworkOptions { created_unix: 7, mode: NetworkMode::Bridge, internal: true, pool: list(pool) };
        NetworkEntry { options, blocks: list(blocks) }
    }

    #[test]
    fn networks_come_back_from_their_records() {
        let networks: BTreeMap<String, NetworkEntry> = (0..40)
            .map(|n| (format!("net-{n:02}"), network(&["10.42.0.0/16"], &["10.42.1.224/27", "fd42:0:0:1:ffff::/80"])))
            .collect();
        let bodies = NetworksBody::pack(&networks).expect("they fit");
        assert!(bodies.len() > 1 && bodies.iter().all(|body| body.len() <= MAX_BODY_BYTES));
        let mut again = BTreeMap::new();
        for body in &bodies {
            let decoded = NetworksBody::decode(body).expect("it decodes");
            assert_eq!(decoded.encode(), *body);
            again.extend(decoded.networks);
        }
        assert_eq!(again, networks);
    }

    #[test]
    fn what_no_host_would_write_is_refused() {
        let body = |name: &str, network: NetworkEntry| {
            NetworksBody { networks: [(name.to_owned(), network)].into(), extension: Vec::new() }.encode()
        };
        assert!(NetworksBody::decode(&body("web", network(&[], &[]))).is_ok());
        for (name, wrong) in [
            ("default", network(&[], &[])),
            ("a/b", network(&[], &[])),
            ("web", network(&[], &["10.42.1.224/27", "10.42.1.0/24"])),
            ("web", network(&["10.42.0.0/16", "10.42.1.0/24"], &[])),
        ] {
            assert!(NetworksBody::decode(&body(name, wrong.clone())).is_err(), "{name} {wrong:?}");
        }
        let mut flags = body("web", network(&[], &[]));
        flags[6] |= 4;
        assert!(NetworksBody::decode(&flags).is_err());
        let many = (0..=MAX_NETWORKS).map(|n| (format!("n{n}"), network(&[], &[]))).collect();
        assert!(NetworksBody::pack(&many).is_err());
        assert!(NetworksBody::pack(&[("default".to_owned(), network(&[], &[]))].into()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(body) = NetworksBody::decode(&bytes) {
                prop_assert_eq!(body.encode(), bytes);
            }
        }
    }
}

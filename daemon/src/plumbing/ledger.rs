//! What this host's prefixes are set apart for: the networks it takes part in with their blocks, and reserved addresses.
//! One fsynced file, replaced by atomic rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use overlay_wire::Prefix;
use overlay_wire::gossip::networks::is_network_name;
use overlay_wire::gossip::{NetworkEntry, NetworkOptions, NetworksBody};
use serde::{Deserialize, Serialize};

use super::PlumbingError;
use super::lease::write_durably;

/// Version of the file.
const VERSION: u32 = 1;

/// The most addresses that can be reserved.
pub const MAX_RESERVED: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    version: u32,
    #[serde(default)]
    networks: BTreeMap<String, NetworkEntry>,
    #[serde(default)]
    reserved: BTreeSet<IpAddr>,
}

/// The file and what it holds.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    content: Content,
}

impl Ledger {
    /// Reads the file; one that is not there is empty.
    ///
    /// # Errors
    /// When it cannot be read, is damaged or of a newer release.
    pub fn open(state_dir: &Path) -> Result<Self, PlumbingError> {
        let path = state_dir.join("networks.json");
        let empty = Content { version: VERSION, networks: BTreeMap::new(), reserved: BTreeSet::new() };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self { path, content: empty }),
            Err(error) => return Err(PlumbingError::file("read", &path)(error)),
        };
        let damaged = |why: String| PlumbingError::StateFormat { path: path.clone(), why };
        let content: Content = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if content.version > VERSION {
            return Err(damaged(format!("version {} is newer than {VERSION}", content.version)));
        }
        NetworksBody::pack(&content.networks).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { path, content })
    }

    /// The networks this host takes part in, but for the default one.
    #[must_use]
    pub fn networks(&self) -> BTreeMap<String, NetworkEntry> {
        self.content.networks.clone()
    }

    /// One of them.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&NetworkEntry> {
        self.content.networks.get(name)
    }

    /// Every block that is set apart, with its network.
    pub fn blocks(&self) -> impl Iterator<Item = (&str, Prefix)> {
        self.content
            .networks
            .iter()
            .flat_map(|(name, network)| network.blocks.iter().map(move |block| (name.as_str(), *block)))
    }

    /// Addresses that are never given by themselves.
    #[must_use]
    pub fn reserved(&self) -> &BTreeSet<IpAddr> {
        &self.content.reserved
    }

    /// Takes part in a network; whether that is new.
    ///
    /// # Errors
    /// When the name is unusable, there are too many, or the file cannot be written; then nothing has changed.
    pub fn join(&mut self, name: &str, options: NetworkOptions) -> Result<bool, PlumbingError> {
        if self.content.networks.contains_key(name) {
            return Ok(false);
        }
        if !is_network_name(name) {
            return Err(PlumbingError::BadName { name: name.to_owned(), why: "no network can have it" });
        }
        let mut next = self.content.clone();
        next.networks.insert(name.to_owned(), NetworkEntry { options, blocks: Vec::new() });
        self.put(next).map(|()| true)
    }

    /// Leaves a network and gives its blocks back; whether it was in it.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub fn leave(&mut self, name: &str) -> Result<bool, PlumbingError> {
        let mut next = self.content.clone();
        if next.networks.remove(name).is_none() {
            return Ok(false);
        }
        self.put(next).map(|()| true)
    }

    /// Sets blocks apart for a network.
    ///
    /// # Errors
    /// When there are too many, or the file cannot be written; then nothing has changed.
    pub fn add_blocks(&mut self, name: &str, blocks: &[Prefix]) -> Result<(), PlumbingError> {
        let mut next = self.content.clone();
        let Some(network) = next.networks.get_mut(name) else {
            return Err(PlumbingError::NetworkUnknown(name.to_owned()));
        };
        network.blocks.extend(blocks);
        network.blocks.sort_unstable();
        self.put(next)
    }

    /// Drops blocks that lie outside the host's prefixes now; whether there were any.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn drop_foreign_blocks(&mut self, own: &[Prefix]) -> Result<bool, PlumbingError> {
        let mut next = self.content.clone();
        for network in next.networks.values_mut() {
            network.blocks.retain(|block| own.iter().any(|prefix| prefix.covers(block)));
        }
        if next == self.content { Ok(false) } else { self.put(next).map(|()| true) }
    }

    /// Reserves an address or gives it back; whether that changed anything.
    ///
    /// # Errors
    /// When too many are reserved, or the file cannot be written.
    pub fn reserve(&mut self, address: IpAddr, keep: Keep) -> Result<bool, PlumbingError> {
        let mut next = self.content.clone();
        let changed = match keep {
            Keep::Reserved => next.reserved.insert(address),
            Keep::Free => next.reserved.remove(&address),
        };
        if next.reserved.len() > MAX_RESERVED {
            let why = format!("{MAX_RESERVED} addresses are reserved already");
            return Err(PlumbingError::AddressRefused { address, why });
        }
        if changed { self.put(next).map(|()| true) } else { Ok(false) }
    }

    fn put(&mut self, next: Content) -> Result<(), PlumbingError> {
        NetworksBody::pack(&next.networks).map_err(|error| PlumbingError::TooManyNetworks(error.to_string()))?;
        let bytes = serde_json::to_vec_pretty(&next).expect("networks serialise");
        write_durably(&self.path, &bytes)?;
        self.content = next;
        Ok(())
    }
}

/// What is to become of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It is kept for somebody.
    Reserved,
    /// It may be given.
    Free,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopened_ledger_holds_what_was_put() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        assert!(ledger.join("web", NetworkOptions { internal: true, ..NetworkOptions::default() }).unwrap());
        assert!(!ledger.join("web", NetworkOptions::default()).unwrap());
        ledger.add_blocks("web", &["10.42.1.224/27".parse().unwrap()]).unwrap();
        ledger.reserve("10.42.1.9".parse().unwrap(), Keep::Reserved).unwrap();
        let again = Ledger::open(dir.path()).unwrap();
        assert_eq!(again.content, ledger.content);
        assert!(again.network("web").unwrap().options.internal);
        assert!(ledger.leave("web").unwrap() && !ledger.leave("web").unwrap());
        assert!(ledger.reserve("10.42.1.9".parse().unwrap(), Keep::Free).unwrap());
        assert_eq!(Ledger::open(dir.path()).unwrap().blocks().count(), 0);
    }

    #[test]
    fn damaged_and_newer_files_are_refused_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("networks.json");
        for text in ["{", r#"{"version":2}"#, r#"{"version":1,"networks":{"a/b":{"options":{"created_unix":1}}}}"#] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Ledger::open(dir.path()), Err(PlumbingError::StateFormat { .. })), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn blocks_outside_the_hosts_prefixes_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.join("web", NetworkOptions::default()).unwrap();
        ledger.add_blocks("web", &["10.42.1.224/27".parse().unwrap(), "10.42.9.0/27".parse().unwrap()]).unwrap();
        assert!(ledger.drop_foreign_blocks(&["10.42.1.0/24".parse().unwrap()]).unwrap());
        assert_eq!(ledger.blocks().collect::<Vec<_>>(), [("web", "10.42.1.224/27".parse().unwrap())]);
    }
}

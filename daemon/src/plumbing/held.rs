//! Addresses held for plugins before there is an endpoint: one fsynced file per address.
//!
//! A released address stays as `cooling` until it may be given again; its owner alone may ask for it by name before.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use overlay_control::api::HeldAddress;
use serde::{Deserialize, Serialize};

use super::PlumbingError;
use super::ipam::Holder;
use super::lease::{COOLDOWN, unix, write_durably};

/// Version of the files.
const VERSION: u32 = 1;

/// Whether an address is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldState {
    /// Its owner has it.
    Held,
    /// Released; not given to others yet.
    Cooling,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    version: u32,
    /// The address.
    pub address: IpAddr,
    /// For whom, as `docker/POOL`.
    pub owner: String,
    /// Whether it is in use.
    pub state: HeldState,
    /// When the state last changed, seconds since 1970.
    changed_unix: u64,
}

/// What an owner is known by to others: the word before the slash.
fn kind(owner: &str) -> &str {
    owner.split('/').next().unwrap_or(owner)
}

/// All held addresses of this host.
#[derive(Debug)]
pub struct HeldAddresses {
    directory: PathBuf,
    known: BTreeMap<IpAddr, Held>,
}

impl HeldAddresses {
    /// Reads what is held; half-written files of a crash are removed.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or a file is damaged or of a newer release.
    pub fn open(state_dir: &Path) -> Result<Self, PlumbingError> {
        let directory = state_dir.join("held");
        fs::create_dir_all(&directory).map_err(PlumbingError::file("create", &directory))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&directory).map_err(PlumbingError::file("list", &directory))? {
            let path = entry.map_err(PlumbingError::file("list", &directory))?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {
                    let held = read(&path)?;
                    known.insert(held.address, held);
                }
                Some("tmp") => fs::remove_file(&path).map_err(PlumbingError::file("remove", &path))?,
                _ => {}
            }
        }
        Ok(Self { directory, known })
    }

    /// Every address that must not be given to just anybody, and what holds it.
    pub fn taken(&self, now: SystemTime) -> impl Iterator<Item = (IpAddr, Holder)> {
        self.known.values().map(move |held| {
            let since = unix(now).saturating_sub(held.changed_unix);
            let holder = match held.state {
                HeldState::Held => Holder::Held(held.owner.clone()),
                HeldState::Cooling => Holder::Resting(held.owner.clone(), COOLDOWN.as_secs().saturating_sub(since)),
            };
            (held.address, holder)
        })
    }

    /// Forgets an address that rests; one that does not is left alone.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn forget_resting(&mut self, address: IpAddr) -> Result<(), PlumbingError> {
        if self.known.get(&address).is_some_and(|held| held.state == HeldState::Cooling) {
            self.forget(address)?;
        }
        Ok(())
    }

    fn forget(&mut self, address: IpAddr) -> Result<(), PlumbingError> {
        let path = self.path(address);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(PlumbingError::file("remove", &path)(error)),
            _ => {
                self.known.remove(&address);
                Ok(())
            }
        }
    }

    /// Whether an address is held for an owner of the same kind, who may give it to an endpoint.
    #[must_use]
    pub fn is_held_by(&self, address: IpAddr, owner: Option<&str>) -> bool {
        let held = self.known.get(&address).filter(|held| held.state == HeldState::Held);
        held.is_some_and(|held| owner.is_some_and(|owner| kind(owner) == kind(&held.owner)))
    }

    /// Whether a plugin has an address, or had it a moment ago.
    #[must_use]
    pub fn knows(&self, address: IpAddr) -> bool {
        self.known.contains_key(&address)
    }

    /// Whether an owner may have an address again that it released a moment ago.
    #[must_use]
    pub fn may_return(&self, address: IpAddr, owner: &str) -> bool {
        self.known.get(&address).is_some_and(|held| held.state == HeldState::Cooling && held.owner == owner)
    }

    /// Whether an address rests that an owner of the same kind had: engines make a network anew with the gateway it had.
    #[must_use]
    pub fn rests_for(&self, address: IpAddr, owner: &str) -> bool {
        let known = self.known.get(&address).filter(|held| held.state == HeldState::Cooling);
        known.is_some_and(|held| kind(&held.owner) == kind(owner))
    }

    /// Holds an address, durably.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub fn hold(&mut self, address: IpAddr, owner: &str, now: SystemTime) -> Result<HeldAddress, PlumbingError> {
        self.put(Held {
            version: VERSION,
            address,
            owner: owner.to_owned(),
            state: HeldState::Held,
            changed_unix: unix(now),
        })?;
        Ok(HeldAddress { address, owner: owner.to_owned(), age_s: 0 })
    }

    /// Releases an address, which then cools down; whether its owner had it.
    ///
    /// # Errors
    /// When the file cannot be written; then it is held still.
    pub fn release(&mut self, address: IpAddr, owner: &str, now: SystemTime) -> Result<bool, PlumbingError> {
        let held = self.known.get(&address).filter(|held| held.state == HeldState::Held && held.owner == owner);
        let Some(held) = held.cloned() else { return Ok(false) };
        self.put(Held { state: HeldState::Cooling, changed_unix: unix(now), ..held })?;
        Ok(true)
    }

    /// Forgets addresses that have cooled down; which.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn settle(&mut self, now: SystemTime) -> Result<Vec<IpAddr>, PlumbingError> {
        let age = |held: &Held| unix(now).saturating_sub(held.changed_unix);
        let is_over = |held: &&Held| held.state == HeldState::Cooling && age(held) >= COOLDOWN.as_secs();
        let over: Vec<IpAddr> = self.known.values().filter(is_over).map(|held| held.address).collect();
        for address in &over {
            self.forget(*address)?;
        }
        Ok(over)
    }

    /// What is held now.
    #[must_use]
    pub fn list(&self, now: SystemTime) -> Vec<HeldAddress> {
        let held = self.known.values().filter(|held| held.state == HeldState::Held);
        held.map(|held| HeldAddress {
            address: held.address,
            owner: held.owner.clone(),
            age_s: unix(now).saturating_sub(held.changed_unix),
        })
        .collect()
    }

    fn put(&mut self, held: Held) -> Result<(), PlumbingError> {
        let bytes = serde_json::to_vec_pretty(&held).expect("a held address serialises");
        write_durably(&self.path(held.address), &bytes)?;
        self.known.insert(held.address, held);
        Ok(())
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.directory.join(format!("{}.json", address.to_string().replace(':', "_")))
    }
}

fn read(path: &Path) -> Result<Held, PlumbingError> {
    let bytes = fs::read(path).map_err(PlumbingError::file("read", path))?;
    let format = |why: String| PlumbingError::StateFormat { path: path.to_owned(), why };
    let held: Held = serde_json::from_slice(&bytes).map_err(|error| format(error.to_string()))?;
    if held.version > VERSION {
        return Err(format(format!("version {} is newer than {VERSION}", held.version)));
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn held_address_outlives_a_restart_and_cools_down() {
        let dir = tempfile::tempdir().unwrap();
        let (address, now): (IpAddr, _) = ("10.42.1.9".parse().unwrap(), SystemTime::now());
        let mut held = HeldAddresses::open(dir.path()).unwrap();
        held.hold(address, "docker/a", now).unwrap();
        let mut held = HeldAddresses::open(dir.path()).unwrap();
        assert!(held.is_held_by(address, Some("docker/net")) && !held.is_held_by(address, Some("cni/net")));
        assert!(!held.is_held_by(address, None));
        // Another owner's release changes nothing, and again is fine.
        assert!(!held.release(address, "docker/b", now).unwrap());
        assert!(held.release(address, "docker/a", now).unwrap());
        assert!(!held.release(address, "docker/a", now).unwrap());
        assert!(held.may_return(address, "docker/a") && !held.may_return(address, "docker/b"));
        assert!(held.rests_for(address, "docker/b") && !held.rests_for(address, "cni/a"));
        assert!(!held.is_held_by(address, Some("docker/net")) && held.list(now).is_empty());
        assert_eq!(held.settle(now).unwrap(), Vec::<IpAddr>::new());
        assert_eq!(held.taken(now).collect::<Vec<_>>(), [(address, Holder::Resting("docker/a".into(), 60))]);
        assert_eq!(held.settle(now + Duration::from_secs(61)).unwrap(), [address]);
        assert_eq!(HeldAddresses::open(dir.path()).unwrap().taken(now).count(), 0);
    }

    #[test]
    fn damaged_and_torn_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = HeldAddresses::open(dir.path()).unwrap();
        held.hold("fd42::9".parse().unwrap(), "docker/a", SystemTime::now()).unwrap();
        fs::write(dir.path().join("held/torn.tmp"), b"{").unwrap();
        assert_eq!(HeldAddresses::open(dir.path()).unwrap().taken(SystemTime::now()).count(), 1);
        fs::write(dir.path().join("held/bad.json"), b"{").unwrap();
        assert!(matches!(HeldAddresses::open(dir.path()), Err(PlumbingError::StateFormat { .. })));
    }
}

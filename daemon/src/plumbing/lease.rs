//! The journal of container endpoints: one fsynced file per lease, replaced by atomic rename.
//!
//! A lease is `prepared` before anything is created and `committed` once the container side is done. After any crash the
//! journal therefore names everything that may exist. A removed lease stays as `cooling` until its addresses may be used
//! again, in a file of its own: the name may be attached anew meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use overlay_control::api::{EndpointInfo, EndpointLease, EndpointState};
use overlay_wire::Prefix;
use overlay_wire::gossip::Labels;
use overlay_wire::gossip::identities::Identities;
use overlay_wire::gossip::networks::DEFAULT_NETWORK;
use serde::{Deserialize, Serialize};

use super::PlumbingError;
use super::ipam::Holder;

/// Version of the lease files.
pub const VERSION: u32 = 1;

/// How long a released address stays unused: longer than ARP and ND entries of peers and than a TCP retransmission.
pub const COOLDOWN: Duration = Duration::from_secs(60);

/// How long a caller may take between `prepare` and `commit`.
pub const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);

/// How far a lease has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Journalled; the veth may or may not exist.
    Prepared,
    /// The container uses it.
    Committed,
    /// Removed; the addresses are not given again yet.
    Cooling,
}

/// One container endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Version of this file.
    pub version: u32,
    /// Names the lease in commit and abort; never given twice.
    pub id: u64,
    /// The endpoint's name, unique on this host.
    pub name: String,
    /// The interface inside the container.
    pub interface: String,
    /// The namespace as the caller named it, for display.
    pub netns: String,
    /// The host end of the veth.
    pub host_ifname: String,
    /// The container end, before it is moved and renamed.
    pub peer_ifname: String,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The container's addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The container's gateways, one per family of `addresses`.
    pub gateways: Vec<IpAddr>,
    /// Gateways of an engine's network, which the host answers for on this link alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub link_gateways: Vec<IpAddr>,
    /// Whether the container reaches the overlay only.
    #[serde(default)]
    pub internal: bool,
    /// The network it is in; absent: the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The bridge its host end is a port of, in a network of that mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// What the container reaches on the link without the gateway: its bridge's neighbours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_link: Vec<Prefix>,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// How far it has come.
    pub state: LeaseState,
    /// Boot of the host it was made in.
    pub boot_id: String,
    /// When the state last changed, seconds since 1970.
    pub changed_unix: u64,
}

impl Lease {
    /// What the caller needs to configure the container.
    #[must_use]
    pub fn to_api(&self) -> EndpointLease {
        EndpointLease {
            lease: self.id,
            name: self.name.clone(),
            host_interface: self.host_ifname.clone(),
            peer_interface: self.peer_ifname.clone(),
            interface: self.interface.clone(),
            addresses: self.addresses.clone(),
            gateways: self.gateways.clone(),
            network: self.network.clone(),
            on_link: self.on_link.clone(),
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
            expires_ms: u64::try_from(PREPARE_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// What `endpoint list` shows.
    #[must_use]
    pub fn to_info(&self) -> EndpointInfo {
        let state = match self.state {
            LeaseState::Prepared => EndpointState::Prepared,
            LeaseState::Committed => EndpointState::Attached,
            LeaseState::Cooling => EndpointState::Gone,
        };
        EndpointInfo {
            name: self.name.clone(),
            state,
            addresses: self.addresses.clone(),
            host_interface: self.host_ifname.clone(),
            interface: self.interface.clone(),
            netns: self.netns.clone(),
            owner: self.owner.clone(),
            network: self.network.clone(),
            labels: self.labels.clone(),
        }
    }

    /// The network it is in.
    #[must_use]
    pub fn network_name(&self) -> &str {
        self.network.as_deref().unwrap_or(DEFAULT_NETWORK)
    }

    /// The interface by which the host reaches the container.
    #[must_use]
    pub fn interface_on_host(&self) -> &str {
        self.bridge.as_deref().unwrap_or(&self.host_ifname)
    }

    /// What its addresses are held by.
    #[must_use]
    pub fn holder(&self, now: SystemTime) -> Holder {
        match self.state {
            LeaseState::Prepared | LeaseState::Committed => Holder::Endpoint(self.name.clone()),
            LeaseState::Cooling => {
                let since = unix(now).saturating_sub(self.changed_unix);
                Holder::Resting(self.name.clone(), COOLDOWN.as_secs().saturating_sub(since))
            }
        }
    }

    /// Whether the state is older than `age`; a clock that was set back counts as young.
    #[must_use]
    pub fn older_than(&self, age: Duration, now: SystemTime) -> bool {
        unix(now).saturating_sub(self.changed_unix) >= age.as_secs()
    }
}

/// Seconds since 1970; 0 for a clock before that.
#[must_use]
pub fn unix(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// All leases of this host.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    /// Prepared and committed ones, by name.
    live: BTreeMap<String, Lease>,
    /// Cooling ones, by number.
    cooling: BTreeMap<u64, Lease>,
}

impl Journal {
    /// Reads the journal; half-written files of a crash are removed.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or a file is damaged or of a newer release.
    pub fn open(state_dir: &Path) -> Result<Self, PlumbingError> {
        let directory = state_dir.join("leases");
        fs::create_dir_all(&directory).map_err(PlumbingError::file("create", &directory))?;
        let mut journal = Self { directory, live: BTreeMap::new(), cooling: BTreeMap::new() };
        let directory = &journal.directory;
        let mut misplaced = Vec::new();
        let entries = fs::read_dir(directory).map_err(PlumbingError::file("list", directory))?;
        for entry in entries {
            let path = entry.map_err(PlumbingError::file("list", directory))?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {
                    let lease = read_lease(&path)?;
                    if path != journal.path(&lease) {
                        misplaced.push((path, lease));
                    } else if lease.state == LeaseState::Cooling {
                        journal.cooling.insert(lease.id, lease);
                    } else {
                        journal.live.insert(lease.name.clone(), lease);
                    }
                }
                Some("tmp") => fs::remove_file(&path).map_err(PlumbingError::file("remove", &path))?,
                _ => {}
            }
        }
        // A crash between the two steps of an end leaves the lease in both files, and the later one says what became of it.
        let ended: Vec<String> = journal
            .live
            .values()
            .filter(|lease| journal.cooling.get(&lease.id).is_some_and(|ended| ended.name == lease.name))
            .map(|lease| lease.name.clone())
            .collect();
        for name in ended {
            if let Some(lease) = journal.live.remove(&name) {
                journal.delete(&journal.path(&lease))?;
            }
        }
        // Earlier releases kept cooling leases where live ones stand.
        for (path, lease) in misplaced {
            journal.put(lease)?;
            journal.delete(&path)?;
        }
        Ok(journal)
    }

    /// Every lease, in order of their names, then cooling ones.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.live.values().chain(self.cooling.values())
    }

    /// Every lease that is not cooling, in order of their names.
    pub fn lives(&self) -> impl Iterator<Item = &Lease> {
        self.live.values()
    }

    /// The labels of this host's containers, by address; those without labels too.
    #[must_use]
    pub fn identities(&self) -> Identities {
        let of_lease = |lease: &Lease| {
            lease.addresses.clone().into_iter().map(|address| (address, lease.labels.clone())).collect::<Vec<_>>()
        };
        self.lives().flat_map(of_lease).collect()
    }

    /// The lease of a name, unless it is cooling.
    #[must_use]
    pub fn live(&self, name: &str) -> Option<&Lease> {
        self.live.get(name)
    }

    /// Every address that must not be given, and by whom it is held; a live holder counts before a cooling one.
    #[must_use]
    pub fn taken(&self, now: SystemTime) -> BTreeMap<IpAddr, Holder> {
        let leases = self.cooling.values().chain(self.live.values());
        leases.flat_map(|lease| lease.addresses.iter().map(move |address| (*address, lease.holder(now)))).collect()
    }

    /// A number that no lease of this host has had: never below the clock, never one in use.
    #[must_use]
    pub fn next_id(&self, now: SystemTime) -> u64 {
        let used = self.iter().map(|lease| lease.id).max().unwrap_or(0);
        (unix(now) << 16).max(used + 1)
    }

    /// Writes a lease durably. One that cools down now no longer stands for its name.
    ///
    /// # Errors
    /// When the file cannot be written; then the old lease stands.
    pub fn put(&mut self, lease: Lease) -> Result<(), PlumbingError> {
        let bytes = serde_json::to_vec_pretty(&lease).expect("a lease serialises");
        write_durably(&self.path(&lease), &bytes)?;
        if lease.state != LeaseState::Cooling {
            self.live.insert(lease.name.clone(), lease);
            return Ok(());
        }
        let before = self.live.get(&lease.name).filter(|live| live.id == lease.id).map(|live| self.path(live));
        let name = lease.name.clone();
        self.cooling.insert(lease.id, lease);
        if let Some(path) = before {
            self.live.remove(&name);
            self.delete(&path)?;
        }
        Ok(())
    }

    /// Forgets a lease.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget(&mut self, lease: &Lease) -> Result<(), PlumbingError> {
        self.delete(&self.path(lease))?;
        if lease.state == LeaseState::Cooling {
            self.cooling.remove(&lease.id);
        } else {
            self.live.remove(&lease.name);
        }
        Ok(())
    }

    fn delete(&self, path: &Path) -> Result<(), PlumbingError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(PlumbingError::file("remove", path)(error)),
            _ => Ok(()),
        }
    }

    fn path(&self, lease: &Lease) -> PathBuf {
        match lease.state {
            LeaseState::Cooling => self.directory.join(format!("cooling-{:016x}.json", lease.id)),
            _ => self.directory.join(format!("{}.json", lease.host_ifname)),
        }
    }
}

fn read_lease(path: &Path) -> Result<Lease, PlumbingError> {
    let bytes = fs::read(path).map_err(PlumbingError::file("read", path))?;
    let format = |why: String| PlumbingError::StateFormat { path: path.to_owned(), why };
    let lease: Lease = serde_json::from_slice(&bytes).map_err(|error| format(error.to_string()))?;
    if lease.version > VERSION {
        return Err(format(format!("version {} is newer than {VERSION}", lease.version)));
    }
    Ok(lease)
}

/// Writes a file so that after any crash it holds either the old or the new bytes.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), PlumbingError> {
    let directory = path.parent().expect("state files live in a directory");
    fs::create_dir_all(directory).map_err(PlumbingError::file("create", directory))?;
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(PlumbingError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, state: LeaseState) -> Lease {
        Lease {
            version: VERSION,
            id: 1,
            name: name.into(),
            interface: "eth0".into(),
            netns: name.into(),
            owner: None,
            host_ifname: format!("ov{name}"),
            peer_ifname: format!("op{name}"),
            addresses: vec!["10.42.1.4".parse().unwrap()],
            gateways: vec!["10.42.1.1".parse().unwrap()],
            link_gateways: vec![],
            internal: false,
            network: None,
            labels: Labels::new(),
            bridge: None,
            on_link: Vec::new(),
            mtu: 1420,
            state,
            boot_id: "b".into(),
            changed_unix: 1000,
        }
    }

    #[test]
    fn reopened_journal_holds_what_was_put() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.put(lease("a", LeaseState::Prepared)).unwrap();
        journal.put(lease("a", LeaseState::Committed)).unwrap();
        journal.put(Lease { id: 2, ..lease("b", LeaseState::Cooling) }).unwrap();
        let again = Journal::open(dir.path()).unwrap();
        assert_eq!(again.iter().cloned().collect::<Vec<_>>(), journal.iter().cloned().collect::<Vec<_>>());
        assert!(again.live("a").is_some());
        assert!(again.live("b").is_none());
    }

    #[test]
    fn name_attached_anew_leaves_the_old_addresses_cooling() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let first = lease("a", LeaseState::Committed);
        journal.put(first.clone()).unwrap();
        journal.put(Lease { state: LeaseState::Cooling, ..first.clone() }).unwrap();
        assert!(journal.live("a").is_none());
        let second = Lease { id: 2, addresses: vec!["10.42.1.5".parse().unwrap()], ..first };
        journal.put(second.clone()).unwrap();
        for journal in [&journal, &Journal::open(dir.path()).unwrap()] {
            assert_eq!(journal.live("a"), Some(&second));
            let taken = journal.taken(UNIX_EPOCH + Duration::from_secs(1010));
            assert_eq!(taken[&"10.42.1.4".parse().unwrap()], Holder::Resting("a".into(), 50));
            assert_eq!(taken[&"10.42.1.5".parse().unwrap()], Holder::Endpoint("a".into()));
        }
    }

    #[test]
    fn crash_in_the_middle_of_an_end_is_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let live = lease("a", LeaseState::Committed);
        journal.put(Lease { state: LeaseState::Cooling, ..live.clone() }).unwrap();
        journal.put(live).unwrap();
        let again = Journal::open(dir.path()).unwrap();
        assert!(again.live("a").is_none());
        assert_eq!(again.iter().count(), 1);
        assert!(!dir.path().join("leases/ova.json").exists());
    }

    #[test]
    fn cooling_lease_of_an_earlier_release_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        Journal::open(dir.path()).unwrap();
        let old = dir.path().join("leases/ova.json");
        fs::write(&old, serde_json::to_vec(&lease("a", LeaseState::Cooling)).unwrap()).unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert!(journal.live("a").is_none() && !old.exists());
        assert_eq!(Journal::open(dir.path()).unwrap().iter().count(), 1);
    }

    #[test]
    fn crash_while_writing_keeps_the_old_lease() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.put(lease("a", LeaseState::Committed)).unwrap();
        let torn = dir.path().join("leases/ova.tmp");
        fs::write(&torn, b"{\"version\":").unwrap();
        let again = Journal::open(dir.path()).unwrap();
        assert_eq!(again.iter().count(), 1);
        assert!(!torn.exists());
    }

    #[test]
    fn damaged_and_newer_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let mut newer = lease("a", LeaseState::Committed);
        newer.version = VERSION + 1;
        journal.put(newer).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(PlumbingError::StateFormat { .. })));
        fs::write(dir.path().join("leases/ova.json"), b"{}").unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(PlumbingError::StateFormat { .. })));
    }

    #[test]
    fn clock_set_back_does_not_age_a_lease() {
        let lease = lease("a", LeaseState::Cooling);
        assert!(!lease.older_than(COOLDOWN, UNIX_EPOCH));
        assert!(lease.older_than(COOLDOWN, UNIX_EPOCH + Duration::from_secs(1060)));
    }
}

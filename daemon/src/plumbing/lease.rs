//! The journal of container endpoints: one fsynced file per lease, replaced by atomic rename.
//!
//! A lease is `prepared` before anything is created and `committed` once the container side is done. After any crash the
//! journal therefore names everything that may exist. A removed lease stays as `cooling` until its addresses may be used
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use overlay_control::api::{EndpointInfo, EndpointLease, EndpointState};
use serde::{Deserialize, Serialize};

use super::PlumbingError;

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
    leases: BTreeMap<String, Lease>,
}

impl Journal {
    /// Reads the journal; half-written files of a crash are removed.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or a file is damaged or of a newer release.
    pub fn open(state_dir: &Path) -> Result<Self, PlumbingError> {
        let directory = state_dir.join("leases");
        fs::create_dir_all(&directory).map_err(PlumbingError::file("create", &directory))?;
        let mut leases = BTreeMap::new();
        let entries = fs::read_dir(&directory).map_err(PlumbingError::file("list", &directory))?;
        for entry in entries {
            let path = entry.map_err(PlumbingError::file("list", &directory))?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {
                    let lease = read_lease(&path)?;
                    leases.insert(lease.name.clone(), lease);
                }
                Some("tmp") => fs::remove_file(&path).map_err(PlumbingError::file("remove", &path))?,
                _ => {}
            }
        }
        Ok(Self { directory, leases })
    }

    /// Every lease, cooling ones too, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The lease of a name, unless it is cooling.
    #[must_use]
    pub fn live(&self, name: &str) -> Option<&Lease> {
        self.leases.get(name).filter(|lease| lease.state != LeaseState::Cooling)
    }

    /// Every address that must not be given.
    #[must_use]
    pub fn taken(&self) -> BTreeSet<IpAddr> {
        self.leases.values().flat_map(|lease| lease.addresses.iter().copied()).collect()
    }

    /// A number that no lease of this host has had: never below the clock, never one in use.
    #[must_use]
    pub fn next_id(&self, now: SystemTime) -> u64 {
        let used = self.leases.values().map(|lease| lease.id).max().unwrap_or(0);
        (unix(now) << 16).max(used + 1)
    }

    /// Writes a lease durably.
    ///
    /// # Errors
    /// When the file cannot be written; then the old lease stands.
    pub fn put(&mut self, lease: Lease) -> Result<(), PlumbingError> {
        let bytes = serde_json::to_vec_pretty(&lease).expect("a lease serialises");
        write_durably(&self.path(&lease), &bytes)?;
        self.leases.insert(lease.name.clone(), lease);
        Ok(())
    }

    /// Forgets a lease.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget(&mut self, name: &str) -> Result<(), PlumbingError> {
        let Some(lease) = self.leases.get(name) else { return Ok(()) };
        let path = self.path(lease);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(PlumbingError::file("remove", &path)(error));
            }
            _ => {}
        }
        self.leases.remove(name);
        Ok(())
    }

    fn path(&self, lease: &Lease) -> PathBuf {
        self.directory.join(format!("{}.json", lease.host_ifname))
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
        journal.put(lease("b", LeaseState::Cooling)).unwrap();
        let again = Journal::open(dir.path()).unwrap();
        assert_eq!(again.iter().cloned().collect::<Vec<_>>(), journal.iter().cloned().collect::<Vec<_>>());
        assert!(again.live("a").is_some());
        assert!(again.live("b").is_none());
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

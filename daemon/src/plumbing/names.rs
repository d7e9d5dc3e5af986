//! Names that callers gave to endpoints, kept on disk with the number of the endpoint's lease.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use overlay_wire::gossip::names::is_label;
use serde::{Deserialize, Serialize};

use super::PlumbingError;
use super::lease::write_durably;

/// Version of the file.
const VERSION: u32 = 1;

/// The most names of one endpoint.
const MAX_NAMES: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    names: BTreeMap<u64, Vec<String>>,
}

/// The names by lease.
#[derive(Debug)]
pub struct GivenNames {
    path: PathBuf,
    names: BTreeMap<u64, Vec<String>>,
}

impl GivenNames {
    /// Reads the file; a host without one has given no names.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or of a newer release.
    pub fn open(state_dir: &Path) -> Result<Self, PlumbingError> {
        let path = state_dir.join("names.json");
        let names = match std::fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(PlumbingError::file("read", &path)(error)),
        };
        Ok(Self { path, names })
    }

    /// The names of a lease.
    #[must_use]
    pub fn of(&self, lease: u64) -> &[String] {
        self.names.get(&lease).map_or(&[], Vec::as_slice)
    }

    /// Sets the names of a lease, durably; whether that changes anything.
    ///
    /// # Errors
    /// When a name is no label, there are too many, or the file cannot be written; then nothing has changed.
    pub fn set(&mut self, lease: u64, names: &[String]) -> Result<bool, PlumbingError> {
        let bad = |name: &str, why| PlumbingError::BadName { name: name.chars().take(80).collect(), why };
        let mut labels = Vec::with_capacity(names.len());
        for name in names {
            let label = name.to_ascii_lowercase();
            if !is_label(&label) {
                return Err(bad(name, "a name is a label: letters, digits, `-` and `_` inside, at most 63 of them"));
            }
            labels.push(label);
        }
        labels.sort_unstable();
        labels.dedup();
        if labels.len() > MAX_NAMES {
            return Err(bad(&names[0], "an endpoint has at most 16 names"));
        }
        if self.of(lease) == labels {
            return Ok(false);
        }
        let mut next = self.names.clone();
        next.insert(lease, labels);
        self.replace(next)?;
        Ok(true)
    }

    /// Forgets the names of leases for which `is_live` is false.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&mut self, is_live: impl Fn(u64) -> bool) -> Result<(), PlumbingError> {
        if self.names.keys().all(|lease| is_live(*lease)) {
            return Ok(());
        }
        let kept = self.names.iter().filter(|(lease, _)| is_live(**lease));
        let kept = kept.map(|(lease, names)| (*lease, names.clone())).collect();
        self.replace(kept)
    }

    fn replace(&mut self, names: BTreeMap<u64, Vec<String>>) -> Result<(), PlumbingError> {
        let file = File { version: VERSION, names };
        let bytes = serde_json::to_vec_pretty(&file).expect("a list of names serialises");
        write_durably(&self.path, &bytes)?;
        self.names = file.names;
        Ok(())
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<u64, Vec<String>>, PlumbingError> {
    let format = |why: String| PlumbingError::StateFormat { path: path.to_owned(), why };
    let file: File = serde_json::from_slice(bytes).map_err(|error| format(error.to_string()))?;
    if file.version > VERSION {
        return Err(format(format!("version {} is newer than {VERSION}", file.version)));
    }
    Ok(file.names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn names_are_kept_in_lower_case_until_the_lease_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut names = GivenNames::open(dir.path()).unwrap();
        assert!(names.set(7, &list(&["Web", "db", "web"])).unwrap());
        assert!(!names.set(7, &list(&["db", "web"])).unwrap());
        assert!(names.set(8, &list(&["other"])).unwrap());
        let mut again = GivenNames::open(dir.path()).unwrap();
        assert_eq!((again.of(7), again.of(9)), (&list(&["db", "web"])[..], &[][..]));
        again.keep(|lease| lease == 8).unwrap();
        assert!(GivenNames::open(dir.path()).unwrap().of(7).is_empty());
    }

    #[test]
    fn names_that_are_no_labels_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut names = GivenNames::open(dir.path()).unwrap();
        for bad in ["", "a.b", "-a", "a/../b", &"x".repeat(64)] {
            assert!(names.set(7, &list(&["good", bad])).is_err(), "{bad}");
        }
        let many: Vec<String> = (0..17).map(|number| format!("n{number}")).collect();
        assert!(names.set(7, &many).is_err() && names.of(7).is_empty());
        std::fs::write(dir.path().join("names.json"), b"{\"version\":2,\"names\":{}}").unwrap();
        assert!(matches!(GivenNames::open(dir.path()), Err(PlumbingError::StateFormat { .. })));
    }
}

//! What dockerd said, kept on disk: one fsynced file per pool, network and endpoint, replaced by atomic rename.
//!
//! dockerd says everything once and relies on the plugin to remember, over restarts of either. Ids become file names, so they
//! pass an allow-list first.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest id, in bytes: dockerd's have 64.
const ID_MAX: usize = 128;

/// Whether a text may be an id.
pub(super) fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= ID_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

/// All objects of one kind, by id.
#[derive(Debug)]
pub(super) struct Store<T> {
    directory: PathBuf,
    objects: BTreeMap<String, T>,
}

impl<T: Serialize + DeserializeOwned + Clone> Store<T> {
    /// Reads what is there. Files of a write that never ended are removed; one that cannot be read is an error.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let mut objects = BTreeMap::new();
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| is_id(stem));
            match (path.extension().and_then(|extension| extension.to_str()), id) {
                (Some("json"), Some(id)) => {
                    let object = serde_json::from_slice(&fs::read(&path)?).map_err(|error| {
                        io::Error::new(ErrorKind::InvalidData, format!("{}: {error}", path.display()))
                    })?;
                    objects.insert(id.to_owned(), object);
                }
                (Some("new"), _) => fs::remove_file(&path)?,
                _ => {}
            }
        }
        Ok(Self { directory, objects })
    }

    pub(super) fn get(&self, id: &str) -> Option<&T> {
        self.objects.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &T)> {
        self.objects.iter()
    }

    /// Writes an object durably; on an error the old one stands.
    pub(super) fn put(&mut self, id: &str, object: T) -> io::Result<()> {
        if !is_id(id) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the id has characters that no id has"));
        }
        let bytes = serde_json::to_vec_pretty(&object)?;
        let temporary = self.directory.join(format!("{id}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path(id))?;
        sync(&self.directory)?;
        self.objects.insert(id.to_owned(), object);
        Ok(())
    }

    /// Changes an object, durably; nothing where there is none.
    pub(super) fn change(&mut self, id: &str, change: impl FnOnce(&mut T)) -> io::Result<()> {
        let Some(mut object) = self.objects.get(id).cloned() else { return Ok(()) };
        change(&mut object);
        self.put(id, object)
    }

    /// Forgets an object; none is fine.
    pub(super) fn remove(&mut self, id: &str) -> io::Result<()> {
        if self.objects.contains_key(id) {
            match fs::remove_file(self.path(id)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => sync(&self.directory)?,
            }
            self.objects.remove(id);
        }
        Ok(())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_outlive_a_restart_and_torn_files_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Store::<u32>::open(directory.path().join("kind"));
        let mut store = open().unwrap();
        store.put("abc", 1).unwrap();
        store.put("def", 2).unwrap();
        store.change("abc", |value| *value = 7).unwrap();
        store.remove("def").unwrap();
        store.remove("def").unwrap();
        store.change("def", |value| *value = 7).unwrap();
        fs::write(directory.path().join("kind/torn.new"), "7").unwrap();
        let again = open().unwrap();
        assert_eq!(again.iter().map(|(id, value)| (id.as_str(), *value)).collect::<Vec<_>>(), [("abc", 7)]);
        assert!(!directory.path().join("kind/torn.new").exists());
        fs::write(directory.path().join("kind/bad.json"), "{").unwrap();
        assert_eq!(open().unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn ids_never_leave_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::<u32>::open(directory.path().join("kind")).unwrap();
        for id in ["", "..", "../x", "a/b", ".x", "-x", "a b", "a\0b", "ü", &"a".repeat(129)] {
            assert!(store.put(id, 1).is_err(), "{id:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(directory.path().join("kind")).unwrap().count(), 0);
    }
}

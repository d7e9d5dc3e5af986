//! dockerd's `daemon.json`: asks the server of names of this host, with the difference shown and a way back.
//!
//! Beside the file lies a copy of what was there before (`daemon.json.before-overlayd`). Taking the change back restores it to the
//! byte when nobody has touched the file since, else takes out only what was put in.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use overlay_control::{ApiError, Code};
use serde_json::{Map, Value, json};

/// Where dockerd reads its configuration.
pub const DAEMON_JSON: &str = "/etc/docker/daemon.json";
/// Written for a file that was not there.
const ABSENT: &str = "";
/// The largest file taken, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What dockerd is to be told.
#[derive(Debug, Clone)]
pub struct DockerDns {
    /// Its configuration file.
    pub file: PathBuf,
    /// The servers of names of this host.
    pub servers: Vec<IpAddr>,
    /// The domain that is searched.
    pub search: String,
}

impl DockerDns {
    fn kept(&self) -> PathBuf {
        let mut name = self.file.file_name().unwrap_or_default().to_owned();
        name.push(".before-overlayd");
        self.file.with_file_name(name)
    }

    fn wanted(&self) -> [(&'static str, Value); 2] {
        [("dns", json!(self.servers)), ("dns-search", json!([self.search]))]
    }

    /// Writes servers and search domain into the file; again is fine. The difference, a line each.
    ///
    /// # Errors
    /// When the file is no JSON object, names other servers, or cannot be written; then nothing has changed.
    pub fn install(&self) -> Result<Vec<String>, ApiError> {
        let before = self.read()?;
        let mut object = self.parse(before.as_deref().unwrap_or_default())?;
        for (key, value) in self.wanted() {
            match object.get(key) {
                Some(other) if *other != value => {
                    let why = format!("it has \"{key}\": {other}");
                    let next = format!("take \"{key}\" out, or add {value} to it yourself");
                    let what = format!("{} names other servers", self.file.display());
                    return Err(ApiError::new(Code::Conflict, what, why, next));
                }
                _ => drop(object.insert(key.to_owned(), value)),
            }
        }
        let after = text(&object);
        if before.as_deref().is_some_and(|before| self.parse(before).is_ok_and(|held| held == object)) {
            return Ok(Vec::new());
        }
        let old = before.unwrap_or_else(|| ABSENT.to_owned());
        if let Some(directory) = self.file.parent() {
            fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
        }
        replace(&self.kept(), &old)?;
        replace(&self.file, &after)?;
        Ok(difference(&old, &after))
    }

    /// Takes back what [`Self::install`] wrote and nothing else; again is fine. The difference, a line each.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn remove(&self) -> Result<Vec<String>, ApiError> {
        let kept = self.kept();
        let Some(before) = read(&kept)? else { return Ok(Vec::new()) };
        let current = self.read()?;
        let mut object = self.parse(current.as_deref().unwrap_or_default())?;
        let as_we_left_it = {
            let mut ours = self.parse(&before)?;
            ours.extend(self.wanted().map(|(key, value)| (key.to_owned(), value)));
            ours == object
        };
        let after = if as_we_left_it {
            before.clone()
        } else {
            for (key, value) in self.wanted() {
                if object.get(key) == Some(&value) {
                    object.remove(key);
                }
            }
            text(&object)
        };
        let shown = difference(current.as_deref().unwrap_or_default(), &after);
        if after == ABSENT {
            remove(&self.file)?;
        } else if current.as_deref() != Some(&after) {
            replace(&self.file, &after)?;
        }
        remove(&kept)?;
        Ok(shown)
    }

    fn read(&self) -> Result<Option<String>, ApiError> {
        read(&self.file)
    }

    fn parse(&self, text: &str) -> Result<Map<String, Value>, ApiError> {
        if text.trim().is_empty() {
            return Ok(Map::new());
        }
        serde_json::from_str(text).map_err(|error| {
            let what = format!("{} is no JSON object", self.file.display());
            ApiError::new(Code::Invalid, what, error.to_string(), "correct it first; dockerd cannot read it either")
        })
    }
}

fn text(object: &Map<String, Value>) -> String {
    serde_json::to_string_pretty(object).unwrap_or_default() + "\n"
}

/// The lines that differ, as `diff` marks them.
fn difference(old: &str, new: &str) -> Vec<String> {
    let only = |sign: &str, from: &str, other: &str| -> Vec<String> {
        let others: Vec<&str> = other.lines().map(|line| line.trim_end_matches(',')).collect();
        let lines = from.lines().filter(|line| !others.contains(&line.trim_end_matches(',')));
        lines.map(|line| format!("{sign} {line}")).collect()
    };
    [only("-", old, new), only("+", new, old)].concat()
}

fn read(path: &Path) -> Result<Option<String>, ApiError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            Err(failed(path, &io::Error::other("it is larger than any configuration")))
        }
        Ok(_) => fs::read_to_string(path).map(Some).map_err(|error| failed(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}

fn replace(path: &Path, text: &str) -> Result<(), ApiError> {
    let write = || -> io::Result<()> {
        let temporary = path.with_extension("overlayd-new");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| failed(path, &error))
}

fn remove(path: &Path) -> Result<(), ApiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, &error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, error: &io::Error) -> ApiError {
    let next = "run as root, and check that the directory is writable";
    ApiError::new(Code::Io, format!("cannot change {}", path.display()), error.to_string(), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(directory: &Path) -> DockerDns {
        DockerDns {
            file: directory.join("docker/daemon.json"),
            servers: vec!["10.42.1.1".parse().unwrap()],
            search: "ctr.overlay.internal".into(),
        }
    }

    fn write(plan: &DockerDns, text: &str) {
        fs::create_dir_all(plan.file.parent().unwrap()).unwrap();
        fs::write(&plan.file, text).unwrap();
    }

    #[test]
    fn file_that_was_not_there_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(directory.path());
        let shown = plan.install().unwrap();
        assert!(shown.iter().any(|line| line.contains("10.42.1.1") && line.starts_with('+')), "{shown:?}");
        assert_eq!(plan.install().unwrap(), Vec::<String>::new());
        assert!(!plan.remove().unwrap().is_empty());
        assert_eq!(plan.remove().unwrap(), Vec::<String>::new());
        assert_eq!(fs::read_dir(plan.file.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn file_comes_back_to_the_byte_and_later_edits_stay() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(directory.path());
        let old = "{\n    \"live-restore\": true ,\n  \"mtu\": 1400}";
        write(&plan, old);
        plan.install().unwrap();
        let now: Value = serde_json::from_str(&fs::read_to_string(&plan.file).unwrap()).unwrap();
        assert_eq!((&now["mtu"], &now["dns"]), (&json!(1400), &json!(["10.42.1.1"])));
        plan.remove().unwrap();
        assert_eq!(fs::read_to_string(&plan.file).unwrap(), old);
        plan.install().unwrap();
        let edited = fs::read_to_string(&plan.file).unwrap().replace("1400", "1300");
        fs::write(&plan.file, edited).unwrap();
        plan.remove().unwrap();
        let now: Value = serde_json::from_str(&fs::read_to_string(&plan.file).unwrap()).unwrap();
        assert_eq!(now, json!({ "live-restore": true, "mtu": 1300 }));
    }

    #[test]
    fn other_servers_and_broken_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(directory.path());
        for bad in ["{\"dns\": [\"192.0.2.53\"]}", "[1]", "{broken"] {
            write(&plan, bad);
            assert!(plan.install().is_err(), "{bad}");
            assert_eq!(fs::read_to_string(&plan.file).unwrap(), bad);
            assert!(!plan.kept().exists() && plan.remove().unwrap().is_empty());
        }
    }
}

//! dockerd's `daemon.json`: asks the server of names of this host, with the difference shown and a way back.
//!
//! Beside the file lies what was there before and what was put in (`daemon.json.before-overlayd`). Taking the change back restores
//! the file to the byte when nobody has touched it since, else takes out only what was put in and is still there.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use overlay_control::{ApiError, Code};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Where dockerd reads its configuration.
pub const DAEMON_JSON: &str = "/etc/docker/daemon.json";
/// The largest file taken, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What dockerd is to be told.
#[derive(Debug, Clone)]
pub struct Names {
    /// The servers of names of this host.
    pub servers: Vec<IpAddr>,
    /// The domain that is searched.
    pub search: String,
}

/// What lies beside the file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// The file as it was; absent where it was not there.
    before: Option<String>,
    /// What was put in.
    put: Map<String, Value>,
    /// Whether the directory was not there either.
    #[serde(default)]
    made: bool,
}

/// dockerd's configuration.
#[derive(Debug, Clone)]
pub struct DockerDns {
    /// The file.
    pub file: PathBuf,
}

impl DockerDns {
    fn kept(&self) -> PathBuf {
        let mut name = self.file.file_name().unwrap_or_default().to_owned();
        name.push(".before-overlayd");
        self.file.with_file_name(name)
    }

    /// Writes servers and search domain into the file; again is fine. The difference, a line each.
    ///
    /// # Errors
    /// When the file is no JSON object, names other servers, or cannot be written; then nothing has changed.
    pub fn install(&self, names: &Names) -> Result<Vec<String>, ApiError> {
        let current = self.read()?;
        let mut object = self.parse(current.as_deref().unwrap_or_default())?;
        let kept = self.read_kept()?;
        let mut put = Map::new();
        for (key, value) in [("dns", json!(names.servers)), ("dns-search", json!([names.search]))] {
            let ours = kept.as_ref().and_then(|kept| kept.put.get(key));
            match object.get(key) {
                Some(other) if *other != value && Some(other) != ours => {
                    let why = format!("it has \"{key}\": {other}");
                    let next = format!("take \"{key}\" out, add {value} to it yourself, or give --no-dns");
                    let what = format!("{} names other servers", self.file.display());
                    return Err(ApiError::new(Code::Conflict, what, why, next));
                }
                // It was there before us, and stays.
                Some(same) if *same == value && ours.is_none() => {}
                _ => {
                    object.insert(key.to_owned(), value.clone());
                    put.insert(key.to_owned(), value);
                }
            }
        }
        if current.as_deref().is_some_and(|current| self.parse(current).is_ok_and(|held| held == object)) {
            return Ok(Vec::new());
        }
        let shown = difference(current.as_deref().unwrap_or_default(), &text(&object));
        let kept = match kept {
            Some(kept) => Kept { put, ..kept },
            None => Kept { before: current, put, made: self.file.parent().is_some_and(|parent| !parent.exists()) },
        };
        if let Some(directory) = self.file.parent() {
            fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
        }
        let kept = serde_json::to_string_pretty(&kept).unwrap_or_default();
        replace(&self.kept(), &kept)?;
        replace(&self.file, &text(&object))?;
        Ok(shown)
    }

    /// Takes back what [`Self::install`] wrote and nothing else; again is fine. The difference, a line each.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn remove(&self) -> Result<Vec<String>, ApiError> {
        let Some(kept) = self.read_kept()? else { return Ok(Vec::new()) };
        let current = self.read()?;
        let mut object = self.parse(current.as_deref().unwrap_or_default())?;
        let mut as_we_left_it = self.parse(kept.before.as_deref().unwrap_or_default())?;
        as_we_left_it.extend(kept.put.clone());
        let after = if as_we_left_it == object {
            kept.before.clone()
        } else {
            object.retain(|key, value| kept.put.get(key) != Some(value));
            Some(text(&object))
        };
        let shown = difference(current.as_deref().unwrap_or_default(), after.as_deref().unwrap_or_default());
        match after {
            None => remove(&self.file)?,
            Some(after) if current.as_deref() != Some(&after) => replace(&self.file, &after)?,
            Some(_) => {}
        }
        remove(&self.kept())?;
        if let Some(directory) = self.file.parent().filter(|_| kept.made) {
            // It stays where somebody put something in.
            let _ = fs::remove_dir(directory);
        }
        Ok(shown)
    }

    fn read_kept(&self) -> Result<Option<Kept>, ApiError> {
        let path = self.kept();
        let Some(text) = read(&path)? else { return Ok(None) };
        let damaged = |error: serde_json::Error| {
            let next = format!("take \"dns\" and \"dns-search\" out of {} and remove this file", self.file.display());
            ApiError::new(Code::Invalid, format!("{} is damaged", path.display()), error.to_string(), next)
        };
        serde_json::from_str(&text).map(Some).map_err(damaged)
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
        DockerDns { file: directory.join("docker/daemon.json") }
    }

    fn names(server: &str) -> Names {
        Names { servers: vec![server.parse().unwrap()], search: "ctr.overlay.internal".into() }
    }

    fn write(plan: &DockerDns, text: &str) {
        fs::create_dir_all(plan.file.parent().unwrap()).unwrap();
        fs::write(&plan.file, text).unwrap();
    }

    fn now(plan: &DockerDns) -> Value {
        serde_json::from_str(&fs::read_to_string(&plan.file).unwrap()).unwrap()
    }

    #[test]
    fn file_that_was_not_there_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (plan, names) = (plan(directory.path()), names("10.42.1.1"));
        let shown = plan.install(&names).unwrap();
        assert!(shown.iter().any(|line| line.contains("10.42.1.1") && line.starts_with('+')), "{shown:?}");
        assert_eq!(plan.install(&names).unwrap(), Vec::<String>::new());
        assert!(!plan.remove().unwrap().is_empty());
        assert_eq!(plan.remove().unwrap(), Vec::<String>::new());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn file_comes_back_to_the_byte_and_later_edits_stay() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(directory.path());
        let old = "{\n    \"live-restore\": true ,\n  \"mtu\": 1400}";
        write(&plan, old);
        plan.install(&names("10.42.1.1")).unwrap();
        assert_eq!((&now(&plan)["mtu"], &now(&plan)["dns"]), (&json!(1400), &json!(["10.42.1.1"])));
        // Another address of the host, as after joining anew.
        plan.install(&names("10.42.9.1")).unwrap();
        assert_eq!(now(&plan)["dns"], json!(["10.42.9.1"]));
        plan.remove().unwrap();
        assert_eq!(fs::read_to_string(&plan.file).unwrap(), old);
        plan.install(&names("10.42.1.1")).unwrap();
        let edited = fs::read_to_string(&plan.file).unwrap().replace("1400", "1300");
        fs::write(&plan.file, edited).unwrap();
        plan.remove().unwrap();
        assert_eq!(now(&plan), json!({ "live-restore": true, "mtu": 1300 }));
        // Servers that somebody put in the place of ours are his.
        plan.install(&names("10.42.1.1")).unwrap();
        let edited = fs::read_to_string(&plan.file).unwrap().replace("10.42.1.1", "192.0.2.53");
        fs::write(&plan.file, edited).unwrap();
        assert!(plan.install(&names("10.42.1.1")).is_err());
        plan.remove().unwrap();
        assert_eq!(now(&plan)["dns"], json!(["192.0.2.53"]));
    }

    #[test]
    fn other_servers_and_broken_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(directory.path());
        for bad in ["{\"dns\": [\"192.0.2.53\"]}", "[1]", "{broken"] {
            write(&plan, bad);
            assert!(plan.install(&names("10.42.1.1")).is_err(), "{bad}");
            assert_eq!(fs::read_to_string(&plan.file).unwrap(), bad);
            assert!(!plan.kept().exists() && plan.remove().unwrap().is_empty());
        }
        // The same servers, by somebody else: nothing to do, and nothing to take back.
        write(&plan, r#"{"dns":["10.42.1.1"],"dns-search":["ctr.overlay.internal"]}"#);
        assert!(plan.install(&names("10.42.1.1")).unwrap().is_empty() && plan.remove().unwrap().is_empty());
    }
}

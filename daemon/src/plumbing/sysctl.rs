//! Kernel settings the overlay depends on: checked, set where permitted, and put back at a clean stop.
//!
//! A confined service sees `/proc/sys` read-only; then the sysctl.d file of the package has set them, or a [`Problem`]
//! names the exact command. Old values are on disk before a setting is changed, so that a stop after a crash still knows
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use overlay_control::api::Problem;
use serde::{Deserialize, Serialize};

use super::desired::{Family, uses};
use super::error::problem;
use super::lease::write_durably;
use super::{PlumbingConfig, PlumbingError};

/// The version of the file of old values.
const VERSION: u32 = 1;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Undo {
    version: u32,
    old: BTreeMap<String, String>,
}

/// The settings under one `/proc/sys`.
#[derive(Debug)]
pub struct Sysctl {
    root: PathBuf,
    undo_file: PathBuf,
    undo: Undo,
}

impl Sysctl {
    /// Opens the settings of this network namespace; old values of an earlier run are taken over.
    ///
    /// # Errors
    /// When the file of old values is unreadable or of a newer release.
    pub fn open(state_dir: &Path) -> Result<Self, PlumbingError> {
        Self::under(Path::new("/proc/sys"), state_dir)
    }

    /// The same under another root, for tests.
    ///
    /// # Errors
    /// As [`Sysctl::open`].
    pub fn under(root: &Path, state_dir: &Path) -> Result<Self, PlumbingError> {
        let undo_file = state_dir.join("sysctl-undo.json");
        let undo = match fs::read(&undo_file) {
            Ok(bytes) => parse_undo(&undo_file, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Undo { version: VERSION, old: BTreeMap::new() }
            }
            Err(error) => return Err(PlumbingError::file("read", &undo_file)(error)),
        };
        Ok(Self { root: root.to_owned(), undo_file, undo })
    }

    /// The value of a setting such as `net/ipv4/ip_forward`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<String> {
        fs::read_to_string(self.root.join(key)).ok().map(|text| text.trim().to_owned())
    }

    /// Checks and sets everything needed; returns what was changed and what could not be.
    pub fn ensure(&mut self, config: &PlumbingConfig) -> (Vec<String>, Vec<Problem>) {
        let (mut changes, mut problems) = (Vec::new(), Vec::new());
        for (key, value) in self.wanted(config) {
            match self.set(&key, value) {
                Ok(old) => changes.push(format!("set {} from {old} to {value}", dotted(&key))),
                Err(_) => problems.push(not_set(&key, value)),
            }
        }
        if self.get("net/ipv4/conf/all/arp_ignore").is_some_and(|v| v != "0") && uses(config, Family::V4) {
            problems.push(problem(
                "ARP_IGNORE",
                "net.ipv4.conf.all.arp_ignore is not 0",
                "the host does not answer containers that ask for their gateway",
                "sysctl -w net.ipv4.conf.all.arp_ignore=0",
            ));
        }
        (changes, problems)
    }

    /// The settings that differ from what is needed, in the order to set them.
    fn wanted(&self, config: &PlumbingConfig) -> Vec<(String, &'static str)> {
        let mut wanted: Vec<(String, &'static str)> = Vec::new();
        if uses(config, Family::V4) {
            wanted.push(("net/ipv4/ip_forward".into(), "1"));
        }
        if uses(config, Family::V6) && self.root.join("net/ipv6").exists() {
            // Forwarding turns a 1 into "ignore": hosts that live from router advertisements would lose their route.
            if self.get("net/ipv6/conf/all/forwarding").as_deref() == Some("0") {
                wanted.extend(self.advertised_interfaces(config).into_iter().map(|key| (key, "2")));
            }
            wanted.push(("net/ipv6/conf/all/forwarding".into(), "1"));
            wanted.push((format!("net/ipv6/conf/{}/disable_ipv6", config.interface), "0"));
        }
        wanted.retain(|(key, value)| self.get(key).is_some_and(|now| now != *value));
        wanted
    }

    fn advertised_interfaces(&self, config: &PlumbingConfig) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join("net/ipv6/conf")) else { return Vec::new() };
        let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names.retain(|name| !matches!(name.as_str(), "all" | "default" | "lo") && *name != config.interface);
        let keys = names.into_iter().map(|name| format!("net/ipv6/conf/{name}/accept_ra"));
        keys.filter(|key| self.get(key).as_deref() == Some("1")).collect()
    }

    /// Whether reverse path filtering on the TUN is strict: the larger of the interface's and the global value counts.
    #[must_use]
    pub fn rp_filter_is_strict(&self, interface: &str) -> bool {
        let value = |name: &str| {
            self.get(&format!("net/ipv4/conf/{name}/rp_filter")).and_then(|v| v.parse::<u8>().ok()).unwrap_or(0)
        };
        value("all").max(value(interface)) == 1
    }

    fn set(&mut self, key: &str, value: &str) -> Result<String, PlumbingError> {
        let path = self.root.join(key);
        let old = fs::read_to_string(&path).map_err(PlumbingError::file("read", &path))?.trim().to_owned();
        if !self.undo.old.contains_key(key) {
            self.undo.old.insert(key.to_owned(), old.clone());
            if let Err(error) = self.save() {
                self.undo.old.remove(key);
                return Err(error);
            }
        }
        fs::write(&path, value).map_err(|error| {
            self.undo.old.remove(key);
            let _ = self.save();
            PlumbingError::file("write", &path)(error)
        })?;
        Ok(old)
    }

    /// Puts every changed setting back, newest kind first, and forgets them; returns what failed.
    pub fn restore(&mut self) -> Vec<PlumbingError> {
        let mut errors = Vec::new();
        let old = std::mem::take(&mut self.undo.old);
        for (key, value) in old.into_iter().rev() {
            let path = self.root.join(&key);
            if path.exists()
                && let Err(error) = fs::write(&path, &value)
            {
                errors.push(PlumbingError::file("write", &path)(error));
                self.undo.old.insert(key, value);
            }
        }
        if let Err(error) = self.save() {
            errors.push(error);
        }
        errors
    }

    fn save(&self) -> Result<(), PlumbingError> {
        if self.undo.old.is_empty() {
            return match fs::remove_file(&self.undo_file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(PlumbingError::file("remove", &self.undo_file)(error))
                }
                _ => Ok(()),
            };
        }
        let bytes = serde_json::to_vec_pretty(&self.undo).expect("a map of strings serialises");
        write_durably(&self.undo_file, &bytes)
    }
}

fn parse_undo(path: &Path, bytes: &[u8]) -> Result<Undo, PlumbingError> {
    let format = |why: String| PlumbingError::StateFormat { path: path.to_owned(), why };
    let undo: Undo = serde_json::from_slice(bytes).map_err(|error| format(error.to_string()))?;
    if undo.version > VERSION {
        return Err(format(format!("version {} is newer than {VERSION}", undo.version)));
    }
    Ok(undo)
}

fn dotted(key: &str) -> String {
    key.replace('/', ".")
}

fn not_set(key: &str, value: &str) -> Problem {
    let why = if key.ends_with("forward") || key.ends_with("forwarding") {
        "packets between containers and the overlay are not forwarded"
    } else if key.ends_with("accept_ra") {
        "with forwarding on, this interface would lose the routes it learns from router advertisements"
    } else {
        "the overlay interface cannot carry IPv6"
    };
    let what = format!("{} must be {value}", dotted(key));
    problem("SYSCTL", what, why, format!("sysctl -w {}={value}   # keep it: a file in /etc/sysctl.d", dotted(key)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    fn tree(values: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (key, value) in values {
            let path = dir.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn forwarding_off_is_set_and_put_back() {
        let root = tree(&[
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv6/conf/eth0/accept_ra", "1"),
            ("net/ipv6/conf/eth1/accept_ra", "0"),
        ]);
        let state = tempfile::tempdir().unwrap();
        let mut sysctl = Sysctl::under(root.path(), state.path()).unwrap();
        let (changes, problems) = sysctl.ensure(&config(state.path()));
        assert_eq!(problems, []);
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert_eq!(sysctl.get("net/ipv4/ip_forward").unwrap(), "1");
        assert_eq!(sysctl.get("net/ipv6/conf/eth0/accept_ra").unwrap(), "2");
        assert_eq!(sysctl.get("net/ipv6/conf/eth1/accept_ra").unwrap(), "0");
        // A crash: the next run opens the recorded values.
        let mut sysctl = Sysctl::under(root.path(), state.path()).unwrap();
        assert!(sysctl.ensure(&config(state.path())).0.is_empty());
        assert!(sysctl.restore().is_empty());
        assert_eq!(sysctl.get("net/ipv4/ip_forward").unwrap(), "0");
        assert_eq!(sysctl.get("net/ipv6/conf/eth0/accept_ra").unwrap(), "1");
        assert!(!state.path().join("sysctl-undo.json").exists());
    }

    #[test]
    fn newer_undo_file_is_refused_and_kept() {
        let root = tree(&[]);
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("sysctl-undo.json");
        fs::write(&file, r#"{"version": 99, "old": {}}"#).unwrap();
        assert!(matches!(Sysctl::under(root.path(), state.path()), Err(PlumbingError::StateFormat { .. })));
        assert!(file.exists());
    }

    #[test]
    fn strict_rp_filter_is_the_larger_of_both_being_one() {
        for (all, own, strict) in
            [("1", "0", true), ("0", "1", true), ("1", "2", false), ("2", "1", false), ("0", "0", false)]
        {
            let root = tree(&[("net/ipv4/conf/all/rp_filter", all), ("net/ipv4/conf/overlay0/rp_filter", own)]);
            let sysctl = Sysctl::under(root.path(), root.path()).unwrap();
            assert_eq!(sysctl.rp_filter_is_strict("overlay0"), strict, "all {all}, own {own}");
        }
    }
}

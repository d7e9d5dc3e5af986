//! Where labs keep their files, and who owns a lab.

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::impair::Impairment;
use crate::journal::{self, ProcessId};
use crate::lab::{HostSpec, Topology};

/// Every name a lab makes begins so.
pub(crate) const PREFIX: &str = "ovl-";
const ROOT: &str = "/run/overlay-lab";

/// What a later `overlay-lab` process must know about a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LabState {
    pub(crate) topology: Topology,
    pub(crate) hosts: Vec<HostSpec>,
    pub(crate) containers: Vec<(String, String)>,
    pub(crate) impairments: BTreeMap<String, Impairment>,
    pub(crate) cut_hosts: Vec<String>,
    pub(crate) cut_pairs: Vec<(String, String)>,
}

/// The directory of one lab.
#[derive(Debug, Clone)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// The directory of a lab of this name, which need not exist.
    pub(crate) fn of(lab: &str) -> Directory {
        Directory(Path::new(ROOT).join(lab))
    }

    /// Makes the directory and notes its owner; refuses a name in use.
    pub(crate) fn create(lab: &str) -> Result<Directory> {
        if lab.is_empty()
            || lab.len() > 20
            || !lab.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        {
            bail!("a lab is named by 1 to 20 lower-case letters and digits, not {lab:?}");
        }
        let directory = Directory::of(lab);
        fs::create_dir_all(ROOT).with_context(|| format!("making {ROOT} (are you root?)"))?;
        fs::create_dir(&directory.0)
            .with_context(|| format!("the lab {lab} is there already; `cargo lab clean {lab}` removes it"))?;
        if let Some(owner) = ProcessId::current() {
            fs::write(directory.0.join("owner"), owner.to_string())?;
        }
        Ok(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("processes")
    }

    /// The process that removes the lab when it ends, if it still runs.
    pub(crate) fn living_owner(&self) -> Option<ProcessId> {
        let owner = journal::parse(&fs::read_to_string(self.0.join("owner")).ok()?)?;
        owner.is_alive().then_some(owner)
    }

    /// Lets the lab outlive this process.
    pub(crate) fn disown(&self) -> Result<()> {
        fs::remove_file(self.0.join("owner")).context("giving up the ownership of the lab")
    }

    pub(crate) fn save(&self, state: &LabState) -> Result<()> {
        let text = serde_json::to_string_pretty(state)?;
        fs::write(self.0.join("lab.json.new"), text)?;
        fs::rename(self.0.join("lab.json.new"), self.0.join("lab.json")).context("writing the state of the lab")
    }

    pub(crate) fn load(&self) -> Result<LabState> {
        let path = self.0.join("lab.json");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("there is no lab at {}; `cargo lab up` makes one", self.0.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The names of all labs that have a directory or a namespace, sorted.
pub(crate) fn labs() -> Vec<String> {
    let directories = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let mut names: Vec<String> = directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    for namespace in crate::netns::list(PREFIX) {
        if let Some((lab, _)) = namespace[PREFIX.len()..].split_once('-') {
            names.push(lab.to_owned());
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Removes the common directory when no lab is left in it.
pub(crate) fn remove_root_if_empty() {
    let _ = fs::remove_dir(ROOT);
}

//! Fixes and their undo: journalled before they are applied, taken back in reverse order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::plumbing::firewall::{DroppingChain, Keeper, remedy};

/// Where system programs are, whatever the caller's environment says.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Version of the undo journal.
const VERSION: u32 = 1;

/// One change that can be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A kernel setting by its dotted name.
    Sysctl {
        /// Its name.
        key: String,
        /// The value it gets.
        value: String,
        /// The value it had.
        old: String,
    },
    /// A program with its arguments, and the one that takes it back.
    Run {
        /// What is run.
        apply: Vec<String>,
        /// What takes it back.
        undo: Vec<String>,
    },
    /// An accept rule at the head of a chain.
    Accept {
        /// Family, table and chain.
        chain: Vec<String>,
        /// What it matches.
        matches: Vec<String>,
        /// The rule's handle, known once it is there.
        handle: Option<u64>,
    },
}

impl Action {
    /// A kernel setting.
    #[must_use]
    pub fn sysctl(key: &str, value: &str, old: &str) -> Self {
        Self::Sysctl { key: key.to_owned(), value: value.to_owned(), old: old.to_owned() }
    }

    /// What admits the TUN's packets in a chain that drops by default.
    #[must_use]
    pub fn admit(chain: &DroppingChain, keeper: Keeper, tun: &str) -> Vec<Self> {
        if keeper == Keeper::Other {
            let place = [&chain.family, &chain.table, &chain.chain].map(Clone::clone).to_vec();
            let accept = |side: &str| Self::Accept {
                chain: place.clone(),
                matches: vec![side.to_owned(), tun.to_owned()],
                handle: None,
            };
            return vec![accept("iifname"), accept("oifname")];
        }
        let words = |command: &String| command.split_whitespace().map(str::to_owned).collect();
        let (apply, undo) = remedy(chain, keeper, tun);
        apply.iter().zip(&undo).map(|(apply, undo)| Self::Run { apply: words(apply), undo: words(undo) }).collect()
    }

    /// The command a person would type.
    #[must_use]
    pub fn command(&self) -> String {
        self.apply_words().join(" ")
    }

    /// The command that takes it back.
    #[must_use]
    pub fn undo_command(&self) -> String {
        self.undo_words().join(" ")
    }

    fn apply_words(&self) -> Vec<String> {
        match self {
            Self::Sysctl { key, value, .. } => ["sysctl", "-w", &format!("{key}={value}")].map(str::to_owned).to_vec(),
            Self::Run { apply, .. } => apply.clone(),
            Self::Accept { chain, matches, .. } => {
                let start = ["nft", "insert", "rule"].map(str::to_owned);
                let end = ["accept", "comment", "\"overlayd\""].map(str::to_owned);
                [&start[..], chain, matches, &end[..]].concat()
            }
        }
    }

    fn undo_words(&self) -> Vec<String> {
        match self {
            Self::Sysctl { key, old, .. } => ["sysctl", "-w", &format!("{key}={old}")].map(str::to_owned).to_vec(),
            Self::Run { undo, .. } => undo.clone(),
            Self::Accept { chain, handle, .. } => {
                let start = ["nft", "delete", "rule"].map(str::to_owned);
                let handle = handle.map_or_else(|| "HANDLE".to_owned(), |handle| handle.to_string());
                [&start[..], chain, &["handle".to_owned(), handle]].concat()
            }
        }
    }

    fn apply(&mut self) -> Result<(), String> {
        if let Self::Sysctl { key, value, .. } = self {
            return write_sysctl(key, value);
        }
        let mut words = self.apply_words();
        if matches!(self, Self::Accept { .. }) {
            // Echo the rule with its handle, so that exactly this rule can be taken back.
            words.splice(1..1, ["-e", "-a"].map(str::to_owned));
        }
        let output = run(&words)?;
        if let Self::Accept { handle, .. } = self {
            let number =
                output.split_once("# handle ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
            *handle = Some(number.ok_or("nft did not say which rule it made")?);
        }
        Ok(())
    }

    fn undo(&self) -> Result<(), String> {
        match self {
            Self::Sysctl { key, old, .. } => write_sysctl(key, old),
            Self::Accept { handle: None, .. } => Ok(()),
            _ => run(&self.undo_words()).map(drop),
        }
    }
}

fn write_sysctl(key: &str, value: &str) -> Result<(), String> {
    let path = Path::new("/proc/sys").join(key.replace('.', "/"));
    fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))
}

fn run(words: &[String]) -> Result<String, String> {
    let (program, arguments) = words.split_first().ok_or("an empty command")?;
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", PATH)
        .output()
        .map_err(|error| format!("`{program}`: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("`{}`: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Journal {
    version: u32,
    done: Vec<(String, Action)>,
}

/// The fixes in force, on disk.
#[derive(Debug)]
pub struct Remedies {
    path: PathBuf,
    journal: Journal,
}

impl Remedies {
    /// Opens the journal of a state directory.
    ///
    /// # Errors
    /// A sentence, when it is unreadable or of a newer release.
    pub fn open(state_dir: &Path) -> Result<Self, String> {
        let path = super::journal_path(state_dir);
        let journal = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Journal { version: VERSION, done: Vec::new() }
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        if journal.version > VERSION {
            return Err(format!("{} was written by a newer release", path.display()));
        }
        Ok(Self { path, journal })
    }

    /// Applies one action of a check; how to take it back is on disk before and after.
    ///
    /// # Errors
    /// A sentence, when it cannot be journalled or applied; then it is not in force.
    pub fn apply(&mut self, check: &str, action: &Action) -> Result<(), String> {
        self.journal.done.push((check.to_owned(), action.clone()));
        self.save()?;
        let applied = match self.journal.done.last_mut() {
            Some((_, journalled)) => journalled.apply(),
            None => Ok(()),
        };
        if applied.is_err() {
            self.journal.done.pop();
        }
        self.save()?;
        applied
    }

    /// Takes back every fix, newest first: check, command, outcome. What fails stays in the journal.
    pub fn undo_all(&mut self) -> Vec<(String, String, Result<(), String>)> {
        let mut outcomes = Vec::new();
        let mut kept = Vec::new();
        for (check, action) in std::mem::take(&mut self.journal.done).into_iter().rev() {
            let result = action.undo();
            outcomes.push((check.clone(), action.undo_command(), result.clone()));
            if result.is_err() {
                kept.push((check, action));
            }
        }
        kept.reverse();
        self.journal.done = kept;
        if let Err(why) = self.save() {
            outcomes.push(("undo".to_owned(), String::new(), Err(why)));
        }
        outcomes
    }

    fn save(&self) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.path.display());
        if self.journal.done.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
        }
        let bytes = serde_json::to_vec_pretty(&self.journal).map_err(|error| error.to_string())?;
        crate::plumbing::lease::write_durably(&self.path, &bytes).map_err(|error| error.to_string())
    }
}

//! Which processes a lab started, so that they can be ended after a crash without hitting a stranger.
//!
//! A process is known by its number and its start time: a number that was handed out again does not match.

use anyhow::{Context as _, Result};
use std::fs;
use std::io::Write as _;
use std::path::Path;

/// One process, recognisable after its number was reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    start_ticks: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub(crate) fn of(pid: i32) -> Option<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, so fields are counted behind its end.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if fields.first() == Some(&"Z") {
            return None;
        }
        Some(ProcessId { pid, start_ticks: fields.get(19)?.parse().ok()? })
    }

    pub(crate) fn current() -> Option<ProcessId> {
        ProcessId::of(std::process::id().cast_signed())
    }

    pub(crate) fn is_alive(&self) -> bool {
        ProcessId::of(self.pid).as_ref() == Some(self)
    }

    /// Ends the process at once, if it is still the one that was recorded.
    pub(crate) fn kill(&self) {
        if self.is_alive() {
            // SAFETY: kill has no memory effects; the process was checked to be ours.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.start_ticks)
    }
}

/// Adds a process to the journal.
pub(crate) fn record(journal: &Path, process: &ProcessId, what: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(journal)
        .with_context(|| format!("opening the journal {}", journal.display()))?;
    writeln!(file, "{process} {what}")?;
    Ok(())
}

/// The processes of a journal; lines that do not parse are left out.
pub(crate) fn read(journal: &Path) -> Vec<ProcessId> {
    fs::read_to_string(journal).unwrap_or_default().lines().filter_map(parse).collect()
}

pub(crate) fn parse(line: &str) -> Option<ProcessId> {
    let mut words = line.split_whitespace();
    Some(ProcessId { pid: words.next()?.parse().ok()?, start_ticks: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_process_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("processes");
        let current = ProcessId::current().unwrap();
        record(&journal, &current, "this test").unwrap();
        assert!(current.is_alive());
        assert_eq!(read(&journal), [current]);
    }

    #[test]
    fn reused_number_is_not_taken_for_the_recorded_process() {
        let stranger = parse(&format!("{} 1", std::process::id())).unwrap();
        assert!(!stranger.is_alive());
        stranger.kill(); // must not end this test
    }
}

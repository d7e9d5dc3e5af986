//! What a measurement was made on.

use serde::Serialize;
use std::fs;
use std::process::Command;

/// The machine, the source and the time of a result.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) commit: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_mib: u64,
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn here() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Machine {
            commit: said("git", &["describe", "--always", "--dirty"]),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) / 1024,
            date: said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        }
    }
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

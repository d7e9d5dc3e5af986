//! The kernel's network configuration as text, to compare before and after.

use anyhow::Result;
use overlay_netns_harness::netns::View;
use overlay_netns_harness::run_in;

/// What `ip` and `nft` show in one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(pub String);

impl Snapshot {
    /// Takes the picture. Counters and lifetimes, which move by themselves, are left out.
    pub fn take(view: &View) -> Result<Snapshot> {
        let mut text = String::new();
        for command in
            ["ip -d a", "ip r show table all", "ip -6 r show table all", "ip rule", "ip -6 rule", "nft -s list ruleset"]
        {
            let words: Vec<&str> = command.split(' ').collect();
            text.push_str(&format!("## {command}\n{}", run_in(view, &words)?));
        }
        Ok(Snapshot(text))
    }

    /// The lines that only one of the two has, with their side.
    pub fn difference(&self, later: &Snapshot) -> String {
        let (before, after): (Vec<&str>, Vec<&str>) = (self.0.lines().collect(), later.0.lines().collect());
        let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}"));
        let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
        gone.chain(new).collect::<Vec<_>>().join("\n")
    }
}

/// Memory a process holds in RAM.
pub fn resident_kib(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

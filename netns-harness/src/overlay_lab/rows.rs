//! `overlay-lab soak membership|containers`: figures in full, each row in a process of its own. Rows that were measured are
//! kept in the result, so that one can be measured again alone and an interrupted run loses nothing.
//!
//! The scenarios are in the crate `overlay-tests`, which this crate must not depend on: cargo builds and runs them.

use anyhow::{Context as _, Result, bail};
use overlay_netns_harness::{Binaries, Profile, workspace};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::machine::Machine;
use crate::packages;

/// Rows that are on record together.
#[derive(Debug)]
pub(crate) struct Set {
    /// What the result is called.
    name: &'static str,
    /// Every row, in the order in which they are measured.
    rows: &'static [&'static str],
    /// Rows that do not hold yet, or were not measured in full: no result is demanded of them.
    open: &'static [&'static str],
    /// The program that measures one.
    program: &'static str,
}

/// What membership promises.
pub(crate) const MEMBERSHIP: Set = Set {
    name: "membership",
    rows: &["revocation", "token", "forged", "spoofed", "garbage", "flood", "replay", "canary", "kills", "restart"],
    open: &[],
    program: "overlay-membership-soak",
};

/// What containers are promised.
pub(crate) const CONTAINERS: Set = Set {
    name: "containers",
    rows: &["add", "absent", "kills", "faults", "dockerd", "neighbours", "hostile", "limits", "dns"],
    open: &["add", "dockerd"],
    program: "overlay-containers-soak",
};

/// What is on record.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Report {
    name: String,
    rows: Vec<Row>,
    held: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    row: String,
    seed: u64,
    size_percent: u64,
    machine: serde_json::Value,
    figures: Vec<serde_json::Value>,
    error: Option<String>,
    held: bool,
}

/// Measures all rows, or one, and says whether all of them held.
pub(crate) fn run(set: &Set, only: Option<&str>, seed: u64, size: u64, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(name) = only.filter(|name| !set.rows.contains(name)) {
        bail!("no row {name}; there are {}", set.rows.join(", "));
    }
    packages::ensure(packages::DEMO)?;
    println!("building the daemons and the scenarios (release)");
    let binaries = Binaries::build(Profile::Release)?;
    let program = build(set.program)?;
    // The source may change while this runs; what is measured does not.
    let machine = serde_json::to_value(Machine::here())?;
    let path = json.map_or_else(|| workspace().join(format!("docs/results/{}.json", set.name)), Path::to_owned);
    let mut report = read(&path)?;
    println!("seed {seed}");
    let mut held = true;
    for name in set.rows.iter().copied().filter(|name| only.is_none_or(|only| only == *name)) {
        println!("-- {name}");
        let row = measure(&program, &binaries, &machine, name, seed, size)?;
        held &= row.held;
        report.rows.retain(|old| old.row != name);
        report.rows.push(row);
        write(set, &mut report, &path)?;
    }
    println!("{}, written to {}", if held { "all held" } else { "something did not hold" }, path.display());
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(
    program: &Path,
    binaries: &Binaries,
    machine: &serde_json::Value,
    name: &str,
    seed: u64,
    size: u64,
) -> Result<Row> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("figures.json");
    let mut command = Command::new(program);
    command.args(["--row", name, "--seed", &seed.to_string(), "--size", &size.to_string()]).arg("--json").arg(&file);
    if let Some(directory) = Path::new(&binaries.path("overlayd")).parent() {
        command.env("OVERLAY_BIN_DIR", directory);
    }
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("the scenario did not start")?;
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    eprint!("{errors}");
    let figures = std::fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str(&text).ok());
    let error = match (&figures, output.status.code()) {
        (_, None) => bail!("the row {name} was ended by {}", output.status),
        (None, Some(_)) => Some(errors.lines().last().unwrap_or("it ended without figures").to_owned()),
        (Some(_), Some(_)) => None,
    };
    let held = error.is_none() && output.status.success();
    let machine = machine.clone();
    let figures = figures.unwrap_or_default();
    Ok(Row { row: name.to_owned(), seed, size_percent: size, machine, figures, error, held })
}

fn read(path: &Path) -> Result<Report> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .with_context(|| format!("{} is no result of this measurement; move it away", path.display())),
        Err(_) => Ok(Report::default()),
    }
}

fn write(set: &Set, report: &mut Report, path: &Path) -> Result<()> {
    report.name = set.name.to_owned();
    report.rows.sort_by_key(|row| set.rows.iter().position(|name| *name == row.row));
    report.held = set.rows.iter().all(|name| report.rows.iter().any(|row| row.row == *name && row.held));
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, serde_json::to_string_pretty(report)? + "\n")
        .with_context(|| format!("writing {}", path.display()))
}

/// What is missing in a result that is to be complete: each row whole, held, and from a named commit.
pub(crate) fn gaps(set: &Set, result: &serde_json::Value) -> Vec<String> {
    let empty = Vec::new();
    let rows = result["rows"].as_array().unwrap_or(&empty);
    let is_whole = |name: &str| {
        rows.iter().any(|row| {
            row["row"] == name
                && row["held"] == true
                && row["size_percent"] == 100
                && row["machine"]["commit"].is_string()
        })
    };
    let missing = set.rows.iter().filter(|name| !set.open.contains(name) && !is_whole(name));
    let set = set.name;
    missing
        .map(|name| {
            format!(
                "docs/results/{set}.json has no whole row `{name}` that held; run `cargo lab soak {set} --row {name}`"
            )
        })
        .collect()
}

/// Builds the scenarios and says where they are. `OVERLAY_BIN_DIR` names ready programs instead.
fn build(program: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("OVERLAY_BIN_DIR") {
        return Ok(PathBuf::from(directory).join(program));
    }
    let target = overlay_netns_harness::target_directory()?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let words = ["build", "--quiet", "--release", "-p", "overlay-tests", "--bin", program];
    command.current_dir(workspace()).args(words).arg("--target-dir").arg(&target);
    let status = command.status().context("cargo could not be started")?;
    if !status.success() {
        bail!("building the scenarios failed ({status}); the compiler's messages are above");
    }
    Ok(target.join("release").join(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_that_is_absent_partial_or_failed_is_a_gap() {
        let row = |name: &str, held: bool, size: u64| serde_json::json!({"row": name, "held": held, "size_percent": size, "machine": {"commit": "1"}});
        let names = MEMBERSHIP.rows;
        let mut rows: Vec<serde_json::Value> = names.iter().map(|name| row(name, true, 100)).collect();
        assert!(gaps(&MEMBERSHIP, &serde_json::json!({ "rows": rows })).is_empty());
        rows[0] = row(names[0], false, 100);
        rows[1] = row(names[1], true, 50);
        rows.pop();
        let gaps = gaps(&MEMBERSHIP, &serde_json::json!({ "rows": rows }));
        assert_eq!(gaps.len(), 3);
        assert!(gaps[0].contains(names[0]) && gaps[1].contains(names[1]) && gaps[2].contains(names[9]), "{gaps:?}");
        let demanded = CONTAINERS.rows.len() - CONTAINERS.open.len();
        assert_eq!(super::gaps(&CONTAINERS, &serde_json::Value::Null).len(), demanded);
        assert!(CONTAINERS.open.iter().all(|name| CONTAINERS.rows.contains(name)));
    }
}

//! `overlay-lab sim`: one simulated cluster, and the full forms that `soak sim` puts on record.
//!
//! The simulator is a program of the crate `overlay-tests`, which this crate must not depend on: cargo builds and runs it.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use overlay_netns_harness::workspace;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::soak::Measurement;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Hosts.
    #[arg(long, default_value_t = 1000)]
    nodes: u16,
    /// Lost datagrams in percent.
    #[arg(long, default_value_t = 10.0)]
    loss: f64,
    /// Decides everything else: the same seed gives the same output.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What to do; see `--list`.
    #[arg(long, default_value = "convergence")]
    scenario: String,
    /// Repetitions of the disturbance.
    #[arg(long)]
    runs: Option<usize>,
    /// Virtual minutes, where the scenario has a length.
    #[arg(long)]
    minutes: Option<f64>,
    /// Also write the result to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Name the scenarios and end.
    #[arg(long)]
    list: bool,
}

/// One full form: scenario, hosts, loss in percent, and its size at 100 percent.
struct Case {
    scenario: &'static str,
    nodes: u16,
    loss: f64,
    size: Size,
}

#[derive(Clone, Copy)]
enum Size {
    Runs(u64),
    Minutes(f64),
    Whole,
}

const FULL: [Case; 6] = [
    Case { scenario: "figures", nodes: 1000, loss: 10.0, size: Size::Runs(40) },
    // 24 virtual hours.
    Case { scenario: "false-deaths", nodes: 20, loss: 10.0, size: Size::Minutes(1440.0) },
    Case { scenario: "cold-start", nodes: 300, loss: 10.0, size: Size::Whole },
    Case { scenario: "restart-all", nodes: 300, loss: 10.0, size: Size::Whole },
    Case { scenario: "chaos", nodes: 100, loss: 10.0, size: Size::Minutes(20.0) },
    Case { scenario: "chaos", nodes: 50, loss: 10.0, size: Size::Minutes(60.0) },
];

#[derive(Debug, Deserialize)]
struct Written {
    outcome: Outcome,
    cost: Cost,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    host_hours: f64,
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    what: String,
    value: f64,
    unit: String,
    limit: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Cost {
    cpu_seconds: f64,
    peak_mib_per_host: f64,
}

/// Memory of one host of a simulated cluster, at most.
const PEAK_MIB_PER_HOST: f64 = 64.0;

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let program = build()?;
    let mut command = Command::new(program);
    if options.list {
        command.arg("--list");
    }
    command.args(["--nodes", &options.nodes.to_string(), "--loss", &options.loss.to_string()]);
    command.args(["--seed", &options.seed.to_string(), "--scenario", &options.scenario]);
    if let Some(runs) = options.runs {
        command.args(["--runs", &runs.to_string()]);
    }
    if let Some(minutes) = options.minutes {
        command.args(["--minutes", &minutes.to_string()]);
    }
    if let Some(path) = &options.json {
        command.arg("--json").arg(std::path::absolute(path)?);
    }
    let status = command.status().context("the simulator could not be started")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every full form, or a part of each, and says what was measured.
pub(crate) fn full(seed: u64, size_percent: u64) -> Result<Vec<Measurement>> {
    let program = build()?;
    let directory = tempfile::tempdir()?;
    let mut all = Vec::new();
    for case in &FULL {
        let before = all.len();
        measure(case, seed, size_percent, &program, &directory.path().join("outcome.json"), &mut all);
        all[before..].iter().for_each(Measurement::print);
    }
    Ok(all)
}

fn measure(case: &Case, seed: u64, percent: u64, program: &Path, file: &Path, all: &mut Vec<Measurement>) {
    let title = format!("{}, {} hosts, {} % loss", case.scenario, case.nodes, case.loss);
    let mut command = Command::new(program);
    command.args(["--scenario", case.scenario, "--nodes", &case.nodes.to_string()]);
    command.args(["--loss", &case.loss.to_string(), "--seed", &seed.to_string()]).arg("--json").arg(file);
    match case.size {
        Size::Runs(runs) => command.args(["--runs", &(runs * percent / 100).max(1).to_string()]),
        Size::Minutes(minutes) => command.args(["--minutes", &(minutes * percent as f64 / 100.0).to_string()]),
        Size::Whole => &mut command,
    };
    let _ = std::fs::remove_file(file);
    let written =
        command.output().context("the simulator could not be started").and_then(
            |output| match std::fs::read_to_string(file) {
                Ok(text) => Ok(serde_json::from_str::<Written>(&text)?),
                // A broken invariant leaves no result, but says seed, time and trace.
                Err(_) => bail!("{}", String::from_utf8_lossy(&output.stderr)),
            },
        );
    match written {
        Err(error) => all.push(Measurement::failed(title, format!("{error:#}"))),
        Ok(Written { outcome, cost }) => {
            all.extend(
                outcome
                    .rows
                    .into_iter()
                    .map(|row| Measurement::limited(format!("{title}: {}", row.what), row.value, row.unit, row.limit)),
            );
            let hours = format!("{title}: simulated");
            all.push(Measurement::limited(hours, outcome.host_hours, "host-hours".to_owned(), None));
            all.push(Measurement::limited(format!("{title}: processor"), cost.cpu_seconds, "s".to_owned(), None));
            let memory = format!("{title}: peak memory per host");
            let limit = Some(PEAK_MIB_PER_HOST);
            all.push(Measurement::limited(memory, cost.peak_mib_per_host, "MiB".to_owned(), limit));
        }
    }
}

/// Builds the simulator and says where it is.
fn build() -> Result<PathBuf> {
    let target = overlay_netns_harness::target_directory()?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args([
        "build",
        "--quiet",
        "--release",
        "-p",
        "overlay-tests",
        "--bin",
        "overlay-sim",
    ]);
    command.arg("--target-dir").arg(&target);
    let status = command.status().context("cargo could not be started")?;
    if !status.success() {
        bail!("building the simulator failed ({status}); the compiler's messages are above");
    }
    Ok(target.join("release/overlay-sim"))
}

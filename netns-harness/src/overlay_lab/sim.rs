//! `overlay-lab sim`: one simulated cluster, and the full forms that `soak sim-...` puts on record.
//!
//! The simulator is a program of the crate `overlay-tests`, which this crate must not depend on: cargo builds and runs it.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use overlay_netns_harness::workspace;
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::soak::Measurement;

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Words for the simulator; `--help` shows them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
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

/// Full forms with one result file.
pub(crate) struct Part {
    /// The name of the measurement and of its file.
    pub(crate) name: &'static str,
    /// Whether its result must be on record.
    pub(crate) is_demanded: bool,
    cases: &'static [Case],
}

/// Every full form. Each part takes minutes of one processor; `sim-false-deaths` is the longest.
pub(crate) const PARTS: [Part; 8] = [
    Part {
        name: "sim-spread",
        is_demanded: true,
        cases: &[
            Case { scenario: "convergence", nodes: 1000, loss: 10.0, size: Size::Runs(20) },
            Case { scenario: "convergence", nodes: 1000, loss: 30.0, size: Size::Runs(20) },
        ],
    },
    Part {
        name: "sim-deaths",
        is_demanded: true,
        cases: &[
            Case { scenario: "true-death", nodes: 1000, loss: 0.0, size: Size::Runs(5) },
            Case { scenario: "true-death", nodes: 1000, loss: 10.0, size: Size::Runs(20) },
        ],
    },
    Part {
        name: "sim-false-deaths",
        is_demanded: true,
        cases: &[
            // 24 virtual hours.
            Case { scenario: "false-deaths", nodes: 20, loss: 10.0, size: Size::Minutes(1440.0) },
        ],
    },
    Part {
        name: "sim-partition",
        is_demanded: true,
        cases: &[Case { scenario: "partition-heal", nodes: 1000, loss: 10.0, size: Size::Runs(1) }],
    },
    Part {
        name: "sim-idle",
        is_demanded: true,
        cases: &[
            Case { scenario: "idle", nodes: 1000, loss: 0.0, size: Size::Minutes(1.0) },
            Case { scenario: "idle", nodes: 1000, loss: 10.0, size: Size::Minutes(1.0) },
        ],
    },
    Part {
        name: "sim-revocation",
        is_demanded: true,
        cases: &[Case { scenario: "revocation", nodes: 1000, loss: 30.0, size: Size::Runs(20) }],
    },
    Part {
        name: "sim-starts",
        is_demanded: false,
        cases: &[
            Case { scenario: "cold-start", nodes: 300, loss: 10.0, size: Size::Whole },
            Case { scenario: "restart-all", nodes: 300, loss: 10.0, size: Size::Whole },
        ],
    },
    Part {
        name: "sim-chaos",
        is_demanded: false,
        cases: &[
            Case { scenario: "chaos", nodes: 100, loss: 10.0, size: Size::Minutes(10.0) },
            Case { scenario: "chaos", nodes: 50, loss: 10.0, size: Size::Minutes(30.0) },
        ],
    },
];

impl Case {
    fn title(&self) -> String {
        format!("{}, {} hosts, {} % loss", self.scenario, self.nodes, self.loss)
    }
}

impl Part {
    /// The titles of its cases: the rows of each begin with one.
    pub(crate) fn titles(&self) -> impl Iterator<Item = String> {
        self.cases.iter().map(Case::title)
    }
}

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
    limit_mib_per_host: f64,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut command = Command::new(build()?);
    command.args(&options.words);
    let status = command.status().context("the simulator could not be started")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the full forms of one part, or so much of each, and says what was measured.
pub(crate) fn full(part: &Part, seed: u64, size_percent: u64) -> Result<Vec<Measurement>> {
    let program = build()?;
    let directory = tempfile::tempdir()?;
    let mut all = Vec::new();
    for case in part.cases {
        let before = all.len();
        measure(case, seed, size_percent, &program, &directory.path().join("outcome.json"), &mut all);
        all[before..].iter().for_each(Measurement::print);
    }
    Ok(all)
}

fn measure(case: &Case, seed: u64, percent: u64, program: &Path, file: &Path, all: &mut Vec<Measurement>) {
    let title = case.title();
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
            let limit = Some(cost.limit_mib_per_host);
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

//! overlay-sim: one simulated cluster per call; `cargo lab sim` starts it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use overlay_tests::sim::{Cost, Outcome, Request, SCENARIOS, run};
use serde::Serialize;

/// Simulate a cluster under virtual time. The same arguments give the same output.
#[derive(Debug, Parser)]
#[command(name = "overlay-sim", version)]
struct Arguments {
    /// Hosts.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(4..=1024))]
    nodes: u16,
    /// Lost datagrams in percent.
    #[arg(long, default_value_t = 10.0)]
    loss: f64,
    /// Decides everything else.
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

#[derive(Debug, Serialize)]
struct Written<'a> {
    outcome: &'a Outcome,
    cost: Cost,
    held: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        SCENARIOS.iter().for_each(|scenario| println!("{:<16} {}", scenario.name, scenario.about));
        return ExitCode::SUCCESS;
    }
    let Arguments { nodes, loss, seed, runs, minutes, .. } = arguments;
    if !(0.0..=90.0).contains(&loss) {
        eprintln!("error: --loss is a number of percent from 0 to 90");
        return ExitCode::from(2);
    }
    let request = Request { nodes: usize::from(nodes), loss: loss / 100.0, seed, runs, minutes };
    let outcome = match run(&arguments.scenario, &request) {
        None => {
            eprintln!("error: no scenario {:?}; --list names them", arguments.scenario);
            return ExitCode::from(2);
        }
        Some(Err(violation)) => {
            eprintln!("{violation}");
            return ExitCode::FAILURE;
        }
        Some(Ok(outcome)) => outcome,
    };
    print!("{outcome}");
    let cost = Cost::so_far(request.nodes);
    let Cost { cpu_seconds, peak_mib, peak_mib_per_host, .. } = cost;
    // Not on standard output: it differs from run to run.
    eprintln!("  cost: {cpu_seconds:.1} s of processor, {peak_mib:.0} MiB, {peak_mib_per_host:.2} MiB per host");
    let held = outcome.held() && cost.held();
    if let Some(path) = &arguments.json {
        let written = serde_json::to_string_pretty(&Written { outcome: &outcome, cost, held })
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(path, text + "\n"));
        if let Err(error) = written {
            eprintln!("error: {} was not written: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

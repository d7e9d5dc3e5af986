//! overlay-membership-soak: one row of the membership figures per call; `cargo lab soak membership` starts it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use overlay_netns_harness::{Binaries, Profile, clean};
use overlay_tests::membership::{Figure, ROWS, Run, Size, run};

/// Measure one figure of membership on real daemons in namespaces.
#[derive(Debug, Parser)]
#[command(name = "overlay-membership-soak", version)]
struct Arguments {
    /// Which; see `--list`.
    #[arg(long, required_unless_present = "list")]
    row: Option<String>,
    /// Start of the random sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Part of the full size, in percent.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100))]
    size: u64,
    /// Also write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Name the rows and end.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        ROWS.iter().for_each(|row| println!("{:<12} {}", row.name, row.about));
        return ExitCode::SUCCESS;
    }
    clean::on_interrupt();
    match measure(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<bool> {
    let name = arguments.row.as_deref().unwrap_or_default();
    let binaries = Binaries::build(Profile::Release)?;
    let figures = run(name, &Run { binaries, seed: arguments.seed, size: Size::Percent(arguments.size) })?;
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    figures.iter().for_each(|figure| println!("{figure}"));
    Ok(figures.iter().all(Figure::holds))
}

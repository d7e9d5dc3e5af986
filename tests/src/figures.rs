//! Figures that are measured on real daemons: rows of them, their bounds, and the program that measures one row per call.

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use overlay_netns_harness::{Binaries, Profile, clean};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// How it is called.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    pub(crate) run: fn(&Run) -> Result<Vec<Figure>>,
}

/// The circumstances of one run of a row.
#[derive(Debug, Clone)]
pub struct Run {
    /// The programs of the daemons.
    pub binaries: Binaries,
    /// Start of the random sequence.
    pub seed: u64,
    /// How much of the full size.
    pub size: Size,
}

/// How much of the full size is done. The limits are the same for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A few of everything: for the suite.
    Short,
    /// This part, in percent.
    Percent(u64),
}

impl Run {
    /// How often something is done that is done `full` times in the full form and `short` times in the suite.
    pub(crate) fn count(&self, full: u64, short: u64) -> u64 {
        match self.size {
            Size::Short => short,
            Size::Percent(percent) => (full * percent / 100).max(1),
        }
    }
}

/// What a value must be to hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Only told.
    Told,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it must be.
    pub bound: Bound,
}

impl Figure {
    /// A value and its bound.
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str, bound: Bound) -> Figure {
        Figure { what: what.into(), value, unit, bound }
    }

    /// Whether the value is what it must be.
    pub fn holds(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.value <= most,
            Bound::AtLeast(least) => self.value >= least,
            Bound::Told => true,
        }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:.3} {}", self.what, self.value, self.unit)?;
        match self.bound {
            Bound::AtMost(most) => write!(f, " (at most {most})")?,
            Bound::AtLeast(least) => write!(f, " (at least {least})")?,
            Bound::Told => {}
        }
        f.write_str(if self.holds() { "" } else { " DOES NOT HOLD" })
    }
}

/// Runs one of these rows.
pub fn run(rows: &[Row], name: &str, run: &Run) -> Result<Vec<Figure>> {
    let Some(row) = rows.iter().find(|row| row.name == name) else {
        bail!("no row {name}; there are {}", rows.iter().map(|row| row.name).collect::<Vec<_>>().join(", "));
    };
    (row.run)(run)
}

/// Measure one row of figures on real daemons in namespaces.
#[derive(Debug, Parser)]
#[command(version)]
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

/// What a program that measures these rows does: one row per call, as its arguments say.
pub fn program(rows: &[Row]) -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        rows.iter().for_each(|row| println!("{:<12} {}", row.name, row.about));
        return ExitCode::SUCCESS;
    }
    clean::on_interrupt();
    match measure(rows, &arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rows: &[Row], arguments: &Arguments) -> Result<bool> {
    let name = arguments.row.as_deref().unwrap_or_default();
    let binaries = Binaries::build(Profile::Release)?;
    let figures = run(rows, name, &Run { binaries, seed: arguments.seed, size: Size::Percent(arguments.size) })?;
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    figures.iter().for_each(|figure| println!("{figure}"));
    Ok(figures.iter().all(Figure::holds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_on_the_wrong_side_of_its_bound_does_not_hold() {
        for (value, bound, holds) in [
            (2.0, Bound::AtMost(2.0), true),
            (2.1, Bound::AtMost(2.0), false),
            (f64::NAN, Bound::AtMost(2.0), false),
            (0.9, Bound::AtLeast(0.9), true),
            (0.8, Bound::AtLeast(0.9), false),
            (9.0, Bound::Told, true),
        ] {
            let figure = Figure::new("something", value, "s", bound);
            assert_eq!(figure.holds(), holds, "{figure}");
            assert_eq!(figure.to_string().ends_with("DOES NOT HOLD"), !holds);
        }
    }
}

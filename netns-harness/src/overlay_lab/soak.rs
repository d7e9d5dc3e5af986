//! The full forms of the measurements, with a result file.

use anyhow::{Result, bail};
use clap::Args;
use std::process::ExitCode;

use crate::machine::Machine;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which one.
    name: String,
    /// Start of the random sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    bail!("not built yet: {options:?} {:?}", Machine::here())
}

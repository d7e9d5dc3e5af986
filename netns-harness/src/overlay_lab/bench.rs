//! Throughput against wireguard-go, boringtun-cli and a plain veth, on one machine in one run.

use anyhow::{Result, bail};
use clap::Args;
use std::process::ExitCode;

use crate::packages;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One short round.
    #[arg(long)]
    quick: bool,
    /// Write the result to this file.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    packages::ensure(packages::BENCH)?;
    bail!("not built yet: {options:?}")
}

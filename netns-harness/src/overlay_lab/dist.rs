//! Packages for installation.

use anyhow::{Result, bail};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to write; default `target/dist`.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    bail!("not built yet: {options:?}")
}

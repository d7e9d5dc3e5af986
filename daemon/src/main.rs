//! overlayd, the overlay network daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// The overlay network daemon: carries container packets to other hosts.
#[derive(Debug, Parser)]
#[command(name = "overlayd", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/overlay/overlayd.toml")]
    config: PathBuf,
    /// Check a configuration file and exit: 0 when it is fit for use, 2 with every problem otherwise.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.check {
        Some(path) => overlay_daemon::start::load(&path).map(|_| println!("{}: ok", path.display())),
        None => overlay_daemon::start::run(&arguments.config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit())
        }
    }
}

//! overlay-lab: clusters in network namespaces, the demonstration, tests, measurements and packages.

mod bench;
mod checks;
mod contenders;
mod demo;
mod dist;
mod machine;
mod manage;
mod packages;
mod programs;
mod rows;
mod saving;
mod signals;
mod sim;
mod soak;
mod suite;
mod table;

use anyhow::Result;
use clap::{Parser, Subcommand};
use overlay_netns_harness::load::{self, Amount, Content};
use overlay_netns_harness::wire;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Clusters in network namespaces: try, test, measure, package.
#[derive(Debug, Parser)]
#[command(name = "overlay-lab", version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show a real cluster: three hosts, three encapsulations, containers that talk and one that may not.
    Demo(demo::Options),
    /// Make a cluster that stays until `down`.
    Up(manage::UpOptions),
    /// Show the labs, or the hosts and daemons of one.
    Status(manage::Named),
    /// Run a command on a host or in a container.
    Exec(manage::ExecOptions),
    /// Cut a host off, or two hosts off from each other.
    Cut(manage::LinkOptions),
    /// Undo the cuts of a host.
    Heal(manage::LinkOptions),
    /// Remove a cluster made by `up`.
    Down(manage::Named),
    /// Remove what is left of labs whose process is gone, and labs made by `up`.
    Clean(manage::CleanOptions),
    /// Run every check and test.
    Test(suite::Options),
    /// The checks of `test` that need no cluster.
    Check,
    /// Measure against wireguard-go, boringtun-cli and a plain veth.
    Bench(bench::Options),
    /// Write the tarball and the Debian package.
    Dist(dist::Options),
    /// Simulate a cluster of up to 1,024 hosts under virtual time.
    Sim(sim::Options),
    /// Run the full form of one measurement and write its result.
    Soak(soak::Options),
    /// Carry frames between two taps with faults; started by a lab for its own links.
    #[command(hide = true)]
    Wire {
        #[arg(long)]
        left: String,
        #[arg(long)]
        right: String,
        #[arg(long)]
        faults: String,
    },
    /// The load generator, run in the current namespace.
    #[command(subcommand)]
    Load(LoadAction),
}

#[derive(Debug, Subcommand)]
enum LoadAction {
    /// Confirm streams until killed.
    Server {
        /// Address and port to listen on.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Send one stream and print what was confirmed.
    Client {
        /// Address and port of the server.
        #[arg(long)]
        to: SocketAddr,
        /// How long to send.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Send so many bytes instead.
        #[arg(long)]
        bytes: Option<u64>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().action) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Demo(options) => demo::run(&options),
        Action::Up(options) => manage::up(&options).map(success),
        Action::Status(options) => manage::status(&options).map(success),
        Action::Exec(options) => manage::exec(&options),
        Action::Cut(options) => manage::cut(&options).map(success),
        Action::Heal(options) => manage::heal(&options).map(success),
        Action::Down(options) => manage::down(&options).map(success),
        Action::Clean(options) => manage::clean(&options).map(success),
        Action::Test(options) => suite::run(&options),
        Action::Check => suite::check(),
        Action::Bench(options) => bench::run_bench(&options),
        Action::Dist(options) => dist::run(&options).map(success),
        Action::Sim(options) => sim::run(&options),
        Action::Soak(options) => soak::run(&options),
        Action::Wire { left, right, faults } => {
            wire::carry(&left, &right, &serde_json::from_str(&faults)?).map(success)
        }
        Action::Load(LoadAction::Server { listen }) => {
            let listener = load::listen(listen)?;
            println!("listening on {}", listener.local_addr()?);
            load::serve(&listener).map(success)
        }
        Action::Load(LoadAction::Client { to, seconds, bytes }) => {
            let amount = bytes.map_or(Amount::Time(Duration::from_secs_f64(seconds)), Amount::Bytes);
            let stream = load::connect(to, Duration::from_secs(5))?;
            let transfer = load::transmit(stream, amount, Content::Counted)?;
            println!("{}", serde_json::to_string(&transfer)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn success((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

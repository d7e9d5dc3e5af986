//! What is measured: each scenario sets up a world, disturbs it, and compares what it saw with the figure.

use std::time::Duration;

use super::outcome::{Outcome, Row};
use super::referee::Violation;
use super::world::{Members, Settings, Start, World};

mod chaos;
mod death;
mod figures;
mod healing;
mod quiet;
mod revoking;
mod spreading;
mod starting;

/// What a scenario is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Hosts.
    pub nodes: usize,
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// The seed.
    pub seed: u64,
    /// How often the disturbance is repeated; each scenario has its own default.
    pub runs: Option<usize>,
    /// Virtual minutes; each scenario has its own default.
    pub minutes: Option<f64>,
}

impl Request {
    fn settings(&self, start: Start, liars: usize) -> Settings {
        Settings { nodes: self.nodes, loss: self.loss, seed: self.seed, start, liars, members: Members::Configured }
    }

    fn length(&self, default_minutes: f64) -> Duration {
        Duration::from_secs_f64(self.minutes.unwrap_or(default_minutes) * 60.0)
    }

    fn runs(&self, default: usize) -> usize {
        self.runs.unwrap_or(default).max(1)
    }

    fn outcome(&self, scenario: &str, world: &World, rows: Vec<Row>) -> Outcome {
        Outcome {
            scenario: scenario.to_owned(),
            nodes: self.nodes,
            loss: self.loss,
            seed: self.seed,
            virtual_seconds: world.now().as_secs_f64(),
            host_hours: world.now().as_secs_f64() / 3600.0 * self.nodes as f64,
            rows,
            fingerprint: format!("{:016x}", world.fingerprint()),
        }
    }
}

/// A scenario by name.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The name on the command line.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    run: fn(&Request) -> Result<Outcome, Box<Violation>>,
}

/// Every scenario.
pub const SCENARIOS: [Scenario; 10] = [
    Scenario {
        name: "convergence",
        about: "one host changes its routes: how long until all others use them",
        run: spreading::run,
    },
    Scenario {
        name: "false-deaths",
        about: "a liar and a half-connected host: nobody else may be given up",
        run: death::run_false,
    },
    Scenario { name: "true-death", about: "a host dies: how long until all others say so", run: death::run_true },
    Scenario {
        name: "partition-heal",
        about: "two halves part, change, and meet again: how long until all tables are equal",
        run: healing::run,
    },
    Scenario {
        name: "revocation",
        about: "the authority revokes one certified host after another: how long until nobody knows it any more",
        run: revoking::run,
    },
    Scenario { name: "idle", about: "nothing happens: what each host sends", run: quiet::run },
    Scenario { name: "cold-start", about: "all hosts start for the first time within 10 s", run: starting::run_cold },
    Scenario { name: "restart-all", about: "all hosts die at once and start again", run: starting::run_restart },
    Scenario {
        name: "figures",
        about: "idle, convergence, true-death, partition-heal and false-deaths, one after the other in one cluster",
        run: figures::run,
    },
    Scenario {
        name: "chaos",
        about: "a random part of all faults, then calm; every invariant is watched",
        run: chaos::run,
    },
];

/// Runs a scenario.
///
/// # Errors
/// At the first broken invariant; `None` when there is no such scenario.
pub fn run(name: &str, request: &Request) -> Option<Result<Outcome, Box<Violation>>> {
    SCENARIOS.iter().find(|scenario| scenario.name == name).map(|scenario| (scenario.run)(request))
}

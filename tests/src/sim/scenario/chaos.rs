//! Swarm runs: every seed has its own part of all faults, and the invariants are what is tested.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::Request;
use crate::sim::calm::{LONGEST, QUIET_RATE};
use crate::sim::fault::{Fault, Swarm};
use crate::sim::outcome::{Outcome, Row};
use crate::sim::referee::Violation;
use crate::sim::world::{Start, World};

pub(super) fn run(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut rng = ChaCha8Rng::seed_from_u64(request.seed ^ 4);
    let swarm = Swarm::draw(&mut rng);
    let mut world = World::new(request.settings(Start::Introduced, swarm.liars))?;
    world.referee.is_strict = true;
    let honest = request.nodes - swarm.liars;
    let length = request.length(10.0);
    swarm.spoil(&mut world.link, request.loss.max(0.1), &mut rng);
    let start = world.now();
    for (at, fault) in swarm.plan(honest, start, length, &mut rng) {
        world.plan(at, fault);
    }
    let busy = length.mul_f64(0.66);
    world.run_until(start + busy + Duration::from_millis(1))?;
    // Whoever is still dead comes back, and a pause that outlasts the faults ends by itself.
    for node in 0..honest {
        world.apply(Fault::Boot(node))?;
    }
    let settled = world.require_settled(honest)?.as_secs_f64();
    world.require_equal_tables()?;
    // Offers and questions that were left over die down.
    world.run_for(Duration::from_secs(30))?;
    let rate = world.require_quiet()?;
    world.require_equal_tables()?;
    let rows = vec![
        Row::limited("false deaths", world.referee.false_deaths as f64, "", 0.0),
        Row::shown("true verdicts", (world.referee.deaths - world.referee.false_deaths) as f64, ""),
        Row::shown("claims refused", world.referee.refused_claims as f64, ""),
        Row::limited(format!("settled after the faults ({})", swarm.names()), settled, "s", LONGEST.as_secs_f64()),
        Row::limited("datagrams per host when quiet", rate, "1/s", QUIET_RATE),
    ];
    Ok(request.outcome("chaos", &world, rows))
}

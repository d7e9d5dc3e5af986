//! Swarm runs: every seed has its own part of all faults, and the invariants are what is tested.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::Request;
use crate::sim::fault::{Fault, Swarm};
use crate::sim::outcome::{Outcome, Row};
use crate::sim::referee::Violation;
use crate::sim::world::{Start, World};

/// A quiet cluster of up to a few hundred hosts sends no more than this per host and second.
const QUIET_RATE: f64 = 30.0;

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
    let calm = world.now();
    let longest = Duration::from_secs(60);
    let all_up = |world: &World| {
        world.nodes.iter().filter_map(|node| node.engine()).all(|engine| engine.members_answering() + 1 >= honest)
    };
    let settled = |world: &World| all_up(world) && world.same_records();
    let settled = world.run_to(longest, Duration::from_millis(100), settled)?;
    if settled.is_none() {
        let equal = world.same_records();
        return Err(world.violation(("S4", format!("not settled after {longest:?} of calm; same records: {equal}"))));
    }
    let settled = (world.now() - calm).as_secs_f64();
    world.require_equal_tables()?;
    // Offers and questions that were left over die down.
    world.run_for(Duration::from_secs(30))?;
    let before: u64 = world.traffic().iter().map(|traffic| traffic.datagrams).sum();
    let rest = Duration::from_secs(20);
    world.run_for(rest)?;
    let after: u64 = world.traffic().iter().map(|traffic| traffic.datagrams).sum();
    let rate = (after - before) as f64 / rest.as_secs_f64() / request.nodes as f64;
    if rate > QUIET_RATE {
        return Err(world.violation(("S4", format!("{rate:.1} datagrams per host and second when quiet"))));
    }
    world.require_equal_tables()?;
    let rows = vec![
        Row::limited("false deaths", world.referee.false_deaths as f64, "", 0.0),
        Row::shown("true verdicts", (world.referee.deaths - world.referee.false_deaths) as f64, ""),
        Row::shown("claims refused", world.referee.refused_claims as f64, ""),
        Row::limited(format!("settled after the faults ({})", swarm.names()), settled, "s", 60.0),
        Row::limited("datagrams per host when quiet", rate, "1/s", QUIET_RATE),
    ];
    Ok(request.outcome("chaos", &world, rows))
}

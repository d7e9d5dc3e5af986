//! Starts of a whole cluster, from nothing and after a common death.

use std::time::Duration;

use super::Request;
use crate::sim::disk::Damage;
use crate::sim::fault::Fault;
use crate::sim::outcome::{Outcome, Row};
use crate::sim::referee::Violation;
use crate::sim::world::{Start, World};

/// The hosts of a cold start come within this time.
const WITHIN: Duration = Duration::from_secs(10);
/// Every member is up everywhere and all tables are equal by then.
const LIMIT: f64 = 60.0;

pub(super) fn run_cold(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(request.settings(Start::Cold { within: WITHIN }, 0))?;
    world.run_for(WITHIN)?;
    finish(request, world, "cold-start", Duration::ZERO)
}

pub(super) fn run_restart(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(request.settings(Start::Introduced, 0))?;
    world.run_for(Duration::from_secs(5))?;
    let began = world.now();
    for node in 0..request.nodes {
        world.apply(Fault::Crash(node, Damage::None))?;
        // All come back within a second, in an order that follows from their numbers.
        let late = Duration::from_millis((node as u64 * 7919) % 1000);
        world.plan(began + late, Fault::Boot(node));
    }
    world.run_for(Duration::from_secs(1))?;
    finish(request, world, "restart-all", began)
}

fn finish(request: &Request, mut world: World, name: &'static str, began: Duration) -> Result<Outcome, Box<Violation>> {
    let others = request.nodes - 1;
    let step = Duration::from_millis(100);
    let longest = Duration::from_secs(120);
    let all_up =
        |world: &World| world.nodes.iter().all(|node| node.engine().is_some_and(|g| g.members_answering() == others));
    let up = world.run_to(longest, step, all_up)?;
    let up_after = up.map_or(longest, |_| world.now() - began).as_secs_f64();
    let equal = world.run_to(longest, step, World::same_records)?;
    let equal_after = equal.map_or(longest, |_| world.now() - began).as_secs_f64();
    let bytes: u64 = world.traffic().iter().map(|traffic| traffic.bytes).sum();
    world.run_for(Duration::from_secs(10))?;
    world.require_equal_tables()?;
    let rows = vec![
        Row::limited("all members up everywhere", up_after, "s", LIMIT),
        Row::limited("all tables equal", equal_after, "s", LIMIT),
        Row::shown("sent per host until then", bytes as f64 / request.nodes as f64 / 1e6, "MB"),
        Row::limited("false deaths", world.referee.false_deaths as f64, "", 0.0),
    ];
    Ok(request.outcome(name, &world, rows))
}

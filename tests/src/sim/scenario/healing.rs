//! Partitions in two halves that change their routes meanwhile, and what happens when they end.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::Request;
use crate::sim::fault::Fault;
use crate::sim::link::below;
use crate::sim::outcome::{Outcome, Row, percentile};
use crate::sim::referee::Violation;
use crate::sim::world::{Start, World};

/// How long the halves are apart: long enough that each gives up the other.
const APART: Duration = Duration::from_secs(60);
/// Hosts that change their routes meanwhile.
const CHANGES: usize = 10;
/// How long the run goes on afterwards: no host may still be held for dead at its end.
const AFTERWARDS: Duration = Duration::from_secs(20);

pub(super) fn run(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(request.settings(Start::Introduced, 0))?;
    world.run_for(Duration::from_secs(5))?;
    let rows = measure(&mut world, request.runs(2))?;
    Ok(request.outcome("partition-heal", &world, rows))
}

/// Parts and heals a cluster that runs.
pub(super) fn measure(world: &mut World, runs: usize) -> Result<Vec<Row>, Box<Violation>> {
    let nodes = world.settings.nodes;
    let mut rng = ChaCha8Rng::seed_from_u64(world.settings.seed ^ 3);
    let false_before = world.referee.false_deaths;
    let longest = Duration::from_secs(60);
    let mut took = Vec::new();
    let mut given_up = 0.0;
    for run in 0..runs {
        let dead_before = world.referee.deaths;
        world.apply(Fault::Partition((0..nodes).map(|_| (rng.next_u32() % 2) as u8).collect()))?;
        for change in 0..CHANGES {
            world.run_for(APART / CHANGES as u32)?;
            let part = (run * CHANGES + change) as u8 % 16;
            world.apply(Fault::Announce(below(&mut rng, nodes), vec![part]))?;
        }
        given_up = (world.referee.deaths - dead_before) as f64 / nodes as f64;
        world.apply(Fault::Heal)?;
        let done = world.run_to(longest, Duration::from_millis(100), World::same_records)?;
        took.push(done.unwrap_or(longest));
        world.run_for(AFTERWARDS)?;
        world.require_equal_tables()?;
    }
    Ok(vec![
        Row::shown("partitions", took.len() as f64, ""),
        Row::shown("members given up per host while apart", given_up, ""),
        Row::shown("tables equal after the end, p50", percentile(&took, 50.0), "s"),
        Row::limited("tables equal after the end, p99", percentile(&took, 99.0), "s", 10.0),
        Row::limited("false deaths", (world.referee.false_deaths - false_before) as f64, "", 0.0),
    ])
}

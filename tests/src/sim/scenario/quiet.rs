//! An idle cluster: what its members send only to know that nothing happened.

use std::time::Duration;

use super::Request;
use crate::sim::outcome::{Outcome, Row};
use crate::sim::referee::Violation;
use crate::sim::world::{Start, World};

pub(super) fn run(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(request.settings(Start::Introduced, 0))?;
    world.run_for(Duration::from_secs(10))?;
    let rows = measure(&mut world, request.length(5.0))?;
    Ok(request.outcome("idle", &world, rows))
}

/// Leaves a cluster that runs alone.
pub(super) fn measure(world: &mut World, length: Duration) -> Result<Vec<Row>, Box<Violation>> {
    let false_before = world.referee.false_deaths;
    let before = world.traffic();
    world.run_for(length)?;
    let seconds = length.as_secs_f64();
    let kbit: Vec<f64> = world
        .traffic()
        .iter()
        .zip(&before)
        .map(|(now, before)| (now.bytes - before.bytes) as f64 * 8.0 / 1000.0 / seconds)
        .collect();
    let datagrams: u64 =
        world.traffic().iter().zip(&before).map(|(now, before)| now.datagrams - before.datagrams).sum();
    let mean = kbit.iter().sum::<f64>() / kbit.len() as f64;
    world.require_equal_tables()?;
    Ok(vec![
        Row::limited("sent per host, mean, headers included", mean, "kbit/s", 20.0),
        Row::limited("sent per host, most", kbit.iter().copied().fold(0.0, f64::max), "kbit/s", 20.0),
        Row::shown("datagrams per host", datagrams as f64 / seconds / world.settings.nodes as f64, "1/s"),
        Row::limited("false deaths", (world.referee.false_deaths - false_before) as f64, "", 0.0),
    ])
}

//! Route changes, one after the other, each timed at every host.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::Request;
use crate::sim::cast;
use crate::sim::fault::Fault;
use crate::sim::link::below;
use crate::sim::outcome::{Outcome, Row, percentile};
use crate::sim::referee::Violation;
use crate::sim::watch::Wanted;
use crate::sim::world::{Start, World};

/// The longest that one change may take in any run.
const EVERY_RUN: Duration = Duration::from_secs(10);

pub(super) fn run(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(request.settings(Start::Introduced, 0))?;
    world.run_for(Duration::from_secs(5))?;
    let rows = measure(&mut world, request.runs(20))?;
    Ok(request.outcome("convergence", &world, rows))
}

/// Lets random hosts change their routes in a cluster that runs.
pub(super) fn measure(world: &mut World, runs: usize) -> Result<Vec<Row>, Box<Violation>> {
    let (nodes, loss) = (world.settings.nodes - world.settings.liars, world.link.loss);
    let mut rng = ChaCha8Rng::seed_from_u64(world.settings.seed ^ 1);
    let (mut slowest, mut every) = (Vec::new(), Vec::new());
    let sent_before: u64 = world.traffic().iter().map(|traffic| traffic.datagrams).sum();
    let began = world.now();
    for run in 0..runs {
        let origin = below(&mut rng, nodes);
        if world.nodes[origin].engine().is_none() {
            continue;
        }
        let part = (run % 16) as u8;
        let ip = cast::announced(origin, part).addr();
        let watch = world.watch(Wanted::Owner(ip, cast::identity(origin).host_id()), origin);
        world.apply(Fault::Announce(origin, vec![part]))?;
        let step = Duration::from_millis(20);
        let done = world.run_to(EVERY_RUN * 3, step, |world| world.referee.watches[watch].is_complete())?;
        let watch = &world.referee.watches[watch];
        every.extend_from_slice(&watch.took);
        // A host that never learned is as slow as the run was long.
        slowest.push(if done.is_some() { watch.slowest().unwrap_or_default() } else { EVERY_RUN * 3 });
        world.referee.watches.clear();
    }
    let sent: u64 = world.traffic().iter().map(|traffic| traffic.datagrams).sum::<u64>() - sent_before;
    let rate = sent as f64 / nodes as f64 / (world.now() - began).as_secs_f64();
    world.run_for(Duration::from_secs(5))?;
    world.require_equal_tables()?;
    let limit = if loss <= 0.1 { 3.0 } else { 5.0 };
    Ok(vec![
        Row::shown("changes", slowest.len() as f64, ""),
        Row::shown("known to one host, p50", percentile(&every, 50.0), "s"),
        Row::shown("known to one host, p99", percentile(&every, 99.0), "s"),
        Row::shown("known to all, p50", percentile(&slowest, 50.0), "s"),
        Row::limited("known to all, p99", percentile(&slowest, 99.0), "s", limit),
        Row::limited("known to all, slowest", percentile(&slowest, 100.0), "s", EVERY_RUN.as_secs_f64()),
        Row::shown("datagrams per host while changes spread", rate, "1/s"),
    ])
}

//! Deaths: those that are none, and how soon a real one is known.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::Request;
use crate::sim::cast;
use crate::sim::disk::Damage;
use crate::sim::fault::Fault;
use crate::sim::link::below;
use crate::sim::outcome::{Outcome, Row, percentile};
use crate::sim::referee::Violation;
use crate::sim::watch::Wanted;
use crate::sim::world::{Start, World};

pub(super) fn run_false(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(request.settings(Start::Introduced, 1))?;
    // The last host is the liar; the one before it sees host 0 only.
    let rows = watch_for_false(&mut world, request.length(10.0))?;
    Ok(request.outcome("false-deaths", &world, rows))
}

/// Cuts the last honest host off from all but one in a cluster that runs, and looks who is given up.
pub(super) fn watch_for_false(world: &mut World, length: Duration) -> Result<Vec<Row>, Box<Violation>> {
    let before = (world.referee.deaths, world.referee.false_deaths);
    world.apply(Fault::HalfConnect(world.settings.nodes - 2, 0))?;
    world.run_for(length)?;
    let limit = (world.link.loss <= 0.1).then_some(0.0);
    let false_deaths = world.referee.false_deaths - before.1;
    let dead = world.referee.deaths - before.0 - false_deaths;
    Ok(vec![
        Row { what: "false deaths".into(), value: false_deaths as f64, unit: "", limit },
        // The control: the half-connected host is given up by those that cannot reach it, and gives them up.
        Row::shown("verdicts about the half-connected host, or its own", dead as f64, ""),
        Row::shown("claims of the liar refused", world.referee.refused_claims as f64, ""),
    ])
}

pub(super) fn run_true(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(request.settings(Start::Introduced, 0))?;
    world.run_for(Duration::from_secs(20))?;
    let rows = measure(&mut world, request.runs(10).min(request.nodes / 4))?;
    Ok(request.outcome("true-death", &world, rows))
}

/// Lets random hosts die, one after the other, in a cluster that runs; they stay dead.
pub(super) fn measure(world: &mut World, runs: usize) -> Result<Vec<Row>, Box<Violation>> {
    let nodes = world.settings.nodes - world.settings.liars;
    let mut rng = ChaCha8Rng::seed_from_u64(world.settings.seed ^ 2);
    let false_before = world.referee.false_deaths;
    let longest = Duration::from_secs(60);
    let (mut slowest, mut every) = (Vec::new(), Vec::new());
    while slowest.len() < runs {
        let dead = below(&mut rng, nodes);
        if world.nodes[dead].engine().is_none() {
            continue;
        }
        let watch = world.watch(Wanted::Down(cast::identity(dead).host_id()), dead);
        world.apply(Fault::Crash(dead, Damage::None))?;
        let step = Duration::from_millis(50);
        let done = world.run_to(longest, step, |world| world.referee.watches[watch].is_complete())?;
        let watch = &world.referee.watches[watch];
        every.extend_from_slice(&watch.took);
        slowest.push(if done.is_some() { watch.slowest().unwrap_or_default() } else { longest });
        world.referee.watches.clear();
        world.run_for(Duration::from_secs(3))?;
    }
    let limits = if world.link.loss <= 0.1 { (10.0, 15.0) } else { (20.0, 20.0) };
    Ok(vec![
        Row::shown("deaths", slowest.len() as f64, ""),
        Row::shown("known to one host, p50", percentile(&every, 50.0), "s"),
        Row::shown("known to one host, p99", percentile(&every, 99.0), "s"),
        Row::limited("known to all, p50", percentile(&slowest, 50.0), "s", limits.0),
        Row::limited("known to all, p99", percentile(&slowest, 99.0), "s", limits.1),
        Row::limited("false deaths", (world.referee.false_deaths - false_before) as f64, "", 0.0),
    ])
}

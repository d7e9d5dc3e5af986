//! Revocations, one after the other, each timed at every host.

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
use crate::sim::world::{Members, Settings, Start, World};

/// Every host knows by then.
const LIMIT: f64 = 5.0;
/// How long a host is waited for.
const LONGEST: Duration = Duration::from_secs(30);

pub(super) fn run(request: &Request) -> Result<Outcome, Box<Violation>> {
    let settings = Settings { members: Members::Certified, ..request.settings(Start::Introduced, 0) };
    let mut world = World::new(settings)?;
    world.run_for(Duration::from_secs(5))?;
    // The control: before, every host gives every other its subnet.
    world.require_equal_tables()?;
    let owned = world.nodes.iter().filter_map(|node| node.engine()).map(|engine| engine.rib().best().count()).min();
    let mut rng = ChaCha8Rng::seed_from_u64(request.seed ^ 5);
    let (mut slowest, mut every) = (Vec::new(), Vec::new());
    // The first host holds the authority's key, and some are left.
    let runs = request.runs(20).min(request.nodes / 2);
    while slowest.len() < runs {
        let out = 1 + below(&mut rng, request.nodes - 1);
        if world.referee.is_revoked(out) {
            continue;
        }
        let watch = world.watch(Wanted::Out(cast::subnet(out).addr(), cast::identity(out).host_id()), out);
        world.apply(Fault::Revoke(out))?;
        let step = Duration::from_millis(20);
        let done = world.run_to(LONGEST, step, |world| world.referee.watches[watch].is_complete())?;
        let watch = &world.referee.watches[watch];
        every.extend_from_slice(&watch.took);
        // A host that never learned is as slow as the run was long.
        slowest.push(if done.is_some() { watch.slowest().unwrap_or_default() } else { LONGEST });
        world.referee.watches.clear();
    }
    world.run_for(Duration::from_secs(5))?;
    world.require_equal_tables()?;
    let rows = vec![
        Row::shown("prefixes with an owner before, fewest at one host", owned.unwrap_or(0) as f64, ""),
        Row::shown("revocations", slowest.len() as f64, ""),
        Row::shown("known to one host, p50", percentile(&every, 50.0), "s"),
        Row::shown("known to one host, p99", percentile(&every, 99.0), "s"),
        Row::shown("known to all, p50", percentile(&slowest, 50.0), "s"),
        Row::limited("known to all, p99", percentile(&slowest, 99.0), "s", LIMIT),
        Row::limited("false deaths", world.referee.false_deaths as f64, "", 0.0),
    ];
    Ok(request.outcome("revocation", &world, rows))
}

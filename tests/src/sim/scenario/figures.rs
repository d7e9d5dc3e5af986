//! The figures of a large cluster one after the other: setting up a thousand hosts costs more than measuring one of them.

use std::time::Duration;

use super::{Request, death, healing, quiet, spreading};
use crate::sim::outcome::{Outcome, Row};
use crate::sim::referee::Violation;
use crate::sim::world::{Start, World};

pub(super) fn run(request: &Request) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(request.settings(Start::Introduced, 1))?;
    world.let_liars_lie(false);
    let runs = request.runs(20);
    let mut rows = Vec::new();
    let mut add = |phase: &str, part: Vec<Row>| {
        rows.extend(part.into_iter().map(|row| Row { what: format!("{phase}: {}", row.what), ..row }));
    };
    world.link.loss = 0.0;
    world.run_for(Duration::from_secs(5))?;
    add("idle, 0 %", quiet::measure(&mut world, request.length(1.0))?);
    world.link.loss = 0.1;
    // Loss is measured before deaths are judged by it.
    world.run_for(Duration::from_secs(15))?;
    add("convergence, 10 %", spreading::measure(&mut world, runs)?);
    add("true death, 10 %", death::measure(&mut world, (runs / 4).max(1))?);
    add("partition, 10 %", healing::measure(&mut world, (runs / 20).max(1))?);
    world.let_liars_lie(true);
    add("liar and half-connected host, 10 %", death::watch_for_false(&mut world, request.length(1.0))?);
    world.let_liars_lie(false);
    world.link.heal();
    world.link.loss = 0.3;
    world.run_for(Duration::from_secs(15))?;
    add("convergence, 30 %", spreading::measure(&mut world, runs)?);
    Ok(request.outcome("figures", &world, rows))
}

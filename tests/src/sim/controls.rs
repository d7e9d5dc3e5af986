//! Controls of the referee: each invariant is broken on purpose, and must be seen.

use std::time::Duration;

use super::cast;
use super::disk::Damage;
use super::fault::Fault;
use super::world::{Settings, Start, World};

fn world(nodes: usize) -> World {
    World::new(Settings { nodes, loss: 0.0, seed: 1, start: Start::Introduced, liars: 0 }).expect("a sound start")
}

#[test]
fn claim_without_a_grant_breaks_s1() {
    let mut world = world(5);
    world.run_for(Duration::from_secs(2)).expect("nothing wrong yet");
    world.referee.forget_grants(cast::identity(3).host_id());
    world.apply(Fault::Announce(3, vec![1])).expect("its own claim is not looked at");
    let violation = world.run_for(Duration::from_secs(2)).expect_err("the others use the claim");
    assert_eq!((violation.invariant, violation.seed), ("S1", 1));
    assert!(violation.to_string().contains("Announce(3, [1])"), "the trace shows what happened: {violation}");
}

#[test]
fn record_that_its_owner_did_not_publish_breaks_s2() {
    let mut world = world(5);
    world.run_for(Duration::from_secs(2)).expect("nothing wrong yet");
    world.apply(Fault::Announce(3, vec![1])).expect("published");
    world.referee.forget_published(cast::identity(3).host_id());
    let violation = world.run_for(Duration::from_secs(2)).expect_err("a version of nobody");
    assert_eq!(violation.invariant, "S2");
}

#[test]
fn different_tables_break_s3() {
    let mut world = world(4);
    world.run_for(Duration::from_secs(2)).expect("nothing wrong yet");
    world.require_equal_tables().expect("equal at the start");
    world.apply(Fault::Partition(vec![0, 0, 1, 1])).expect("a fault");
    world.apply(Fault::Announce(0, vec![1])).expect("published");
    world.run_for(Duration::from_secs(5)).expect("the halves differ, and nobody asked");
    assert_eq!(world.require_equal_tables().expect_err("the halves differ").invariant, "S3");
    world.apply(Fault::Heal).expect("the end of it");
    world.run_for(Duration::from_secs(10)).expect("they meet");
    world.require_equal_tables().expect("equal again");
}

#[test]
fn reachable_host_that_stays_dead_breaks_s5() {
    let mut world = world(4);
    // Nothing passes, and the referee is not told: to it every path is in order.
    world.link.loss = 1.0;
    let violation = world.run_for(Duration::from_secs(200)).expect_err("all are dead to all");
    assert_eq!(violation.invariant, "S5");
    assert!(world.referee.false_deaths >= 12, "each verdict was false: {}", world.referee.false_deaths);
}

#[test]
fn dead_host_is_no_false_death() {
    let mut world = world(4);
    world.apply(Fault::Crash(2, Damage::None)).expect("a fault");
    world.run_for(Duration::from_secs(60)).expect("nothing wrong");
    assert_eq!((world.referee.deaths, world.referee.false_deaths), (3, 0));
    world.apply(Fault::Boot(2)).expect("back");
    world.run_for(Duration::from_secs(20)).expect("nobody holds it for dead any more");
}

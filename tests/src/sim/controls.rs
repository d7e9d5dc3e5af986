//! Controls of the referee: each invariant is broken on purpose, and must be seen.

use std::time::Duration;

use super::cast;
use super::disk::Damage;
use super::fault::Fault;
use super::world::{Members, Settings, Start, World};

fn world(nodes: usize) -> World {
    World::new(Settings { nodes, loss: 0.0, seed: 1, start: Start::Introduced, liars: 0, members: Members::Configured })
        .expect("a sound start")
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
fn prefix_of_a_revoked_host_breaks_s1() {
    let mut world = world(5);
    world.run_for(Duration::from_secs(2)).expect("nothing wrong yet");
    world.referee.assume_known_as_revoked(cast::identity(3).host_id());
    world.apply(Fault::Announce(3, vec![1])).expect("its own claim is not looked at");
    let violation = world.run_for(Duration::from_secs(2)).expect_err("the others use its claim");
    assert_eq!(violation.invariant, "S1");
    assert!(violation.what.contains("revoked"), "{violation}");
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

#[test]
fn cluster_that_stays_parted_breaks_s4() {
    let mut world = world(4);
    world.apply(Fault::Partition(vec![0, 0, 1, 1])).expect("a fault");
    world.run_for(Duration::from_secs(20)).expect("each half gives up the other");
    let violation = world.require_settled(4).expect_err("the halves never meet");
    assert_eq!(violation.invariant, "S4");
    world.apply(Fault::Heal).expect("the end of it");
    world.require_settled(4).expect("they meet");
}

#[test]
fn storm_breaks_s4() {
    let mut world = world(5);
    world.run_for(Duration::from_secs(2)).expect("nothing wrong yet");
    world.require_quiet().expect("nothing happens");
    for turn in 0u32..200 {
        let at = world.now() + Duration::from_millis(100) * turn;
        (0..5).for_each(|host| world.plan(at, Fault::Announce(host, vec![(turn % 2) as u8])));
    }
    assert_eq!(world.require_quiet().expect_err("every host changes ten times a second").invariant, "S4");
}

#[test]
fn host_that_wakes_up_without_end_breaks_s4() {
    let mut world = world(4);
    let mut wake_often = |times: usize, at: Duration| {
        (0..times).try_for_each(|_| {
            world.nodes[0].wake = Some(at);
            world.run_until(at).and_then(|()| world.wake(0, at))
        })
    };
    let second = Duration::from_secs(1);
    wake_often(900, second * 2).expect("often, but not without end");
    wake_often(900, second * 3).expect("time went on between");
    assert_eq!(wake_often(1100, second * 4).expect_err("time stands still").invariant, "S4");
}

#[test]
fn full_queue_breaks_s6() {
    let mut world = world(5);
    world.run_for(Duration::from_secs(2)).expect("nothing wrong yet");
    let clock = world.nodes[0].clock(world.base, world.now());
    let engine = world.nodes[0].engine_mut().expect("an honest host");
    // Nobody takes out what it wants to send.
    (0..3000).for_each(|_| engine.probe_now(clock));
    let violation = world.run_for(Duration::from_secs(2)).expect_err("its queue is full");
    assert_eq!(violation.invariant, "S6");
    assert!(violation.what.contains("a queue was full"), "{violation}");
}

#[test]
fn datagram_beyond_the_cap_breaks_s6() {
    let mut world = world(4);
    world.run_for(Duration::from_secs(2)).expect("every datagram is small enough");
    // Digests have 512 bytes and more.
    world.referee.caps.datagram_bytes = 500;
    let violation = world.run_for(Duration::from_secs(3)).expect_err("a digest is larger");
    assert_eq!(violation.invariant, "S6");
    assert!(violation.what.contains("sends a datagram of"), "{violation}");
}

#[test]
fn records_beyond_the_cap_break_s6() {
    let mut world = world(4);
    world.run_for(Duration::from_secs(2)).expect("nothing wrong yet");
    world.require_equal_tables().expect("two records of each");
    world.referee.caps.records_per_owner = 1;
    let violation = world.require_equal_tables().expect_err("two are above one");
    assert_eq!(violation.invariant, "S6");
    assert!(violation.what.contains("keeps 2 records"), "{violation}");
}

#[test]
fn revoked_host_is_gone_and_dead_to_nobody() {
    let settings =
        Settings { members: Members::Certified, nodes: 4, loss: 0.0, seed: 1, start: Start::Introduced, liars: 0 };
    let mut world = World::new(settings).expect("a sound start");
    world.run_for(Duration::from_secs(2)).expect("nothing wrong yet");
    world.apply(Fault::Revoke(2)).expect("a fault");
    world.run_for(Duration::from_secs(30)).expect("nobody knows it any more");
    world.require_equal_tables().expect("equal");
    let (deaths, false_deaths) = (world.referee.deaths, world.referee.false_deaths);
    assert_eq!((deaths, false_deaths), (3, 0), "it died to nobody; only it gives up the others, who are silent to it");
    let out = cast::identity(2).host_id();
    for node in [0, 1, 3] {
        let engine = world.nodes[node].engine().expect("an honest host");
        assert!(engine.revoked().contains(&out) && engine.member(out).is_none());
        assert_eq!(engine.members_answering(), 2, "the control: the others are there");
    }
}

//! What only shows in clusters of many members: timers by index, bounded bursts, members that do not act in step.

use std::collections::BTreeSet;
use std::time::Duration;

use overlay_wire::HostId;
use overlay_wire::gossip::envelope::Envelope;
use overlay_wire::gossip::{Record, RecordKey, RecordKind, RouteAnnouncement};

use super::sim::{Sim, address, key, prefix};
use crate::gossip::peer::Peer;
use crate::gossip::{Gossip, MemberState, Transmit};

const SECOND: Duration = Duration::from_secs(1);

fn sent(gossip: &mut Gossip) -> Vec<Transmit> {
    std::iter::from_fn(|| gossip.poll_transmit()).collect()
}

/// A record of a kind that nobody interprets, signed by node `index`.
fn opaque(index: usize, shard: u16, version: u64) -> Record {
    let key_of = RecordKey { owner: key(index).host_id(), kind: RecordKind(99), shard };
    let mut record = Record { key: key_of, version, body: vec![7; 900], signature: [0; 64] };
    record.signature = key(index).sign(&record.signed_bytes(&crate::gossip::cluster_id("prod")));
    record
}

#[test]
fn index_of_timers_agrees_with_every_member() {
    let mut sim = Sim::new(12, 51);
    sim.loss_percent = 25;
    for round in 0..60 {
        sim.run_for(Duration::from_millis(137));
        if round == 20 {
            sim.partition(&[0, 1, 2], &[3, 4, 5]);
        }
        if round == 40 {
            sim.restart(7);
        }
        for node in &mut sim.nodes {
            let asked = node.gossip.peers.next_timer();
            node.gossip.peers.settle_timers();
            let slow = node.gossip.peers.values().filter_map(Peer::due).min();
            assert_eq!(node.gossip.peers.next_timer(), slow);
            assert!(asked <= slow || slow.is_none(), "never later than what is due");
        }
    }
}

#[test]
fn members_are_not_contacted_in_step() {
    let mut sim = Sim::new(24, 52);
    let now = sim.now;
    let first = |gossip: &mut Gossip| {
        gossip.handle_timeout(now);
        sent(gossip).into_iter().find(|sent| matches!(Envelope::parse(&sent.bytes), Ok(Envelope::Introduce { .. })))
    };
    let targets: BTreeSet<_> = sim.nodes.iter_mut().filter_map(|node| Some(first(&mut node.gossip)?.to)).collect();
    assert_eq!(targets.len(), 24, "each begins with another");
}

#[test]
fn halves_that_gave_each_other_up_are_one_soon_after_they_meet() {
    let mut sim = Sim::new(40, 55);
    sim.run_until(SECOND * 10, Sim::all_up);
    let (left, right): (Vec<usize>, Vec<usize>) = (0..40).partition(|at| at % 2 == 0);
    sim.partition(&left, &right);
    let is_apart = |sim: &Sim| {
        let down = |at: usize, of: usize| sim.nodes[at].gossip.member(sim.id(of)).map(|view| view.state);
        left.iter().all(|a| right.iter().all(|b| down(*a, *b) == Some(MemberState::Down)))
    };
    sim.run_until(SECOND * 60, is_apart);
    // Long enough that all are tried every five seconds only.
    sim.run_for(SECOND * 20);
    sim.cut.clear();
    let took = sim.run_until(SECOND * 30, Sim::all_up);
    assert!(took < SECOND * 3, "by the turn of each it takes about six seconds, and it took {took:?}");
}

#[test]
fn one_that_comes_back_alone_has_few_others_tried() {
    let mut sim = Sim::new(40, 56);
    sim.run_until(SECOND * 10, Sim::all_up);
    (20..40).for_each(|at| sim.nodes[at].alive = false);
    sim.run_for(SECOND * 40);
    let sought = |sim: &Sim| sim.nodes[0].gossip.peers.values().filter(|peer| peer.contact.sought.is_some()).count();
    assert_eq!(sought(&sim), 0, "the control");
    sim.nodes[30].alive = true;
    let id = sim.id(30);
    let is_up = |sim: &Sim| sim.nodes[0].gossip.member(id).is_some_and(|view| view.state == MemberState::Up);
    sim.run_until(SECOND * 20, is_up);
    sim.run_for(SECOND * 10);
    assert!((1..=4).contains(&sought(&sim)), "{}", sought(&sim));
}

#[test]
fn death_is_noticed_soon_in_a_cluster_that_started_as_one() {
    let mut sim = Sim::new(40, 53);
    sim.run_until(SECOND * 10, Sim::all_up);
    for dead in [5, 29] {
        sim.nodes[dead].alive = false;
        // By its turn in the order of ids alone a host would be probed after up to ten seconds.
        let limit = SECOND * 8;
        let live: Vec<usize> = (0..40).filter(|at| sim.nodes[*at].alive).collect();
        sim.run_until(limit, |sim| live.iter().all(|at| sim.state(dead, *at) == MemberState::Down));
    }
}

#[test]
fn digests_that_differ_are_answered_at_a_bounded_rate() {
    let mut sim = Sim::new(3, 54);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    let (now, other) = (sim.now, key(1).host_id());
    let gossip = &mut sim.nodes[0].gossip;
    sent(gossip);
    (0..200).for_each(|_| gossip.handle_digest(other, &[1; 64], now));
    let answers = sent(gossip).len();
    assert!((16..=16 * 16).contains(&answers), "{answers} version lists for 200 digests");
    gossip.handle_digest(other, &[1; 64], now + SECOND);
    assert!(!sent(gossip).is_empty(), "and again a second later");
}

#[test]
fn newest_record_is_pushed_first_and_not_behind_a_backlog() {
    let mut sim = Sim::new(8, 55);
    sim.run_until(SECOND * 2, |sim| sim.all_up() && sim.converged());
    let mut now = sim.now;
    let gossip = &mut sim.nodes[0].gossip;
    (0..60).for_each(|shard| gossip.accept_record(opaque(1, shard, 5), now));
    for _ in 0..2 {
        gossip.push_tick(now);
        now += Duration::from_millis(200);
    }
    sent(gossip);
    gossip.announce(vec![RouteAnnouncement { prefix: prefix("172.16.1.0/24"), metric: 1 }], now).expect("one route");
    let routes = RecordKey { owner: key(0).host_id(), kind: RecordKind::ROUTES, shard: 0 };
    let before = gossip.pushes.get(&routes).copied().expect("queued");
    assert!(gossip.pushes.len() > 40, "the backlog is larger than one push");
    gossip.push_tick(now);
    assert_eq!(gossip.pushes.get(&routes).copied(), Some(before - 1));
}

#[test]
fn record_that_others_push_too_needs_fewer_pushes() {
    let mut sim = Sim::new(4, 56);
    sim.run_until(SECOND * 2, |sim| sim.all_up() && sim.converged());
    let now = sim.now;
    let gossip = &mut sim.nodes[0].gossip;
    let record = opaque(1, 0, 5);
    gossip.accept_record(record.clone(), now);
    let queued = gossip.pushes.get(&record.key).copied().expect("queued");
    gossip.accept_record(record.clone(), now);
    assert_eq!(gossip.pushes.get(&record.key).copied(), Some(queued - 1));
    (0..queued).for_each(|_| gossip.accept_record(record.clone(), now));
    assert_eq!(gossip.pushes.get(&record.key), None);
}

#[test]
fn offers_remembered_for_a_member_are_bounded() {
    let mut sim = Sim::new(2, 57);
    sim.run_until(SECOND, Sim::all_up);
    let (now, other) = (sim.now, key(1).host_id());
    let gossip = &mut sim.nodes[0].gossip;
    let entry = |n: u32| overlay_wire::gossip::message::VersionEntry {
        key: RecordKey { owner: HostId([(n >> 8) as u8; 16]), kind: RecordKind(9), shard: n as u16 },
        version: 1,
        hash: 0,
    };
    let taken = (0..5000).filter(|n| gossip.may_offer(other, &entry(*n), now)).count();
    assert_eq!(taken, 128);
    // Later there is room again.
    assert!(gossip.may_offer(other, &entry(4999), now + SECOND * 2));
    assert!(gossip.peers.get(&other).is_some_and(|peer| peer.offered.len() <= 128));
}

#[test]
fn hosts_introduced_in_memory_are_as_if_they_had_met() {
    let mut sim = Sim::new(3, 58);
    let now = sim.now;
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let (left, right) = sim.nodes.split_at_mut(b);
        left[a].gossip.introduce_in_memory(address(a), &mut right[0].gossip, address(b), SECOND / 100, now);
    }
    assert!(sim.all_up() && sim.converged());
    sim.run_for(SECOND * 20);
    assert!(sim.all_up() && sim.converged());
    let introduced =
        sim.sent.iter().any(|(_, _, bytes)| matches!(Envelope::parse(bytes), Ok(Envelope::Introduce { .. })));
    assert!(!introduced, "nothing was left to introduce");
    let probed = sim.nodes.iter().all(|node| node.gossip.counters().received > 20);
    assert!(probed, "they understand each other");
    assert!(sim.nodes[0].gossip.rib().owner("10.42.2.9".parse().expect("address")).is_some());
    // A restart is found by first contact, as ever.
    sim.restart(1);
    sim.run_until(SECOND * 5, |sim| sim.all_up() && sim.converged());
}

#[test]
fn machines_of_different_clusters_are_not_introduced() {
    let mut sim = Sim::new(2, 59);
    let now = sim.now;
    let (left, right) = sim.nodes.split_at_mut(1);
    right[0].gossip.cluster = [9; 32];
    left[0].gossip.introduce_in_memory(address(0), &mut right[0].gossip, address(1), SECOND / 100, now);
    assert_eq!(sim.state(1, 0), MemberState::New);
}

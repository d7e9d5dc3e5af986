//! Contact, spread, loss, partition, restart, withdrawal.

use std::time::Duration;

use overlay_wire::gossip::{PlainStatus, RouteAnnouncement, RouteVerdict};

use super::sim::{Sim, grant, key, member, own_host, prefix};
use crate::gossip::{DownReason, GossipEvent, MemberState};
use crate::ownership::Owner;

const SECOND: Duration = Duration::from_secs(1);

fn route(text: &str) -> RouteAnnouncement {
    RouteAnnouncement { prefix: prefix(text), metric: 10 }
}

fn announce(sim: &mut Sim, index: usize, routes: &[&str]) {
    let (routes, now) = (routes.iter().map(|text| route(text)).collect(), sim.now);
    sim.nodes[index].gossip.announce(routes, now).expect("few routes");
}

fn owner(sim: &Sim, at: usize, ip: &str) -> Option<Owner> {
    sim.nodes[at].gossip.rib().owner(ip.parse().expect("address"))
}

#[test]
fn two_nodes_meet_within_100_ms_and_know_each_others_subnet() {
    let mut sim = Sim::new(2, 1);
    let took = sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert_eq!(owner(&sim, 0, "10.42.2.9"), Some(Owner::Member(sim.id(1))));
    assert_eq!(owner(&sim, 1, "10.42.1.9"), Some(Owner::Member(sim.id(0))));
    assert_eq!(owner(&sim, 0, "10.42.1.9"), Some(Owner::Local));
    sim.run_for(SECOND * 3);
    let view = sim.nodes[0].gossip.member(sim.id(1)).expect("a member");
    assert_eq!((view.validated_source, view.endpoint), (Some(sim.nodes[1].address), Some(sim.nodes[1].address)));
    assert!(view.rtt.is_some_and(|rtt| rtt < Duration::from_millis(5)), "{:?}", view.rtt);
    assert_eq!((view.loss_percent, view.observed), (0, Some(sim.nodes[0].address)));
}

#[test]
fn same_seed_gives_the_same_datagrams() {
    let run = || {
        let mut sim = Sim::new(3, 7);
        sim.loss_percent = 20;
        sim.run_for(SECOND * 5);
        sim.sent
    };
    assert_eq!(run(), run());
}

#[test]
fn gre_keys_of_a_pair_agree_and_the_old_one_lasts_5_s() {
    let mut sim = Sim::new(2, 2);
    sim.run_until(SECOND, Sim::all_up);
    let keys = |sim: &Sim, at: usize, of: usize| sim.nodes[at].gossip.gre_keys(sim.id(of), sim.now).expect("a pair");
    let (old, _) = keys(&sim, 0, 1);
    assert_eq!(keys(&sim, 1, 0), (old, None));
    sim.restart(1);
    sim.run_until(SECOND, |sim| keys(sim, 0, 1).0 != old);
    assert_eq!(keys(&sim, 0, 1).1, Some(old));
    sim.run_for(SECOND * 6);
    assert_eq!(keys(&sim, 0, 1).1, None);
    assert_eq!(keys(&sim, 0, 1).0, keys(&sim, 1, 0).0);
}

#[test]
fn ten_nodes_converge_and_spread_a_route() {
    let mut sim = Sim::new(10, 3);
    sim.run_until(SECOND * 3, |sim| sim.all_up() && sim.converged());
    announce(&mut sim, 4, &["172.16.5.0/24"]);
    let took = sim.run_until(SECOND * 2, |sim| {
        (0..10).filter(|at| *at != 4).all(|at| owner(sim, at, "172.16.5.1") == Some(Owner::Member(sim.id(4))))
    });
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[test]
fn thirty_percent_loss_converges_without_a_false_verdict() {
    for seed in 0..2 {
        let mut sim = Sim::new(10, seed);
        sim.loss_percent = 30;
        sim.duplicate_percent = 10;
        sim.delay = (Duration::from_millis(1), Duration::from_millis(60));
        sim.run_until(SECOND * 10, |sim| sim.all_reachable() && sim.converged());
        announce(&mut sim, 0, &["172.16.1.0/24"]);
        let took = sim.run_until(SECOND * 10, Sim::converged);
        assert!(took < SECOND * 6, "seed {seed}: {took:?}");
        sim.run_for(SECOND * 60);
        for node in &sim.nodes {
            let down = node.events.iter().find(|(_, event)| matches!(event, GossipEvent::MemberDown { .. }));
            assert_eq!(down, None, "seed {seed}");
        }
    }
}

#[test]
fn two_nodes_at_thirty_percent_loss_meet_and_stay_up() {
    let mut sim = Sim::new(2, 11);
    sim.loss_percent = 30;
    sim.run_until(SECOND * 3, |sim| sim.all_reachable() && sim.converged());
    sim.run_for(SECOND * 600);
    for node in &sim.nodes {
        assert!(!node.events.iter().any(|(_, event)| matches!(event, GossipEvent::MemberDown { .. })));
    }
}

#[test]
fn withdrawn_route_disappears_everywhere() {
    let mut sim = Sim::new(3, 4);
    announce(&mut sim, 0, &["172.16.1.0/24"]);
    sim.run_until(SECOND * 2, |sim| owner(sim, 2, "172.16.1.1").is_some() && owner(sim, 1, "172.16.1.1").is_some());
    announce(&mut sim, 0, &[]);
    sim.run_until(SECOND * 2, |sim| (0..3).all(|at| owner(sim, at, "172.16.1.1").is_none()));
}

#[test]
fn route_of_an_earlier_run_is_withdrawn_by_the_next() {
    let mut sim = Sim::new(3, 5);
    announce(&mut sim, 0, &["172.16.1.0/24"]);
    sim.run_until(SECOND * 2, |sim| owner(sim, 2, "172.16.1.1").is_some() && sim.all_up());
    sim.restart(0);
    sim.run_until(SECOND * 3, |sim| sim.converged() && owner(sim, 2, "172.16.1.1").is_none());
}

#[test]
fn lost_version_counter_is_found_again() {
    let mut sim = Sim::new(3, 6);
    for round in 0..1500 {
        announce(&mut sim, 0, if round % 2 == 0 { &["172.16.1.0/24"] } else { &[] });
    }
    announce(&mut sim, 0, &["172.16.1.0/25"]);
    sim.run_until(SECOND * 2, |sim| sim.all_up() && sim.converged());
    // The next run starts its versions at its boot epoch, below what the others hold.
    sim.restart(0);
    announce(&mut sim, 0, &["172.16.1.128/25"]);
    sim.run_until(SECOND * 5, |sim| {
        sim.converged() && owner(sim, 1, "172.16.1.200").is_some() && owner(sim, 1, "172.16.1.1").is_none()
    });
}

#[test]
fn dead_node_is_found_down_and_its_records_stay() {
    let mut sim = Sim::new(3, 8);
    sim.run_until(SECOND * 2, |sim| sim.all_up() && sim.converged());
    sim.run_for(SECOND * 5);
    sim.nodes[2].alive = false;
    let took = sim.run_until(SECOND * 15, |sim| (0..2).all(|at| sim.state(2, at) == MemberState::Down));
    assert!(took >= SECOND * 3 && took < SECOND * 10, "{took:?}");
    assert_eq!(owner(&sim, 0, "10.42.3.1"), Some(Owner::Member(sim.id(2))));
    sim.nodes[2].alive = true;
    let took = sim.run_until(SECOND * 10, Sim::all_up);
    assert!(took <= SECOND * 7, "{took:?}");
}

#[test]
fn leaving_node_is_down_at_once() {
    let mut sim = Sim::new(3, 9);
    sim.run_until(SECOND * 2, Sim::all_up);
    let now = sim.now;
    sim.nodes[1].gossip.leave(now);
    sim.run_for(Duration::from_millis(10));
    let view = sim.nodes[0].gossip.member(sim.id(1)).expect("a member");
    assert_eq!((view.state, view.down_reason), (MemberState::Down, Some(DownReason::Left)));
}

#[test]
fn partition_heals_and_records_made_on_both_sides_meet() {
    let mut sim = Sim::new(6, 10);
    sim.run_until(SECOND * 3, |sim| sim.all_up() && sim.converged());
    sim.partition(&[0, 1, 2], &[3, 4, 5]);
    sim.run_for(SECOND * 60);
    assert_eq!((sim.state(1, 0), sim.state(4, 0)), (MemberState::Up, MemberState::Down));
    announce(&mut sim, 0, &["172.16.1.0/24"]);
    announce(&mut sim, 5, &["172.16.6.0/24"]);
    sim.run_for(SECOND * 2);
    assert!(owner(&sim, 5, "10.42.1.1").is_some(), "a partition erases nothing");
    sim.cut.clear();
    let took = sim.run_until(SECOND * 10, |sim| sim.all_up() && sim.converged());
    assert!(took <= SECOND * 8, "{took:?}");
    assert_eq!(owner(&sim, 5, "172.16.1.1"), Some(Owner::Member(sim.id(0))));
}

#[test]
fn only_the_broken_path_is_degraded() {
    let mut sim = Sim::new(4, 12);
    sim.run_until(SECOND * 2, Sim::all_up);
    sim.partition(&[0], &[1]);
    sim.run_for(SECOND * 30);
    assert_eq!(sim.state(1, 0), MemberState::Degraded);
    assert_eq!(sim.state(0, 1), MemberState::Degraded);
    for (of, at) in [(2, 0), (3, 0), (0, 2), (1, 2), (1, 3), (2, 3)] {
        assert_eq!(sim.state(of, at), MemberState::Up, "{of} at {at}");
    }
    sim.nodes[1].alive = false;
    sim.run_until(SECOND * 30, |sim| sim.state(1, 0) == MemberState::Down);
}

#[test]
fn one_way_path_is_not_called_up() {
    let mut sim = Sim::new(2, 13);
    sim.run_until(SECOND, Sim::all_up);
    sim.cut.insert((0, 1));
    sim.run_until(SECOND * 15, |sim| sim.state(1, 0) == MemberState::Down && sim.state(0, 1) == MemberState::Down);
}

#[test]
fn restart_of_one_or_both_ends_reconnects() {
    let mut sim = Sim::new(2, 14);
    sim.run_until(SECOND, Sim::all_up);
    sim.restart(1);
    let took = sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    assert!(took < Duration::from_millis(200), "{took:?}");
    sim.restart(0);
    sim.restart(1);
    let took = sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    assert!(took < Duration::from_millis(200), "{took:?}");
    sim.run_for(SECOND * 20);
    assert!(sim.all_up());
}

#[test]
fn plain_status_counts_as_heard_only_when_the_member_knows_it() {
    let mut sim = Sim::new(2, 16);
    sim.loss_percent = 30;
    sim.run_until(SECOND * 30, Sim::all_up);
    let views = |sim: &Sim| {
        let view = |at: usize, of: usize| sim.nodes[at].gossip.member(sim.id(of)).expect("a member");
        (view(0, 1).plain_heard, view(1, 0).plain)
    };
    for status in [PlainStatus::Gre, PlainStatus::Refused, PlainStatus::Ipip, PlainStatus::Gre] {
        let (other, now) = (sim.id(1), sim.now);
        sim.nodes[0].gossip.set_plain_status(other, status, now);
        sim.run_until(SECOND * 30, |sim| {
            let (heard, known) = views(sim);
            assert!(heard != status || known == status, "{known:?} is known, not {status:?}");
            heard == status
        });
    }
    // A run with fresh keys has heard nothing.
    sim.loss_percent = 0;
    let keys = |sim: &Sim| sim.nodes[0].gossip.gre_keys(sim.id(1), sim.now).map(|(key, _)| key);
    let old = keys(&sim);
    sim.restart(1);
    sim.run_until(SECOND, |sim| keys(sim) != old);
    assert_eq!(views(&sim).0, PlainStatus::Unknown);
    sim.run_until(SECOND * 5, |sim| views(sim) == (PlainStatus::Gre, PlainStatus::Gre));
}

#[test]
fn moved_node_is_followed() {
    let mut sim = Sim::new(3, 15);
    sim.run_until(SECOND, Sim::all_up);
    sim.nodes[1].address = "198.51.100.7:51821".parse().expect("address");
    let now = sim.now;
    sim.nodes[1].gossip.probe_now(now);
    sim.run_for(SECOND * 4);
    for at in [0, 2] {
        let view = sim.nodes[at].gossip.member(sim.id(1)).expect("a member");
        assert_eq!((view.state, view.endpoint), (MemberState::Up, Some(sim.nodes[1].address)));
        assert_eq!(view.validated_source, Some(sim.nodes[1].address));
    }
}

#[test]
fn stalled_process_blames_nobody() {
    let mut sim = Sim::new(4, 16);
    sim.run_until(SECOND, Sim::all_up);
    sim.run_for(SECOND * 3);
    // Node 0 stands still for 30 s: nothing it would have heard arrives, and its timers fire late.
    sim.partition(&[0], &[1, 2, 3]);
    sim.nodes[0].alive = false;
    sim.run_for(SECOND * 30);
    sim.nodes[0].alive = true;
    sim.cut.clear();
    sim.run_for(SECOND * 10);
    assert!(sim.all_up());
    let down = sim.nodes[0].events.iter().filter(|(_, event)| matches!(event, GossipEvent::MemberDown { .. })).count();
    assert_eq!(down, 0);
}

#[test]
fn announcer_learns_who_accepts_and_who_does_not() {
    let mut sim = Sim::new(3, 17);
    sim.run_until(SECOND, Sim::all_up);
    // Node 2 allows h1 one more prefix than node 1 does.
    let mut members: Vec<_> = (0..3).map(member).collect();
    members[0].allow.push(grant("192.168.7.0/24"));
    let now = sim.now;
    sim.nodes[2].gossip.set_members(members, now).expect("few members");
    announce(&mut sim, 0, &["192.168.7.0/24"]);
    let wanted = prefix("192.168.7.0/24");
    let verdict = |sim: &Sim, from: usize| {
        let verdicts = sim.nodes[0].gossip.announced_verdicts();
        verdicts.get(&sim.id(from))?.iter().find(|(prefix, _)| *prefix == wanted).map(|(_, verdict)| *verdict)
    };
    sim.run_until(SECOND * 3, |sim| verdict(sim, 1).is_some() && verdict(sim, 2).is_some());
    assert_eq!(verdict(&sim, 1), Some(RouteVerdict::OutsideAllow));
    assert_eq!(verdict(&sim, 2), Some(RouteVerdict::Accepted));
    let refused = sim.nodes[1].events.iter().find_map(|(_, event)| match event {
        GossipEvent::RouteRefused(refused) => refused.missing_line.clone(),
        _ => None,
    });
    assert_eq!(refused.as_deref(), Some("allow = [\"192.168.7.0/24\"] for [[member]] name = \"h1\""));
}

#[test]
fn removed_member_is_forgotten_and_met_with_silence() {
    let mut sim = Sim::new(3, 18);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    let gone = sim.id(2);
    let now = sim.now;
    sim.nodes[0].gossip.set_members(vec![member(1)], now).expect("few members");
    let to_gone = |sim: &Sim| {
        sim.sent
            .iter()
            .filter(|(from, to, _)| from.ip() == sim.nodes[0].address.ip() && to.ip() == sim.nodes[2].address.ip())
            .count()
    };
    sim.run_for(Duration::from_millis(5));
    let before = to_gone(&sim);
    sim.run_for(SECOND * 20);
    assert_eq!(to_gone(&sim), before);
    assert_eq!(owner(&sim, 0, "10.42.3.1"), None);
    assert!(sim.nodes[0].gossip.records().all(|record| record.key.owner != gone));
    assert_eq!(sim.state(0, 2), MemberState::Degraded, "node 1 still reaches it");
}

#[test]
fn idle_traffic_of_three_nodes_stays_below_20_kbit_per_second() {
    let mut sim = Sim::new(3, 19);
    sim.run_until(SECOND, Sim::all_up);
    sim.run_for(SECOND * 10);
    sim.sent.clear();
    sim.run_for(SECOND * 60);
    let bytes: usize = sim.sent.iter().map(|(_, _, bytes)| bytes.len() + 28).sum();
    let per_node = bytes * 8 / 60 / 3;
    assert!(per_node < 20_000, "{per_node} bit/s");
}

#[test]
fn own_record_beyond_its_limits_is_refused_whole() {
    let mut sim = Sim::new(2, 20);
    let mut own = own_host(0);
    own.prefixes = (0..17).map(|n| prefix(&format!("10.50.{n}.0/24"))).collect();
    let now = sim.now;
    assert!(sim.nodes[0].gossip.set_own_host(own, now).is_err());
    assert_eq!(sim.nodes[0].gossip.own_host(), &own_host(0));
    assert_eq!(sim.id(0), key(0).host_id());
}

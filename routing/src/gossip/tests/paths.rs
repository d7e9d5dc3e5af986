//! Several addresses per member, roaming, and hosts behind NATs.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use overlay_wire::HostId;
use overlay_wire::gossip::body::{FEATURE_NAT, FEATURE_PATHS};

use super::sim::{Nat, NatKind, Sim, address, own_host};
use crate::gossip::{DataPath, GossipEvent, MemberState, OwnHost, ReflexiveUse};

const SECOND: Duration = Duration::from_secs(1);

fn v6(index: usize) -> SocketAddr {
    format!("[2001:db8::{}]:51821", index + 1).parse().expect("an address")
}

/// Nodes with an address of each family, which know each other by the first.
fn dual(count: usize, seed: u64) -> Sim {
    let mut sim = Sim::new(count, seed);
    let now = sim.now;
    for index in 0..count {
        sim.nodes[index].others = vec![v6(index)];
        let own = OwnHost { endpoints: vec![address(index), v6(index)], features: FEATURE_PATHS, ..own_host(index) };
        sim.nodes[index].gossip.set_own_host(own, now).expect("a valid record");
    }
    sim.run_until(SECOND * 5, |sim| sim.all_up() && sim.converged());
    // First contact goes to all addresses, and whichever answers first is used until the first one is returned to.
    sim.run_until(SECOND * 60, |sim| {
        (0..count).all(|at| (0..count).all(|of| at == of || endpoint(sim, at, of) == Some(address(of))))
    });
    sim.run_for(SECOND * 3);
    sim.nodes.iter_mut().for_each(|node| node.events.clear());
    sim
}

fn endpoint(sim: &Sim, at: usize, of: usize) -> Option<SocketAddr> {
    sim.nodes[at].gossip.member(sim.id(of)).and_then(|view| view.endpoint)
}

fn both_at(sim: &Sim, wanted: fn(usize) -> SocketAddr) -> bool {
    let validated = |at: usize, of: usize| {
        sim.nodes[at].gossip.member(sim.id(of)).and_then(|view| view.validated_source) == Some(wanted(of))
    };
    endpoint(sim, 0, 1) == Some(wanted(1))
        && endpoint(sim, 1, 0) == Some(wanted(0))
        && validated(0, 1)
        && validated(1, 0)
}

fn moves(sim: &Sim) -> usize {
    let events = sim.nodes.iter().flat_map(|node| &node.events);
    events.filter(|(_, event)| matches!(event, GossipEvent::EndpointChanged { .. })).count()
}

fn downs(sim: &Sim) -> usize {
    let events = sim.nodes.iter().flat_map(|node| &node.events);
    events.filter(|(_, event)| matches!(event, GossipEvent::MemberDown { .. })).count()
}

#[test]
fn other_family_takes_over_and_the_first_is_returned_to_once() {
    for seed in 0..24 {
        let mut sim = dual(2, seed);
        assert!(both_at(&sim, address));
        sim.dead.extend([address(0), address(1)]);
        let took = sim.run_until(SECOND * 4, |sim| both_at(sim, v6));
        assert!(took <= SECOND * 3, "seed {seed}: {took:?}");
        sim.run_for(SECOND * 60);
        assert!(both_at(&sim, v6) && downs(&sim) == 0, "seed {seed}");
        sim.dead.clear();
        let healed = sim.now;
        sim.run_until(SECOND * 400, |sim| both_at(sim, address));
        // Not at the first answer: three, ten seconds apart.
        assert!(sim.now - healed >= SECOND * 20, "seed {seed}: {:?}", sim.now - healed);
        sim.nodes.iter_mut().for_each(|node| node.events.clear());
        sim.run_for(SECOND * 600);
        assert_eq!((moves(&sim), downs(&sim)), (0, 0), "seed {seed}");
        assert!(both_at(&sim, address), "seed {seed}");
    }
}

#[test]
fn one_lost_probe_moves_nothing() {
    let mut sim = dual(2, 7);
    for _ in 0..20 {
        // Shorter than the pause between two rounds.
        sim.dead.extend([address(0), address(1)]);
        sim.run_for(Duration::from_millis(400));
        sim.dead.clear();
        sim.run_for(Duration::from_millis(2700));
    }
    assert_eq!((moves(&sim), downs(&sim)), (0, 0));
    let lost = |at: usize, of: usize| sim.nodes[at].gossip.member(sim.id(of)).map(|view| view.loss_percent);
    assert!(lost(0, 1) > Some(5) && lost(1, 0) > Some(5), "probes were lost: {:?} {:?}", lost(0, 1), lost(1, 0));
}

#[test]
fn path_on_which_packets_die_is_left_and_not_returned_to_for_long() {
    let mut sim = dual(2, 3);
    let ids = [sim.id(0), sim.id(1)];
    let mut left = None;
    for second in 0..240 {
        let now = sim.now;
        let found = if both_at(&sim, v6) { DataPath::Works } else { DataPath::Fails };
        sim.nodes[0].gossip.note_data_path(ids[1], found, now);
        sim.nodes[1].gossip.note_data_path(ids[0], found, now);
        sim.run_for(SECOND);
        if left.is_none() && both_at(&sim, v6) {
            left = Some(second);
        }
    }
    assert!(left.is_some_and(|second| second <= 3), "{left:?}");
    assert!(both_at(&sim, v6));
    assert_eq!((moves(&sim), downs(&sim)), (2, 0));
}

#[test]
fn member_without_path_probes_is_reached_at_its_other_address_all_the_same() {
    let mut sim = dual(2, 5);
    let now = sim.now;
    for index in 0..2 {
        let own = OwnHost { endpoints: vec![address(index), v6(index)], features: 0, ..own_host(index) };
        sim.nodes[index].gossip.set_own_host(own, now).expect("a valid record");
    }
    sim.run_for(SECOND * 2);
    sim.dead.extend([address(0), address(1)]);
    sim.run_until(SECOND * 4, |sim| both_at(sim, v6));
    assert_eq!(downs(&sim), 0);
}

#[test]
fn host_that_moves_is_followed_within_a_second() {
    let mut sim = dual(3, 9);
    let new: SocketAddr = "192.0.2.77:51821".parse().expect("an address");
    sim.dead.insert(address(0));
    sim.nodes[0].address = new;
    let now = sim.now;
    let own = OwnHost { endpoints: vec![new, v6(0)], features: FEATURE_PATHS, ..own_host(0) };
    sim.nodes[0].gossip.set_own_host(own, now).expect("a valid record");
    sim.nodes[0].gossip.probe_now(now);
    let took = sim.run_until(SECOND * 2, |sim| (1..3).all(|at| endpoint(sim, at, 0) == Some(new)));
    assert!(took < SECOND, "{took:?}");
    sim.run_for(SECOND * 30);
    assert_eq!(downs(&sim), 0);
    assert!((1..3).all(|at| endpoint(&sim, at, 0) == Some(new)));
}

#[test]
fn held_back_datagram_of_a_lower_number_moves_nothing() {
    let mut sim = dual(2, 4);
    // A probe of the first host is held back: it never arrives where it was sent to.
    sim.cut.insert((0, 1));
    let (now, second) = (sim.now, sim.id(1));
    sim.sent.clear();
    sim.nodes[0].gossip.check(second, now);
    sim.run_for(Duration::from_millis(1));
    let (_, to, held) = sim.sent.iter().find(|(from, ..)| *from == address(0)).expect("it was sent").clone();
    sim.cut.clear();
    sim.run_for(SECOND * 3);
    let received = |sim: &Sim| sim.nodes[1].gossip.counters().received;
    let (stranger, before) = ("203.0.113.66:4444".parse().expect("an address"), received(&sim));
    sim.deliver(stranger, to, &held);
    // It is authentic and new to the window, so it is taken, and is not the newest, so nothing follows from its source.
    assert_eq!(received(&sim), before + 1);
    assert_eq!(endpoint(&sim, 1, 0), Some(address(0)));
    sim.deliver(stranger, to, &held);
    assert_eq!(received(&sim), before + 1, "a second copy is a replay");
    // The newest does move it.
    sim.cut.insert((0, 1));
    sim.sent.clear();
    let now = sim.now;
    sim.nodes[0].gossip.check(second, now);
    sim.run_for(Duration::from_millis(1));
    let (_, to, newest) = sim.sent.iter().rev().find(|(from, ..)| *from == address(0)).expect("it was sent").clone();
    sim.deliver(stranger, to, &newest);
    assert_eq!(endpoint(&sim, 1, 0), Some(stranger));
}

/// Three hosts, the first two behind NATs of a kind; the third is public.
fn behind_nats(kind: NatKind, seed: u64) -> Sim {
    let mut sim = Sim::new(3, seed);
    let now = sim.now;
    for index in 0..3 {
        let node = &mut sim.nodes[index];
        let mut local = address(index);
        if index < 2 {
            local = SocketAddr::from(([10, index as u8 + 1, 0, 2], 51821));
            node.address = local;
            node.nat = Some(Nat::new(IpAddr::from([203, 0, 113, index as u8 + 1]), kind));
        }
        let own = OwnHost { endpoints: vec![local], features: FEATURE_PATHS, ..own_host(index) };
        node.gossip.set_own_host(own, now).expect("a valid record");
        node.gossip.set_local_addresses(BTreeSet::from([local.ip()]), ReflexiveUse::Publish, now);
    }
    sim
}

fn features(sim: &Sim, at: usize, of: usize) -> u64 {
    sim.nodes[at].gossip.member(sim.id(of)).and_then(|view| view.host_record).map_or(0, |body| body.features)
}

#[test]
fn hosts_behind_two_nats_that_keep_the_port_reach_each_other() {
    for seed in 0..8 {
        let mut sim = behind_nats(NatKind::EndpointIndependent, seed);
        sim.run_until(SECOND * 15, Sim::all_up);
        let outside = |index: u8| SocketAddr::from(([203, 0, 113, index + 1], 51821));
        assert_eq!((endpoint(&sim, 0, 1), endpoint(&sim, 1, 0)), (Some(outside(1)), Some(outside(0))), "seed {seed}");
        assert!(features(&sim, 0, 1) & FEATURE_NAT != 0 && features(&sim, 1, 2) & FEATURE_NAT == 0);
        sim.run_for(SECOND * 120);
        assert!(sim.all_up(), "seed {seed}");
    }
}

#[test]
fn hosts_behind_two_symmetric_nats_stay_apart_and_say_why() {
    let mut sim = behind_nats(NatKind::Symmetric, 1);
    let reached =
        |sim: &Sim| [(0, 2), (2, 0), (1, 2), (2, 1)].iter().all(|(of, at)| sim.state(*of, *at) == MemberState::Up);
    sim.run_until(SECOND * 10, |sim| reached(sim) && features(sim, 0, 1) & features(sim, 1, 0) & FEATURE_NAT != 0);
    sim.run_for(SECOND * 60);
    assert!(reached(&sim));
    assert!(!sim.state(0, 1).is_reachable() && !sim.state(1, 0).is_reachable());
    let second: HostId = sim.id(1);
    let view = sim.nodes[0].gossip.member(second).expect("a member");
    assert!(view.candidates.iter().any(|to| to.ip() == IpAddr::from([203, 0, 113, 2])), "{:?}", view.candidates);
    assert!(sim.nodes[0].gossip.is_behind_nat() && !sim.nodes[2].gossip.is_behind_nat());
}

#[test]
fn host_whose_endpoints_are_written_down_publishes_no_others() {
    let mut sim = behind_nats(NatKind::EndpointIndependent, 2);
    let now = sim.now;
    let local = BTreeSet::from([sim.nodes[0].address.ip()]);
    sim.nodes[0].gossip.set_local_addresses(local, ReflexiveUse::Ignore, now);
    sim.run_for(SECOND * 10);
    assert_eq!(features(&sim, 2, 0) & FEATURE_NAT, 0);
    let view = sim.nodes[2].gossip.member(sim.id(0)).expect("a member");
    assert_eq!(view.host_record.map(|body| body.endpoints), Some(vec![sim.nodes[0].address]));
}

#[test]
fn behind_a_nat_nobody_is_left_without_a_datagram_for_long() {
    let mut sim = behind_nats(NatKind::EndpointIndependent, 3);
    sim.run_until(SECOND * 15, Sim::all_up);
    sim.run_until(SECOND * 3, |sim| sim.nodes.iter().all(|node| node.gossip.peers.values().all(|p| p.probe.is_none())));
    let now = sim.now;
    let kept_open = |sim: &mut Sim, at: usize, after: u64| {
        let gossip = &mut sim.nodes[at].gossip;
        gossip.keepalive_tick(now + SECOND * after as u32);
        std::iter::from_fn(|| gossip.poll_transmit()).map(|sent| sent.to).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(kept_open(&mut sim, 0, 20), 0, "rounds were made lately");
    assert_eq!(kept_open(&mut sim, 0, 26), 2);
    assert_eq!(kept_open(&mut sim, 2, 26), 0, "no NAT stands in front of it");
}

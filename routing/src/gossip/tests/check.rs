//! Questions on demand: reach and clock.

use std::time::Duration;

use overlay_wire::gossip::body::{FEATURE_CLOCK, FEATURE_TRACE};
use overlay_wire::gossip::{TraceAnswer, TraceOutcome, TraceStep, TracedPacket};

use super::sim::{Sim, own_host};
use crate::gossip::{GossipEvent, MemberState, OwnHost};

const SECOND: Duration = Duration::from_secs(1);
const CLOCK: u64 = 1_800_000_000_000;

/// Two members that know each other; the second answers clock requests where told so.
fn pair(features: u64) -> Sim {
    let mut sim = Sim::new(2, 11);
    let now = sim.now;
    sim.nodes[1].gossip.set_own_host(OwnHost { features, ..own_host(1) }, now).expect("a valid record");
    let second = sim.id(1);
    sim.run_until(SECOND * 5, |sim| {
        let known = sim.nodes[0].gossip.member(second).and_then(|view| view.host_record);
        sim.all_up() && known.is_some_and(|body| body.features == features)
    });
    // The first rounds are over and the answers to them have arrived.
    sim.run_for(SECOND * 3);
    sim.nodes.iter_mut().for_each(|node| node.events.clear());
    sim
}

fn told(sim: &Sim) -> Vec<u64> {
    let events = sim.nodes[0].events.iter();
    events
        .filter_map(|(_, event)| if let GossipEvent::ClockTold { unix_ms, .. } = event { Some(*unix_ms) } else { None })
        .collect()
}

#[test]
fn check_of_a_member_that_answers_tells_the_round_trip() {
    let mut sim = pair(0);
    let (second, now) = (sim.id(1), sim.now);
    sim.nodes[0].gossip.check(second, now);
    sim.run_for(Duration::from_millis(20));
    let answers: Vec<Duration> = sim.nodes[0]
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            GossipEvent::CheckAnswered { host, round_trip } if *host == second => Some(*round_trip),
            _ => None,
        })
        .collect();
    assert_eq!(answers.len(), 1, "{:?}", sim.nodes[0].events);
    assert!(answers[0] > Duration::ZERO && answers[0] < Duration::from_millis(5), "{answers:?}");
}

#[test]
fn check_of_a_silent_member_is_not_answered_and_harms_nobody() {
    let mut sim = pair(0);
    let second = sim.id(1);
    sim.partition(&[0], &[1]);
    for _ in 0..300 {
        let now = sim.now;
        sim.nodes[0].gossip.check(second, now);
    }
    sim.run_for(Duration::from_millis(500));
    assert!(!sim.nodes[0].events.iter().any(|(_, event)| matches!(event, GossipEvent::CheckAnswered { .. })));
    assert_ne!(sim.state(1, 0), MemberState::Down, "questions count for nothing");
    sim.cut.clear();
    sim.run_until(SECOND * 10, Sim::all_up);
}

#[test]
fn check_of_a_member_that_is_down_begins_first_contact_at_once() {
    let took = |asks: bool| {
        let mut sim = pair(0);
        let second = sim.id(1);
        sim.partition(&[0], &[1]);
        sim.run_until(SECOND * 60, |sim| sim.state(1, 0) == MemberState::Down);
        // Both have tried in vain for long: the pauses between their first contacts are seconds by now.
        sim.run_for(SECOND * 60);
        sim.cut.clear();
        let now = sim.now;
        if asks {
            sim.nodes[0].gossip.check(second, now);
        }
        sim.run_until(SECOND * 10, |sim| sim.state(1, 0) == MemberState::Up)
    };
    let (asked, alone) = (took(true), took(false));
    assert!(asked < Duration::from_millis(10) && alone > asked * 10, "{asked:?}, without the question {alone:?}");
}

#[test]
fn clock_is_told_once_per_question_and_only_by_whom_was_asked() {
    let mut sim = pair(FEATURE_CLOCK);
    let (first, second, now) = (sim.id(0), sim.id(1), sim.now);
    assert!(sim.nodes[0].gossip.ask_clock(second, now));
    sim.run_for(Duration::from_millis(20));
    let asked: Vec<u64> = sim.nodes[1]
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            GossipEvent::ClockAsked { host, nonce } if *host == first => Some(*nonce),
            _ => None,
        })
        .collect();
    assert_eq!(asked.len(), 1, "{:?}", sim.nodes[1].events);
    assert_eq!(told(&sim), [], "nothing is told before the driver answers");
    // An answer to another question, the answer, and the same again.
    for nonce in [asked[0] ^ 1, asked[0], asked[0]] {
        sim.nodes[1].gossip.tell_clock(first, nonce, CLOCK);
    }
    sim.run_for(Duration::from_millis(20));
    assert_eq!(told(&sim), [CLOCK]);
}

#[test]
fn clock_that_comes_too_late_is_not_believed() {
    let mut sim = pair(FEATURE_CLOCK);
    let (first, second, now) = (sim.id(0), sim.id(1), sim.now);
    assert!(sim.nodes[0].gossip.ask_clock(second, now));
    sim.run_for(SECOND * 6);
    let asked = sim.nodes[1].events.iter().find_map(|(_, event)| match event {
        GossipEvent::ClockAsked { nonce, .. } => Some(*nonce),
        _ => None,
    });
    sim.nodes[1].gossip.tell_clock(first, asked.expect("it was asked"), CLOCK);
    sim.run_for(SECOND);
    assert_eq!(told(&sim), []);
}

#[test]
fn host_of_an_older_release_is_not_asked_for_its_clock() {
    let mut sim = pair(0);
    let (second, now) = (sim.id(1), sim.now);
    assert!(!sim.nodes[0].gossip.ask_clock(second, now));
    let unknown = sim.nodes[1].gossip.counters().unknown_message;
    sim.run_for(SECOND);
    assert_eq!(sim.nodes[1].gossip.counters().unknown_message, unknown);
}

#[test]
fn trace_is_asked_of_hosts_that_know_it_and_told_once() {
    let packet = TracedPacket {
        protocol: 6,
        src: "10.42.1.5".parse().expect("an address"),
        dst: "10.42.2.5".parse().expect("an address"),
        src_port: 1000,
        dst_port: 443,
        size: 60,
        may_fragment: false,
    };
    let mut old = pair(FEATURE_CLOCK);
    let (second, now) = (old.id(1), old.now);
    assert_eq!(old.nodes[0].gossip.ask_trace(second, packet, now), None);

    let mut sim = pair(FEATURE_TRACE);
    let (first, second, now) = (sim.id(0), sim.id(1), sim.now);
    let nonce = sim.nodes[0].gossip.ask_trace(second, packet, now).expect("it can be asked");
    sim.run_for(Duration::from_millis(20));
    let asked = GossipEvent::TraceAsked { host: first, nonce, packet };
    assert_eq!(sim.nodes[1].events.iter().filter(|(_, event)| *event == asked).count(), 1);
    let answer = TraceAnswer { steps: vec![TraceStep::new("policy", TraceOutcome::Denied, "rule 1: deny tcp")] };
    for nonce in [nonce ^ 1, nonce, nonce] {
        sim.nodes[1].gossip.tell_trace(first, nonce, answer.clone());
    }
    sim.run_for(Duration::from_millis(20));
    let told: Vec<_> = sim.nodes[0].events.iter().filter(|(_, e)| matches!(e, GossipEvent::TraceTold { .. })).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].1, GossipEvent::TraceTold { nonce, answer });
}

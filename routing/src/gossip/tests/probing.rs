//! One probe round: the probe, its repetition, and what both say about loss and round trip.

use std::time::{Duration, Instant};

use super::sim::{Sim, member};
use crate::gossip::membership::Authority;
use crate::gossip::peer::Peer;
use crate::gossip::{GossipEvent, MemberState};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn lost_probe_is_repeated_before_anybody_else_is_asked() {
    let mut sim = Sim::new(2, 21);
    sim.run_until(SECOND * 5, |sim| sim.all_up() && sim.converged());
    sim.run_for(SECOND * 10 + Duration::from_millis(500));
    let second = sim.id(1);
    let view = |sim: &Sim| sim.nodes[0].gossip.member(second).expect("a member");
    assert_eq!(view(&sim).loss_percent, 0, "the control: nothing was lost yet");
    let sent = sim.sent.len();
    sim.nodes.iter_mut().for_each(|node| node.events.clear());
    // Everything of one instant is lost: both probes, the digests, the questions.
    sim.partition(&[0], &[1]);
    sim.run_until(SECOND * 2, |sim| sim.sent.len() > sent);
    sim.cut.clear();
    assert_eq!(view(&sim).loss_percent, 0);
    sim.run_for(Duration::from_millis(45));
    assert_eq!(view(&sim).loss_percent, 0, "it is too early for a repetition");
    sim.run_for(Duration::from_millis(20));
    let after = view(&sim);
    assert!(after.loss_percent > 0, "the first probe counts as lost");
    assert_eq!(after.state, MemberState::Up);
    let rtt = after.rtt.expect("measured");
    assert!(rtt < Duration::from_millis(5), "the answer belongs to the repetition: {rtt:?}");
    assert!(!sim.nodes[0].events.iter().any(|(_, event)| matches!(event, GossipEvent::MemberDown { .. })));
}

#[test]
fn probe_is_repeated_after_one_and_a_half_round_trips_or_not_at_all() {
    let now = Instant::now();
    let repetition = |rtt: Option<u64>| {
        let mut peer = Peer::new(member(0), Authority::Static, now, now);
        rtt.into_iter().for_each(|rtt| peer.measure(Duration::from_millis(rtt)));
        peer.probe_repetition().map(|pause| pause.as_millis())
    };
    assert_eq!([repetition(None), repetition(Some(1)), repetition(Some(200))], [Some(250), Some(50), Some(300)]);
    // Beyond two thirds of a second the longest time of a probe is over before an answer is late.
    assert_eq!([repetition(Some(600)), repetition(Some(667)), repetition(Some(3000))], [Some(900), None, None]);
}

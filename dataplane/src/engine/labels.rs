//! Rules about labels on the packet path: who is known, who has to be waited for, and whom no label speaks of.

use super::*;
use crate::policy::{DecidedBy, FlowEnd};
use crate::testing::*;
use crate::{Outcome, Tuple, Verdict, explain};

const RULES: &str = "allow tcp/80 from role=db to role=web\nallow tcp/5432 from role=web to role=db\ndefault deny";

fn syn(src: &str, dst: &str, port: u16) -> Vec<u8> {
    segment(src, 1000, dst, port, SYN, 1000, 0, 0)
}

#[test]
fn rules_match_by_the_labels_of_both_ends() {
    let mut world = World::new(RULES);
    let denied = Verdict::Drop(DropReason::PolicyDefault);
    assert_eq!(world.out(&mut syn("10.42.1.5", "10.42.2.5", 5432)), Verdict::Forward(H2));
    assert_eq!(world.out(&mut syn("fd42:0:0:1::5", "fd42:0:0:2::5", 5432)), denied, "it has no labels here");
    assert_eq!(world.out(&mut syn("10.42.1.6", "10.42.2.5", 5432)), denied, "another role");
    assert_eq!(world.out(&mut syn("10.42.1.7", "10.42.2.5", 5432)), denied, "none, which this host knows");
    assert_eq!(world.out(&mut syn("10.42.1.5", "10.42.2.6", 5432)), denied, "none, which its host told");
    assert_eq!(world.out(&mut syn("10.42.1.5", "10.42.2.5", 5433)), denied, "another port");
    assert_eq!(world.from(H2, &mut syn("10.42.2.5", "10.42.1.5", 80)), Verdict::Deliver);
    assert_eq!(world.from(H2, &mut syn("10.42.2.6", "10.42.1.5", 80)), denied);
    assert_eq!(world.out(&mut syn("10.42.1.5", "10.42.1.6", 5432)), denied, "on one host too");
}

#[test]
fn unknown_labels_wait_only_where_they_matter() {
    let mut world = World::new(RULES);
    let stranger = "10.42.2.9";
    assert_eq!(world.from(H2, &mut syn(stranger, "10.42.1.5", 80)), Verdict::Wait(ip(stranger)));
    assert_eq!(world.out(&mut syn("10.42.1.5", stranger, 5432)), Verdict::Wait(ip(stranger)));
    let denied = Verdict::Drop(DropReason::PolicyDefault);
    assert_eq!(world.from(H2, &mut syn(stranger, "10.42.1.6", 80)), denied, "no rule about it can match");
    assert_eq!(world.from(H2, &mut syn(stranger, "10.42.1.5", 81)), denied);
    assert!(world.flows().is_empty(), "nothing is remembered of what waits");
    // Where the rule and what follows it say the same, nobody waits.
    world.set_policy("allow tcp/80 from role=db to any\nallow tcp from any to 10.42.1.5\ndefault deny");
    assert_eq!(world.from(H2, &mut syn(stranger, "10.42.1.5", 80)), Verdict::Deliver);
    // With more rules in doubt than are looked at, it waits.
    let many: String = (0..100).map(|n| format!("allow tcp/80 from role=r{n} to any\n")).collect();
    world.set_policy(&format!("{many}allow tcp from any to 10.42.1.6\ndefault deny"));
    assert_eq!(world.from(H2, &mut syn(stranger, "10.42.1.6", 80)), Verdict::Wait(ip(stranger)));
    world.set_policy("reject tcp/80 from role=db to any\nallow tcp from any to 10.42.1.5\ndefault deny");
    assert_eq!(world.from(H2, &mut syn(stranger, "10.42.1.6", 80)), Verdict::Wait(ip(stranger)));
    // A rule before them decides.
    world.set_policy(&format!("allow tcp/80 from 10.42.2.0/24 to any\n{RULES}"));
    assert_eq!(world.from(H2, &mut syn(stranger, "10.42.1.6", 80)), Verdict::Deliver);
}

#[test]
fn labels_that_come_let_pass_and_labels_that_change_cut() {
    let mut world = World::new(RULES);
    let mut first = syn("10.42.2.9", "10.42.1.5", 80);
    assert_eq!(world.from(H2, &mut first), Verdict::Wait(ip("10.42.2.9")));
    let tell = |world: &mut World, labels: &str| {
        let known = [&LABELS[..], &[("10.42.2.9", labels)]].concat();
        world.tables.policy = policy_with(RULES, identities(&known));
        world.tables.revision += 1;
    };
    tell(&mut world, "role=db");
    assert_eq!(world.from(H2, &mut first), Verdict::Deliver);
    let mut answer = segment("10.42.1.5", 80, "10.42.2.9", 1000, SYN | ACK, 5000, 1001, 0);
    assert_eq!(world.out(&mut answer), Verdict::Forward(H2));
    // While they are unknown again the flow waits and is not forgotten.
    world.set_policy(RULES);
    let mut next = segment("10.42.2.9", 1000, "10.42.1.5", 80, ACK, 1001, 5001, 0);
    assert_eq!(world.from(H2, &mut next), Verdict::Wait(ip("10.42.2.9")));
    tell(&mut world, "role=db,zone=a");
    assert_eq!(world.from(H2, &mut next), Verdict::Deliver);
    tell(&mut world, "role=web");
    assert_eq!(world.from(H2, &mut next), Verdict::Drop(DropReason::PolicyRevoked));
    assert!(world.flows().is_empty());
}

#[test]
fn peer_without_authentication_matches_no_rule_about_labels() {
    let mut world =
        World::new(&format!("deny any from role=db to any\n{RULES}").replace("default deny", "default members"));
    assert_eq!(world.from(H2, &mut syn("10.42.2.5", "10.42.1.5", 80)), Verdict::Drop(DropReason::PolicyDeny));
    world.tables.peers[0].authenticated = false;
    world.tables.revision += 1;
    assert_eq!(world.from(H2, &mut syn("10.42.2.5", "10.42.1.5", 80)), Verdict::Deliver, "the default decides");
    assert_eq!(world.from(H2, &mut syn("10.42.2.9", "10.42.1.5", 80)), Verdict::Deliver, "and nobody waits");
    world.set_policy(RULES);
    assert_eq!(world.from(H2, &mut syn("10.42.2.5", "10.42.1.6", 80)), Verdict::Drop(DropReason::PolicyDefault));
    let mut out = syn("10.42.1.5", "10.42.2.5", 5432);
    assert_eq!(world.out(&mut out), Verdict::Drop(DropReason::PolicyDefault));
    world.tables.peers[0].authenticated = true;
    world.tables.revision += 1;
    assert_eq!(world.out(&mut out), Verdict::Forward(H2), "with authentication it matches");
}

#[test]
fn explanation_says_whose_labels_are_missing() {
    let tables = tables(RULES);
    let tuple = Tuple { src: ip("10.42.2.9"), dst: ip("10.42.1.5"), protocol: 6, src_port: 1000, dst_port: 80 };
    let step = explain(&tables, &tuple, |_| false).pop().expect("a step");
    assert_eq!(step.outcome, Outcome::Drop(DropReason::IdentityUnknown));
    assert_eq!(step.decided_by, Some(DecidedBy::Labels { rule: 0, of: FlowEnd::Source }));
    assert!(step.detail.contains("rule 1: allow tcp/80 from role=db to role=web"), "{}", step.detail);
    assert!(step.detail.contains("labels of 10.42.2.9, owned by h2, are not known here"), "{}", step.detail);
}

#[test]
fn first_fragment_of_unknown_labels_takes_its_datagram_along() {
    let mut world = World::new("allow udp from role=db to any\ndefault deny");
    let mut bytes = udp("10.42.2.9", 1000, "10.42.1.5", 53, 1000);
    bytes[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
    overlay_wire::checksum::fill_ipv4_header(&mut bytes, 20);
    assert_eq!(world.from(H2, &mut bytes), Verdict::Drop(DropReason::IdentityUnknown));
}

#[test]
fn flows_to_peers_are_announced_where_rules_speak_of_labels() {
    let mut world = World::new(RULES);
    world.connect("10.42.1.5", 1000, "10.42.2.5", 5432);
    assert_eq!(world.engine.take_introductions(), [(ip("10.42.1.5"), H2)]);
    assert!(world.engine.take_introductions().is_empty());
    let mut world = World::new("default members");
    world.connect("10.42.1.5", 1000, "10.42.2.5", 5432);
    assert!(world.engine.take_introductions().is_empty(), "it costs nothing where no rule does");
}

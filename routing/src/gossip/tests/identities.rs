//! Labels of containers: spread, asked for, withdrawn, and refused where the signer does not own the address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use overlay_wire::gossip::Labels;
use overlay_wire::gossip::identities::Identities;

use super::sim::{Sim, own_host, prefix};
use crate::gossip::GossipEvent;

const SECOND: Duration = Duration::from_secs(1);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address in a test")
}

fn role(role: &str) -> Labels {
    Labels::from([("role".to_owned(), role.to_owned())])
}

fn publish(sim: &mut Sim, at: usize, list: &[(&str, &str)]) -> usize {
    let labels = |text: &str| if text.is_empty() { Labels::new() } else { role(text) };
    let identities: Identities = list.iter().map(|(address, text)| (ip(address), labels(text))).collect();
    let now = sim.now;
    sim.nodes[at].gossip.publish_identities(&identities, now)
}

/// What a node knows of an address: `None` is unknown, else the role.
fn known(sim: &Sim, at: usize, address: &str) -> Option<String> {
    let labels = sim.nodes[at].gossip.identities().labels(ip(address))?;
    Some(labels.get("role").cloned().unwrap_or_default())
}

fn met(count: usize, seed: u64) -> Sim {
    let mut sim = Sim::new(count, seed);
    sim.run_until(SECOND * 5, |sim| sim.all_up() && sim.converged());
    sim
}

fn refusals(sim: &mut Sim, at: usize) -> Vec<(IpAddr, usize)> {
    let events = std::mem::take(&mut sim.nodes[at].events);
    let refusal = |(_, event): (Duration, GossipEvent)| match event {
        GossipEvent::IdentityRefused { address, count, .. } => Some((address, count)),
        _ => None,
    };
    events.into_iter().filter_map(refusal).collect()
}

#[test]
fn labels_are_with_every_member_of_a_small_cluster_at_once() {
    let mut sim = met(5, 1);
    assert_eq!(known(&sim, 1, "10.42.1.9"), None, "its host has not spoken of it");
    assert_eq!(known(&sim, 0, "10.42.1.9").as_deref(), Some(""), "its host knows that it has none");
    publish(&mut sim, 0, &[("10.42.1.9", "web"), ("10.42.1.10", "")]);
    assert_eq!(known(&sim, 0, "10.42.1.9").as_deref(), Some("web"));
    let all =
        |sim: &Sim, address: &str, wanted: Option<&str>| (1..5).all(|at| known(sim, at, address).as_deref() == wanted);
    let took = sim.run_until(SECOND, |sim| all(sim, "10.42.1.9", Some("web")));
    assert!(took < Duration::from_millis(50), "{took:?}");
    assert!(all(&sim, "10.42.1.10", Some("")) && all(&sim, "10.42.1.11", None));
    // Changed, and gone with the container.
    publish(&mut sim, 0, &[("10.42.1.9", "db")]);
    sim.run_until(SECOND, |sim| all(sim, "10.42.1.9", Some("db")) && all(sim, "10.42.1.10", None));
    publish(&mut sim, 0, &[]);
    sim.run_until(SECOND, |sim| all(sim, "10.42.1.9", None));
}

#[test]
fn record_that_was_lost_comes_when_it_is_asked_for() {
    let mut sim = met(2, 2);
    sim.partition(&[0], &[1]);
    publish(&mut sim, 0, &[("10.42.1.8", "other"), ("10.42.1.9", "web")]);
    sim.run_for(Duration::from_millis(10));
    assert_eq!(known(&sim, 1, "10.42.1.9"), None);
    sim.cut.clear();
    let (now, host) = (sim.now, sim.id(0));
    sim.nodes[1].gossip.ask_identities(host, now);
    let took = sim.run_until(SECOND, |sim| known(sim, 1, "10.42.1.9").as_deref() == Some("web"));
    assert!(took < Duration::from_millis(50), "{took:?}");
    // Asked again at once, it does not ask again.
    let (sent, now, host) = (sim.nodes[1].gossip.counters().sent, sim.now, sim.id(0));
    for _ in 0..100 {
        sim.nodes[1].gossip.ask_identities(host, now);
    }
    sim.run_for(Duration::from_millis(1));
    assert!(sim.nodes[1].gossip.counters().sent - sent < 10);
}

#[test]
fn member_that_a_flow_begins_towards_gets_the_labels_at_once() {
    let mut sim = met(20, 7);
    // One that is not told at once, and hears nothing of it while the others do.
    let at = (1..20).max_by_key(|at| sim.id(*at)).expect("there are others");
    let others: Vec<usize> = (0..20).filter(|other| *other != at).collect();
    sim.partition(&[at], &others);
    publish(&mut sim, 0, &[("10.42.1.9", "web")]);
    sim.run_for(Duration::from_millis(5));
    sim.cut.clear();
    assert!(others.iter().all(|other| known(&sim, *other, "10.42.1.9").is_some()));
    sim.run_for(Duration::from_millis(5));
    assert_eq!(known(&sim, at, "10.42.1.9"), None, "by itself it takes longer");
    let host = sim.id(at);
    sim.nodes[0].gossip.introduce_identity(host, ip("10.42.1.9"));
    let took = sim.run_until(SECOND, |sim| known(sim, at, "10.42.1.9").is_some());
    assert!(took < Duration::from_millis(5), "{took:?}");
    // It has that now.
    let sent = sim.nodes[0].gossip.counters().sent;
    sim.nodes[0].gossip.introduce_identity(host, ip("10.42.1.9"));
    sim.run_for(Duration::from_micros(1));
    assert_eq!(sim.nodes[0].gossip.counters().sent, sent);
}

#[test]
fn labels_of_others_addresses_and_of_hosts_do_not_count() {
    let mut sim = met(3, 3);
    publish(&mut sim, 0, &[("10.42.1.9", "batch")]);
    sim.run_until(SECOND, |sim| known(sim, 2, "10.42.1.9").is_some());
    (0..3).for_each(|at| drop(refusals(&mut sim, at)));
    // Another's container, another's host, its own host, and a container of its own.
    publish(&mut sim, 1, &[("10.42.1.9", "web"), ("10.42.1.1", "web"), ("10.42.2.1", "web"), ("10.42.2.9", "web")]);
    sim.run_until(SECOND, |sim| known(sim, 2, "10.42.2.9").as_deref() == Some("web"));
    for at in [0, 2] {
        assert_eq!(known(&sim, at, "10.42.1.9").as_deref(), Some("batch"));
        assert_eq!(known(&sim, at, "10.42.1.1").as_deref(), Some(""));
        assert_eq!(known(&sim, at, "10.42.2.1").as_deref(), Some(""));
        let refused = refusals(&mut sim, at);
        assert_eq!(
            refused.iter().map(|(_, count)| count).collect::<BTreeSet<_>>(),
            BTreeSet::from([&3]),
            "{refused:?}"
        );
        assert_eq!(sim.nodes[at].gossip.counters().identities_refused, 3);
    }
    // Told once for one record, whatever else happens.
    publish(&mut sim, 0, &[("10.42.1.9", "batch"), ("10.42.1.10", "")]);
    sim.run_until(SECOND, |sim| known(sim, 2, "10.42.1.10").is_some());
    assert!(refusals(&mut sim, 2).is_empty());
}

#[test]
fn labels_follow_the_owner_of_the_prefix_and_survive_a_restart_of_the_reader() {
    let mut sim = met(3, 4);
    publish(&mut sim, 1, &[("10.42.2.9", "web")]);
    sim.run_until(SECOND, |sim| known(sim, 0, "10.42.2.9").is_some());
    sim.restart(0);
    sim.run_until(SECOND * 10, |sim| known(sim, 0, "10.42.2.9").as_deref() == Some("web"));
    // Without the prefix nothing of it is left, and nobody is waited for.
    let mut own = own_host(1);
    own.prefixes = vec![prefix("fd42:0:0:2::/64")];
    let now = sim.now;
    sim.nodes[1].gossip.set_own_host(own, now).expect("it fits");
    sim.run_until(SECOND * 5, |sim| sim.nodes[0].gossip.rib().owner(ip("10.42.2.9")).is_none());
    assert_eq!(known(&sim, 0, "10.42.2.9").as_deref(), Some(""));
}

#[test]
fn own_records_of_an_earlier_run_are_withdrawn() {
    let mut sim = met(2, 5);
    publish(&mut sim, 1, &[("10.42.2.9", "web")]);
    sim.run_until(SECOND, |sim| known(sim, 0, "10.42.2.9").is_some());
    sim.restart(1);
    sim.run_until(SECOND * 20, |sim| known(sim, 0, "10.42.2.9").is_none());
    publish(&mut sim, 1, &[("10.42.2.10", "db")]);
    sim.run_until(SECOND * 20, |sim| known(sim, 0, "10.42.2.10").as_deref() == Some("db"));
}

#[test]
fn thousands_of_containers_fit_and_the_rest_is_told() {
    let mut sim = met(2, 6);
    let address = |n: usize| format!("10.42.1.{}", n % 250 + 2);
    let list: Vec<String> = (0..250).map(address).collect();
    let list: Vec<(&str, &str)> = list.iter().map(|address| (address.as_str(), "web")).collect();
    assert_eq!(publish(&mut sim, 0, &list), 0);
    sim.run_until(SECOND * 5, |sim| list.iter().all(|(address, _)| known(sim, 1, address).is_some()));
    let wide: Identities = (0..9000u128)
        .map(|n| (IpAddr::from((0xfd42_0000_0000_0001u128 << 64 | n).to_be_bytes()), role(&format!("r{n}"))))
        .collect();
    let now = sim.now;
    let left_out = sim.nodes[0].gossip.publish_identities(&wide, now);
    assert!((1..9000).contains(&left_out), "{left_out}");
}

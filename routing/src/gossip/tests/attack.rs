//! What attackers send: replays, garbage, forged records, lies about others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::{HostBody, Message, Record, RecordKey, RecordKind, RouteAnnouncement, RoutesBody};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::sim::{Sim, address, key, member, own_host, prefix};
use crate::gossip::{Gossip, GossipConfig, GossipEvent, MemberState, cluster_id};
use crate::identity::IdentityKey;

const SECOND: Duration = Duration::from_secs(1);

fn outputs(gossip: &mut Gossip) -> (usize, usize) {
    let transmits = std::iter::from_fn(|| gossip.poll_transmit()).count();
    let events = std::iter::from_fn(|| gossip.poll_event()).count();
    (transmits, events)
}

fn sign(key: &IdentityKey, mut record: Record) -> Record {
    record.signature = key.sign(&record.signed_bytes(&cluster_id("prod")));
    record
}

fn routes_record(key: &IdentityKey, version: u64, routes: &[&str]) -> Record {
    let routes = routes.iter().map(|text| RouteAnnouncement { prefix: prefix(text), metric: 0 }).collect();
    let body = RoutesBody { routes, extension: Vec::new() }.encode().expect("fits");
    let key_of = RecordKey { owner: key.host_id(), kind: RecordKind::ROUTES, shard: 0 };
    sign(key, Record { key: key_of, version, body, signature: [0; 64] })
}

type Summary = (Vec<Record>, Vec<(HostId, MemberState, Option<SocketAddr>)>, Vec<crate::rib::Claim>);

fn summary(gossip: &Gossip) -> Summary {
    let members = gossip.members().into_iter().map(|view| (view.host, view.state, view.endpoint));
    (gossip.records().cloned().collect(), members.collect(), gossip.rib().claims().to_vec())
}

#[test]
fn replayed_datagrams_change_nothing_and_are_not_answered() {
    let mut sim = Sim::new(3, 31);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    sim.run_for(SECOND * 5);
    let victim = sim.nodes[0].address;
    let recorded: Vec<_> = sim.sent.iter().filter(|(_, to, _)| *to == victim).cloned().collect();
    assert!(recorded.len() > 20);
    let now = sim.now;
    let gossip = &mut sim.nodes[0].gossip;
    let before = summary(gossip);
    outputs(gossip);
    for (from, _, bytes) in &recorded {
        gossip.handle_datagram(*from, bytes, now);
        gossip.handle_datagram("203.0.113.66:7".parse().expect("address"), bytes, now);
    }
    assert_eq!(outputs(gossip), (0, 0));
    assert!(summary(gossip) == before);
    let counters = gossip.counters();
    assert!(counters.replayed + counters.rate_limited + counters.unknown_sender >= recorded.len() as u64);
}

#[test]
fn replay_after_a_restart_of_the_receiver_leads_to_no_false_contact() {
    let mut sim = Sim::new(2, 32);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    sim.run_for(SECOND * 3);
    let victim = sim.nodes[0].address;
    let recorded: Vec<_> = sim.sent.iter().filter(|(_, to, _)| *to == victim).cloned().collect();
    sim.nodes[1].alive = false;
    sim.restart(0);
    let now = sim.now;
    for (from, _, bytes) in &recorded {
        sim.nodes[0].gossip.handle_datagram(*from, bytes, now);
    }
    sim.run_for(SECOND * 5);
    assert_ne!(sim.state(1, 0), MemberState::Up);
    sim.nodes[1].alive = true;
    sim.run_until(SECOND * 10, Sim::all_up);
}

#[test]
fn garbage_and_mutated_datagrams_give_no_output() {
    let mut sim = Sim::new(2, 33);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    sim.run_for(SECOND * 2);
    let recorded: Vec<_> = sim.sent.clone();
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    let mut now = sim.now;
    let gossip = &mut sim.nodes[0].gossip;
    let before = summary(gossip);
    outputs(gossip);
    for round in 0..4000u32 {
        // Slowly, so that the limiter is not what keeps it silent.
        now += Duration::from_millis(60);
        let mut bytes = if round % 2 == 0 {
            recorded[rng.next_u32() as usize % recorded.len()].2.clone()
        } else {
            let mut bytes = vec![0; rng.next_u32() as usize % 1600];
            rng.fill_bytes(&mut bytes);
            if let Some(first) = bytes.first_mut() {
                *first = 0x20 + (round % 3) as u8;
            }
            bytes
        };
        if let Some(at) = (!bytes.is_empty()).then(|| rng.next_u32() as usize % bytes.len()) {
            bytes[at] ^= 1 << (rng.next_u32() % 8);
        }
        if round % 7 == 0 {
            bytes.truncate(rng.next_u32() as usize % (bytes.len() + 1));
        }
        gossip.handle_datagram(address(1), &bytes, now);
    }
    assert_eq!(outputs(gossip), (0, 0));
    assert!(summary(gossip) == before);
}

#[test]
fn every_single_flipped_bit_of_first_contact_is_silent() {
    let mut sim = Sim::new(2, 34);
    let now = sim.now;
    sim.nodes[1].gossip.handle_timeout(now);
    let introduce = sim.nodes[1].gossip.poll_transmit().expect("a first contact");
    let target = &mut sim.nodes[0].gossip;
    outputs(target);
    let mut later = now;
    for bit in 0..introduce.bytes.len() * 8 {
        let mut bytes = introduce.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        later += Duration::from_millis(60);
        target.handle_datagram(address(1), &bytes, later);
    }
    assert_eq!(outputs(target), (0, 0));
    // The positive control: the untouched datagram is answered.
    target.handle_datagram(address(1), &introduce.bytes, later);
    assert!(outputs(target).0 > 0);
}

#[test]
fn stranger_and_wrong_cluster_are_met_with_silence() {
    let start = Instant::now();
    let config = |identity: IdentityKey, cluster: &str, members: Vec<_>| GossipConfig {
        identity,
        cluster: cluster_id(cluster),
        own: own_host(5),
        members,
        foreign: Vec::new(),
    };
    let target = || Gossip::new(config(key(0), "prod", vec![member(1)]), [1; 32], start, 5).expect("valid");
    for (who, cluster, answered) in [(1, "prod", true), (2, "prod", false), (1, "other", false)] {
        let mut sender = Gossip::new(config(key(who), cluster, vec![member(0)]), [2; 32], start, 5).expect("valid");
        sender.handle_timeout(start);
        let datagram = sender.poll_transmit().expect("a first contact");
        let mut target = target();
        outputs(&mut target);
        target.handle_datagram(address(who), &datagram.bytes, start);
        assert_eq!(outputs(&mut target).0 > 0, answered, "h{} of {cluster}", who + 1);
    }
}

#[test]
fn forged_announcements_change_no_route_anywhere() {
    let mut sim = Sim::new(10, 35);
    sim.run_until(SECOND * 3, |sim| sim.all_up() && sim.converged());
    let owners = |sim: &Sim| -> Vec<_> {
        sim.nodes
            .iter()
            .map(|node| node.gossip.rib().best().map(|claim| (claim.prefix, claim.owner)).collect::<Vec<_>>())
            .collect()
    };
    let before = owners(&sim);
    let forged = [
        "0.0.0.0/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "::/0",
        "2000::/3",
        "10.0.0.0/8",
        "10.42.0.0/16",
        "10.42.0.0/23",
        "10.42.1.0/24",
        "10.42.1.0/25",
        "10.42.1.128/25",
        "10.42.1.7/32",
        "10.42.2.0/24",
        "10.42.2.64/26",
        "10.42.2.9/32",
        "10.42.3.0/24",
        "10.42.8.0/22",
        "10.43.0.0/16",
        "172.16.0.0/12",
        "172.16.1.0/24",
        "172.16.2.1/32",
        "192.0.2.1/32",
        "192.0.2.0/24",
        "127.0.0.0/8",
        "127.0.0.1/32",
        "169.254.169.254/32",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "fe80::/10",
        "ff02::1/128",
        "::1/128",
        "192.168.7.0/24",
    ];
    let now = sim.now;
    for prefixes in forged.chunks(8) {
        let routes = prefixes.iter().map(|text| RouteAnnouncement { prefix: prefix(text), metric: 0 }).collect();
        let now = sim.now.max(now);
        sim.nodes[9].gossip.announce(routes, now).expect("few routes");
        sim.run_for(SECOND * 2);
        assert!(sim.converged());
        // The liar may believe in its own routes; nobody else does.
        assert_eq!(owners(&sim)[..9], before[..9]);
        for node in &sim.nodes[..9] {
            let refused: Vec<_> = node.gossip.rib().refused().map(|refused| refused.claim.prefix).collect();
            let announced: Vec<_> = prefixes.iter().map(|text| prefix(text)).collect();
            assert!(announced.iter().all(|prefix| refused.contains(prefix)), "{refused:?}");
        }
    }
    for node in &sim.nodes[..9] {
        let alarms = node.events.iter().filter(|(_, event)| matches!(event, GossipEvent::RouteRefused(_))).count();
        assert_eq!(alarms, forged.len());
    }
}

/// Drives a member whose keys the attacker has: seals any message to node 0.
struct Insider {
    gossip: Gossip,
    secret: IdentityKey,
}

impl Insider {
    /// Node 1's process stays as it is; only the messages it sends are of our choosing.
    fn take_over(sim: &mut Sim) -> Self {
        let gossip = std::mem::replace(
            &mut sim.nodes[1].gossip,
            Gossip::new(
                GossipConfig {
                    identity: key(200),
                    cluster: [0; 32],
                    own: own_host(1),
                    members: Vec::new(),
                    foreign: Vec::new(),
                },
                [0; 32],
                sim.now,
                1,
            )
            .expect("valid"),
        );
        Self { gossip, secret: key(1) }
    }

    fn say(&mut self, sim: &mut Sim, message: &Message) {
        let to = sim.id(0);
        outputs(&mut self.gossip);
        self.gossip.send(to, message);
        let datagram = self.gossip.poll_transmit().expect("a pair with node 0");
        let now = sim.now;
        sim.nodes[0].gossip.handle_datagram(address(1), &datagram.bytes, now);
    }
}

#[test]
fn insider_cannot_write_or_roll_back_records_of_others() {
    let mut sim = Sim::new(3, 36);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    let old: Vec<Record> = sim.nodes[0].gossip.records().cloned().collect();
    let now = sim.now;
    sim.nodes[2]
        .gossip
        .announce(vec![RouteAnnouncement { prefix: prefix("172.16.3.0/24"), metric: 1 }], now)
        .expect("few");
    sim.run_until(SECOND * 2, Sim::converged);
    let before = summary(&sim.nodes[0].gossip);
    let mut insider = Insider::take_over(&mut sim);
    let victim = sim.id(2);
    let key_of = |kind| RecordKey { owner: victim, kind, shard: 0 };
    let mut forged = vec![
        // A tombstone, a body and an unknown kind in the victim's name, signed with the insider's key.
        sign(
            &insider.secret,
            Record { key: key_of(RecordKind::ROUTES), version: u64::MAX, body: vec![], signature: [0; 64] },
        ),
        sign(
            &insider.secret,
            Record { key: key_of(RecordKind::HOST), version: u64::MAX, body: vec![], signature: [0; 64] },
        ),
        sign(&insider.secret, Record { key: key_of(RecordKind(9)), version: 1, body: vec![1], signature: [0; 64] }),
        // Of another cluster.
        {
            let mut record = routes_record(&key(2), u64::MAX, &["10.42.1.0/24"]);
            record.signature = key(2).sign(&record.signed_bytes(&cluster_id("other")));
            record
        },
        // Of a host that is no member.
        routes_record(&key(77), 1, &["10.42.1.0/24"]),
    ];
    forged.extend(old);
    for record in forged {
        insider.say(&mut sim, &Message::Records(vec![record]));
    }
    assert!(summary(&sim.nodes[0].gossip) == before);
    assert!(sim.nodes[0].gossip.counters().records_refused >= 5);
}

#[test]
fn insider_with_a_bad_body_is_refused_and_unknown_kinds_are_relayed() {
    let mut sim = Sim::new(3, 37);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    let mut insider = Insider::take_over(&mut sim);
    let owner = insider.secret.host_id();
    let record = |kind, body: Vec<u8>| Record {
        key: RecordKey { owner, kind, shard: 0 },
        version: u64::MAX,
        body,
        signature: [0; 64],
    };
    for bad in [record(RecordKind::HOST, vec![9; 40]), record(RecordKind::ROUTES, vec![1, 200])] {
        let bad = sign(&insider.secret, bad);
        insider.say(&mut sim, &Message::Records(vec![bad]));
    }
    assert_eq!(sim.nodes[0].gossip.counters().records_refused, 2);
    let unknown = sign(&insider.secret, record(RecordKind(4711), b"from the future".to_vec()));
    insider.say(&mut sim, &Message::Records(vec![unknown.clone()]));
    sim.run_for(SECOND * 2);
    assert!(sim.nodes[2].gossip.records().any(|held| *held == unknown));
}

#[test]
fn lies_about_a_healthy_member_take_nobody_down() {
    let mut sim = Sim::new(4, 38);
    sim.run_until(SECOND, Sim::all_up);
    let mut insider = Insider::take_over(&mut sim);
    let victim = sim.id(2);
    for _ in 0..500 {
        insider.say(&mut sim, &Message::Suspect { host: victim });
        insider.say(&mut sim, &Message::IndirectAck { nonce: 5, target: victim });
        sim.run_for(Duration::from_millis(10));
    }
    assert_eq!((sim.state(2, 0), sim.state(3, 0)), (MemberState::Up, MemberState::Up));
    let down = |event: &GossipEvent| matches!(event, GossipEvent::MemberDown { host, .. } if *host == victim);
    assert!(!sim.nodes[0].events.iter().any(|(_, event)| down(event)));
}

#[test]
fn equivocation_is_settled_alike_everywhere_and_reported() {
    let records: Vec<Record> =
        ["10.42.2.0/25", "10.42.2.128/25"].iter().map(|text| routes_record(&key(1), u64::MAX, &[*text])).collect();
    let mut results = BTreeMap::new();
    for order in [[0, 1], [1, 0]] {
        let mut sim = Sim::new(3, 39);
        sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
        let mut insider = Insider::take_over(&mut sim);
        for at in order {
            insider.say(&mut sim, &Message::Records(vec![records[at].clone()]));
        }
        sim.run_for(SECOND * 2);
        let alarm = |(_, event): &(Duration, GossipEvent)| matches!(event, GossipEvent::Equivocation { .. });
        assert!(sim.nodes[0].events.iter().any(alarm));
        let held: Vec<Record> = sim.nodes[2].gossip.records().filter(|r| r.version == u64::MAX).cloned().collect();
        assert_eq!(held.len(), 1);
        results.insert(order, held);
    }
    assert_eq!(results[&[0, 1]], results[&[1, 0]]);
}

#[test]
fn small_order_box_key_gives_no_channel() {
    let mut sim = Sim::new(2, 40);
    let host = key(1);
    let own = own_host(1);
    let body = HostBody {
        name: own.name,
        boot_epoch: 1,
        box_key: [0; 32],
        wireguard_key: [1; 32],
        encapsulation: own.encapsulation,
        mtu: own.mtu,
        versions: (1, 1),
        features: 0,
        software: own.software,
        endpoints: own.endpoints,
        prefixes: own.prefixes,
        extension: Vec::new(),
    };
    let key_of = RecordKey { owner: host.host_id(), kind: RecordKind::HOST, shard: 0 };
    let body = body.encode().expect("fits");
    let now = sim.now;
    sim.nodes[0].gossip.accept_record(sign(&host, Record { key: key_of, version: 9, body, signature: [0; 64] }), now);
    assert_eq!(sim.nodes[0].gossip.gre_keys(host.host_id(), now), None);
    assert_eq!(sim.nodes[0].gossip.records().filter(|record| record.key == key_of).count(), 1);
}

#[test]
fn two_runs_of_one_identity_raise_alarms() {
    let mut sim = Sim::new(2, 41);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    let config = GossipConfig {
        identity: key(0),
        cluster: cluster_id("prod"),
        own: own_host(0),
        members: vec![member(1)],
        foreign: Vec::new(),
    };
    let now = sim.now;
    let mut clone = Gossip::new(config, [9; 32], now, 1_000_000).expect("valid");
    clone.handle_timeout(now);
    let first_contact = clone.poll_transmit().expect("a first contact");
    sim.nodes[1].gossip.handle_datagram("203.0.113.5:9".parse().expect("address"), &first_contact.bytes, now);
    sim.run_for(SECOND * 20);
    let older = |(_, event): &&(Duration, GossipEvent)| matches!(event, GossipEvent::IdentityInUseTwice { .. });
    assert_eq!(sim.nodes[1].events.iter().filter(older).count(), 1);
    // The clone's record reaches the first run by any other way: an alarm there, too.
    let record = clone.records().find(|record| record.key.kind == RecordKind::HOST).cloned().expect("its own");
    let now = sim.now;
    sim.nodes[0].gossip.accept_record(record, now);
    sim.run_for(Duration::from_millis(1));
    let elsewhere = |(_, event): &&(Duration, GossipEvent)| matches!(event, GossipEvent::OwnIdentityElsewhere { .. });
    assert_eq!(sim.nodes[0].events.iter().filter(elsewhere).count(), 1);
}

#[test]
fn member_that_withdraws_its_host_record_goes_down() {
    let mut sim = Sim::new(2, 42);
    sim.run_until(SECOND, |sim| sim.all_up() && sim.converged());
    let host = key(1);
    let key_of = RecordKey { owner: host.host_id(), kind: RecordKind::HOST, shard: 0 };
    let record = sign(&host, Record { key: key_of, version: u64::MAX, body: vec![], signature: [0; 64] });
    let now = sim.now;
    sim.nodes[0].gossip.accept_record(record, now);
    assert_eq!(sim.state(1, 0), MemberState::Down);
    sim.nodes[0].gossip.handle_timeout(now);
    assert!(sim.nodes[0].gossip.rib().owner("10.42.2.1".parse().expect("address")).is_none());
}

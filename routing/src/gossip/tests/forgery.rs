//! What attackers try against certificates, authorities and policies. Each has its control: the honest form counts.

use std::net::SocketAddr;

use overlay_wire::HostId;
use overlay_wire::gossip::{HostBody, Record, RecordKey, RecordKind};
use overlay_wire::membership::certificate::certificate_body;
use overlay_wire::membership::{AuthorityBody, Certificate, PolicyShard, Rights, Serial, SignedCertificate};
use overlay_wire::{Encapsulation, Mtu};

use super::certified::{NOW, SECOND, all_know_all, bare, ca, certify, cluster, membership, said};
use super::sim::{address, key};
use crate::gossip::policy::policy_hash;
use crate::gossip::{Gossip, MAX_MEMBERS, Membership, cluster_id};
use crate::identity::IdentityKey;
use crate::membership::ca_id;

fn signed(key: &IdentityKey, owner: HostId, kind: RecordKind, shard: u16, version: u64, body: Vec<u8>) -> Record {
    let mut record = Record { key: RecordKey { owner, kind, shard }, version, body, signature: [0; 64] };
    record.signature = key.sign(&record.signed_bytes(&cluster_id("prod")));
    record
}

fn certificate_record(key: &IdentityKey, certificate: &SignedCertificate) -> Record {
    signed(key, key.host_id(), RecordKind::CERTIFICATE, 0, 5000, certificate_body(certificate))
}

/// A running machine of node 0, and the time.
fn target() -> (Gossip, std::time::Instant) {
    let mut sim = cluster(3, 81);
    sim.run_until(SECOND * 10, all_know_all);
    let now = sim.now;
    (sim.nodes.remove(0).gossip, now)
}

/// Hands records over as a member that relays them would.
fn relay(gossip: &mut Gossip, record: Record, now: std::time::Instant) {
    gossip.accept_record(record, now);
    gossip.settle_routes();
}

#[test]
fn certificate_counts_only_from_a_trusted_authority_for_its_own_subject() {
    let (mut gossip, now) = target();
    let good = certify(&ca(1), said(9));
    let other_cluster = ca(1).certify(&cluster_id("other"), said(9)).expect("fits");
    let mut changed = good.clone();
    changed.certificate.rights = Rights::POLICY;
    let mut renamed = certify(&ca(7), said(9));
    renamed.certificate.ca = ca(1).id();
    let forged = [
        ("another authority", certificate_record(&key(9), &certify(&ca(7), said(9)))),
        ("another authority under our name", certificate_record(&key(9), &renamed)),
        ("another cluster", certificate_record(&key(9), &other_cluster)),
        ("more rights than signed", certificate_record(&key(9), &changed)),
        ("somebody else's certificate", certificate_record(&key(10), &good)),
        (
            "signed by another key",
            signed(&key(10), key(9).host_id(), RecordKind::CERTIFICATE, 0, 5, certificate_body(&good)),
        ),
        ("another shard", signed(&key(9), key(9).host_id(), RecordKind::CERTIFICATE, 1, 5, certificate_body(&good))),
        ("no certificate", signed(&key(9), key(9).host_id(), RecordKind::ROUTES, 0, 5, Vec::new())),
        ("withdrawn", signed(&key(9), key(9).host_id(), RecordKind::CERTIFICATE, 0, 5, Vec::new())),
    ];
    for (what, record) in forged {
        relay(&mut gossip, record, now);
        assert_eq!(gossip.members().len(), 2, "{what}");
    }
    assert_eq!(gossip.counters().records_refused, 9);
    relay(&mut gossip, certificate_record(&key(9), &good), now);
    assert_eq!(gossip.members().len(), 3, "the control");
    let view = gossip.member(key(9).host_id()).expect("a member");
    assert_eq!(view.name, "h10");
}

#[test]
fn member_cannot_withdraw_or_swap_its_certificate_for_a_forged_one() {
    let (mut gossip, now) = target();
    let host = key(1).host_id();
    let before = gossip.member(host).expect("a member").authority;
    let greedy = Certificate { rights: Rights::POLICY | Rights::ISSUER, ..said(1) };
    for body in
        [Vec::new(), certificate_body(&certify(&ca(7), greedy.clone())), certificate_body(&certify(&ca(1), said(2)))]
    {
        relay(&mut gossip, signed(&key(1), host, RecordKind::CERTIFICATE, 0, u64::MAX / 2, body), now);
        assert_eq!(gossip.member(host).expect("still a member").authority, before);
    }
    let body = certificate_body(&certify(&ca(1), greedy));
    relay(&mut gossip, signed(&key(1), host, RecordKind::CERTIFICATE, 0, u64::MAX / 2, body), now);
    assert_ne!(gossip.member(host).expect("a member").authority, before, "the control");
}

#[test]
fn only_an_authority_revokes() {
    let (mut gossip, now) = target();
    let victim = key(2).host_id();
    let body = AuthorityBody::Revoked(vec![victim]).encode().expect("fits");
    let owner = ca(1).id().as_owner();
    let by_stranger = IdentityKey::from_bytes(&[7; 32]);
    let forged = [
        signed(&key(1), key(1).host_id(), RecordKind::AUTHORITY, 1, 9, body.clone()),
        signed(&key(1), owner, RecordKind::AUTHORITY, 1, 9, body.clone()),
        signed(&by_stranger, ca(7).id().as_owner(), RecordKind::AUTHORITY, 1, 9, body.clone()),
    ];
    for record in forged {
        relay(&mut gossip, record, now);
        assert!(gossip.member(victim).is_some() && gossip.revoked().is_empty());
    }
    let authority = IdentityKey::from_bytes(&[1; 32]);
    let genuine = |shard, body| signed(&authority, owner, RecordKind::AUTHORITY, shard, 9, body);
    // In the shard of keys, or withdrawn, it is not taken either.
    relay(&mut gossip, genuine(0, body.clone()), now);
    relay(&mut gossip, genuine(1, Vec::new()), now);
    assert!(gossip.member(victim).is_some());
    relay(&mut gossip, genuine(1, body), now);
    assert!(gossip.member(victim).is_none(), "the control");
    // A later version without the host does not bring it back.
    let other = AuthorityBody::Revoked(vec![HostId([9; 16])]).encode().expect("fits");
    let mut later = genuine(1, other);
    later.version = 10;
    later.signature = authority.sign(&later.signed_bytes(&cluster_id("prod")));
    relay(&mut gossip, later, now);
    assert!(gossip.revoked().contains(&victim));
    relay(&mut gossip, certificate_record(&key(2), &certify(&ca(1), said(2))), now);
    assert!(gossip.member(victim).is_none());
}

#[test]
fn only_the_right_in_a_valid_certificate_writes_policy() {
    let (mut gossip, now) = target();
    let host = key(1).host_id();
    let publish = |gossip: &mut Gossip, revision: u64| {
        let text = "default open\n";
        let shards = PolicyShard::cut(revision, policy_hash(text), text.as_bytes()).expect("short");
        for (shard, piece) in (0..).zip(shards) {
            relay(gossip, signed(&key(1), host, RecordKind::POLICY, shard, 5000 + revision, piece.encode()), now);
        }
    };
    publish(&mut gossip, 1);
    assert_eq!(gossip.policy(), None);
    // With the right but a wrong hash, or a missing piece, there is nothing whole.
    let lawful = Certificate { rights: Rights::POLICY, serial: Serial(70), ..said(1) };
    relay(
        &mut gossip,
        signed(&key(1), host, RecordKind::CERTIFICATE, 0, 6000, certificate_body(&certify(&ca(1), lawful))),
        now,
    );
    assert_eq!(gossip.policy().map(|policy| policy.revision), Some(1), "the control: the right makes it count");
    let wrong = PolicyShard { revision: 2, hash: [1; 32], count: 1, piece: b"default deny\n".to_vec() };
    relay(&mut gossip, signed(&key(1), host, RecordKind::POLICY, 0, 7000, wrong.encode()), now);
    let partial = PolicyShard { revision: 3, hash: [1; 32], count: 2, piece: vec![b'#'; 960] };
    relay(&mut gossip, signed(&key(1), host, RecordKind::POLICY, 0, 7001, partial.encode()), now);
    assert_eq!(gossip.policy().map(|policy| policy.revision), Some(1));
    // An older revision under a newer record is no way back.
    publish(&mut gossip, 4);
    assert_eq!(gossip.policy().map(|policy| policy.revision), Some(1), "its record is older than what is held");
}

#[test]
fn table_of_members_has_a_cap() {
    let (mut gossip, now) = target();
    for n in 0..MAX_MEMBERS + 50 {
        let key = key(5000 + n);
        let certificate = Certificate {
            identity: *key.public().as_bytes(),
            name: format!("x{n}"),
            serial: Serial(5000 + n as u64),
            ..said(3)
        };
        gossip.accept_record(certificate_record(&key, &certify(&ca(1), certificate)), now);
    }
    gossip.settle_routes();
    assert_eq!(gossip.members().len(), MAX_MEMBERS);
}

#[test]
fn first_contact_without_a_certificate_that_counts_is_silent() {
    let (mut gossip, now) = target();
    let answers = |gossip: &mut Gossip, index: usize, by: &crate::membership::CaKey, whose: usize| {
        let mut stranger = bare(index, 60, now, 1000);
        let certificate = certify(by, Certificate { identity: *key(whose).public().as_bytes(), ..said(index) });
        let entered = Membership { trusted: vec![by.public(), ca(1).public()], ..membership(index, certificate, &[0]) };
        if stranger.set_membership(entered, now).is_err() {
            return None;
        }
        stranger.handle_timeout(now);
        let introduce = std::iter::from_fn(|| stranger.poll_transmit()).find(|transmit| transmit.to == address(0))?;
        while gossip.poll_transmit().is_some() {}
        gossip.handle_datagram(address(index), &introduce.bytes, now);
        Some(gossip.poll_transmit().is_some())
    };
    assert_eq!(answers(&mut gossip, 20, &ca(7), 20), Some(false), "another authority");
    assert_eq!(answers(&mut gossip, 21, &ca(1), 22), None, "another's certificate is not even entered");
    assert_eq!(answers(&mut gossip, 23, &ca(1), 23), Some(true), "the control");
}

#[test]
fn every_flipped_bit_of_a_certified_first_contact_is_silent() {
    let now = std::time::Instant::now();
    let enter = |index: usize| {
        let mut gossip = bare(index, index as u8 + 1, now, 1000);
        gossip.set_membership(membership(index, certify(&ca(1), said(index)), &[0]), now).expect("valid");
        gossip
    };
    let (mut target, mut sender) = (enter(0), enter(1));
    sender.handle_timeout(now);
    let introduce = sender.poll_transmit().expect("a first contact").bytes;
    let mut later = now;
    let mut answered = |bytes: &[u8]| {
        later += std::time::Duration::from_millis(60);
        while target.poll_transmit().is_some() {}
        target.handle_datagram(address(1), bytes, later);
        target.poll_transmit().is_some()
    };
    for bit in 0..introduce.len() * 8 {
        let mut bytes = introduce.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(!answered(&bytes), "bit {bit}");
    }
    assert!(answered(&introduce), "the control");
}

#[test]
fn certified_host_with_too_large_a_record_is_refused_and_the_largest_fits() {
    let now = std::time::Instant::now();
    let mut gossip = bare(1, 1, now, 1000);
    let mut widest = said(1);
    widest.name = "n".repeat(63);
    widest.labels = (0..3).map(|n| (format!("{n}{}", "k".repeat(30)), "v".repeat(24))).collect();
    let certificate = certify(&ca(1), widest);
    gossip.set_membership(membership(1, certificate.clone(), &[0]), now).expect("valid");
    let mut own = gossip.own_host().clone();
    let fill = |gossip: &mut Gossip, own: &mut crate::gossip::OwnHost| {
        let mut count = 0;
        loop {
            own.prefixes.push(super::sim::prefix(&format!("fd42:0:0:{:x}::/64", count + 1)));
            count += 1;
            if count > 16 || gossip.set_own_host(own.clone(), now).is_err() {
                own.prefixes.pop();
                return count - 1;
            }
        }
    };
    own.endpoints = (1..=8u16).map(|n| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 51821))).collect();
    let fitted = fill(&mut gossip, &mut own);
    assert!((6..16).contains(&fitted), "{fitted}");
    gossip.handle_timeout(now);
    let introduce = gossip.poll_transmit().expect("a first contact").bytes;
    assert!(introduce.len() <= 1232, "{}", introduce.len());
    let body = HostBody {
        name: "h".into(),
        boot_epoch: 1,
        box_key: [1; 32],
        wireguard_key: [1; 32],
        encapsulation: Encapsulation::Wireguard,
        mtu: Mtu::ETHERNET,
        versions: (1, 1),
        features: 0,
        software: "x".into(),
        endpoints: own.endpoints.clone(),
        prefixes: own.prefixes.clone(),
        extension: Vec::new(),
    };
    assert!(body.encode().is_ok(), "what is refused here is the room beside the certificate, not the record");
}

#[test]
fn join_is_an_event_only_on_an_issuer_and_only_at_its_rate() {
    let (mut gossip, now) = target();
    let mut datagram = vec![0u8; 1232];
    (datagram[0], datagram[1]) = (0x23, 1);
    let received = |gossip: &mut Gossip, now| {
        while gossip.poll_event().is_some() {}
        for _ in 0..100 {
            gossip.handle_datagram(address(99), &datagram, now);
        }
        std::iter::from_fn(|| gossip.poll_event()).count()
    };
    assert_eq!(received(&mut gossip, now), 20, "one source has twenty a second");
    gossip.set_issuer(false);
    assert_eq!(received(&mut gossip, now + SECOND * 5), 0);
    gossip.set_issuer(true);
    gossip.set_unix_time(NOW + 10_000_000_000, now);
    assert_eq!(received(&mut gossip, now + SECOND * 10), 0, "a host that doubts its clock admits nobody");
    assert!(std::iter::from_fn(|| gossip.poll_transmit()).all(|transmit| transmit.to != address(99)));
}

#[test]
fn ca_id_follows_from_the_key() {
    assert_eq!(ca_id(&ca(1).public()), ca(1).id());
    assert_ne!(ca(1).id(), ca(2).id());
    assert_ne!(ca(1).id().as_owner(), ca(1).public().host_id(), "the domains are apart");
}

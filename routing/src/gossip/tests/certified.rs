//! Clusters of members by certificate: joining, revocation, validity, renewal, rotation, policy.

use std::time::Duration;

use overlay_wire::gossip::{Grant, RouteAnnouncement};
use overlay_wire::membership::{CaId, Certificate};
use overlay_wire::membership::{Labels, PolicyOutcome, PolicyStatus, Rights, Serial, SignedCertificate};

use super::sim::{Sim, address, grant, key, member, own_host, prefix};
use crate::gossip::{
    Authority, ClusterPolicy, Gossip, GossipConfig, GossipError, GossipEvent, Introduction, MemberState, Membership,
    Standing, cluster_id,
};
use crate::identity::IdentityPublic;
use crate::membership::{CaKey, Issuer, IssuerConfig};
use crate::ownership::Owner;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: u64 = 24 * 3600;
pub(super) const NOW: u64 = 1_800_000_000;

pub(super) fn ca(n: u8) -> CaKey {
    CaKey::from_bytes(&[n; 32])
}

/// What a certificate of node `index` says: its /24, a pool, 30 days.
pub(super) fn said(index: usize) -> Certificate {
    let mut grants: Vec<Grant> = vec![grant(&format!("10.42.{}.0/24", index + 1)), grant("172.16.0.0/12 max 24")];
    grants.sort_unstable();
    Certificate {
        ca: CaId([0; 16]),
        identity: *key(index).public().as_bytes(),
        name: format!("h{}", index + 1),
        serial: Serial(index as u64 + 2001),
        admitted: Serial(index as u64 + 1),
        grants,
        max_prefixes: 64,
        labels: Labels::new(),
        rights: if index == 0 { Rights::ISSUER | Rights::POLICY } else { Rights::NONE },
        not_before: NOW - 300,
        not_after: NOW + 30 * DAY,
    }
}

pub(super) fn certify(by: &CaKey, certificate: Certificate) -> SignedCertificate {
    by.certify(&cluster_id("prod"), certificate).expect("it fits")
}

pub(super) fn membership(index: usize, certificate: SignedCertificate, introduced: &[usize]) -> Membership {
    let introduce =
        |other: &usize| Introduction { certificate: certify(&ca(1), said(*other)), endpoints: vec![address(*other)] };
    Membership {
        unix_now: NOW,
        trusted: vec![ca(1).public()],
        certificate: Some(certificate),
        introductions: introduced.iter().map(introduce).collect(),
        is_issuer: index == 0,
        ..Membership::default()
    }
}

/// A machine without configured members.
pub(super) fn bare(index: usize, seed: u8, now: std::time::Instant, epoch: u64) -> Gossip {
    let config = GossipConfig {
        identity: key(index),
        cluster: cluster_id("prod"),
        own: own_host(index),
        members: Vec::new(),
        foreign: Vec::new(),
    };
    Gossip::new(config, [seed; 32], now, epoch).expect("valid")
}

/// `count` nodes by certificate; each but the first knows only the first.
pub(super) fn cluster(count: usize, seed: u64) -> Sim {
    let mut sim = Sim::new(0, seed);
    for index in 0..count {
        let mut gossip = bare(index, index as u8 + 1, sim.now, 1000);
        let introduced: &[usize] = if index == 0 { &[] } else { &[0] };
        let membership = membership(index, certify(&ca(1), said(index)), introduced);
        gossip.set_membership(membership, sim.now).expect("valid");
        sim.push(gossip, address(index));
    }
    sim
}

pub(super) fn is_member(sim: &Sim, of: usize, at: usize) -> bool {
    sim.nodes[at].gossip.member(key(of).host_id()).is_some()
}

pub(super) fn all_know_all(sim: &Sim) -> bool {
    let count = sim.nodes.len();
    (0..count).all(|a| (0..count).all(|b| a == b || is_member(sim, b, a))) && sim.all_up() && sim.converged()
}

fn owner(sim: &Sim, at: usize, ip: &str) -> Option<Owner> {
    sim.nodes[at].gossip.rib().owner(ip.parse().expect("address"))
}

fn announce(sim: &mut Sim, at: usize, prefixes: &[&str]) {
    let routes = prefixes.iter().map(|text| RouteAnnouncement { prefix: prefix(text), metric: 0 }).collect();
    let now = sim.now;
    sim.nodes[at].gossip.announce(routes, now).expect("few");
}

fn set_time(sim: &mut Sim, unix: u64) {
    let now = sim.now;
    sim.nodes.iter_mut().for_each(|node| node.gossip.set_unix_time(unix, now));
}

/// An issuer on node 0 for the keys of this file.
pub(super) fn issuer(sim: &Sim) -> Issuer {
    let config = IssuerConfig {
        settings: overlay_wire::membership::ClusterSettings {
            name: "prod".into(),
            pool: vec![prefix("10.42.0.0/16")],
            encapsulation: overlay_wire::Encapsulation::Wireguard,
            listen_port: 51821,
            policy_default: overlay_wire::policy::DefaultPolicy::Members,
            mtu: None,
        },
        subnet_v4: 24,
        subnet_v6: 64,
        validity_secs: 30 * DAY,
    };
    assert!(!sim.nodes.is_empty());
    Issuer::found(ca(1), config).expect("valid")
}

pub(super) fn revoke(sim: &mut Sim, issuer: &mut Issuer, index: usize) {
    let pending = issuer.revoke(key(index).host_id()).expect("room");
    let records = issuer.commit(pending).expect("fresh");
    let now = sim.now;
    sim.nodes[0].gossip.publish_authority(records, now);
}

#[test]
fn hosts_that_know_only_the_issuer_find_each_other() {
    let mut sim = cluster(8, 61);
    let took = sim.run_until(SECOND * 10, all_know_all);
    assert!(took < SECOND * 6, "{took:?}");
    assert_eq!(owner(&sim, 3, "10.42.7.1"), Some(Owner::Member(key(6).host_id())));
    let view = sim.nodes[3].gossip.member(key(6).host_id()).expect("a member");
    assert_eq!((view.name.as_str(), view.standing), ("h7", Standing::Full));
    assert_eq!(view.authority, Authority::Certificate(Box::new(certify(&ca(1), said(6)))));
}

#[test]
fn hosts_find_each_other_under_loss() {
    let mut sim = cluster(8, 62);
    sim.loss_percent = 30;
    sim.run_until(SECOND * 60, |sim| (0..8).all(|a| (0..8).all(|b| a == b || is_member(sim, b, a))) && sim.converged());
}

#[test]
fn configured_and_certified_members_live_in_one_cluster() {
    let mut sim = Sim::new(2, 63);
    let now = sim.now;
    for index in 0..2 {
        let membership = membership(9, certify(&ca(1), said(index)), &[]);
        sim.nodes[index].gossip.set_membership(membership, now).expect("valid");
    }
    let mut gossip = bare(2, 9, now, 1000);
    gossip.set_membership(membership(2, certify(&ca(1), said(2)), &[0]), now).expect("valid");
    sim.push(gossip, address(2));
    sim.run_until(SECOND * 10, all_know_all);
    let view = |at: usize, of: usize| sim.nodes[at].gossip.member(key(of).host_id()).expect("a member").authority;
    assert_eq!(view(0, 1), Authority::Static);
    assert_ne!(view(0, 2), Authority::Static);
    assert_ne!(view(2, 1), Authority::Static);
    // A member that leaves the file stays by its certificate; one without a certificate goes.
    let now = sim.now;
    sim.nodes[0].gossip.set_members(Vec::new(), now).expect("few");
    assert_ne!(sim.nodes[0].gossip.member(key(1).host_id()).expect("a member").authority, Authority::Static);
    sim.nodes[0].gossip.set_members(vec![member(7)], now).expect("few");
    assert!(is_member(&sim, 7, 0));
    sim.nodes[0].gossip.set_members(Vec::new(), now).expect("few");
    assert!(!is_member(&sim, 7, 0));
}

#[test]
fn revoked_host_is_gone_everywhere_and_for_ever() {
    let mut sim = cluster(6, 64);
    sim.run_until(SECOND * 10, all_know_all);
    let mut issuer = issuer(&sim);
    revoke(&mut sim, &mut issuer, 5);
    let gone = |sim: &Sim| (0..5).all(|at| !is_member(sim, 5, at));
    let took = sim.run_until(SECOND * 5, gone);
    assert!(took <= SECOND * 2, "{took:?}");
    for at in 0..5 {
        assert_eq!(owner(&sim, at, "10.42.6.1"), None);
        assert!(sim.nodes[at].gossip.records().all(|record| record.key.owner != key(5).host_id()));
        let told = |event: &GossipEvent| *event == GossipEvent::MemberRevoked { host: key(5).host_id() };
        assert_eq!(sim.nodes[at].events.iter().filter(|(_, event)| told(event)).count(), 1);
    }
    // A new certificate does not bring it back.
    let renewed = Certificate { serial: Serial(900), not_after: NOW + 60 * DAY, ..said(5) };
    let now = sim.now;
    sim.nodes[5].gossip.set_certificate(certify(&ca(1), renewed), now).expect("its own");
    sim.nodes[5].gossip.probe_now(now);
    sim.run_for(SECOND * 20);
    assert!(gone(&sim));
    // Nor a restart of a host that was told: what it kept is handed back.
    let kept = sim.nodes[1].gossip.records_to_keep();
    let mut again = bare(1, 77, sim.now, 2000);
    let entered = Membership { remembered: kept, ..membership(1, certify(&ca(1), said(1)), &[5]) };
    again.set_membership(entered, sim.now).expect("valid");
    assert!(again.revoked().contains(&key(5).host_id()));
    assert!(again.member(key(5).host_id()).is_none() && again.member(key(2).host_id()).is_some());
    // And nobody answers it.
    let quiet = |sim: &mut Sim, from: usize| {
        let mut stranger = bare(from, 78, sim.now, 9000);
        let entered = membership(from, certify(&ca(1), Certificate { serial: Serial(901), ..said(from) }), &[0]);
        stranger.set_membership(entered, sim.now).expect("valid");
        stranger.handle_timeout(sim.now);
        let introduce = stranger.poll_transmit().expect("a first contact").bytes;
        let now = sim.now;
        let node = &mut sim.nodes[0].gossip;
        while node.poll_transmit().is_some() {}
        node.handle_datagram(address(from), &introduce, now);
        node.poll_transmit().is_none()
    };
    assert!(quiet(&mut sim, 5));
    assert!(!quiet(&mut sim, 40), "the control: a host with a certificate that is not revoked is answered");
}

#[test]
fn revocation_reaches_all_under_loss() {
    let mut sim = cluster(12, 65);
    sim.run_until(SECOND * 20, all_know_all);
    sim.loss_percent = 30;
    let mut issuer = issuer(&sim);
    revoke(&mut sim, &mut issuer, 11);
    sim.run_until(SECOND * 5, |sim| (0..11).all(|at| !is_member(sim, 11, at)));
}

#[test]
fn revoked_host_learns_it_and_a_returning_host_is_told_first() {
    let mut sim = cluster(4, 66);
    sim.run_until(SECOND * 10, all_know_all);
    sim.nodes[2].alive = false;
    let mut issuer = issuer(&sim);
    revoke(&mut sim, &mut issuer, 3);
    sim.run_until(SECOND * 5, |sim| !is_member(sim, 3, 0) && !is_member(sim, 3, 1));
    // Node 2 comes back and knows nothing of it: the first contact brings it.
    let now = sim.now;
    sim.nodes[3].alive = false;
    sim.nodes[2].alive = true;
    sim.nodes[2].gossip.probe_now(now);
    sim.run_until(SECOND * 10, |sim| !is_member(sim, 3, 2));
}

#[test]
fn expired_member_keeps_path_and_prefixes_and_gains_nothing() {
    let mut sim = cluster(5, 67);
    let short = certify(&ca(1), Certificate { not_after: NOW + DAY, rights: Rights::POLICY, ..said(4) });
    let now = sim.now;
    sim.nodes[4].gossip.set_certificate(short, now).expect("its own");
    sim.run_until(SECOND * 10, all_know_all);
    announce(&mut sim, 4, &["172.20.1.0/24"]);
    let owned = |sim: &Sim, ip: &str| (0..4).all(|at| owner(sim, at, ip) == Some(Owner::Member(key(4).host_id())));
    sim.run_until(SECOND * 5, |sim| owned(sim, "172.20.1.1"));
    set_time(&mut sim, NOW + 2 * DAY);
    let standing = |sim: &Sim, at: usize| sim.nodes[at].gossip.member(key(4).host_id()).expect("a member").standing;
    assert!((0..4).all(|at| standing(&sim, at) == Standing::Expired));
    assert_eq!(sim.nodes[4].gossip.own_standing(), Standing::Expired);
    announce(&mut sim, 4, &["172.20.1.0/24", "172.20.2.0/24"]);
    sim.run_for(SECOND * 5);
    assert!(owned(&sim, "10.42.5.1") && owned(&sim, "172.20.1.1"));
    assert!((0..4).all(|at| owner(&sim, at, "172.20.2.1").is_none() && sim.state(4, at) == MemberState::Up));
    let policy = sim.nodes[4].gossip.publish_policy(7, "default open\n", sim.now);
    assert_eq!(policy, Err(GossipError::NoPolicyRight));
    // It restarts with fresh keys: still a member, still with its path.
    let mut again = bare(4, 91, sim.now, 5000);
    let short = certify(&ca(1), Certificate { not_after: NOW + DAY, ..said(4) });
    let mut entered = membership(4, short, &[0]);
    entered.unix_now = NOW + 2 * DAY;
    again.set_membership(entered, sim.now).expect("valid");
    sim.nodes.truncate(4);
    sim.push(again, address(4));
    sim.run_until(SECOND * 20, |sim| (0..4).all(|at| sim.state(4, at) == MemberState::Up) && owned(sim, "10.42.5.1"));
    // A renewed certificate brings everything back.
    let now = sim.now;
    let renewed = Certificate { serial: Serial(500), not_after: NOW + 30 * DAY, ..said(4) };
    sim.nodes[4].gossip.set_certificate(certify(&ca(1), renewed), now).expect("its own");
    announce(&mut sim, 4, &["172.20.2.0/24"]);
    sim.run_until(SECOND * 10, |sim| owned(sim, "172.20.2.1") && standing(sim, 0) == Standing::Full);
}

#[test]
fn clock_that_is_wrong_takes_nothing_away() {
    let mut sim = cluster(5, 68);
    sim.run_until(SECOND * 10, all_know_all);
    for unix in [0, NOW - 3600, NOW + 3650 * DAY, u64::MAX] {
        let now = sim.now;
        sim.nodes[2].gossip.set_unix_time(unix, now);
        assert!(sim.nodes[2].gossip.is_clock_suspect());
        sim.run_for(SECOND * 3);
        assert!(sim.all_up());
        assert!(sim.nodes[2].gossip.members().iter().all(|view| view.standing == Standing::Full));
        assert_eq!(owner(&sim, 2, "10.42.1.1"), Some(Owner::Member(key(0).host_id())));
        let now = sim.now;
        sim.nodes[2].gossip.set_unix_time(NOW, now);
        assert!(!sim.nodes[2].gossip.is_clock_suspect());
    }
    let told =
        sim.nodes[2].events.iter().filter(|(_, event)| matches!(event, GossipEvent::ClockSuspected { .. })).count();
    assert!(told >= 4, "{told}");
}

#[test]
fn certificates_renew_by_themselves_at_two_thirds() {
    let mut sim = cluster(4, 69);
    sim.run_until(SECOND * 10, all_know_all);
    let mut issuer = issuer(&sim);
    let requests = |sim: &Sim| -> Vec<(crate::gossip::GossipEvent, Duration)> {
        let of_kind = |event: &GossipEvent| matches!(event, GossipEvent::CertificateRequested { .. });
        sim.nodes[0].events.iter().filter(|(_, event)| of_kind(event)).map(|(at, event)| (event.clone(), *at)).collect()
    };
    let due = said(1).renewal_due();
    set_time(&mut sim, due - 60);
    sim.run_for(SECOND * 10);
    assert!(requests(&sim).is_empty(), "nobody asks early");
    set_time(&mut sim, due + 1);
    let mut answered = 0;
    for _ in 0..20 {
        sim.run_for(SECOND);
        for (event, _) in requests(&sim).split_off(answered) {
            answered += 1;
            let GossipEvent::CertificateRequested { host, nonce, held } = event else { continue };
            let pending = issuer.renew(&held, due).expect("known");
            let renewed = issuer.commit(pending).expect("fresh");
            let now = sim.now;
            sim.nodes[0].gossip.answer_certificate_request(host, nonce, renewed, now);
        }
    }
    for index in 0..4 {
        let held = sim.nodes[index].gossip.certificate().expect("certified");
        assert_eq!(held.certificate.not_after, due + 30 * DAY, "h{}", index + 1);
        let view = |at: usize| sim.nodes[at].gossip.member(key(index).host_id());
        let known =
            (0..4).filter_map(view).all(|view| view.authority == Authority::Certificate(Box::new(held.clone())));
        assert!(known);
    }
    let before = requests(&sim).len();
    sim.run_for(SECOND * 60);
    assert_eq!(requests(&sim).len(), before, "whoever has a new certificate asks no more");
}

#[test]
fn authority_rotates_and_the_old_key_counts_no_more() {
    let mut sim = cluster(4, 70);
    sim.run_until(SECOND * 10, all_know_all);
    let mut issuer = issuer(&sim);
    let pending = issuer.begin_rotation(&ca(2), &[key(30).host_id()]).expect("none under way");
    let records = issuer.commit(pending).expect("fresh");
    let now = sim.now;
    sim.nodes[0].gossip.publish_authority(records, now);
    sim.run_until(SECOND * 5, |sim| sim.nodes.iter().all(|node| node.gossip.trusted().len() == 2));
    assert!(sim.nodes.iter().all(|node| node.gossip.revoked().contains(&key(30).host_id())));
    // Three members get certificates of the new authority, one does not.
    for index in 0..3 {
        let certificate = certify(&ca(2), Certificate { serial: Serial(100 + index as u64), ..said(index) });
        let now = sim.now;
        sim.nodes[index].gossip.set_certificate(certificate, now).expect("trusted beside the old");
    }
    sim.run_until(SECOND * 5, |sim| sim.converged());
    assert!(sim.all_up());
    let before: Vec<_> = sim.nodes[1].gossip.records_to_keep();
    let pending = issuer.finish_rotation().expect("under way");
    let records = issuer.commit(pending).expect("fresh");
    let now = sim.now;
    sim.nodes[0].gossip.publish_authority(records, now);
    let only_new = |gossip: &Gossip| gossip.trusted() == [ca(2).public()];
    sim.run_until(SECOND * 5, |sim| (0..3).all(|at| only_new(&sim.nodes[at].gossip) && !is_member(sim, 3, at)));
    assert!((0..3).all(|at| sim.nodes[at].gossip.revoked().contains(&key(30).host_id())));
    // A host that slept through all of it and trusts only the old key is led to the new one.
    let mut late = bare(2, 50, sim.now, 7000);
    let certificate = certify(&ca(2), Certificate { serial: Serial(102), ..said(2) });
    let refused = late.set_membership(membership(2, certificate.clone(), &[0]), sim.now);
    assert!(matches!(refused, Err(GossipError::Certificate(_))), "{refused:?}");
    late.set_membership(
        Membership { certificate: None, remembered: before, ..membership(2, certificate, &[]) },
        sim.now,
    )
    .expect("valid");
    late.publish_authority(sim.nodes[0].gossip.records_to_keep(), sim.now);
    assert!(only_new(&late));
    assert!(late.member(key(0).host_id()).is_some() && late.member(key(3).host_id()).is_none());
}

#[test]
fn retirement_counts_only_from_a_successor() {
    use super::super::trust::fold;
    use crate::membership::ca_id;
    let keys: Vec<IdentityPublic> = (1..=4).map(|n| ca(n).public()).collect();
    let id = |n: usize| ca_id(&keys[n]);
    let state = |list: &[(usize, Option<usize>, &[usize])]| {
        list.iter()
            .map(|(of, next, out)| (id(*of), (next.map(|n| keys[n]), out.iter().map(|n| id(*n)).collect())))
            .collect()
    };
    let trusted = |pinned: &[usize], list: &[(usize, Option<usize>, &[usize])]| {
        let pinned: Vec<_> = pinned.iter().map(|n| keys[*n]).collect();
        let (trusted, _) = fold(&pinned, &state(list));
        (0..4).filter(|n| trusted.contains(&keys[*n])).collect::<Vec<_>>()
    };
    assert_eq!(trusted(&[0], &[]), [0]);
    assert_eq!(trusted(&[0], &[(0, Some(1), &[])]), [0, 1]);
    assert_eq!(trusted(&[0], &[(0, Some(1), &[]), (1, None, &[0])]), [1]);
    assert_eq!(trusted(&[0], &[(0, Some(1), &[]), (1, Some(2), &[0]), (2, None, &[0, 1])]), [2]);
    // The old key cannot retire the new one, an outsider nobody, and a circle does not hang.
    assert_eq!(trusted(&[0], &[(0, Some(1), &[1])]), [0, 1]);
    assert_eq!(trusted(&[0, 3], &[(3, None, &[0])]), [0, 3]);
    assert_eq!(trusted(&[0], &[(0, Some(1), &[]), (1, Some(0), &[])]), [0, 1]);
}

#[test]
fn policy_reaches_all_and_the_highest_whole_one_counts() {
    let mut sim = cluster(6, 71);
    sim.run_until(SECOND * 10, all_know_all);
    let long: String = (0..900).map(|n| format!("allow tcp/{n} from any to any\n")).collect();
    assert!(long.len() > 20_000);
    let now = sim.now;
    let hash = sim.nodes[0].gossip.publish_policy(1, &long, now).expect("it has the right");
    let has = |sim: &Sim, revision: u64, text: &str| {
        let wanted = (revision, text);
        sim.nodes.iter().all(|node| node.gossip.policy().is_some_and(|p| (p.revision, p.text.as_str()) == wanted))
    };
    sim.run_until(SECOND * 5, |sim| has(sim, 1, &long));
    let refused = sim.nodes[0].gossip.publish_policy(1, "default open\n", now);
    assert_eq!(refused, Err(GossipError::OldRevision { revision: 1, known: 1 }));
    let refused = sim.nodes[3].gossip.publish_policy(2, "default open\n", now);
    assert_eq!(refused, Err(GossipError::NoPolicyRight));
    let now = sim.now;
    for at in 0..6 {
        let outcome = if at == 4 { PolicyOutcome::Refused } else { PolicyOutcome::Applied };
        sim.nodes[at]
            .gossip
            .publish_policy_status(PolicyStatus { revision: 1, hash, outcome, reason: String::new() }, now);
    }
    let refused_at = |sim: &Sim| {
        let statuses = sim.nodes[0].gossip.policy_statuses();
        let refused = statuses.iter().filter(|(_, status)| status.outcome == PolicyOutcome::Refused);
        (statuses.len() == 6).then(|| refused.map(|(host, _)| *host).collect::<Vec<_>>())
    };
    sim.run_until(SECOND * 5, |sim| refused_at(sim) == Some(vec![key(4).host_id()]));
    // A shorter one replaces it; whoever comes later gets it too, and its author's restart does not withdraw it.
    let now = sim.now;
    sim.nodes[0].gossip.publish_policy(2, "default deny\n", now).expect("newer");
    sim.run_until(SECOND * 5, |sim| has(sim, 2, "default deny\n"));
    let mut again = bare(0, 90, sim.now, 3000);
    again.set_membership(membership(0, certify(&ca(1), said(0)), &[1]), sim.now).expect("valid");
    sim.nodes[0].gossip = again;
    let mut newcomer = bare(6, 99, sim.now, 1000);
    newcomer.set_membership(membership(6, certify(&ca(1), said(6)), &[1]), sim.now).expect("valid");
    sim.push(newcomer, address(6));
    sim.run_until(SECOND * 20, |sim| has(sim, 2, "default deny\n") && sim.converged());
    let changes = |at: usize| {
        let of_kind = |event: &GossipEvent| matches!(event, GossipEvent::PolicyChanged(_));
        sim.nodes[at].events.iter().filter(|(_, event)| of_kind(event)).count()
    };
    assert_eq!(changes(2), 2);
    let kept: Option<ClusterPolicy> = sim.nodes[2].gossip.policy().cloned();
    assert_eq!(kept.map(|policy| policy.author), Some(key(0).host_id()));
}

//! The issuer, the join exchange, and exports: what is given is given once, and only out of a stored state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_wire::gossip::envelope::MAX_SENT_BYTES;
use overlay_wire::membership::{AuthorityBody, ClusterSettings, JoinRefusal, Labels, Rights, SignedCertificate};
use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, HostId, Prefix};
use proptest::prelude::*;

use super::*;
use crate::identity::IdentityKey;

const NOW: u64 = 1_800_000_000;
const CHEAP: KdfCost = KdfCost { memory_kib: 8, passes: 1 };

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a valid prefix in a test")
}

fn key(n: u8) -> IdentityKey {
    IdentityKey::from_bytes(&[n; 32])
}

fn config(pool: &[&str]) -> IssuerConfig {
    IssuerConfig {
        settings: ClusterSettings {
            name: "prod".into(),
            pool: pool.iter().map(|text| prefix(text)).collect(),
            encapsulation: Encapsulation::Wireguard,
            listen_port: 51821,
            policy_default: DefaultPolicy::Members,
            mtu: None,
        },
        subnet_v4: 24,
        subnet_v6: 64,
        validity_secs: DEFAULT_VALIDITY_SECS,
    }
}

fn request(uses: u32) -> TokenRequest {
    TokenRequest {
        uses,
        ttl_secs: 3600,
        labels: Labels::from([("role".into(), "web".into())]),
        rights: Rights::NONE,
        name: None,
        subnets: Vec::new(),
        allow: Vec::new(),
    }
}

fn endpoints() -> Vec<SocketAddr> {
    vec!["192.0.2.1:51821".parse().expect("address")]
}

/// Where an issuer's answers come from: a NAT stands in front.
fn outside() -> SocketAddr {
    "203.0.113.7:51821".parse().expect("address")
}

/// An issuer on host 200, with that host's certificate.
struct Bench {
    issuer: Issuer,
    identity: IdentityKey,
    certificate: SignedCertificate,
    names: BTreeMap<String, HostId>,
}

impl Bench {
    fn new(pool: &[&str]) -> Self {
        let mut issuer = Issuer::found(CaKey::from_bytes(&[0xca; 32]), config(pool)).expect("valid settings");
        let identity = key(200);
        let rights = TokenRequest { rights: Rights::ISSUER | Rights::POLICY, ..request(1) };
        let pending = issuer.admit(&identity.public(), "first", &rights, NOW).expect("room");
        let certificate = issuer.commit(pending).expect("fresh");
        let names = BTreeMap::from([("first".to_owned(), identity.host_id())]);
        Self { issuer, identity, certificate, names }
    }

    fn invite(&mut self, request: TokenRequest, n: u8) -> Token {
        let pending = self.issuer.invite(request, &self.identity.public(), &endpoints(), &[n; 24], NOW).expect("valid");
        self.issuer.commit(pending).expect("fresh")
    }

    fn ask(&self, datagram: &[u8], unix_now: u64) -> JoinDecision {
        let endpoints = endpoints();
        self.issuer.handle_join(
            datagram,
            &JoinContext {
                identity: &self.identity,
                certificate: &self.certificate,
                endpoints: &endpoints,
                names: &self.names,
                unix_now,
                nonce: [7; 24],
            },
        )
    }

    /// Stores and commits an admission; the answer's datagram.
    fn settle(&mut self, decision: JoinDecision) -> Vec<u8> {
        match decision {
            JoinDecision::Admit { pending, .. } => {
                let stored = pending.state_bytes();
                let answer = self.issuer.commit(pending).expect("fresh");
                assert_eq!(*Issuer::restore(&stored).expect("whole").state_bytes(), *self.issuer.state_bytes());
                answer
            }
            JoinDecision::Answer { datagram, .. } => datagram,
            JoinDecision::Silent(why) => panic!("silence: {why:?}"),
        }
    }
}

fn joiner(token: &Token, n: u8, name: &str) -> (Joiner, Vec<u8>) {
    let begun = Joiner::new(token.clone(), &key(n), name, [n; 32], Instant::now(), Duration::from_secs(5));
    let mut joiner = begun.expect("a valid name");
    let datagram = joiner.poll_transmit().expect("a first JOIN").bytes;
    (joiner, datagram)
}

fn refusal(decision: &JoinDecision) -> Option<JoinRefusal> {
    match decision {
        JoinDecision::Answer { refusal, .. } => *refusal,
        _ => None,
    }
}

fn admitted(joiner: &mut Joiner, answer: &[u8]) -> SignedCertificate {
    joiner.handle_datagram(outside(), answer);
    match joiner.poll_event() {
        Some(JoinEvent::Admitted(admission)) => admission.certificate,
        other => panic!("not admitted: {other:?}"),
    }
}

#[test]
fn joiner_gets_subnets_labels_and_the_settings_of_the_cluster() {
    let mut bench = Bench::new(&["10.42.0.0/16", "fd42::/48"]);
    let token = bench.invite(request(1), 1);
    let text = token.to_text();
    let (mut joiner, datagram) = joiner(&text.parse().expect("the printed token parses"), 1, "h1");
    assert_eq!(datagram.len(), MAX_SENT_BYTES);
    let decision = bench.ask(&datagram, NOW);
    let answer = bench.settle(decision);
    assert!(answer.len() <= datagram.len(), "an answer is never longer than the request");
    joiner.handle_datagram(outside(), &answer);
    let Some(JoinEvent::Admitted(admission)) = joiner.poll_event() else { panic!("not admitted") };
    assert_eq!(admission.endpoints, [vec![outside()], endpoints()].concat(), "where it answered, then where it says");
    let said = &admission.certificate.certificate;
    assert_eq!((said.name.as_str(), &said.identity), ("h1", key(1).public().as_bytes()));
    assert_eq!(said.labels.get("role").map(String::as_str), Some("web"));
    let grants: Vec<String> = said.grants.iter().map(ToString::to_string).collect();
    assert_eq!(grants, ["10.42.1.0/24", "fd42:0:0:1::/64"]);
    assert_eq!(admission.settings.pool, [prefix("10.42.0.0/16"), prefix("fd42::/48")]);
    assert_eq!(said.not_after - NOW, DEFAULT_VALIDITY_SECS);
    assert!(joiner.poll_timeout().is_none() && joiner.poll_event().is_none());
}

#[test]
fn lost_answer_and_repeated_request_give_the_same_certificate_once() {
    let mut bench = Bench::new(&["10.42.0.0/16"]);
    let token = bench.invite(request(1), 1);
    let (_, datagram) = joiner(&token, 1, "h1");
    let decision = bench.ask(&datagram, NOW);
    drop(bench.settle(decision));
    let generation = bench.issuer.generation();
    // The same bytes, and a new run of the joiner with other ephemeral keys; even after the token's end.
    for (seed, later) in [(1u8, 0), (1, 7200)] {
        let begun =
            Joiner::new(token.clone(), &key(1), "h1", [seed ^ later as u8; 32], Instant::now(), Duration::MAX / 4);
        let mut again = begun.expect("valid");
        let datagram = again.poll_transmit().expect("a JOIN").bytes;
        let decision = bench.ask(&datagram, NOW + later);
        assert!(matches!(decision, JoinDecision::Answer { refusal: None, .. }));
        let answer = bench.settle(decision);
        let certificate = admitted(&mut again, &answer);
        assert_eq!(bench.issuer.issued().filter(|held| **held == certificate).count(), 1);
    }
    assert_eq!(bench.issuer.generation(), generation, "nothing was redeemed again");
}

#[test]
fn hundred_joins_at_once_admit_exactly_one() {
    let mut bench = Bench::new(&["10.42.0.0/16"]);
    let token = bench.invite(request(1), 1);
    let requests: Vec<Vec<u8>> = (1..=100).map(|n| joiner(&token, n, &format!("h{n}")).1).collect();
    // All are prepared from one state before any is committed: only one can be.
    let prepared: Vec<JoinDecision> = requests.iter().map(|datagram| bench.ask(datagram, NOW)).collect();
    let mut committed = 0;
    for decision in prepared {
        let JoinDecision::Admit { pending, .. } = decision else { panic!("each alone would be admitted") };
        committed += u32::from(bench.issuer.commit(pending).is_ok());
    }
    assert_eq!(committed, 1);
    let refused = requests.iter().filter(|datagram| refusal(&bench.ask(datagram, NOW)) == Some(JoinRefusal::UsedUp));
    assert_eq!(refused.count(), 99);
    assert_eq!(bench.issuer.issued().count(), 2);
}

#[test]
fn change_that_was_not_stored_did_not_happen() {
    let mut bench = Bench::new(&["10.42.0.0/23"]);
    let token = bench.invite(request(1), 1);
    let before = bench.issuer.state_bytes();
    let (mut first, datagram) = joiner(&token, 1, "h1");
    let JoinDecision::Admit { pending, if_not_stored, .. } = bench.ask(&datagram, NOW) else { panic!("admitted") };
    drop(pending);
    assert_eq!(*before, *bench.issuer.state_bytes());
    first.handle_datagram(outside(), &if_not_stored);
    assert_eq!(first.poll_event(), Some(JoinEvent::Refused(JoinRefusal::Unavailable)));
    // The use and the only subnet are still there.
    let (_, datagram) = joiner(&token, 2, "h2");
    assert!(matches!(bench.ask(&datagram, NOW), JoinDecision::Admit { .. }));
}

#[test]
fn each_refusal_has_its_code_and_reaches_the_joiner() {
    let mut bench = Bench::new(&["10.42.0.0/22"]);
    let ask = |bench: &Bench, token: &Token, n: u8, name: &str, at: u64| {
        let (mut joiner, datagram) = joiner(token, n, name);
        let decision = bench.ask(&datagram, at);
        if let JoinDecision::Answer { datagram, .. } = &decision {
            joiner.handle_datagram(outside(), datagram);
            let told = match joiner.poll_event() {
                Some(JoinEvent::Refused(refusal)) => Some(refusal),
                _ => None,
            };
            assert_eq!(told, refusal(&decision));
        }
        refusal(&decision)
    };
    let many = bench.invite(request(9), 1);
    assert_eq!(ask(&bench, &many, 1, "h1", NOW), None, "the control: it would be admitted");
    assert_eq!(ask(&bench, &many, 1, "h1", NOW + 3600), Some(JoinRefusal::Expired));
    assert_eq!(ask(&bench, &many, 1, "first", NOW), Some(JoinRefusal::NameTaken));
    let withdrawn = bench.invite(request(1), 2);
    let pending = bench.issuer.revoke_token(withdrawn.id).expect("known");
    bench.issuer.commit(pending).expect("fresh");
    assert_eq!(ask(&bench, &withdrawn, 1, "h1", NOW), Some(JoinRefusal::Revoked));
    let pending = bench.issuer.revoke(key(7).host_id()).expect("room");
    bench.issuer.commit(pending).expect("fresh");
    assert_eq!(ask(&bench, &many, 7, "h7", NOW), Some(JoinRefusal::Revoked));
    let subnet = TokenRequest { subnets: vec![prefix("10.42.3.0/24")], ..request(1) };
    let (one, two) = (bench.invite(subnet.clone(), 3), bench.invite(subnet, 4));
    let decision = bench.ask(&joiner(&one, 11, "h11").1, NOW);
    bench.settle(decision);
    assert_eq!(ask(&bench, &two, 12, "h12", NOW), Some(JoinRefusal::NoSubnet));
    for n in 13..15 {
        let decision = bench.ask(&joiner(&many, n, &format!("h{n}")).1, NOW);
        bench.settle(decision);
    }
    assert_eq!(ask(&bench, &many, 15, "h15", NOW), Some(JoinRefusal::NoSubnet), "the pool has four");
}

#[test]
fn without_the_secret_there_is_silence() {
    let mut bench = Bench::new(&["10.42.0.0/16"]);
    let token = bench.invite(request(5), 1);
    let (_, good) = joiner(&token, 1, "h1");
    let silent = |bytes: &[u8]| matches!(bench.ask(bytes, NOW), JoinDecision::Silent(_));
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(silent(&bytes), "bit {bit}");
    }
    for len in 0..good.len() {
        assert!(silent(&good[..len]), "cut to {len}");
    }
    let mut guessed = token.clone();
    guessed.secret[0] ^= 1;
    assert!(silent(&joiner(&guessed, 1, "h1").1));
    let mut other = token.clone();
    other.id.0[0] ^= 1;
    assert!(silent(&joiner(&other, 1, "h1").1));
    let mut pinned = token.clone();
    pinned.ca.0[0] ^= 1;
    assert!(silent(&joiner(&pinned, 1, "h1").1), "the key binds the authority");
    assert!(!silent(&good), "the control");
}

#[test]
fn ledger_alone_redeems_nothing() {
    // Whoever has the ledger knows the digest, and with it the key; the secret itself is still asked for.
    let mut bench = Bench::new(&["10.42.0.0/16"]);
    let token = bench.invite(request(1), 1);
    let state = bench.issuer.state_bytes();
    let held = |needle: &[u8]| state.windows(needle.len()).any(|window| window == needle);
    assert!(held(&*token.secret_digest()), "the control: the digest is found");
    assert!(!held(&*token.secret));
    let transcript = |ephemeral, digest| join_keys::JoinTranscript {
        ca: token.ca,
        issuer: token.issuer.host_id(),
        token: token.id,
        ephemeral,
        secret_digest: digest,
    };
    let secret = x25519_dalek::StaticSecret::from([5; 32]);
    let ephemeral = x25519_dalek::PublicKey::from(&secret).to_bytes();
    let digest = token.secret_digest();
    let keys = join_keys::JoinKeys::new(&secret, &token.issuer.to_x25519()).expect("contributory");
    for (guess, silent) in [([0; 16], true), (*token.secret, false)] {
        let mut content = overlay_wire::membership::JoinContent {
            identity: *key(1).public().as_bytes(),
            name: "h1".into(),
            secret: guess,
            signature: [0; 64],
        };
        let transcript = transcript(ephemeral, &digest);
        content.signature = key(1).sign(&join_keys::join_signed_bytes(&transcript, &content.unsigned_bytes()));
        let datagram = keys.seal_request(&transcript, &[3; 24], &content.encode());
        assert_eq!(matches!(bench.ask(&datagram, NOW), JoinDecision::Silent(_)), silent);
    }
}

#[test]
fn joiner_believes_only_the_authority_in_its_token() {
    let mut real = Bench::new(&["10.42.0.0/16"]);
    let token = real.invite(request(5), 1);
    // A false authority on the true issuer's host: it has the identity key and the ledger, and another authority's key.
    let mut state = state::State::decode(&real.issuer.state_bytes()).expect("whole");
    state.ca = zeroize::Zeroizing::new([0xbb; 32]);
    let entry = state.tokens.get_mut(&token.id).expect("invited");
    let pinned = entry.ca;
    let (mut victim, datagram) = joiner(&token, 1, "h1");
    let false_issuer = Issuer::restore(&state.encode()).expect("whole");
    let mut bench = Bench { issuer: false_issuer, ..Bench::new(&["10.42.0.0/16"]) };
    assert_ne!(bench.issuer.ca(), pinned);
    assert_eq!(refusal(&bench.ask(&datagram, NOW)), Some(JoinRefusal::Revoked), "it knows no such authority");
    // Made to claim the pinned name, it still cannot show the key behind it.
    bench.issuer = {
        let mut state = state::State::decode(&bench.issuer.state_bytes()).expect("whole");
        let other = bench.issuer.ca();
        state.tokens.get_mut(&token.id).expect("invited").ca = other;
        Issuer::restore(&state.encode()).expect("whole")
    };
    assert!(matches!(bench.ask(&datagram, NOW), JoinDecision::Silent(_)));
    let good = real.ask(&datagram, NOW);
    let answer = real.settle(good);
    for bit in 0..answer.len() * 8 {
        let mut bytes = answer.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        victim.handle_datagram(outside(), &bytes);
        assert_eq!(victim.poll_event(), None, "bit {bit}");
    }
    admitted(&mut victim, &answer);
}

#[test]
fn joiner_asks_again_ever_more_rarely_and_gives_up() {
    let mut bench = Bench::new(&["10.42.0.0/16"]);
    let token = bench.invite(request(1), 1);
    let start = Instant::now();
    let mut joiner = Joiner::new(token, &key(1), "h1", [1; 32], start, Duration::from_secs(10)).expect("a valid name");
    let mut sent = Vec::new();
    while let Some(at) = joiner.poll_timeout() {
        sent.extend(std::iter::from_fn(|| joiner.poll_transmit()).map(|transmit| transmit.bytes));
        joiner.handle_timeout(at);
    }
    assert_eq!(joiner.poll_event(), Some(JoinEvent::NoAnswer));
    assert!((6..=12).contains(&sent.len()), "{}", sent.len());
    assert!(sent.windows(2).all(|pair| pair[0] == pair[1]), "a repeated request is the same request");
}

#[test]
fn host_that_joins_again_keeps_its_subnet_and_seniority() {
    let mut bench = Bench::new(&["10.42.0.0/16"]);
    let (one, two) = (bench.invite(request(1), 1), bench.invite(request(1), 2));
    let mut held = Vec::new();
    for token in [&one, &two] {
        let (mut joiner, datagram) = joiner(token, 1, "h1");
        let decision = bench.ask(&datagram, NOW);
        let answer = bench.settle(decision);
        held.push(admitted(&mut joiner, &answer).certificate);
    }
    assert_eq!(held[0].grants, held[1].grants);
    assert_eq!(held[0].admitted, held[1].admitted);
    assert!(held[0].serial < held[1].serial);
}

#[test]
fn renewal_keeps_everything_but_serial_and_validity() {
    let mut bench = Bench::new(&["10.42.0.0/16"]);
    let token = bench.invite(request(1), 1);
    let (mut joiner, datagram) = joiner(&token, 1, "h1");
    let decision = bench.ask(&datagram, NOW);
    let answer = bench.settle(decision);
    let held = admitted(&mut joiner, &answer);
    let later = held.certificate.renewal_due();
    assert_eq!(later, held.certificate.not_before + (DEFAULT_VALIDITY_SECS + BACKDATE_SECS) / 3 * 2);
    let pending = bench.issuer.renew(&held, later).expect("known");
    let renewed = bench.issuer.commit(pending).expect("fresh");
    assert!(renewed.certificate.serial > held.certificate.serial);
    let expected = overlay_wire::membership::Certificate {
        serial: renewed.certificate.serial,
        not_before: later - BACKDATE_SECS,
        not_after: later + DEFAULT_VALIDITY_SECS,
        ..held.certificate.clone()
    };
    assert_eq!(renewed.certificate, expected);
    let mut forged = held.clone();
    forged.certificate.rights = Rights::POLICY;
    assert_eq!(bench.issuer.renew(&forged, later).err(), Some(IssuerError::Unknown));
    let pending = bench.issuer.revoke(key(1).host_id()).expect("room");
    bench.issuer.commit(pending).expect("fresh");
    assert_eq!(bench.issuer.renew(&held, later).err(), Some(IssuerError::Revoked));
}

#[test]
fn forgotten_subnet_is_free_only_after_the_certificate_and_a_cooldown() {
    let mut bench = Bench::new(&["10.42.0.0/23"]);
    let pending = bench.issuer.admit(&key(1).public(), "h1", &request(1), NOW).expect("room");
    let held = bench.issuer.commit(pending).expect("fresh");
    let pending = bench.issuer.forget(key(1).host_id(), NOW).expect("room");
    let forgotten = bench.issuer.commit(pending).expect("fresh");
    let free_from = held.certificate.not_after + COOLDOWN_SECS;
    assert_eq!(forgotten.freed, [(prefix("10.42.1.0/24"), free_from)]);
    let admit = |at| bench.issuer.admit(&key(2).public(), "h2", &request(1), at).map(drop);
    assert_eq!(admit(free_from - 1), Err(IssuerError::NoSubnet));
    assert_eq!(admit(free_from), Ok(()));
    assert_eq!(bench.issuer.admit(&key(1).public(), "h1", &request(1), free_from).err(), Some(IssuerError::Revoked));
}

#[test]
fn more_revoked_hosts_than_one_record_holds_fill_the_next() {
    let mut bench = Bench::new(&["10.42.0.0/16"]);
    let hosts: Vec<HostId> = (0..100u8).map(|n| HostId([n; 16])).collect();
    for host in hosts.iter().rev() {
        let pending = bench.issuer.revoke(*host).expect("room");
        bench.issuer.commit(pending).expect("fresh");
    }
    let records = bench.issuer.authority_records().expect("they fit");
    let revoked: BTreeSet<HostId> = records
        .iter()
        .filter_map(|record| match AuthorityBody::decode(&record.body) {
            Ok(AuthorityBody::Revoked(hosts)) => Some(hosts),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(revoked, hosts.into_iter().collect());
    let versions: Vec<(u16, u64)> = records.iter().map(|record| (record.key.shard, record.version)).collect();
    assert_eq!(versions, [(0, 1), (1, 63), (2, 37)]);
}

#[test]
fn every_damaged_state_is_refused_and_a_newer_one_named() {
    let mut bench = Bench::new(&["10.42.0.0/16", "fd42::/48"]);
    bench.invite(TokenRequest { name: Some("h9".into()), ..request(1) }, 1);
    let state = bench.issuer.state_bytes();
    let again = Issuer::restore(&state).expect("whole");
    assert_eq!(*again.state_bytes(), *state);
    for len in 0..state.len() {
        assert_eq!(Issuer::restore(&state[..len]).err(), Some(StateError::Damaged), "cut to {len}");
    }
    for at in 0..state.len() {
        let mut bytes = state.to_vec();
        bytes[at] ^= 1 << (at % 8);
        assert!(Issuer::restore(&bytes).is_err(), "byte {at}");
    }
    let mut newer = state.to_vec();
    newer[4] = 2;
    assert_eq!(Issuer::restore(&newer).err(), Some(StateError::Newer(2)));
}

#[test]
fn exported_authority_admits_hosts_from_its_own_half() {
    let mut bench = Bench::new(&["10.42.0.0/16", "fd42::/48"]);
    let pending = bench.issuer.export(b"correct horse", CHEAP, &[9; 40]).expect("room");
    let file = bench.issuer.commit(pending).expect("fresh");
    assert_eq!(bench.issuer.exports(), 1);
    assert_eq!(Issuer::import(&file, b"wrong horse").err(), Some(ExportError::Sealed));
    let mut damaged = file.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    assert_eq!(Issuer::import(&damaged, b"correct horse").err(), Some(ExportError::Sealed));
    let mut greedy = file.clone();
    greedy[5] = 0xff;
    assert_eq!(Issuer::import(&greedy, b"correct horse").err(), Some(ExportError::Cost));
    assert!(!file.windows(32).any(|window| window == [0xca; 32]));
    let second = Issuer::import(&file, b"correct horse").expect("the right passphrase");
    assert_eq!(second.ca(), bench.issuer.ca());
    assert_ne!(second.slot(), bench.issuer.slot());
    for mine in bench.issuer.slice().free() {
        assert!(second.slice().free().all(|theirs| !mine.overlaps(&theirs)));
    }
    let one = |issuer: &Issuer| {
        let pending = issuer.admit(&key(1).public(), "h1", &request(1), NOW).expect("room");
        let mut issuer = Issuer::restore(&issuer.state_bytes()).expect("whole");
        issuer.commit(pending).expect("fresh").certificate
    };
    let (mine, theirs) = (one(&bench.issuer), one(&second));
    assert_ne!(mine.serial, theirs.serial);
    assert!(
        mine.grants.iter().all(|grant| theirs.grants.iter().all(|other| !grant.prefix().overlaps(&other.prefix())))
    );
    // Either renews what the other signed.
    let held = bench.certificate.clone();
    assert!(second.renew(&held, NOW).is_ok());
}

#[test]
fn slots_of_issuers_never_meet_and_end_some_day() {
    let mut issuers = vec![Issuer::found(CaKey::from_bytes(&[1; 32]), config(&["10.0.0.0/8"])).expect("valid")];
    let mut ended = false;
    for round in 0..40u8 {
        let from = usize::from(round) % issuers.len();
        match issuers[from].export(b"passphrase", CHEAP, &[round; 40]) {
            Ok(pending) => {
                let file = issuers[from].commit(pending).expect("fresh");
                issuers.push(Issuer::import(&file, b"passphrase").expect("right"));
            }
            Err(error) => {
                assert_eq!(error, ExportError::Issuer(IssuerError::NothingToSplit));
                ended = true;
            }
        }
    }
    for _ in 0..9 {
        ended |= match issuers[0].export(b"passphrase", CHEAP, &[99; 40]) {
            Ok(pending) => issuers[0].commit(pending).is_err(),
            Err(_) => true,
        };
    }
    assert!(ended, "slots are bounded");
    let slots: BTreeSet<u16> = issuers.iter().map(Issuer::slot).collect();
    assert_eq!(slots.len(), issuers.len());
}

#[test]
fn settings_and_requests_that_make_no_sense_are_refused() {
    let found = |pool: &[&str], v4| {
        Issuer::found(CaKey::from_bytes(&[1; 32]), IssuerConfig { subnet_v4: v4, ..config(pool) }).map(drop)
    };
    assert_eq!(found(&["10.42.0.0/16"], 24), Ok(()));
    assert!(found(&[], 24).is_err());
    assert!(found(&["10.42.0.0/16"], 15).is_err());
    assert!(found(&["10.42.0.0/16"], 31).is_err());
    assert!(found(&["10.42.0.0/16", "10.42.1.0/24"], 24).is_err());
    let bench = Bench::new(&["10.42.0.0/16"]);
    let invite =
        |request| bench.issuer.invite(request, &bench.identity.public(), &endpoints(), &[1; 24], NOW).map(drop);
    assert_eq!(invite(request(1)), Ok(()));
    assert!(invite(request(0)).is_err());
    assert!(invite(TokenRequest { name: Some("x".into()), ..request(2) }).is_err());
    assert!(invite(TokenRequest { subnets: vec![prefix("10.43.0.0/24")], ..request(1) }).is_err());
    let long = "v".repeat(31);
    let labels: Labels = (0..8).map(|n| (format!("{n}{}", "k".repeat(30)), long.clone())).collect();
    assert!(matches!(invite(TokenRequest { labels, ..request(1) }), Err(IssuerError::Body(_))), "it would not fit");
}

/// One step of a life of issuers.
#[derive(Debug, Clone)]
enum Step {
    Admit(u8),
    AdmitUnstored(u8),
    Explicit(u8, u8),
    Crash,
    Export,
    Forget(u8),
    Pass(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u8>().prop_map(Step::Admit),
        2 => any::<u8>().prop_map(Step::AdmitUnstored),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(host, third)| Step::Explicit(host, third)),
        1 => Just(Step::Crash),
        1 => Just(Step::Export),
        1 => any::<u8>().prop_map(Step::Forget),
        1 => any::<u32>().prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn no_subnet_and_no_serial_is_ever_given_twice(steps in proptest::collection::vec((any::<u8>(), step()), 1..60)) {
        let mut issuers = vec![Bench::new(&["10.42.0.0/19"]).issuer];
        let mut stored: Vec<_> = issuers.iter().map(Issuer::state_bytes).collect();
        let mut now = NOW;
        // Who holds a subnet, and since when nobody may any more.
        let mut holders: BTreeMap<Prefix, (HostId, u64)> = BTreeMap::new();
        let mut serials = BTreeSet::new();
        for (which, step) in steps {
            let at = usize::from(which) % issuers.len();
            let admit = |host: u8, subnets: Vec<Prefix>| {
                let request = TokenRequest { subnets, ..request(1) };
                issuers[at].admit(&key(host).public(), &format!("h{host}"), &request, now)
            };
            let pending = match step {
                Step::Admit(host) => admit(host, Vec::new()).ok(),
                Step::Explicit(host, third) => {
                    admit(host, vec![Prefix::truncating([10, 42, third, 0].into(), 24).expect("fits")]).ok()
                }
                Step::AdmitUnstored(host) => {
                    drop(admit(host, Vec::new()));
                    None
                }
                Step::Crash => {
                    issuers[at] = Issuer::restore(&stored[at]).expect("whole");
                    None
                }
                Step::Export => {
                    if issuers.len() < 5 && let Ok(pending) = issuers[at].export(b"passphrase", CHEAP, &[which; 40]) {
                        stored[at] = pending.state_bytes();
                        let file = issuers[at].commit(pending).expect("fresh");
                        let next = Issuer::import(&file, b"passphrase").expect("right");
                        stored.push(next.state_bytes());
                        issuers.push(next);
                    }
                    None
                }
                Step::Forget(host) => {
                    let pending = issuers[at].forget(key(host).host_id(), now).expect("room");
                    stored[at] = pending.state_bytes();
                    for (subnet, free_from) in issuers[at].commit(pending).expect("fresh").freed {
                        holders.insert(subnet, (key(host).host_id(), free_from));
                    }
                    None
                }
                Step::Pass(seconds) => {
                    now += u64::from(seconds) % (40 * 24 * 3600);
                    None
                }
            };
            if let Some(pending) = pending {
                stored[at] = pending.state_bytes();
                let certificate = issuers[at].commit(pending).expect("fresh").certificate;
                prop_assert!(serials.insert(certificate.serial), "serial {} twice", certificate.serial);
                let host = crate::identity::IdentityPublic::from_bytes(&certificate.identity).expect("a key").host_id();
                for grant in &certificate.grants {
                    for (held, (holder, until)) in &holders {
                        let gone = now >= *until;
                        prop_assert!(*holder == host || gone || !held.overlaps(&grant.prefix()), "{held} twice");
                    }
                    holders.retain(|held, _| !held.overlaps(&grant.prefix()));
                    holders.insert(grant.prefix(), (host, u64::MAX));
                }
            }
        }
    }

    #[test]
    fn slice_stays_a_partition(cuts in proptest::collection::vec((16u8..=26, any::<u16>(), any::<bool>()), 1..40)) {
        let whole = prefix("10.42.0.0/16");
        let mut slice = Slice::new(&[whole]);
        let mut taken: Vec<Prefix> = Vec::new();
        let mut given = Slice::default();
        for (len, third, back) in cuts {
            let address = std::net::IpAddr::from([10, 42, (third >> 8) as u8, third as u8]);
            let wanted = Prefix::truncating(address, len).expect("fits");
            let was_free = taken.iter().chain(&given.free().collect::<Vec<_>>()).all(|other| !other.overlaps(&wanted));
            match (back, taken.pop()) {
                (true, Some(block)) => slice.release(block),
                (false, Some(block)) => {
                    taken.push(block);
                    prop_assert_eq!(slice.take_exactly(&wanted), was_free);
                    if was_free { taken.push(wanted); }
                }
                (_, None) => {
                    if third % 5 == 0 && given.is_empty() {
                        given = slice.split((26, 64));
                    }
                    if let Some(block) = slice.take(Family::V4, len) { taken.push(block); }
                }
            }
            let mut all: Vec<Prefix> = slice.free().chain(given.free()).chain(taken.iter().copied()).collect();
            all.sort_unstable();
            for pair in all.windows(2) {
                prop_assert!(!pair[0].overlaps(&pair[1]), "{} and {}", pair[0], pair[1]);
            }
            let size: u64 = all.iter().map(|block| 1u64 << (32 - block.len())).sum();
            prop_assert_eq!(size, 1 << 16);
        }
    }
}

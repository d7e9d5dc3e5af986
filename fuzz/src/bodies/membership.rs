//! Bodies over certificates, authority and policy records, tokens, the join exchange and the issuer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_routing::identity::IdentityKey;
use overlay_routing::membership::{
    CaKey, Issuer, IssuerConfig, JoinContext, JoinDecision, JoinEvent, Joiner, KdfCost, Pending, Token, TokenRequest,
};
use overlay_wire::gossip::envelope::MAX_SENT_BYTES;
use overlay_wire::membership::certificate::{certificate_body, decode_certificate_body};
use overlay_wire::membership::{
    AuthorityBody, ClusterSettings, JoinAnswer, JoinContent, Labels, PolicyDocument, PolicyShard, PolicyStatus, Rights,
    SignedCertificate,
};
use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, HostId, Prefix};

use super::Input;

/// Most operations of one script: each may cost several signatures.
const MAX_OPERATIONS: usize = 24;
/// The time at which scripts begin, Unix seconds.
const START: u64 = 1_800_000_000;

/// Certificates and the bodies of records: whatever decodes encodes back to the same bytes.
pub fn formats(bytes: &[u8]) {
    if let Ok(certificate) = SignedCertificate::decode(bytes) {
        assert_eq!(certificate.to_bytes(), bytes);
        assert_eq!(certificate.certificate.check(), Ok(()));
        let due = certificate.certificate.renewal_due();
        assert!(due >= certificate.certificate.not_before && due <= certificate.certificate.not_after);
    }
    if let Ok(certificate) = decode_certificate_body(bytes) {
        assert_eq!(certificate_body(&certificate), bytes);
    }
    if let Ok(body) = AuthorityBody::decode(bytes) {
        assert_eq!(body.encode().as_deref(), Ok(bytes));
    }
    for shard in [0, 1, 31] {
        if let Ok(piece) = PolicyShard::decode(bytes, shard) {
            assert_eq!(piece.encode(), bytes);
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(document) = PolicyDocument::parse(text)
    {
        assert_eq!(document.emit().as_deref(), Ok(text));
    }
    if let Ok(status) = PolicyStatus::decode(bytes) {
        assert_eq!(status.encode(), bytes);
    }
    if let Ok(content) = JoinContent::decode(bytes) {
        assert_eq!(content.encode(), bytes);
    }
    if let Ok(answer) = JoinAnswer::decode(bytes) {
        assert_eq!(answer.encode().as_deref(), Ok(bytes));
    }
}

/// Texts as tokens, and bytes as an issuer's stored state or exported file.
pub fn stored(bytes: &[u8]) {
    if let Ok(token) = String::from_utf8_lossy(bytes).parse::<Token>() {
        assert_eq!(token.to_text().parse(), Ok(token));
    }
    if let Ok(issuer) = Issuer::restore(bytes) {
        assert_eq!(*issuer.state_bytes(), *bytes);
    }
    // Of a changed export at most the cost is believed, and that is bounded; a large one is too slow to try here.
    if bytes.get(5..9).is_some_and(|memory| memory < &[0, 0, 1, 0][..]) && bytes.get(9..12) == Some(&[0, 0, 0]) {
        let _ = Issuer::import(bytes, b"passphrase");
    }
}

/// A life of an issuer: invitations, JOINs whole and damaged, crashes before and after storing, exports, time.
///
/// No subnet is ever given to two hosts, a token admits no more hosts than it may, damaged JOINs are met with silence, and
/// an answer is no longer than the request.
pub fn issuer(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let identity = IdentityKey::from_bytes(&[200; 32]);
    let mut issuer = Issuer::found(CaKey::from_bytes(&[0xca; 32]), config()).expect("the fixed settings are valid");
    let as_issuer = TokenRequest { rights: Rights::ISSUER, ..request(1) };
    let first = issuer.admit(&identity.public(), "first", &as_issuer, START).expect("the pool is free");
    let certificate = issuer.commit(first).expect("nothing came between");
    let endpoints = [SocketAddr::from(([192, 0, 2, 1], 51821))];
    let mut stored = issuer.state_bytes();
    let mut now = START;
    let mut tokens: Vec<(Token, u32)> = Vec::new();
    let mut names = BTreeMap::from([("first".to_owned(), identity.host_id())]);
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let operation = input.u8();
        match operation & 0x0f {
            0..=1 => {
                let uses = u32::from(input.u8() % 4);
                let mut random = [0; 24];
                random[..2].copy_from_slice(&(tokens.len() as u16).to_be_bytes());
                if let Ok(pending) = issuer.invite(request(uses), &identity.public(), &endpoints, &random, now) {
                    tokens.push((store(&mut issuer, &mut stored, pending), uses));
                }
            }
            2..=8 if !tokens.is_empty() => {
                let token = &tokens[usize::from(input.u8()) % tokens.len()].0;
                let host = input.u8();
                let key = IdentityKey::from_bytes(&[host; 32]);
                let begun = Joiner::new(token.clone(), &key, &format!("h{host}"), [host; 32], Instant::now(), PATIENCE);
                let mut joiner = begun.expect("the name is valid");
                let mut datagram = joiner.poll_transmit().expect("a JOIN is sent at once").bytes;
                let damaged = operation & 0x80 != 0;
                if damaged {
                    let place = usize::from(input.u16()) % datagram.len();
                    datagram[place] ^= input.u8() | 1;
                }
                let context = JoinContext {
                    identity: &identity,
                    certificate: &certificate,
                    endpoints: &endpoints,
                    names: &names,
                    unix_now: now,
                    nonce: [operation; 24],
                };
                let answer = match issuer.handle_join(&datagram, &context) {
                    JoinDecision::Silent(_) => {
                        let is_known = issuer.tokens().iter().any(|view| view.id == token.id);
                        assert!(damaged || !is_known, "an honest JOIN is answered");
                        continue;
                    }
                    JoinDecision::Answer { datagram, .. } => datagram,
                    JoinDecision::Admit { if_not_stored, .. } if operation & 0x40 != 0 => if_not_stored,
                    JoinDecision::Admit { pending, .. } => {
                        let answer = store(&mut issuer, &mut stored, pending);
                        names.insert(format!("h{host}"), key.host_id());
                        answer
                    }
                };
                assert!(!damaged, "a damaged JOIN is answered");
                assert!(answer.len() <= MAX_SENT_BYTES);
                joiner.handle_datagram(endpoints[0], &answer);
                let told = joiner.poll_event();
                assert!(matches!(told, Some(JoinEvent::Admitted(_) | JoinEvent::Refused(_))), "{told:?}");
            }
            9 => issuer = Issuer::restore(&stored).expect("what was stored is whole"),
            10 => {
                let host = IdentityKey::from_bytes(&[input.u8(); 32]).host_id();
                if let Ok(pending) = issuer.forget(host, now) {
                    drop(store(&mut issuer, &mut stored, pending));
                }
            }
            11 => {
                let cost = KdfCost { memory_kib: 8, passes: 1 };
                if let Ok(pending) = issuer.export(b"passphrase", cost, &[operation; 40]) {
                    let file = store(&mut issuer, &mut stored, pending);
                    let other = Issuer::import(&file, b"passphrase").expect("the passphrase is right");
                    let (mine, theirs): (Vec<Prefix>, Vec<Prefix>) =
                        (issuer.slice().free().collect(), other.slice().free().collect());
                    assert!(mine.iter().all(|mine| theirs.iter().all(|theirs| !mine.overlaps(theirs))));
                }
            }
            12 => {
                let held = issuer.issued().next().cloned();
                if let Some(Ok(pending)) = held.map(|held| issuer.renew(&held, now)) {
                    drop(store(&mut issuer, &mut stored, pending));
                }
            }
            13 => {
                let host = HostId(input.array());
                if let Ok(pending) = issuer.revoke(host) {
                    drop(store(&mut issuer, &mut stored, pending));
                }
            }
            14 => {
                let next = CaKey::from_bytes(&[operation ^ tokens.len() as u8; 32]);
                let pending = issuer.finish_rotation().or_else(|_| issuer.begin_rotation(&next, &[]));
                if let Ok(pending) = pending {
                    drop(store(&mut issuer, &mut stored, pending));
                    break;
                }
            }
            _ => now += u64::from(input.u16()) * 60,
        }
        let mut subnets: Vec<Prefix> = issuer
            .issued()
            .flat_map(|held| held.certificate.grants.iter().map(|grant| grant.prefix()))
            .chain(issuer.slice().free())
            .collect();
        subnets.sort_unstable();
        assert!(subnets.windows(2).all(|pair| !pair[0].overlaps(&pair[1])), "{subnets:?}");
        for view in issuer.tokens() {
            assert_eq!(view.redeemed.len() as u32 + view.uses_left, view.request.uses);
        }
        assert!(issuer.authority_records().is_ok());
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

fn store<T>(issuer: &mut Issuer, stored: &mut impl From<Vec<u8>>, pending: Pending<T>) -> T {
    *stored = pending.state_bytes().to_vec().into();
    issuer.commit(pending).expect("nothing came between")
}

fn config() -> IssuerConfig {
    IssuerConfig {
        settings: ClusterSettings {
            name: "fuzz".to_owned(),
            pool: vec!["10.42.0.0/20".parse().expect("a fixed prefix parses")],
            encapsulation: Encapsulation::Wireguard,
            listen_port: 51821,
            policy_default: DefaultPolicy::Members,
            mtu: None,
        },
        subnet_v4: 24,
        subnet_v6: 64,
        validity_secs: 30 * 24 * 3600,
    }
}

fn request(uses: u32) -> TokenRequest {
    TokenRequest {
        uses,
        ttl_secs: 3600,
        labels: Labels::new(),
        rights: Rights::NONE,
        name: None,
        subnets: Vec::new(),
        allow: Vec::new(),
    }
}

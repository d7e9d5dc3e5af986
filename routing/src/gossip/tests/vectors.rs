//! The test vectors of docs/gossip.md: computed here, and compared with the text of the document.

use std::fmt::Write as _;

use overlay_wire::gossip::Grant;
use overlay_wire::gossip::envelope::{
    Content, IntroduceAckContent, IntroduceContent, introduce_ack_header, introduce_header, sealed_header,
};
use overlay_wire::gossip::{
    HostBody, Message, PlainStatus, Record, RecordKey, RecordKind, RouteAnnouncement, RoutesBody,
};
use overlay_wire::membership::{
    Admission, AuthorityBody, Certificate, ClusterSettings, JoinAnswer, JoinContent, Labels, Rights, Serial, TokenId,
};
use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, Mtu};
use x25519_dalek::{PublicKey, StaticSecret};

use super::sim::prefix;
use crate::gossip::cluster_id;
use crate::gossip::crypto::{AckTranscript, Direction, IntroduceKeys, introduce_signed_bytes, seal};
use crate::gossip::store::record_hash;
use crate::identity::IdentityKey;
use crate::membership::join_keys::{JoinKeys, JoinTranscript, join_signed_bytes};
use crate::membership::{CaKey, Token};

const DOCUMENT: &str = include_str!("../../../../docs/gossip.md");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Name and value of every vector, in the order of the document.
fn vectors() -> Vec<(&'static str, Vec<u8>)> {
    let (a, b) = (IdentityKey::from_bytes(&[0x0a; 32]), IdentityKey::from_bytes(&[0x0b; 32]));
    let (a_box, b_box) = (StaticSecret::from([0x1a; 32]), StaticSecret::from([0x1b; 32]));
    let (a_box_public, b_box_public) = (PublicKey::from(&a_box), PublicKey::from(&b_box));
    let cluster = cluster_id("prod");
    let mut vectors = vec![
        ("A identity", a.public().as_bytes().to_vec()),
        ("A host id", a.host_id().0.to_vec()),
        ("B identity", b.public().as_bytes().to_vec()),
        ("B host id", b.host_id().0.to_vec()),
        ("cluster id of prod", cluster.to_vec()),
        ("A box key", a_box_public.to_bytes().to_vec()),
        ("B box key", b_box_public.to_bytes().to_vec()),
    ];
    let host = |key: &IdentityKey, name: &str, box_key: &PublicKey, number: u8| {
        let body = HostBody {
            name: name.into(),
            boot_epoch: 5,
            box_key: box_key.to_bytes(),
            wireguard_key: [0x2a; 32],
            encapsulation: Encapsulation::Wireguard,
            mtu: Mtu::new(1420).expect("in range"),
            versions: (1, 1),
            features: 0,
            software: "0.1.0".into(),
            endpoints: vec![format!("192.0.2.{number}:51821").parse().expect("address")],
            prefixes: vec![prefix(&format!("10.42.{number}.0/24"))],
            extension: Vec::new(),
        };
        signed(key, &cluster, RecordKind::HOST, body.encode().expect("fits"))
    };
    let (a_record, b_record) = (host(&a, "h1", &a_box_public, 1), host(&b, "h2", &b_box_public, 2));
    let routes = vec![RouteAnnouncement { prefix: prefix("192.168.7.0/24"), metric: 10 }];
    let routes = RoutesBody { routes, extension: Vec::new() }.encode().expect("fits");
    let routes = signed(&a, &cluster, RecordKind::ROUTES, routes);
    vectors.push(("A HOST record", encoded(&a_record)));
    vectors.push(("A HOST record hash", record_hash(&a_record).to_vec()));
    vectors.push(("A ROUTES record", encoded(&routes)));

    let shared = a_box.diffie_hellman(&b_box_public);
    let out = Direction {
        cluster: &cluster,
        from: a.host_id(),
        to: b.host_id(),
        from_box: a_box_public.to_bytes(),
        to_box: b_box_public.to_bytes(),
    };
    let back = Direction { from: out.to, to: out.from, from_box: out.to_box, to_box: out.from_box, ..out };
    let lower = if a.host_id() < b.host_id() { out } else { back };
    vectors.push(("A to B seal key", out.seal_key(&shared).to_vec()));
    vectors.push(("A to B tag", out.tag(&shared).to_vec()));
    vectors.push(("B to A seal key", back.seal_key(&shared).to_vec()));
    vectors.push(("B to A tag", back.tag(&shared).to_vec()));
    vectors.push(("GRE key", lower.gre_key(&shared).to_be_bytes().to_vec()));
    let mut probe = Vec::new();
    Message::Probe { nonce: 0x0102_0304_0506_0708, plain: PlainStatus::Unknown }.encode(&mut probe);
    let content = Content { boot_epoch: 5, sequence: 1, message: &probe }.encode();
    let nonce = [0x3a; 24];
    vectors.push(("sealed probe content", content.clone()));
    vectors.push((
        "sealed probe",
        seal(&out.seal_key(&shared), &nonce, sealed_header(&out.tag(&shared), &nonce), &content),
    ));

    let ephemeral_secret = StaticSecret::from([0x4a; 32]);
    let ephemeral = PublicKey::from(&ephemeral_secret).to_bytes();
    let keys = IntroduceKeys::new(&ephemeral_secret, &b.public().to_x25519()).expect("contributory");
    let mut introduce = IntroduceContent {
        identity: *a.public().as_bytes(),
        boot_epoch: 5,
        counter: 1,
        nonce: 0x1112_1314_1516_1718,
        record: a_record,
        certificate: None,
        signature: [0; 64],
    };
    introduce.signature =
        a.sign(&introduce_signed_bytes(&cluster, b.host_id(), &ephemeral, &introduce.unsigned_bytes()));
    let key = keys.introduce_key(&cluster, b.host_id(), &ephemeral);
    vectors.push(("INTRODUCE key", key.to_vec()));
    vectors.push(("INTRODUCE", seal(&key, &nonce, introduce_header(&ephemeral, &nonce), &introduce.encode())));
    let transcript = AckTranscript {
        cluster: &cluster,
        initiator: a.host_id(),
        responder: b.host_id(),
        ephemeral: &ephemeral,
        responder_box: &b_box_public.to_bytes(),
        nonce: introduce.nonce,
    };
    let key = keys.ack_key(&transcript, &ephemeral_secret.diffie_hellman(&b_box_public));
    let ack = IntroduceAckContent {
        nonce: introduce.nonce,
        boot_epoch: 5,
        observed: Some("192.0.2.1:51821".parse().expect("address")),
        record: b_record,
    };
    let header = introduce_ack_header(&keys.tag(&ephemeral), &b_box_public.to_bytes(), &nonce);
    vectors.push(("INTRODUCE-ACK key", key.to_vec()));
    vectors.push(("INTRODUCE-ACK", seal(&key, &nonce, header, &ack.encode())));
    vectors.extend(membership_vectors(&a, &b, &cluster));
    vectors
}

/// Authority, certificate, token and join exchange: B is the issuer, A joins.
fn membership_vectors(a: &IdentityKey, b: &IdentityKey, cluster: &[u8; 32]) -> Vec<(&'static str, Vec<u8>)> {
    let ca = CaKey::from_bytes(&[0x0c; 32]);
    let certificate = |key: &IdentityKey, name: &str, number: u8, rights: Rights| {
        let certificate = Certificate {
            ca: ca.id(),
            identity: *key.public().as_bytes(),
            name: name.into(),
            serial: Serial(number.into()),
            admitted: Serial(number.into()),
            grants: vec![Grant::explicit(prefix(&format!("10.42.{number}.0/24")))],
            max_prefixes: 64,
            labels: Labels::from([("role".into(), "web".into())]),
            rights,
            not_before: 1_800_000_000,
            not_after: 1_802_592_000,
        };
        ca.certify(cluster, certificate).expect("fits")
    };
    let token = Token {
        ca: ca.id(),
        issuer: b.public(),
        endpoints: vec!["192.0.2.2:51821".parse().expect("address")],
        id: TokenId([0x5a; 8]),
        secret: zeroize::Zeroizing::new([0x6a; 16]),
    };
    let revoked = AuthorityBody::Revoked(vec![a.host_id()]);
    let secret = StaticSecret::from([0x4a; 32]);
    let digest = token.secret_digest();
    let transcript = JoinTranscript {
        ca: token.ca,
        issuer: b.host_id(),
        token: token.id,
        ephemeral: PublicKey::from(&secret).to_bytes(),
        secret_digest: &digest,
    };
    let keys = JoinKeys::new(&secret, &b.public().to_x25519()).expect("contributory");
    let mut join =
        JoinContent { identity: *a.public().as_bytes(), name: "h1".into(), secret: *token.secret, signature: [0; 64] };
    join.signature = a.sign(&join_signed_bytes(&transcript, &join.unsigned_bytes()));
    let answer = JoinAnswer::Admitted(Box::new(Admission {
        ca: *ca.public().as_bytes(),
        other_ca: None,
        certificate: certificate(a, "h1", 1, Rights::NONE),
        settings: ClusterSettings {
            name: "prod".into(),
            pool: vec![prefix("10.42.0.0/16")],
            encapsulation: Encapsulation::Wireguard,
            listen_port: 51821,
            policy_default: DefaultPolicy::Members,
            mtu: None,
        },
        issuer: certificate(b, "h2", 2, Rights::ISSUER | Rights::POLICY),
        endpoints: token.endpoints.clone(),
    }));
    let nonce = [0x3a; 24];
    let answer = answer.encode().expect("fits");
    vec![
        ("authority key", ca.public().as_bytes().to_vec()),
        ("authority id", ca.id().0.to_vec()),
        ("A certificate", certificate(a, "h1", 1, Rights::NONE).to_bytes()),
        ("AUTHORITY record", encoded(&ca.record(cluster, 1, 1, &revoked).expect("fits"))),
        ("token text, in ASCII", token.to_text().as_bytes().to_vec()),
        ("token secret digest", digest.to_vec()),
        ("JOIN key", keys.request_key(&transcript).to_vec()),
        ("JOIN, first 200 bytes", keys.seal_request(&transcript, &nonce, &join.encode())[..200].to_vec()),
        ("JOIN-ACK key", keys.answer_key(&transcript, a.host_id()).to_vec()),
        ("JOIN-ACK", keys.seal_answer(&transcript, a.host_id(), &nonce, &answer)),
    ]
}

fn signed(key: &IdentityKey, cluster: &[u8; 32], kind: RecordKind, body: Vec<u8>) -> Record {
    let key_of = RecordKey { owner: key.host_id(), kind, shard: 0 };
    let mut record = Record { key: key_of, version: 5, body, signature: [0; 64] };
    record.signature = key.sign(&record.signed_bytes(cluster));
    record
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

#[test]
fn document_holds_the_vectors() {
    let wanted: Vec<String> = vectors().iter().map(|(name, bytes)| format!("{name} = {}", hex(bytes))).collect();
    let start = DOCUMENT.find("```text\nA identity").map_or(DOCUMENT.len(), |at| at + "```text\n".len());
    let end = DOCUMENT[start..].find("```").map_or(DOCUMENT.len(), |at| start + at);
    // Long values continue on lines indented by two.
    let found: Vec<String> = DOCUMENT[start..end].trim_end().replace("\n  ", "").lines().map(str::to_owned).collect();
    assert_eq!(found, wanted, "the vectors of docs/gossip.md should read:\n{}", wrapped(&wanted));
}

fn wrapped(lines: &[String]) -> String {
    let mut text = String::new();
    for line in lines {
        let mut rest = line.as_str();
        while rest.len() > 118 {
            let (head, tail) = rest.split_at(if rest.len() == line.len() { 118 } else { 116 });
            let _ = writeln!(text, "{head}");
            text.push_str("  ");
            rest = tail;
        }
        let _ = writeln!(text, "{rest}");
    }
    text
}

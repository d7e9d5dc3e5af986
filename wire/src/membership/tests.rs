//! One encoding per value, and every limit holds.

use proptest::prelude::*;

use super::certificate::{MAX_CERTIFICATE_BYTES, certificate_body, decode_certificate_body};
use super::join::JOIN_CONTENT_BYTES;
use super::policy::POLICY_PIECE_BYTES;
use super::*;
use crate::gossip::body::BodyError;
use crate::gossip::envelope::{AEAD_TAG_BYTES, MAX_SENT_BYTES, join_ack_header};
use crate::gossip::{Grant, Message};
use crate::policy::DefaultPolicy;
use crate::{Encapsulation, HostId, Prefix};

fn prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32)
            .prop_map(|(addr, len)| Prefix::truncating(addr.into(), len).expect("the length fits")),
        (any::<[u8; 16]>(), 0u8..=128).prop_filter_map("a plain IPv6 prefix", |(addr, len)| {
            Prefix::truncating(addr.into(), len).ok().filter(|prefix| !prefix.is_ipv4())
        }),
    ]
}

fn grant() -> impl Strategy<Value = Grant> {
    (prefix(), any::<bool>(), any::<u8>()).prop_map(|(prefix, explicit, longest)| {
        let bits = if prefix.is_ipv4() { 32 } else { 128 };
        let longest = prefix.len() + longest % (bits - prefix.len() + 1);
        if explicit { Grant::explicit(prefix) } else { Grant::pool(prefix, longest).expect("the length fits") }
    })
}

pub(crate) fn certificate() -> impl Strategy<Value = SignedCertificate> {
    let ids = (any::<[u8; 16]>(), any::<[u8; 32]>(), "[!-~]{1,63}", any::<u64>(), any::<u64>());
    let content = (
        proptest::collection::btree_set(grant(), 0..=4),
        1u8..=64,
        proptest::collection::btree_map("[a-z]{1,12}", "[a-z0-9.]{1,12}", 0..=4),
        any::<u16>(),
        (0u64..u64::MAX / 2, 1u64..u64::MAX / 2),
    );
    (ids, content).prop_map(|((ca, identity, name, serial, admitted), (grants, max, labels, rights, time))| {
        let certificate = Certificate {
            ca: CaId(ca),
            identity,
            name,
            serial: Serial(serial),
            admitted: Serial(admitted),
            grants: grants.into_iter().collect(),
            max_prefixes: max,
            labels,
            rights: Rights(rights),
            not_before: time.0,
            not_after: time.0 + time.1,
        };
        SignedCertificate { certificate, signature: [9; 64] }
    })
}

/// The largest certificate there can be, but for its name.
fn widest(name: usize) -> SignedCertificate {
    let grants = (0..8u16).map(|n| {
        Grant::explicit(
            Prefix::truncating([0xfd, n as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(), 64).expect("fits"),
        )
    });
    let certificate = Certificate {
        ca: CaId([1; 16]),
        identity: [2; 32],
        name: "n".repeat(name),
        serial: Serial(1),
        admitted: Serial(1),
        grants: grants.collect(),
        max_prefixes: 64,
        labels: Labels::from([("kk".to_owned(), "v".repeat(31))]),
        rights: Rights::ISSUER | Rights::POLICY,
        not_before: 1,
        not_after: 2,
    };
    SignedCertificate { certificate, signature: [3; 64] }
}

proptest! {
    #[test]
    fn certificate_decodes_to_what_was_encoded(signed in certificate()) {
        prop_assert_eq!(SignedCertificate::decode(&signed.to_bytes()), Ok(signed.clone()));
        prop_assert_eq!(signed.certificate.check(), Ok(()));
        prop_assert_eq!(decode_certificate_body(&certificate_body(&signed)), Ok(signed.clone()));
        let message = Message::Certificate { nonce: 4, certificate: Box::new(signed) };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn every_cut_or_lengthened_certificate_is_refused(signed in certificate(), more in any::<u8>()) {
        let bytes = signed.to_bytes();
        for len in 0..bytes.len() {
            prop_assert!(SignedCertificate::decode(&bytes[..len]).is_err());
        }
        prop_assert!(SignedCertificate::decode(&[&bytes[..], &[more]].concat()).is_err());
    }

    #[test]
    fn whatever_decodes_encodes_to_the_same_bytes(signed in certificate(), at in any::<usize>(), bit in 0u8..8) {
        let mut bytes = signed.to_bytes();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(other) = SignedCertificate::decode(&bytes) {
            prop_assert_eq!(other.to_bytes(), bytes);
        }
    }

    #[test]
    fn revoked_hosts_decode_to_what_was_encoded(hosts in proptest::collection::btree_set(any::<[u8; 16]>(), 1..=63)) {
        let body = AuthorityBody::Revoked(hosts.into_iter().map(HostId).collect());
        let bytes = body.encode().expect("fits");
        prop_assert!(bytes.len() <= crate::gossip::record::MAX_BODY_BYTES);
        prop_assert_eq!(AuthorityBody::decode(&bytes), Ok(body));
    }

    #[test]
    fn policy_text_is_the_sum_of_its_pieces(len in 0usize..=MAX_POLICY_BYTES, revision in any::<u64>()) {
        let text: Vec<u8> = (0..len).map(|n| b'a' + (n % 26) as u8).collect();
        let pieces = PolicyShard::cut(revision, [4; 32], &text).expect("not too long");
        let mut again = Vec::new();
        for (shard, piece) in (0u16..).zip(&pieces) {
            let body = piece.encode();
            prop_assert!(body.len() <= crate::gossip::record::MAX_BODY_BYTES);
            prop_assert_eq!(PolicyShard::decode(&body, shard), Ok(piece.clone()));
            // A full piece in another place but the last is still whole there; a short one is not.
            if piece.piece.len() != POLICY_PIECE_BYTES && pieces.len() > 1 {
                prop_assert!(PolicyShard::decode(&body, 0).is_err());
            }
            prop_assert!(PolicyShard::decode(&body, u16::from(piece.count)).is_err());
            again.extend_from_slice(&piece.piece);
        }
        prop_assert_eq!(again, text);
    }
}

#[test]
fn certificate_above_the_limit_is_refused() {
    let fits = (1..=63).rev().find(|len| widest(*len).certificate.check().is_ok()).expect("some name fits");
    assert_eq!(widest(fits).to_bytes().len(), MAX_CERTIFICATE_BYTES);
    let too_long = widest(fits + 1);
    let refused = BodyError::TooLarge { bytes: MAX_CERTIFICATE_BYTES + 1, max: MAX_CERTIFICATE_BYTES };
    assert_eq!(too_long.certificate.check(), Err(refused));
    assert!(SignedCertificate::decode(&too_long.to_bytes()).is_err());
}

#[test]
fn odd_certificates_are_refused() {
    let good = widest(3).certificate;
    assert_eq!(good.check(), Ok(()));
    let label = |key: &str, value: &str| Certificate {
        labels: Labels::from([(key.to_owned(), value.to_owned())]),
        grants: Vec::new(),
        ..good.clone()
    };
    assert_eq!(label("role", "web").check(), Ok(()));
    let odd = [
        ("no name", Certificate { name: String::new(), ..good.clone() }),
        ("a space in the name", Certificate { name: "a b".into(), ..good.clone() }),
        ("no prefix", Certificate { max_prefixes: 0, ..good.clone() }),
        ("too many prefixes", Certificate { max_prefixes: 65, ..good.clone() }),
        ("no time", Certificate { not_before: 5, not_after: 5, ..good.clone() }),
        ("descending grants", Certificate { grants: good.grants.iter().rev().copied().collect(), ..good.clone() }),
        ("a grant twice", Certificate { grants: vec![good.grants[0]; 2], ..good.clone() }),
        ("a label with =", label("ro=le", "web")),
        ("an empty label", label("role", "")),
        ("a long label", label(&"k".repeat(32), "web")),
    ];
    for (what, certificate) in odd {
        assert!(certificate.check().is_err(), "{what}");
    }
}

#[test]
fn largest_admission_fits_one_datagram_and_a_join_fills_one() {
    let join = JoinContent { identity: [1; 32], name: "n".repeat(63), secret: [2; 16], signature: [3; 64] };
    assert_eq!(join.encode().len(), JOIN_CONTENT_BYTES);
    assert_eq!(JoinContent::decode(&join.encode()), Ok(join.clone()));
    let mut padded = join.encode();
    *padded.last_mut().expect("not empty") = 1;
    assert!(JoinContent::decode(&padded).is_err());
    let largest = (1..=63).rev().map(widest).find(|signed| signed.certificate.check().is_ok()).expect("some fit");
    let v6 = |n: u8| Prefix::truncating([0xfd, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(), 48).expect("fits");
    let answer = JoinAnswer::Admitted(Box::new(Admission {
        ca: [1; 32],
        other_ca: Some([2; 32]),
        certificate: largest.clone(),
        settings: ClusterSettings {
            name: "n".repeat(63),
            pool: (0..4).map(v6).collect(),
            encapsulation: Encapsulation::Ipip,
            listen_port: 1,
            policy_default: DefaultPolicy::Open,
            mtu: Some(1400),
        },
        issuer: largest,
        endpoints: (1..=4u16).map(|n| ([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 51821).into()).collect(),
    }));
    let bytes = answer.encode().expect("fits");
    assert_eq!(JoinAnswer::decode(&bytes), Ok(answer));
    assert!(join_ack_header(&[0; 8], &[0; 24]).len() + bytes.len() + AEAD_TAG_BYTES <= MAX_SENT_BYTES);
}

#[test]
fn refusals_decode_to_what_was_encoded() {
    let refusals = [
        JoinRefusal::Expired,
        JoinRefusal::UsedUp,
        JoinRefusal::NameTaken,
        JoinRefusal::NoSubnet,
        JoinRefusal::Revoked,
        JoinRefusal::Full,
        JoinRefusal::Unavailable,
    ];
    let mut codes = std::collections::BTreeSet::new();
    for refusal in refusals {
        let bytes = JoinAnswer::Refused(refusal).encode().expect("fits");
        codes.insert(bytes[2]);
        assert_eq!(JoinAnswer::decode(&bytes), Ok(JoinAnswer::Refused(refusal)));
    }
    assert_eq!(codes.len(), 7);
    assert!(JoinAnswer::decode(&[1, 2, 0]).is_err() && JoinAnswer::decode(&[1, 2, 8]).is_err());
}

#[test]
fn authority_bodies_stand_only_in_their_shards() {
    let keys = AuthorityBody::Keys { key: [1; 32], successor: None, retired: Vec::new() };
    let revoked = AuthorityBody::Revoked(vec![HostId([1; 16])]);
    assert!(keys.fits_shard(0) && !keys.fits_shard(1));
    assert!(!revoked.fits_shard(0) && !revoked.fits_shard(0x100) && revoked.fits_shard(authority_shard(3, 1)));
    assert!(AuthorityBody::Revoked(Vec::new()).encode().is_err());
    assert!(AuthorityBody::Revoked(vec![HostId([2; 16]), HostId([1; 16])]).encode().is_err());
}

#[test]
fn serial_keeps_slot_and_counter_apart() {
    let serial = Serial::new(3, 7).expect("in range");
    assert_eq!((serial.slot(), serial.counter(), serial.to_string().as_str()), (3, 7, "3.7"));
    assert!(Serial::new(3, Serial::MAX_COUNTER).expect("in range") < Serial::new(4, 0).expect("in range"));
    assert_eq!(Serial::new(0, Serial::MAX_COUNTER + 1), None);
}

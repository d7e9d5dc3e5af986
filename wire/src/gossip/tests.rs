//! Round trips, limits and garbage for every gossip format.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::body::{HostBody, RouteAnnouncement, RoutesBody};
use super::codec::Reader;
use super::envelope::{Content, Envelope, IntroduceAckContent, IntroduceContent, MAX_MESSAGE_BYTES, MAX_SENT_BYTES};
use super::message::{DIGEST_BUCKETS, MAX_VERSION_ENTRIES, Message, PlainStatus, RouteVerdict, VersionEntry};
use super::record::{MAX_BODY_BYTES, Record, RecordKey, RecordKind};
use super::trace::{TraceAnswer, TraceOutcome, TraceStep, TracedPacket};
use super::{DecodeError, body};
use crate::membership::tests::certificate;
use crate::{Encapsulation, HostId, Mtu, Prefix};

fn socket_addr() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits | 1 << 127))),
    ];
    (ip, 1u16..).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| Prefix::truncating(Ipv4Addr::from(bits).into(), len)),
        (any::<u128>(), 0u8..=128).prop_map(|(bits, len)| Prefix::truncating(Ipv6Addr::from(bits).into(), len)),
    ]
    .prop_map(|prefix| prefix.expect("length fits the family"))
}

fn key() -> impl Strategy<Value = RecordKey> {
    (any::<[u8; 16]>(), any::<u16>(), any::<u16>()).prop_map(|(owner, kind, shard)| RecordKey {
        owner: HostId(owner),
        kind: RecordKind(kind),
        shard,
    })
}

fn record() -> impl Strategy<Value = Record> {
    (key(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..=64), any::<[u8; 32]>()).prop_map(
        |(key, version, body, half)| {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&half);
            Record { key, version, body, signature }
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let plain = prop_oneof![
        Just(PlainStatus::Unknown),
        Just(PlainStatus::Ipip),
        Just(PlainStatus::Gre),
        Just(PlainStatus::Refused)
    ];
    let verdict = prop_oneof![Just(RouteVerdict::Accepted), Just(RouteVerdict::Lost), Just(RouteVerdict::TooMany)];
    let keys = || proptest::collection::btree_set(key(), 0..20);
    prop_oneof![
        (any::<u64>(), plain.clone()).prop_map(|(nonce, plain)| Message::Probe { nonce, plain }),
        (any::<u64>(), plain, proptest::option::of(socket_addr())).prop_map(|(nonce, plain, observed)| Message::Ack {
            nonce,
            plain,
            observed
        }),
        (any::<u64>(), any::<[u8; 16]>()).prop_map(|(nonce, id)| Message::IndirectProbe { nonce, target: HostId(id) }),
        (any::<u64>(), any::<[u8; 16]>()).prop_map(|(nonce, id)| Message::IndirectAck { nonce, target: HostId(id) }),
        any::<u64>().prop_map(|seed| Message::Digest(Box::new([seed; DIGEST_BUCKETS]))),
        (0u8..64, proptest::option::of(key()), proptest::option::of(key()), keys(), any::<u64>()).prop_map(
            |(bucket, after, through, keys, version)| Message::Versions {
                bucket,
                after,
                through,
                entries: keys.into_iter().map(|key| VersionEntry { key, version, hash: !version }).collect(),
            }
        ),
        keys().prop_map(|keys| Message::Want(keys.into_iter().collect())),
        proptest::collection::vec(record(), 0..4).prop_map(Message::Records),
        any::<[u8; 16]>().prop_map(|id| Message::Suspect { host: HostId(id) }),
        Just(Message::Leave),
        any::<u64>().prop_map(|version| Message::VerdictRequest { version }),
        any::<u64>().prop_map(|nonce| Message::ClockRequest { nonce }),
        any::<u64>().prop_map(|nonce| Message::CertificateRequest { nonce }),
        (any::<u64>(), certificate())
            .prop_map(|(nonce, certificate)| Message::Certificate { nonce, certificate: Box::new(certificate) }),
        (any::<u64>(), any::<u64>()).prop_map(|(nonce, unix_ms)| Message::Clock { nonce, unix_ms }),
        any::<u64>().prop_map(|nonce| Message::PathProbe { nonce }),
        (any::<u64>(), any::<(u8, u32, u32, u16, u16)>(), any::<(u16, bool)>()).prop_map(
            |(nonce, (protocol, src, dst, src_port, dst_port), (size, may_fragment))| {
                let ip = |bits: u32| IpAddr::V4(Ipv4Addr::from(bits));
                let (src, dst) = (ip(src), ip(dst));
                let packet = TracedPacket { protocol, src, dst, src_port, dst_port, size, may_fragment };
                Message::TraceRequest { nonce, packet }
            }
        ),
        (any::<u64>(), proptest::collection::vec(("[a-z]{1,16}", "[ -~]{0,112}"), 0..=8)).prop_map(|(nonce, steps)| {
            let step = |(name, text): (String, String)| TraceStep { name, outcome: TraceOutcome::Denied, text };
            Message::Trace { nonce, answer: TraceAnswer { steps: steps.into_iter().map(step).collect() } }
        }),
        (any::<u64>(), proptest::option::of(socket_addr()))
            .prop_map(|(nonce, observed)| Message::PathAck { nonce, observed }),
        (any::<u64>(), proptest::collection::btree_map(prefix(), verdict, 0..20))
            .prop_map(|(version, entries)| Message::Verdicts { version, entries: entries.into_iter().collect() }),
    ]
}

fn host() -> impl Strategy<Value = HostBody> {
    (
        "[a-z0-9.-]{1,63}",
        any::<[u8; 32]>(),
        any::<u64>(),
        prop_oneof![Just(Encapsulation::Wireguard), Just(Encapsulation::Gre), Just(Encapsulation::Ipip)],
        576u16..,
        proptest::collection::btree_set(socket_addr(), 0..=8),
        proptest::collection::btree_set(prefix(), 0..=16),
        proptest::collection::vec(any::<u8>(), 0..20),
    )
        .prop_map(|(name, key, number, encapsulation, mtu, endpoints, prefixes, extension)| HostBody {
            name,
            boot_epoch: number,
            box_key: key,
            wireguard_key: key,
            encapsulation,
            mtu: Mtu::new(mtu).expect("in range"),
            versions: (1, 3),
            features: number,
            software: "0.1.0".into(),
            endpoints: endpoints.into_iter().collect(),
            prefixes: prefixes.into_iter().collect(),
            extension,
        })
}

proptest! {
    #[test]
    fn message_decodes_to_itself(message in message()) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
        bytes.push(0);
        prop_assert!(Message::decode(&bytes).is_err());
    }

    #[test]
    fn host_body_decodes_to_itself(host in host()) {
        let bytes = host.encode().expect("within limits");
        prop_assert_eq!(HostBody::decode(&bytes), Ok(host));
    }

    #[test]
    fn decoded_garbage_encodes_to_the_same_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 1u8..=18) {
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        if let Ok(message) = Message::decode(&bytes) {
            let mut again = Vec::new();
            message.encode(&mut again);
            prop_assert_eq!(again, bytes.clone());
        }
        let _ = Envelope::parse(&bytes);
        let _ = HostBody::decode(&bytes);
        let _ = RoutesBody::decode(&bytes);
        let _ = Content::decode(&bytes);
        let _ = IntroduceContent::decode(&bytes);
        let _ = IntroduceAckContent::decode(&bytes);
    }

    #[test]
    fn flipped_byte_never_makes_a_second_encoding(message in message(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(other) = Message::decode(&bytes) {
            let mut again = Vec::new();
            other.encode(&mut again);
            prop_assert_eq!(again, bytes);
            prop_assert_ne!(other, message);
        }
    }

    #[test]
    fn content_decodes_to_itself(epoch in any::<u64>(), sequence in any::<u64>(), message in proptest::collection::vec(any::<u8>(), 0..100)) {
        let content = Content { boot_epoch: epoch, sequence, message: &message };
        let bytes = content.encode();
        prop_assert_eq!(bytes.len() % 16, 0);
        prop_assert_eq!(Content::decode(&bytes), Ok(content));
    }
}

#[test]
fn routes_unsorted_or_doubled_are_refused() {
    let route = |text: &str| RouteAnnouncement { prefix: text.parse().expect("prefix"), metric: 7 };
    let body = RoutesBody { routes: vec![route("10.2.0.0/16"), route("10.1.0.0/16")], extension: vec![] };
    let bytes = body.encode().expect("fits");
    assert_eq!(RoutesBody::decode(&bytes).expect("valid").routes, [route("10.1.0.0/16"), route("10.2.0.0/16")]);
    let (head, first, second) = (&bytes[..2], &bytes[2..12], &bytes[12..]);
    for wrong in [[head, second, first].concat(), [head, first, first].concat()] {
        assert_eq!(RoutesBody::decode(&wrong), Err(DecodeError::Value { field: "routes" }));
    }
}

#[test]
fn full_routes_record_fits_one_datagram() {
    let routes = (0..body::MAX_ROUTES_PER_RECORD as u128)
        .map(|n| RouteAnnouncement { prefix: Prefix::host(IpAddr::V6(Ipv6Addr::from(n))), metric: 0 })
        .collect();
    let body = RoutesBody { routes, extension: vec![] }.encode().expect("fits");
    assert!(body.len() <= MAX_BODY_BYTES);
    let key = RecordKey { owner: HostId([0; 16]), kind: RecordKind::ROUTES, shard: 0 };
    let record = Record { key, version: 1, body: vec![0; MAX_BODY_BYTES], signature: [0; 64] };
    let mut bytes = Vec::new();
    Message::Records(vec![record]).encode(&mut bytes);
    assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{} > {MAX_MESSAGE_BYTES}", bytes.len());
}

#[test]
fn full_version_list_fits_one_datagram() {
    let entry = |n: u8| VersionEntry {
        key: RecordKey { owner: HostId([n; 16]), kind: RecordKind::HOST, shard: 0 },
        version: 1,
        hash: 2,
    };
    let entries: Vec<_> = (0..MAX_VERSION_ENTRIES as u8).map(entry).collect();
    let message = Message::Versions { bucket: 0, after: Some(entry(0).key), through: Some(entry(29).key), entries };
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{} > {MAX_MESSAGE_BYTES}", bytes.len());
}

#[test]
fn full_introduce_fits_one_datagram() {
    let key = RecordKey { owner: HostId([0; 16]), kind: RecordKind::HOST, shard: 0 };
    let record = Record { key, version: 1, body: vec![0; body::MAX_HOST_BODY_BYTES], signature: [0; 64] };
    let header = super::envelope::introduce_header(&[0; 32], &[0; 24]);
    let mut content = IntroduceContent {
        identity: [0; 32],
        boot_epoch: 0,
        counter: 0,
        nonce: 0,
        record,
        certificate: None,
        signature: [0; 64],
    };
    assert!(header.len() + content.encode().len() + 16 <= MAX_SENT_BYTES);
    // With a certificate the HOST record is smaller, and both fill the datagram.
    content.record.body.truncate(body::MAX_CERTIFIED_HOST_BODY_BYTES);
    let body = vec![0; crate::membership::certificate::MAX_CERTIFICATE_BYTES + 1];
    content.certificate = Some(Record { body, ..content.record.clone() });
    assert_eq!(header.len() + content.encode().len() + 16, MAX_SENT_BYTES);
}

#[test]
fn record_of_a_later_format_is_refused_by_name() {
    let key = RecordKey { owner: HostId([0; 16]), kind: RecordKind(9), shard: 0 };
    let mut bytes = Vec::new();
    Record { key, version: 1, body: vec![1], signature: [0; 64] }.encode(&mut bytes);
    bytes[0] = 2;
    let error = Record::decode(&mut Reader::new(&bytes)).expect_err("format 2 is unknown");
    assert_eq!(error.to_string(), "format version 2 of record is not known");
}

#[test]
fn envelope_shorter_than_its_tag_is_refused() {
    for len in 0..50 {
        let mut bytes = vec![0; len];
        if len > 1 {
            (bytes[0], bytes[1]) = (super::envelope::SEALED, 1);
        }
        assert_eq!(Envelope::parse(&bytes).is_ok(), len >= 50, "{len}");
    }
    assert!(Envelope::parse(&[0x20; 1401]).is_err());
}

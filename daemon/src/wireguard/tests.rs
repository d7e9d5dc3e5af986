//! Two tunnels against each other, and against what the wrapper must refuse.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;

struct Pair {
    a: Tunnel,
    b: Tunnel,
    b_keys: Keys,
    a_public: PublicKeyBytes,
}

fn pair() -> Pair {
    let (a_keys, b_keys) = (Keys::from_secret([1; 32]), Keys::from_secret([2; 32]));
    Pair {
        a: Tunnel::new(&a_keys, &b_keys.public(), None, None, 0xa1_b2_c3),
        b: Tunnel::new(&b_keys, &a_keys.public(), None, None, 0x01_02_03),
        a_public: a_keys.public(),
        b_keys,
    }
}

fn packet() -> Vec<u8> {
    let mut out = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 42, 1, 5], [10, 42, 2, 5], 64)
        .udp(1, 2)
        .write(&mut out, b"payload")
        .expect("a small packet");
    out
}

fn connect(pair: &mut Pair) {
    let now = Instant::now();
    let (mut x, mut y) = ([0; HANDSHAKE_MAX], [0; HANDSHAKE_MAX]);
    let len = pair.a.initiate(now, &mut x).expect("an initiation");
    let reply = pair.b.handle_handshake(&x[..len], now, &mut y).reply.expect("a response");
    let outcome = pair.a.handle_handshake(&y[..reply], now, &mut x);
    assert!(outcome.established && outcome.authenticated);
    let keepalive = outcome.reply.expect("a keepalive");
    assert_eq!(pair.b.open(&x[..keepalive], &mut [0; 200]), Ok(Opened { len: 0, newest: true }));
    assert!(pair.b.has_session());
}

#[test]
fn packets_cross_in_both_directions() {
    let mut pair = pair();
    connect(&mut pair);
    let packet = packet();
    let (mut sealed, mut opened) = ([0; 300], [0; 300]);
    let len = pair.b.seal(&packet, &mut sealed).expect("a session");
    assert_eq!(receiver_index(&sealed[..len]).map(|index| index >> 8), Some(0xa1_b2_c3));
    assert_eq!(pair.a.open(&sealed[..len], &mut opened).map(|opened| opened.len), Ok(packet.len()));
    assert_eq!(&opened[..packet.len()], packet);
}

#[test]
fn padding_is_cut_off_again() {
    let mut pair = pair();
    connect(&mut pair);
    let mut packet = packet();
    let len = packet.len();
    packet.resize(len.next_multiple_of(16), 0);
    let (mut sealed, mut opened) = ([0; 300], [0; 300]);
    let sealed_len = pair.a.seal(&packet, &mut sealed).expect("a session");
    assert_eq!(pair.b.open(&sealed[..sealed_len], &mut opened).map(|opened| opened.len), Ok(len));
}

#[test]
fn without_a_session_nothing_is_sealed() {
    let mut pair = pair();
    assert!(!pair.a.has_session());
    assert_eq!(pair.a.seal(&packet(), &mut [0; 300]), Err(SealError::NoSession));
}

#[test]
fn short_output_is_refused_not_a_panic() {
    let mut pair = pair();
    connect(&mut pair);
    assert_eq!(pair.a.seal(&packet(), &mut [0; 60]), Err(SealError::OutputTooShort));
    let mut sealed = [0; 300];
    let len = pair.a.seal(&packet(), &mut sealed).expect("a session");
    assert_eq!(pair.b.open(&sealed[..len], &mut [0; 20]), Err(OpenError::OutputTooShort));
}

#[test]
fn replay_and_counter_at_the_limit_are_refused() {
    let mut pair = pair();
    connect(&mut pair);
    let (mut sealed, mut opened) = ([0; 300], [0; 300]);
    let len = pair.a.seal(&packet(), &mut sealed).expect("a session");
    assert!(pair.b.open(&sealed[..len], &mut opened).is_ok());
    assert_eq!(pair.b.open(&sealed[..len], &mut opened), Err(OpenError::Replay));
    for counter in [u64::MAX, REJECT_AFTER_MESSAGES] {
        sealed[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(pair.b.open(&sealed[..len], &mut opened), Err(OpenError::CounterLimit));
    }
    sealed[8..16].copy_from_slice(&(REJECT_AFTER_MESSAGES - 1).to_le_bytes());
    assert_eq!(pair.b.open(&sealed[..len], &mut opened), Err(OpenError::Authentication));
}

#[test]
fn reordered_packet_is_not_the_newest() {
    let mut pair = pair();
    connect(&mut pair);
    let (mut first, mut second, mut opened) = ([0; 300], [0; 300], [0; 300]);
    let first_len = pair.a.seal(&packet(), &mut first).expect("a session");
    let second_len = pair.a.seal(&packet(), &mut second).expect("a session");
    assert!(pair.b.open(&second[..second_len], &mut opened).expect("authentic").newest);
    assert!(!pair.b.open(&first[..first_len], &mut opened).expect("authentic").newest);
}

#[test]
fn every_truncation_and_flip_is_refused() {
    let mut pair = pair();
    connect(&mut pair);
    let mut sealed = [0; 300];
    let len = pair.a.seal(&packet(), &mut sealed).expect("a session");
    for cut in 0..len {
        assert!(pair.b.open(&sealed[..cut], &mut [0; 300]).is_err(), "cut at {cut}");
    }
    for at in 0..len {
        let mut changed = sealed;
        changed[at] ^= 0x10;
        assert!(pair.b.open(&changed[..len], &mut [0; 300]).is_err(), "flip at {at}");
    }
    assert!(pair.b.open(&sealed[..len], &mut [0; 300]).is_ok(), "the true one still passes");
}

#[test]
fn low_order_points_are_named() {
    let mut points = vec![[0; 32]];
    points.push({
        let mut one = [0; 32];
        one[0] = 1;
        one
    });
    // p - 1, little endian.
    points.push({
        let mut point = [0xff; 32];
        (point[0], point[31]) = (0xec, 0x7f);
        point
    });
    for point in points {
        assert!(is_low_order(&point), "{point:?}");
    }
    assert!(!is_low_order(&Keys::from_secret([9; 32]).public()));
}

#[test]
fn front_reads_the_initiator_and_drops_strangers_forms() {
    let mut pair = pair();
    let now = Instant::now();
    let from: SocketAddr = "192.0.2.7:5".parse().expect("an address");
    let mut front = Front::new(pair.b_keys.clone(), now);
    let (mut message, mut out) = ([0; HANDSHAKE_MAX], [0; HANDSHAKE_MAX]);
    pair.a.initiate(now, &mut message).expect("an initiation");
    assert_eq!(front.admit(from, &message, now, &mut out), Admission::Initiation(pair.a_public));
    let mut forged = message;
    forged[140] ^= 1;
    forged[120] ^= 1;
    assert_eq!(front.admit(from, &forged, now, &mut out), Admission::Drop("handshake_mac"));
    assert_eq!(front.admit(from, &message[..147], now, &mut out), Admission::Drop("handshake_malformed"));
}

#[test]
fn one_source_runs_out_of_tokens_and_recovers() {
    let pair = pair();
    let now = Instant::now();
    let mut front = Front::new(pair.b_keys, now);
    let mut out = [0; HANDSHAKE_MAX];
    let mut message = [0; HANDSHAKE_MAX];
    message[0] = 1;
    let from = |last: u8| SocketAddr::from(([192, 0, 2, last], 5));
    let mut dropped = 0;
    for _ in 0..100 {
        if front.admit(from(1), &message, now, &mut out) == Admission::Drop("handshake_rate") {
            dropped += 1;
        }
    }
    assert_eq!(dropped, 90);
    assert_eq!(front.admit(from(2), &message, now, &mut out), Admission::Drop("handshake_mac"));
    let later = now + Duration::from_secs(1);
    assert_eq!(front.admit(from(1), &message, later, &mut out), Admission::Drop("handshake_mac"));
}

#[test]
fn under_load_a_cookie_is_asked_for_and_honoured() {
    let mut pair = pair();
    let now = Instant::now();
    let mut front = Front::new(pair.b_keys.clone(), now);
    let (mut message, mut out) = ([0; HANDSHAKE_MAX], [0; HANDSHAKE_MAX]);
    pair.a.initiate(now, &mut message).expect("an initiation");
    let mut cookie = None;
    for i in 0..=300u16 {
        let from = SocketAddr::from(([198, 51, (i >> 8) as u8, i as u8], 5));
        if let Admission::Cookie(len) = front.admit(from, &message, now, &mut out) {
            cookie = Some((from, out[..len].to_vec()));
            break;
        }
    }
    let (from, cookie) = cookie.expect("a cookie under load");
    assert!(cookie.len() < message.len(), "an answer is smaller than its cause");
    let outcome = pair.a.handle_handshake(&cookie, now, &mut out);
    assert!(!outcome.authenticated && outcome.reply.is_none());
    let len = pair.a.format_initiation(&mut message).expect("a repeat");
    assert!(matches!(front.admit(from, &message[..len], now, &mut out), Admission::Initiation(_)));
    // The cookie is bound to the port.
    let other_port = SocketAddr::new(from.ip(), 6);
    assert!(matches!(front.admit(other_port, &message[..len], now, &mut out), Admission::Cookie(_)));
}

#[test]
fn first_initiation_is_repeated_within_a_second() {
    let mut pair = pair();
    let now = Instant::now();
    let mut out = [0; HANDSHAKE_MAX];
    assert!(pair.a.initiate(now, &mut out).is_some());
    assert!(pair.a.initiate(now, &mut out).is_none(), "one at a time");
    assert!(pair.a.tick(now + Duration::from_millis(100), &mut out).is_none());
    assert_eq!(pair.a.tick(now + Duration::from_millis(260), &mut out), Some(HANDSHAKE_MAX));
    assert_eq!(pair.a.tick(now + Duration::from_millis(770), &mut out), Some(HANDSHAKE_MAX));
}

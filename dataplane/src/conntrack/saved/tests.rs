//! Save, load, and the same verdicts; then what must differ: time that passed, a new policy, windows, ends not seen.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::testing::*;
use crate::*;

const A: &str = "10.42.1.5";
const B: &str = "10.42.2.5";
/// Only h1 may begin; what comes back does so by state alone.
const ONE_WAY: &str = "allow any from host:h1 to any\ndefault deny";

fn save(table: &Conntrack, now: Instant) -> Vec<u8> {
    let mut flows = Vec::new();
    for pass in [Pass::Assured, Pass::Others] {
        let mut cursor = Cursor::default();
        while table.save(pass, &mut cursor, now, &mut flows) {}
    }
    flows
}

/// The same host after a restart `gap` later, with another secret and other revisions.
fn restarted(world: &World, saved: SavedWhile, gap: Duration, rules: &str, capacity: usize) -> (World, Restored) {
    let now = world.now + gap;
    let table = Arc::new(Conntrack::new(capacity, [9; 16], now));
    let restored = table.restore(&save(world.engine.conntrack(), world.now), saved, gap, now);
    let mut tables = tables(rules);
    tables.revision = 1;
    (World { tables, engine: Engine::for_worker(&table, now), now, reply: Reply::new() }, restored)
}

fn after(world: &World, saved: SavedWhile) -> World {
    restarted(world, saved, Duration::ZERO, ONE_WAY, 1024).0
}

#[derive(Clone, Debug)]
enum Kind {
    Tcp { flags: u8, seq: u32, ack: u32, len: usize },
    Udp,
    Echo { kind: u8 },
}

#[derive(Clone, Debug)]
struct Step {
    out: bool,
    port: u16,
    v6: bool,
    kind: Kind,
    pause: u64,
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let flags = prop_oneof![
        1 => Just(SYN),
        1 => Just(SYN | ACK),
        4 => Just(ACK),
        1 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
    ];
    // Few numbers, so that segments often fit each other.
    let number = prop_oneof![Just(1000), Just(1001), Just(1002), Just(1102), Just(900_000_000u32)];
    let tcp = (flags, number.clone(), number, prop_oneof![Just(0usize), Just(100)])
        .prop_map(|(flags, seq, ack, len)| Kind::Tcp { flags, seq, ack, len });
    let echo = prop_oneof![Just(8u8), Just(0)].prop_map(|kind| Kind::Echo { kind });
    let kind = prop_oneof![6 => tcp, 2 => Just(Kind::Udp), 1 => echo];
    let step = (any::<bool>(), 1u16..4, prop::bool::weighted(0.2), kind, prop_oneof![5 => Just(0u64), 1 => 1..40u64])
        .prop_map(|(out, port, v6, kind, pause)| Step { out, port, v6, kind, pause });
    prop::collection::vec(step, 0..most)
}

impl World {
    fn step(&mut self, step: &Step) -> Verdict {
        self.advance(step.pause);
        let (near, far) = if step.v6 { ("fd42:0:0:1::5", "fd42:0:0:2::5") } else { (A, B) };
        let (src, sport, dst, dport) = if step.out { (near, step.port, far, 80) } else { (far, 80, near, step.port) };
        let mut bytes = match step.kind {
            Kind::Tcp { flags, seq, ack, len } => {
                let ack = if flags & ACK == 0 { 0 } else { ack };
                let len = if flags & SYN == 0 { len } else { 0 };
                segment(src, sport, dst, dport, flags, seq, ack, len)
            }
            Kind::Udp => udp(src, sport, dst, dport, 20),
            Kind::Echo { kind } => {
                let kind = if step.v6 { if kind == 8 { 128 } else { 129 } } else { kind };
                icmp(src, dst, kind, 0, step.port, &[])
            }
        };
        let verdict = if step.out { self.out(&mut bytes) } else { self.from(H2, &mut bytes) };
        // How many answers were given before is not kept, and says nothing about flows.
        match verdict {
            Verdict::DropWithReply(reason) => Verdict::Drop(reason),
            other => other,
        }
    }
}

proptest! {
    #[test]
    fn saved_and_loaded_gives_the_same_verdicts(before in steps(40), later in steps(40)) {
        let mut world = World::new(ONE_WAY);
        for step in &before {
            world.step(step);
        }
        let mut copy = after(&world, SavedWhile::Stopped);
        prop_assert_eq!(copy.flows().len(), world.flows().len());
        for (number, step) in later.iter().enumerate() {
            prop_assert_eq!(copy.step(step), world.step(step), "step {}: {:?}", number, step);
        }
        // The peer is known again from the first packet; all else is as it was.
        let shown = |world: &World| {
            let flows = world.flows().into_iter().map(|flow| FlowSnapshot { peer: None, ..flow });
            let mut flows: Vec<String> = flows.map(|flow| format!("{flow:?}")).collect();
            // Echoes with different identifiers look alike, and their order is that of the secret.
            flows.sort();
            flows
        };
        prop_assert_eq!(shown(&copy), shown(&world));
    }

    #[test]
    fn what_passed_before_a_kill_passes_after_it(before in steps(40), next in steps(8)) {
        let mut world = World::new(ONE_WAY);
        for step in &before {
            world.step(step);
        }
        for step in &next {
            let mut copy = after(&world, SavedWhile::Running);
            let verdict = copy.step(step);
            if world.step(step).drop_reason().is_none() {
                prop_assert_eq!(verdict.drop_reason(), None, "{:?}", step);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..FLOW_BYTES * 8), repair: bool) {
        if repair {
            // Kinds and addresses that get past the first look.
            for flow in bytes.chunks_mut(FLOW_BYTES).filter(|flow| flow.len() == FLOW_BYTES) {
                flow[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
                flow[16..28].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
                flow[37] %= 4;
                flow[36] = [17, 1, 253, 6][usize::from(flow[37])];
                flow[38] %= 4;
            }
        }
        let mut world = World::fresh(ONE_WAY, Limits { conntrack_entries: 64 });
        let table = Arc::clone(world.engine.conntrack());
        let restored = table.restore(&bytes, SavedWhile::Running, Duration::from_millis(100), world.now);
        prop_assert_eq!(table.len(), restored.flows);
        let records = bytes.len().div_ceil(FLOW_BYTES);
        prop_assert_eq!(restored.flows + restored.expired + restored.refused, records);
        for flow in world.flows() {
            let Tuple { src, dst, .. } = flow.tuple;
            world.out(&mut udp(&src.to_string(), 1, &dst.to_string(), 2, 0));
        }
        world.advance(24 * 3600 + 1);
        for _ in 0..10 {
            table.expire(world.now);
        }
        prop_assert!(world.flows().is_empty());
    }
}

#[test]
fn every_written_flow_is_read_back() {
    let mut world = World::new(ONE_WAY);
    world.connect(A, 1, B, 80);
    world.out(&mut udp(A, 2, B, 53, 9));
    world.out(&mut icmp(A, B, 8, 0, 7, &[]));
    world.out(&mut packet(A, B, 50, &[0; 32]));
    let flows = save(world.engine.conntrack(), world.now);
    assert_eq!(flows.len(), 4 * FLOW_BYTES);
    let copy = after(&world, SavedWhile::Stopped);
    let mut again = save(copy.engine.conntrack(), copy.now);
    // The order is that of another secret.
    let sorted = |bytes: &mut Vec<u8>| {
        let mut records: Vec<_> = bytes.chunks(FLOW_BYTES).map(<[u8]>::to_vec).collect();
        records.sort();
        records
    };
    assert_eq!(sorted(&mut again), sorted(&mut flows.clone()));
}

#[test]
fn time_without_the_daemon_counts() {
    let mut world = World::new(ONE_WAY);
    world.connect(A, 1, B, 80);
    world.out(&mut udp(A, 2, B, 53, 0));
    world.advance(10);
    let (copy, restored) = restarted(&world, SavedWhile::Stopped, Duration::from_secs(19), ONE_WAY, 1024);
    assert_eq!(restored, Restored { flows: 2, expired: 0, refused: 0 });
    let flows = copy.flows();
    let unanswered = flows.iter().find(|flow| flow.tuple.src_port == 2).expect("the UDP flow is there");
    assert_eq!((unanswered.timeout, unanswered.age), (Duration::from_secs(1), Duration::from_secs(29)));
    let (copy, restored) = restarted(&world, SavedWhile::Stopped, Duration::from_secs(20), ONE_WAY, 1024);
    assert_eq!(restored, Restored { flows: 1, expired: 1, refused: 0 });
    assert_eq!(copy.flows()[0].state, FlowState::Established);
}

#[test]
fn new_policy_is_asked_before_a_flow_is_used() {
    let mut world = World::new(ONE_WAY);
    for port in [53, 54] {
        world.out(&mut udp(A, 9, B, port, 0));
        assert_eq!(world.from(H2, &mut udp(B, port, A, 9, 0)), Verdict::Deliver);
    }
    let rules = "deny udp/53 from any to any\nallow udp from host:h1 to any\ndefault deny";
    let (mut copy, _) = restarted(&world, SavedWhile::Stopped, Duration::ZERO, rules, 1024);
    assert_eq!(copy.from(H2, &mut udp(B, 53, A, 9, 0)), Verdict::Drop(DropReason::PolicyRevoked));
    assert_eq!(copy.from(H2, &mut udp(B, 54, A, 9, 0)), Verdict::Deliver);
}

#[test]
fn windows_count_after_a_stop_and_not_after_a_kill() {
    let mut world = World::new(ONE_WAY);
    world.connect(A, 1, B, 80);
    let mut far = segment(B, 80, A, 1, ACK, 5001 + 900_000_000, 1001, 10);
    let mut copy = after(&world, SavedWhile::Stopped);
    assert_eq!(copy.from(H2, &mut far), Verdict::Drop(DropReason::TcpWindow));
    let mut copy = after(&world, SavedWhile::Running);
    assert_eq!(copy.from(H2, &mut far), Verdict::Deliver);
}

#[test]
fn connection_whose_end_was_missed_gives_way_to_a_new_one() {
    let mut world = World::new(ONE_WAY);
    world.connect(A, 1, B, 80);
    let again = |world: &mut World| {
        assert_eq!(world.out(&mut segment(A, 1, B, 80, SYN, 77_000, 0, 0)), Verdict::Forward(H2));
        world.from(H2, &mut segment(B, 80, A, 1, SYN | ACK, 88_000, 77_001, 0))
    };
    let long = Duration::from_secs(60);
    assert_eq!(again(&mut after(&world, SavedWhile::Running)), Verdict::Deliver);
    assert_eq!(again(&mut restarted(&world, SavedWhile::Stopped, long, ONE_WAY, 1024).0), Verdict::Deliver);
    // Nothing can have been missed, or the connection has shown since that it lives.
    assert_eq!(again(&mut after(&world, SavedWhile::Stopped)), Verdict::Drop(DropReason::TcpState));
    let mut alive = after(&world, SavedWhile::Running);
    assert_eq!(alive.out(&mut segment(A, 1, B, 80, ACK, 1001, 5001, 10)), Verdict::Forward(H2));
    assert_eq!(again(&mut alive), Verdict::Drop(DropReason::TcpState));
}

#[test]
fn mid_stream_pickup_ends_with_a_full_account_only() {
    let world = World::new("");
    for (saved, expected) in
        [(SavedWhile::Stopped, Verdict::Drop(DropReason::TcpNoFlow)), (SavedWhile::Running, Verdict::Forward(H2))]
    {
        let (mut copy, _) = restarted(&world, saved, Duration::ZERO, "", 1024);
        assert_eq!(copy.out(&mut segment(A, 1, B, 80, ACK, 1, 1, 10)), expected, "{saved:?}");
    }
}

#[test]
fn smaller_table_takes_agreed_flows_and_its_shares_hold() {
    let mut world = World::fresh("", Limits { conntrack_entries: 8192 });
    for n in 0..1000u32 {
        let source = format!("10.42.1.{}", 2 + n % 200);
        world.out(&mut udp(&source, 1000 + (n / 200) as u16, B, 53, 0));
    }
    world.connect("10.42.1.250", 1, B, 80);
    let (mut copy, restored) = restarted(&world, SavedWhile::Stopped, Duration::ZERO, "", 64);
    assert_eq!((restored.flows, restored.refused), (64, 1001 - 64));
    assert_eq!(copy.engine.conntrack().len(), 64);
    let verdict = copy.out(&mut segment("10.42.1.250", 1, B, 80, ACK, 1001, 5001, 10));
    assert_eq!(verdict, Verdict::Forward(H2), "the agreed flow came first");
    let mut one = World::fresh("", Limits { conntrack_entries: 8192 });
    for port in 0..500 {
        one.out(&mut udp(A, 1000 + port, B, 53, 0));
    }
    let (_, restored) = restarted(&one, SavedWhile::Stopped, Duration::ZERO, "", 1024);
    assert_eq!(restored.flows, 1024 / 8, "one source's share of the new table");
}

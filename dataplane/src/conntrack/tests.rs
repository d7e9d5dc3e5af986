//! The flow table as a whole: exhaustion, shares, expiry, listing, TCP walks.

use std::time::Duration;

use super::entry::Entry;
use super::*;
use crate::testing::*;
use crate::*;

const A: &str = "10.42.1.5";
const B: &str = "10.42.2.5";

#[test]
fn default_capacity_fits_64_mib() {
    assert!(size_of::<Entry>() <= 256, "{} bytes per flow", size_of::<Entry>());
    let table = Conntrack::new(262_144, [0; 16], Instant::now());
    assert!(table.reserved_bytes() <= 64 << 20, "{} bytes", table.reserved_bytes());
}

#[test]
fn flood_from_one_source_breaks_nobody_else() {
    let mut world = World::fresh("", Limits { conntrack_entries: 8192 });
    for port in 0..200 {
        world.connect(A, 1000 + port, B, 80);
    }
    let mut refused = 0;
    for n in 0..40_000u32 {
        let (port, dport) = ((n % 60_000) as u16 + 1, (n / 60_000) as u16 + 1);
        let flood = world.out(&mut segment("10.42.1.66", port, "10.42.2.9", dport, SYN, n, 0, 0));
        refused += u32::from(flood == Verdict::Drop(DropReason::SourceShare));
        if n % 100 == 0 {
            let other = world.out(&mut segment("10.42.1.7", port, B, 443, SYN, 1, 0, 0));
            assert_eq!(other, Verdict::Forward(H2), "another source's new flow at packet {n}");
        }
    }
    assert_eq!(refused, 40_000 - 8192 / 8, "the flood got its share and no more");
    for port in 0..200 {
        let verdict = world.out(&mut segment(A, 1000 + port, B, 80, ACK, 1001, 5001, 10));
        assert_eq!(verdict, Verdict::Forward(H2), "established flow {port}");
    }
}

#[test]
fn flood_from_many_sources_evicts_unanswered_flows_only() {
    let mut world = World::fresh("", Limits { conntrack_entries: 8192 });
    for port in 0..200 {
        world.connect(A, 1000 + port, B, 80);
    }
    for n in 0..100_000u32 {
        let src = format!("10.42.1.{}", 20 + n % 200);
        let verdict = world.out(&mut segment(&src, (n / 200) as u16 + 1, "10.42.2.9", 80, SYN, n, 0, 0));
        assert_eq!(verdict, Verdict::Forward(H2));
    }
    assert!(world.engine.conntrack().len() <= 8192);
    for port in 0..200 {
        let verdict = world.out(&mut segment(A, 1000 + port, B, 80, ACK, 1001, 5001, 10));
        assert_eq!(verdict, Verdict::Forward(H2), "established flow {port}");
    }
}

#[test]
fn shares_come_back_when_flows_end() {
    let mut world = World::new("");
    let open = |world: &mut World| {
        (0..500u16).filter(|port| world.out(&mut udp(A, port + 1, B, 80, 0)) == Verdict::Forward(H2)).count()
    };
    assert_eq!(open(&mut world), 128);
    world.advance(31);
    for _ in 0..10 {
        world.engine.conntrack().expire(world.now);
    }
    assert!(world.flows().is_empty());
    assert_eq!(open(&mut world), 128);
}

#[test]
fn udp_lives_30_seconds_unanswered_and_120_answered() {
    let mut world = World::new("");
    world.out(&mut udp(A, 1, B, 53, 0));
    assert_eq!(world.flows()[0].timeout, Duration::from_secs(30));
    world.advance(29);
    assert_eq!(world.from(H2, &mut udp(B, 53, A, 1, 0)), Verdict::Deliver);
    assert_eq!(world.flows()[0].timeout, Duration::from_secs(120));
    assert_eq!(world.flows()[0].state, FlowState::Replied);
    // Refused to begin with from this side, so passing shows the flow is known.
    world.set_policy("allow udp from host:h1 to any\ndefault deny");
    world.advance(119);
    assert_eq!(world.from(H2, &mut udp(B, 53, A, 1, 0)), Verdict::Deliver);
    world.advance(120);
    assert_eq!(world.from(H2, &mut udp(B, 53, A, 1, 0)), Verdict::Drop(DropReason::PolicyDefault));
}

#[test]
fn echo_replies_pass_only_for_requests_made() {
    let mut world = World::new("allow icmp from host:h1 to any\ndefault deny");
    let no_flow = Verdict::Drop(DropReason::IcmpNoFlow);
    assert_eq!(world.from(H2, &mut icmp(B, A, 0, 0, 7, &[])), no_flow);
    assert_eq!(world.out(&mut icmp(A, B, 8, 0, 7, &[])), Verdict::Forward(H2));
    assert_eq!(world.from(H2, &mut icmp(B, A, 0, 0, 8, &[])), no_flow);
    assert_eq!(world.from(H2, &mut icmp(B, A, 0, 0, 7, &[])), Verdict::Deliver);
    assert_eq!(world.from(H2, &mut icmp(B, A, 8, 0, 7, &[])), Verdict::Drop(DropReason::PolicyDefault));
}

#[test]
fn echo_with_identifier_zero_passes_in_its_direction_only() {
    let mut world = World::new("allow icmp from host:h1 to any\ndefault deny");
    assert_eq!(world.out(&mut icmp(A, B, 8, 0, 0, &[])), Verdict::Forward(H2));
    assert_eq!(world.from(H2, &mut icmp(B, A, 8, 0, 0, &[])), Verdict::Drop(DropReason::IcmpNoFlow));
    assert_eq!(world.from(H2, &mut icmp(B, A, 0, 0, 0, &[])), Verdict::Deliver);
}

#[test]
fn bare_segments_open_nothing_after_the_first_minute() {
    let mut world = World::new("allow any from any to any");
    for flags in [ACK, ACK | FIN, RST, RST | ACK, SYN | ACK] {
        let verdict = world.out(&mut segment(A, 1, B, 80, flags, 1, 1, 0));
        assert_eq!(verdict, Verdict::Drop(DropReason::TcpNoFlow), "flags {flags:#x}");
    }
    assert!(world.flows().is_empty());
}

#[test]
fn mid_stream_is_picked_up_in_the_first_minute_if_the_rules_allow_either_direction() {
    let rules = "allow tcp/80 from host:h1 to host:h2\ndefault deny";
    let limits = Limits::default();
    let mut world = World::fresh(rules, limits);
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1000, ACK, 77, 99, 500)), Verdict::Deliver, "by its reverse");
    assert_eq!(world.out(&mut segment(A, 1000, B, 80, ACK, 99, 577, 0)), Verdict::Forward(H2));
    assert_eq!(world.flows()[0].tuple.dst_port, 80, "the direction the rules allow is the original one");
    let no_flow = Verdict::Drop(DropReason::TcpNoFlow);
    assert_eq!(world.from(H2, &mut segment(B, 81, A, 1000, ACK, 77, 99, 500)), no_flow, "no rule either way");
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1001, RST, 77, 99, 0)), no_flow, "a reset opens nothing");
    world.advance(60);
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1002, ACK, 77, 99, 500)), no_flow, "the minute is over");
}

#[test]
fn connection_walks_through_its_states() {
    let mut world = World::new("");
    let state = |world: &World| world.flows()[0].state;
    world.out(&mut segment(A, 1, B, 80, SYN, 1000, 0, 0));
    assert_eq!(state(&world), FlowState::SynSent);
    world.from(H2, &mut segment(B, 80, A, 1, SYN | ACK, 5000, 1001, 0));
    assert_eq!(state(&world), FlowState::SynReceived);
    world.out(&mut segment(A, 1, B, 80, ACK, 1001, 5001, 0));
    assert_eq!(state(&world), FlowState::Established);
    world.out(&mut segment(A, 1, B, 80, ACK | FIN, 1001, 5001, 10));
    assert_eq!(state(&world), FlowState::FinWait);
    world.from(H2, &mut segment(B, 80, A, 1, ACK, 5001, 1012, 100));
    assert_eq!(state(&world), FlowState::FinWait);
    world.from(H2, &mut segment(B, 80, A, 1, ACK | FIN, 5101, 1012, 0));
    assert_eq!(state(&world), FlowState::LastAck);
    assert_eq!(world.out(&mut segment(A, 1, B, 80, ACK, 1012, 5102, 0)), Verdict::Forward(H2));
    assert_eq!(state(&world), FlowState::TimeWait);
    assert_eq!(world.out(&mut segment(A, 1, B, 80, SYN, 90_000, 0, 0)), Verdict::Forward(H2));
    assert_eq!(state(&world), FlowState::SynSent, "the tuple is used again");
    assert_eq!(world.flows().len(), 1);
}

#[test]
fn reset_ends_the_flow_only_with_the_exact_number() {
    let mut world = World::new("");
    world.connect(A, 1000, B, 80);
    // Within the window, but not exact: the receiver will ask back.
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1000, RST, 5001 + 500, 0, 0)), Verdict::Deliver);
    assert_eq!(world.flows()[0].state, FlowState::Established);
    let reset = Verdict::Drop(DropReason::TcpReset);
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1000, RST, 5000, 0, 0)), reset, "before what is acknowledged");
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1000, RST, 5001 + 2_000_000, 0, 0)), reset, "beyond the window");
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1000, RST, 5001, 0, 0)), Verdict::Deliver);
    assert_eq!(world.flows()[0].state, FlowState::Closed);
}

#[test]
fn reset_of_a_syn_must_acknowledge_it() {
    let mut world = World::new("");
    world.out(&mut segment(A, 1, B, 80, SYN, 1000, 0, 0));
    let reset = Verdict::Drop(DropReason::TcpReset);
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1, RST, 0, 0, 0)), reset);
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1, RST | ACK, 0, 1002, 0)), reset);
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1, RST | ACK, 0, 1001, 0)), Verdict::Deliver);
}

#[test]
fn restarted_opener_resets_the_old_half_of_its_connection() {
    let mut world = World::new("");
    world.connect(A, 1000, B, 80);
    assert_eq!(world.out(&mut segment(A, 1000, B, 80, SYN, 888_888, 0, 0)), Verdict::Forward(H2));
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1000, ACK, 5001, 1001, 0)), Verdict::Deliver, "challenge ACK");
    assert_eq!(world.out(&mut segment(A, 1000, B, 80, RST, 1001, 0, 0)), Verdict::Forward(H2));
    assert_eq!(world.out(&mut segment(A, 1000, B, 80, SYN, 888_888, 0, 0)), Verdict::Forward(H2));
    let answer = world.from(H2, &mut segment(B, 80, A, 1000, SYN | ACK, 70_000, 888_889, 0));
    assert_eq!(answer, Verdict::Deliver);
}

#[test]
fn listing_and_killing_choose_by_selector() {
    let mut world = World::new("");
    world.connect(A, 1000, B, 80);
    world.out(&mut udp(A, 1, B, 53, 100));
    world.out(&mut udp("10.42.1.6", 1, "10.42.3.9", 53, 0));
    let tcp = FlowSelector { protocol: Some(6), ..FlowSelector::default() };
    let flows = world.engine.flows(&tcp, 10, world.now);
    assert_eq!(flows.len(), 1);
    assert_eq!((flows[0].peer, flows[0].state), (Some(H2), FlowState::Established));
    assert_eq!((flows[0].original.packets, flows[0].reply.packets), (2, 1));
    assert_eq!(flows[0].original.bytes, 48 + 40);
    let to_h3 = FlowSelector { peer: Some(H3), ..FlowSelector::default() };
    assert_eq!(world.engine.kill(&to_h3), 1);
    let from_a = FlowSelector { src: Some(prefix("10.42.1.5/32")), src_port: Some(1000), ..FlowSelector::default() };
    assert_eq!(world.engine.kill(&from_a), 1);
    assert_eq!(world.flows().len(), 1);
    let cut = world.out(&mut segment(A, 1000, B, 80, ACK, 1001, 5001, 0));
    assert_eq!(cut, Verdict::Drop(DropReason::TcpNoFlow), "the cached place of a killed flow finds nothing");
}

#[test]
fn workers_share_one_table() {
    let mut world = World::new("allow tcp/80 from host:h1 to any\ndefault deny");
    let start = world.now - Duration::from_secs(61);
    world.out(&mut segment(A, 1, B, 80, SYN, 1000, 0, 0));
    let mut second = Engine::for_worker(world.engine.conntrack(), start);
    std::mem::swap(&mut world.engine, &mut second);
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1, SYN | ACK, 5000, 1001, 0)), Verdict::Deliver);
    assert_eq!(world.engine.counters().inbound.packets, 1);
    assert_eq!(second.counters().inbound.packets, 0);
}

#[test]
fn table_holds_against_random_churn() {
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};
    let mut rng = ChaCha20Rng::seed_from_u64(42);
    let mut world = World::fresh("default open", Limits { conntrack_entries: 256 });
    let mut mirror = std::collections::BTreeMap::new();
    for step in 0..20_000u32 {
        let port = (rng.next_u32() % 40) as u16 + 1;
        let src = format!("10.42.1.{}", 10 + rng.next_u32() % 20);
        match rng.next_u32() % 10 {
            0 => {
                let selector = FlowSelector { src_port: Some(port), ..FlowSelector::default() };
                let expected = mirror.keys().filter(|(_, p)| *p == port).count();
                assert_eq!(world.engine.kill(&selector), expected, "step {step}");
                mirror.retain(|(_, p), _| *p != port);
            }
            _ if mirror.len() < 100 || mirror.contains_key(&(src.clone(), port)) => {
                let share = mirror.keys().filter(|(s, _)| *s == src).count();
                if share < 32 || mirror.contains_key(&(src.clone(), port)) {
                    assert_eq!(world.out(&mut udp(&src, port, B, 80, 0)), Verdict::Forward(H2), "step {step}");
                    *mirror.entry((src, port)).or_insert(0u64) += 1;
                }
            }
            _ => {}
        }
    }
    let flows = world.flows();
    assert_eq!(flows.len(), mirror.len());
    for flow in flows {
        let key = (flow.tuple.src.to_string(), flow.tuple.src_port);
        assert_eq!(mirror.get(&key), Some(&flow.original.packets), "{key:?}");
    }
}

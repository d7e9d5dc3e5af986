//! Verdicts of the whole path: one scenario per drop reason, forwarding, answers, MTU.

use std::collections::BTreeSet;

use overlay_wire::packet::{TcpOption, TcpOptions};
use overlay_wire::{Mtu, PeerIndex};

use crate::testing::*;
use crate::*;

const A: &str = "10.42.1.5";
const B: &str = "10.42.2.5";

type Scenario = Box<dyn FnOnce(&mut World) -> Verdict>;

fn mtu(bytes: u16) -> Mtu {
    Mtu::new(bytes).expect("a valid MTU in a test")
}

/// Runs `scenario` against a fresh host and checks that its last packet is dropped for `reason`, and counted so.
fn expect_drop(reason: DropReason, rules: &str, scenario: impl FnOnce(&mut World) -> Verdict) {
    let mut world = World::new(rules);
    let verdict = scenario(&mut world);
    assert_eq!(verdict.drop_reason(), Some(reason), "{verdict:?}");
    assert!(world.engine.counters().dropped(reason) >= 1, "{reason} is not counted");
}

#[test]
fn every_reason_is_reached_and_counted() {
    use DropReason as R;
    let scenarios: Vec<(R, &str, Scenario)> = vec![
        (R::Malformed, "", Box::new(|w| w.out(&mut [0x45, 0, 0, 20]))),
        (R::SourceRoute, "", Box::new(|w| w.out(&mut with_option(&[0x83, 7, 4, 10, 0, 0, 1, 0])))),
        (R::IpOptions, "", Box::new(|w| w.out(&mut with_option(&[7, 7, 4, 0, 0, 0, 0, 0])))),
        (R::Land, "", Box::new(|w| w.out(&mut udp(A, 1, A, 1, 0)))),
        (R::Multicast, "", Box::new(|w| w.out(&mut udp(A, 1, "224.0.0.251", 5353, 0)))),
        (R::Broadcast, "", Box::new(|w| w.out(&mut udp(A, 1, "255.255.255.255", 67, 0)))),
        (R::LinkLocal, "", Box::new(|w| w.out(&mut udp("fe80::1", 1, "fd42:0:0:2::5", 1, 0)))),
        (R::Metadata, "", Box::new(|w| w.out(&mut udp(A, 1, "169.254.169.254", 80, 0)))),
        (R::Martian, "", Box::new(|w| w.from(H2, &mut udp(B, 1, "127.0.0.1", 80, 0)))),
        (R::NestedTunnel, "default open", Box::new(|w| w.out(&mut packet(A, B, 47, &[0; 24])))),
        (R::IcmpControl, "", Box::new(|w| w.from(H2, &mut icmp("fd42:0:0:2::5", "fd42:0:0:1::5", 134, 0, 0, &[0; 8])))),
        (R::IcmpType, "", Box::new(|w| w.out(&mut icmp(A, B, 13, 0, 1, &[0; 12])))),
        (R::SpoofedSource, "", Box::new(|w| w.out(&mut udp("10.42.3.5", 1, B, 80, 0)))),
        (R::ForeignSource, "", Box::new(|w| w.from(H2, &mut udp("10.42.3.5", 1, A, 80, 0)))),
        (R::Transit, "", Box::new(|w| w.from(H2, &mut udp(B, 1, "10.42.3.5", 80, 0)))),
        (R::NoOwner, "", Box::new(|w| w.out(&mut udp(A, 1, "10.42.77.1", 80, 0)))),
        (R::UnknownPeer, "", Box::new(|w| w.out(&mut udp(A, 1, "10.42.9.1", 80, 0)))),
        (R::PolicyDeny, "deny udp from any to any", Box::new(|w| w.out(&mut udp(A, 1, B, 80, 0)))),
        (R::PolicyReject, "reject udp from any to any", Box::new(|w| w.out(&mut udp(A, 1, B, 80, 0)))),
        (R::PolicyDefault, "", Box::new(|w| w.from(FOREIGN, &mut udp("10.99.0.1", 1, A, 80, 0)))),
        (
            R::IdentityUnknown,
            "allow udp from role=db to any\ndefault deny",
            Box::new(|w| {
                let mut first = may_fragment(udp("10.42.2.9", 1, A, 80, 8));
                first[6] |= 0x20;
                overlay_wire::checksum::fill_ipv4_header(&mut first, 20);
                w.from(H2, &mut first)
            }),
        ),
        (
            R::PolicyRevoked,
            "",
            Box::new(|w| {
                assert_eq!(w.out(&mut udp(A, 1, B, 80, 0)), Verdict::Forward(H2));
                w.set_policy("deny udp from any to any");
                w.out(&mut udp(A, 1, B, 80, 0))
            }),
        ),
        (R::TcpFlags, "", Box::new(|w| w.out(&mut segment(A, 1, B, 80, SYN | FIN, 1, 0, 0)))),
        (R::TcpNoFlow, "", Box::new(|w| w.out(&mut segment(A, 1, B, 80, ACK, 1, 1, 0)))),
        (
            R::TcpState,
            "",
            Box::new(|w| {
                w.connect(A, 1, B, 80);
                w.from(H2, &mut segment(B, 80, A, 1, SYN, 7777, 0, 0))
            }),
        ),
        (
            R::TcpWindow,
            "",
            Box::new(|w| {
                w.connect(A, 1, B, 80);
                w.from(H2, &mut segment(B, 80, A, 1, ACK, 5001u32.wrapping_sub(5_000_000), 1001, 10))
            }),
        ),
        (
            R::TcpReset,
            "",
            Box::new(|w| {
                w.connect(A, 1, B, 80);
                w.from(H2, &mut segment(B, 80, A, 1, RST, 5001 + 50_000_000, 0, 0))
            }),
        ),
        (R::IcmpNoFlow, "default open", Box::new(|w| w.out(&mut icmp(A, B, 0, 0, 7, &[])))),
        (R::IcmpUnrelated, "default open", Box::new(|w| w.from(H2, &mut icmp(B, A, 3, 3, 0, &udp(A, 1, B, 80, 0))))),
        (
            R::IcmpRate,
            "",
            Box::new(|w| {
                let quote = udp(A, 1, B, 80, 0);
                w.out(&mut quote.clone());
                for _ in 0..10 {
                    assert_eq!(w.from(H2, &mut icmp(B, A, 3, 3, 0, &quote)), Verdict::Deliver);
                }
                w.from(H2, &mut icmp(B, A, 3, 3, 0, &quote))
            }),
        ),
        (R::ConntrackFull, "default open", Box::new(full_table)),
        (
            R::SourceShare,
            "",
            Box::new(|w| {
                let verdicts: Vec<_> = (0..=128).map(|port| w.out(&mut udp(A, port + 1, B, 80, 0))).collect();
                *verdicts.last().expect("some packets were sent")
            }),
        ),
        (
            R::FragmentOverlap,
            "",
            Box::new(|w| {
                w.out(&mut fragment_v4(1, 0, true, 17, &udp_bytes(1, 80, 24)));
                w.out(&mut fragment_v4(1, 24, true, 17, &[0; 16]))
            }),
        ),
        (
            R::FragmentLimit,
            "",
            Box::new(|w| {
                for index in 0..64 {
                    assert_eq!(w.out(&mut fragment_v4(1, 8 + 16 * index, true, 17, &[0; 8])), Verdict::Held);
                }
                w.out(&mut fragment_v4(1, 8 + 16 * 64, true, 17, &[0; 8]))
            }),
        ),
        (
            R::FragmentTimeout,
            "",
            Box::new(|w| {
                assert_eq!(w.out(&mut fragment_v4(1, 8, true, 17, &[0; 8])), Verdict::Held);
                w.advance(5);
                w.engine.expire(w.now);
                Verdict::Drop(R::FragmentTimeout)
            }),
        ),
        (
            R::FragmentRefused,
            "deny udp from any to any",
            Box::new(|w| {
                w.out(&mut fragment_v4(1, 0, true, 17, &udp_bytes(1, 80, 8)));
                w.out(&mut fragment_v4(1, 16, false, 17, &[0; 8]))
            }),
        ),
        (R::TooBig, "", Box::new(|w| w.out(&mut udp(A, 1, B, 80, 1400)))),
        (
            R::RateLimit,
            "",
            Box::new(|w| {
                w.limit(Rate { bits: Some(1000), burst: Some(20), packets: None });
                assert_eq!(w.out(&mut udp(A, 1, B, 80, 100)), Verdict::Forward(H2));
                w.out(&mut udp(A, 1, B, 80, 100))
            }),
        ),
        (
            R::PacketRateLimit,
            "",
            Box::new(|w| {
                w.limit(Rate { packets: Some(1), ..Rate::default() });
                for number in 0..65 {
                    assert_eq!(w.out(&mut udp(A, 1, B, 80, 0)), Verdict::Forward(H2));
                    // Sixty-four at once, and one in debt as soon as anything is there again.
                    assert_eq!(!w.engine.delay().is_zero(), number == 64, "{number}");
                }
                // The next would have to wait for a second.
                w.out(&mut udp(A, 1, B, 80, 0))
            }),
        ),
    ];
    let mut reached = BTreeSet::new();
    for (reason, rules, scenario) in scenarios {
        expect_drop(reason, rules, scenario);
        reached.insert(reason);
    }
    let missing: Vec<_> = DropReason::ALL.iter().filter(|reason| !reached.contains(reason)).collect();
    assert!(missing.is_empty(), "no test for {missing:?}");
}

/// Fills a table of 1,024 with answered flows of many sources, none above its share.
fn full_table(world: &mut World) -> Verdict {
    let mut source = 0;
    for port in 0..60_000u16 {
        source = (source + 1) % 200;
        let src = format!("10.42.1.{}", source + 10);
        match world.out(&mut udp(&src, port + 1, B, 80, 0)) {
            Verdict::Forward(_) => assert_eq!(world.from(H2, &mut udp(B, 80, &src, port + 1, 0)), Verdict::Deliver),
            refused => return refused,
        }
    }
    panic!("the table never filled")
}

fn with_option(option: &[u8]) -> Vec<u8> {
    let mut bytes = udp(A, 1, B, 80, 0);
    bytes.splice(20..20, option.iter().copied());
    bytes[0] = 0x40 | (5 + option.len() as u8 / 4);
    bytes[3] += option.len() as u8;
    overlay_wire::checksum::fill_ipv4_header(&mut bytes, 20 + option.len());
    bytes
}

#[test]
fn sixty_addresses_that_never_belong_are_dropped_before_any_state() {
    let v4 = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.0.1",
        "169.254.169.254",
        "169.254.255.255",
        "224.0.0.1",
        "224.0.0.251",
        "232.1.1.1",
        "239.255.255.250",
        "240.0.0.1",
        "250.1.1.1",
        "255.255.255.254",
        "255.255.255.255",
    ];
    let v6 = [
        "::",
        "::1",
        "::2",
        "::10.42.1.5",
        "::ffff:10.42.1.5",
        "::ffff:127.0.0.1",
        "fe80::1",
        "fe80::ffff:1",
        "febf::1",
        "fec0::1",
        "feff::1",
        "ff02::1",
        "ff02::2",
        "ff05::1:3",
        "ff0e::1",
        "fd00:ec2::254",
        "100::1",
    ];
    let mut cases = 0;
    let mut world = World::new("allow any from any to any\ndefault open");
    for (good, bad) in v4.iter().map(|bad| (A, bad)).chain(v6.iter().map(|bad| ("fd42:0:0:1::5", bad))) {
        let as_destination = world.out(&mut udp(good, 1, bad, 1, 0));
        let as_source = world.from(H2, &mut udp(bad, 1, good, 1, 0));
        for verdict in [as_destination, as_source] {
            cases += 1;
            let reason = verdict.drop_reason();
            let early = [
                DropReason::Martian,
                DropReason::LinkLocal,
                DropReason::Metadata,
                DropReason::Multicast,
                DropReason::Broadcast,
            ];
            assert!(reason.is_some_and(|reason| early.contains(&reason)), "{bad}: {verdict:?}");
        }
    }
    assert!(cases >= 60);
    assert!(world.flows().is_empty());
}

#[test]
fn owner_of_source_decides_from_a_peer() {
    let mut world = World::new("allow any from any to any");
    for (peer, src, accepted) in [
        (H2, B, true),
        (H2, "10.42.2.129", false),
        (H3, "10.42.2.129", true),
        (H3, B, false),
        (H2, "10.42.1.9", false),
        (H2, "8.8.8.8", false),
        (FOREIGN, "10.99.0.1", true),
        (PeerIndex(99), "10.42.9.1", false),
    ] {
        let verdict = world.from(peer, &mut udp(src, 1, A, 80, 0));
        assert_eq!(verdict == Verdict::Deliver, accepted, "{src} from {peer:?}: {verdict:?}");
    }
}

#[test]
fn packets_from_the_tun_go_where_their_owner_is() {
    let mut world = World::new("default open");
    for (src, dst, verdict) in [
        (A, B, Verdict::Forward(H2)),
        (A, "10.42.2.200", Verdict::Forward(H3)),
        (A, "10.42.1.6", Verdict::Deliver),
        (A, "192.0.2.9", Verdict::Deliver),
        ("192.0.2.9", A, Verdict::Deliver),
        ("192.168.7.3", B, Verdict::Forward(H2)),
        ("192.0.2.9", B, Verdict::Drop(DropReason::SpoofedSource)),
        ("10.42.77.1", A, Verdict::Drop(DropReason::SpoofedSource)),
        (B, A, Verdict::Drop(DropReason::SpoofedSource)),
        (A, "10.42.77.1", Verdict::DropWithReply(DropReason::NoOwner)),
    ] {
        assert_eq!(world.out(&mut udp(src, 1000, dst, 80, 0)), verdict, "{src} to {dst}");
    }
    assert_eq!(world.from(H2, &mut udp(B, 1, "192.168.7.3", 53, 0)), Verdict::Deliver, "announced prefix");
}

#[test]
fn default_members_closes_the_host_but_for_ping() {
    let mut world = World::new("");
    assert_eq!(world.from(H2, &mut icmp(B, "10.42.1.1", 8, 0, 7, &[1; 56])), Verdict::Deliver);
    assert_eq!(world.out(&mut icmp("10.42.1.1", B, 0, 0, 7, &[1; 56])), Verdict::Forward(H2));
    let closed = Verdict::DropWithReply(DropReason::PolicyDefault);
    assert_eq!(world.from(H2, &mut segment(B, 9, "10.42.1.1", 22, SYN, 1, 0, 0)), closed);
    assert_eq!(world.from(H2, &mut segment(B, 9, A, 22, SYN, 1, 0, 0)), Verdict::Deliver);
    world.set_policy("allow tcp/22 from 10.42.2.0/24 to 10.42.1.1");
    assert_eq!(world.from(H2, &mut segment(B, 9, "10.42.1.1", 22, SYN, 1, 0, 0)), Verdict::Deliver);
}

#[test]
fn rejected_tcp_gets_a_reset_that_closes_the_senders_flow() {
    let mut world = World::new("");
    let refused = world.from(H2, &mut segment(B, 9, "10.42.1.1", 22, SYN, 4000, 0, 0));
    assert_eq!(refused, Verdict::DropWithReply(DropReason::PolicyDefault));
    let headers = world.reply_headers();
    assert_eq!((headers.src, headers.dst), (ip("10.42.1.1"), ip(B)));
    let tcp = *headers.tcp().expect("a TCP reset");
    assert!(tcp.flags.rst() && tcp.flags.ack() && tcp.ack == 4001);

    // The other side of the same exchange: the reset ends the flow.
    let mut sender = World::new("");
    sender.out(&mut segment(A, 9, B, 22, SYN, 4000, 0, 0));
    assert_eq!(sender.from(H2, &mut segment(B, 22, A, 9, RST | ACK, 0, 4001, 0)), Verdict::Deliver);
    assert_eq!(sender.flows()[0].state, FlowState::Closed);
}

#[test]
fn rejected_udp_gets_admin_prohibited_from_the_host() {
    for (src, dst, host, kind) in
        [(A, B, "10.42.1.1", (3, 13)), ("fd42:0:0:1::5", "fd42:0:0:2::5", "fd42:0:0:1::1", (1, 1))]
    {
        let mut world = World::new("reject udp from any to any");
        let verdict = world.out(&mut udp(src, 1, dst, 80, 100));
        assert_eq!(verdict, Verdict::DropWithReply(DropReason::PolicyReject));
        let headers = world.reply_headers();
        assert_eq!((headers.src, headers.dst), (ip(host), ip(src)));
        let overlay_wire::packet::Transport::Icmp(icmp) = headers.transport else { panic!("an ICMP error") };
        assert_eq!((icmp.kind, icmp.code), kind);
    }
}

#[test]
fn icmp_errors_are_never_answered_and_answers_are_limited() {
    let mut world = World::new("reject any from any to any");
    let quote = udp(A, 1, B, 80, 0);
    let verdict = world.from(H2, &mut icmp(B, A, 3, 3, 0, &quote));
    assert_eq!(verdict, Verdict::Drop(DropReason::IcmpUnrelated));
    let answered =
        (0..1000).filter(|_| matches!(world.out(&mut udp(A, 1, B, 80, 0)), Verdict::DropWithReply(_))).count();
    assert_eq!(answered, 200);
    assert_eq!(world.engine.counters().replies, 200);
    assert_eq!(world.engine.counters().dropped(DropReason::PolicyReject), 1000);
}

#[test]
fn revoked_permission_cuts_a_live_flow_with_a_reset() {
    let mut world = World::new("allow tcp/80 from any to any\ndefault deny");
    world.connect(A, 1000, B, 80);
    world.set_policy("allow tcp/443 from any to any\nreject any from any to any\ndefault deny");
    let verdict = world.out(&mut segment(A, 1000, B, 80, ACK, 1001, 5001, 100));
    assert_eq!(verdict, Verdict::DropWithReply(DropReason::PolicyRevoked));
    assert_eq!(world.reply_headers().tcp().map(|tcp| (tcp.flags.rst(), tcp.seq)), Some((true, 5001)));
    assert!(world.flows().is_empty());
    let after = world.from(H2, &mut segment(B, 80, A, 1000, ACK, 5001, 1101, 0));
    assert_eq!(after, Verdict::Drop(DropReason::TcpNoFlow));
}

#[test]
fn unchanged_permission_keeps_a_live_flow_in_both_directions() {
    let mut world = World::new("allow tcp/80 from 10.42.1.0/24 to any\ndefault deny");
    world.connect(A, 1000, B, 80);
    world.set_policy("deny udp from any to any\nallow tcp/80 from 10.42.1.0/24 to any\ndefault deny");
    // The reply direction alone is allowed by no rule: it passes only because the original is asked about.
    assert_eq!(world.from(H2, &mut segment(B, 80, A, 1000, ACK, 5001, 1001, 10)), Verdict::Deliver);
    assert_eq!(world.flows().len(), 1);
}

#[test]
fn dont_fragment_above_the_mtu_gets_the_exact_mtu() {
    let mut world = World::new("");
    let fits = 1420 - 28;
    assert_eq!(world.out(&mut udp(A, 1, B, 80, fits)), Verdict::Forward(H2));
    assert_eq!(world.out(&mut udp(A, 1, B, 80, fits + 1)), Verdict::DropWithReply(DropReason::TooBig));
    let headers = world.reply_headers();
    assert_eq!((headers.src, headers.dst), (ip("10.42.1.1"), ip(A)));
    assert_eq!(overlay_wire::icmp::reported_mtu(world.reply.packet(), &headers), Some(1420));

    let big = may_fragment(udp(A, 1, B, 80, fits + 1));
    assert_eq!(world.out(&mut big.clone()), Verdict::ForwardFragmented(H2, mtu(1420)));

    let mut big_v6 = udp("fd42:0:0:1::5", 1, "fd42:0:0:2::5", 80, 1420 - 47);
    assert_eq!(world.out(&mut big_v6), Verdict::DropWithReply(DropReason::TooBig));
    let headers = world.reply_headers();
    assert_eq!(headers.src, ip("fd42:0:0:1::1"));
    assert_eq!(overlay_wire::icmp::reported_mtu(world.reply.packet(), &headers), Some(1420));
}

#[test]
fn super_packet_is_judged_by_its_segments() {
    let mut world = World::new("");
    world.connect(A, 1000, B, 80);
    let mut bytes = segment(A, 1000, B, 80, ACK, 1001, 5001, 40_000);
    let headers = overlay_wire::packet::Headers::parse(&bytes).expect("a valid packet");
    let now = world.now;
    let mut send = |segment_len| {
        world.engine.outbound(&world.tables, &headers, &mut bytes, segment_len, 30, now, &mut world.reply)
    };
    assert_eq!(send(1420), Verdict::Forward(H2));
    assert_eq!(send(1421), Verdict::DropWithReply(DropReason::TooBig));
    assert_eq!(world.engine.counters().dropped(DropReason::TooBig), 30);
    let flow = &world.flows()[0];
    assert_eq!(flow.original.packets, 2 + 60);
}

#[test]
fn ipv6_below_1280_is_left_to_outer_fragmentation() {
    let mut world = World::new("");
    world.tables.peers[0].inner_mtu = mtu(1200);
    assert_eq!(world.out(&mut udp("fd42:0:0:1::5", 1, "fd42:0:0:2::5", 80, 1280 - 48)), Verdict::Forward(H2));
    let mut bigger = udp("fd42:0:0:1::5", 1, "fd42:0:0:2::5", 80, 1280 - 47);
    assert_eq!(world.out(&mut bigger), Verdict::DropWithReply(DropReason::TooBig));
    let headers = world.reply_headers();
    assert_eq!(overlay_wire::icmp::reported_mtu(world.reply.packet(), &headers), Some(1280));
}

#[test]
fn mss_is_clamped_in_syn_and_syn_ack_both_ways_in_both_families() {
    let mss = |bytes: &[u8]| {
        let headers = overlay_wire::packet::Headers::parse(bytes).expect("a valid packet");
        assert!(overlay_wire::checksum::verify_transport(bytes, &headers));
        let start = usize::from(headers.l4_offset);
        TcpOptions::new(&bytes[start..start + headers.l4_header_len()]).find_map(|option| match option {
            TcpOption::MaximumSegmentSize { mss, .. } => Some(mss),
            _ => None,
        })
    };
    for (a, b, clamped) in [(A, B, 1380), ("fd42:0:0:1::5", "fd42:0:0:2::5", 1360)] {
        let mut world = World::new("");
        let mut syn = segment(a, 1, b, 80, SYN, 1, 0, 0);
        assert_eq!(world.out(&mut syn), Verdict::Forward(H2));
        assert_eq!(mss(&syn), Some(clamped));
        let mut syn_ack = segment(b, 80, a, 1, SYN | ACK, 9, 2, 0);
        assert_eq!(world.from(H2, &mut syn_ack), Verdict::Deliver);
        assert_eq!(mss(&syn_ack), Some(clamped));

        let mut syn = segment(b, 2, a, 80, SYN, 1, 0, 0);
        assert_eq!(world.from(H2, &mut syn), Verdict::Deliver);
        assert_eq!(mss(&syn), Some(clamped));
        let mut syn_ack = segment(a, 80, b, 2, SYN | ACK, 9, 2, 0);
        assert_eq!(world.out(&mut syn_ack), Verdict::Forward(H2));
        assert_eq!(mss(&syn_ack), Some(clamped));
    }
}

#[test]
fn icmp_error_passes_only_for_the_flow_it_quotes() {
    for (a, b, kind) in [(A, B, 3), ("fd42:0:0:1::5", "fd42:0:0:2::5", 1)] {
        let mut world = World::new("default deny\nallow any from host:h1 to any");
        let sent = udp(a, 1000, b, 53, 20);
        assert_eq!(world.out(&mut sent.clone()), Verdict::Forward(H2));
        assert_eq!(world.from(H2, &mut icmp(b, a, kind, 3, 0, &sent)), Verdict::Deliver);
        let truncated = &sent[..if ip(a).is_ipv4() { 28 } else { 48 }];
        assert_eq!(world.from(H2, &mut icmp(b, a, kind, 3, 0, truncated)), Verdict::Deliver);
        let unrelated = Verdict::Drop(DropReason::IcmpUnrelated);
        let other_port = udp(a, 1001, b, 53, 20);
        assert_eq!(world.from(H2, &mut icmp(b, a, kind, 3, 0, &other_port)), unrelated);
        // The quoted packet was sent by the wrong end: nothing came back on this flow yet.
        let reversed = udp(b, 53, a, 1000, 20);
        assert_eq!(world.out(&mut icmp(a, b, kind, 3, 0, &reversed)), unrelated);
        assert_eq!(world.from(H2, &mut udp(b, 53, a, 1000, 20)), Verdict::Deliver);
        assert_eq!(world.out(&mut icmp(a, b, kind, 3, 0, &reversed)), Verdict::Forward(H2));
        // Addressed to somebody else than the sender of what it quotes.
        let elsewhere = if ip(a).is_ipv4() { "10.42.1.6" } else { "fd42:0:0:1::6" };
        assert_eq!(world.from(H2, &mut icmp(b, elsewhere, kind, 3, 0, &sent)), unrelated);
    }
}

#[test]
fn icmp_error_about_an_impossible_sequence_number_is_dropped() {
    let mut world = World::new("");
    world.connect(A, 1000, B, 80);
    let live = segment(A, 1000, B, 80, ACK, 1001, 5001, 0);
    assert_eq!(world.from(H2, &mut icmp(B, A, 3, 3, 0, &live)), Verdict::Deliver);
    let guessed = segment(A, 1000, B, 80, ACK, 1001 + 5_000_000, 5001, 0);
    assert_eq!(world.from(H2, &mut icmp(B, A, 3, 3, 0, &guessed)), Verdict::Drop(DropReason::IcmpUnrelated));
}

#[test]
fn explanation_agrees_with_the_packet_path() {
    let rules = "allow tcp/80 from host:h1 to host:h2 name web\nreject udp from any to any\ndeny icmp from any to any";
    let cases = [
        (A, B, 6, 80),
        (A, B, 6, 81),
        (A, B, 17, 53),
        (B, A, 17, 53),
        (A, "10.42.77.1", 6, 80),
        (A, "192.0.2.1", 6, 443),
        ("10.99.0.1", A, 6, 80),
        (B, "10.42.1.1", 6, 22),
        (A, "224.0.0.1", 6, 1),
        ("192.0.2.1", A, 6, 80),
    ];
    for (src, dst, protocol, dst_port) in cases {
        let mut world = World::new(rules);
        let tuple = Tuple { src: ip(src), dst: ip(dst), protocol, src_port: 1000, dst_port };
        let steps = explain(&world.tables, &tuple, |_| false);
        let mut bytes = match protocol {
            6 => segment(src, 1000, dst, dst_port, SYN, 1, 0, 0),
            _ => udp(src, 1000, dst, dst_port, 0),
        };
        let verdict = match world.tables.owners.lookup(tuple.src) {
            Some(Route::Peer(peer)) => world.from(*peer, &mut bytes),
            _ => world.out(&mut bytes),
        };
        let last = steps.last().expect("at least one step");
        let expected = match last.outcome {
            Outcome::Pass => None,
            Outcome::Drop(reason) => Some(Verdict::Drop(reason)),
            Outcome::Reject(reason) => Some(Verdict::DropWithReply(reason)),
        };
        assert_eq!(verdict.drop_reason().map(|_| verdict), expected, "{tuple}: {steps:?}");
    }
    let tuple = Tuple { src: ip(A), dst: ip(B), protocol: 6, src_port: 1, dst_port: 80 };
    let steps = explain(&tables(rules), &tuple, |_| false);
    assert_eq!(steps[2].detail, "rule 1: allow tcp/80 from host:h1 to host:h2 name web");
    assert_eq!(steps[2].decided_by, Some(DecidedBy::Rule(0)));
    assert_eq!(steps[1].detail, "10.42.1.5 is on this host, 10.42.2.5 is owned by h2: forwarded to h2");
}

#[test]
fn rules_count_what_they_decide_and_log_where_asked() {
    let mut world = World::new("allow udp/53 from any to any log\nreject udp from any to any audit name rest\n");
    for _ in 0..3 {
        world.out(&mut udp(A, 1, B, 53, 0));
        world.out(&mut udp(A, 1, B, 54, 0));
    }
    assert_eq!(world.tables.policy.hits(), [1, 3], "one flow that passed, three packets refused");
    let mut events = Vec::new();
    assert_eq!(world.engine.take_rule_events(&mut events), 0);
    let seen: Vec<_> = events.iter().map(|e| (e.rule, e.log, e.audit, e.tuple.dst_port)).collect();
    assert_eq!(seen, [(0, true, false, 53), (1, false, true, 54), (1, false, true, 54), (1, false, true, 54)]);
    for _ in 0..100 {
        world.out(&mut udp(A, 1, B, 54, 0));
    }
    events.clear();
    assert_eq!(world.engine.take_rule_events(&mut events), 36);
    assert_eq!(events.len(), 64);
    let again = policy(&world.tables.policy.rules().iter().map(|rule| format!("{rule}\n")).collect::<String>());
    assert_eq!(again.hits(), [0, 0]);
    assert_eq!(again.with_hits_of(&world.tables.policy).hits(), [1, 103], "the same rules count on");
    assert_eq!(policy("deny any from any to any").with_hits_of(&world.tables.policy).hits(), [0]);
    let tuple = events[0].tuple;
    assert!(!explain(&world.tables, &tuple, |_| false).is_empty());
    assert_eq!(world.tables.policy.hits(), [1, 103], "an explanation counts nothing");
}

#[test]
fn route_that_moves_is_followed_at_once() {
    use overlay_routing::fib::Fib;
    let mut world = World::new("default open");
    assert_eq!(world.out(&mut udp(A, 1, B, 80, 0)), Verdict::Forward(H2));
    assert_eq!(world.from(H2, &mut udp(B, 80, A, 1, 0)), Verdict::Deliver);
    let routes = [("10.42.1.0/24", Route::Local), ("10.42.2.0/24", Route::Peer(H3))];
    world.tables.owners = Fib::build(routes.map(|(text, route)| (prefix(text), route)).to_vec());
    world.tables.revision += 1;
    assert_eq!(world.out(&mut udp(A, 1, B, 80, 0)), Verdict::Forward(H3));
    assert_eq!(world.from(H2, &mut udp(B, 80, A, 1, 0)), Verdict::Drop(DropReason::ForeignSource));
    assert_eq!(world.from(H3, &mut udp(B, 80, A, 1, 0)), Verdict::Deliver);
    assert_eq!(world.flows()[0].peer, Some(H3));
}

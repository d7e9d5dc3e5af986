//! The fragment cases of pf's test suite, bounds, and a comparison with reassemble-then-filter.

use proptest::prelude::*;

use crate::testing::*;
use crate::*;

/// A UDP datagram to the port, as the bytes behind the IP header.
fn datagram(dport: u16, len: usize) -> Vec<u8> {
    udp_bytes(1000, dport, len - 8)
}

fn piece(family: Family, id: u32, bytes: &[u8], start: usize, end: usize) -> Vec<u8> {
    let more = end < bytes.len();
    match family {
        Family::V4 => fragment_v4(id as u16, start as u16, more, 17, &bytes[start..end]),
        Family::V6 => fragment_v6(id, start as u16, more, 17, &bytes[start..end]),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn released(world: &mut World) -> Vec<Verdict> {
    let mut out = Vec::new();
    world.engine.take_released(&world.tables, world.now, &mut out);
    out.iter().map(|released| released.verdict).collect()
}

#[test]
fn fragments_in_order_pass_as_they_come() {
    for family in BOTH {
        let mut world = World::new("");
        let bytes = datagram(80, 64);
        for start in (0..64).step_by(16) {
            let verdict = world.out(&mut piece(family, 1, &bytes, start, start + 16));
            assert_eq!(verdict, Verdict::Forward(H2), "{family:?} at {start}");
        }
        assert!(world.engine.fragments_are_empty(), "a complete datagram is forgotten");
    }
}

#[test]
fn reverse_order_is_held_and_released_by_the_first() {
    for family in BOTH {
        let mut world = World::new("");
        let bytes = datagram(80, 64);
        for start in [48, 32, 16] {
            assert_eq!(world.out(&mut piece(family, 1, &bytes, start, start + 16)), Verdict::Held);
        }
        assert!(released(&mut world).is_empty());
        assert_eq!(world.out(&mut piece(family, 1, &bytes, 0, 16)), Verdict::Forward(H2));
        assert_eq!(released(&mut world), [Verdict::Forward(H2); 3]);
        assert_eq!(world.engine.held_fragment_bytes(), 0);
        assert!(world.engine.fragments_are_empty());
    }
}

#[test]
fn refused_first_fragment_refuses_the_rest() {
    for family in BOTH {
        let mut world = World::new("deny udp/81 from any to any");
        let bytes = datagram(81, 64);
        assert_eq!(world.out(&mut piece(family, 1, &bytes, 48, 64)), Verdict::Held);
        assert_eq!(world.out(&mut piece(family, 1, &bytes, 0, 16)), Verdict::Drop(DropReason::PolicyDeny));
        let refused = Verdict::Drop(DropReason::FragmentRefused);
        assert_eq!(world.out(&mut piece(family, 1, &bytes, 16, 32)), refused);
        assert!(released(&mut world).is_empty());
        assert_eq!(world.engine.counters().dropped(DropReason::FragmentRefused), 2, "the held one counts too");
    }
}

/// pf's cases, as (start, end) in order of arrival; a datagram has 64 bytes. Every one holds an overlap, a hole that
/// stays, or a contradiction about the end, so nothing a receiver could reassemble may get through.
#[test]
fn overlaps_and_contradictions_never_complete_a_datagram() {
    let cases: [(&str, &[(usize, usize)]); 10] = [
        ("overlap in front of a hole", &[(0, 16), (8, 24), (24, 64)]),
        ("overlap behind a hole", &[(0, 16), (32, 64), (24, 40), (16, 32)]),
        ("overlap of the whole", &[(0, 16), (16, 48), (16, 48), (48, 64)]),
        ("duplicate of the first", &[(0, 16), (0, 16), (16, 64)]),
        ("duplicate of a held one", &[(16, 64), (16, 64), (0, 16)]),
        ("first overlaps a held one", &[(8, 64), (0, 16)]),
        ("replaced first", &[(0, 32), (0, 8), (32, 64)]),
        ("hole left open", &[(0, 16), (32, 64)]),
        ("last one twice", &[(0, 16), (48, 64), (48, 64), (16, 48)]),
        ("data behind the end", &[(0, 16), (16, 64), (64, 80)]),
    ];
    for family in BOTH {
        for (name, pieces) in cases {
            let mut world = World::new("");
            let bytes = datagram(80, 64);
            let longer = datagram(80, 96);
            let mut passed = Vec::new();
            for &(start, end) in pieces {
                let source = if end > 64 { &longer } else { &bytes };
                let verdict = world.out(&mut piece(family, 1, source, start, end));
                if verdict == Verdict::Forward(H2) {
                    passed.push((start, end));
                }
                passed.extend(released(&mut world).iter().map(|_| (usize::MAX, usize::MAX)));
            }
            let covered: usize = passed.iter().filter(|p| p.0 != usize::MAX).map(|(start, end)| end - start).sum();
            let whole = name == "data behind the end";
            assert_eq!(covered >= 64, whole, "{family:?} {name}: {passed:?}");
        }
    }
}

#[test]
fn ports_cannot_be_rewritten_at_offset_eight() {
    // RFC 3128: a second fragment at offset 8 would overwrite the TCP flags of the first.
    let mut world = World::new("");
    let tcp = &segment("10.42.1.5", 1, "10.42.2.5", 80, SYN, 1, 0, 4)[20..];
    assert_eq!(world.out(&mut fragment_v4(9, 0, true, 6, tcp)), Verdict::Forward(H2));
    let verdict = world.out(&mut fragment_v4(9, 8, false, 6, &[0; 40]));
    assert_eq!(verdict, Verdict::Drop(DropReason::FragmentOverlap));
}

#[test]
fn tiny_first_fragment_is_malformed() {
    let mut world = World::new("");
    let verdict = world.out(&mut fragment_v4(9, 0, true, 6, &[0; 16]));
    assert_eq!(verdict, Verdict::Drop(DropReason::Malformed));
}

#[test]
fn held_bytes_and_datagrams_are_bounded() {
    let mut world = World::new("");
    for id in 0..2000 {
        world.out(&mut fragment_v4(id, 1480, false, 17, &vec![0; 1400]));
        world.from(H2, &mut fragment_from_h2(id));
    }
    // 512 datagrams of each source.
    assert_eq!(world.engine.held_fragment_bytes(), 512 * 1420 * 2);
    assert_eq!(world.engine.counters().dropped(DropReason::FragmentLimit), 2 * (2000 - 512));
    world.advance(5);
    world.engine.expire(world.now);
    assert_eq!(world.engine.held_fragment_bytes(), 0);
    assert_eq!(world.engine.counters().dropped(DropReason::FragmentTimeout), 1024);
}

#[test]
fn four_mebibytes_are_the_most_that_is_held() {
    let mut world = World::new("");
    for id in 0..200 {
        world.out(&mut fragment_v4(id, 1480, false, 17, &vec![0; 60_000]));
    }
    let held = world.engine.held_fragment_bytes();
    assert!(held <= 4 << 20 && held > (4 << 20) - 61_000, "{held} bytes");
}

fn fragment_from_h2(id: u16) -> Vec<u8> {
    let mut bytes = fragment_v4(id, 1480, false, 17, &vec![0; 1400]);
    bytes[12..16].copy_from_slice(&[10, 42, 2, 5]);
    bytes[16..20].copy_from_slice(&[10, 42, 1, 5]);
    bytes
}

#[test]
fn same_identification_from_another_peer_is_another_datagram() {
    let mut world = World::new("");
    assert_eq!(world.out(&mut fragment_v4(5, 1480, false, 17, &[0; 1400])), Verdict::Held);
    assert_eq!(world.from(H2, &mut fragment_from_h2(5)), Verdict::Held);
    assert_eq!(world.engine.counters().dropped(DropReason::FragmentOverlap), 0);
}

/// What a receiver that keeps to RFC 5722 would make of the pieces that got through.
fn reassembles(pieces: &[(usize, usize)], len: usize) -> bool {
    let mut sorted = pieces.to_vec();
    sorted.sort_unstable();
    let mut at = 0;
    for (start, end) in sorted {
        if start != at {
            return false;
        }
        at = end;
    }
    at == len
}

proptest! {
    #[test]
    fn what_gets_through_reassembles_to_what_the_filter_allows(
        cuts in proptest::collection::btree_set(1usize..12, 1..6),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 0..14),
        twice in proptest::option::of((0usize..12, 1usize..4)),
        allowed in any::<bool>(),
        v6 in any::<bool>(),
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let len = 96;
        let bytes = datagram(if allowed { 80 } else { 81 }, len);
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut * 8).collect();
        edges.insert(0, 0);
        edges.push(len);
        let mut pieces: Vec<(usize, usize)> = edges.windows(2).map(|pair| (pair[0], pair[1])).collect();
        if let Some((start, span)) = twice {
            let end = ((start + span) * 8).min(len);
            if start * 8 < end { pieces.push((start * 8, end)); }
        }
        for (at, index) in order.iter().enumerate() {
            let at = at % pieces.len();
            let other = index.index(pieces.len());
            pieces.swap(at, other);
        }
        let mut world = World::new("deny udp/81 from any to any");
        let mut through = Vec::new();
        let mut held = Vec::new();
        for &(start, end) in &pieces {
            match world.out(&mut piece(family, 3, &bytes, start, end)) {
                Verdict::Forward(_) => through.push((start, end)),
                Verdict::Held => held.push((start, end)),
                _ => {}
            }
            let mut out = Vec::new();
            world.engine.take_released(&world.tables, world.now, &mut out);
            if !out.is_empty() {
                through.append(&mut held);
            }
        }
        // Without an overlap the whole arrives exactly when the filter allows it.
        if twice.is_none() {
            prop_assert_eq!(reassembles(&through, len), allowed, "{:?}", pieces);
        } else if !allowed {
            prop_assert!(through.is_empty(), "{:?}", through);
        }
        // Bytes go through twice only where a complete datagram went before: what follows is a new one.
        for (index, b) in through.iter().enumerate() {
            let overlaps = through[..index].iter().any(|a| a.0 < b.1 && b.0 < a.1);
            let complete_before = (0..=index).any(|count| reassembles(&through[..count], len));
            prop_assert!(!overlaps || complete_before, "{:?}", through);
        }
    }
}

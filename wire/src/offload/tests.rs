//! Segmentation and coalescing against each other, and against packets built by `etherparse`.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::super::segment::{Segments, complete_checksum};
use super::super::{GsoKind, OffloadError, VnetHeader};
use super::{Coalescer, Joining, Trust};
use crate::checksum;
use crate::packet::Headers;

fn tcp(ipv4: bool, seq: u32, payload: &[u8], push: bool) -> Vec<u8> {
    let builder = if ipv4 {
        PacketBuilder::ipv4([10, 42, 1, 5], [10, 42, 2, 5], 63)
    } else {
        PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 63)
    };
    let builder = builder.tcp(4000, 80, seq, 500).ack(77);
    let builder = if push { builder.psh() } else { builder };
    let mut out = Vec::new();
    builder.write(&mut out, payload).expect("a packet that fits");
    out
}

fn udp(ipv4: bool, payload: &[u8]) -> Vec<u8> {
    let builder = if ipv4 {
        PacketBuilder::ipv4([10, 42, 1, 5], [10, 42, 2, 5], 63)
    } else {
        PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 63)
    };
    let mut out = Vec::new();
    builder.udp(4000, 53).write(&mut out, payload).expect("a packet that fits");
    out
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn cut(packet: &[u8], gso: GsoKind, size: u16) -> Vec<Vec<u8>> {
    let headers = Headers::parse(packet).expect("a valid packet");
    let vnet = VnetHeader { needs_checksum: true, gso, gso_size: size, ..VnetHeader::default() };
    let segments = Segments::new(packet, &headers, &vnet).expect("segments");
    (0..segments.count())
        .map(|i| {
            let mut out = vec![0; segments.segment_len()];
            let len = segments.emit(i, &mut out);
            out.truncate(len);
            out
        })
        .collect()
}

fn join(packets: &[Vec<u8>], joining: Joining, trust: Trust) -> (Vec<u8>, Coalescer) {
    let mut arena = Vec::new();
    let mut places = Vec::new();
    for packet in packets {
        places.push(arena.len());
        arena.extend_from_slice(packet);
    }
    let mut batch = Coalescer::new();
    for (place, packet) in places.iter().zip(packets) {
        let headers = Headers::parse(packet).expect("a valid packet");
        batch.push(&arena, *place, &headers, 0, joining, trust);
    }
    (arena, batch)
}

fn super_packet(arena: &mut [u8], batch: &Coalescer, index: usize) -> (Vec<u8>, VnetHeader) {
    let entry = &batch.entries()[index];
    let vnet = entry.finish(arena);
    let mut out = arena[entry.first()].to_vec();
    for (at, len) in entry.payloads() {
        out.extend_from_slice(&arena[*at..at + len]);
    }
    (out, vnet)
}

#[test]
fn tcp_segments_have_the_bytes_of_packets_built_one_by_one() {
    for ipv4 in [true, false] {
        let data = payload(3000);
        let gso = if ipv4 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
        let cut = cut(&tcp(ipv4, u32::MAX - 1000, &data, true), gso, 1400);
        assert_eq!(cut.len(), 3);
        for (i, segment) in cut.iter().enumerate() {
            let range = i * 1400..(i * 1400 + 1400).min(data.len());
            let mut expected = tcp(ipv4, (u32::MAX - 1000).wrapping_add(i as u32 * 1400), &data[range], i == 2);
            if ipv4 {
                expected[4..6].copy_from_slice(&(i as u16).to_be_bytes());
                checksum::fill_ipv4_header(&mut expected, 20);
            }
            assert_eq!(segment, &expected, "segment {i}, ipv4 {ipv4}");
        }
    }
}

#[test]
fn udp_segments_have_the_bytes_of_packets_built_one_by_one() {
    for ipv4 in [true, false] {
        let data = payload(2500);
        for (i, segment) in cut(&udp(ipv4, &data), GsoKind::Udp, 1000).iter().enumerate() {
            let mut expected = udp(ipv4, &data[i * 1000..(i * 1000 + 1000).min(2500)]);
            if ipv4 {
                expected[4..6].copy_from_slice(&(i as u16).to_be_bytes());
                checksum::fill_ipv4_header(&mut expected, 20);
            }
            assert_eq!(segment, &expected, "segment {i}, ipv4 {ipv4}");
        }
    }
}

#[test]
fn kind_of_another_protocol_is_refused() {
    let packet = udp(true, &payload(100));
    let headers = Headers::parse(&packet).expect("a valid packet");
    let vnet = VnetHeader { gso: GsoKind::TcpV4, gso_size: 10, ..VnetHeader::default() };
    assert!(matches!(Segments::new(&packet, &headers, &vnet), Err(OffloadError::WrongProtocol { .. })));
    let vnet = VnetHeader { gso: GsoKind::Udp, gso_size: 0, ..VnetHeader::default() };
    assert!(matches!(Segments::new(&packet, &headers, &vnet), Err(OffloadError::ZeroSegment)));
}

#[test]
fn checksum_field_outside_the_packet_is_refused() {
    let vnet = VnetHeader { csum_start: 20, csum_offset: 16, ..VnetHeader::default() };
    assert!(complete_checksum(&mut [0; 37], &vnet).is_err());
    assert!(complete_checksum(&mut [0; 38], &vnet).is_ok());
}

#[test]
fn partial_checksum_is_completed() {
    let mut packet = tcp(true, 1, &payload(99), false);
    let expected = packet.clone();
    let headers = Headers::parse(&packet).expect("a valid packet");
    let pseudo = checksum::pseudo_header(headers.src, headers.dst, 6, headers.total_len - 20);
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    let vnet = VnetHeader { needs_checksum: true, csum_start: 20, csum_offset: 16, ..VnetHeader::default() };
    complete_checksum(&mut packet, &vnet).expect("inside the packet");
    assert_eq!(packet, expected);
}

#[test]
fn gap_other_ack_or_larger_segment_start_a_new_entry() {
    let a = tcp(true, 1000, &payload(100), false);
    let gap = tcp(true, 1101, &payload(100), false);
    assert_eq!(join(&[a.clone(), gap], Joining::Tcp, Trust::Authenticated).1.entries().len(), 2);
    let larger = tcp(true, 1100, &payload(101), false);
    assert_eq!(join(&[a.clone(), larger], Joining::Tcp, Trust::Authenticated).1.entries().len(), 2);
    let mut other_ack = tcp(true, 1100, &payload(100), false);
    other_ack[31] ^= 1;
    assert_eq!(join(&[a.clone(), other_ack], Joining::Tcp, Trust::Authenticated).1.entries().len(), 2);
    let next = tcp(true, 1100, &payload(100), false);
    assert_eq!(join(&[a.clone(), next.clone()], Joining::Tcp, Trust::Authenticated).1.entries().len(), 1);
    assert_eq!(join(&[a, next], Joining::Off, Trust::Authenticated).1.entries().len(), 2);
}

#[test]
fn wrong_checksum_is_left_alone_when_unverified() {
    let a = tcp(true, 1000, &payload(100), false);
    let mut b = tcp(true, 1100, &payload(100), false);
    let last = b.len() - 1;
    b[last] ^= 0xff;
    let (_, batch) = join(&[a.clone(), b.clone()], Joining::Tcp, Trust::Unverified);
    assert_eq!(batch.entries().len(), 2);
    let (_, batch) = join(&[a, b], Joining::Tcp, Trust::Authenticated);
    assert_eq!(batch.entries().len(), 1);
}

#[test]
fn bare_acknowledgement_keeps_its_place_between_segments() {
    let packets =
        [tcp(true, 1000, &payload(100), false), tcp(true, 1100, &[], false), tcp(true, 1100, &payload(100), false)];
    let (_, batch) = join(&packets, Joining::Tcp, Trust::Authenticated);
    assert_eq!(batch.entries().len(), 3);
}

#[test]
fn headers_of_a_super_packet_show_the_end_of_the_stream() {
    let mut last = tcp(true, 1100, &payload(40), true);
    last[33] |= 1;
    checksum::fill_transport(&mut last, &Headers::parse(&tcp(true, 1100, &payload(40), true)).expect("a valid packet"));
    let (mut arena, batch) = join(&[tcp(true, 1000, &payload(100), false), last], Joining::Tcp, Trust::Unverified);
    assert_eq!(batch.entries().len(), 1);
    let headers = batch.entries()[0].headers;
    assert!(headers.tcp().is_some_and(|tcp| tcp.flags.fin()), "{headers:?}");
    let (whole, _) = super_packet(&mut arena, &batch, 0);
    assert_eq!(Headers::parse(&whole), Ok(headers));
}

#[test]
fn interleaved_flows_are_joined_each() {
    let mut packets = Vec::new();
    for i in 0..8 {
        for port in 0..4u8 {
            let mut packet = tcp(true, 1000 + i * 100, &payload(100), false);
            packet[21] = port;
            packets.push(packet);
        }
    }
    let (_, batch) = join(&packets, Joining::Tcp, Trust::Authenticated);
    assert_eq!(batch.entries().len(), 4);
    assert!(batch.entries().iter().all(|entry| entry.segments == 8));
}

#[test]
fn batch_is_reused_without_old_entries() {
    let (_, mut batch) = join(&[udp(true, b"x")], Joining::Tcp, Trust::Authenticated);
    batch.clear();
    assert!(batch.entries().is_empty());
}

#[test]
fn packet_joined_by_the_kernel_is_cut_anew() {
    let data = payload(3000);
    let whole = tcp(true, 9, &data, true);
    let mut arena = whole.clone();
    // The kernel leaves the pseudo-header sum.
    arena[36..38].fill(0);
    let headers = Headers::parse(&arena).expect("a valid packet");
    let mut batch = Coalescer::new();
    batch.push_joined(0, &headers, 0, 1000);
    assert_eq!(batch.entries()[0].segments, 3);
    let (mut packet, vnet) = super_packet(&mut arena, &batch, 0);
    assert_eq!((vnet.gso, vnet.gso_size), (GsoKind::TcpV4, 1000));
    complete_checksum(&mut packet, &vnet).expect("inside the packet");
    assert_eq!(packet, whole);
}

proptest! {
    #[test]
    fn cut_and_joined_is_the_same(ipv4 in any::<bool>(), is_tcp in any::<bool>(), len in 1usize..20_000,
                                  size in 500u16..1500, push in any::<bool>()) {
        let data = payload(len);
        let (packet, gso) = match (is_tcp, ipv4) {
            (true, true) => (tcp(true, 5, &data, push), GsoKind::TcpV4),
            (true, false) => (tcp(false, 5, &data, push), GsoKind::TcpV6),
            (false, _) => (udp(ipv4, &data), GsoKind::Udp),
        };
        let parts = cut(&packet, gso, size);
        for part in &parts {
            let headers = Headers::parse(part).expect("a valid segment");
            prop_assert!(checksum::verify_transport(part, &headers));
        }
        let (mut arena, batch) = join(&parts, Joining::TcpAndUdp, Trust::Unverified);
        prop_assert_eq!(batch.entries().len(), 1);
        let (mut whole, vnet) = super_packet(&mut arena, &batch, 0);
        // What decides sees the super-packet only through these headers.
        prop_assert_eq!(Ok(batch.entries()[0].headers), Headers::parse(&whole));
        if vnet.needs_checksum {
            prop_assert_eq!(vnet.gso, gso);
            prop_assert_eq!(usize::from(vnet.gso_size), usize::from(size).min(len));
            complete_checksum(&mut whole, &vnet).expect("inside the packet");
        }
        prop_assert_eq!(whole, packet);
    }

    #[test]
    fn any_device_header_over_any_packet_is_safe(packet in proptest::collection::vec(any::<u8>(), 0..200),
                                                 header in any::<[u8; 10]>()) {
        if let (Ok(vnet), Ok(headers)) = (VnetHeader::parse(&header), Headers::parse(&packet)) {
            if let Ok(segments) = Segments::new(&packet, &headers, &vnet) {
                let mut out = vec![0; segments.segment_len()];
                for i in 0..segments.count() {
                    prop_assert!(segments.emit(i, &mut out) <= out.len());
                }
            }
            let _ = complete_checksum(&mut packet.clone(), &vnet);
        }
    }
}

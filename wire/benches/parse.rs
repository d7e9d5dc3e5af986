//! What the packet path pays per packet for parsing and checksums, and the assertion that it never allocates.
//!
//! Run with `cargo bench -p overlay-wire`. The assertion runs first, also under `cargo bench -- --test`.

use std::alloc::System;
use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use overlay_wire::envelope::Datagram;
use overlay_wire::fragment;
use overlay_wire::gre::GreHeader;
use overlay_wire::icmp::{self, IcmpError};
use overlay_wire::ipip::Outer;
use overlay_wire::packet::Headers;
use overlay_wire::{Mtu, checksum, ecn, mss, ttl};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    assert_nothing_allocates();
    divan::main();
}

fn packets() -> [(&'static str, Vec<u8>); 5] {
    let payload = [7; 1360];
    let v4 = || etherparse::PacketBuilder::ipv4([10, 42, 1, 2], [10, 42, 2, 3], 64);
    let v6 = || etherparse::PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 64);
    let mut packets =
        [("tcp4", Vec::new()), ("tcp6", Vec::new()), ("udp4", Vec::new()), ("syn4", Vec::new()), ("echo6", Vec::new())];
    let options = [
        etherparse::TcpOptionElement::MaximumSegmentSize(1460),
        etherparse::TcpOptionElement::SelectiveAcknowledgementPermitted,
        etherparse::TcpOptionElement::Timestamp(1, 0),
        etherparse::TcpOptionElement::Noop,
        etherparse::TcpOptionElement::WindowScale(7),
    ];
    let syn = v4().tcp(40_000, 443, 1, 64_240).syn().options(&options).expect("the options fit");
    let written = [
        v4().tcp(40_000, 443, 1, 64_240).ack(2).write(&mut packets[0].1, &payload),
        v6().tcp(40_000, 443, 1, 64_240).ack(2).write(&mut packets[1].1, &payload),
        v4().udp(1000, 2000).write(&mut packets[2].1, &payload[..36]),
        syn.write(&mut packets[3].1, &[]),
        v6().icmpv6_echo_request(1, 2).write(&mut packets[4].1, &payload[..56]),
    ];
    assert!(written.iter().all(Result::is_ok), "a vector takes every packet");
    packets
}

/// Runs every per-packet operation once over each packet and fails when any of them allocates.
fn assert_nothing_allocates() {
    let mut packets = packets();
    let mut out = [0; 1500];
    let region = Region::new(ALLOCATOR);
    for (_, packet) in &mut packets {
        let Ok(mut headers) = Headers::parse(packet) else { panic!("a bench packet does not parse") };
        assert!(checksum::verify_transport(packet, &headers));
        assert!(checksum::verify_ipv4_header(packet, &headers));
        checksum::fill_transport(packet, &headers);
        mss::clamp(packet, &headers, 1300);
        assert!(ttl::decrement(packet, &mut headers));
        assert!(ecn::decapsulate_packet(ecn::ECT_0, packet, &mut headers).is_ok());
        icmp::build_error(packet, &headers, headers.dst, IcmpError::TooBig { mtu: 1280 }, &mut out);
        icmp::build_tcp_reset(&headers, &mut out);
        icmp::build_echo_reply(packet, &headers, &mut out);
        let _ = black_box(fragment::split(packet, &headers, Mtu::MIN, &mut out, |piece| {
            black_box(piece);
        }));
        let _ = black_box(GreHeader::parse(packet));
        let _ = black_box(Outer::parse_ipv4(packet));
        let _ = black_box(Datagram::classify(packet));
    }
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "a per-packet operation allocates");
    // The counter itself works.
    black_box(vec![1]);
    assert_eq!(region.change().allocations, 1, "the allocation counter counts nothing");
}

const NAMES: [&str; 5] = ["tcp4", "tcp6", "udp4", "syn4", "echo6"];

fn packet(name: &str) -> Vec<u8> {
    packets().into_iter().find(|(known, _)| *known == name).map(|(_, packet)| packet).unwrap_or_default()
}

#[divan::bench(args = NAMES)]
fn parse(bencher: Bencher<'_, '_>, name: &str) {
    let packet = packet(name);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| Headers::parse(black_box(&packet)));
}

#[divan::bench(args = NAMES)]
fn verify(bencher: Bencher<'_, '_>, name: &str) {
    let packet = packet(name);
    let Ok(headers) = Headers::parse(&packet) else { return };
    bencher
        .counter(BytesCount::new(packet.len()))
        .bench_local(|| checksum::verify_transport(black_box(&packet), &headers));
}

#[divan::bench(args = [20, 64, 576, 1420, 9000, 65_535])]
fn sum(bencher: Bencher<'_, '_>, len: usize) {
    let bytes = vec![0xa5; len];
    bencher.counter(BytesCount::new(len)).bench_local(|| checksum::sum(black_box(&bytes)));
}

#[divan::bench]
fn decrement_ttl(bencher: Bencher<'_, '_>) {
    let mut packet = packet("tcp4");
    let Ok(headers) = Headers::parse(&packet) else { return };
    bencher.bench_local(|| {
        let mut headers = headers;
        ttl::decrement(black_box(&mut packet), &mut headers)
    });
}

#[divan::bench]
fn gre_with_key_parse(bencher: Bencher<'_, '_>) {
    let header = GreHeader { protocol: 0x0800, key: Some(7), sequence: None, checksum: false };
    let mut packet = vec![0; 8 + 1400];
    header.emit(&mut packet);
    bencher.bench_local(|| GreHeader::parse(black_box(&packet)).is_ok());
}

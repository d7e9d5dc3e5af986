//! Byte examples, etherparse as oracle, and totality over arbitrary bytes.

use etherparse::{IpFragOffset, PacketBuilder, TcpOptionElement};
use proptest::prelude::*;

use super::*;
use crate::checksum;

const SRC4: [u8; 4] = [10, 42, 1, 2];
const DST4: [u8; 4] = [10, 42, 2, 3];
const SRC6: [u8; 16] = [0xfd, 0x42, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2];
const DST6: [u8; 16] = [0xfd, 0x42, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3];

fn built(builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// An IPv6 packet with the given chain between the fixed header and the payload.
fn ipv6(next_header: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((rest.len() as u16).to_be_bytes());
    bytes.extend([next_header, 64]);
    bytes.extend(SRC6);
    bytes.extend(DST6);
    bytes.extend(rest);
    bytes
}

const UDP_EMPTY: [u8; 8] = [0, 53, 0, 54, 0, 8, 0, 0];

#[test]
fn udp_over_ipv4_with_padding_behind_ends_at_total_len() {
    let mut bytes = built(PacketBuilder::ipv4(SRC4, DST4, 17).udp(1000, 53), b"query");
    bytes.extend([0; 9]);
    let headers = Headers::parse(&bytes).unwrap();
    assert_eq!(headers.total_len, 33);
    assert_eq!(headers.l4_offset, 20);
    assert_eq!(headers.payload_len(), 5);
    assert_eq!(headers.ports(), Some((1000, 53)));
    assert_eq!((headers.ttl, headers.protocol, headers.has_options), (17, 17, false));
    assert!(checksum::verify_transport(&bytes, &headers));
    assert!(checksum::verify_ipv4_header(&bytes, &headers));
    bytes[30] ^= 1;
    assert!(!checksum::verify_transport(&bytes, &headers));
    bytes[8] ^= 1;
    assert!(!checksum::verify_ipv4_header(&bytes, &headers));
}

#[test]
fn syn_with_options_yields_window_scale() {
    let mut bytes = Vec::new();
    PacketBuilder::ipv6(SRC6, DST6, 9)
        .tcp(40_000, 443, 7, 64_240)
        .syn()
        .options(&[
            TcpOptionElement::MaximumSegmentSize(1440),
            TcpOptionElement::Noop,
            TcpOptionElement::WindowScale(9),
        ])
        .unwrap()
        .write(&mut bytes, &[])
        .unwrap();
    let headers = Headers::parse(&bytes).unwrap();
    let tcp = headers.tcp().unwrap();
    assert_eq!((tcp.seq, tcp.window, tcp.window_scale, tcp.header_len), (7, 64_240, Some(9), 28));
    assert!(tcp.flags.syn() && !tcp.flags.ack());
    assert!(headers.dont_fragment && !headers.is_ipv4());
    assert!(checksum::verify_transport(&bytes, &headers));
}

#[test]
fn ipv4_source_route_options_are_flagged() {
    for (kind, flagged) in [(0x83, true), (0x89, true), (0x07, false)] {
        let mut bytes = vec![0x47, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 10, 42, 1, 2, 10, 42, 2, 3];
        bytes.extend([1, kind, 7, 4, 1, 2, 3, 4]);
        bytes.extend(UDP_EMPTY);
        let headers = Headers::parse(&bytes).unwrap();
        assert!(headers.has_options);
        assert_eq!(headers.has_source_route, flagged, "option {kind:#x}");
        assert_eq!(headers.ports(), Some((53, 54)));
    }
}

#[test]
fn ipv4_option_past_the_header_is_refused() {
    let mut bytes = vec![0x46, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 42, 1, 2, 10, 42, 2, 3, 0x83, 5, 4, 0];
    bytes.extend(UDP_EMPTY);
    assert_eq!(Headers::parse(&bytes), Err(ParseError::Ipv4Option { kind: 0x83, offset: 20 }));
    bytes[21] = 1;
    assert_eq!(Headers::parse(&bytes), Err(ParseError::Ipv4Option { kind: 0x83, offset: 20 }));
    // Behind the end of the list nothing is read.
    bytes[20] = 0;
    assert!(Headers::parse(&bytes).is_ok());
}

#[test]
fn ipv6_chain_reaches_the_upper_layer() {
    let mut rest = vec![60, 0, 1, 4, 0, 0, 0, 0]; // hop-by-hop, padding
    rest.extend([51, 0, 1, 4, 0, 0, 0, 0]); // destination options
    rest.extend([44, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9]); // AH, 16 bytes
    rest.extend([17, 0, 0, 0, 0, 0, 0, 7]); // atomic fragment
    rest.extend(UDP_EMPTY);
    let headers = Headers::parse(&ipv6(0, &rest)).unwrap();
    assert_eq!(headers.protocol, protocol::UDP);
    assert_eq!(headers.l4_offset, 80);
    assert_eq!(headers.fragment, Some(Fragment { id: 7, offset_bytes: 0, more: false }));
    assert!(headers.has_options && !headers.has_source_route && !headers.is_partial());
    assert_eq!(headers.ports(), Some((53, 54)));
}

#[test]
fn routing_header_is_a_source_route_by_type_or_segments_left() {
    for (routing_type, left, flagged) in [(0, 0, true), (4, 1, true), (4, 0, false)] {
        let mut rest = vec![17, 0, routing_type, left, 0, 0, 0, 0];
        rest.extend(UDP_EMPTY);
        let headers = Headers::parse(&ipv6(43, &rest)).unwrap();
        assert_eq!(headers.has_source_route, flagged, "type {routing_type}, {left} left");
    }
}

#[test]
fn hop_by_hop_not_in_front_is_refused() {
    let mut rest = vec![0, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0];
    rest.extend(UDP_EMPTY);
    assert_eq!(Headers::parse(&ipv6(60, &rest)), Err(ParseError::ExtensionHeader { kind: 0, offset: 48 }));
}

#[test]
fn extension_headers_beyond_either_limit_are_refused() {
    let chain = |count: usize| {
        let mut rest = Vec::new();
        for left in (0..count).rev() {
            rest.extend([if left == 0 { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        rest.extend(UDP_EMPTY);
        Headers::parse(&ipv6(60, &rest))
    };
    assert!(chain(MAX_EXTENSION_HEADERS).is_ok());
    assert_eq!(chain(MAX_EXTENSION_HEADERS + 1), Err(ParseError::ExtensionLimit));
    let long = |units: u8| {
        let mut rest = vec![17, units];
        rest.resize((usize::from(units) + 1) * 8, 0);
        rest.extend(UDP_EMPTY);
        Headers::parse(&ipv6(60, &rest))
    };
    assert!(long(31).is_ok());
    assert_eq!(long(32), Err(ParseError::ExtensionLimit));
}

#[test]
fn first_fragment_without_its_whole_transport_header_is_refused() {
    let mut rest = vec![6, 0, 0, 1, 0, 0, 0, 7];
    rest.extend([0; 16]);
    assert_eq!(
        Headers::parse(&ipv6(44, &rest)),
        Err(ParseError::TransportCut { protocol: 6, needed: 20, available: 16 })
    );
}

#[test]
fn later_fragment_has_no_transport() {
    let mut bytes = vec![0x45, 0, 0, 28, 0xab, 0xcd, 0x20, 0x02, 64, 6, 0, 0, 10, 42, 1, 2, 10, 42, 2, 3];
    bytes.extend([0xff; 8]);
    let headers = Headers::parse(&bytes).unwrap();
    assert_eq!(headers.transport, Transport::None);
    assert_eq!(headers.fragment, Some(Fragment { id: 0xabcd, offset_bytes: 16, more: true }));
    assert_eq!((headers.protocol, headers.payload_len()), (6, 8));
    assert!(headers.is_later_fragment());
}

#[test]
fn fragment_past_65535_or_of_odd_length_is_refused() {
    let mut bytes = vec![0x45, 0, 0, 28, 0, 1, 0x1f, 0xff, 64, 17, 0, 0, 10, 42, 1, 2, 10, 42, 2, 3];
    bytes.extend([0; 8]);
    assert_eq!(Headers::parse(&bytes), Err(ParseError::Fragment { offset_bytes: 65_528, len: 8 }));
    bytes[6] = 0x20;
    bytes[7] = 1;
    bytes[3] = 27;
    assert_eq!(Headers::parse(&bytes), Err(ParseError::Fragment { offset_bytes: 8, len: 7 }));
}

#[test]
fn udp_length_beyond_the_packet_is_refused_but_not_in_a_first_fragment() {
    let mut bytes = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 42, 1, 2, 10, 42, 2, 3];
    bytes.extend([0, 53, 0, 54, 0, 9, 0, 0]);
    assert_eq!(Headers::parse(&bytes), Err(ParseError::TransportLength { protocol: 17, claimed: 9, available: 8 }));
    bytes[6] = 0x20;
    assert_eq!(Headers::parse(&bytes).unwrap().ports(), Some((53, 54)));
}

#[test]
fn icmp_of_the_other_family_is_not_icmp() {
    let headers = Headers::parse(&ipv6(1, &[8, 0, 0, 0, 0, 1, 0, 1])).unwrap();
    assert_eq!(headers.transport, Transport::Other);
}

#[test]
fn echo_has_an_identifier_and_errors_have_none() {
    let headers = Headers::parse(&ipv6(58, &[128, 0, 0, 0, 0x12, 0x34, 0, 1])).unwrap();
    assert_eq!(headers.transport, Transport::Icmp(Icmp { kind: 128, code: 0, id: Some(0x1234), is_error: false }));
    let headers = Headers::parse(&ipv6(58, &[2, 0, 0, 0, 0x12, 0x34, 0, 1])).unwrap();
    assert_eq!(headers.transport, Transport::Icmp(Icmp { kind: 2, code: 0, id: None, is_error: true }));
}

#[test]
fn udp_without_checksum_is_right_in_ipv4_only() {
    let mut bytes = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 42, 1, 2, 10, 42, 2, 3];
    bytes.extend(UDP_EMPTY);
    assert!(checksum::verify_transport(&bytes, &Headers::parse(&bytes).unwrap()));
    let mut bytes = ipv6(17, &UDP_EMPTY);
    let headers = Headers::parse(&bytes).unwrap();
    assert!(!checksum::verify_transport(&bytes, &headers));
    assert!(checksum::fill_transport(&mut bytes, &headers));
    assert!(checksum::verify_transport(&bytes, &headers));
}

#[test]
fn ipv6_longer_than_65535_is_refused() {
    let mut bytes = ipv6(59, &[]);
    bytes[4..6].copy_from_slice(&0xffffu16.to_be_bytes());
    bytes.resize(70_000, 0);
    assert_eq!(Headers::parse(&bytes), Err(ParseError::TotalLength { claimed: 65_575, available: 70_000 }));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_stay_in_bounds(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        shape in 0u8..4,
        next in prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 51, 58, 60]),
    ) {
        // Random bytes rarely pass the first checks: most cases start as a plausible header.
        match (shape, bytes.len()) {
            (0, 20..) => { bytes[0] = 0x45; let len = bytes.len() as u16; bytes[2..4].copy_from_slice(&len.to_be_bytes()); bytes[9] = next; }
            (1, 40..) => { bytes[0] = 0x60; let len = bytes.len() as u16 - 40; bytes[4..6].copy_from_slice(&len.to_be_bytes()); bytes[6] = next; }
            (2, 60..) => { bytes[0] = 0x4f; let len = bytes.len() as u16; bytes[2..4].copy_from_slice(&len.to_be_bytes()); }
            _ => {}
        }
        if let Ok(headers) = Headers::parse(&bytes) {
            prop_assert!(usize::from(headers.total_len) <= bytes.len());
            prop_assert!(headers.payload_offset() + headers.payload_len() == usize::from(headers.total_len));
            let _ = checksum::verify_transport(&bytes, &headers);
            if checksum::fill_transport(&mut bytes, &headers) {
                prop_assert!(checksum::verify_transport(&bytes, &headers));
            }
        }
    }

    #[test]
    fn packets_built_by_etherparse_parse_to_the_same_fields(
        v6 in any::<bool>(), kind in 0u8..3, src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(), ttl: u8, tos in 0u8..64,
        ports in any::<(u16, u16)>(), seq: u32, ack: u32, window: u16, flags: u8,
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let src4 = [src[0], src[1], src[2], src[3]];
        let dst4 = [dst[0], dst[1], dst[2], dst[3]];
        let ip = if v6 {
            etherparse::IpHeaders::Ipv6(etherparse::Ipv6Header {
                traffic_class: tos << 2, hop_limit: ttl, source: src, destination: dst, ..Default::default()
            }, Default::default())
        } else {
            let mut header = etherparse::Ipv4Header::new(0, ttl, etherparse::IpNumber::TCP, src4, dst4).unwrap();
            header.dscp = etherparse::IpDscp::try_new(tos).unwrap();
            header.dont_fragment = flags & 1 != 0;
            etherparse::IpHeaders::Ipv4(header, Default::default())
        };
        let builder = PacketBuilder::ip(ip);
        let mut bytes = Vec::new();
        match kind {
            0 => {
                let mut tcp = etherparse::TcpHeader::new(ports.0, ports.1, seq, window);
                (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 8 != 0);
                (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (flags & 16 != 0, flags & 32 != 0, flags & 64 != 0, flags & 128 != 0);
                tcp.acknowledgment_number = ack;
                builder.tcp_header(tcp).write(&mut bytes, &payload).unwrap();
            }
            1 => builder.udp(ports.0, ports.1).write(&mut bytes, &payload).unwrap(),
            _ if v6 => builder.icmpv6_echo_request(ports.0, ports.1).write(&mut bytes, &payload).unwrap(),
            _ => builder.icmpv4_echo_request(ports.0, ports.1).write(&mut bytes, &payload).unwrap(),
        }
        let headers = Headers::parse(&bytes).unwrap();
        prop_assert_eq!(usize::from(headers.total_len), bytes.len());
        prop_assert_eq!(headers.src, if v6 { IpAddr::from(src) } else { IpAddr::from(src4) });
        prop_assert_eq!(headers.dst, if v6 { IpAddr::from(dst) } else { IpAddr::from(dst4) });
        prop_assert_eq!((headers.ttl, headers.tos), (ttl, tos << 2));
        prop_assert_eq!(headers.dont_fragment, v6 || flags & 1 != 0);
        prop_assert_eq!(headers.payload_len(), payload.len());
        prop_assert!(!headers.has_options && !headers.has_source_route && headers.fragment.is_none());
        match headers.transport {
            Transport::Tcp(tcp) => {
                prop_assert_eq!(kind, 0);
                prop_assert_eq!((tcp.src_port, tcp.dst_port), ports);
                prop_assert_eq!((tcp.seq, tcp.ack, tcp.window, tcp.flags.0), (seq, ack, window, flags));
            }
            Transport::Udp(udp) => prop_assert_eq!((kind, (udp.src_port, udp.dst_port)), (1, ports)),
            Transport::Icmp(icmp) => prop_assert_eq!((kind, icmp.id, icmp.is_error), (2, Some(ports.0), false)),
            other => prop_assert!(false, "parsed as {:?}", other),
        }
        prop_assert!(checksum::verify_ipv4_header(&bytes, &headers));
        // etherparse writes a computed UDP checksum of zero as it is, which no sender may do.
        if kind != 1 || bytes[usize::from(headers.l4_offset) + 6..][..2] != [0, 0] {
            prop_assert!(checksum::verify_transport(&bytes, &headers));
            let written = bytes.clone();
            checksum::fill_transport(&mut bytes, &headers);
            prop_assert_eq!(&bytes, &written);
        }
        // Every truncation is refused: the length field no longer fits.
        for len in 0..bytes.len() {
            prop_assert!(Headers::parse(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn ipv4_fragments_built_by_etherparse_parse_to_the_same_place(id: u16, units in 0u16..8000, more: bool) {
        let mut header = etherparse::Ipv4Header::new(64, 5, etherparse::IpNumber::UDP, SRC4, DST4).unwrap();
        header.identification = id;
        header.dont_fragment = false;
        header.fragment_offset = IpFragOffset::try_new(units).unwrap();
        header.more_fragments = more;
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(84, 0);
        bytes[24..26].copy_from_slice(&64u16.to_be_bytes());
        let headers = Headers::parse(&bytes).unwrap();
        let expected = Fragment { id: id.into(), offset_bytes: units * 8, more };
        prop_assert_eq!(headers.fragment, (units != 0 || more).then_some(expected));
        prop_assert_eq!(headers.ports().is_some(), units == 0);
    }
}

//! Answers checked by parsing them again, by checksum, and against etherparse.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;

const ROUTER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 0, 1));
const ALL: [IcmpError; 7] = [
    IcmpError::TooBig { mtu: 1420 },
    IcmpError::NoRoute,
    IcmpError::HostUnreachable,
    IcmpError::PortUnreachable,
    IcmpError::AdminProhibited,
    IcmpError::TimeExceeded,
    IcmpError::ReassemblyTimeout,
];

fn router(headers: &Headers) -> IpAddr {
    if headers.is_ipv4() { ROUTER4 } else { "fd42::1".parse().unwrap() }
}

fn udp(v6: bool, payload: usize) -> (Vec<u8>, Headers) {
    let mut bytes = Vec::new();
    if v6 {
        PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 9).udp(1000, 53).write(&mut bytes, &vec![7; payload]).unwrap();
    } else {
        PacketBuilder::ipv4([10, 42, 1, 2], [10, 42, 2, 3], 9)
            .udp(1000, 53)
            .write(&mut bytes, &vec![7; payload])
            .unwrap();
    }
    let headers = Headers::parse(&bytes).unwrap();
    (bytes, headers)
}

/// Checks the answer's own headers and checksums, and that etherparse reads it too.
fn checked(answer: &[u8]) -> Headers {
    let headers = Headers::parse(answer).unwrap();
    assert_eq!(usize::from(headers.total_len), answer.len());
    assert_eq!(headers.ttl, REPLY_TTL);
    assert!(checksum::verify_ipv4_header(answer, &headers));
    assert!(checksum::verify_transport(answer, &headers));
    assert!(etherparse::SlicedPacket::from_ip(answer).unwrap().transport.is_some());
    headers
}

#[test]
fn every_error_quotes_the_original_up_to_its_limit() {
    for v6 in [false, true] {
        for payload in [0, 10, 520, 521, 1000, 3000] {
            let (original, headers) = udp(v6, payload);
            for error in ALL {
                let mut out = [0xee; 1500];
                let len = build_error(&original, &headers, router(&headers), error, &mut out);
                let answer = checked(&out[..len]);
                let (max, overhead) = if v6 { (1280, 48) } else { (576, 28) };
                assert_eq!(len, (original.len() + overhead).min(max));
                assert_eq!((answer.src, answer.dst), (router(&headers), headers.src));
                assert_eq!(out[overhead..len], original[..len - overhead]);
                let quote = Quote::parse(&out[..len], &answer).unwrap();
                assert_eq!((quote.src, quote.dst, quote.protocol), (headers.src, headers.dst, 17));
                assert_eq!(quote.ports(), Some((1000, 53)));
                assert_eq!(usize::from(quote.offset), overhead);
                assert_eq!(quote.total_len as usize, original.len());
                let is_too_big = matches!(error, IcmpError::TooBig { .. });
                assert_eq!(reported_mtu(&out[..len], &answer), is_too_big.then_some(1420));
            }
        }
    }
}

#[test]
fn errors_have_the_types_and_codes_of_the_registries() {
    let expect = [
        ((3, 4), (2, 0)),
        ((3, 0), (1, 0)),
        ((3, 1), (1, 3)),
        ((3, 3), (1, 4)),
        ((3, 13), (1, 1)),
        ((11, 0), (3, 0)),
        ((11, 1), (3, 1)),
    ];
    for (error, (v4, v6)) in ALL.into_iter().zip(expect) {
        for (is_v6, (kind, code)) in [(false, v4), (true, v6)] {
            let (original, headers) = udp(is_v6, 4);
            let mut out = [0; 1500];
            let len = build_error(&original, &headers, router(&headers), error, &mut out);
            let at = if is_v6 { 40 } else { 20 };
            assert!(len > 0);
            assert_eq!((out[at], out[at + 1]), (kind, code), "{error:?}");
        }
    }
}

#[test]
fn frag_needed_is_laid_out_as_rfc_1191_shows() {
    let (original, headers) = udp(false, 0);
    let mut out = [0; 100];
    let len = build_too_big(&original, &headers, ROUTER4, 1420, &mut out);
    assert_eq!(len, 56);
    assert_eq!(out[..12], [0x45, 0xc0, 0, 56, 0, 0, 0x40, 0, 64, 1, out[10], out[11]]);
    assert_eq!(out[12..20], [10, 42, 0, 1, 10, 42, 1, 2]);
    assert_eq!((out[20], out[21]), (3, 4));
    assert_eq!(out[24..28], [0, 0, 0x05, 0x8c]);
}

#[test]
fn errors_redirects_later_fragments_and_groups_are_never_answered() {
    let answer = |bytes: &[u8], headers: &Headers| {
        let mut out = [0; 1500];
        build_admin_prohibited(bytes, headers, router(headers), &mut out)
    };
    for v6 in [false, true] {
        let (original, headers) = udp(v6, 100);
        assert!(answer(&original, &headers) > 0, "control");
        let mut out = [0; 1500];
        let len = build_unreachable(&original, &headers, router(&headers), &mut out);
        let error = Headers::parse(&out[..len]).unwrap();
        assert_eq!(answer(&out[..len], &error), 0, "error");
        let sources: &[&str] =
            if v6 { &["::", "::1", "ff02::1"] } else { &["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] };
        for text in sources {
            assert_eq!(answer(&original, &Headers { src: text.parse().unwrap(), ..headers }), 0, "{text}");
        }
        let groups: &[&str] = if v6 { &["ff02::1"] } else { &["224.0.0.1", "255.255.255.255"] };
        for text in groups {
            assert_eq!(answer(&original, &Headers { dst: text.parse().unwrap(), ..headers }), 0, "{text}");
        }
        let other = if v6 { ROUTER4 } else { "fd42::1".parse().unwrap() };
        assert_eq!(build_unreachable(&original, &headers, other, &mut out), 0, "other family");
        let fragment = |offset_bytes| Some(crate::packet::Fragment { id: 1, offset_bytes, more: true });
        assert_eq!(answer(&original, &Headers { fragment: fragment(8), ..headers }), 0, "later fragment");
        assert!(answer(&original, &Headers { fragment: fragment(0), ..headers }) > 0, "first fragment");
    }
    let mut redirect = Vec::new();
    PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 9).icmpv6_raw(137, 0, [0; 4]).write(&mut redirect, &[0; 32]).unwrap();
    assert_eq!(answer(&redirect, &Headers::parse(&redirect).unwrap()), 0, "redirect");
}

#[test]
fn packet_too_big_answers_ipv6_multicast() {
    let (original, headers) = udp(true, 10);
    let group = Headers { dst: "ff0e::1".parse().unwrap(), ..headers };
    assert!(build_too_big(&original, &group, router(&headers), 1280, &mut [0; 1500]) > 0);
}

#[test]
fn short_buffer_shortens_the_quote_but_not_below_eight_bytes() {
    let (original, headers) = udp(false, 100);
    assert_eq!(build_unreachable(&original, &headers, ROUTER4, &mut [0; 55]), 0);
    let mut out = [0; 60];
    assert_eq!(build_unreachable(&original, &headers, ROUTER4, &mut out), 60);
    checked(&out);
}

#[test]
fn reset_answers_syn_data_and_ack_with_the_right_numbers() {
    let reset = |v6: bool, payload: &[u8], flags: u8| {
        let mut bytes = Vec::new();
        let mut tcp = etherparse::TcpHeader::new(40_000, 80, 0xffff_fffe, 100);
        (tcp.syn, tcp.ack, tcp.fin, tcp.rst) = (flags & 2 != 0, flags & 16 != 0, flags & 1 != 0, flags & 4 != 0);
        tcp.acknowledgment_number = 5000;
        if v6 {
            PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 9).tcp_header(tcp).write(&mut bytes, payload).unwrap();
        } else {
            PacketBuilder::ipv4([10; 4], [11; 4], 9).tcp_header(tcp).write(&mut bytes, payload).unwrap();
        }
        let headers = Headers::parse(&bytes).unwrap();
        let mut out = [0xee; 100];
        let len = build_tcp_reset(&headers, &mut out);
        if len == 0 {
            return None;
        }
        let answer = checked(&out[..len]);
        assert_eq!((answer.src, answer.dst), (headers.dst, headers.src));
        assert_eq!(answer.ports(), Some((80, 40_000)));
        let tcp = *answer.tcp().unwrap();
        Some((tcp.seq, tcp.ack, tcp.flags.0))
    };
    for v6 in [false, true] {
        assert_eq!(reset(v6, &[], TcpFlags::SYN), Some((0, 0xffff_ffff, 0x14)));
        assert_eq!(reset(v6, b"abc", TcpFlags::SYN | TcpFlags::FIN), Some((0, 3, 0x14)));
        assert_eq!(reset(v6, b"abc", TcpFlags::ACK), Some((5000, 0, 0x04)));
        assert_eq!(reset(v6, &[], TcpFlags::RST), None);
        assert_eq!(reset(v6, &[], TcpFlags::RST | TcpFlags::ACK), None);
    }
    let (_, headers) = udp(false, 0);
    assert_eq!(build_tcp_reset(&headers, &mut [0; 100]), 0);
}

#[test]
fn echo_reply_returns_the_payload_and_a_damaged_request_nothing() {
    for v6 in [false, true] {
        let mut bytes = Vec::new();
        if v6 {
            PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 9)
                .icmpv6_echo_request(7, 8)
                .write(&mut bytes, b"ping")
                .unwrap();
        } else {
            PacketBuilder::ipv4([10; 4], [11; 4], 9).icmpv4_echo_request(7, 8).write(&mut bytes, b"ping").unwrap();
        }
        let headers = Headers::parse(&bytes).unwrap();
        let mut out = [0; 100];
        let len = build_echo_reply(&bytes, &headers, &mut out);
        assert_eq!(len, bytes.len());
        let answer = checked(&out[..len]);
        assert_eq!((answer.src, answer.dst), (headers.dst, headers.src));
        let Transport::Icmp(icmp) = answer.transport else { panic!("not ICMP") };
        assert_eq!((icmp.kind, icmp.id), (if v6 { 129 } else { 0 }, Some(7)));
        assert_eq!(out[len - 6..len], *b"\x00\x08ping");
        assert_eq!(build_echo_reply(&out[..len], &answer, &mut [0; 100]), 0, "a reply is not answered");
        assert_eq!(build_echo_reply(&bytes, &headers, &mut [0; 31]), 0, "short buffer");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(build_echo_reply(&bytes, &headers, &mut out), 0, "damaged");
    }
}

#[test]
fn quote_of_a_first_ipv6_fragment_is_read_past_its_cut_end() {
    let mut rest = vec![17, 0, 0, 1, 0, 0, 0, 7, 0, 9, 0, 10, 8, 0, 0, 0];
    rest.resize(1400, 0);
    let mut bytes = vec![0x60, 0, 0, 0, 0x05, 0x78, 44, 64];
    bytes.extend([0xfd; 16]);
    bytes.extend([0xfc; 16]);
    bytes.extend(rest);
    let headers = Headers::parse(&bytes).unwrap();
    let mut out = [0; 1500];
    let len = build_too_big(&bytes, &headers, "fd42::1".parse().unwrap(), 1280, &mut out);
    assert_eq!(len, 1280);
    let quote = Quote::parse(&out[..len], &Headers::parse(&out[..len]).unwrap()).unwrap();
    assert_eq!((quote.ports(), quote.l4_offset), (Some((9, 10)), 96));
}

#[test]
fn quote_shorter_than_eight_bytes_or_of_the_other_family_is_refused() {
    let (original, _) = udp(false, 4);
    let wrap = |quoted: &[u8]| {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4([10; 4], [11; 4], 9).icmpv4_raw(3, 4, [0, 0, 5, 0]);
        builder.write(&mut bytes, quoted).unwrap();
        Quote::parse(&bytes, &Headers::parse(&bytes).unwrap())
    };
    assert!(wrap(&original[..28]).is_some());
    assert_eq!(wrap(&original[..27]), None);
    assert_eq!(wrap(&[]), None);
    assert_eq!(wrap(&udp(true, 20).0), None);
}

proptest! {
    #[test]
    fn answers_to_arbitrary_packets_are_valid_or_absent(
        mut bytes in proptest::collection::vec(any::<u8>(), 20..1400), v6: bool,
        next in prop::sample::select(vec![0u8, 1, 6, 17, 44, 58, 60, 99]), room in 0usize..1400,
    ) {
        if v6 && bytes.len() >= 40 {
            (bytes[0], bytes[6]) = (0x60, next);
            let len = bytes.len() as u16 - 40;
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
        } else {
            (bytes[0], bytes[9]) = (0x45, next);
            let len = bytes.len() as u16;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
        }
        if let Ok(headers) = Headers::parse(&bytes) {
            let mut out = vec![0; room];
            for error in ALL {
                let len = build_error(&bytes, &headers, router(&headers), error, &mut out);
                if len > 0 {
                    let answer = checked(&out[..len]);
                    prop_assert!(!error_allowed(&answer, error), "an error is never answered");
                }
            }
            let len = build_tcp_reset(&headers, &mut out);
            if len > 0 {
                prop_assert_eq!(build_tcp_reset(&checked(&out[..len]), &mut [0; 100]), 0);
            }
            let len = build_echo_reply(&bytes, &headers, &mut out);
            if len > 0 {
                checked(&out[..len]);
            }
            let _ = (Quote::parse(&bytes, &headers), reported_mtu(&bytes, &headers));
        }
    }
}

//! Bodies over inner packets.
//!
//! An input is one control byte and a packet. The control byte may ask for the length fields and checksums to be made
//! right first, so that mutation reaches the code behind those checks.

use std::net::IpAddr;

use overlay_wire::icmp::{self, IcmpError, Quote};
use overlay_wire::offload::coalesce::{Coalescer, Joining, Trust};
use overlay_wire::offload::{GsoKind, Segments, VnetHeader, complete_checksum};
use overlay_wire::packet::{Headers, Transport};
use overlay_wire::{Mtu, checksum as sums, ecn as congestion, fragment as fragments, mss as segment_size, ttl};

use super::Input;

/// Make the IP length field match the bytes.
const REPAIR_LENGTH: u8 = 1;
/// Make the checksums right.
const REPAIR_CHECKSUMS: u8 = 2;

/// The packet of an input, repaired as its control byte asks.
pub(crate) fn prepare(control: u8, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet[..packet.len().min(65_535)].to_vec();
    let len = packet.len();
    if control & REPAIR_LENGTH != 0 {
        match packet.first().map(|first| first >> 4) {
            Some(4) if len >= 20 => packet[2..4].copy_from_slice(&(len as u16).to_be_bytes()),
            Some(6) if len >= 40 => packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
            _ => {}
        }
    }
    if control & REPAIR_CHECKSUMS != 0
        && let Ok(headers) = Headers::parse(&packet)
    {
        sums::fill_transport(&mut packet, &headers);
        if headers.is_ipv4() {
            sums::fill_ipv4_header(&mut packet, headers.l4_offset.into());
        }
    }
    packet
}

/// Splits an input and parses its packet.
fn parsed(bytes: &[u8]) -> Option<(u8, Vec<u8>, Headers)> {
    let mut input = Input::new(bytes);
    let control = input.u8();
    let packet = prepare(control, input.rest());
    let headers = Headers::parse(&packet).ok()?;
    Some((control, packet, headers))
}

/// An address of the packet's own family for answers to come from.
fn router(headers: &Headers) -> IpAddr {
    if headers.is_ipv4() { IpAddr::from([10, 42, 0, 1]) } else { IpAddr::from([0xfd42, 0, 0, 0, 0, 0, 0, 1]) }
}

/// Parsing: lengths stay in bounds, accessors agree, the time to live is decremented consistently.
pub fn headers(bytes: &[u8]) {
    let Some((_, mut packet, mut headers)) = parsed(bytes) else { return };
    let total_len = usize::from(headers.total_len);
    assert!(total_len <= packet.len());
    assert!(usize::from(headers.l4_offset) <= total_len);
    assert_eq!(headers.payload_offset() + headers.payload_len(), total_len);
    assert_eq!(headers.src.is_ipv4(), headers.dst.is_ipv4());
    if headers.is_later_fragment() {
        assert_eq!(headers.transport, Transport::None);
    }
    if let Some(tcp) = headers.tcp() {
        assert!((20..=60).contains(&tcp.header_len));
    }
    // Truncation to the total length changes nothing; one byte less is refused.
    assert_eq!(Headers::parse(&packet[..total_len]), Ok(headers));
    assert!(Headers::parse(&packet[..total_len - 1]).is_err());
    let header_right = sums::verify_ipv4_header(&packet, &headers);
    let transport_right = sums::verify_transport(&packet, &headers);
    let alive = ttl::decrement(&mut packet, &mut headers);
    assert_eq!(Headers::parse(&packet), Ok(headers));
    if alive && header_right {
        assert!(sums::verify_ipv4_header(&packet, &headers));
    }
    assert_eq!(sums::verify_transport(&packet, &headers), transport_right);
}

/// Checksums: the fast sum is the slow sum, an incremental update is a full one, a filled checksum verifies.
pub fn checksum(bytes: &[u8]) {
    let mut slow = 0u32;
    for pair in bytes.chunks(2) {
        slow += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        slow = (slow & 0xffff) + (slow >> 16);
    }
    assert_eq!(u32::from(sums::sum(bytes)), slow);
    if let [a, b, c, d, rest @ ..] = bytes
        && slow != 0
    {
        let mut changed = vec![*c, *d, *c, *d];
        changed.extend(rest);
        let updated = sums::update_bytes(sums::checksum(bytes), &[*a, *b], &[*c, *d]);
        // Zero has two representations; they differ only for data that is all zero.
        assert_eq!(updated % 0xffff, sums::checksum(&changed) % 0xffff);
    }
    let Some((_, mut packet, headers)) = parsed(bytes) else { return };
    if sums::fill_transport(&mut packet, &headers) {
        assert!(sums::verify_transport(&packet, &headers));
    }
    if headers.is_ipv4() {
        sums::fill_ipv4_header(&mut packet, headers.l4_offset.into());
        assert!(sums::verify_ipv4_header(&packet, &headers));
    }
}

/// Answers: whatever is built parses, has right checksums, fits its limit, and is itself never answered by an error.
pub fn icmp(bytes: &[u8]) {
    let Some((control, packet, headers)) = parsed(bytes) else { return };
    let room = if control & 0x80 == 0 { 1500 } else { usize::from(control & 0x7f) };
    let mut out = vec![0; room];
    let errors = [
        IcmpError::TooBig { mtu: 1280 },
        IcmpError::NoRoute,
        IcmpError::HostUnreachable,
        IcmpError::PortUnreachable,
        IcmpError::AdminProhibited,
        IcmpError::TimeExceeded,
        IcmpError::ReassemblyTimeout,
    ];
    let source = router(&headers);
    for error in errors {
        let len = icmp::build_error(&packet, &headers, source, error, &mut out);
        if len > 0 {
            assert!(len <= if headers.is_ipv4() { icmp::MAX_IPV4_ERROR_LEN } else { icmp::MAX_IPV6_ERROR_LEN });
            let answer = valid(&out[..len]);
            assert_eq!((answer.src, answer.dst), (source, headers.src));
            assert_eq!(icmp::build_error(&out[..len], &answer, source, error, &mut [0; 1500]), 0);
            if let Some(quote) = Quote::parse(&out[..len], &answer) {
                assert_eq!((quote.src, quote.dst, quote.protocol), (headers.src, headers.dst, headers.protocol));
                if quote.ports().is_some() {
                    assert_eq!(quote.ports(), headers.ports());
                }
            }
        }
    }
    let len = icmp::build_tcp_reset(&headers, &mut out);
    if len > 0 {
        let answer = valid(&out[..len]);
        assert_eq!(icmp::build_tcp_reset(&answer, &mut [0; 100]), 0);
    }
    let len = icmp::build_echo_reply(&packet, &headers, &mut out);
    if len > 0 {
        let answer = valid(&out[..len]);
        assert_eq!(icmp::build_echo_reply(&out[..len], &answer, &mut [0; 1500]), 0);
    }
    if let Some(quote) = Quote::parse(&packet, &headers) {
        assert!(quote.offset < headers.total_len && quote.l4_offset <= headers.total_len);
    }
    let _ = icmp::reported_mtu(&packet, &headers);
}

fn valid(packet: &[u8]) -> Headers {
    let headers = Headers::parse(packet).expect("an answer parses");
    assert_eq!(usize::from(headers.total_len), packet.len());
    assert!(sums::verify_ipv4_header(packet, &headers));
    assert!(sums::verify_transport(packet, &headers));
    headers
}

/// MSS clamp: touches SYNs alone, keeps a right checksum right, and has nothing left to do a second time.
pub fn mss(bytes: &[u8]) {
    let Some((control, mut packet, headers)) = parsed(bytes) else { return };
    let before = packet.clone();
    let right = sums::verify_transport(&packet, &headers);
    let max = u16::from(control >> 2) * 32;
    let changed = segment_size::clamp(&mut packet, &headers, max);
    assert_eq!(changed, packet != before);
    assert!(!changed || headers.tcp().is_some_and(|tcp| tcp.flags.syn()));
    assert_eq!(sums::verify_transport(&packet, &headers), right);
    assert!(!segment_size::clamp(&mut packet, &headers, max));
    assert_eq!(Headers::parse(&packet).map(|after| after.transport), Ok(headers.transport));
}

/// ECN: only the two bits change, consistently, and a right header checksum stays right.
pub fn ecn(bytes: &[u8]) {
    let Some((control, mut packet, mut headers)) = parsed(bytes) else { return };
    let before = (packet.clone(), headers);
    let right = sums::verify_ipv4_header(&packet, &headers);
    match congestion::decapsulate_packet(control >> 2, &mut packet, &mut headers) {
        Err(_) => {
            assert_eq!((&packet, headers), (&before.0, before.1));
            assert_eq!((headers.ecn(), control >> 2 & 3), (congestion::NOT_ECT, congestion::CE));
        }
        Ok(()) => {
            assert_eq!(Headers::parse(&packet), Ok(headers));
            assert_eq!(headers, Headers { tos: headers.tos, ..before.1 });
            assert_eq!(headers.tos & !congestion::MASK, before.1.tos & !congestion::MASK);
            assert!(!right || sums::verify_ipv4_header(&packet, &headers));
        }
    }
}

/// Fragmentation: fragments parse, fit, and put together give the payload back.
pub fn fragment(bytes: &[u8]) {
    let Some((control, packet, headers)) = parsed(bytes) else { return };
    let mtu = Mtu::new(576 + u16::from(control >> 2) * 16).expect("at least 576");
    let mut buffer = vec![0; if control & 2 == 0 { 1600 } else { 600 }];
    let mut payload: Vec<u8> = Vec::new();
    let mut expected = headers.fragment.map_or(0, |fragment| fragment.offset_bytes);
    let result = fragments::split(&packet, &headers, mtu, &mut buffer, |fragment| {
        assert!(fragment.len() <= usize::from(mtu.get()));
        // A first fragment always holds 512 bytes, enough for any transport header that parsed before.
        let parsed = Headers::parse(fragment).expect("a fragment parses");
        assert_eq!(usize::from(parsed.total_len), fragment.len());
        assert_eq!(parsed.fragment.map_or(0, |fragment| fragment.offset_bytes), expected);
        let data = &fragment[usize::from(parsed.l4_offset)..];
        payload.extend(data);
        expected = expected.wrapping_add(data.len() as u16);
    });
    match result {
        Ok(_) => assert_eq!(payload, packet[usize::from(headers.l4_offset)..usize::from(headers.total_len)]),
        Err(_) => assert!(payload.is_empty()),
    }
}

/// Offloads: whatever a virtio-net header claims, segments fit and parse; coalescing keeps every byte it takes.
pub fn offload(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let control = input.u8();
    let vnet: [u8; VnetHeader::LEN] = input.array();
    let mut packet = prepare(control, input.rest());
    let Ok(vnet) = VnetHeader::parse(&vnet) else { return };
    assert_eq!(VnetHeader::parse(&vnet.emit()), Ok(vnet));
    let Ok(headers) = Headers::parse(&packet) else {
        let _ = complete_checksum(&mut packet, &vnet);
        return;
    };
    if vnet.gso == GsoKind::None {
        let _ = complete_checksum(&mut packet, &vnet);
        return;
    }
    let Ok(segments) = Segments::new(&packet, &headers, &vnet) else { return };
    let mut out = vec![0; segments.segment_len()];
    let mut arena: Vec<u8> = Vec::new();
    let mut coalescer = Coalescer::new();
    let mut payload_len = 0;
    for index in 0..segments.count().min(100) {
        let len = segments.emit(index, &mut out);
        let segment = Headers::parse(&out[..len]).expect("a segment parses");
        assert!(sums::verify_transport(&out[..len], &segment), "segment {index} has a wrong checksum");
        payload_len += segment.payload_len();
        let start = arena.len();
        arena.extend(&out[..len]);
        coalescer.push(&arena, start, &segment, 0, Joining::TcpAndUdp, Trust::Unverified);
    }
    let joined: usize = coalescer
        .entries()
        .iter()
        .map(|entry| {
            let first = Headers::parse(&arena[entry.first()]).expect("a first packet parses");
            first.payload_len() + entry.payloads().iter().map(|(_, len)| len).sum::<usize>()
        })
        .sum();
    assert_eq!(joined, payload_len);
}

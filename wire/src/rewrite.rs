//! Changing addresses and ports of a packet in place, with its checksums kept: never recomputed, so that a packet that was
//! damaged on its way stays recognisably so (RFC 1624 equation 3; for ICMP errors RFC 5508 section 4.2).

use std::net::{IpAddr, SocketAddr};

use crate::checksum::{self, read_word, write_word};
use crate::icmp::{Quote, QuotedTransport};
use crate::packet::{Headers, Transport, protocol};

/// What the transport checksum field of a packet holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sums {
    /// The finished checksum.
    Complete,
    /// The sum of the pseudo header, as in a packet whose checksum the device finishes.
    Pseudo,
}

/// The new ends of a packet; `None` leaves one as it is. Ports count for TCP and UDP only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ends {
    /// Source address and port.
    pub src: Option<SocketAddr>,
    /// Destination address and port.
    pub dst: Option<SocketAddr>,
}

impl Ends {
    /// Whether both are of the family of `like`.
    fn fit(&self, like: IpAddr) -> bool {
        self.src.iter().chain(&self.dst).all(|end| end.is_ipv4() == like.is_ipv4())
    }
}

/// Gives a packet other ends. `headers` must come from this packet, and describes it no longer afterwards. False, and
/// nothing changed, when the family differs.
///
/// Of a fragment only the first one holds ports and checksum; later ones get addresses alone.
pub fn ends(packet: &mut [u8], headers: &Headers, ends: &Ends, sums: Sums) -> bool {
    if !ends.fit(headers.src) || packet.len() < usize::from(headers.l4_offset) {
        return false;
    }
    let l4 = usize::from(headers.l4_offset);
    // Sums before and after of everything that changes under the transport checksum.
    let (mut old, mut new) = (0, 0);
    let places = if headers.is_ipv4() { [12, 16] } else { [8, 24] };
    for (end, at) in [ends.src, ends.dst].into_iter().zip(places) {
        if let Some(end) = end {
            let (before, after) = put_address(packet, at, end.ip());
            (old, new) = (checksum::add(old, before), checksum::add(new, after));
        }
    }
    if headers.is_ipv4() {
        update_word(packet, 10, old, new);
    }
    let field = match headers.transport {
        _ if headers.is_later_fragment() => return true,
        Transport::Tcp(_) => l4 + 16,
        Transport::Udp(_) => l4 + 6,
        // ICMP has no pseudo header over IPv4.
        Transport::Icmp(_) if headers.protocol == protocol::ICMPV6 => {
            update_word(packet, l4 + 2, old, new);
            return true;
        }
        _ => return true,
    };
    let (mut old_ports, mut new_ports) = (0, 0);
    for (end, at) in [ends.src, ends.dst].into_iter().zip([l4, l4 + 2]) {
        if let (Some(end), Some(before)) = (end, read_word(packet, at)) {
            write_word(packet, at, end.port());
            (old_ports, new_ports) = (checksum::add(old_ports, before), checksum::add(new_ports, end.port()));
        }
    }
    match sums {
        Sums::Pseudo => {
            if let Some(sum) = read_word(packet, field) {
                write_word(packet, field, checksum::add(checksum::add(sum, !old), new));
            }
        }
        Sums::Complete => {
            let is_udp = matches!(headers.transport, Transport::Udp(_));
            finish_transport(packet, field, is_udp, checksum::add(old, old_ports), checksum::add(new, new_ports));
        }
    }
    true
}

/// Gives the packet that an ICMP error quotes other ends; the error's own checksum is kept right. False, and nothing
/// changed, when the family differs.
pub fn quoted_ends(packet: &mut [u8], headers: &Headers, quote: &Quote, ends: &Ends) -> bool {
    if !ends.fit(quote.src) {
        return false;
    }
    let (start, l4) = (usize::from(quote.offset), usize::from(quote.l4_offset));
    let icmp_field = usize::from(headers.l4_offset) + 2;
    let end = packet.len().min(l4 + 18);
    let Some(quoted) = packet.get(start..end) else { return false };
    let before = checksum::sum(quoted);
    let (mut old, mut new) = (0, 0);
    let is_ipv4 = quote.src.is_ipv4();
    let places = if is_ipv4 { [12, 16] } else { [8, 24] };
    for (end, at) in [ends.src, ends.dst].into_iter().zip(places) {
        if let Some(end) = end {
            let (was, is) = put_address(packet, start + at, end.ip());
            (old, new) = (checksum::add(old, was), checksum::add(new, is));
        }
    }
    if is_ipv4 {
        update_word(packet, start + 10, old, new);
    }
    let field = match quote.transport {
        QuotedTransport::Tcp { .. } => Some((l4 + 16, false)),
        QuotedTransport::Udp { .. } => Some((l4 + 6, true)),
        _ => None,
    };
    if let Some((field, is_udp)) = field {
        for (end, at) in [ends.src, ends.dst].into_iter().zip([l4, l4 + 2]) {
            if let (Some(end), Some(was)) = (end, read_word(packet, at)) {
                write_word(packet, at, end.port());
                (old, new) = (checksum::add(old, was), checksum::add(new, end.port()));
            }
        }
        finish_transport(packet, field, is_udp, old, new);
    }
    let after = packet.get(start..end).map_or(before, checksum::sum);
    update_word(packet, icmp_field, before, after);
    true
}

/// Writes an address; the sums of what stood there and of what stands there now.
fn put_address(packet: &mut [u8], at: usize, address: IpAddr) -> (u16, u16) {
    let (bytes, len) = match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (bytes, 4)
        }
        IpAddr::V6(v6) => (v6.octets(), 16),
    };
    let Some(place) = packet.get_mut(at..at + len) else { return (0, 0) };
    let old = checksum::sum(place);
    place.copy_from_slice(&bytes[..len]);
    (old, checksum::sum(&bytes[..len]))
}

/// Updates a checksum field after covered words changed.
fn update_word(packet: &mut [u8], field: usize, old: u16, new: u16) {
    if let Some(before) = read_word(packet, field) {
        write_word(packet, field, checksum::update(before, old, new));
    }
}

/// Updates a finished transport checksum. In UDP zero means that there is none, and stays (RFC 768).
fn finish_transport(packet: &mut [u8], field: usize, is_udp: bool, old: u16, new: u16) {
    let Some(before) = read_word(packet, field) else { return };
    if is_udp && before == 0 {
        return;
    }
    let value = match checksum::update(before, old, new) {
        0 if is_udp => 0xffff,
        value => value,
    };
    write_word(packet, field, value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::icmp::{IcmpError, build_error};

    fn end(text: &str) -> SocketAddr {
        text.parse().expect("an address in a test")
    }

    fn datagram(src: SocketAddr, dst: SocketAddr, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend_from_slice(&src.port().to_be_bytes());
        l4.extend_from_slice(&dst.port().to_be_bytes());
        if kind == protocol::TCP {
            l4.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        } else {
            l4.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
            l4.extend_from_slice(&[0, 0]);
        }
        l4.extend_from_slice(payload);
        let mut bytes = match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut bytes = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, kind, 0, 0];
                bytes.extend_from_slice(&src.octets());
                bytes.extend_from_slice(&dst.octets());
                bytes[2..4].copy_from_slice(&(20 + l4.len() as u16).to_be_bytes());
                checksum::fill_ipv4_header(&mut bytes, 20);
                bytes
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut bytes = vec![0x60, 0, 0, 0, 0, 0, kind, 64];
                bytes.extend_from_slice(&src.octets());
                bytes.extend_from_slice(&dst.octets());
                bytes[4..6].copy_from_slice(&(l4.len() as u16).to_be_bytes());
                bytes
            }
            _ => panic!("one family in a packet"),
        };
        bytes.extend_from_slice(&l4);
        let headers = Headers::parse(&bytes).expect("a valid packet");
        checksum::fill_transport(&mut bytes, &headers);
        bytes
    }

    proptest! {
        #[test]
        fn rewritten_packets_equal_packets_made_so(
            v6 in any::<bool>(),
            kind in prop_oneof![Just(protocol::TCP), Just(protocol::UDP)],
            ports in any::<[u16; 4]>(),
            hosts in any::<[u8; 4]>(),
            payload in proptest::collection::vec(any::<u8>(), 0..40),
            which in 0..4u8,
        ) {
            let make = |host: u8, port| {
                let ip = if v6 { format!("fd42::{host:x}").parse().unwrap() } else { IpAddr::from([10, 42, 1, host]) };
                SocketAddr::new(ip, port)
            };
            let [src, dst, new_src, new_dst] = std::array::from_fn(|at| make(hosts[at], ports[at]));
            let change = Ends {
                src: (which & 1 != 0).then_some(new_src),
                dst: (which & 2 != 0).then_some(new_dst),
            };
            let mut packet = datagram(src, dst, kind, &payload);
            let headers = Headers::parse(&packet).unwrap();
            prop_assert!(ends(&mut packet, &headers, &change, Sums::Complete));
            let wanted = datagram(change.src.unwrap_or(src), change.dst.unwrap_or(dst), kind, &payload);
            // Zero and 0xffff are the same sum; only UDP tells them apart.
            let headers = Headers::parse(&packet).unwrap();
            prop_assert!(checksum::verify_transport(&packet, &headers));
            prop_assert!(checksum::verify_ipv4_header(&packet, &headers));
            let field = checksum::transport_field(&headers).unwrap();
            let without = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes[field..field + 2].fill(0);
                if !v6 { bytes[10..12].fill(0) }
                bytes
            };
            prop_assert_eq!(without(&packet), without(&wanted));
        }

        #[test]
        fn quotes_are_rewritten_and_the_error_stays_valid(v6 in any::<bool>(), udp in any::<bool>(), host in 1..250u8, port in any::<u16>()) {
            let (src, dst, to, router) = if v6 {
                (end("[fd42::5]:1000"), end("[fd42::7]:80"), format!("[fd42:9::{host:x}]:{port}"), "fd42::1")
            } else {
                (end("10.42.1.5:1000"), end("10.42.2.7:80"), format!("10.96.0.{host}:{port}"), "10.42.1.1")
            };
            let packet = datagram(src, dst, if udp { protocol::UDP } else { protocol::TCP }, &[7; 30]);
            let headers = Headers::parse(&packet).unwrap();
            let mut buffer = [0; 1500];
            let len = build_error(&packet, &headers, router.parse().unwrap(), IcmpError::HostUnreachable, &mut buffer);
            prop_assert!(len > 0);
            let error = &mut buffer[..len];
            let headers = Headers::parse(error).unwrap();
            let quote = Quote::parse(error, &headers).unwrap();
            let to = end(&to);
            let done = quoted_ends(error, &headers, &quote, &Ends { src: None, dst: Some(to) });
            prop_assert!(done);
            let headers = Headers::parse(error).unwrap();
            prop_assert!(checksum::verify_transport(error, &headers));
            let quote = Quote::parse(error, &headers).unwrap();
            prop_assert_eq!(quote.dst, to.ip());
            let wanted = match quote.transport {
                QuotedTransport::Tcp { src_port, dst_port, .. } | QuotedTransport::Udp { src_port, dst_port } => {
                    (src_port, dst_port)
                }
                _ => (0, 0),
            };
            prop_assert_eq!(wanted, (1000, to.port()));
        }

        #[test]
        fn nothing_panics_on_hostile_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
            let Ok(headers) = Headers::parse(&bytes) else { return Ok(()) };
            let to = if v6 { end("[fd42::1]:1") } else { end("10.0.0.1:1") };
            let change = Ends { src: Some(to), dst: Some(to) };
            let mut copy = bytes.clone();
            ends(&mut copy, &headers, &change, Sums::Complete);
            prop_assert_eq!(copy.len(), bytes.len());
            if let Some(quote) = Quote::parse(&bytes, &headers) {
                quoted_ends(&mut copy, &headers, &quote, &change);
            }
        }
    }

    #[test]
    fn pseudo_sums_follow_addresses_and_not_ports() {
        let (src, dst, to) = (end("10.42.1.5:1000"), end("10.96.0.1:80"), end("10.42.2.7:8080"));
        let mut packet = datagram(src, dst, protocol::TCP, &[1, 2, 3]);
        let headers = Headers::parse(&packet).unwrap();
        let length = headers.total_len - headers.l4_offset;
        let pseudo = |dst: SocketAddr| checksum::pseudo_header(src.ip(), dst.ip(), protocol::TCP, length);
        packet[36..38].copy_from_slice(&pseudo(dst).to_be_bytes());
        assert!(ends(&mut packet, &headers, &Ends { src: None, dst: Some(to) }, Sums::Pseudo));
        assert_eq!(packet[36..38], pseudo(to).to_be_bytes());
        assert_eq!(packet[22..24], to.port().to_be_bytes());
    }

    #[test]
    fn udp_without_a_checksum_keeps_none_and_another_family_changes_nothing() {
        let mut packet = datagram(end("10.42.1.5:1000"), end("10.96.0.1:53"), protocol::UDP, &[1]);
        packet[26..28].fill(0);
        let headers = Headers::parse(&packet).unwrap();
        let before = packet.clone();
        let other = Ends { src: None, dst: Some(end("[fd42::1]:53")) };
        assert!(!ends(&mut packet, &headers, &other, Sums::Complete));
        assert_eq!(packet, before);
        assert!(ends(&mut packet, &headers, &Ends { src: None, dst: Some(end("10.42.2.7:53")) }, Sums::Complete));
        assert_eq!(packet[26..28], [0, 0]);
    }
}

//! Bodies over what arrives from the underlay: GRE, IP in IP, and the shared UDP port.

use overlay_wire::envelope::Datagram;
use overlay_wire::gre::GreHeader;
use overlay_wire::ipip::{self, Outer};

use super::Input;

/// GRE: a parsed header emits and parses back; a header of any options round trips with any payload.
pub fn gre(bytes: &[u8]) {
    if let Ok((header, payload)) = GreHeader::parse(bytes) {
        let len = header.buffer_len();
        assert_eq!(len + payload.len(), bytes.len());
        let mut again = bytes.to_vec();
        assert_eq!(header.emit(&mut again), Some(len));
        assert_eq!(GreHeader::parse(&again), Ok((header, payload)));
        let _ = (header.check_payload(payload), header.check_key(Some(1)));
    }
    let mut input = Input::new(bytes);
    let control = input.u8();
    let number = u32::from_be_bytes(input.array());
    let header = GreHeader {
        protocol: input.u16(),
        key: (control & 1 != 0).then_some(number),
        sequence: (control & 2 != 0).then_some(!number),
        checksum: control & 4 != 0,
    };
    let mut packet = vec![0; header.buffer_len()];
    packet.extend(input.rest());
    let payload = packet[header.buffer_len()..].to_vec();
    header.emit(&mut packet).expect("the buffer holds the header");
    assert_eq!(GreHeader::parse(&packet), Ok((header, &payload[..])));
}

/// IP in IP: a parsed outer header emits and parses back with the same payload.
pub fn ipip(bytes: &[u8]) {
    for (outer, payload) in [Outer::parse_ipv4(bytes), Outer::parse_ipv6(bytes)].into_iter().flatten() {
        assert_eq!(usize::from(outer.payload_len), payload.len());
        if ipip::check_inner(outer.protocol, payload).is_ok() {
            assert_eq!(ipip::protocol_for(payload), Some(outer.protocol));
        }
        let mut packet = vec![0; outer.buffer_len()];
        packet.extend(payload);
        assert_eq!(outer.emit(&mut packet), Some(outer.buffer_len()));
        let again = if outer.dst.is_ipv4() { Outer::parse_ipv4(&packet) } else { Outer::parse_ipv6(&packet) };
        assert_eq!(again, Ok((outer, payload)));
    }
}

/// The shared UDP port: the first byte alone decides between WireGuard and the envelope.
pub fn envelope(bytes: &[u8]) {
    match Datagram::classify(bytes) {
        Ok(Datagram::Envelope) => assert!(!(1..=4).contains(&bytes[0])),
        Ok(_) => assert!((1..=4).contains(&bytes[0]) && bytes.len() >= 32),
        Err(_) => assert!(bytes.first().is_none_or(|first| (1..=4).contains(first))),
    }
}

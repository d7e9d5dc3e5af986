//! Packets made by hand.

use std::net::Ipv4Addr;

/// An IPv4 packet with a correct header checksum.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("the payload fits a packet").to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = !(((folded & 0xffff) + (folded >> 16)) as u16);
    packet[10..12].copy_from_slice(&folded.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A UDP datagram from port 40,000, without a checksum.
pub fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    udp_from(40_000, port, payload)
}

/// A UDP datagram without a checksum.
pub(crate) fn udp_from(source: u16, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("the payload fits a datagram");
    let mut datagram = Vec::new();
    for word in [source, port, length, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_sums_to_all_ones() {
        let packet = ipv4([192, 0, 2, 1].into(), [255, 255, 255, 255].into(), 17, &udp(7, &[9; 5]));
        let sum: u32 = packet[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(packet.len(), 33);
    }
}

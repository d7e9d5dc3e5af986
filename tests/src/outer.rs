//! Reading the outer header of captured frames.

use std::net::IpAddr;

/// What an inner ECN field becomes at decapsulation (RFC 6040, figure 4): rows by inner and columns by outer bits in
/// numeric order; nothing where the packet is dropped.
pub const ECN_COMBINED: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

/// The IP header of an Ethernet frame, and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer<'a> {
    /// Who sent it.
    pub source: IpAddr,
    /// To whom.
    pub target: IpAddr,
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Whether it may not be fragmented on the way; always so for IPv6.
    pub dont_fragment: bool,
    /// The protocol inside.
    pub protocol: u8,
    /// What the header carries, without the padding of short frames.
    pub payload: &'a [u8],
}

impl<'a> Outer<'a> {
    /// Reads a frame; nothing where it is no IP packet, is cut, or has IPv6 extension headers.
    pub fn parse(frame: &'a [u8]) -> Option<Outer<'a>> {
        let packet = frame.get(14..)?;
        let (ethertype, version) = (frame.get(12..14)?, packet.first()? >> 4);
        match (ethertype, version) {
            ([0x08, 0x00], 4) => {
                let header = packet.first_chunk::<20>()?;
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                Some(Outer {
                    source: <[u8; 4]>::try_from(&header[12..16]).ok()?.into(),
                    target: <[u8; 4]>::try_from(&header[16..20]).ok()?.into(),
                    tos: header[1],
                    ttl: header[8],
                    dont_fragment: header[6] & 0x40 != 0,
                    protocol: header[9],
                    payload: packet.get(4 * usize::from(header[0] & 15)..length)?,
                })
            }
            ([0x86, 0xdd], 6) => {
                let header = packet.first_chunk::<40>()?;
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                Some(Outer {
                    source: <[u8; 16]>::try_from(&header[8..24]).ok()?.into(),
                    target: <[u8; 16]>::try_from(&header[24..40]).ok()?.into(),
                    tos: header[0] << 4 | header[1] >> 4,
                    ttl: header[7],
                    dont_fragment: true,
                    protocol: header[6],
                    payload: packet.get(40..40 + length)?,
                })
            }
            _ => None,
        }
    }

    /// Source port, target port and content of a UDP datagram.
    pub fn udp(&self) -> Option<(u16, u16, &'a [u8])> {
        let header = self.payload.first_chunk::<8>().filter(|_| self.protocol == 17)?;
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some((port(0), port(2), &self.payload[8..]))
    }
}

/// Which message of WireGuard a datagram is: 1 initiation, 2 response, 3 cookie reply, 4 data.
pub fn wireguard_kind(datagram: &[u8]) -> Option<u8> {
    match datagram.first_chunk::<4>() {
        Some([kind @ 1..=4, 0, 0, 0]) => Some(*kind),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn fields_are_read_and_padding_is_left_out() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0xba, 0, 32, 0, 7, 0x40, 0, 63, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend([0xca, 0x6d, 0xca, 0x6c, 0, 12, 0, 0, 1, 0, 0, 0]);
        frame.extend([0; 14]);
        let outer = Outer::parse(&frame).unwrap();
        assert_eq!((outer.tos, outer.ttl, outer.dont_fragment, outer.protocol), (0xba, 63, true, 17));
        assert_eq!((outer.source.to_string(), outer.target.to_string()), ("192.0.2.1".into(), "192.0.2.2".into()));
        assert_eq!(outer.udp(), Some((51821, 51820, &[1u8, 0, 0, 0][..])));
        assert_eq!(wireguard_kind(outer.udp().unwrap().2), Some(1));
    }

    #[test]
    fn other_frames_and_cut_ones_are_nothing() {
        assert_eq!(Outer::parse(&[0; 60]), None);
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0x80, 0, 0, 0, 4, 59, 64]);
        frame.extend([1; 32]);
        assert_eq!(Outer::parse(&frame), None);
        frame.extend([9; 4]);
        let outer = Outer::parse(&frame).unwrap();
        assert_eq!((outer.tos, outer.ttl, outer.payload), (8, 64, &[9u8; 4][..]));
        assert_eq!(outer.udp(), None);
    }
}

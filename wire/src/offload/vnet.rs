//! The 10-byte virtio-net header in front of every packet of a TUN device opened with `IFF_VNET_HDR`.
//!
//! Fields are little endian (the device is set to that by `TUNSETVNETLE`). Source: virtio 1.2, section 5.1.6, and
//! `include/uapi/linux/virtio_net.h`.

use super::OffloadError;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Which segmentation a super-packet needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GsoKind {
    /// Not a super-packet.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either family (USO).
    Udp,
}

/// What the kernel says of a packet it hands over, or we of one we hand to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHeader {
    /// The field at `csum_start + csum_offset` holds the pseudo-header sum; the rest is still to be summed.
    pub needs_checksum: bool,
    /// The segmentation kind.
    pub gso: GsoKind,
    /// Bytes of all headers in front of the payload; a hint only.
    pub header_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where summing starts: the transport header.
    pub csum_start: u16,
    /// The checksum field, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes of the header.
    pub const LEN: usize = 10;

    /// Reads a header from the front of `bytes`.
    ///
    /// # Errors
    /// When cut or of an unknown segmentation kind.
    pub fn parse(bytes: &[u8]) -> Result<Self, OffloadError> {
        let Some(&[flags, kind, h0, h1, g0, g1, s0, s1, o0, o1]) = bytes.first_chunk::<{ Self::LEN }>() else {
            return Err(OffloadError::HeaderCut(bytes.len()));
        };
        let gso = match kind & !GSO_ECN {
            GSO_NONE => GsoKind::None,
            GSO_TCPV4 => GsoKind::TcpV4,
            GSO_TCPV6 => GsoKind::TcpV6,
            GSO_UDP_L4 => GsoKind::Udp,
            _ => return Err(OffloadError::UnknownKind(kind)),
        };
        Ok(Self {
            needs_checksum: flags & NEEDS_CSUM != 0,
            gso,
            header_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::LEN] {
        let kind = match self.gso {
            GsoKind::None => GSO_NONE,
            GsoKind::TcpV4 => GSO_TCPV4,
            GsoKind::TcpV6 => GSO_TCPV6,
            GsoKind::Udp => GSO_UDP_L4,
        };
        let [h0, h1] = self.header_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [if self.needs_checksum { NEEDS_CSUM } else { 0 }, kind, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cut_header_is_refused() {
        assert_eq!(VnetHeader::parse(&[0; 9]), Err(OffloadError::HeaderCut(9)));
    }

    #[test]
    fn fragmentation_offload_is_refused() {
        assert_eq!(VnetHeader::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), Err(OffloadError::UnknownKind(3)));
    }

    proptest! {
        #[test]
        fn emit_parses_back(csum in any::<bool>(), kind in 0u8..4, a in any::<[u16; 4]>()) {
            let gso = [GsoKind::None, GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp][kind as usize];
            let header = VnetHeader { needs_checksum: csum, gso, header_len: a[0], gso_size: a[1], csum_start: a[2],
                csum_offset: a[3] };
            prop_assert_eq!(VnetHeader::parse(&header.emit()), Ok(header));
        }
    }
}

//! Cutting a TCP or UDP super-packet into packets of one segment each, checksums filled in.

use super::{GsoKind, OffloadError, VnetHeader};
use crate::checksum;
use crate::packet::{Headers, TcpFlags, Transport};

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// A super-packet and the sums that every segment shares.
///
/// Sequence numbers, IPv4 identification, lengths, flags and checksums follow from the segment's place: FIN and PSH stand on the
/// last segment only, CWR on the first only (RFC 3168, section 6.1.2).
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    packet: &'a [u8],
    headers: Headers,
    header_len: usize,
    gso_size: usize,
    count: usize,
    ip_sum: u16,
    transport_sum: u16,
}

impl<'a> Segments<'a> {
    /// Prepares to cut `packet`, whose headers were parsed from it.
    ///
    /// # Errors
    /// When the segment size is zero, the kind does not fit the protocol, or lengths contradict each other.
    pub fn new(packet: &'a [u8], headers: &Headers, vnet: &VnetHeader) -> Result<Self, OffloadError> {
        if vnet.gso_size == 0 {
            return Err(OffloadError::ZeroSegment);
        }
        let fits = match (vnet.gso, headers.transport) {
            (GsoKind::TcpV4, Transport::Tcp(_)) => headers.is_ipv4(),
            (GsoKind::TcpV6, Transport::Tcp(_)) => !headers.is_ipv4(),
            (GsoKind::Udp, Transport::Udp(_)) => true,
            _ => false,
        };
        if !fits || headers.fragment.is_some() {
            return Err(OffloadError::WrongProtocol { protocol: headers.protocol });
        }
        let total = usize::from(headers.total_len);
        let Some(packet) = packet.get(..total) else {
            return Err(OffloadError::Length { stated: total, available: packet.len() });
        };
        let header_len = headers.payload_offset();
        let gso_size = usize::from(vnet.gso_size);
        let count = headers.payload_len().div_ceil(gso_size).max(1);
        let l4 = usize::from(headers.l4_offset);
        let ip_sum = if headers.is_ipv4() {
            // All but length (2..4), identification (4..6) and checksum (10..12).
            checksum::add(
                checksum::add(checksum::sum(&packet[..2]), checksum::sum(&packet[6..10])),
                checksum::sum(&packet[12..l4]),
            )
        } else {
            0
        };
        let transport = &packet[l4..header_len];
        let pseudo = checksum::pseudo_header(headers.src, headers.dst, headers.protocol, 0);
        let transport_sum = match headers.transport {
            // All but sequence (4..8), offset and flags (12..14) and checksum (16..18).
            Transport::Tcp(_) => [&transport[..4], &transport[8..12], &transport[14..16], &transport[18..]]
                .iter()
                .fold(pseudo, |sum, part| checksum::add(sum, checksum::sum(part))),
            // Ports only.
            _ => checksum::add(pseudo, checksum::sum(&transport[..4])),
        };
        Ok(Self { packet, headers: *headers, header_len, gso_size, count, ip_sum, transport_sum })
    }

    /// How many segments there are, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first byte, whose upper half is the IP version.
    #[must_use]
    pub fn first_byte(&self) -> u8 {
        if self.headers.is_ipv4() { 0x45 } else { 0x60 }
    }

    /// Bytes of the largest segment, headers included.
    #[must_use]
    pub fn segment_len(&self) -> usize {
        self.header_len + self.gso_size.min(self.headers.payload_len())
    }

    /// Writes segment `index` to the front of `out` and returns its length.
    ///
    /// # Panics
    /// When `index` is not below [`Self::count`] or `out` is shorter than [`Self::segment_len`].
    #[inline]
    pub fn emit(&self, index: usize, out: &mut [u8]) -> usize {
        assert!(index < self.count, "segment {index} of {}", self.count);
        let start = self.header_len + index * self.gso_size;
        let end = (start + self.gso_size).min(self.packet.len());
        let payload = &self.packet[start..end];
        let len = self.header_len + payload.len();
        let l4 = usize::from(self.headers.l4_offset);
        out[..self.header_len].copy_from_slice(&self.packet[..self.header_len]);
        out[self.header_len..len].copy_from_slice(payload);
        if self.headers.is_ipv4() {
            let id = u16::from_be_bytes([self.packet[4], self.packet[5]]).wrapping_add(index as u16);
            let sum = checksum::add(checksum::add(self.ip_sum, len as u16), id);
            out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            out[4..6].copy_from_slice(&id.to_be_bytes());
            out[10..12].copy_from_slice(&(!sum).to_be_bytes());
        } else {
            out[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        let transport_len = (len - l4) as u16;
        let sum = checksum::add(checksum::add(self.transport_sum, transport_len), checksum::sum(payload));
        match self.headers.transport {
            Transport::Tcp(tcp) => {
                let sequence = tcp.seq.wrapping_add((index * self.gso_size) as u32);
                let flags = self.flags(index, tcp.flags);
                let word = u16::from_be_bytes([self.packet[l4 + 12], flags]);
                let sum = [(sequence >> 16) as u16, sequence as u16, word].into_iter().fold(sum, checksum::add);
                out[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
                out[l4 + 13] = flags;
                out[l4 + 16..l4 + 18].copy_from_slice(&(!sum).to_be_bytes());
            }
            _ => {
                let sum = !checksum::add(sum, transport_len);
                out[l4 + 4..l4 + 6].copy_from_slice(&transport_len.to_be_bytes());
                // Zero would mean "no checksum" (RFC 768).
                let field = if sum == 0 { 0xffff } else { sum };
                out[l4 + 6..l4 + 8].copy_from_slice(&field.to_be_bytes());
            }
        }
        len
    }

    fn flags(&self, index: usize, flags: TcpFlags) -> u8 {
        let mut flags = flags.0;
        if index > 0 {
            flags &= !TCP_CWR;
        }
        if index + 1 < self.count {
            flags &= !(TCP_FIN | TCP_PSH);
        }
        flags
    }
}

/// Finishes the checksum of a packet that is not a super-packet and whose checksum field holds the pseudo-header sum.
///
/// # Errors
/// When the field lies outside the packet.
pub fn complete_checksum(packet: &mut [u8], vnet: &VnetHeader) -> Result<(), OffloadError> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if start > packet.len() || field + 2 > packet.len() {
        return Err(OffloadError::ChecksumRange {
            start: vnet.csum_start,
            offset: vnet.csum_offset,
            len: packet.len(),
        });
    }
    let sum = !checksum::sum(&packet[start..]);
    let value = if sum == 0 { 0xffff } else { sum };
    packet[field..field + 2].copy_from_slice(&value.to_be_bytes());
    Ok(())
}

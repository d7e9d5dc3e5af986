//! Splitting an IPv4 packet without DF into fragments that fit an MTU (RFC 791, section 3.2).

use crate::checksum;
use crate::encapsulation::Mtu;
use crate::packet::{Headers, IPV4_HEADER_LEN, Ipv4Options};

/// Longest IPv4 header, in bytes.
const MAX_HEADER_LEN: usize = 60;

/// Why a packet was not split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The packet is IPv6, or carries DF: its sender must be told instead.
    #[error("packet must not be fragmented")]
    Forbidden,
    /// The buffer holds less than one fragment.
    #[error("fragment needs {needed} bytes, the buffer has {available}")]
    Buffer {
        /// Bytes of the largest fragment.
        needed: usize,
        /// Bytes of the buffer.
        available: usize,
    },
}

/// Splits `packet` into fragments of at most `mtu` bytes; each is built in `buffer` and handed to `send` in order.
///
/// Returns how many were handed over. A packet that fits is handed over whole. A fragment is split further: its offset
/// and its more-fragments flag carry over. Later fragments keep only the options marked as copied. `headers` must come
/// from this packet, and the transport checksum must be complete: offloads end here.
///
/// # Errors
/// When the packet must not be fragmented or the buffer is shorter than the MTU needs; nothing was handed over then.
pub fn split(
    packet: &[u8],
    headers: &Headers,
    mtu: Mtu,
    buffer: &mut [u8],
    mut send: impl FnMut(&[u8]),
) -> Result<usize, SplitError> {
    let total_len = usize::from(headers.total_len);
    let header_len = usize::from(headers.l4_offset);
    let mtu = usize::from(mtu.get());
    let (Some(first_header), Some(payload)) = (packet.get(..header_len), packet.get(header_len..total_len)) else {
        return Err(SplitError::Forbidden);
    };
    if total_len <= mtu {
        send(&packet[..total_len]);
        return Ok(1);
    }
    if !headers.is_ipv4() || headers.dont_fragment || header_len > MAX_HEADER_LEN {
        return Err(SplitError::Forbidden);
    }
    let available = buffer.len();
    if available < mtu {
        return Err(SplitError::Buffer { needed: mtu, available });
    }
    let (later, later_len) = later_header(first_header);
    let start = headers.fragment.map_or(0, |fragment| usize::from(fragment.offset_bytes));
    let more_behind = headers.fragment.is_some_and(|fragment| fragment.more);
    let (mut at, mut count) = (0, 0);
    while at < payload.len() {
        let header = if at == 0 { first_header } else { &later[..later_len] };
        // The MTU is at least 576 and a header at most 60, so every fragment carries at least 512 bytes.
        let room = (mtu - header.len()) & !7;
        let len = room.min(payload.len() - at);
        let is_last = at + len == payload.len();
        let fragment = &mut buffer[..header.len() + len];
        fragment[..header.len()].copy_from_slice(header);
        fragment[header.len()..].copy_from_slice(&payload[at..at + len]);
        // Offsets stay below 65,536: parsing checked the end of the whole, and a length is at most the MTU.
        let place = ((start + at) / 8) as u16 | if is_last && !more_behind { 0 } else { 0x2000 };
        fragment[2..4].copy_from_slice(&((header.len() + len) as u16).to_be_bytes());
        fragment[6..8].copy_from_slice(&place.to_be_bytes());
        checksum::fill_ipv4_header(fragment, header.len());
        send(fragment);
        at += len;
        count += 1;
    }
    Ok(count)
}

/// The header of later fragments: the fixed part and the options whose copied flag is set, padded to whole words.
fn later_header(first: &[u8]) -> ([u8; MAX_HEADER_LEN], usize) {
    let mut header = [0; MAX_HEADER_LEN];
    header[..IPV4_HEADER_LEN].copy_from_slice(&first[..IPV4_HEADER_LEN]);
    let mut len = IPV4_HEADER_LEN;
    // Parsing checked the options; a header is at most 60 bytes.
    for option in Ipv4Options::new(first, first.len() as u8).flatten().filter(|option| option.kind & 0x80 != 0) {
        let (from, size) = (usize::from(option.offset), usize::from(option.len));
        header[len..len + size].copy_from_slice(&first[from..from + size]);
        len += size;
    }
    len = len.next_multiple_of(4);
    header[0] = 0x40 | (len / 4) as u8;
    (header, len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 UDP packet with these options, flags word and payload; header checksum filled.
    fn packet(options: &[u8], flags_word: u16, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + options.len();
        let mut bytes = vec![0x40 | (header_len / 4) as u8, 0xb9];
        bytes.extend(((header_len + payload.len()) as u16).to_be_bytes());
        bytes.extend([0xab, 0xcd]);
        bytes.extend(flags_word.to_be_bytes());
        bytes.extend([64, 99, 0, 0, 10, 42, 1, 2, 10, 42, 2, 3]);
        bytes.extend(options);
        bytes.extend(payload);
        checksum::fill_ipv4_header(&mut bytes, header_len);
        bytes
    }

    fn fragments(bytes: &[u8], mtu: u16) -> Result<Vec<Vec<u8>>, SplitError> {
        let mut out = Vec::new();
        let headers = Headers::parse(bytes).unwrap();
        let count = split(bytes, &headers, Mtu::new(mtu).unwrap(), &mut [0; 2000], |f| out.push(f.to_vec()))?;
        assert_eq!(count, out.len());
        Ok(out)
    }

    #[test]
    fn only_copied_options_reach_later_fragments() {
        // Record route (not copied), router alert (copied), padding.
        let options = [7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 1];
        let out = fragments(&packet(&options, 0, &[7; 1200]), 576).unwrap();
        assert_eq!(out[0][20..32], options);
        assert_eq!(out[1][0], 0x46);
        assert_eq!(out[1][20..24], [0x94, 4, 0, 0]);
    }

    #[test]
    fn packet_that_fits_is_handed_over_whole_without_padding() {
        let mut bytes = packet(&[], 0x4000, &[1; 40]);
        let whole = bytes.clone();
        bytes.extend([0; 8]);
        assert_eq!(fragments(&bytes, 576), Ok(vec![whole]));
    }

    #[test]
    fn dont_fragment_ipv6_and_short_buffers_are_refused() {
        assert_eq!(fragments(&packet(&[], 0x4000, &[1; 600]), 576), Err(SplitError::Forbidden));
        let mut bytes = vec![0x60, 0, 0, 0, 3, 0, 59, 64];
        bytes.resize(40 + 768, 0);
        assert_eq!(fragments(&bytes, 576), Err(SplitError::Forbidden));
        let bytes = packet(&[], 0, &[1; 600]);
        let headers = Headers::parse(&bytes).unwrap();
        let result = split(&bytes, &headers, Mtu::MIN, &mut [0; 575], |_| panic!("nothing is handed over"));
        assert_eq!(result, Err(SplitError::Buffer { needed: 576, available: 575 }));
    }

    proptest! {
        #[test]
        fn any_split_reassembles(
            payload in proptest::collection::vec(any::<u8>(), 1..4000), mtu in 576u16..1600, units in 0u16..100,
            more: bool, options in 0usize..=10,
        ) {
            let mut payload = payload;
            if more {
                payload.resize(payload.len().next_multiple_of(8), 0);
            }
            let options: Vec<u8> = [0x94, 4, 0, 0].into_iter().cycle().take(options * 4).collect();
            let bytes = packet(&options, units | if more { 0x2000 } else { 0 }, &payload);
            let out = fragments(&bytes, mtu).unwrap();
            let mut whole = vec![0; payload.len()];
            let mut expected = units * 8;
            for (at, fragment) in out.iter().enumerate() {
                let headers = Headers::parse(fragment).unwrap();
                prop_assert!(fragment.len() <= usize::from(mtu));
                prop_assert_eq!(usize::from(headers.total_len), fragment.len());
                prop_assert!(checksum::verify_ipv4_header(fragment, &headers));
                let place = headers.fragment.map_or(0, |f| f.offset_bytes);
                prop_assert_eq!(place, expected);
                prop_assert_eq!(headers.fragment.is_some_and(|f| f.more), more || at + 1 < out.len());
                prop_assert_eq!(headers.tos, 0xb9);
                let data = &fragment[usize::from(headers.l4_offset)..];
                let start = usize::from(place - units * 8);
                whole[start..start + data.len()].copy_from_slice(data);
                expected += data.len() as u16;
            }
            prop_assert_eq!(whole, payload);
        }
    }
}

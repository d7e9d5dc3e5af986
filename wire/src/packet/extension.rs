//! The IPv6 extension header chain (RFC 8200 section 4, RFC 7112, RFC 4302 for AH).
//!
//! The walk is bounded in headers and bytes, so that its cost does not depend on the sender. It ends at the upper
//! layer, at a fragment other than the first, or at a header that hides what follows (ESP).

use super::{Fragment, IPV6_HEADER_LEN, MAX_EXTENSION_BYTES, MAX_EXTENSION_HEADERS, ParseError, protocol};

/// What the chain in front of the upper layer holds.
pub(crate) struct Chain {
    pub(crate) protocol: u8,
    pub(crate) l4_offset: u16,
    pub(crate) fragment: Option<Fragment>,
    pub(crate) has_source_route: bool,
    pub(crate) has_options: bool,
}

impl Chain {
    /// Walks from the fixed header's next-header value.
    ///
    /// `total_len` is what the packet claims; `packet` may end before it only when it is a quote inside an error
    /// message.
    #[inline]
    pub(crate) fn walk(packet: &[u8], next_header: u8, total_len: u16) -> Result<Self, ParseError> {
        let mut chain = Self {
            protocol: next_header,
            l4_offset: IPV6_HEADER_LEN as u16,
            fragment: None,
            has_source_route: false,
            has_options: false,
        };
        if is_extension(next_header) {
            chain.walk_extensions(packet, total_len)?;
        }
        Ok(chain)
    }

    #[cold]
    fn walk_extensions(&mut self, packet: &[u8], total_len: u16) -> Result<(), ParseError> {
        let bytes = packet.get(..usize::from(total_len)).unwrap_or(packet);
        let mut headers = 0;
        while is_extension(self.protocol) {
            let (kind, offset) = (self.protocol, self.l4_offset);
            let malformed = ParseError::ExtensionHeader { kind, offset };
            let at = usize::from(offset);
            let Some(start) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) else {
                return Err(malformed);
            };
            headers += 1;
            let len = match kind {
                protocol::FRAGMENT => 8,
                protocol::AH => (usize::from(start[1]) + 2) * 4,
                _ => (usize::from(start[1]) + 1) * 8,
            };
            let end = at + len;
            if headers > MAX_EXTENSION_HEADERS || end - IPV6_HEADER_LEN > MAX_EXTENSION_BYTES {
                return Err(ParseError::ExtensionLimit);
            }
            // AH keeps the eight-byte alignment of IPv6 and has at least its fixed part (RFC 4302, section 2.2).
            if end > bytes.len() || (kind == protocol::AH && (len < 12 || len % 8 != 0)) {
                return Err(malformed);
            }
            match kind {
                protocol::HOP_BY_HOP if at != IPV6_HEADER_LEN => return Err(malformed),
                protocol::ROUTING => {
                    let (routing_type, segments_left) = (start[2], start[3]);
                    self.has_source_route |= routing_type == 0 || segments_left != 0;
                    self.has_options = true;
                }
                protocol::FRAGMENT => {
                    if self.fragment.is_some() {
                        return Err(malformed);
                    }
                    let word = u16::from_be_bytes([start[2], start[3]]);
                    let id = u32::from_be_bytes([start[4], start[5], start[6], start[7]]);
                    // `end` is at most 40 + 256.
                    let payload_len = total_len.saturating_sub(end as u16);
                    self.fragment = Some(Fragment::checked(id, word & 0xfff8, word & 1 != 0, payload_len)?);
                }
                _ => self.has_options = true,
            }
            self.protocol = start[0];
            // `end` is at most 40 + 256.
            self.l4_offset = end as u16;
            if self.fragment.is_some_and(|fragment| fragment.offset_bytes != 0) {
                break;
            }
        }
        Ok(())
    }
}

#[inline]
fn is_extension(kind: u8) -> bool {
    matches!(kind, protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::AH | protocol::DESTINATION)
}

//! Iteration over TCP options (RFC 9293 section 3.1, RFC 7323).

/// One TCP option; padding is skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpOption {
    /// Maximum segment size, and the offset of its two value bytes from the start of the TCP header.
    MaximumSegmentSize {
        /// The value.
        mss: u16,
        /// Offset of the value in the TCP header.
        offset: u8,
    },
    /// Window scale shift count, as written.
    WindowScale(u8),
    /// Selective acknowledgement permitted.
    SackPermitted,
    /// Any other option.
    Other {
        /// Its kind.
        kind: u8,
        /// Its length with kind and length bytes.
        len: u8,
    },
}

/// Iterates over the options of a TCP header; stops at the end of the list or the first malformed option.
#[derive(Clone, Debug)]
pub struct TcpOptions<'a> {
    header: &'a [u8],
    next: usize,
}

impl<'a> TcpOptions<'a> {
    /// Reads the options behind the fixed 20 bytes of `header`, a whole TCP header.
    #[must_use]
    pub fn new(header: &'a [u8]) -> Self {
        Self { header: header.get(..header.len().min(60)).unwrap_or_default(), next: 20 }
    }
}

impl Iterator for TcpOptions<'_> {
    type Item = TcpOption;

    fn next(&mut self) -> Option<TcpOption> {
        loop {
            let at = self.next;
            match *self.header.get(at)? {
                0 => {
                    self.next = self.header.len();
                    return None;
                }
                1 => self.next += 1,
                kind => {
                    let len = *self.header.get(at + 1)?;
                    let Some(option) = self.header.get(at..at + usize::from(len)).filter(|_| len >= 2) else {
                        self.next = self.header.len();
                        return None;
                    };
                    self.next += usize::from(len);
                    return Some(match (kind, option) {
                        // A TCP header has at most 60 bytes, so the offset fits.
                        (2, &[_, 4, high, low]) => TcpOption::MaximumSegmentSize {
                            mss: u16::from_be_bytes([high, low]),
                            offset: (at + 2) as u8,
                        },
                        (3, &[_, 3, shift]) => TcpOption::WindowScale(shift),
                        (4, &[_, 2]) => TcpOption::SackPermitted,
                        _ => TcpOption::Other { kind, len },
                    });
                }
            }
        }
    }
}

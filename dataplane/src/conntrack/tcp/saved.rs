//! A connection's state as bytes, and what is left of it after a restart.

use super::{Side, TcpState, TcpTrack};

/// Bytes of one connection: two sides, the state, the marks.
pub(crate) const TCP_BYTES: usize = 2 * SIDE_BYTES + 2;
const SIDE_BYTES: usize = 26;

const LIBERAL: u8 = 1;
const SIMULTANEOUS: u8 = 2;
const UNCERTAIN: u8 = 4;

impl TcpState {
    const ALL: [Self; 7] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Closed,
    ];

    fn code(self) -> u8 {
        match self {
            Self::SynSent => 0,
            Self::SynReceived => 1,
            Self::Established => 2,
            Self::FinWait => 3,
            Self::LastAck => 4,
            Self::TimeWait => 5,
            Self::Closed => 6,
        }
    }
}

impl Side {
    fn emit(&self, out: &mut Vec<u8>) {
        for word in [self.start, self.end, self.max_end, self.max_window, self.max_ack, self.fin_end] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&[self.scale, self.marks]);
    }

    fn parse(bytes: &[u8; SIDE_BYTES]) -> Option<Self> {
        let word = |at: usize| bytes[at * 4..].first_chunk().map(|word| u32::from_be_bytes(*word));
        let (scale, marks) = (bytes[24], bytes[25]);
        // RFC 7323, section 2.3: a larger shift is read as 14, so none is ever kept.
        let known = Self::OFFERED_SCALE | Self::ACKED | Self::FIN | Self::FIN_ACKED;
        (scale <= 14 && marks & !known == 0).then_some(Self {
            start: word(0)?,
            end: word(1)?,
            max_end: word(2)?,
            max_window: word(3)?,
            max_ack: word(4)?,
            fin_end: word(5)?,
            scale,
            marks,
        })
    }
}

impl TcpTrack {
    /// Writes exactly [`TCP_BYTES`].
    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        self.sides[0].emit(out);
        self.sides[1].emit(out);
        let mark = |set: bool, mark| if set { mark } else { 0 };
        let marks =
            mark(self.liberal, LIBERAL) | mark(self.simultaneous, SIMULTANEOUS) | mark(self.uncertain, UNCERTAIN);
        out.extend_from_slice(&[self.state.code(), marks]);
    }

    /// Reads what [`Self::emit`] wrote.
    pub(crate) fn parse(bytes: &[u8; TCP_BYTES]) -> Option<Self> {
        let (original, rest) = bytes.split_first_chunk()?;
        let (reply, rest) = rest.split_first_chunk()?;
        let [state, marks] = *rest.first_chunk()?;
        (marks & !(LIBERAL | SIMULTANEOUS | UNCERTAIN) == 0).then_some(Self {
            sides: [Side::parse(original)?, Side::parse(reply)?],
            state: *TcpState::ALL.get(usize::from(state))?,
            liberal: marks & LIBERAL != 0,
            simultaneous: marks & SIMULTANEOUS != 0,
            uncertain: marks & UNCERTAIN != 0,
        })
    }

    /// Packets may have passed since this was saved: the windows have moved on, so it is judged liberally from now on.
    pub(crate) fn forget_windows(&mut self) {
        self.liberal = true;
        for side in &mut self.sides {
            // The last acknowledgement would refuse genuine resets once the stream is far enough ahead.
            side.marks &= !Side::ACKED;
        }
    }

    /// An open connection may be over without our having seen its end: until one of its segments comes, a SYN opens a new one.
    pub(crate) fn set_uncertain(&mut self) {
        self.uncertain = true;
    }
}

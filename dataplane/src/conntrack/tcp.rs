//! TCP state and window tracking of one flow, seen from the middle.
//!
//! The window rules are those of G. van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2001): with what each
//! side has sent, acknowledged and offered, four bounds hold for every genuine segment. Resets follow RFC 5961: one
//! inside the window passes, but only the exact sequence number ends the flow here. A super-packet is one segment with
//! the payload of all.

mod saved;

use overlay_wire::packet::{Tcp, TcpFlags};

use crate::reason::DropReason;
pub(crate) use saved::TCP_BYTES;

/// Slack for acknowledgements that arrive late, in bytes: a window without scaling (van Rooij, section 4.4).
const MIN_ACK_WINDOW: u32 = 66_000;

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Original,
    Reply,
}

impl Direction {
    #[inline]
    pub(crate) fn opposite(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// The state of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TcpState {
    SynSent,
    SynReceived,
    Established,
    /// One side has sent FIN.
    FinWait,
    /// Both sides have sent FIN.
    LastAck,
    /// Both FINs are acknowledged.
    TimeWait,
    /// Reset.
    Closed,
}

/// What one side has sent and may send. All comparisons are modulo 2^32.
#[derive(Clone, Copy, Default, Debug)]
struct Side {
    /// Initial sequence number of the last SYN.
    start: u32,
    /// Highest sequence number sent, plus one.
    end: u32,
    /// Highest sequence number the other side's window allows, plus one.
    max_end: u32,
    /// Largest window offered, scaled; 0 until the side is heard.
    max_window: u32,
    /// Highest acknowledgement sent.
    max_ack: u32,
    /// Sequence number behind the FIN.
    fin_end: u32,
    scale: u8,
    marks: u8,
}

impl Side {
    const OFFERED_SCALE: u8 = 1;
    const ACKED: u8 = 2;
    const FIN: u8 = 4;
    const FIN_ACKED: u8 = 8;

    #[inline]
    fn has(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    fn open(tcp: &Tcp, end: u32) -> Self {
        let marks = if tcp.window_scale.is_some() { Self::OFFERED_SCALE } else { 0 };
        Self {
            start: tcp.seq,
            end,
            max_end: end,
            max_window: u32::from(tcp.window).max(1),
            scale: tcp.window_scale.unwrap_or(0),
            marks,
            ..Self::default()
        }
    }
}

/// Both sides of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpTrack {
    sides: [Side; 2],
    pub(crate) state: TcpState,
    /// Windows are not known well enough to judge by: picked up in mid-stream, or fragmented.
    liberal: bool,
    /// Both sides sent SYN.
    simultaneous: bool,
    /// Restored from a file, and no segment has come since that shows it alive.
    uncertain: bool,
}

/// What a segment means for its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TcpVerdict {
    /// It belongs to the flow, which lives on.
    Pass,
    /// It passes without touching the flow's state or timeout.
    PassUntouched,
    /// It opens a new connection with the same tuple; the old flow is over.
    Reopen,
    /// It does not belong.
    Drop(DropReason),
}

/// `a` comes before `b`.
#[inline]
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[inline]
fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// Flag combinations that real stacks send, without PSH, ECE and CWR.
#[inline]
pub(crate) fn flags_are_valid(flags: TcpFlags) -> bool {
    const SYN: u8 = TcpFlags::SYN;
    const ACK: u8 = TcpFlags::ACK;
    const RST: u8 = TcpFlags::RST;
    const FIN: u8 = TcpFlags::FIN;
    const URG: u8 = TcpFlags::URG;
    let core = flags.0 & !(TcpFlags::PSH | TcpFlags::ECE | TcpFlags::CWR);
    core == ACK
        || core == ACK | FIN
        || core == SYN
        || core == SYN | ACK
        || core == RST
        || core == RST | ACK
        || core == ACK | URG
        || core == ACK | FIN | URG
        || core == SYN | URG
}

/// Sequence number behind a segment.
#[inline]
fn segment_end(tcp: &Tcp, payload_len: u32) -> u32 {
    tcp.seq.wrapping_add(payload_len).wrapping_add(u32::from(tcp.flags.syn())).wrapping_add(u32::from(tcp.flags.fin()))
}

impl TcpTrack {
    /// A connection opened by a SYN.
    pub(crate) fn open(tcp: &Tcp, payload_len: u32) -> Self {
        let side = Side::open(tcp, segment_end(tcp, payload_len));
        Self {
            sides: [side, Side::default()],
            state: TcpState::SynSent,
            liberal: false,
            simultaneous: false,
            uncertain: false,
        }
    }

    /// A connection found in mid-stream; its windows stay unknown, so it is judged liberally.
    pub(crate) fn pick_up(tcp: &Tcp, payload_len: u32, direction: Direction) -> Self {
        let mut track = Self {
            sides: [Side::default(); 2],
            state: TcpState::Established,
            liberal: true,
            simultaneous: false,
            uncertain: false,
        };
        track.update(tcp, payload_len, direction);
        track
    }

    /// Gives up judging by windows, because a segment's length is not known.
    pub(crate) fn set_liberal(&mut self) {
        self.liberal = true;
    }

    /// Judges a segment whose flags are valid and, if it belongs, updates the state.
    pub(crate) fn segment(&mut self, tcp: &Tcp, payload_len: u32, direction: Direction) -> TcpVerdict {
        let flags = tcp.flags;
        if flags.rst() {
            return self.reset(tcp, direction);
        }
        if flags.syn() {
            return if flags.ack() {
                self.syn_ack(tcp, payload_len, direction)
            } else {
                self.syn(tcp, payload_len, direction)
            };
        }
        if self.state == TcpState::SynSent {
            return match direction {
                Direction::Original => TcpVerdict::Drop(DropReason::TcpState),
                // A listener with an old half-open connection answers SYN with a bare ACK; the opener then resets it
                // (RFC 9293, section 3.5.1).
                Direction::Reply => TcpVerdict::PassUntouched,
            };
        }
        if !self.liberal && self.sides[direction as usize].max_window == 0 {
            // The side never answered the SYN, and the connection was reset.
            return TcpVerdict::Drop(DropReason::TcpState);
        }
        if !self.in_window(tcp, payload_len, direction) {
            return TcpVerdict::Drop(DropReason::TcpWindow);
        }
        self.uncertain = false;
        self.update(tcp, payload_len, direction);
        self.advance(tcp, payload_len, direction);
        TcpVerdict::Pass
    }

    fn syn(&mut self, tcp: &Tcp, payload_len: u32, direction: Direction) -> TcpVerdict {
        if self.uncertain && matches!(self.state, TcpState::Established | TcpState::FinWait) {
            return TcpVerdict::Reopen;
        }
        let end = segment_end(tcp, payload_len);
        match (self.state, direction) {
            (TcpState::TimeWait | TcpState::Closed | TcpState::LastAck, _) => TcpVerdict::Reopen,
            (TcpState::SynSent, Direction::Original) => {
                *self = Self::open(tcp, payload_len);
                TcpVerdict::Pass
            }
            (TcpState::SynSent, Direction::Reply) => {
                self.sides[1] = Side::open(tcp, end);
                self.settle_scales();
                self.state = TcpState::SynReceived;
                self.simultaneous = true;
                TcpVerdict::Pass
            }
            (TcpState::SynReceived, _) if self.sides[direction as usize].start == tcp.seq => TcpVerdict::Pass,
            (TcpState::SynReceived, Direction::Original) => {
                *self = Self::open(tcp, payload_len);
                TcpVerdict::Pass
            }
            // The other end answers with a challenge ACK (RFC 5961, section 4); nothing changes until then.
            (TcpState::Established | TcpState::FinWait, Direction::Original) => TcpVerdict::PassUntouched,
            (TcpState::SynReceived | TcpState::Established | TcpState::FinWait, Direction::Reply) => {
                TcpVerdict::Drop(DropReason::TcpState)
            }
        }
    }

    fn syn_ack(&mut self, tcp: &Tcp, payload_len: u32, direction: Direction) -> TcpVerdict {
        let known = self.sides[direction as usize];
        match (self.state, direction) {
            (TcpState::SynSent, Direction::Reply) => {
                let opener = &self.sides[0];
                if !after(tcp.ack, opener.start) || after(tcp.ack, opener.end) {
                    return TcpVerdict::Drop(DropReason::TcpWindow);
                }
                self.sides[1] = Side::open(tcp, segment_end(tcp, payload_len));
                self.settle_scales();
                self.update(tcp, payload_len, direction);
                self.state = TcpState::SynReceived;
                TcpVerdict::Pass
            }
            // Sent again because the last ACK was lost, or the answer to a simultaneous SYN.
            (TcpState::SynReceived | TcpState::Established | TcpState::FinWait, _)
                if known.max_window != 0
                    && known.start == tcp.seq
                    && (direction == Direction::Reply || self.simultaneous) =>
            {
                if !self.in_window(tcp, payload_len, direction) {
                    return TcpVerdict::Drop(DropReason::TcpWindow);
                }
                self.update(tcp, payload_len, direction);
                TcpVerdict::Pass
            }
            _ => TcpVerdict::Drop(DropReason::TcpState),
        }
    }

    /// Window scaling counts only when both sides offered it (RFC 7323, section 2.2).
    fn settle_scales(&mut self) {
        if !self.sides.iter().all(|side| side.has(Side::OFFERED_SCALE)) {
            for side in &mut self.sides {
                side.scale = 0;
            }
        }
    }

    fn reset(&mut self, tcp: &Tcp, direction: Direction) -> TcpVerdict {
        let sender = self.sides[direction as usize];
        let receiver = self.sides[direction.opposite() as usize];
        if self.state == TcpState::SynSent {
            // RFC 9293, section 3.10.7.3: an answer must acknowledge the SYN. The opener may always give up.
            let answers = tcp.flags.ack() && after(tcp.ack, receiver.start) && !after(tcp.ack, receiver.end);
            if direction == Direction::Reply && !answers {
                return TcpVerdict::Drop(DropReason::TcpReset);
            }
            self.state = TcpState::Closed;
            return TcpVerdict::Pass;
        }
        let acked = receiver.has(Side::ACKED);
        if (acked && before(tcp.seq, receiver.max_ack)) || !self.in_window(tcp, 0, direction) {
            return TcpVerdict::Drop(DropReason::TcpReset);
        }
        let exact = !acked || tcp.seq == receiver.max_ack || tcp.seq == sender.end;
        if exact || self.state != TcpState::Established {
            self.state = TcpState::Closed;
            return TcpVerdict::Pass;
        }
        // The receiver asks back with a challenge ACK; the flow stays until it hears the exact number.
        TcpVerdict::PassUntouched
    }

    /// The four bounds of a genuine segment.
    #[inline]
    fn in_window(&self, tcp: &Tcp, payload_len: u32, direction: Direction) -> bool {
        let sender = &self.sides[direction as usize];
        let receiver = &self.sides[direction.opposite() as usize];
        if self.liberal || sender.max_window == 0 {
            return true;
        }
        let end = segment_end(tcp, payload_len);
        let ack = acknowledged(tcp, receiver);
        let ack_window = sender.max_window.max(MIN_ACK_WINDOW);
        before(tcp.seq, sender.max_end.wrapping_add(1))
            && after(end, sender.end.wrapping_sub(receiver.max_window).wrapping_sub(1))
            && before(ack, receiver.end.wrapping_add(1))
            && after(ack, receiver.end.wrapping_sub(ack_window).wrapping_sub(1))
    }

    /// Takes in what a genuine segment tells of both sides.
    #[inline]
    fn update(&mut self, tcp: &Tcp, payload_len: u32, direction: Direction) {
        let end = segment_end(tcp, payload_len);
        let (originals, replies) = self.sides.split_at_mut(1);
        let (sender, receiver) = match direction {
            Direction::Original => (&mut originals[0], &mut replies[0]),
            Direction::Reply => (&mut replies[0], &mut originals[0]),
        };
        let window = if tcp.flags.syn() { u32::from(tcp.window) } else { u32::from(tcp.window) << sender.scale };
        if sender.max_window == 0 {
            // First word of this side in mid-stream.
            sender.end = end;
            sender.max_window = window.max(1);
            sender.max_end = end.wrapping_add(sender.max_window);
            if receiver.max_window == 0 && tcp.flags.ack() {
                receiver.end = tcp.ack;
                receiver.max_end = tcp.ack;
            }
        }
        let ack = acknowledged(tcp, receiver);
        sender.max_window = sender.max_window.max(window);
        if after(end, sender.end) {
            sender.end = end;
        }
        if tcp.flags.ack() && (!sender.has(Side::ACKED) || after(tcp.ack, sender.max_ack)) {
            sender.max_ack = tcp.ack;
            sender.marks |= Side::ACKED;
        }
        if receiver.max_window != 0 && after(end, sender.max_end) {
            receiver.max_window = receiver.max_window.saturating_add(end.wrapping_sub(sender.max_end)).min(1 << 30);
        }
        let allowed = ack.wrapping_add(window.max(1));
        if after(allowed, receiver.max_end) {
            receiver.max_end = allowed;
        }
    }

    /// Moves the state by a segment inside the window.
    #[inline]
    fn advance(&mut self, tcp: &Tcp, payload_len: u32, direction: Direction) {
        let (own, other) = (direction as usize, direction.opposite() as usize);
        if self.state == TcpState::SynReceived && (direction == Direction::Original || self.simultaneous) {
            self.state = TcpState::Established;
        }
        if tcp.flags.fin() {
            self.sides[own].marks |= Side::FIN;
            self.sides[own].fin_end = segment_end(tcp, payload_len);
        }
        if !self.sides[own].has(Side::FIN) && !self.sides[other].has(Side::FIN) {
            return;
        }
        let other_side = &mut self.sides[other];
        if other_side.has(Side::FIN) && tcp.flags.ack() && !before(tcp.ack, other_side.fin_end) {
            other_side.marks |= Side::FIN_ACKED;
        }
        if matches!(self.state, TcpState::TimeWait | TcpState::Closed) {
            return;
        }
        let all = |mark| self.sides.iter().all(|side| side.has(mark));
        self.state = if all(Side::FIN) && all(Side::FIN_ACKED) {
            TcpState::TimeWait
        } else if all(Side::FIN) {
            TcpState::LastAck
        } else {
            TcpState::FinWait
        };
    }

    /// Whether an ICMP error that quotes a segment of this direction quotes one that can be under way.
    pub(crate) fn quotes(&self, seq: u32, direction: Direction) -> bool {
        let sender = &self.sides[direction as usize];
        let receiver = &self.sides[direction.opposite() as usize];
        if self.liberal || sender.max_window == 0 {
            return true;
        }
        let window = receiver.max_window.max(MIN_ACK_WINDOW);
        !after(seq, sender.end) && after(seq, sender.end.wrapping_sub(window).wrapping_sub(1))
    }
}

/// The acknowledgement a segment makes; one without ACK repeats the last.
#[inline]
fn acknowledged(tcp: &Tcp, receiver: &Side) -> u32 {
    // Some stacks send RST with ACK set and nothing acknowledged.
    if !tcp.flags.ack() || (tcp.flags.rst() && tcp.ack == 0) { receiver.end } else { tcp.ack }
}

#[cfg(test)]
mod tests;

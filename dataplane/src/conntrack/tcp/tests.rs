//! The tracker against a second one written from the rules in absolute numbers, and against honest endpoints behind a
//! bad network.

use overlay_wire::packet::{Tcp, TcpFlags};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::*;

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;
const RST: u8 = TcpFlags::RST;

/// A segment in absolute numbers: 0 is the sender's (or receiver's) initial sequence number.
#[derive(Clone, Copy, Debug)]
struct Absolute {
    dir: usize,
    flags: u8,
    seq: i64,
    ack: i64,
    len: i64,
    window: u16,
    scale: Option<u8>,
}

impl Absolute {
    fn end(&self) -> i64 {
        self.seq + self.len + i64::from(self.flags & SYN != 0) + i64::from(self.flags & FIN != 0)
    }

    fn on_the_wire(&self, bases: [u32; 2]) -> Tcp {
        Tcp {
            src_port: 1,
            dst_port: 2,
            seq: bases[self.dir].wrapping_add(self.seq as u32),
            ack: if self.flags & ACK == 0 { 0 } else { bases[1 - self.dir].wrapping_add(self.ack as u32) },
            flags: TcpFlags(self.flags),
            window: self.window,
            header_len: 20,
            window_scale: self.scale.filter(|_| self.flags & SYN != 0),
        }
    }
}

#[derive(Clone, Copy, Default, Debug)]
struct End {
    heard: bool,
    isn: i64,
    sent: i64,
    limit: i64,
    window: i64,
    shift: u8,
    offered: bool,
    acked: Option<i64>,
    fin: Option<i64>,
    fin_acked: bool,
}

/// The rules, word by word, without wrapping arithmetic.
struct Reference {
    ends: [End; 2],
    state: TcpState,
    both_syn: bool,
}

impl Reference {
    fn open(s: &Absolute) -> Self {
        let mut ends = [End::default(); 2];
        ends[0] = Self::first(s);
        Self { ends, state: TcpState::SynSent, both_syn: false }
    }

    fn first(s: &Absolute) -> End {
        End {
            heard: true,
            isn: s.seq,
            sent: s.end(),
            limit: s.end(),
            window: i64::from(s.window).max(1),
            shift: s.scale.unwrap_or(0),
            offered: s.scale.is_some(),
            ..End::default()
        }
    }

    fn judge(&mut self, s: &Absolute) -> TcpVerdict {
        let (me, you) = (self.ends[s.dir], self.ends[1 - s.dir]);
        let has = |flag| s.flags & flag != 0;
        let from_opener = s.dir == 0;
        if has(RST) {
            if self.state == TcpState::SynSent {
                if !from_opener && (!has(ACK) || s.ack <= you.isn || s.ack > you.sent) {
                    return TcpVerdict::Drop(DropReason::TcpReset);
                }
                self.state = TcpState::Closed;
                return TcpVerdict::Pass;
            }
            let too_old = you.acked.is_some_and(|acked| s.seq < acked);
            if too_old || !self.fits(s, 0) {
                return TcpVerdict::Drop(DropReason::TcpReset);
            }
            let exact = you.acked.is_none_or(|acked| s.seq == acked) || s.seq == me.sent;
            if self.state == TcpState::Established && !exact {
                return TcpVerdict::PassUntouched;
            }
            self.state = TcpState::Closed;
            return TcpVerdict::Pass;
        }
        if has(SYN) && !has(ACK) {
            return match self.state {
                TcpState::TimeWait | TcpState::Closed | TcpState::LastAck => TcpVerdict::Reopen,
                TcpState::SynSent if from_opener => {
                    *self = Self::open(s);
                    TcpVerdict::Pass
                }
                TcpState::SynSent => {
                    self.ends[1] = Self::first(s);
                    self.agree_on_scale();
                    self.state = TcpState::SynReceived;
                    self.both_syn = true;
                    TcpVerdict::Pass
                }
                TcpState::SynReceived if s.seq == me.isn => TcpVerdict::Pass,
                TcpState::SynReceived if from_opener => {
                    *self = Self::open(s);
                    TcpVerdict::Pass
                }
                _ if from_opener => TcpVerdict::PassUntouched,
                _ => TcpVerdict::Drop(DropReason::TcpState),
            };
        }
        if has(SYN) {
            if self.state == TcpState::SynSent && !from_opener {
                if s.ack <= you.isn || s.ack > you.sent {
                    return TcpVerdict::Drop(DropReason::TcpWindow);
                }
                self.ends[1] = Self::first(s);
                self.agree_on_scale();
                self.learn(s);
                self.state = TcpState::SynReceived;
                return TcpVerdict::Pass;
            }
            let open = matches!(self.state, TcpState::SynReceived | TcpState::Established | TcpState::FinWait);
            if open && me.heard && me.isn == s.seq && (!from_opener || self.both_syn) {
                if !self.fits(s, s.len) {
                    return TcpVerdict::Drop(DropReason::TcpWindow);
                }
                self.learn(s);
                return TcpVerdict::Pass;
            }
            return TcpVerdict::Drop(DropReason::TcpState);
        }
        if self.state == TcpState::SynSent {
            return if from_opener { TcpVerdict::Drop(DropReason::TcpState) } else { TcpVerdict::PassUntouched };
        }
        if !me.heard {
            return TcpVerdict::Drop(DropReason::TcpState);
        }
        if !self.fits(s, s.len) {
            return TcpVerdict::Drop(DropReason::TcpWindow);
        }
        self.learn(s);
        if self.state == TcpState::SynReceived && (from_opener || self.both_syn) {
            self.state = TcpState::Established;
        }
        if has(FIN) {
            self.ends[s.dir].fin = Some(s.end());
        }
        if self.ends[1 - s.dir].fin.is_some_and(|fin| s.ack >= fin) {
            self.ends[1 - s.dir].fin_acked = true;
        }
        let fins = self.ends.iter().filter(|end| end.fin.is_some()).count();
        if fins > 0 && !matches!(self.state, TcpState::TimeWait | TcpState::Closed) {
            let all_acked = self.ends.iter().all(|end| end.fin_acked);
            self.state = match fins {
                2 if all_acked => TcpState::TimeWait,
                2 => TcpState::LastAck,
                _ => TcpState::FinWait,
            };
        }
        TcpVerdict::Pass
    }

    fn agree_on_scale(&mut self) {
        if !(self.ends[0].offered && self.ends[1].offered) {
            self.ends[0].shift = 0;
            self.ends[1].shift = 0;
        }
    }

    fn ack_of(&self, s: &Absolute, you: &End) -> i64 {
        if s.flags & ACK == 0 { you.sent } else { s.ack }
    }

    fn fits(&self, s: &Absolute, len: i64) -> bool {
        let (me, you) = (&self.ends[s.dir], &self.ends[1 - s.dir]);
        if !me.heard {
            return true;
        }
        let end = s.seq + len + i64::from(s.flags & SYN != 0) + i64::from(s.flags & FIN != 0);
        let ack = self.ack_of(s, you);
        s.seq <= me.limit && end >= me.sent - you.window && ack <= you.sent && ack >= you.sent - me.window.max(66_000)
    }

    fn learn(&mut self, s: &Absolute) {
        let window =
            if s.flags & SYN != 0 { i64::from(s.window) } else { i64::from(s.window) << self.ends[s.dir].shift };
        let ack = self.ack_of(s, &self.ends[1 - s.dir]);
        let me = &mut self.ends[s.dir];
        me.window = me.window.max(window);
        me.sent = me.sent.max(s.end());
        if s.flags & ACK != 0 {
            me.acked = Some(me.acked.map_or(s.ack, |acked| acked.max(s.ack)));
        }
        let overshoot = s.end() - me.limit;
        let you = &mut self.ends[1 - s.dir];
        if overshoot > 0 && you.heard {
            you.window = (you.window + overshoot).min(1 << 30);
        }
        you.limit = you.limit.max(ack + window.max(1));
    }
}

fn pick<T: Copy>(rng: &mut ChaCha20Rng, items: &[T]) -> T {
    items[rng.next_u32() as usize % items.len()]
}

/// A segment at and around every edge the rules speak of.
fn around_the_edges(rng: &mut ChaCha20Rng, reference: &Reference) -> Absolute {
    let dir = (rng.next_u32() % 2) as usize;
    let (me, you) = (&reference.ends[dir], &reference.ends[1 - dir]);
    let flags = pick(
        rng,
        &[ACK, ACK, ACK, ACK, ACK, ACK, ACK, ACK, SYN | ACK, SYN | ACK, ACK | FIN, RST, RST | ACK, SYN, SYN | ACK],
    );
    let len = pick(rng, &[0, 0, 1, 100, 1448, 14_480, 60_000]);
    let seq = match rng.next_u32() % 12 {
        0 => me.limit + pick(rng, &[-1, 0, 1]),
        1 => me.sent - you.window - len + pick(rng, &[-1, 0, 1]),
        2 => you.acked.unwrap_or(0) + pick(rng, &[-1, 0, 1]),
        3 => me.isn,
        4 => me.sent + pick(rng, &[-100_000, -1448, -1, 1, 1448, 100_000]),
        _ => me.sent,
    };
    let ack = match rng.next_u32() % 8 {
        0 => you.sent + pick(rng, &[-1, 1, 2, 100_000]),
        1 => you.sent - me.window.max(66_000) + pick(rng, &[-1, 0, 1]),
        2 => you.fin.unwrap_or(you.sent),
        _ => you.sent,
    };
    let scale = pick(rng, &[None, Some(0), Some(2), Some(7)]);
    Absolute { dir, flags, seq, ack: ack.max(1), len, window: pick(rng, &[0, 1, 100, 8192, 65_535]), scale }
}

proptest! {
    #[test]
    fn tracker_equals_reference(seed in any::<u64>(), bases in any::<[u32; 2]>()) {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let scale = pick(&mut rng, &[None, Some(7)]);
        let syn = Absolute { dir: 0, flags: SYN, seq: 0, ack: 0, len: 0, window: 8192, scale };
        let mut reference = Reference::open(&syn);
        let mut track = TcpTrack::open(&syn.on_the_wire(bases), 0);
        for step in 0..300 {
            let segment = match (step, reference.state) {
                // Most walks get through the handshake.
                (0, _) if seed % 8 != 0 => {
                    Absolute { dir: 1, flags: SYN | ACK, seq: 0, ack: 1, len: 0, window: 8192, scale }
                }
                (1, _) if seed % 8 != 0 => Absolute { dir: 0, flags: ACK, seq: 1, ack: 1, len: 0, window: 64, scale },
                _ => around_the_edges(&mut rng, &reference),
            };
            let tcp = segment.on_the_wire(bases);
            // The rule for stacks that reset with an empty acknowledgement is tested apart.
            if segment.flags & RST != 0 && tcp.ack == 0 {
                continue;
            }
            let expected = reference.judge(&segment);
            let direction = if segment.dir == 0 { Direction::Original } else { Direction::Reply };
            let verdict = track.segment(&tcp, segment.len as u32, direction);
            prop_assert_eq!(verdict, expected, "step {}: {:?} in {:?}", step, segment, reference.ends);
            prop_assert_eq!(track.state, reference.state, "step {}: {:?}", step, segment);
            if verdict == TcpVerdict::Reopen {
                break;
            }
        }
    }

    /// Two honest endpoints behind a network that loses, repeats and reorders: no segment of theirs is ever refused.
    #[test]
    fn honest_endpoints_are_never_refused(seed in any::<u64>(), bases in any::<[u32; 2]>()) {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let window = 512u16;
        let real_window = i64::from(window) << 7;
        let syn = Absolute { dir: 0, flags: SYN, seq: 0, ack: 0, len: 0, window: 65_535, scale: Some(7) };
        let mut track = TcpTrack::open(&syn.on_the_wire(bases), 0);
        let direction = |dir| if dir == 0 { Direction::Original } else { Direction::Reply };
        let mut see = |s: Absolute| track.segment(&s.on_the_wire(bases), s.len as u32, direction(s.dir));
        let syn_ack = Absolute { dir: 1, flags: SYN | ACK, seq: 0, ack: 1, len: 0, window: 65_535, scale: Some(7) };
        prop_assert_eq!(see(syn_ack), TcpVerdict::Pass);
        let ack = Absolute { dir: 0, flags: ACK, seq: 1, ack: 1, len: 0, window, scale: None };
        prop_assert_eq!(see(ack), TcpVerdict::Pass);
        // Per side: next to send, oldest not acknowledged, next expected, largest end the other side may send to.
        let (mut next, mut unacked, mut expected) = ([1i64; 2], [1i64; 2], [1i64; 2]);
        let mut wire: Vec<Absolute> = Vec::new();
        for _ in 0..400 {
            let dir = (rng.next_u32() % 2) as usize;
            match rng.next_u32() % 8 {
                // New data as far as the window allows, or a repetition of the oldest.
                0..=3 => {
                    let len = i64::from(pick(&mut rng, &[1u16, 1448, 14_480, 40_000]));
                    let room = unacked[dir] + real_window - next[dir];
                    let (seq, len) = if room > 0 && !rng.next_u32().is_multiple_of(4) {
                        let len = len.min(room);
                        next[dir] += len;
                        (next[dir] - len, len)
                    } else {
                        (unacked[dir], (next[dir] - unacked[dir]).min(1448))
                    };
                    wire.push(Absolute { dir, flags: ACK, seq, ack: expected[dir], len, window, scale: None });
                }
                // The network delivers a segment in flight, lately sent or older, sometimes twice.
                _ if !wire.is_empty() => {
                    let recent = wire.len().min(3);
                    let at = wire.len() - 1 - rng.next_u32() as usize % recent;
                    let s = if rng.next_u32().is_multiple_of(10) { wire[at] } else { wire.remove(at) };
                    // What is older than a whole window may be taken for forged.
                    let fresh = s.seq + s.len >= next[s.dir] - real_window
                        && s.ack >= next[1 - s.dir] - real_window;
                    let verdict = see(s);
                    prop_assert!(!fresh || verdict == TcpVerdict::Pass, "{:?}: {:?}", s, verdict);
                    if verdict != TcpVerdict::Pass {
                        continue;
                    }
                    let to = 1 - s.dir;
                    unacked[to] = unacked[to].max(s.ack);
                    if s.seq <= expected[to] && s.seq + s.len > expected[to] && !rng.next_u32().is_multiple_of(5) {
                        expected[to] = s.seq + s.len;
                        let ack = Absolute { dir: to, flags: ACK, seq: next[to], ack: expected[to], len: 0, window, scale: None };
                        prop_assert_eq!(see(ack), TcpVerdict::Pass, "{:?}", ack);
                        unacked[s.dir] = unacked[s.dir].max(expected[to]);
                    }
                }
                _ => {}
            }
            if wire.len() > 6 {
                wire.remove(0);
            }
        }
    }
}

#[test]
fn reset_with_an_empty_acknowledgement_counts_as_repeating_the_last() {
    let bases = [5, 9];
    let syn = Absolute { dir: 0, flags: SYN, seq: 0, ack: 0, len: 0, window: 100, scale: None };
    let mut track = TcpTrack::open(&syn.on_the_wire(bases), 0);
    let syn_ack = Absolute { dir: 1, flags: SYN | ACK, seq: 0, ack: 1, len: 0, window: 100, scale: None };
    assert_eq!(track.segment(&syn_ack.on_the_wire(bases), 0, Direction::Reply), TcpVerdict::Pass);
    let mut reset =
        Absolute { dir: 0, flags: RST | ACK, seq: 1, ack: 0, len: 0, window: 0, scale: None }.on_the_wire(bases);
    reset.ack = 0;
    assert_eq!(track.segment(&reset, 0, Direction::Original), TcpVerdict::Pass);
    assert_eq!(track.state, TcpState::Closed);
}

#[test]
fn only_flag_combinations_of_real_stacks_are_valid() {
    let valid: Vec<u8> =
        (0..64).filter(|flags| flags_are_valid(TcpFlags(*flags)) && flags & TcpFlags::PSH == 0).collect();
    const URG: u8 = TcpFlags::URG;
    let mut expected = vec![ACK, ACK | FIN, SYN, SYN | ACK, RST, RST | ACK, ACK | URG, ACK | FIN | URG, SYN | URG];
    expected.sort_unstable();
    assert_eq!(valid, expected);
    for psh_ece_cwr in [TcpFlags::PSH, TcpFlags::ECE, TcpFlags::CWR] {
        assert!(flags_are_valid(TcpFlags(ACK | psh_ece_cwr)));
        assert!(!flags_are_valid(TcpFlags(psh_ece_cwr)));
    }
}

//! Limits on rates: token buckets for bits and for packets, in both directions, by address and by peer.
//!
//! A bucket is one number: when it will be full again (the generic cell rate algorithm, ITU-T I.371). A packet passes while
//! anything is left, and may leave the bucket in debt: a super-packet larger than what is left goes whole, and the long
//! run keeps the rate. What is over the rate waits for its turn, which is known when it comes, and is dropped when that
//! is too far away: a TCP stream then finds the rate by the length of the queue and keeps it, where drops alone would hold
//! it at half. There is one time for each packet and no queue here; the caller keeps the packets.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use overlay_routing::fib::Fib;
use overlay_wire::packet::Headers;
use overlay_wire::{PeerIndex, Prefix};

use crate::reason::DropReason;

const NANOS: u64 = 1_000_000_000;

/// The slowest rate in bits per second: one full packet in 12 s.
pub const MIN_RATE: u64 = 1000;
/// The fastest rate in bits per second, far above what a worker forwards.
pub const MAX_RATE: u64 = 1_000_000_000_000;
/// Without a burst, this much time's worth may come at once, but not less than [`MIN_BURST`].
const DEFAULT_BURST: Duration = Duration::from_millis(50);
/// Two super-packets, in bytes: with less a TCP stream would not get up to its rate.
pub const MIN_BURST: u64 = 128 * 1024;

/// How long a packet may wait, unless that is less than [`LEAST_WAITING`] or more than [`MOST_WAITING`].
const PATIENCE: Duration = Duration::from_millis(50);
/// So many bytes and packets may wait at a slow rate, for no longer than [`LONGEST_WAIT`]: enough for a TCP stream to lose one
/// and to notice by the others.
const LEAST_WAITING: (u64, u64) = (32 * 1024, 16);
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// And no more at a fast one.
const MOST_WAITING: (u64, u64) = (4 << 20, 4096);

/// What one direction is limited to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rate {
    /// Bits of inner IP packets per second.
    pub bits: Option<u64>,
    /// Bytes that may come at once; `None`: 50 ms' worth, at least 128 KiB.
    pub burst: Option<u64>,
    /// Inner packets per second.
    pub packets: Option<u64>,
}

impl Rate {
    /// Whether it limits anything.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        self.bits.is_some() || self.packets.is_some()
    }

    /// The bytes that may come at once; `None` without a rate in bits.
    #[must_use]
    pub fn burst_bytes(&self) -> Option<u64> {
        let bits = self.bits?;
        let default = (u128::from(bits) * DEFAULT_BURST.as_nanos() / 8 / u128::from(NANOS)) as u64;
        Some(self.burst.unwrap_or_else(|| default.max(MIN_BURST)))
    }
}

/// A bucket of tokens that fill at a rate.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    /// Units in a burst, as the time they take to fill.
    burst_ns: u64,
    /// How long a packet may wait for a token.
    patience_ns: u64,
    /// When it is full again, in nanoseconds since the table's zero.
    full_at: AtomicU64,
}

impl Bucket {
    /// `least` and `most` are the units that may wait.
    fn new(per_second: u64, burst: u64, (least, most): (u64, u64)) -> Self {
        let per_second = per_second.max(1);
        let time = |units: u64| {
            let nanos = u128::from(units) * u128::from(NANOS) / u128::from(per_second);
            u64::try_from(nanos).unwrap_or(u64::MAX)
        };
        let nanos = |time: Duration| time.as_nanos() as u64;
        let patience_ns = nanos(PATIENCE).min(time(most)).max(time(least).min(nanos(LONGEST_WAIT)));
        Self { per_second, burst_ns: time(burst).clamp(1, u64::MAX / 4), patience_ns, full_at: AtomicU64::new(0) }
    }

    /// How long until any token is left, in nanoseconds; `None` when that is too long.
    #[inline]
    fn wait(&self, now_ns: u64) -> Option<u64> {
        let ahead = self.full_at.load(Ordering::Relaxed).saturating_sub(now_ns);
        let wait = (ahead + 1).saturating_sub(self.burst_ns);
        (wait <= self.patience_ns).then_some(wait)
    }

    /// Takes tokens, into debt if need be.
    #[inline]
    fn take(&self, units: u64, now_ns: u64) {
        let cost = (u128::from(units) * u128::from(NANOS) / u128::from(self.per_second)) as u64;
        let next = |full_at: u64| Some(full_at.max(now_ns).saturating_add(cost));
        // Never fails: the function always gives a value.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

/// One direction's buckets.
#[derive(Debug)]
struct Buckets {
    rate: Rate,
    bits: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Buckets {
    fn new(rate: Rate) -> Self {
        let in_bits = |bytes: u64| bytes.saturating_mul(8);
        let waiting = (in_bits(LEAST_WAITING.0), in_bits(MOST_WAITING.0));
        let bits = rate.bits.zip(rate.burst_bytes()).map(|(bits, burst)| Bucket::new(bits, in_bits(burst), waiting));
        // A tenth of a second at once, or the segments of a super-packet.
        let waiting = (LEAST_WAITING.1, MOST_WAITING.1);
        let packets = rate.packets.map(|packets| Bucket::new(packets, (packets / 10).max(64), waiting));
        Self { rate, bits, packets }
    }

    /// How long a packet has to wait, in nanoseconds.
    #[inline]
    fn check(&self, now_ns: u64) -> Result<u64, DropReason> {
        let wait = |bucket: &Option<Bucket>, reason| match bucket {
            Some(bucket) => bucket.wait(now_ns).ok_or(reason),
            None => Ok(0),
        };
        let for_bits = wait(&self.bits, DropReason::RateLimit)?;
        Ok(for_bits.max(wait(&self.packets, DropReason::PacketRateLimit)?))
    }

    #[inline]
    fn charge(&self, load: Load, now_ns: u64) {
        if let Some(bucket) = &self.bits {
            bucket.take(load.bytes * 8, now_ns);
        }
        if let Some(bucket) = &self.packets {
            bucket.take(u64::from(load.packets), now_ns);
        }
    }
}

/// What a packet or super-packet weighs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    bytes: u64,
    packets: u32,
}

impl Load {
    #[inline]
    pub(crate) fn of(headers: &Headers, segments: u32) -> Self {
        let repeated = u64::from(segments.saturating_sub(1)) * headers.payload_offset() as u64;
        Self { bytes: u64::from(headers.total_len) + repeated, packets: segments }
    }
}

/// A limit with its state, shared by the tables that follow each other and by all workers.
#[derive(Debug)]
pub struct Limit {
    name: String,
    zero: Instant,
    from: Buckets,
    to: Buckets,
    dropped: [AtomicU64; 2],
}

impl Limit {
    /// Makes a limit with full buckets. `from` is what the limited end sends, `to` what is sent to it; `zero` is any time
    /// before the first packet.
    #[must_use]
    pub fn new(name: &str, from: Rate, to: Rate, zero: Instant) -> Self {
        let dropped = [AtomicU64::new(0), AtomicU64::new(0)];
        Self { name: name.to_owned(), zero, from: Buckets::new(from), to: Buckets::new(to), dropped }
    }

    /// Its name in output.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the limited end may send, and what may be sent to it.
    #[must_use]
    pub fn rates(&self) -> (Rate, Rate) {
        (self.from.rate, self.to.rate)
    }

    /// Packets dropped by it that the limited end sent, and that were sent to it.
    #[must_use]
    pub fn dropped(&self) -> (u64, u64) {
        (self.dropped[0].load(Ordering::Relaxed), self.dropped[1].load(Ordering::Relaxed))
    }

    #[inline]
    fn side(&self, side: Side) -> &Buckets {
        match side {
            Side::From => &self.from,
            Side::To => &self.to,
        }
    }

    #[inline]
    fn now_ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.zero).as_nanos()).unwrap_or(u64::MAX / 2)
    }
}

/// Which end of a packet is limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    From = 0,
    To = 1,
}

/// The limits in force.
#[derive(Clone, Debug, Default)]
pub struct RateTable {
    by_address: Option<Fib<u32>>,
    by_peer: Vec<(PeerIndex, u32)>,
    limits: Vec<Arc<Limit>>,
}

impl RateTable {
    /// Puts limits in force: of the addresses in prefixes (the longest one counts) and of peers.
    #[must_use]
    pub fn build(limits: Vec<(Arc<Limit>, Vec<Prefix>, Option<PeerIndex>)>) -> Self {
        let mut table = Self::default();
        let mut addresses = Vec::new();
        for (place, (limit, prefixes, peer)) in (0u32..).zip(limits) {
            addresses.extend(prefixes.into_iter().map(|prefix| (prefix, place)));
            table.by_peer.extend(peer.map(|peer| (peer, place)));
            table.limits.push(limit);
        }
        if !addresses.is_empty() {
            table.by_address = Some(Fib::build(addresses));
        }
        table
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &[Arc<Limit>] {
        &self.limits
    }

    /// Whether nothing is limited.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    fn at(&self, address: IpAddr) -> Option<u32> {
        self.by_address.as_ref()?.lookup(address).copied()
    }

    fn of_peer(&self, peer: Option<PeerIndex>) -> Option<u32> {
        let peer = peer?;
        self.by_peer.iter().find(|(own, _)| *own == peer).map(|(_, place)| *place)
    }

    /// Checks every limit on a packet, given its addresses and the peers it comes from and goes to, and charges them all if
    /// it passes and is real. How long it has to wait until all let it pass; or the place of the limit that refuses.
    pub(crate) fn check(
        &self,
        (src, dst): (IpAddr, IpAddr),
        (peer_from, peer_to): (Option<PeerIndex>, Option<PeerIndex>),
        load: Load,
        is_real: bool,
        now: Instant,
    ) -> Result<Duration, (DropReason, u32)> {
        let hits = self.hits((src, dst), (peer_from, peer_to));
        let mut longest = 0;
        for (place, side) in hits.into_iter().flatten() {
            let limit = &self.limits[place as usize];
            match limit.side(side).check(limit.now_ns(now)) {
                Ok(wait) => longest = longest.max(wait),
                Err(reason) => {
                    if is_real {
                        limit.dropped[side as usize].fetch_add(u64::from(load.packets), Ordering::Relaxed);
                    }
                    return Err((reason, place));
                }
            }
        }
        if is_real {
            self.charge_all(hits, load, now);
        }
        Ok(Duration::from_nanos(longest))
    }

    /// Charges every limit on a packet that passes whatever they say.
    pub(crate) fn charge(
        &self,
        addresses: (IpAddr, IpAddr),
        peers: (Option<PeerIndex>, Option<PeerIndex>),
        load: Load,
        now: Instant,
    ) {
        self.charge_all(self.hits(addresses, peers), load, now);
    }

    fn charge_all(&self, hits: [Option<(u32, Side)>; 4], load: Load, now: Instant) {
        for (place, side) in hits.into_iter().flatten() {
            let limit = &self.limits[place as usize];
            limit.side(side).charge(load, limit.now_ns(now));
        }
    }

    /// The limits that count for a packet: of its two addresses and of the peers it comes from and goes to.
    #[inline]
    fn hits(
        &self,
        (src, dst): (IpAddr, IpAddr),
        (from, to): (Option<PeerIndex>, Option<PeerIndex>),
    ) -> [Option<(u32, Side)>; 4] {
        [
            self.at(src).map(|place| (place, Side::From)),
            self.at(dst).map(|place| (place, Side::To)),
            self.of_peer(from).map(|place| (place, Side::From)),
            self.of_peer(to).map(|place| (place, Side::To)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{ip, prefix};

    const CONTAINER: &str = "10.42.1.5";

    fn table(from: Rate, to: Rate, zero: Instant) -> RateTable {
        RateTable::build(vec![(Arc::new(Limit::new("web", from, to, zero)), vec![prefix("10.42.1.5/32")], None)])
    }

    fn pass(table: &RateTable, src: &str, dst: &str, load: Load, now: Instant) -> Result<Duration, DropReason> {
        table.check((ip(src), ip(dst)), (None, None), load, true, now).map_err(|(reason, _)| reason)
    }

    /// What passes of an endless supply in one direction, in bits per second after the burst.
    fn measured(rate: Rate, load: Load, gap: Duration, span: Duration) -> f64 {
        let zero = Instant::now();
        let table = table(rate, Rate::default(), zero);
        let mut passed = 0u64;
        let (mut now, half) = (zero, zero + span / 2);
        while now < zero + span {
            let leaves = pass(&table, CONTAINER, "10.42.2.5", load, now).map(|wait| now + wait);
            if leaves.is_ok_and(|leaves| leaves >= half && leaves < zero + span) {
                passed += load.bytes * 8;
            }
            now += gap;
        }
        passed as f64 / (span / 2).as_secs_f64()
    }

    #[test]
    fn rate_is_kept_within_five_percent_from_one_megabit_to_two_gigabits() {
        for megabits in [1u64, 10, 100, 500, 1000, 2000] {
            let bits = megabits * 1_000_000;
            // Single packets, and super-packets of 64 KiB, offered at three times the rate.
            for load in [Load { bytes: 1400, packets: 1 }, Load { bytes: 65_000, packets: 46 }] {
                let gap = Duration::from_nanos(load.bytes * 8 * NANOS / bits / 3);
                // Long enough that the super-packet on the edge does not count.
                let span = (gap * 3 * 200).max(Duration::from_secs(2));
                let rate = Rate { bits: Some(bits), burst: Some(256 * 1024), packets: None };
                let got = measured(rate, load, gap, span + Duration::from_secs(4));
                let error = (got / bits as f64 - 1.0).abs();
                assert!(error < 0.05, "{megabits} Mbit/s, {load:?}: {got}, off by {error:.3}");
            }
        }
    }

    #[test]
    fn burst_passes_at_once_and_then_only_what_fills() {
        let zero = Instant::now();
        let rate = Rate { bits: Some(8_000_000), burst: Some(10_000), packets: None };
        let table = table(rate, Rate::default(), zero);
        let load = Load { bytes: 1000, packets: 1 };
        let waits = |now| -> Vec<Duration> {
            (0..100).filter_map(|_| pass(&table, CONTAINER, "10.42.2.5", load, now).ok()).collect()
        };
        let (ms, nothing) = (Duration::from_millis, Duration::ZERO);
        let first = waits(zero);
        assert_eq!(first.iter().filter(|wait| **wait == nothing).count(), 10);
        // One each millisecond, as the rate is, and the last after the longest wait.
        let later: Vec<Duration> = first.into_iter().filter(|wait| *wait > nothing).collect();
        assert!(
            later.iter().zip(0..).all(|(wait, number)| *wait - ms(number) <= Duration::from_micros(1)),
            "{later:?}"
        );
        assert_eq!(later.len(), 50);
        let dropped = 40;
        assert_eq!(table.limits()[0].dropped(), (dropped, 0));
        // Those that wait come first.
        let then = waits(zero + ms(3));
        assert_eq!(then.len(), 3);
        assert!(then.iter().all(|wait| *wait > ms(47)), "{then:?}");
        let much_later = waits(zero + Duration::from_secs(60));
        assert_eq!(much_later.iter().filter(|wait| **wait == nothing).count(), 10, "it holds no more than the burst");
        assert_eq!(table.limits()[0].dropped(), (dropped + 97 + 40, 0));
    }

    #[test]
    fn what_waits_is_bounded_in_time_and_in_bytes() {
        let patience = |bits: u64| {
            let rate = Rate { bits: Some(bits), burst: Some(1), packets: None };
            Duration::from_nanos(Buckets::new(rate).bits.expect("a bucket").patience_ns)
        };
        assert_eq!(patience(MIN_RATE), LONGEST_WAIT);
        assert_eq!(patience(1_000_000), Duration::from_micros(262_144), "32 KiB");
        assert_eq!(patience(100_000_000), PATIENCE);
        assert_eq!(patience(10_000_000_000), Duration::from_nanos(3_355_443), "4 MiB");
    }

    #[test]
    fn directions_packets_and_other_addresses_are_told_apart() {
        let zero = Instant::now();
        let to = Rate { packets: Some(100), ..Rate::default() };
        let table = table(Rate { bits: Some(MIN_RATE), burst: Some(100), packets: None }, to, zero);
        let (load, at_once) = (Load { bytes: 10_000, packets: 128 }, Ok(Duration::ZERO));
        assert_eq!(pass(&table, CONTAINER, "10.42.2.5", load, zero), at_once);
        assert_eq!(pass(&table, CONTAINER, "10.42.2.5", load, zero), Err(DropReason::RateLimit));
        assert_eq!(pass(&table, "10.42.2.5", CONTAINER, load, zero), at_once, "what it gets is counted on its own");
        assert_eq!(pass(&table, "10.42.2.5", CONTAINER, load, zero), Err(DropReason::PacketRateLimit));
        assert_eq!(pass(&table, "10.42.2.5", "10.42.1.6", load, zero), at_once);
    }

    #[test]
    fn rehearsal_charges_nothing() {
        let zero = Instant::now();
        let table = table(Rate { bits: Some(MIN_RATE), burst: Some(100), packets: None }, Rate::default(), zero);
        let load = Load { bytes: 1000, packets: 1 };
        let ends = (ip(CONTAINER), ip("10.42.2.5"));
        for _ in 0..10 {
            assert_eq!(table.check(ends, (None, None), load, false, zero), Ok(Duration::ZERO));
        }
        assert_eq!(table.check(ends, (None, None), load, true, zero), Ok(Duration::ZERO));
        assert_eq!(table.check(ends, (None, None), load, false, zero), Err((DropReason::RateLimit, 0)));
        assert_eq!(table.limits()[0].dropped(), (0, 0));
    }

    proptest! {
        #[test]
        fn any_rate_and_burst_never_passes_more_than_burst_and_rate(
            bits in MIN_RATE..=MAX_RATE, burst in any::<u32>(), sizes in prop::collection::vec(20u64..65_535, 1..50),
            gaps in prop::collection::vec(0u64..10_000_000, 1..50),
        ) {
            let zero = Instant::now();
            let rate = Rate { bits: Some(bits), burst: Some(u64::from(burst)), packets: None };
            let table = table(rate, Rate::default(), zero);
            let (mut now, mut last, mut passed, mut largest) = (zero, zero, 0u128, 0u128);
            for (bytes, gap) in sizes.iter().cycle().zip(gaps.iter().cycle()).take(100) {
                let load = Load { bytes: *bytes, packets: 1 };
                if let Ok(wait) = pass(&table, CONTAINER, "10.42.2.5", load, now) {
                    prop_assert!(now + wait >= last, "one overtook another");
                    last = now + wait;
                    passed += u128::from(*bytes) * 8;
                    largest = largest.max(u128::from(*bytes) * 8);
                }
                now += Duration::from_nanos(*gap);
            }
            now = now.max(last);
            let filled = u128::from(bits) * now.duration_since(zero).as_nanos() / u128::from(NANOS);
            // A bit of rounding per packet, and the one that goes into debt.
            let rounding = 100 * (u128::from(bits) / u128::from(NANOS) + 1);
            prop_assert!(passed <= u128::from(burst) * 8 + filled + largest + rounding);
        }
    }
}

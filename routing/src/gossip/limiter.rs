//! Rate limits: token buckets per source, bounded in number, and a common budget for all strangers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use overlay_wire::prefix::{mask, to_bits};

/// The most sources remembered at once.
const MAX_SOURCES: usize = 1024;

/// A bucket that fills with time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: u64,
    updated: Instant,
}

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) per_second: u64,
    pub(super) burst: u64,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, updated: now }
    }

    /// Takes `cost` tokens if they are there.
    pub(super) fn take(&mut self, rate: Rate, cost: u64, now: Instant) -> bool {
        self.fill(rate, now);
        match self.tokens.checked_sub(cost) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.updated).min(Duration::from_secs(3600));
        let gained = passed.as_micros() as u64 * rate.per_second / 1_000_000;
        if gained > 0 {
            self.tokens = (self.tokens + gained).min(rate.burst);
            self.updated = now;
        }
    }
}

/// Budgets for first contacts, whose checking costs a key agreement and two signature verifications.
///
/// Sources that are endpoints of members have budgets of their own, so that a flood from elsewhere cannot starve them.
#[derive(Debug)]
pub(super) struct ContactLimiter {
    strangers: Bucket,
    sources: BTreeMap<u128, Bucket>,
}

/// First contacts from one source: twenty a second.
const PER_SOURCE: Rate = Rate { per_second: 20, burst: 20 };
/// First contacts from all sources that are not known endpoints: about a tenth of a core.
const STRANGERS: Rate = Rate { per_second: 400, burst: 400 };

/// Whether a source is the endpoint of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceKind {
    Member,
    Stranger,
}

impl ContactLimiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { strangers: Bucket::full(STRANGERS, now), sources: BTreeMap::new() }
    }

    /// Whether a first contact from `ip` may be looked at.
    pub(super) fn allow(&mut self, ip: IpAddr, kind: SourceKind, now: Instant) -> bool {
        let key = to_bits(ip) & if ip.is_ipv4() { mask(32) } else { mask(64) } | u128::from(ip.is_ipv4());
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&key) {
            self.sources.retain(|_, bucket| {
                bucket.fill(PER_SOURCE, now);
                bucket.tokens < PER_SOURCE.burst
            });
            if self.sources.len() >= MAX_SOURCES {
                // Every remembered source is busy: strangers then share what is left, members pass.
                return kind == SourceKind::Member || self.strangers.take(STRANGERS, 1, now);
            }
        }
        let bucket = self.sources.entry(key).or_insert_with(|| Bucket::full(PER_SOURCE, now));
        bucket.take(PER_SOURCE, 1, now) && (kind == SourceKind::Member || self.strangers.take(STRANGERS, 1, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_from_many_sources_leaves_members_their_budget() {
        let now = Instant::now();
        let mut limiter = ContactLimiter::new(now);
        let passed = (0..100_000u32)
            .filter(|n| limiter.allow(IpAddr::V4((0x0a00_0000 + n).into()), SourceKind::Stranger, now))
            .count();
        assert_eq!(passed as u64, STRANGERS.burst);
        assert!(limiter.sources.len() <= MAX_SOURCES);
        assert!(limiter.allow("192.0.2.1".parse().expect("address"), SourceKind::Member, now));
    }

    #[test]
    fn one_source_is_held_to_its_rate_and_recovers() {
        let now = Instant::now();
        let mut limiter = ContactLimiter::new(now);
        let ip = "2001:db8::1".parse().expect("address");
        let passed = (0..100).filter(|_| limiter.allow(ip, SourceKind::Stranger, now)).count();
        assert_eq!(passed as u64, PER_SOURCE.burst);
        assert!(!limiter.allow("2001:db8::2".parse().expect("address"), SourceKind::Stranger, now));
        assert!(limiter.allow(ip, SourceKind::Stranger, now + Duration::from_secs(1)));
    }
}

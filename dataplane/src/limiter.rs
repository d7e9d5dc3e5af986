//! A token bucket for the answers the packet path sends by itself.

/// Answers per second in the long run; a host that is refused more often learns nothing new.
const RATE_PER_SECOND: u64 = 1000;
/// Answers in one burst.
const BURST: u64 = 200;

/// A token bucket over milliseconds, in thousandths of an answer.
#[derive(Debug)]
pub(crate) struct ReplyLimiter {
    tokens: u64,
    last_ms: u64,
}

impl ReplyLimiter {
    pub(crate) fn new() -> Self {
        Self { tokens: BURST * 1000, last_ms: 0 }
    }

    /// Takes one token at `now_ms`; false when none is left.
    pub(crate) fn take(&mut self, now_ms: u64) -> bool {
        let elapsed = now_ms.saturating_sub(self.last_ms);
        self.last_ms = self.last_ms.max(now_ms);
        self.tokens = self.tokens.saturating_add(elapsed.saturating_mul(RATE_PER_SECOND)).min(BURST * 1000);
        if self.tokens < 1000 {
            return false;
        }
        self.tokens -= 1000;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate_is_granted() {
        let mut limiter = ReplyLimiter::new();
        assert_eq!((0..1000).filter(|_| limiter.take(5)).count(), 200);
        assert_eq!((0..1000).filter(|_| limiter.take(105)).count(), 100);
        assert!(!limiter.take(0), "time that goes back grants nothing");
    }
}

//! How often one client may have questions passed on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Questions of one client per second, and at once.
const RATE: f64 = 100.0;
const BURST: f64 = 200.0;
/// Clients remembered; when there are more, those that have been quiet are forgotten.
const CLIENTS: usize = 4096;
/// After this long a bucket is full again.
const REFILLED: Duration = Duration::from_secs(2);

/// A bucket for each client.
#[derive(Debug, Default)]
pub(super) struct Limiter(HashMap<IpAddr, (f64, Instant)>);

impl Limiter {
    /// Whether a client may ask once more.
    pub(super) fn take(&mut self, client: IpAddr, now: Instant) -> bool {
        if self.0.len() >= CLIENTS && !self.0.contains_key(&client) {
            self.0.retain(|_, (_, last)| now.saturating_duration_since(*last) < REFILLED);
            if self.0.len() >= CLIENTS {
                return false;
            }
        }
        let (left, last) = self.0.entry(client).or_insert((BURST, now));
        *left = (*left + now.saturating_duration_since(*last).as_secs_f64() * RATE).min(BURST);
        *last = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_is_held_and_others_are_not() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let [one, two] = ["10.42.1.4", "10.42.1.5"].map(|ip| ip.parse().unwrap());
        assert_eq!((0..500).filter(|_| limiter.take(one, now)).count(), 200);
        assert!(limiter.take(two, now));
        assert_eq!((0..500).filter(|_| limiter.take(one, now + Duration::from_secs(1))).count(), 100);
    }

    #[test]
    fn memory_is_bounded_and_quiet_clients_make_room() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let client = |number: u32| IpAddr::from(number.to_be_bytes());
        assert_eq!((0..10_000).filter(|number| limiter.take(client(*number), now)).count(), CLIENTS);
        assert!(limiter.0.len() <= CLIENTS);
        assert!(limiter.take(client(20_000), now + REFILLED));
    }
}

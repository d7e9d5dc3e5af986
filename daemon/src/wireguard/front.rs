//! What a handshake message passes before any Diffie-Hellman: form, limit per source, first MAC, cookie under load.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::{HANDSHAKE_MAX, Keys, Macs, PublicKeyBytes, initiator, message_kind, receiver_index};

/// Messages per second and source, and the burst (wireguard-go `ratelimiter.go` has 20 and 5).
const PER_SECOND: f64 = 20.0;
const BURST: f64 = 10.0;
/// Sources remembered. Beyond it the oldest half is forgotten: a flood from many sources meets the cookie instead.
const SOURCES: usize = 4096;
/// Handshake messages per second from all sources together before cookies are asked for.
const COOKIE_ABOVE: u64 = 200;

/// What to do with a handshake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// An initiation from the holder of this key.
    Initiation(PublicKeyBytes),
    /// A response or cookie reply for the tunnel with this 24-bit index.
    Answer(u32),
    /// Under load: send these bytes of the output buffer back, nothing else.
    Cookie(usize),
    /// Silence, with the counter to raise.
    Drop(&'static str),
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// The front of the handshake path.
pub struct Front {
    keys: Keys,
    macs: Macs,
    reset_at: Instant,
    sources: HashMap<u128, Bucket>,
    port_hash: RandomState,
}

impl Front {
    /// Builds the front for our key pair.
    #[must_use]
    pub fn new(keys: Keys, now: Instant) -> Self {
        let macs = Macs::new(&keys, COOKIE_ABOVE);
        Self { keys, macs, reset_at: now, sources: HashMap::new(), port_hash: RandomState::new() }
    }

    /// Judges one handshake message; a cookie reply is written to `out`.
    pub fn admit(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        out: &mut [u8; HANDSHAKE_MAX],
    ) -> Admission {
        let expected = match message_kind(datagram) {
            Some(1) => 148,
            Some(2) => 92,
            Some(3) => 64,
            _ => return Admission::Drop("handshake_malformed"),
        };
        if datagram.len() != expected {
            return Admission::Drop("handshake_malformed");
        }
        if !self.take_token(from.ip(), now) {
            return Admission::Drop("handshake_rate");
        }
        if now.saturating_duration_since(self.reset_at) >= Duration::from_secs(1) {
            self.reset_at = now;
            self.macs.reset();
        }
        // The library binds its cookie to an address only; a keyed hash of address and port stands in for one.
        match self.macs.verify(self.bound_to_port(from), datagram, out) {
            Ok(None) => {}
            Ok(Some(len)) => return Admission::Cookie(len),
            Err(()) => return Admission::Drop("handshake_mac"),
        }
        if let Some(index) = receiver_index(datagram) {
            return Admission::Answer(index >> 8);
        }
        match initiator(&self.keys, datagram) {
            Some(public) => Admission::Initiation(public),
            None => Admission::Drop("handshake_authentication"),
        }
    }

    fn bound_to_port(&self, from: SocketAddr) -> IpAddr {
        let half = |salt: u8| u128::from(self.port_hash.hash_one((salt, from)));
        IpAddr::V6(Ipv6Addr::from(half(0) << 64 | half(1)))
    }

    fn take_token(&mut self, source: IpAddr, now: Instant) -> bool {
        let key = match source {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            // A host commonly holds a whole /64.
            IpAddr::V6(v6) => u128::from(v6) >> 64 | 1 << 127,
        };
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&key) {
            let mut ages: Vec<Instant> = self.sources.values().map(|bucket| bucket.at).collect();
            let middle = ages.len() / 2;
            let (_, median, _) = ages.select_nth_unstable(middle);
            let median = *median;
            self.sources.retain(|_, bucket| bucket.at > median);
        }
        let bucket = self.sources.entry(key).or_insert(Bucket { tokens: BURST, at: now });
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + elapsed * PER_SECOND).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

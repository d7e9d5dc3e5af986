//! The WireGuard protocol engine: the only file that names `boringtun`, fenced in where the library trusts its caller.
//!
//! What this wrapper adds to `noise::Tunn`:
//! - output room is checked before each call (the library panics on short output);
//! - counters at or above the protocol's limit are refused before decryption, and sending stops long before it;
//! - a session is looked for, and its age checked, before sealing (the library would queue without an age limit);
//! - low-order public keys are refused;
//! - handshakes pass a limit per source, the first MAC and, under load, a cookie bound to address and port, before any
//!   Diffie-Hellman; the library's own shared limiter never triggers;
//! - the highest counter is tracked, so that only the newest authenticated packet moves an endpoint;
//! - retries come sooner than the protocol's five seconds while the first handshake is under way;
//! - a peer with a keepalive is tried for ever.
//!
//! Constants: the WireGuard paper (Donenfeld, NDSS 2017), section 6.1, and `device/constants.go` of wireguard-go.

mod front;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

pub use front::{Admission, Front};

/// Bytes that sealing adds: message header (16) and tag (16).
pub const DATA_OVERHEAD: usize = 32;
/// Most bytes of any handshake message.
pub const HANDSHAKE_MAX: usize = 148;
/// Counters at or above this are refused (`RejectAfterMessages`).
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Sealing stops here and asks for a new session (`RekeyAfterMessages`).
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A session older than this is never used (`RejectAfterTime`).
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Waits before each repeat of the first initiation; afterwards the library repeats every five seconds.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// A 32-byte X25519 public key.
pub type PublicKeyBytes = [u8; 32];

/// Our X25519 key pair.
#[derive(Clone)]
pub struct Keys {
    secret: StaticSecret,
    public: PublicKey,
}

impl Keys {
    /// Takes a secret; clamped as RFC 7748 says.
    #[must_use]
    pub fn from_secret(secret: [u8; 32]) -> Self {
        let secret = StaticSecret::from(secret);
        let public = PublicKey::from(&secret);
        Self { secret, public }
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKeyBytes {
        self.public.to_bytes()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// Whether a public key is one of the points that make every shared secret zero.
#[must_use]
pub fn is_low_order(public: &PublicKeyBytes) -> bool {
    !StaticSecret::from([7; 32]).diffie_hellman(&PublicKey::from(*public)).was_contributory()
}

/// Why a packet was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no session, or it is too old or used up: a handshake is needed first.
    #[error("no session")]
    NoSession,
    /// The output is shorter than the packet and its overhead.
    #[error("output too short")]
    OutputTooShort,
}

/// Why a datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The counter is at the end of its range.
    #[error("counter out of range")]
    CounterLimit,
    /// Seen before, or too old for the window.
    #[error("replayed or too old")]
    Replay,
    /// No such session here, or it has ended.
    #[error("unknown session")]
    NoSession,
    /// Authentication failed.
    #[error("authentication failed")]
    Authentication,
    /// Too short, of a wrong type, or the inner packet contradicts its length field.
    #[error("malformed")]
    Malformed,
    /// The output is shorter than the datagram.
    #[error("output too short")]
    OutputTooShort,
}

/// What a datagram held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the inner packet; zero for a keepalive.
    pub len: usize,
    /// No packet with a higher counter was seen: its sender's address is the peer's newest.
    pub newest: bool,
}

/// What handling a handshake message led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HandshakeOutcome {
    /// Bytes of an answer in the output buffer.
    pub reply: Option<usize>,
    /// A session that may send exists now and did not before this message.
    pub established: bool,
    /// The message proved the peer's identity: its address may be learned.
    pub authenticated: bool,
}

/// A tunnel to one peer. Every method is called under that peer's lock.
pub struct Tunnel {
    tunn: Tunn,
    sealed: u64,
    newest: (u32, u64),
    initiation: Option<(Instant, usize)>,
    last_handshake: Option<Instant>,
}

impl Tunnel {
    /// Builds a tunnel without a session. `index` is the 24-bit receiver index that the peer will write.
    ///
    /// # Panics
    /// When `index` has more than 24 bits.
    #[must_use]
    pub fn new(
        keys: &Keys,
        peer: &PublicKeyBytes,
        preshared: Option<[u8; 32]>,
        keepalive: Option<u16>,
        index: u32,
    ) -> Self {
        assert!(index < 1 << 24, "a receiver index has 24 bits");
        // Ours in front limits; the one inside must never.
        let unlimited = Arc::new(RateLimiter::new(&keys.public, u64::MAX));
        let tunn = Tunn::new(keys.secret.clone(), PublicKey::from(*peer), preshared, keepalive, index, Some(unlimited));
        Self { tunn, sealed: 0, newest: (0, 0), initiation: None, last_handshake: None }
    }

    /// Whether a session may seal now. Reads the clock: ask once per batch.
    #[must_use]
    pub fn has_session(&self) -> bool {
        self.sealed < REKEY_AFTER_MESSAGES
            && self.tunn.time_since_last_handshake().is_some_and(|age| age < REJECT_AFTER_TIME)
    }

    /// When the last handshake completed.
    #[must_use]
    pub fn last_handshake(&self) -> Option<Instant> {
        self.last_handshake
    }

    /// Seals one packet, padding included, into `out`; bytes written.
    ///
    /// # Errors
    /// Without a session (the caller has asked [`Self::has_session`]) or with short output.
    #[inline]
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<usize, SealError> {
        if out.len() < (packet.len() + DATA_OVERHEAD).max(HANDSHAKE_MAX) {
            return Err(SealError::OutputTooShort);
        }
        if self.sealed >= REKEY_AFTER_MESSAGES {
            return Err(SealError::NoSession);
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(sealed) if sealed.len() == packet.len() + DATA_OVERHEAD => {
                self.sealed += 1;
                Ok(sealed.len())
            }
            // An initiation instead of data: the session ended between the check and here.
            _ => Err(SealError::NoSession),
        }
    }

    /// Opens one data datagram into `out`.
    ///
    /// # Errors
    /// When it does not authenticate, was seen before, or is malformed.
    #[inline]
    pub fn open(&mut self, datagram: &[u8], out: &mut [u8]) -> Result<Opened, OpenError> {
        let (Some(receiver), Some(counter)) = (receiver_index(datagram), counter(datagram)) else {
            return Err(OpenError::Malformed);
        };
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(OpenError::CounterLimit);
        }
        if out.len() < datagram.len() {
            return Err(OpenError::OutputTooShort);
        }
        let len = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => packet.len(),
            TunnResult::Done => 0,
            TunnResult::WriteToNetwork(_) => return Err(OpenError::Malformed),
            TunnResult::Err(error) => {
                return Err(match error {
                    WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => OpenError::Replay,
                    WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => OpenError::NoSession,
                    WireGuardError::InvalidAeadTag => OpenError::Authentication,
                    _ => OpenError::Malformed,
                });
            }
        };
        let newest = self.newest.0 != receiver || counter > self.newest.1;
        if newest {
            self.newest = (receiver, counter);
        }
        Ok(Opened { len, newest })
    }

    /// Writes a handshake initiation into `out` unless one is under way; its length.
    pub fn initiate(&mut self, now: Instant, out: &mut [u8; HANDSHAKE_MAX]) -> Option<usize> {
        if self.initiation.is_some() {
            return None;
        }
        let len = self.format_initiation(out)?;
        self.initiation = Some((now, 0));
        Some(len)
    }

    fn format_initiation(&mut self, out: &mut [u8; HANDSHAKE_MAX]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Handles an initiation, response or cookie reply that passed the front.
    pub fn handle_handshake(
        &mut self,
        datagram: &[u8],
        now: Instant,
        out: &mut [u8; HANDSHAKE_MAX],
    ) -> HandshakeOutcome {
        let had = self.has_session();
        let kind = datagram.first().copied();
        let reply = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            TunnResult::Done => None,
            _ => return HandshakeOutcome::default(),
        };
        let authenticated = kind != Some(3);
        if authenticated {
            self.last_handshake = Some(now);
            self.sealed = 0;
            if kind == Some(2) {
                self.initiation = None;
            }
        }
        HandshakeOutcome { reply, established: !had && self.has_session(), authenticated }
    }

    /// Takes a message that the library queued while it had no session; call until `None` after a session came up.
    pub fn take_queued(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.decapsulate(None, &[], out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Runs the timers; a message to send, if any. To be called at least every 250 ms.
    pub fn tick(&mut self, now: Instant, out: &mut [u8; HANDSHAKE_MAX]) -> Option<usize> {
        if let Some((since, tries)) = self.initiation {
            if self.has_session() && self.last_handshake.is_some_and(|at| at >= since) {
                self.initiation = None;
            } else if let Some(wait) = RETRIES.get(tries) {
                if now.saturating_duration_since(since) >= *wait {
                    self.initiation = Some((now, tries + 1));
                    return self.format_initiation(out);
                }
            } else {
                // The library repeats from here on, every five seconds, for ninety.
                self.initiation = None;
            }
        }
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            // After ninety seconds without an answer the library sends no keepalive any more. A peer that has one may be
            // able to reach us only after we reached it, so it is tried for ever.
            TunnResult::Err(WireGuardError::ConnectionExpired) if self.tunn.persistent_keepalive().is_some() => {
                self.initiate(now, out)
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}

/// The kind of a WireGuard message: 1 initiation, 2 response, 3 cookie reply, 4 data.
#[inline]
#[must_use]
pub fn message_kind(datagram: &[u8]) -> Option<u8> {
    match datagram.first_chunk::<4>() {
        Some([kind @ 1..=4, 0, 0, 0]) => Some(*kind),
        _ => None,
    }
}

/// The receiver index of a data message, response or cookie reply; its upper 24 bits name the peer.
#[inline]
#[must_use]
pub fn receiver_index(datagram: &[u8]) -> Option<u32> {
    let at = match message_kind(datagram)? {
        3 | 4 => 4,
        2 => 8,
        _ => return None,
    };
    datagram.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[inline]
fn counter(datagram: &[u8]) -> Option<u64> {
    datagram.get(8..16)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Reads the initiator's public key out of an initiation (one Diffie-Hellman).
fn initiator(keys: &Keys, datagram: &[u8]) -> Option<PublicKeyBytes> {
    match Tunn::parse_incoming_packet(datagram) {
        Ok(Packet::HandshakeInit(message)) => {
            parse_handshake_anon(&keys.secret, &keys.public, &message).ok().map(|half| half.peer_static_public)
        }
        _ => None,
    }
}

/// The library's own first-MAC and cookie check.
struct Macs(RateLimiter);

impl Macs {
    fn new(keys: &Keys, per_second: u64) -> Self {
        Self(RateLimiter::new(&keys.public, per_second))
    }

    fn reset(&self) {
        self.0.reset_count();
    }

    /// `Ok(None)` when it passes, `Ok(Some(len))` with a cookie reply under load.
    fn verify(&self, source: IpAddr, datagram: &[u8], out: &mut [u8; HANDSHAKE_MAX]) -> Result<Option<usize>, ()> {
        match self.0.verify_packet(Some(source), datagram, out) {
            Ok(_) => Ok(None),
            Err(TunnResult::WriteToNetwork(reply)) => Ok(Some(reply.len())),
            Err(_) => Err(()),
        }
    }
}

#[cfg(test)]
mod tests;

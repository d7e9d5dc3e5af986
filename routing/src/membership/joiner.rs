//! The joiner: asks an issuer until it is answered, and believes only the authority its token names.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_wire::membership::{Admission, JoinRefusal};

use super::Token;
use crate::gossip::Transmit;
use crate::identity::IdentityKey;

/// How a join ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinEvent {
    /// The host is a member.
    Admitted(Box<Admission>),
    /// The issuer refuses it.
    Refused(JoinRefusal),
    /// Nobody answered in time.
    NoAnswer,
}

/// Why a join cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinerError {
    /// The wanted name is not valid.
    #[error("a name is 1 to 63 printable ASCII characters without spaces")]
    Name,
    /// The issuer's key gives no shared secret.
    #[error("the token's issuer is not a valid key")]
    Issuer,
}

/// The joining side of the exchange; sans-IO like the gossip machine.
pub struct Joiner {}

impl Joiner {
    /// Begins; the first datagrams are there to be polled. `seed` must come from the operating system's generator.
    ///
    /// # Errors
    /// When the name or the token is not usable.
    pub fn new(
        token: Token,
        identity: &IdentityKey,
        name: &str,
        seed: [u8; 32],
        now: Instant,
        patience: Duration,
    ) -> Result<Self, JoinerError> {
        todo!()
    }

    /// Takes a datagram; whatever is not the issuer's answer is ignored.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        todo!()
    }

    /// Asks again when it is time, or gives up.
    pub fn handle_timeout(&mut self, now: Instant) {
        todo!()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        todo!()
    }

    /// How it ended; at most one event.
    pub fn poll_event(&mut self) -> Option<JoinEvent> {
        todo!()
    }

    /// When to call [`Self::handle_timeout`] next; `None` when it ended.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }
}

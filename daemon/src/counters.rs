//! What the packet path dropped outside the packet filter, one counter per reason.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! path_drops {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a datagram or packet was dropped before the filter saw it, or after it let it pass.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum PathDrop {
            $($(#[$doc])* $variant,)*
        }

        impl PathDrop {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name used as a counter label.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

path_drops! {
    /// A datagram longer than the receive buffer.
    Truncated => "underlay_truncated",
    /// A datagram that is neither WireGuard nor gossip by its form.
    Malformed => "underlay_malformed",
    /// A data message for a session we do not have.
    UnknownSession => "wireguard_unknown_session",
    /// A data message that did not authenticate.
    Authentication => "wireguard_authentication",
    /// A data message seen before, too old, or at the end of the counter's range.
    Replay => "wireguard_replay",
    /// A handshake message refused by form, rate, first MAC or authentication.
    Handshake => "wireguard_handshake",
    /// A handshake message with no room in the queue to the control thread.
    HandshakeQueue => "wireguard_handshake_queue",
    /// A gossip datagram with no room in the queue to the gossip task.
    GossipQueue => "gossip_queue",
    /// A plain packet from an address that is no validated peer's.
    UnknownSource => "plain_unknown_source",
    /// A plain packet from a peer whose packets are carried otherwise.
    WrongEncapsulation => "plain_wrong_encapsulation",
    /// A GRE packet without, with a surplus, or with a wrong key.
    GreKey => "gre_key",
    /// A GRE packet with a wrong, missing or surplus checksum or sequence number.
    GreHeader => "gre_header",
    /// An inner packet that is no valid IP packet.
    Inner => "inner_malformed",
    /// Congestion marked outside on a packet that cannot carry the mark (RFC 6040).
    Congestion => "ecn_not_capable",
    /// No session yet, and the held packets were too many or too old.
    NoSession => "no_session",
    /// The peer's address is not known, or its plain source is not validated.
    NoPath => "no_path",
    /// The underlay socket's buffer is full.
    UnderlayFull => "underlay_full",
    /// The kernel refused to send.
    UnderlayRefused => "underlay_refused",
    /// The datagram exceeds the underlay's MTU.
    UnderlayTooBig => "underlay_too_big",
    /// The TUN device refused a packet, because it is down or gone.
    Device => "device",
    /// One of our own underlay datagrams, read from the TUN: the underlay is routed into the overlay.
    Loop => "loop",
    /// A super-packet that cannot be cut as the device says.
    Offload => "offload",
}

/// The counters, shared by all workers.
#[derive(Debug)]
pub struct PathCounters([AtomicU64; PathDrop::ALL.len()]);

impl Default for PathCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl PathCounters {
    /// Counts dropped packets.
    pub fn add(&self, reason: PathDrop, packets: u64) {
        self.0[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    /// Every reason with its count.
    pub fn all(&self) -> impl Iterator<Item = (PathDrop, u64)> + '_ {
        PathDrop::ALL.iter().map(|reason| (*reason, self.0[*reason as usize].load(Ordering::Relaxed)))
    }
}

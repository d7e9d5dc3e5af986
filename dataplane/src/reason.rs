//! Why packets are dropped, and the counters: one per reason, and what was accepted.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a packet was dropped; each reason is a counter.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
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

reasons! {
    /// The headers are cut off or contradict each other.
    Malformed => "malformed",
    /// An IPv4 source route or an IPv6 routing header that still routes.
    SourceRoute => "source_route",
    /// IPv4 options, which have no use on the overlay.
    IpOptions => "ip_options",
    /// Source and destination are the same address.
    Land => "land",
    /// A multicast source or destination.
    Multicast => "multicast",
    /// A broadcast source or destination.
    Broadcast => "broadcast",
    /// A link-local source or destination.
    LinkLocal => "link_local",
    /// A cloud metadata address.
    Metadata => "metadata",
    /// Any other address that never belongs on the wire: loopback, unspecified, reserved, IPv4-mapped.
    Martian => "martian",
    /// IPIP, 6in4 or GRE sent by a workload.
    NestedTunnel => "nested_tunnel",
    /// An ICMP message that configures hosts: redirect, router advertisement, neighbour discovery, group membership.
    IcmpControl => "icmp_control",
    /// An ICMP message that is neither echo nor an error.
    IcmpType => "icmp_type",
    /// From the TUN: the source is owned by another host, or by nobody and not on its way to a local container.
    SpoofedSource => "spoofed_source",
    /// From a peer: the source is not owned by that peer.
    ForeignSource => "foreign_source",
    /// From a peer: the destination is not on this host.
    Transit => "transit",
    /// The destination lies in the overlay and nobody owns it.
    NoOwner => "no_owner",
    /// The peer is not in the tables.
    UnknownPeer => "unknown_peer",
    /// A rule denies the packet.
    PolicyDeny => "policy_deny",
    /// A rule rejects the packet.
    PolicyReject => "policy_reject",
    /// No rule matches and the default refuses the packet.
    PolicyDefault => "policy_default",
    /// The flow was allowed once and no longer is.
    PolicyRevoked => "policy_revoked",
    /// A rule needs labels of an address that its host has not told in time.
    IdentityUnknown => "identity_unknown",
    /// A combination of TCP flags that no stack sends.
    TcpFlags => "tcp_flags",
    /// A TCP segment other than SYN that belongs to no flow.
    TcpNoFlow => "tcp_no_flow",
    /// A TCP segment that does not fit the state of its flow.
    TcpState => "tcp_state",
    /// A TCP segment outside the windows of its flow.
    TcpWindow => "tcp_window",
    /// A TCP reset outside the window.
    TcpReset => "tcp_reset",
    /// An ICMP echo reply nobody asked for, or against the direction of its flow.
    IcmpNoFlow => "icmp_no_flow",
    /// An ICMP error that quotes no live flow.
    IcmpUnrelated => "icmp_unrelated",
    /// More ICMP errors for one flow than 10 in a second.
    IcmpRate => "icmp_rate",
    /// The flow table is full of flows that may not be evicted.
    ConntrackFull => "conntrack_full",
    /// The source holds its whole share of the flow table.
    SourceShare => "source_share",
    /// A fragment overlaps another of its datagram, or contradicts its length.
    FragmentOverlap => "fragment_overlap",
    /// More fragments than may be held.
    FragmentLimit => "fragment_limit",
    /// A held fragment whose first fragment did not come in time.
    FragmentTimeout => "fragment_timeout",
    /// A fragment of a datagram whose first fragment was dropped.
    FragmentRefused => "fragment_refused",
    /// The packet exceeds the peer's inner MTU and must not be fragmented.
    TooBig => "too_big",
    /// More bits per second than a limit allows.
    RateLimit => "rate_limit",
    /// More packets per second than a limit allows.
    PacketRateLimit => "packet_rate_limit",
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Packets and bytes; a super-packet counts as its segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Inner bytes.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn add(&mut self, packets: u32, bytes: usize) {
        self.packets += u64::from(packets);
        self.bytes += bytes as u64;
    }
}

/// What one engine did, in totals since it was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counters {
    dropped: [u64; DropReason::COUNT],
    /// Accepted on their way out of the TUN.
    pub outbound: Traffic,
    /// Accepted on their way in from peers.
    pub inbound: Traffic,
    /// Answers built: ICMP errors and TCP resets.
    pub replies: u64,
}

impl Default for Counters {
    fn default() -> Self {
        let none = Traffic::default();
        Self { dropped: [0; DropReason::COUNT], outbound: none, inbound: none, replies: 0 }
    }
}

impl Counters {
    /// Packets dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Every reason with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.dropped(*reason)))
    }

    /// Packets dropped for any reason.
    #[must_use]
    pub fn total_dropped(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Adds another engine's totals, to sum over workers.
    pub fn merge(&mut self, other: &Self) {
        for (own, theirs) in self.dropped.iter_mut().zip(other.dropped) {
            *own += theirs;
        }
        for (own, theirs) in [(&mut self.outbound, other.outbound), (&mut self.inbound, other.inbound)] {
            own.packets += theirs.packets;
            own.bytes += theirs.bytes;
        }
        self.replies += other.replies;
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason, packets: u32) {
        self.dropped[reason as usize] += u64::from(packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_labels() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
    }

    #[test]
    fn merge_adds_every_counter() {
        let mut a = Counters::default();
        a.count_drop(DropReason::TooBig, 2);
        a.outbound.add(3, 4500);
        let mut b = a.clone();
        b.replies = 1;
        b.merge(&a);
        assert_eq!((b.dropped(DropReason::TooBig), b.total_dropped(), b.replies), (4, 4, 1));
        assert_eq!(b.outbound, Traffic { packets: 6, bytes: 9000 });
    }
}

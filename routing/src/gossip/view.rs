//! What the gossip state machine reports: datagrams to send, events, and the state of each member.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::{HostBody, PlainStatus, RecordKey, TraceAnswer, TracedPacket};
use overlay_wire::membership::SignedCertificate;

use super::membership::{Authority, ClusterPolicy, Standing};
use crate::identity::IdentityPublic;
use crate::rib::Refused;

/// A datagram to send from the shared UDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The destination.
    pub to: SocketAddr,
    /// The payload, at most 1,232 bytes.
    pub bytes: Vec<u8>,
}

/// What this host makes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// Never heard of in this run.
    New,
    /// Answers.
    Up,
    /// Stopped answering; being verified.
    Suspect,
    /// Does not answer this host, but answers others.
    Degraded,
    /// Left, or failed every verification round.
    Down,
}

impl MemberState {
    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }

    /// Whether the member's records are in use.
    #[must_use]
    pub fn is_reachable(self) -> bool {
        matches!(self, Self::Up | Self::Suspect | Self::Degraded)
    }
}

/// Why a member is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// Every own verification round failed, direct and through others.
    NoAnswer,
    /// The member said that it is stopping.
    Left,
}

impl DownReason {
    /// The words used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoAnswer => "no answer to probes",
            Self::Left => "left",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GossipEvent {
    /// A member answered for the first time, or again.
    MemberUp {
        /// The member.
        host: HostId,
    },
    /// A member is unreachable from here, though others reach it.
    MemberDegraded {
        /// The member.
        host: HostId,
    },
    /// A member was given up; it is still tried.
    MemberDown {
        /// The member.
        host: HostId,
        /// Why.
        reason: DownReason,
    },
    /// A record was stored, replaced or withdrawn.
    RecordChanged {
        /// The record.
        key: RecordKey,
    },
    /// A member's keys changed: its WireGuard key, its box key, and with it the GRE key.
    KeysChanged {
        /// The member.
        host: HostId,
    },
    /// A member is reached at another address.
    EndpointChanged {
        /// The member.
        host: HostId,
        /// The address now in use.
        endpoint: SocketAddr,
    },
    /// A sealed probe was answered from exactly this source.
    SourceValidated {
        /// The member.
        host: HostId,
        /// The source.
        source: SocketAddr,
    },
    /// What the member thinks of carrying our packets without encryption changed.
    PlainStatusChanged {
        /// The member.
        host: HostId,
        /// Its opinion.
        plain: PlainStatus,
    },
    /// The member answered a probe that carried another opinion of ours than the one it had heard before.
    PlainStatusHeard {
        /// The member.
        host: HostId,
    },
    /// [`super::Gossip::rib`] changed.
    RoutesChanged,
    /// [`super::Gossip::networks`] changed.
    NetworksChanged,
    /// [`super::Gossip::identities`] changed.
    IdentitiesChanged,
    /// A member gave labels to addresses that it does not own, or to its host's own; they do not count.
    IdentityRefused {
        /// The member.
        host: HostId,
        /// One of the addresses.
        address: IpAddr,
        /// How many there are.
        count: usize,
    },
    /// A claim was refused that was not refused before.
    RouteRefused(Box<Refused>),
    /// A member told what it made of our announced prefixes.
    VerdictsReceived {
        /// The member.
        from: HostId,
    },
    /// An owner signed two different records with one version.
    Equivocation {
        /// The record.
        key: RecordKey,
        /// The version.
        version: u64,
    },
    /// A record signed with this host's identity comes from a run that is not older than this one: a cloned machine.
    OwnIdentityElsewhere {
        /// The boot epoch of the other run.
        boot_epoch: u64,
    },
    /// An older run of a member tries first contact while a newer one is known: a cloned machine, or a boot epoch that
    /// went backwards. Reported at most once a minute per member.
    IdentityInUseTwice {
        /// The member.
        host: HostId,
        /// Where the older run's first contact came from.
        from: SocketAddr,
    },
    /// Members see this host at an address that is not its own, and it is published.
    ReflexiveAddress {
        /// The address.
        address: SocketAddr,
    },
    /// A host became a member by its certificate.
    MemberAdded {
        /// The member.
        host: HostId,
    },
    /// A host is no member any more, because it was revoked or its authority retired: cut its sessions and flows.
    MemberRevoked {
        /// The host.
        host: HostId,
    },
    /// This host itself was revoked: the others are silent to it for ever.
    OwnIdentityRevoked,
    /// A member's certificate expired, or counts again.
    StandingChanged {
        /// The member; this host too.
        host: HostId,
        /// What the certificate is worth now.
        standing: Standing,
    },
    /// Authority records changed: store [`super::Gossip::records_to_keep`] and [`super::Gossip::trusted`].
    TrustChanged,
    /// A host asks to become a member; for [`crate::membership::Issuer::handle_join`]. Its rate was checked.
    JoinReceived {
        /// Where the answer goes.
        from: SocketAddr,
        /// The whole datagram.
        datagram: Vec<u8>,
    },
    /// A member asks for a new certificate; answer by [`super::Gossip::answer_certificate_request`].
    CertificateRequested {
        /// The member.
        host: HostId,
        /// Goes into the answer.
        nonce: u64,
        /// The certificate it has now.
        held: Box<SignedCertificate>,
    },
    /// This host has a new certificate, published already: store it.
    CertificateRenewed {
        /// The certificate.
        certificate: Box<SignedCertificate>,
    },
    /// The cluster has another policy.
    PolicyChanged(Box<ClusterPolicy>),
    /// So many certificates are out of their time at once that this host's clock must be wrong, or that is over.
    ClockSuspected {
        /// Whether it is so now.
        suspected: bool,
    },
    /// A probe asked for by [`super::Gossip::check`] was answered.
    CheckAnswered {
        /// The member.
        host: HostId,
        /// How long the answer took.
        round_trip: Duration,
    },
    /// A member asks for this host's wall clock; answer with [`super::Gossip::tell_clock`].
    ClockAsked {
        /// The member.
        host: HostId,
        /// The request's nonce.
        nonce: u64,
    },
    /// A member told what its clock says, asked by [`super::Gossip::ask_clock`].
    ClockTold {
        /// The member.
        host: HostId,
        /// Its wall clock when it answered, in milliseconds since 1970.
        unix_ms: u64,
        /// How long the answer took.
        round_trip: Duration,
    },
    /// A member asks what this host would do with a packet; answer with [`super::Gossip::tell_trace`], or not at all.
    TraceAsked {
        /// The member.
        host: HostId,
        /// The request's nonce.
        nonce: u64,
        /// The packet.
        packet: TracedPacket,
    },
    /// The member asked by [`super::Gossip::ask_trace`] told what it would do.
    TraceTold {
        /// The request's nonce.
        nonce: u64,
        /// What it said.
        answer: TraceAnswer,
    },
}

/// The state of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// The member.
    pub host: HostId,
    /// Its name in the configuration.
    pub name: String,
    /// Its identity key.
    pub identity: IdentityPublic,
    /// What this host makes of it.
    pub state: MemberState,
    /// Since when.
    pub since: Instant,
    /// Why, when it is down.
    pub down_reason: Option<DownReason>,
    /// Where its datagrams go; learned from the newest authenticated datagram, else configured.
    pub endpoint: Option<SocketAddr>,
    /// Every address under which it is tried, the one in use first.
    pub candidates: Vec<SocketAddr>,
    /// The source a sealed probe sent to that very address was last answered from.
    pub validated_source: Option<SocketAddr>,
    /// The address under which it sees this host.
    pub observed: Option<SocketAddr>,
    /// Smoothed round trip of direct probes.
    pub rtt: Option<Duration>,
    /// Lost direct probes among the last 64, in percent.
    pub loss_percent: u8,
    /// When something authenticated last came from it directly.
    pub last_heard: Option<Instant>,
    /// What it thinks of carrying our packets without encryption.
    pub plain: PlainStatus,
    /// What it has heard us think of carrying its packets without encryption.
    pub plain_heard: PlainStatus,
    /// What it says about itself; `None` before its HOST record arrived.
    pub host_record: Option<HostBody>,
    /// On what its membership rests.
    pub authority: Authority,
    /// What that is worth now.
    pub standing: Standing,
}

/// Datagrams counted by what became of them; all but the first two were answered with silence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GossipCounters {
    /// Datagrams accepted.
    pub received: u64,
    /// Datagrams handed out for sending.
    pub sent: u64,
    /// Not an envelope of a known kind and version.
    pub malformed: u64,
    /// Sealed for nobody here, or by a key that is gone.
    pub unknown_sender: u64,
    /// The seal, a signature or an inner length is wrong.
    pub unauthenticated: u64,
    /// Seen before, or older than the window.
    pub replayed: u64,
    /// Over a source's or a peer's rate.
    pub rate_limited: u64,
    /// Authentic, but of a kind this version does not know.
    pub unknown_message: u64,
    /// Records refused: unknown owner, signature, limits or body.
    pub records_refused: u64,
    /// Labels refused: of addresses that the signer does not own, and of hosts themselves.
    pub identities_refused: u64,
    /// Datagrams dropped because the send queue was full.
    pub queue_full: u64,
}

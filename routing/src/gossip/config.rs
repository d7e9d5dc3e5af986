//! What the gossip state machine is told: this host, the members, and their grants.

use std::net::SocketAddr;

use blake2::{Blake2s256, Digest};
use overlay_wire::gossip::Grant;
use overlay_wire::gossip::body::BodyError;
use overlay_wire::{Encapsulation, HostId, Mtu, Prefix};

use crate::identity::{IdentityKey, IdentityPublic};
use crate::membership::CertificateError;

/// Everything [`super::Gossip::new`] needs.
#[derive(Debug)]
pub struct GossipConfig {
    /// The host's long-lived key.
    pub identity: IdentityKey,
    /// The cluster id; see [`cluster_id`].
    pub cluster: [u8; 32],
    /// What this host says about itself.
    pub own: OwnHost,
    /// The other members; an entry with this host's own identity is ignored.
    pub members: Vec<StaticMember>,
    /// Prefixes of foreign peers, in configuration order.
    pub foreign: Vec<ForeignPrefixes>,
}

/// What this host publishes in its HOST record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnHost {
    /// The host's name.
    pub name: String,
    /// Where it can be reached, best first, at most 8.
    pub endpoints: Vec<SocketAddr>,
    /// The X25519 WireGuard key of this run.
    pub wireguard_key: [u8; 32],
    /// The encapsulation it asks for.
    pub encapsulation: Encapsulation,
    /// The fixed MTU of its TUN device.
    pub mtu: Mtu,
    /// Feature bits.
    pub features: u64,
    /// The software version, for display.
    pub software: String,
    /// Its own prefixes, at most 16.
    pub prefixes: Vec<Prefix>,
}

/// A member as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticMember {
    /// The name in the configuration.
    pub name: String,
    /// The identity key.
    pub identity: IdentityPublic,
    /// Where to try first contact.
    pub endpoints: Vec<SocketAddr>,
    /// What the member may announce.
    pub allow: Vec<Grant>,
}

impl StaticMember {
    /// The host id that follows from the identity.
    #[must_use]
    pub fn host_id(&self) -> HostId {
        self.identity.host_id()
    }
}

/// The prefixes of one foreign peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignPrefixes {
    /// The name in the configuration.
    pub name: String,
    /// What the peer is the owner of.
    pub allowed_ips: Vec<Prefix>,
}

/// Why the state machine refused its input; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GossipError {
    /// The host's own record does not fit or is not valid.
    #[error("the host's own record cannot be published: {0}")]
    OwnRecord(#[from] BodyError),
    /// More prefixes than one owner may announce.
    #[error("{count} prefixes are announced; at most {max} are counted")]
    TooManyRoutes {
        /// Prefixes given.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// More members than the tables hold.
    #[error("{count} members are configured; at most {max} are supported")]
    TooManyMembers {
        /// Members given.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The certificate is of no trusted authority.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The certificate is another host's.
    #[error("the certificate belongs to another identity than this host's")]
    ForeignCertificate,
    /// This host may not publish a policy.
    #[error("this host's certificate does not carry the right to publish a policy")]
    NoPolicyRight,
    /// A policy of this or a higher revision is known.
    #[error("revision {revision} is not above revision {known}, which is known already")]
    OldRevision {
        /// The revision given.
        revision: u64,
        /// The highest revision known.
        known: u64,
    },
}

/// The 32-byte cluster id that follows from a cluster's name.
#[must_use]
pub fn cluster_id(name: &str) -> [u8; 32] {
    Blake2s256::new().chain_update(b"overlay cluster v1\0").chain_update(name.as_bytes()).finalize().into()
}

//! What a member keeps of its membership, as JSON inside a state file: the cluster, its authorities, the own certificate,
//! the authority's records (revocations above all), and where members were seen last.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_config::{MembershipLayer, PublicKey};
use overlay_routing::policy::SavedPolicy;
use overlay_wire::gossip::Grant;
use overlay_wire::membership::{ClusterSettings, SignedCertificate};
use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, Prefix};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes, in JSON as base64.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Where a member was seen last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPeer {
    /// Its certificate.
    pub(crate) certificate: Bytes,
    /// Its endpoints, best first.
    pub(crate) endpoints: Vec<SocketAddr>,
}

/// What a member keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    /// The cluster's name.
    pub(crate) cluster: String,
    /// The cluster's pool.
    pub(crate) pool: Vec<Prefix>,
    /// What hosts ask for unless told otherwise.
    pub(crate) encapsulation: Encapsulation,
    /// The cluster's UDP port.
    pub(crate) listen_port: u16,
    /// What happens to packets that no rule matches.
    pub(crate) policy: DefaultPolicy,
    /// The MTU of TUN devices, where it was set by hand.
    pub(crate) mtu: Option<u16>,
    /// Underlay prefixes inside which this host accepts unencrypted packets.
    pub(crate) trusted_underlay: Vec<Prefix>,
    /// The authorities' public keys, the signing one first.
    pub(crate) authorities: Vec<PublicKey>,
    /// The own certificate.
    pub(crate) certificate: Bytes,
    /// Records of the authority: trusted keys and revoked hosts.
    pub(crate) records: Vec<Bytes>,
    /// Members and where they were seen last.
    pub(crate) peers: Vec<SavedPeer>,
    /// Whether a backup of the authority's key was made here.
    pub(crate) has_backup: bool,
    /// The policy of the whole cluster: what is in force, what is on trial, and what can be gone back to.
    #[serde(default)]
    pub(crate) cluster_policy: SavedPolicy,
}

impl Kept {
    /// What a host keeps once it has its certificate.
    pub(crate) fn new(
        settings: &ClusterSettings,
        authorities: Vec<PublicKey>,
        certificate: &SignedCertificate,
    ) -> Self {
        Self {
            cluster: settings.name.clone(),
            pool: settings.pool.clone(),
            encapsulation: settings.encapsulation,
            listen_port: settings.listen_port,
            policy: settings.policy_default,
            mtu: settings.mtu,
            trusted_underlay: Vec::new(),
            authorities,
            certificate: Bytes(certificate.to_bytes()),
            records: Vec::new(),
            peers: Vec::new(),
            has_backup: false,
            cluster_policy: SavedPolicy::default(),
        }
    }

    /// The own certificate; `None` when its bytes are none, which their checksum rules out.
    pub(crate) fn certificate(&self) -> Option<SignedCertificate> {
        SignedCertificate::decode(&self.certificate.0).ok()
    }

    /// This host's subnets.
    pub(crate) fn own_prefixes(&self) -> Vec<Prefix> {
        self.certificate().map(|signed| own_prefixes(&signed.certificate.grants, &self.pool)).unwrap_or_default()
    }

    /// The layer of the configuration; `place` names the state file.
    pub(crate) fn layer(&self, place: String) -> Option<MembershipLayer> {
        let certificate = self.certificate()?.certificate;
        Some(MembershipLayer {
            place,
            prefixes: own_prefixes(&certificate.grants, &self.pool),
            name: certificate.name,
            cluster: self.cluster.clone(),
            pool: self.pool.clone(),
            encapsulation: Some(self.encapsulation),
            trusted_underlay: self.trusted_underlay.clone(),
            listen_port: Some(self.listen_port),
            policy: Some(self.policy),
        })
    }
}

/// The subnets of a host: the prefixes of the pool that its certificate names one by one.
fn own_prefixes(grants: &[Grant], pool: &[Prefix]) -> Vec<Prefix> {
    let mut prefixes: Vec<Prefix> = grants
        .iter()
        .filter(|grant| matches!(grant.kind(), overlay_wire::gossip::GrantKind::Explicit))
        .map(Grant::prefix)
        .filter(|prefix| pool.iter().any(|pool| pool.covers(prefix)))
        .collect();
    // IPv4 first, as configuration files usually have it.
    prefixes.sort_by_key(|prefix| !prefix.is_ipv4());
    prefixes
}

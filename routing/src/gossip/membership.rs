//! Members by certificate: what the machine is told about authorities, and what it tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use overlay_wire::HostId;
use overlay_wire::gossip::Record;
use overlay_wire::membership::{PolicyStatus, SignedCertificate};

use super::Gossip;
use super::config::GossipError;
use crate::identity::IdentityPublic;

/// Everything the machine needs to trust authorities beside the configured members.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    /// The wall clock, Unix seconds.
    pub unix_now: u64,
    /// The keys of the authorities that are trusted: those pinned at join or by [`Gossip::trusted`] last.
    pub trusted: Vec<IdentityPublic>,
    /// This host's certificate.
    pub certificate: Option<SignedCertificate>,
    /// Members known from elsewhere, as the issuer after a join.
    pub introductions: Vec<Introduction>,
    /// Records kept from an earlier run: [`Gossip::records_to_keep`].
    pub remembered: Vec<Record>,
    /// The cluster's policy kept from an earlier run.
    pub policy: Option<ClusterPolicy>,
    /// Whether this host holds the authority's key: JOINs and requests for certificates become events.
    pub is_issuer: bool,
}

/// A member and where to try it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Its certificate.
    pub certificate: SignedCertificate,
    /// Its endpoints.
    pub endpoints: Vec<SocketAddr>,
}

/// The policy of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Its revision; the greater (revision, hash) counts.
    pub revision: u64,
    /// The hash of the text.
    pub hash: [u8; 32],
    /// Who published it.
    pub author: HostId,
    /// The text.
    pub text: String,
}

/// On what a member's membership rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// On this host's configuration.
    Static,
    /// On a certificate.
    Certificate(Box<SignedCertificate>),
}

/// What a member's certificate is worth now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// All of it: it is configured here, or its certificate is valid.
    Full,
    /// Its certificate has expired: it keeps path and prefixes, its rights do not count, it may announce nothing new.
    Expired,
    /// Its certificate is not valid yet; treated as expired.
    NotYet,
}

impl Gossip {
    /// Enters a cluster with authorities, or replaces what was known of them.
    ///
    /// # Errors
    /// When the certificate is not this host's or not of a trusted authority, or the HOST record is too large beside it;
    /// nothing changes then.
    pub fn set_membership(&mut self, membership: Membership, now: Instant) -> Result<(), GossipError> {
        todo!()
    }

    /// Tells the wall clock, Unix seconds: at least once a minute, and whenever it jumped. It is used for nothing but the
    /// validity of certificates.
    pub fn set_unix_time(&mut self, unix_now: u64, now: Instant) {
        todo!()
    }

    /// Takes over this host's renewed certificate and publishes it.
    ///
    /// # Errors
    /// As [`Self::set_membership`].
    pub fn set_certificate(&mut self, certificate: SignedCertificate, now: Instant) -> Result<(), GossipError> {
        todo!()
    }

    /// Asks an issuer for a new certificate now, as if the time had come.
    pub fn renew_certificate(&mut self, now: Instant) {
        todo!()
    }

    /// Sends a member the certificate it asked for by [`super::GossipEvent::CertificateRequested`].
    pub fn answer_certificate_request(&mut self, member: HostId, nonce: u64, certificate: SignedCertificate) {
        todo!()
    }

    /// Publishes authority records of this host's issuer; they are pushed before everything else.
    pub fn publish_authority(&mut self, records: Vec<Record>, now: Instant) {
        todo!()
    }

    /// Publishes a policy for the whole cluster; gives the hash of the text.
    ///
    /// # Errors
    /// When this host lacks the right, the text is too long, or a higher revision is known.
    pub fn publish_policy(&mut self, revision: u64, text: &str, now: Instant) -> Result<[u8; 32], GossipError> {
        todo!()
    }

    /// Tells all members what became of the cluster's policy here.
    pub fn publish_policy_status(&mut self, status: PolicyStatus, now: Instant) {
        todo!()
    }

    /// The cluster's policy: the greatest (revision, hash) of which every piece is known.
    #[must_use]
    pub fn policy(&self) -> Option<&ClusterPolicy> {
        todo!()
    }

    /// What each member, this host included, made of the cluster's policy.
    #[must_use]
    pub fn policy_statuses(&self) -> BTreeMap<HostId, PolicyStatus> {
        todo!()
    }

    /// This host's certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&SignedCertificate> {
        todo!()
    }

    /// The keys of the authorities that are trusted now; keep them for the next start.
    #[must_use]
    pub fn trusted(&self) -> Vec<IdentityPublic> {
        todo!()
    }

    /// Every host known to be revoked.
    #[must_use]
    pub fn revoked(&self) -> &BTreeSet<HostId> {
        todo!()
    }

    /// The records to keep for the next start: authority, certificate, policy and HOST records.
    #[must_use]
    pub fn records_to_keep(&self) -> Vec<Record> {
        todo!()
    }

    /// Whether so many certificates are out of their time at once that this host's clock must be wrong; they all count then.
    #[must_use]
    pub fn is_clock_suspect(&self) -> bool {
        todo!()
    }

    pub(super) fn handle_join(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        todo!()
    }

    pub(super) fn handle_certificate_request(&mut self, host: HostId, nonce: u64) {
        todo!()
    }

    pub(super) fn handle_certificate(&mut self, nonce: u64, certificate: SignedCertificate, now: Instant) {
        todo!()
    }
}

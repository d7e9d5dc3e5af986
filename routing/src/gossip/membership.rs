//! Members by certificate: what the machine is told about authorities, and what it tells.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use overlay_wire::HostId;
use overlay_wire::gossip::body::MAX_ENDPOINTS;
use overlay_wire::gossip::{HostBody, Message, Record, RecordKey, RecordKind};
use overlay_wire::membership::SignedCertificate;
use overlay_wire::membership::certificate::{certificate_body, decode_certificate_body};

use super::config::{GossipError, StaticMember};
use super::limiter::SourceKind;
use super::peer::Peer;
use super::publish::is_valid_body;
use super::renewal::Renewal;
use super::spread::urgency;
use super::view::{GossipEvent, MemberState};
use super::{Gossip, MAX_MEMBERS};
use crate::identity::IdentityPublic;
use crate::membership::verify_certificate;
use crate::rib::ClaimAuthority;

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
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Standing {
    /// All of it: it is configured here, or its certificate is valid.
    #[default]
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
        if let Some(certificate) = &membership.certificate {
            self.check_own(certificate, &membership.trusted)?;
        }
        let before = std::mem::replace(&mut self.trust.certificate, membership.certificate.clone());
        let body = match self.host_body(&self.own) {
            Ok(body) => body,
            Err(error) => {
                self.trust.certificate = before;
                return Err(error);
            }
        };
        self.trust.unix = Some((membership.unix_now, now));
        self.trust.pinned = membership.trusted;
        self.trust.is_issuer = membership.is_issuer;
        if self.trust.policy.is_none() {
            self.trust.policy = membership.policy;
        }
        self.publish(self.own_key(RecordKind::HOST), body, now);
        self.publish_certificate(now);
        self.settle_trust(now);
        self.remember(membership.remembered, now);
        for introduction in membership.introductions {
            self.introduce_member(introduction, now);
        }
        self.refresh_endpoints();
        self.settle_standing(now);
        self.settle_policy();
        self.settle_routes();
        Ok(())
    }

    /// Tells the wall clock, Unix seconds: at least once a minute, and whenever it jumped. It is used for nothing but the
    /// validity of certificates.
    pub fn set_unix_time(&mut self, unix_now: u64, now: Instant) {
        self.trust.unix = Some((unix_now, now));
        self.settle_standing(now);
        self.settle_routes();
    }

    /// Takes over this host's renewed certificate and publishes it.
    ///
    /// # Errors
    /// As [`Self::set_membership`].
    pub fn set_certificate(&mut self, certificate: SignedCertificate, now: Instant) -> Result<(), GossipError> {
        self.check_own(&certificate, &self.trust.trusted)?;
        let before = self.trust.certificate.replace(certificate);
        if let Err(error) = self.host_body(&self.own) {
            self.trust.certificate = before;
            return Err(error);
        }
        self.publish_certificate(now);
        self.settle_standing(now);
        self.settle_routes();
        Ok(())
    }

    /// Says whether this host holds the authority's key: JOINs and requests for certificates become events then.
    pub fn set_issuer(&mut self, is_issuer: bool) {
        self.trust.is_issuer = is_issuer;
    }

    /// Asks an issuer for a new certificate now, as if the time had come.
    pub fn renew_certificate(&mut self, now: Instant) {
        self.trust.renewal = Renewal::by_hand();
        self.renewal_tick(now);
    }

    /// Sends a member the certificate it asked for by [`GossipEvent::CertificateRequested`]; this host's own is taken over.
    pub fn answer_certificate_request(
        &mut self,
        member: HostId,
        nonce: u64,
        certificate: SignedCertificate,
        now: Instant,
    ) {
        if member == self.host {
            self.handle_certificate(nonce, certificate, now);
        } else {
            self.send(member, &Message::Certificate { nonce, certificate: Box::new(certificate) });
        }
    }

    /// Publishes authority records of this host's issuer; they are pushed before everything else.
    pub fn publish_authority(&mut self, records: Vec<Record>, now: Instant) {
        records.into_iter().for_each(|record| self.accept_record(record, now));
        self.settle_routes();
    }

    /// This host's certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&SignedCertificate> {
        self.trust.certificate.as_ref()
    }

    /// What this host's certificate is worth now.
    #[must_use]
    pub fn own_standing(&self) -> Standing {
        self.trust.standing
    }

    /// The keys of the authorities that are trusted now; keep them for the next start.
    #[must_use]
    pub fn trusted(&self) -> &[IdentityPublic] {
        &self.trust.trusted
    }

    /// Every host known to be revoked.
    #[must_use]
    pub fn revoked(&self) -> &BTreeSet<HostId> {
        &self.trust.revoked
    }

    /// The records to keep for the next start: authority, certificate, policy and HOST records.
    #[must_use]
    pub fn records_to_keep(&self) -> Vec<Record> {
        let kept = [RecordKind::HOST, RecordKind::CERTIFICATE, RecordKind::AUTHORITY, RecordKind::POLICY];
        self.store.iter().filter(|record| kept.contains(&record.key.kind)).cloned().collect()
    }

    /// Whether so many certificates are out of their time at once that this host's clock must be wrong; they all count then.
    #[must_use]
    pub fn is_clock_suspect(&self) -> bool {
        self.trust.clock_suspect
    }

    /// A JOIN is the issuer's business; here only its rate is checked.
    pub(super) fn handle_join(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        if !self.trust.is_issuer || self.trust.clock_suspect {
            self.counters.unknown_sender += 1;
        } else if self.contacts.allow(from.ip(), SourceKind::Stranger, now) {
            self.emit(GossipEvent::JoinReceived { from, datagram: datagram.to_vec() });
        } else {
            self.counters.rate_limited += 1;
        }
    }

    /// Takes a record of a host that is not known: by a certificate that verifies it becomes a member.
    pub(super) fn admit_by_certificate(&mut self, record: Record, now: Instant) -> bool {
        let Ok(certificate) = decode_certificate_body(&record.body) else { return false };
        let Ok(identity) = verify_certificate(&certificate, &self.cluster, &self.trust.trusted) else { return false };
        let signed = record.signed_bytes(&self.cluster);
        if identity.host_id() != record.key.owner
            || !is_valid_body(&record)
            || identity.verify(&signed, &record.signature).is_err()
            || !self.add_member(certificate, identity, Vec::new(), now)
        {
            return false;
        }
        let key = record.key;
        self.store.merge(record);
        self.queue_push(key, now);
        self.emit(GossipEvent::RecordChanged { key });
        true
    }

    /// Adds a member whose certificate was verified, unless it is revoked or the table is full.
    fn add_member(
        &mut self,
        certificate: SignedCertificate,
        identity: IdentityPublic,
        endpoints: Vec<SocketAddr>,
        now: Instant,
    ) -> bool {
        let host = identity.host_id();
        let is_full = self.peers.len() >= MAX_MEMBERS && !self.peers.contains_key(&host);
        if host == self.host || is_full || self.trust.revoked.contains(&host) {
            return false;
        }
        if let Some(peer) = self.peers.get_mut(&host) {
            peer.member.endpoints.extend(endpoints);
            return true;
        }
        let said = &certificate.certificate;
        let member = StaticMember { name: said.name.clone(), identity, endpoints, allow: said.grants.clone() };
        let peer = Peer::new(member, Authority::Certificate(Box::new(certificate)), now, now);
        self.peers.insert(host, peer);
        self.emit(GossipEvent::MemberAdded { host });
        self.settle_standing(now);
        self.routes_stale = true;
        true
    }

    fn introduce_member(&mut self, introduction: Introduction, now: Instant) {
        let verified = verify_certificate(&introduction.certificate, &self.cluster, &self.trust.trusted);
        if let Ok(identity) = verified {
            self.add_member(introduction.certificate, identity, introduction.endpoints, now);
        }
    }

    /// Takes records of an earlier run: authorities first, then members, then the rest; of HOST records the addresses.
    fn remember(&mut self, mut records: Vec<Record>, now: Instant) {
        records.sort_by_key(|record| (urgency(record.key), record.key));
        // A successor may stand before the authority that names it: as many rounds as there are authorities.
        let of_authority = records.iter().filter(|record| record.key.kind == RecordKind::AUTHORITY);
        let rounds = of_authority.map(|record| record.key.owner).collect::<BTreeSet<_>>().len();
        for _ in 1..rounds {
            let of_authority = records.iter().filter(|record| record.key.kind == RecordKind::AUTHORITY);
            of_authority.cloned().collect::<Vec<_>>().into_iter().for_each(|record| self.accept_authority(record, now));
        }
        for record in records {
            if record.key.kind != RecordKind::HOST {
                self.accept_record(record, now);
            } else if let Ok(body) = HostBody::decode(&record.body)
                && let Some(peer) = self.peers.get_mut(&record.key.owner)
            {
                let known = &mut peer.member.endpoints;
                body.endpoints.into_iter().for_each(|endpoint| {
                    if !known.contains(&endpoint) && known.len() < MAX_ENDPOINTS {
                        known.push(endpoint);
                    }
                });
            }
        }
    }

    /// Whether a CERTIFICATE record of a member may be stored: it must be of a trusted authority and about the member.
    ///
    /// Of a configured member it is kept unjudged, for others to whom it means something.
    pub(super) fn is_acceptable_certificate(&self, peer: &Peer, record: &Record) -> bool {
        if record.key.kind != RecordKind::CERTIFICATE || peer.authority == Authority::Static {
            return true;
        }
        // Withdrawing it would leave a member on nothing; `forget` and revocation take members out.
        decode_certificate_body(&record.body).is_ok_and(|certificate| {
            verify_certificate(&certificate, &self.cluster, &self.trust.trusted) == Ok(peer.member.identity)
        })
    }

    /// A record that bears on membership was stored.
    pub(super) fn note_membership_record(&mut self, key: RecordKey, now: Instant) {
        match key.kind {
            RecordKind::CERTIFICATE => {
                let is_certified = self.peers.get(&key.owner).is_some_and(|peer| peer.authority != Authority::Static);
                if is_certified {
                    self.fall_back_to_certificate(key.owner);
                    self.settle_standing(now);
                    self.settle_policy();
                }
            }
            RecordKind::POLICY => self.settle_policy(),
            _ => {}
        }
    }

    /// Lets a member rest on the certificate in its record; `false` when there is none that counts.
    pub(super) fn fall_back_to_certificate(&mut self, host: HostId) -> bool {
        let record = self.store.get(&RecordKey { owner: host, kind: RecordKind::CERTIFICATE, shard: 0 });
        let Some(certificate) = record.and_then(|record| decode_certificate_body(&record.body).ok()) else {
            return false;
        };
        let verified = verify_certificate(&certificate, &self.cluster, &self.trust.trusted);
        let Some(peer) = self.peers.get_mut(&host) else { return false };
        if verified != Ok(peer.member.identity) {
            return false;
        }
        peer.member.name.clone_from(&certificate.certificate.name);
        peer.member.allow.clone_from(&certificate.certificate.grants);
        peer.authority = Authority::Certificate(Box::new(certificate));
        self.routes_stale = true;
        true
    }

    /// A member of which only the certificate was known has told where it is: try it at once.
    pub(super) fn seek_newcomer(&mut self, host: HostId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&host)
            && peer.state == MemberState::New
            && peer.authority != Authority::Static
            && peer.candidates().is_empty()
        {
            peer.seek(now);
        }
    }

    fn check_own(&self, certificate: &SignedCertificate, trusted: &[IdentityPublic]) -> Result<(), GossipError> {
        let identity = verify_certificate(certificate, &self.cluster, trusted)?;
        if identity == self.identity.public() { Ok(()) } else { Err(GossipError::ForeignCertificate) }
    }

    fn publish_certificate(&mut self, now: Instant) {
        let key = self.own_key(RecordKind::CERTIFICATE);
        let body = self.trust.certificate.as_ref().map(certificate_body).unwrap_or_default();
        if !body.is_empty() || self.store.get(&key).is_some() {
            self.publish(key, body, now);
        }
    }
}

impl Peer {
    /// What the member's claims rest on.
    pub(super) fn claim_authority(&self) -> ClaimAuthority {
        match &self.authority {
            Authority::Static => ClaimAuthority::Static,
            Authority::Certificate(held) => ClaimAuthority::Certificate {
                admitted: held.certificate.admitted,
                max_prefixes: held.certificate.max_prefixes.into(),
                expired: (self.standing != Standing::Full).then(|| self.frozen.clone()),
            },
        }
    }
}

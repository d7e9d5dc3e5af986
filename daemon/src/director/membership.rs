//! What the director does for members by certificate: tells gossip what was kept, keeps what it learns, and cuts off whom
//! an authority revoked.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use overlay_control::api::Severity;
use overlay_control::{ApiError, Code};
use overlay_dataplane::FlowSelector;
use overlay_routing::gossip::{Gossip, GossipEvent, Introduction, Membership};
use overlay_routing::identity::IdentityPublic;
use overlay_wire::HostId;
use overlay_wire::gossip::Record;
use overlay_wire::gossip::codec::Reader;
use overlay_wire::membership::SignedCertificate;

use super::Director;
use crate::core::{Core, MembershipChange};
use crate::membership::{Bytes, Kept, Work};
use crate::peers::PeerKind;

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What gossip is told of a membership that was kept.
fn membership(kept: &Kept, is_issuer: bool) -> Membership {
    let introductions = kept.peers.iter().filter_map(|peer| {
        let certificate = SignedCertificate::decode(&peer.certificate.0).ok()?;
        Some(Introduction { certificate, endpoints: peer.endpoints.clone() })
    });
    let remembered = kept.records.iter().filter_map(|bytes| {
        let mut reader = Reader::new(&bytes.0);
        Record::decode(&mut reader).ok()
    });
    Membership {
        unix_now: unix_now(),
        trusted: kept.authorities.iter().filter_map(|key| IdentityPublic::from_bytes(&key.0).ok()).collect(),
        certificate: kept.certificate(),
        introductions: introductions.collect(),
        remembered: remembered.collect(),
        policy: kept.cluster_policy.newest.clone(),
        is_issuer,
    }
}

/// Makes gossip a member by the certificate that was kept.
///
/// # Errors
/// When the certificate is not this host's, or this host is revoked.
pub(crate) fn enter(gossip: &mut Gossip, kept: &Kept, is_issuer: bool, now: Instant) -> Result<(), ApiError> {
    gossip.set_membership(membership(kept, is_issuer), now).map_err(|error| {
        ApiError::new(
            Code::Identity,
            "this host's membership does not count",
            error.to_string(),
            "`overlayctl leave`, then join again with a new token; keep a backup of identity.key with the state",
        )
    })
}

impl Director {
    /// Tells gossip the wall clock.
    pub(super) fn tell_time(&mut self) {
        self.gossip.set_unix_time(unix_now(), Instant::now());
    }

    pub(super) fn membership_change(&mut self, change: MembershipChange) {
        let now = Instant::now();
        match change {
            MembershipChange::PublishAuthority(records) => self.gossip.publish_authority(records, now),
            MembershipChange::AnswerCertificate { host, nonce, certificate } => {
                self.gossip.answer_certificate_request(host, nonce, *certificate, now);
            }
            MembershipChange::OwnCertificate(certificate) => {
                if let Err(error) = self.gossip.set_certificate(*certificate, now) {
                    self.core.events.warn("certificate-refused", None, error.to_string());
                }
            }
            MembershipChange::BecomeIssuer => self.gossip.set_issuer(true),
            MembershipChange::RenewNow => self.gossip.renew_certificate(now),
        }
        self.drain(true);
        self.keep();
    }

    /// Does what an event about membership asks for, beyond the rebuild that follows. Gives the host to be cut off.
    pub(super) fn membership_event(&mut self, event: &GossipEvent) -> Option<HostId> {
        let events = self.core.events.clone();
        let name = |host: &HostId| self.core.name_of(*host);
        match event {
            GossipEvent::MemberAdded { host } => {
                let name = self.gossip.member(*host).map_or_else(|| host.to_string(), |member| member.name);
                events.info("member-added", Some(&name), "its certificate is of a trusted authority");
                self.is_unkept = true;
            }
            GossipEvent::MemberRevoked { host } => {
                events.warn("member-revoked", Some(&name(host)), "an authority revoked it: its sessions and flows are cut");
                self.must_keep = true;
                return Some(*host);
            }
            GossipEvent::OwnIdentityRevoked => {
                events.record(
                    Severity::Error,
                    "revoked",
                    None,
                    "an authority revoked this host: no member talks to it any more; `overlayctl leave` makes it new",
                );
                self.must_keep = true;
            }
            GossipEvent::StandingChanged { host, standing } => {
                events.warn("certificate", Some(&name(host)), format!("its certificate is now {standing:?}").to_lowercase());
            }
            GossipEvent::TrustChanged => self.must_keep = true,
            GossipEvent::JoinReceived { from, datagram } => {
                // A full queue is the limit on what joiners can ask; they ask again.
                let _ = self.work.try_send(Work::Join { from: *from, datagram: datagram.clone() });
            }
            GossipEvent::CertificateRequested { host, nonce, held } => {
                let _ = self.work.try_send(Work::Renew { host: *host, nonce: *nonce, held: held.clone() });
            }
            GossipEvent::CertificateRenewed { certificate } => {
                events.info(
                    "certificate-renewed",
                    None,
                    format!("this host's certificate has number {}", certificate.certificate.serial),
                );
                self.must_keep = true;
            }
            GossipEvent::ClockSuspected { suspected: true } => events.record(
                Severity::Error,
                "clock",
                None,
                "most certificates are out of their time at once, so this host's clock must be wrong: they all count for now",
            ),
            GossipEvent::ClockSuspected { suspected: false } => events.info("clock", None, "certificates are judged again"),
            GossipEvent::RecordChanged { .. } => self.is_unkept = true,
            _ => {}
        }
        None
    }

    /// Cuts the flows of a host that is no member any more; its session went with the rebuild.
    pub(super) fn cut(&self, host: HostId) {
        if let Some(peer) = self.core.find_peer(&PeerKind::Member(host)) {
            let selector = FlowSelector { peer: Some(peer.index), ..FlowSelector::default() };
            let cut = self.core.conntrack.kill(&selector);
            tracing::info!(peer = %peer.name, flows = cut, "flows cut");
        }
    }

    /// What is to be kept now; nothing on a host without a certificate.
    fn kept(&self) -> Option<Kept> {
        let mut kept = self.keeper.borrow().clone()?;
        kept.authorities = self.gossip.trusted().iter().map(|key| overlay_config::PublicKey(*key.as_bytes())).collect();
        if let Some(certificate) = self.gossip.certificate() {
            kept.certificate = Bytes(certificate.to_bytes());
        }
        let encoded = self.gossip.records_to_keep().into_iter().map(|record| {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            Bytes(bytes)
        });
        kept.records = encoded.collect();
        kept.cluster_policy = self.policy.save();
        Some(kept)
    }

    /// Gives the keeper what changed.
    pub(super) fn keep(&mut self) {
        (self.is_unkept, self.must_keep) = (false, false);
        let Some(kept) = self.kept() else { return };
        publish(&self.core, &self.gossip);
        self.keeper.send_if_modified(|newest| {
            let differs = newest.as_ref() != Some(&kept);
            *newest = Some(kept);
            differs
        });
    }
}

/// Shows the others the own certificate and what is trusted.
pub(crate) fn publish(core: &Core, gossip: &Gossip) {
    core.own_certificate.store(gossip.certificate().cloned().map(Arc::new));
    core.trusted.store(Arc::new(gossip.trusted().to_vec()));
    core.revoked.store(Arc::new(gossip.revoked().clone()));
    core.is_clock_suspect.store(gossip.is_clock_suspect(), std::sync::atomic::Ordering::Relaxed);
}

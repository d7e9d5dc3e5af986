//! Renewal of this host's certificate, at two thirds of its validity, over all issuers in turn; and requests of others.

use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::Message;
use overlay_wire::membership::{Rights, SignedCertificate};
use rand_core::RngCore as _;

use super::Gossip;
use super::membership::Authority;
use super::view::GossipEvent;
use crate::membership::verify_certificate;

/// The first and the longest pause between two requests.
const REQUEST_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Requests of one member are this far apart at least: each costs the issuer a write to its disk.
const REQUEST_GAP: Duration = Duration::from_secs(1);

/// How far this host's renewal is.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// Asked for by hand.
    forced: bool,
    nonce: Option<u64>,
    next: Option<Instant>,
    pause: Duration,
    last: Option<HostId>,
}

impl Renewal {
    /// A renewal that is due whatever the time.
    pub(super) fn by_hand() -> Self {
        Self { forced: true, ..Self::default() }
    }
}

impl Gossip {
    /// Asks the next issuer when it is time.
    pub(super) fn renewal_tick(&mut self, now: Instant) {
        let (Some(held), Some(unix)) = (self.trust.certificate.clone(), self.trust.unix_now(now)) else { return };
        let is_due = self.trust.renewal.forced || (unix >= held.certificate.renewal_due() && !self.trust.clock_suspect);
        if !is_due || self.trust.own_revoked || self.trust.renewal.next.is_some_and(|at| at > now) {
            return;
        }
        let is_issuer = |authority: &Authority| match authority {
            Authority::Certificate(held) => held.certificate.rights.contains(Rights::ISSUER),
            Authority::Static => false,
        };
        let mut issuers: Vec<HostId> = self
            .peers
            .values()
            .filter(|peer| peer.state.is_reachable() && is_issuer(&peer.authority))
            .map(|peer| peer.host)
            .collect();
        if self.trust.is_issuer {
            issuers = vec![self.host];
        }
        let Some(first) = issuers.first().copied() else { return };
        let last = self.trust.renewal.last;
        let issuer = issuers.into_iter().find(|host| Some(*host) > last).unwrap_or(first);
        let nonce = self.rng.next_u64();
        let renewal = &mut self.trust.renewal;
        renewal.pause = (renewal.pause * 2).clamp(REQUEST_PAUSE.0, REQUEST_PAUSE.1);
        renewal.next = Some(now + renewal.pause);
        renewal.nonce = Some(nonce);
        renewal.last = Some(issuer);
        if issuer == self.host {
            self.emit(GossipEvent::CertificateRequested { host: self.host, nonce, held: Box::new(held) });
        } else {
            self.send(issuer, &Message::CertificateRequest { nonce });
        }
    }

    /// A member asks this issuer for a certificate.
    pub(super) fn handle_certificate_request(&mut self, host: HostId, nonce: u64, now: Instant) {
        if !self.trust.is_issuer || self.trust.clock_suspect {
            return;
        }
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let recent = peer.last_certificate_request.is_some_and(|at| now.saturating_duration_since(at) < REQUEST_GAP);
        let Authority::Certificate(held) = &peer.authority else { return };
        if recent {
            self.counters.rate_limited += 1;
            return;
        }
        let held = held.clone();
        peer.last_certificate_request = Some(now);
        self.emit(GossipEvent::CertificateRequested { host, nonce, held });
    }

    /// Takes the answer to the request under way: only a certificate of ours that is better than the one held.
    pub(super) fn handle_certificate(&mut self, nonce: u64, certificate: SignedCertificate, now: Instant) {
        let Some(held) = &self.trust.certificate else { return };
        let is_better = certificate.certificate.not_after >= held.certificate.not_after
            && certificate.certificate.serial != held.certificate.serial;
        let is_ours = verify_certificate(&certificate, &self.cluster, &self.trust.trusted)
            .is_ok_and(|identity| identity == self.identity.public());
        if self.trust.renewal.nonce != Some(nonce) || !is_better || !is_ours {
            self.counters.records_refused += 1;
            return;
        }
        self.trust.renewal = Renewal::default();
        if self.set_certificate(certificate.clone(), now).is_ok() {
            self.emit(GossipEvent::CertificateRenewed { certificate: Box::new(certificate) });
        }
    }
}

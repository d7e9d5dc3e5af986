//! Membership on a host that is a member: tokens, certificates, revocation, the authority's key, leaving.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_config::{PublicKey, Role};
use overlay_control::api::{CertificateInfo, MembershipRequest, MembershipResponse, Response, SecretText};
use overlay_control::{ApiError, Code, Timestamp};
use overlay_routing::gossip::{Authority, Standing};
use overlay_routing::identity::IdentityPublic;
use overlay_wire::HostId;
use overlay_wire::membership::{Rights, SignedCertificate, TokenId};
use tokio::sync::oneshot;

use super::{Api, done, ended, not_found};
use crate::core::{Change, MembershipChange};
use crate::membership::{IssuerRequest, Work};

/// How long an issuer may take to renew a certificate that was asked for by hand.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(50);

impl Api {
    pub(super) async fn membership(&self, request: MembershipRequest) -> Result<Response, ApiError> {
        match request {
            MembershipRequest::Init(_) | MembershipRequest::Join { .. } => Err(self.already_member()),
            MembershipRequest::Leave { keep_identity } => self.leave(keep_identity),
            MembershipRequest::Invite(request) => self.ask_issuer(IssuerRequest::Invite(request)).await,
            MembershipRequest::TokenList => self.ask_issuer(IssuerRequest::Tokens).await,
            MembershipRequest::TokenRevoke { id } => {
                let id: TokenId = id.parse().map_err(|_| not_found("token", &id, "overlayctl token list"))?;
                self.ask_issuer(IssuerRequest::RevokeToken(id)).await
            }
            MembershipRequest::CertList => {
                Ok(Response::Membership(MembershipResponse::Certificates(self.certificates())))
            }
            MembershipRequest::CertRenew => self.renew().await,
            MembershipRequest::CertRevoke { member } => {
                let host = self.host_to_cut_off(&member)?;
                self.ask_issuer(IssuerRequest::Revoke(host)).await
            }
            MembershipRequest::NodeForget { member } => {
                let host = self.host_to_cut_off(&member)?;
                self.ask_issuer(IssuerRequest::Forget(host)).await
            }
            MembershipRequest::CaExport { passphrase } => self.ask_issuer(IssuerRequest::Export(passphrase)).await,
            MembershipRequest::CaImport { export, passphrase } => self.import(&export, passphrase).await,
            MembershipRequest::CaRotate { finish: false } => self.ask_issuer(IssuerRequest::Rotate).await,
            MembershipRequest::CaRotate { finish: true } => self.ask_issuer(IssuerRequest::FinishRotation).await,
        }
    }

    async fn ask_issuer(&self, request: IssuerRequest) -> Result<Response, ApiError> {
        self.need_certificate()?;
        let (answer, answered) = oneshot::channel();
        self.core.work.send(Work::Ask(request, answer)).await.map_err(|_| ended("issuer"))?;
        answered.await.unwrap_or_else(|_| Err(ended("issuer")))
    }

    fn need_certificate(&self) -> Result<(), ApiError> {
        if self.core.config.load().role == Role::Certified {
            return Ok(());
        }
        Err(ApiError::new(
            Code::NotIssuer,
            "this cluster is made by its files",
            "the file of every host names all members; there are no certificates",
            "add [[member]] entries, or found a cluster with `overlayctl init` on hosts without [node] in their files",
        ))
    }

    fn already_member(&self) -> ApiError {
        let config = self.core.config.load();
        let next = match config.role {
            Role::Certified => "`overlayctl leave` gives the membership up",
            Role::Static | Role::Standby => {
                "take [node], overlay.pool and [[member]] out of the file and restart overlayd"
            }
        };
        let why = format!("it is {} in the cluster {}", config.node.name, config.overlay.cluster);
        ApiError::new(Code::AlreadyMember, "this host is a member already", why, next)
    }

    fn leave(&self, keep_identity: bool) -> Result<Response, ApiError> {
        let config = self.core.config.load_full();
        if config.role != Role::Certified {
            return Err(ApiError::new(
                Code::ReadOnly,
                "this host is a member by its file",
                "the command line gives up only what `init` or `join` made",
                "take [node], overlay.pool and [[member]] out of the file and restart overlayd",
            ));
        }
        let last_copy = self.core.issuer.load().as_ref().is_some_and(|issuer| issuer.exports == 0);
        if last_copy && !self.core.view.load().members.is_empty() && !self.other_issuer() {
            return Err(ApiError::new(
                Code::Conflict,
                "this host holds the only copy of the authority's key",
                "without it no host can be admitted, renewed or revoked any more",
                "make a backup with `overlayctl ca export FILE`, or a second issuer with `overlayctl ca import`, and leave then",
            ));
        }
        crate::standby::leave(&self.core.store, &config, keep_identity)?;
        self.core.leave.send_replace(true);
        Ok(done(true, vec![format!("{} has left {}", config.node.name, config.overlay.cluster)]))
    }

    /// Whether another member holds the authority's key.
    pub(super) fn other_issuer(&self) -> bool {
        self.core.view.load().members.iter().any(|member| match &member.authority {
            Authority::Certificate(signed) => signed.certificate.rights.contains(Rights::ISSUER),
            Authority::Static => false,
        })
    }

    async fn renew(&self) -> Result<Response, ApiError> {
        self.need_certificate()?;
        if self.core.issuer.load().is_some() {
            return self.ask_issuer(IssuerRequest::RenewOwn).await;
        }
        let serial = |signed: Option<SignedCertificate>| signed.map(|signed| signed.certificate.serial);
        let before = serial(self.core.certificate());
        self.core.changes.send(Change::Membership(MembershipChange::RenewNow)).await.map_err(|_| ended("director"))?;
        let deadline = tokio::time::Instant::now() + RENEW_WITHIN;
        while serial(self.core.certificate()) == before {
            if tokio::time::Instant::now() >= deadline {
                return Err(ApiError::new(
                    Code::Timeout,
                    "no issuer renewed the certificate",
                    "no issuer answers, or it could not store the new certificate",
                    "`overlayctl cert list` shows which hosts are issuers; it is tried again by itself",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(done(true, vec!["the certificate is renewed".to_owned()]))
    }

    fn host_to_cut_off(&self, member: &str) -> Result<HostId, ApiError> {
        self.need_certificate()?;
        let known = self.certificates();
        let found = known.iter().find(|known| known.name == member || known.id.to_string() == member);
        let host = match found {
            Some(found) => found.id,
            // A host that nobody has seen for long may be known by its id alone.
            None => member.parse().map_err(|_| not_found("member", member, "overlayctl cert list"))?,
        };
        if host == self.core.host {
            return Err(ApiError::new(
                Code::Invalid,
                "this host cannot cut itself off",
                "it would lose the authority's key",
                "run it on another issuer, or `overlayctl leave` here",
            ));
        }
        Ok(host)
    }

    async fn import(&self, export: &SecretText, passphrase: SecretText) -> Result<Response, ApiError> {
        let file = STANDARD.decode(export.reveal()).map_err(|error| {
            ApiError::new(
                Code::Invalid,
                "this is not an export",
                error.to_string(),
                "give the file that `overlayctl ca export` wrote, whole",
            )
        })?;
        self.ask_issuer(IssuerRequest::Import(file, passphrase)).await
    }

    /// Every certificate known here, the own first, then by name.
    pub(super) fn certificates(&self) -> Vec<CertificateInfo> {
        let core = &self.core;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let revoked = core.revoked.load();
        let mut known: BTreeMap<HostId, (SignedCertificate, Option<Standing>)> = BTreeMap::new();
        if let Some(issuer) = &*core.issuer.load() {
            for signed in &issuer.issued {
                if let Some(host) = host_of(signed) {
                    known.insert(host, (signed.clone(), None));
                }
            }
        }
        for member in &core.view.load().members {
            if let Authority::Certificate(signed) = &member.authority {
                known.insert(member.host, ((**signed).clone(), Some(member.standing)));
            }
        }
        if let Some(own) = core.certificate() {
            known.insert(core.host, (own, None));
        }
        let mut shown: Vec<CertificateInfo> = known
            .into_iter()
            .map(|(host, (signed, standing))| {
                let mut info = certificate_info(host, &signed, standing, now);
                info.own = host == core.host;
                if revoked.contains(&host) {
                    info.state = "revoked".to_owned();
                }
                info
            })
            .collect();
        shown.sort_by(|a, b| b.own.cmp(&a.own).then_with(|| a.name.cmp(&b.name)).then_with(|| a.id.cmp(&b.id)));
        shown
    }
}

fn host_of(signed: &SignedCertificate) -> Option<HostId> {
    IdentityPublic::from_bytes(&signed.certificate.identity).ok().map(|identity| identity.host_id())
}

fn certificate_info(host: HostId, signed: &SignedCertificate, standing: Option<Standing>, now: u64) -> CertificateInfo {
    let certificate = &signed.certificate;
    let state = match standing {
        Some(Standing::Full) => "valid",
        Some(Standing::Expired) => "expired",
        Some(Standing::NotYet) => "early",
        None if certificate.is_valid_at(now) => "valid",
        None if now < certificate.not_before => "early",
        None => "expired",
    };
    let time = |seconds: u64| Timestamp::from_unix_ms(seconds.saturating_mul(1000));
    CertificateInfo {
        name: certificate.name.clone(),
        id: host,
        identity: PublicKey(certificate.identity),
        serial: certificate.serial.to_string(),
        grants: certificate.grants.iter().map(ToString::to_string).collect(),
        labels: certificate.labels.clone(),
        rights: certificate.rights.names().map(str::to_owned).collect(),
        ca: certificate.ca.to_string(),
        from: time(certificate.not_before),
        expires: time(certificate.not_after),
        state: state.to_owned(),
        own: false,
    }
}

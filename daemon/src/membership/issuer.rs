//! The issuer's task: redeems tokens, renews and revokes certificates, and gives the authority away encrypted.
//!
//! Every change is on disk, in both copies of its file, before an answer leaves. One change is made at a time; what waits
//! is bounded by the channel. The task runs on every member and refuses its work where the host is no issuer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_control::api::{Invitation, InviteRequest, MembershipResponse, Response, SecretText, TokenInfo};
use overlay_control::{ApiError, Code, Timestamp};
use overlay_routing::gossip::Transmit;
use overlay_routing::identity::IdentityKey;
use overlay_routing::membership::{
    CaKey, ExportError, Issuer, IssuerError, JoinContext, JoinDecision, KdfCost, Pending, TokenRequest, TokenView,
};
use overlay_wire::HostId;
use overlay_wire::gossip::Record;
use overlay_wire::membership::{Rights, SignedCertificate, TokenId};
use rand_core::{OsRng, RngCore};
use tokio::sync::{mpsc, oneshot, watch};

use super::found::unix_now;
use super::store::Store;
use crate::core::{Change, Core, MembershipChange};
use crate::director::GossipSockets;

/// How often the issuer looks whether its own certificate is due for renewal.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// What others see of the issuer, replaced after every change.
#[derive(Debug, Clone)]
pub(crate) struct IssuerView {
    /// How often the authority was exported from here.
    pub(crate) exports: u32,
    /// The newest certificate of each host that it signed.
    pub(crate) issued: Vec<SignedCertificate>,
}

/// What is asked of the issuer through the control socket.
#[derive(Debug)]
pub(crate) enum IssuerRequest {
    /// Make a token.
    Invite(InviteRequest),
    /// The tokens.
    Tokens,
    /// Withdraw a token.
    RevokeToken(TokenId),
    /// A new certificate for this host.
    RenewOwn,
    /// Cut a host off.
    Revoke(HostId),
    /// Cut a host off and give its subnets back.
    Forget(HostId),
    /// The authority's key, encrypted.
    Export(SecretText),
    /// Become an issuer.
    Import(Vec<u8>, SecretText),
    /// Replace the authority's key.
    Rotate,
    /// Retire the key before.
    FinishRotation,
}

/// What the issuer is given to do.
#[derive(Debug)]
pub(crate) enum Work {
    /// A datagram of a host that wants to become a member.
    Join {
        /// Where the answer goes.
        from: SocketAddr,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// A member asks for a new certificate.
    Renew {
        /// The member.
        host: HostId,
        /// Goes into the answer.
        nonce: u64,
        /// The certificate it has now.
        held: Box<SignedCertificate>,
    },
    /// Somebody at the control socket asks.
    Ask(IssuerRequest, oneshot::Sender<Result<Response, ApiError>>),
}

/// The task's state.
pub(crate) struct IssuerTask {
    /// Shared state.
    pub(crate) core: Arc<Core>,
    /// The state files.
    pub(crate) store: Store,
    /// The issuer, where this host is one.
    pub(crate) issuer: Option<Issuer>,
    /// This host's identity.
    pub(crate) identity: IdentityKey,
    /// To answer joiners with.
    pub(crate) sockets: GossipSockets,
    /// What there is to do.
    pub(crate) work: mpsc::Receiver<Work>,
}

fn not_issuer() -> ApiError {
    ApiError::new(
        Code::NotIssuer,
        "this host is not an issuer",
        "it does not hold the authority's key",
        "run it on a host with the right `issuer` in `overlayctl cert list`, or make this one an issuer with `overlayctl ca import FILE`",
    )
}

fn refused(error: &IssuerError) -> ApiError {
    let (code, next) = match error {
        IssuerError::Unknown => {
            (Code::NotFound, "`overlayctl token list` and `overlayctl cert list` show what there is")
        }
        IssuerError::NoSubnet | IssuerError::OutsidePool(_) => {
            (Code::Conflict, "name another --subnet, or free one with `overlayctl node forget`")
        }
        IssuerError::Full(_) => (Code::Conflict, "withdraw tokens that are not needed any more"),
        IssuerError::Revoked | IssuerError::Rotation(_) | IssuerError::NothingToSplit => {
            (Code::Conflict, "nothing was changed")
        }
        IssuerError::Body(_) | IssuerError::Request(_) => (Code::Invalid, "correct what is named; nothing was changed"),
    };
    ApiError::new(code, "the issuer refuses", error.to_string(), next)
}

fn export_refused(error: &ExportError) -> ApiError {
    match error {
        ExportError::Issuer(error) => refused(error),
        ExportError::Sealed => ApiError::new(
            Code::Passphrase,
            "the export cannot be opened",
            error.to_string(),
            "try again with the passphrase it was made with, or with another copy of the file",
        ),
        ExportError::Passphrase | ExportError::Malformed | ExportError::Format(_) | ExportError::Cost => ApiError::new(
            Code::Invalid,
            "the authority cannot be exported or imported",
            error.to_string(),
            "give the file that `overlayctl ca export` wrote; nothing was changed",
        ),
    }
}

fn done(note: impl Into<String>) -> Response {
    Response::Done { changed: true, notes: vec![note.into()] }
}

impl IssuerTask {
    /// Works until `stop` is told.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        self.publish();
        if self.issuer.is_some() {
            match self.records() {
                Ok(records) => self.tell(MembershipChange::PublishAuthority(records)).await,
                Err(error) => self.core.events.warn("authority-records", None, error.why),
            }
        }
        let mut renew = tokio::time::interval(RENEW_EVERY);
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stop.changed() => return,
                Some(work) = self.work.recv() => self.take(work).await,
                _ = renew.tick() => self.renew_when_due().await,
            }
        }
    }

    async fn take(&mut self, work: Work) {
        match work {
            Work::Join { from, datagram } => self.join(from, &datagram).await,
            Work::Renew { host, nonce, held } => {
                if let Err(error) = self.renew(host, nonce, &held).await {
                    self.core.events.warn("certificate-refused", Some(&held.certificate.name), error.why);
                }
            }
            Work::Ask(request, done) => {
                // Whoever asked may be gone; what was changed stays changed.
                let _ = done.send(self.ask(request).await);
            }
        }
    }

    /// Shows the others what the issuer is like now.
    fn publish(&self) {
        let view = self
            .issuer
            .as_ref()
            .map(|issuer| IssuerView { exports: issuer.exports(), issued: issuer.issued().cloned().collect() });
        self.core.issuer.store(view.map(Arc::new));
    }

    async fn tell(&self, change: MembershipChange) {
        // The director ends only with the daemon.
        let _ = self.core.changes.send(Change::Membership(change)).await;
    }

    /// Makes a state durable.
    async fn write(&self, state: zeroize::Zeroizing<Vec<u8>>) -> Result<(), ApiError> {
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || store.save_issuer(&state)).await;
        match written {
            Ok(Ok(())) => {
                *self.core.issuer_problem.lock() = None;
                Ok(())
            }
            Ok(Err(error)) => {
                let error = error.to_api();
                *self.core.issuer_problem.lock() = Some(error.clone());
                Err(error)
            }
            Err(_) => Err(ApiError::new(Code::Internal, "the state was not written", "its thread ended", "try again")),
        }
    }

    /// Makes a change durable, then in force, and gives its answer.
    async fn commit<T>(&mut self, pending: Pending<T>) -> Result<T, ApiError> {
        self.write(pending.state_bytes()).await?;
        let issuer = self.issuer.as_mut().ok_or_else(not_issuer)?;
        // One change at a time is made here, so none can have come between.
        let value = issuer.commit(pending).map_err(|error| {
            ApiError::new(Code::Internal, "the change did not happen", error.to_string(), "try again")
        })?;
        self.publish();
        Ok(value)
    }

    fn issuer(&self) -> Result<&Issuer, ApiError> {
        self.issuer.as_ref().ok_or_else(not_issuer)
    }

    fn records(&self) -> Result<Vec<Record>, ApiError> {
        self.issuer()?.authority_records().map_err(|error| refused(&error))
    }

    fn names(&self) -> BTreeMap<String, HostId> {
        let view = self.core.view.load();
        let mut names: BTreeMap<String, HostId> =
            view.members.iter().map(|member| (member.name.clone(), member.host)).collect();
        names.insert(self.core.config.load().node.name.clone(), self.core.host);
        names
    }

    async fn join(&mut self, from: SocketAddr, datagram: &[u8]) {
        let Some(own) = self.core.certificate() else { return };
        let (names, endpoints) = (self.names(), self.core.reached_at());
        let mut nonce = [0; 24];
        OsRng.fill_bytes(&mut nonce);
        let context = JoinContext {
            identity: &self.identity,
            certificate: &own,
            endpoints: &endpoints,
            names: &names,
            unix_now: unix_now(),
            nonce,
        };
        let Ok(issuer) = self.issuer() else { return };
        match issuer.handle_join(datagram, &context) {
            JoinDecision::Silent(why) => tracing::debug!(%from, ?why, "a request to join is met with silence"),
            JoinDecision::Answer { datagram, refusal } => {
                if let Some(refusal) = refusal {
                    self.core.events.warn("join-refused", Some(&from.to_string()), refusal.to_string());
                }
                self.send(from, datagram);
            }
            JoinDecision::Admit { pending, if_not_stored, certificate } => match self.commit(pending).await {
                Ok(answer) => {
                    let certificate = &certificate.certificate;
                    let grants: Vec<String> = certificate.grants.iter().map(ToString::to_string).collect();
                    let cause = format!("a token was redeemed from {from}; it may announce {}", grants.join(", "));
                    self.core.events.info("member-admitted", Some(&certificate.name), cause);
                    self.send(from, answer);
                }
                Err(error) => {
                    self.core.events.warn("join-refused", Some(&from.to_string()), error.why);
                    self.send(from, if_not_stored);
                }
            },
        }
    }

    fn send(&self, to: SocketAddr, bytes: Vec<u8>) {
        self.sockets.send(&Transmit { to, bytes });
    }

    async fn renew(&mut self, host: HostId, nonce: u64, held: &SignedCertificate) -> Result<(), ApiError> {
        let pending = self.issuer()?.renew(held, unix_now()).map_err(|error| refused(&error))?;
        let certificate = self.commit(pending).await?;
        self.core.events.info("certificate-renewed", Some(&held.certificate.name), "the member asked for it");
        self.tell(MembershipChange::AnswerCertificate { host, nonce, certificate: Box::new(certificate) }).await;
        Ok(())
    }

    async fn renew_own(&mut self) -> Result<(), ApiError> {
        let own = self.core.certificate().ok_or_else(not_issuer)?;
        let pending = self.issuer()?.renew(&own, unix_now()).map_err(|error| refused(&error))?;
        let certificate = self.commit(pending).await?;
        self.tell(MembershipChange::OwnCertificate(Box::new(certificate))).await;
        Ok(())
    }

    async fn renew_when_due(&mut self) {
        let due = self.core.certificate().is_some_and(|own| own.certificate.renewal_due() <= unix_now());
        if !due || self.issuer.is_none() {
            return;
        }
        if let Err(error) = self.renew_own().await {
            self.core.events.warn("certificate-refused", None, error.why);
        }
    }

    async fn ask(&mut self, request: IssuerRequest) -> Result<Response, ApiError> {
        match request {
            IssuerRequest::Invite(request) => self.invite(request).await,
            IssuerRequest::Tokens => {
                let now = unix_now();
                let tokens = self.issuer()?.tokens().iter().map(|token| token_info(token, now)).collect();
                Ok(Response::Membership(MembershipResponse::Tokens(tokens)))
            }
            IssuerRequest::RevokeToken(id) => {
                let pending = self.issuer()?.revoke_token(id).map_err(|error| refused(&error))?;
                self.commit(pending).await?;
                Ok(done(format!("token {id} is withdrawn; hosts it admitted stay members")))
            }
            IssuerRequest::RenewOwn => {
                self.renew_own().await?;
                Ok(done("the certificate is renewed"))
            }
            IssuerRequest::Revoke(host) => {
                let pending = self.issuer()?.revoke(host).map_err(|error| refused(&error))?;
                let records = self.commit(pending).await?;
                self.tell(MembershipChange::PublishAuthority(records)).await;
                Ok(done(format!("{host} is cut off for good")))
            }
            IssuerRequest::Forget(host) => {
                let pending = self.issuer()?.forget(host, unix_now()).map_err(|error| refused(&error))?;
                let forgotten = self.commit(pending).await?;
                self.tell(MembershipChange::PublishAuthority(forgotten.records)).await;
                let mut notes = vec![format!("{host} is cut off for good")];
                notes.extend(forgotten.freed.iter().map(|(prefix, at)| {
                    format!("{prefix} is free from {} on", Timestamp::from_unix_ms(at.saturating_mul(1000)))
                }));
                Ok(Response::Done { changed: true, notes })
            }
            IssuerRequest::Export(passphrase) => self.export(passphrase).await,
            IssuerRequest::Import(file, passphrase) => self.import(file, passphrase).await,
            IssuerRequest::Rotate => {
                let revoked: Vec<HostId> = self.core.revoked.load().iter().copied().collect();
                let next = CaKey::generate(&mut OsRng);
                let pending = self.issuer()?.begin_rotation(&next, &revoked).map_err(|error| refused(&error))?;
                let records = self.commit(pending).await?;
                self.tell(MembershipChange::PublishAuthority(records)).await;
                self.renew_own().await?;
                Ok(Response::Done {
                    changed: true,
                    notes: vec![
                        "the authority has a new key; the old one is trusted until `overlayctl ca rotate --finish`"
                            .to_owned(),
                        "next: `overlayctl cert renew` on every member, then `overlayctl ca export FILE`".to_owned(),
                    ],
                })
            }
            IssuerRequest::FinishRotation => {
                let pending = self.issuer()?.finish_rotation().map_err(|error| refused(&error))?;
                let records = self.commit(pending).await?;
                self.tell(MembershipChange::PublishAuthority(records)).await;
                Ok(done("the old key is retired"))
            }
        }
    }

    async fn invite(&mut self, request: InviteRequest) -> Result<Response, ApiError> {
        let issuer = self.issuer()?;
        let endpoints = self.core.reached_at();
        if endpoints.is_empty() {
            return Err(ApiError::new(
                Code::NotReady,
                "no token was made",
                "no underlay address of this host is known that a new host could reach",
                "bring the network up, or write node.endpoints in the configuration file",
            ));
        }
        let uses = request.uses;
        let mut rights = Rights::NONE;
        if request.may_change_policy {
            rights = Rights::POLICY;
        }
        let wanted = TokenRequest {
            uses,
            ttl_secs: request.ttl_s,
            labels: request.labels,
            rights,
            name: request.name,
            subnets: request.subnets,
            allow: Vec::new(),
        };
        let mut random = [0; 24];
        OsRng.fill_bytes(&mut random);
        let (now, public) = (unix_now(), self.identity.public());
        let ttl = wanted.ttl_secs;
        let pending = issuer.invite(wanted, &public, &endpoints, &random, now).map_err(|error| refused(&error))?;
        let token = self.commit(pending).await?;
        self.core.events.info("token-made", Some(&token.id.to_string()), format!("it admits {uses} hosts"));
        Ok(Response::Membership(MembershipResponse::Invitation(Invitation {
            token: SecretText::new(token.to_text().to_string()),
            id: token.id.to_string(),
            expires: Timestamp::from_unix_ms(now.saturating_add(ttl).saturating_mul(1000)),
            uses,
        })))
    }

    async fn export(&mut self, passphrase: SecretText) -> Result<Response, ApiError> {
        let mut random = [0; 40];
        OsRng.fill_bytes(&mut random);
        let issuer = self.issuer.take().ok_or_else(not_issuer)?;
        // Stretching the passphrase takes a while and 64 MiB: not on the thread of the control plane.
        let stretched = tokio::task::spawn_blocking(move || {
            let exported = issuer.export(passphrase.reveal().as_bytes(), KdfCost::RECOMMENDED, &random);
            (issuer, exported)
        });
        let Ok((issuer, exported)) = stretched.await else {
            return Err(ApiError::new(
                Code::Internal,
                "the authority was not exported",
                "the thread that encrypts it ended",
                "restart overlayd: the issuer comes back from its file",
            ));
        };
        self.issuer = Some(issuer);
        let pending = exported.map_err(|error| export_refused(&error))?;
        let file = self.commit(pending).await?;
        self.core.events.info(
            "authority-exported",
            None,
            "its key and half of what is left of the pool went into a file",
        );
        Ok(Response::Membership(MembershipResponse::Export(SecretText::new(STANDARD.encode(file)))))
    }

    async fn import(&mut self, file: Vec<u8>, passphrase: SecretText) -> Result<Response, ApiError> {
        if self.issuer.is_some() {
            return Err(ApiError::new(
                Code::Conflict,
                "this host is an issuer already",
                "it has a slice of the pool of its own",
                "import the authority on another member",
            ));
        }
        let opened = tokio::task::spawn_blocking(move || Issuer::import(&file, passphrase.reveal().as_bytes())).await;
        let issuer = match opened {
            Ok(Ok(issuer)) => issuer,
            Ok(Err(error)) => return Err(export_refused(&error)),
            Err(_) => {
                let next = "try again";
                return Err(ApiError::new(Code::Internal, "nothing was imported", "the thread ended", next));
            }
        };
        let own = self.core.certificate().ok_or_else(not_issuer)?;
        let trusted = issuer.trusted();
        if issuer.cluster() != self.core.cluster() || !trusted.iter().any(|key| self.core.trusts(key)) {
            return Err(ApiError::new(
                Code::Conflict,
                "this is the authority of another cluster",
                format!("this host is a member of {}", self.core.config.load().overlay.cluster),
                "import it on a member of that cluster",
            ));
        }
        let rights = Rights(own.certificate.rights.0 | Rights::ISSUER.0 | Rights::POLICY.0);
        let pending = issuer.renew_with(&own, rights, unix_now()).map_err(|error| refused(&error))?;
        self.write(pending.state_bytes()).await?;
        self.issuer = Some(issuer);
        let certificate =
            self.issuer.as_mut().ok_or_else(not_issuer)?.commit(pending).map_err(|error| {
                ApiError::new(Code::Internal, "nothing was imported", error.to_string(), "try again")
            })?;
        self.publish();
        let records = self.records()?;
        self.tell(MembershipChange::OwnCertificate(Box::new(certificate))).await;
        self.tell(MembershipChange::BecomeIssuer).await;
        self.tell(MembershipChange::PublishAuthority(records)).await;
        self.core.events.info("issuer", None, "this host holds the authority's key now");
        Ok(done("this host is an issuer now; `overlayctl invite` works here"))
    }
}

fn token_info(token: &TokenView, now: u64) -> TokenInfo {
    let state = if token.is_revoked {
        "revoked"
    } else if token.uses_left == 0 {
        "used"
    } else if token.expires <= now {
        "expired"
    } else {
        "open"
    };
    TokenInfo {
        id: token.id.to_string(),
        uses_left: token.uses_left,
        expires: Timestamp::from_unix_ms(token.expires.saturating_mul(1000)),
        state: state.to_owned(),
        labels: token.request.labels.clone(),
        name: token.request.name.clone(),
        redeemed_by: token.redeemed.keys().copied().collect(),
    }
}

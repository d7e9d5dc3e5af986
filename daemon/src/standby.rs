//! Standby: a host that is not a member of a cluster. The control socket answers and the service manager is told that the
//! daemon is up; nothing else on the host is touched until `init`, `join` or a reload makes it a member.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use overlay_config::{Config, PublicKey, Role};
use overlay_control::api::{
    Event, InitRequest, Joined, MembershipRequest, MembershipResponse, Request, Response, SecretText, VersionInfo,
};
use overlay_control::frame::PROTOCOL_VERSION;
use overlay_control::{ApiError, Code, Timestamp};
use overlay_routing::identity::IdentityKey;
use overlay_wire::Prefix;
use tokio::sync::{Mutex, broadcast, mpsc, watch};

use crate::api::{Backend, Caller, NoBatches};
use crate::events::EventLog;
use crate::membership::{Kept, Store, found, host_name, identity_or_new, join};
use crate::start::errors::config_error;
use crate::start::signals::{Asked, notify};
use crate::start::{Next, Process, load_text};
use overlay_control::api::CaptureRequest;

/// How often the watchdog is fed.
const WATCHDOG_EVERY: Duration = Duration::from_secs(1);

/// Answers requests of a host in standby.
struct Standby {
    config_path: std::path::PathBuf,
    /// The text of the file in force.
    text: Mutex<String>,
    store: Store,
    /// Why this host, a member, cannot be one now.
    failure: parking_lot::Mutex<Option<ApiError>>,
    /// Tells that there is something to become.
    ready: mpsc::Sender<()>,
    events: EventLog,
    started: SystemTime,
}

/// Runs in standby until there is something to become or the daemon is told to stop.
///
/// # Errors
/// Never so far; what is refused is told to whoever asked.
pub(crate) async fn serve(process: &mut Process, failure: Option<ApiError>) -> Result<Next, ApiError> {
    let (ready, mut becomes) = mpsc::channel(1);
    let standby = Arc::new(Standby {
        config_path: process.config_path.clone(),
        text: Mutex::new(process.text.clone()),
        store: process.store.clone(),
        failure: parking_lot::Mutex::new(failure),
        ready,
        events: EventLog::default(),
        started: SystemTime::now(),
    });
    let (stop, stopped) = watch::channel(false);
    let api = tokio::spawn(Arc::clone(&process.server).run(Arc::clone(&standby), stopped));
    standby.events.info("standby", None, "this host is not a member of a cluster");
    notify(&[sd_notify::NotifyState::Ready]);
    let mut watchdog = tokio::time::interval(WATCHDOG_EVERY);
    let next = loop {
        tokio::select! {
            asked = process.signals.next() => match asked {
                Asked::Stop => break Next::Stop,
                Asked::Reload => {
                    if let Err(error) = standby.reload().await {
                        standby.events.warn("config-refused", None, error.why);
                    }
                }
            },
            Some(()) = becomes.recv() => break Next::Member,
            _ = watchdog.tick() => notify(&[sd_notify::NotifyState::Watchdog]),
        }
    };
    if matches!(next, Next::Stop) {
        notify(&[sd_notify::NotifyState::Stopping]);
    }
    let _ = stop.send(true);
    let _ = api.await;
    process.text.clone_from(&*standby.text.lock().await);
    Ok(next)
}

impl Standby {
    fn refusal(&self) -> ApiError {
        self.failure.lock().clone().unwrap_or_else(|| {
            ApiError::new(
                Code::NotMember,
                "not a member: run overlayctl init or join",
                "neither the configuration file nor a membership says which cluster this host is part of",
                "`overlayctl init NAME --pool PREFIX` founds a cluster, `overlayctl join TOKEN` makes this host a member of one",
            )
        })
    }

    /// The configuration as it is without a membership.
    async fn config(&self) -> Result<Config, ApiError> {
        load_text(&self.text.lock().await, &self.config_path, self.store.layer().as_ref())
    }

    /// Reads the file again; a file that makes this host a member ends standby.
    async fn reload(&self) -> Result<Vec<overlay_config::Change>, ApiError> {
        let old = self.config().await?;
        let text =
            Config::text_or_empty(&self.config_path).map_err(|problems| config_error(&self.config_path, &problems))?;
        let new = load_text(&text, &self.config_path, self.store.layer().as_ref())?;
        if new.paths != old.paths || new.overlay.interface != old.overlay.interface {
            return Err(ApiError::new(
                Code::RestartNeeded,
                "nothing was changed",
                "paths and overlay.interface take effect at a restart only",
                "restart overlayd, or take these values back and reload",
            ));
        }
        *self.text.lock().await = text;
        if new.role != Role::Standby {
            // One is enough: whoever comes second finds it on its way.
            let _ = self.ready.try_send(());
        }
        Ok(overlay_config::diff(&old, &new))
    }

    fn version(&self) -> VersionInfo {
        VersionInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            pid: std::process::id(),
            started: self.started.into(),
        }
    }

    fn refuse_second(&self) -> Result<(), ApiError> {
        let Some(kept) = self.store.kept() else {
            self.store.reopen();
            return Ok(());
        };
        let why =
            self.failure.lock().as_ref().map_or_else(String::new, |error| format!(", and cannot run: {}", error.what));
        Err(ApiError::new(
            Code::AlreadyMember,
            "this host is a member already",
            format!("it is a member of {}{why}", kept.cluster),
            "`overlayctl leave` gives the membership up",
        ))
    }

    async fn init(&self, request: InitRequest) -> Result<Response, ApiError> {
        let text = self.text.lock().await;
        self.refuse_second()?;
        if self.store.issuer().map_err(|error| error.to_api())?.is_some() {
            return Err(ApiError::new(
                Code::Conflict,
                "an authority is kept here already",
                "the issuer's files are in the state directory, and the membership's are not",
                "put the membership's files back, or move issuer.a and issuer.b away if that authority is not needed",
            ));
        }
        let config = load_text(&text, &self.config_path, None)?;
        let name = host_name(request.name.as_deref())?;
        let identity = identity_or_new(&config.node.identity_file)?;
        let (kept, issuer) = found(&request, &identity, &name, config.overlay.listen_port)?;
        let config = self.check(&text, &kept)?;
        if !request.encapsulation.is_encrypted() && config.overlay.trusted_underlay.is_empty() {
            return Err(ApiError::new(
                Code::Invalid,
                "the cluster cannot be founded",
                format!("{} is neither encrypted nor authenticated, and no underlay is trusted", request.encapsulation),
                "give --trusted-underlay PREFIX that holds the hosts' underlay addresses; nothing was changed",
            ));
        }
        // The issuer first: a membership without its authority would be one that nobody can extend.
        self.on_disk(move |store| store.save_issuer(&issuer.state_bytes())).await?;
        self.become_member(kept, &identity).await
    }

    async fn join(
        &self,
        token: &SecretText,
        name: Option<&str>,
        trusted_underlay: Vec<Prefix>,
    ) -> Result<Response, ApiError> {
        let text = self.text.lock().await;
        self.refuse_second()?;
        let config = load_text(&text, &self.config_path, None)?;
        let name = host_name(name)?;
        let identity = identity_or_new(&config.node.identity_file)?;
        let mut kept = join(token.reveal(), &identity, &name, &config).await?;
        kept.trusted_underlay = trusted_underlay;
        self.check(&text, &kept)?;
        self.become_member(kept, &identity).await
    }

    /// Refuses a membership that does not fit the file.
    fn check(&self, text: &str, kept: &Kept) -> Result<Config, ApiError> {
        load_text(text, &self.config_path, self.store.layer_of(kept).as_ref())
    }

    async fn on_disk(
        &self,
        write: impl FnOnce(&Store) -> Result<(), crate::state::StateError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || write(&store)).await;
        written.unwrap_or(Ok(())).map_err(|error| error.to_api())
    }

    async fn become_member(&self, kept: Kept, identity: &IdentityKey) -> Result<Response, ApiError> {
        let joined = joined(&kept, identity);
        self.on_disk(move |store| store.save(kept)).await?;
        let _ = self.ready.try_send(());
        Ok(Response::Membership(MembershipResponse::Joined(joined?)))
    }
}

/// What a host is told that became a member.
fn joined(kept: &Kept, identity: &IdentityKey) -> Result<Joined, ApiError> {
    let certificate = kept.certificate().ok_or_else(|| {
        ApiError::new(Code::Internal, "the certificate cannot be read", "it was made here", "report this")
    })?;
    Ok(Joined {
        cluster: kept.cluster.clone(),
        name: certificate.certificate.name.clone(),
        id: identity.host_id(),
        identity: PublicKey(*identity.public().as_bytes()),
        prefixes: kept.own_prefixes(),
        expires: Timestamp::from_unix_ms(certificate.certificate.not_after.saturating_mul(1000)),
    })
}

impl Backend for Standby {
    type Batches = NoBatches;

    async fn handle(&self, _caller: Caller, request: Request) -> Result<Response, ApiError> {
        match request {
            Request::Version => Ok(Response::Version(self.version())),
            Request::ConfigShow => Ok(Response::Settings(self.config().await?.settings())),
            Request::ConfigReload => self.reload().await.map(Response::Changes),
            Request::ConfigCheck { text } => {
                let outcome = match text {
                    Some(text) => Config::parse(&text.text, &text.name),
                    None => Config::text_or_empty(&self.config_path)
                        .and_then(|text| Config::load_text(&text, &self.config_path, None)),
                };
                outcome
                    .map(|_| Response::Done { changed: false, notes: Vec::new() })
                    .map_err(|problems| config_error(&self.config_path, &problems))
            }
            // The server follows the events itself; this opens the stream.
            Request::EventsFollow => Ok(Response::Done { changed: false, notes: Vec::new() }),
            Request::Membership(MembershipRequest::Init(request)) => self.init(request).await,
            Request::Membership(MembershipRequest::Join { token, name, trusted_underlay }) => {
                self.join(&token, name.as_deref(), trusted_underlay).await
            }
            Request::Membership(MembershipRequest::Leave { keep_identity }) if self.store.kept().is_some() => {
                let config = self.config().await?;
                leave(&self.store, &config, keep_identity)?;
                *self.failure.lock() = None;
                Ok(Response::Done { changed: true, notes: vec!["this host is a member no more".to_owned()] })
            }
            _ => Err(self.refusal()),
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn capture(&self, _request: &CaptureRequest) -> Result<NoBatches, ApiError> {
        Err(self.refusal())
    }
}

/// Removes what is kept of a membership.
///
/// # Errors
/// When a file cannot be removed.
pub(crate) fn leave(store: &Store, config: &Config, keep_identity: bool) -> Result<(), ApiError> {
    store.erase().map_err(|error| error.to_api())?;
    if keep_identity {
        return Ok(());
    }
    match std::fs::remove_file(&config.node.identity_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ApiError::new(
            Code::Io,
            format!("the identity {} stays", config.node.identity_file.display()),
            error.to_string(),
            "remove it by hand; the membership is gone",
        )),
        _ => Ok(()),
    }
}

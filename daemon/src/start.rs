//! Starting the daemon, and what it is in turn: in standby until this host is a member of a cluster, a member until it
//! leaves or the daemon is told to stop. Locks, state, control socket and signals last over all of it.

pub(crate) mod errors;
mod locks;
mod member;
pub(crate) mod signals;
mod sockets;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use overlay_config::{Config, MembershipLayer, Role};
use overlay_control::{ApiError, Code};

use crate::api::{Access, Server};
use crate::membership::Store;
use crate::standby;
use crate::state::StateDir;
use errors::{config_error, internal};
pub(crate) use member::plumbing_config;
use signals::Signals;

/// What lasts from the start of the daemon to its end.
pub(crate) struct Process {
    /// The configuration file.
    pub(crate) config_path: PathBuf,
    /// The text of the file in force.
    pub(crate) text: String,
    /// What is kept about the membership.
    pub(crate) store: Store,
    /// The control socket.
    pub(crate) server: Arc<Server>,
    /// Signals from the system.
    pub(crate) signals: Signals,
    _locks: locks::Locks,
}

impl Process {
    /// The layer of this host's membership, where it has one.
    pub(crate) fn layer(&self) -> Option<MembershipLayer> {
        self.store.layer()
    }

    /// The configuration that file, membership and command line make now.
    pub(crate) fn config(&self) -> Result<Config, ApiError> {
        load_text(&self.text, &self.config_path, self.layer().as_ref())
    }
}

/// What the daemon is next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Gone.
    Stop,
    /// In standby; with the reason where this host is a member and cannot be one now.
    Standby(Option<ApiError>),
    /// A member.
    Member,
    /// Gone, because a part ended on its own.
    Failed(ApiError),
}

/// Loads configuration and state, starts everything, and runs until told to stop.
///
/// # Errors
/// When something that cannot be done without is missing; nothing of ours is left on the host then.
pub fn run(config_path: &Path) -> Result<(), ApiError> {
    let text = Config::text_or_empty(config_path).map_err(|problems| config_error(config_path, &problems))?;
    let state_dir = Config::state_dir_of(&text, config_path);
    // Before anything is made: a broken configuration leaves no trace.
    let layer = if state_dir.exists() { peek_layer(&state_dir)? } else { None };
    let config = load_text(&text, config_path, layer.as_ref())?;
    crate::logging::start(config.log.level);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| internal("the task runtime cannot start", error))?;
    runtime.block_on(serve(config_path, text, config))
}

fn peek_layer(state_dir: &Path) -> Result<Option<MembershipLayer>, ApiError> {
    let directory = StateDir::open(state_dir).map_err(|error| error.to_api())?;
    Store::peek_layer(&Arc::new(directory)).map_err(|error| error.to_api())
}

fn open_store(state_dir: &Path) -> Result<Store, ApiError> {
    let directory = StateDir::open(state_dir).map_err(|error| error.to_api())?;
    Store::open(&Arc::new(directory)).map_err(|error| error.to_api())
}

async fn serve(config_path: &Path, text: String, config: Config) -> Result<(), ApiError> {
    locks::directory(&config.paths.runtime_dir)?;
    locks::directory(&config.paths.state_dir)?;
    let name = format!("{}.lock", config.overlay.interface);
    let locks =
        locks::lock([config.paths.runtime_dir.join(name), config.paths.state_dir.join("overlayd.lock")]).await?;
    let server =
        Server::bind(&config.paths.socket, Access::new(crate::device::own_uid())).map_err(|error| error.to_api())?;
    let mut process = Process {
        config_path: config_path.to_owned(),
        text,
        // Again, now that nobody else writes it.
        store: open_store(&config.paths.state_dir)?,
        server: Arc::new(server),
        signals: Signals::take()?,
        _locks: locks,
    };
    let mut next = if config.role == Role::Standby { Next::Standby(None) } else { Next::Member };
    let mut was_in_standby = false;
    loop {
        next = match next {
            Next::Stop => return Ok(()),
            Next::Failed(error) => return Err(error),
            Next::Standby(failure) => {
                was_in_standby = true;
                standby::serve(&mut process, failure).await?
            }
            Next::Member => {
                let started = match process.config() {
                    Ok(config) => member::serve(&mut process, config).await,
                    Err(error) => Err(error),
                };
                match started {
                    Ok(next) => next,
                    // Someone waits for it and reads why; without a standby before, the service manager does.
                    Err(error) if was_in_standby => {
                        tracing::error!(code = error.code, why = %error.why, next = %error.next, "{}", error.what);
                        Next::Standby(Some(error))
                    }
                    Err(error) => return Err(error),
                }
            }
        };
    }
}

/// Reads and checks the configuration file as it is for a host without a membership.
///
/// # Errors
/// With every problem found.
pub fn load(path: &Path) -> Result<Config, ApiError> {
    let config = Config::load(path).map_err(|problems| config_error(path, &problems))?;
    check_identities(&config)?;
    Ok(config)
}

/// Checks a configuration text over a membership.
///
/// # Errors
/// With every problem found.
pub(crate) fn load_text(text: &str, path: &Path, layer: Option<&MembershipLayer>) -> Result<Config, ApiError> {
    let config = Config::load_text(text, path, layer).map_err(|problems| config_error(path, &problems))?;
    check_identities(&config)?;
    Ok(config)
}

/// Refuses member identities that are 32 bytes but no Ed25519 key.
///
/// # Errors
/// With the first such member.
pub fn check_identities(config: &Config) -> Result<(), ApiError> {
    for member in &config.members {
        if let Err(error) = overlay_routing::identity::IdentityPublic::from_bytes(&member.identity.0) {
            return Err(ApiError::new(
                Code::Config,
                format!("member[{}].identity is not an identity", member.name),
                error.to_string(),
                format!("take what `overlayctl key public` prints on {}", member.name),
            ));
        }
    }
    Ok(())
}

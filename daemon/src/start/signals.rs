//! Signals from the system and words to the service manager.

use overlay_control::ApiError;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::errors::internal;

/// The signals that mean something to the daemon, for its whole life.
pub(crate) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Stop.
    Stop,
    /// Read the configuration again.
    Reload,
}

impl Signals {
    /// Takes them from the system. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn take() -> Result<Self, ApiError> {
        let take = |kind| signal(kind).map_err(|error| internal("signals cannot be received", error));
        let (term, int) = (take(SignalKind::terminate())?, take(SignalKind::interrupt())?);
        Ok(Self { term, int, hup: take(SignalKind::hangup())? })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::Stop,
            _ = self.int.recv() => Asked::Stop,
            _ = self.hup.recv() => Asked::Reload,
        }
    }
}

pub(crate) fn monotonic() -> sd_notify::NotifyState<'static> {
    sd_notify::NotifyState::monotonic_usec_now().unwrap_or(sd_notify::NotifyState::Ready)
}

pub(crate) fn notify(state: &[sd_notify::NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(cause = %error, "the service manager was not told");
    }
}

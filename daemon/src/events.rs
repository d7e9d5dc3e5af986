//! The events of this daemon: one log line and one event per change of state, with its cause.

use std::time::SystemTime;

use overlay_control::Timestamp;
use overlay_control::api::{Event, Severity};
use tokio::sync::broadcast;

/// Events a slow follower may lag behind before it loses some.
const BACKLOG: usize = 1024;

/// Where events go.
#[derive(Clone, Debug)]
pub struct EventLog(broadcast::Sender<Event>);

impl Default for EventLog {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl EventLog {
    /// Follows events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    /// Records a change of state.
    pub fn record(&self, severity: Severity, kind: &str, subject: Option<&str>, cause: impl Into<String>) {
        let cause = cause.into();
        let shown = subject.unwrap_or("-");
        match severity {
            Severity::Info => tracing::info!(event = kind, subject = shown, "{cause}"),
            Severity::Warn => tracing::warn!(event = kind, subject = shown, "{cause}"),
            Severity::Error => tracing::error!(event = kind, subject = shown, "{cause}"),
        }
        let event = Event {
            time: Timestamp::from(SystemTime::now()),
            severity,
            kind: kind.to_owned(),
            subject: subject.map(str::to_owned),
            cause,
        };
        // Nobody may be following.
        let _ = self.0.send(event);
    }

    /// Records an ordinary change.
    pub fn info(&self, kind: &str, subject: Option<&str>, cause: impl Into<String>) {
        self.record(Severity::Info, kind, subject, cause);
    }

    /// Records something that is not as it should be.
    pub fn warn(&self, kind: &str, subject: Option<&str>, cause: impl Into<String>) {
        self.record(Severity::Warn, kind, subject, cause);
    }
}

//! Why a call of dockerd is refused, in words for the person at the `docker` command.

use std::io;

use overlay_control::{ApiError, ControlError};

/// A refused call. dockerd shows the text behind `remote:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refusal {
    text: String,
    /// Whether the request itself could not be read.
    pub(super) unreadable: bool,
}

impl Refusal {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), unreadable: false }
    }

    pub(super) fn unreadable(why: impl std::fmt::Display) -> Self {
        Self { text: format!("overlayd: the request cannot be read: {why}"), unreadable: true }
    }
}

impl From<&ApiError> for Refusal {
    fn from(error: &ApiError) -> Self {
        Self::new(format!("overlayd: {}: {}; {} ({})", error.what, error.why, error.next, error.code))
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self::from(&error.to_api())
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::new(format!("overlayd: the state of the Docker plugin cannot be written: {error}; check its disk"))
    }
}

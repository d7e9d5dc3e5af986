//! Errors and problems as they are sent and shown.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codes::{Code, exit};

/// Why a request was refused: the same four parts in text and JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// The code, one of [`Code`]; a newer daemon may send one that is not known here.
    pub code: String,
    /// What happened.
    pub what: String,
    /// The cause.
    pub why: String,
    /// What to do.
    pub next: String,
}

impl ApiError {
    /// Builds an error.
    #[must_use]
    pub fn new(code: Code, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: code.name().to_owned(), what: what.into(), why: why.into(), next: next.into() }
    }

    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit(&self) -> u8 {
        Code::from_name(&self.code).map_or(exit::FAILED, Code::exit)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}\nwhy: {}\nnext: {}", self.code, self.what, self.why, self.next)
    }
}

impl std::error::Error for ApiError {}

/// Something that is not as it should be, shown by `status` until it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// A short upper-case word that names the kind of problem.
    pub code: String,
    /// What is wrong.
    pub what: String,
    /// The cause.
    pub why: String,
    /// What to do.
    pub next: String,
}

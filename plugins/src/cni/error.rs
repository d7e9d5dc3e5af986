//! Errors as the specification writes them, with its codes.

use overlay_control::{ApiError, Code, ControlError};
use serde_json::json;

/// The version of the configuration is not supported.
pub(super) const VERSION: u32 = 1;
/// A variable of the environment is missing or wrong.
pub(super) const ENVIRONMENT: u32 = 4;
/// Reading or writing failed.
pub(super) const IO: u32 = 5;
/// The configuration is no JSON, or of the wrong types.
pub(super) const DECODE: u32 = 6;
/// A value of the configuration is not acceptable.
pub(super) const CONFIG: u32 = 7;
/// It may work later.
pub(super) const TRY_AGAIN: u32 = 11;
/// Containers cannot be attached now (STATUS).
pub(super) const UNAVAILABLE: u32 = 50;
/// Containers cannot be attached now, and those that are may be cut off (STATUS).
pub(super) const UNAVAILABLE_AND_CUT_OFF: u32 = 51;
/// The daemon refused.
pub(super) const REFUSED: u32 = 100;
/// CHECK: the container is not as ADD left it.
pub(super) const CHANGED: u32 = 101;
/// Work inside the container's namespace failed.
pub(super) const NAMESPACE: u32 = 102;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct CniError {
    /// Code of the specification, or 100 and above for our own.
    pub code: u32,
    /// What happened.
    pub message: String,
    /// Why, and what to do next.
    pub details: String,
}

impl CniError {
    pub(super) fn new(code: u32, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// From a control error; `down` is the code for a daemon that does not answer.
    pub(super) fn from_control(error: &ControlError, down: u32) -> Self {
        let api = error.to_api();
        let code = match error {
            ControlError::Api(api) if is_temporary(api) => down,
            ControlError::Api(_) => REFUSED,
            _ => down,
        };
        Self::from_api(&api, code)
    }

    /// From an error of ours, with the given code.
    pub(super) fn from_api(api: &ApiError, code: u32) -> Self {
        Self::new(code, api.what.clone(), format!("{}; {} ({})", api.why, api.next, api.code))
    }

    /// As it goes to standard output.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        json!({ "cniVersion": version, "code": self.code, "msg": self.message, "details": self.details }).to_string()
    }
}

/// What passes by itself: the daemon starts, stops, is busy or waits to be made a member.
fn is_temporary(api: &ApiError) -> bool {
    let temporary = [Code::Busy, Code::NotReady, Code::NotMember, Code::Timeout, Code::Io];
    temporary.iter().any(|code| api.code.as_str() == code.name())
}

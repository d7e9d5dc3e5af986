//! Limits on rates.

use overlay_wire::Prefix;
use serde::{Deserialize, Serialize};

/// What one direction is limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitRate {
    /// Bits of inner packets per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u64>,
    /// Bytes that may come at once; absent: 50 ms' worth, at least 128 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// Inner packets per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
}

/// What can be asked about limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitRequest {
    /// Limits something. Answer: `Done`.
    Set {
        /// A container of this host, an address or prefix, or `peer:NAME`.
        selector: String,
        /// What it may send; absent: as before.
        from: Option<LimitRate>,
        /// What may be sent to it; absent: as before.
        to: Option<LimitRate>,
    },
    /// Every limit. Answer: `Limits`.
    List,
    /// Takes a limit away. Answer: `Done`.
    Remove {
        /// As it was set.
        selector: String,
    },
}

impl LimitRequest {
    /// Whether the request changes anything.
    #[must_use]
    pub fn is_change(&self) -> bool {
        match self {
            Self::Set { .. } | Self::Remove { .. } => true,
            Self::List => false,
        }
    }
}

/// A limit in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitInfo {
    /// What is limited, as it was set.
    pub selector: String,
    /// `container`, `prefix` or `peer`.
    pub kind: String,
    /// The addresses, where there are any.
    pub prefixes: Vec<Prefix>,
    /// What it may send.
    pub from: LimitRate,
    /// What may be sent to it.
    pub to: LimitRate,
    /// Packets dropped that it sent.
    pub dropped_from: u64,
    /// Packets dropped that were sent to it.
    pub dropped_to: u64,
}

//! The policy of the whole cluster: publishing, confirming, going back, and who has it.

use overlay_wire::policy::PolicySet;
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// What can be asked about the policy of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyRequest {
    /// Publishes rules for all hosts. Answer: `PolicyWritten`.
    Apply {
        /// The rules, one per line, as they were written.
        text: String,
        /// Go back after so many seconds unless confirmed; absent: for good.
        confirm_s: Option<u32>,
    },
    /// Keeps what is on trial. Answer: `PolicyWritten`.
    Confirm,
    /// Puts an earlier revision in force again. Answer: `PolicyWritten`.
    Rollback {
        /// Which; 0: no policy of the cluster, each host's own counts.
        revision: u64,
        /// Go back after so many seconds unless confirmed; absent: for good.
        confirm_s: Option<u32>,
    },
    /// The newest revision and who has it. Answer: `ClusterPolicy`.
    Status,
    /// The texts to compare. Answer: `PolicyTexts`.
    Texts,
}

impl PolicyRequest {
    /// Whether the request changes anything.
    #[must_use]
    pub fn is_change(&self) -> bool {
        match self {
            Self::Apply { .. } | Self::Confirm | Self::Rollback { .. } => true,
            Self::Status | Self::Texts => false,
        }
    }
}

/// Where a revision stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyStage {
    /// There is no policy of the cluster.
    None,
    /// It is for good.
    Settled,
    /// It goes back by itself unless confirmed.
    OnTrial,
    /// Nobody confirmed it in time.
    Lapsed,
}

/// What a host made of the newest revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyHostState {
    /// It is in force there.
    InForce,
    /// It went back there, since nobody confirmed it.
    WentBack,
    /// It could not be put in force there; the one before is.
    Refused,
    /// It has not said anything about this revision yet.
    Waiting,
    /// It does not answer; it takes the revision when it is back.
    Unreachable,
}

impl PolicyHostState {
    /// The words in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InForce => "in force",
            Self::WentBack => "went back",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
            Self::Unreachable => "unreachable",
        }
    }
}

/// One host and the newest revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyHost {
    /// Its name.
    pub name: String,
    /// What it made of the newest revision.
    pub state: PolicyHostState,
    /// The newest revision it spoke of.
    pub revision: Option<u64>,
    /// Why it refused.
    pub why: Option<String>,
    /// How long ago it said so first, in seconds.
    pub age_s: Option<u64>,
}

/// An earlier revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRevision {
    /// The revision.
    pub revision: u64,
    /// Who published it.
    pub author: String,
    /// How it came to be.
    pub made: String,
    /// When this host got it.
    pub seen: Timestamp,
    /// How many rules it has; absent: no policy of the cluster.
    pub rules: Option<usize>,
}

/// The policy of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPolicyStatus {
    /// The newest revision; 0: there never was one.
    pub revision: u64,
    /// The hash that tells two of one revision apart; empty where there is none.
    pub hash: String,
    /// Who published it.
    pub author: Option<String>,
    /// How it came to be; absent where this host cannot read it.
    pub made: Option<String>,
    /// Where it stands.
    pub stage: PolicyStage,
    /// On trial: the seconds left here.
    pub left_s: Option<u64>,
    /// On trial or lapsed: the revision before it; 0: none.
    pub previous: Option<u64>,
    /// The revision in force on this host; 0: this host's own policy.
    pub in_force: u64,
    /// Every host, this one first.
    pub hosts: Vec<PolicyHost>,
    /// What can be gone back to, newest first.
    pub history: Vec<PolicyRevision>,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyWritten {
    /// Its revision.
    pub revision: u64,
    /// The hash that tells two of one revision apart.
    pub hash: String,
    /// Rules that do not do what they seem to.
    pub notes: Vec<String>,
}

/// The texts to compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTexts {
    /// The newest revision; 0: there never was one.
    pub revision: u64,
    /// Its rules as they were written; absent: no policy of the cluster, or one that this host cannot read.
    pub cluster: Option<String>,
    /// What this host's configuration says, in force or not.
    pub local: PolicySet,
}

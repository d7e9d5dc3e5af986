//! The policy of the whole cluster as the control side shares it: what the director publishes, and what the API asks of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use overlay_control::ApiError;
use overlay_routing::policy::{PolicyRefusal, PolicyTracker, Rules, SavedPolicy, read_rules};
use overlay_wire::HostId;
use overlay_wire::membership::PolicyStatus;
use overlay_wire::policy::PolicySet;
use tokio::sync::oneshot;

use crate::core::unix_ms;

/// What each host made of the newest policies, and when that was heard first.
pub(crate) type Heard = BTreeMap<HostId, (PolicyStatus, Instant)>;

/// What the director last published.
#[derive(Debug, Clone, Default)]
pub(crate) struct PolicyState {
    /// What is newest, in force, on trial and past.
    pub(crate) tracker: PolicyTracker,
    /// The rules in force, where they are the cluster's.
    pub(crate) rules: Option<Arc<PolicySet>>,
}

impl PolicyState {
    /// Takes up what was kept, so that it is in force before the first packet.
    pub(crate) fn restored(saved: SavedPolicy, now: Instant) -> Self {
        let tracker = PolicyTracker::restore(saved, unix_ms() / 1000, now);
        // Rules that this release cannot read were refused at once when they came, unless a newer release ran here.
        let in_force = tracker.in_force().and_then(|rules| rules.text.as_deref());
        let rules = in_force.and_then(|text| match read_rules(text) {
            Ok(rules) => Some(Arc::new(rules)),
            Err(error) => {
                tracing::error!(cause = %error, "the cluster's policy that was in force cannot be read");
                None
            }
        });
        Self { tracker, rules }
    }
}

/// Where the outcome of a change goes: the revision it made, and its hash.
pub(crate) type Written = oneshot::Sender<Result<(u64, [u8; 32]), ApiError>>;

/// What is asked of the director about the policy of the whole cluster.
#[derive(Debug)]
pub enum PolicyChange {
    /// Publish rules, on trial for so many seconds or for good.
    Apply {
        /// The rules, read already.
        text: String,
        /// How long the trial is.
        trial_secs: Option<u32>,
        /// The outcome.
        done: Written,
    },
    /// Keep what is on trial.
    Confirm {
        /// The outcome.
        done: Written,
    },
    /// Put an earlier revision in force again; 0: no policy for the whole cluster.
    Rollback {
        /// Which.
        revision: u64,
        /// How long the trial is.
        trial_secs: Option<u32>,
        /// The outcome.
        done: Written,
    },
    /// Rules that were to be put in force are, or are not.
    Tried {
        /// Which.
        rules: Rules,
        /// The same, read.
        read: Option<Arc<PolicySet>>,
        /// What became of them.
        outcome: Result<(), PolicyRefusal>,
    },
}

//! Which policy is in force on this host: the cluster's newest that this host could take, or the one before it.
//!
//! Gossip says which document is the newest; this says what follows from it. Three things can stand between a document
//! and its rules being in force: it cannot be read or put in force here (the last good rules stay), it is on trial and the
//! time for a confirmation is over (what was before counts again), or the attempt to put it in force is still running.
//!
//! Every host decides about the end of a trial by itself, so nothing depends on the host that began it. The time is
//! measured from when this host got the document, by a clock that nobody sets. The wall clock only shortens it: a host that
//! was away when the trial began gets the document late, and must not try what all others have given up already. So a
//! document older than its trial and [`CLOCK_TOLERANCE`] is not tried any more. A wrong clock can end a trial early on that
//! host, which is the safe side, and never make it longer.

use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::membership::{PolicyDocument, PolicyMade, PolicyOutcome, PolicyStatus, PolicyTrial, PreviousPolicy};
use overlay_wire::policy::PolicySet;
use serde::{Deserialize, Serialize};

use crate::gossip::ClusterPolicy;

/// How far the clocks of two hosts may be apart before one of them gives up a trial that it got late or not at all.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);
/// How many revisions can be gone back to.
pub const HISTORY: usize = 16;
/// When rules that the kernel refused are tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Rules with the revision they are of. Without rules, each host's own policy counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// The revision; 0 where there never was a policy for the whole cluster.
    pub revision: u64,
    /// The rules as they were written.
    pub text: Option<String>,
}

/// An earlier revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PastPolicy {
    /// The revision.
    pub revision: u64,
    /// Who published it.
    pub author: HostId,
    /// How it came to be.
    pub made: PolicyMade,
    /// When this host got it, in seconds since 1970.
    pub seen: u64,
    /// The rules; absent: no policy for the whole cluster.
    pub rules: Option<String>,
}

/// Everything that outlives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPolicy {
    /// The newest document.
    pub newest: Option<ClusterPolicy>,
    /// When its trial ends, in seconds since 1970 by this host's clock.
    pub deadline: Option<u64>,
    /// Whether the trial ended without a confirmation.
    pub has_lapsed: bool,
    /// What was in force last.
    pub in_force: Option<Rules>,
    /// What was in force before the newest was.
    pub before: Option<Rules>,
    /// Earlier revisions, oldest first.
    pub history: Vec<PastPolicy>,
}

/// Why rules are not in force here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefusal {
    /// They, or the document, are not in a language that this release knows.
    #[error("{0}")]
    Unreadable(String),
    /// The system did not take them; they are tried again.
    #[error("{0}")]
    System(String),
}

/// How often what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicyCounters {
    /// Rules put in force.
    pub applied: u64,
    /// Rules that this host could not take.
    pub refused: u64,
    /// Trials that ended without a confirmation.
    pub lapsed: u64,
}

#[derive(Debug, Clone)]
struct Newest {
    policy: ClusterPolicy,
    document: Result<PolicyDocument, PolicyRefusal>,
    deadline: Option<Instant>,
    /// The same by the wall clock, for the next start.
    ends: Option<u64>,
    has_lapsed: bool,
}

/// The state machine.
#[derive(Debug, Clone, Default)]
pub struct PolicyTracker {
    newest: Option<Newest>,
    in_force: Option<Rules>,
    before: Option<Rules>,
    refusal: Option<PolicyRefusal>,
    retry: Option<Instant>,
    history: Vec<PastPolicy>,
    counters: PolicyCounters,
}

/// Reads rules.
///
/// # Errors
/// When a line is not in the rule language.
pub fn read_rules(text: &str) -> Result<PolicySet, PolicyRefusal> {
    text.parse::<PolicySet>().map_err(|error| PolicyRefusal::Unreadable(error.to_string()))
}

fn read(policy: &ClusterPolicy) -> Result<PolicyDocument, PolicyRefusal> {
    let document = PolicyDocument::parse(&policy.text).map_err(|error| PolicyRefusal::Unreadable(error.to_string()))?;
    if let Some(rules) = &document.rules {
        read_rules(rules)?;
    }
    Ok(document)
}

/// How long a trial may still go on: its own time, and less where the document is old by the wall clock.
fn time_left(trial: &PolicyTrial, unix_now: u64) -> Duration {
    let whole = Duration::from_secs(trial.seconds.into());
    let over = trial.written.saturating_add(trial.seconds.into()).saturating_add(CLOCK_TOLERANCE.as_secs());
    whole.min(Duration::from_secs(over.saturating_sub(unix_now)))
}

impl PolicyTracker {
    /// Takes up what was kept. Of a trial that is still going on, as much is left as the wall clock says.
    #[must_use]
    pub fn restore(saved: SavedPolicy, unix_now: u64, now: Instant) -> Self {
        let newest = saved.newest.map(|policy| {
            let document = read(&policy);
            let trial = document.as_ref().ok().and_then(|document| document.trial.as_ref());
            let deadline = trial.map(|trial| {
                let left = Duration::from_secs(saved.deadline.unwrap_or(0).saturating_sub(unix_now));
                now + left.min(time_left(trial, unix_now))
            });
            Newest { policy, document, deadline, ends: saved.deadline, has_lapsed: saved.has_lapsed }
        });
        let refusal = newest.as_ref().and_then(|newest| newest.document.as_ref().err().cloned());
        let mut history = saved.history;
        history.drain(..history.len().saturating_sub(HISTORY));
        let (in_force, before) = (saved.in_force, saved.before);
        Self { newest, in_force, before, refusal, history, ..Self::default() }
    }

    /// What is to be kept.
    #[must_use]
    pub fn save(&self) -> SavedPolicy {
        SavedPolicy {
            newest: self.newest.as_ref().map(|newest| newest.policy.clone()),
            deadline: self.newest.as_ref().and_then(|newest| newest.ends),
            has_lapsed: self.has_lapsed(),
            in_force: self.in_force.clone(),
            before: self.before.clone(),
            history: self.history.clone(),
        }
    }

    /// Takes the newest document.
    pub fn handle_policy(&mut self, policy: ClusterPolicy, unix_now: u64, now: Instant) {
        let is_newer = self
            .newest
            .as_ref()
            .is_none_or(|newest| (newest.policy.revision, newest.policy.hash) < (policy.revision, policy.hash));
        if !is_newer {
            return;
        }
        let document = read(&policy);
        // Rules that were only on trial are nothing to go back to.
        let was_on_trial = self
            .newest
            .take()
            .is_some_and(|newest| newest.document.is_ok_and(|document| document.trial.is_some()) && !newest.has_lapsed);
        if !was_on_trial {
            self.before = self.in_force.clone();
        }
        if let Ok(document) = &document {
            self.history.retain(|past| past.revision != policy.revision);
            self.history.push(PastPolicy {
                revision: policy.revision,
                author: policy.author,
                made: document.made,
                seen: unix_now,
                rules: document.rules.clone(),
            });
            self.history.sort_by_key(|past| past.revision);
            let surplus = self.history.len().saturating_sub(HISTORY);
            self.history.drain(..surplus);
        }
        let trial = document.as_ref().ok().and_then(|document| document.trial.as_ref());
        let left = trial.map(|trial| time_left(trial, unix_now));
        (self.refusal, self.retry) = (document.as_ref().err().cloned(), None);
        self.counters.refused += u64::from(document.is_err());
        let (deadline, ends) = (left.map(|left| now + left), left.map(|left| unix_now.saturating_add(left.as_secs())));
        self.newest = Some(Newest { policy, document, deadline, ends, has_lapsed: false });
        self.handle_timeout(unix_now, now);
    }

    /// Ends a trial whose time is over; whether one ended now.
    pub fn handle_timeout(&mut self, unix_now: u64, now: Instant) -> bool {
        if self.retry.is_some_and(|at| at <= now) {
            (self.refusal, self.retry) = (None, None);
        }
        let Some(newest) = &mut self.newest else { return false };
        let Some(trial) = newest.document.as_ref().ok().and_then(|document| document.trial.as_ref()) else {
            return false;
        };
        // The second also where this host slept and its other clock stood still.
        let is_over = newest.deadline.is_none_or(|deadline| deadline <= now) || time_left(trial, unix_now).is_zero();
        if newest.has_lapsed || !is_over {
            return false;
        }
        newest.has_lapsed = true;
        self.counters.lapsed += 1;
        let previous = trial.previous.as_ref().map(|previous| read_rules(&previous.rules));
        (self.refusal, self.retry) = (previous.and_then(Result::err), None);
        true
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.deadline(), self.retry].into_iter().flatten().min()
    }

    /// The rules that should be in force and are not: try them, and say what became of it.
    #[must_use]
    pub fn poll_rules(&self) -> Option<Rules> {
        let wanted = self.wanted()?;
        let is_due = self.in_force.as_ref() != Some(&wanted) && (self.refusal.is_none() || self.has_lapsed());
        // After a trial whose earlier rules cannot be read here, those that were in force here before it.
        (is_due && self.retry.is_none()).then_some(wanted)
    }

    /// Takes what became of an attempt. One that was overtaken meanwhile counts for what is in force all the same.
    pub fn settled(&mut self, rules: Rules, outcome: Result<(), PolicyRefusal>, now: Instant) {
        let is_wanted = self.wanted().as_ref() == Some(&rules);
        match outcome {
            Ok(()) => {
                self.counters.applied += 1;
                self.in_force = Some(rules);
            }
            Err(refusal) if is_wanted => {
                self.counters.refused += 1;
                self.retry = matches!(refusal, PolicyRefusal::System(_)).then(|| now + RETRY);
                self.refusal = Some(refusal);
            }
            Err(_) => {}
        }
    }

    /// What should be in force.
    fn wanted(&self) -> Option<Rules> {
        let newest = self.newest.as_ref()?;
        let document = newest.document.as_ref().ok()?;
        let trial = document.trial.as_ref().filter(|_| newest.has_lapsed);
        let Some(trial) = trial else {
            return Some(Rules { revision: newest.policy.revision, text: document.rules.clone() });
        };
        Some(match &trial.previous {
            Some(previous) if read_rules(&previous.rules).is_err() => {
                self.before.clone().unwrap_or(Rules { revision: 0, text: None })
            }
            Some(previous) => Rules { revision: previous.revision, text: Some(previous.rules.clone()) },
            None => Rules { revision: 0, text: None },
        })
    }

    /// What this host tells the others; nothing while it is still trying, or where there is no policy for all.
    #[must_use]
    pub fn status(&self) -> Option<PolicyStatus> {
        let ClusterPolicy { revision, hash, .. } = self.newest.as_ref()?.policy;
        let (outcome, reason) = match &self.refusal {
            Some(refusal) => (PolicyOutcome::Refused, refusal.to_string()),
            None if self.in_force != self.wanted() => return None,
            None if self.has_lapsed() => (PolicyOutcome::Lapsed, String::new()),
            None => (PolicyOutcome::Applied, String::new()),
        };
        Some(PolicyStatus { revision, hash, outcome, reason })
    }

    /// The document that publishes rules now, on trial or for good.
    #[must_use]
    pub fn draft(
        &self,
        made: PolicyMade,
        rules: Option<String>,
        trial_secs: Option<u32>,
        unix_now: u64,
    ) -> PolicyDocument {
        let trial = trial_secs.map(|seconds| PolicyTrial { seconds, written: unix_now, previous: self.proven() });
        PolicyDocument { made, rules, trial }
    }

    /// The document with which another writer takes over the newest from one that lost the right, so that hosts that join
    /// later get it too. It holds nothing but what all writers know, so several of them make the same one.
    #[must_use]
    pub fn adoption(&self) -> Option<PolicyDocument> {
        let newest = self.newest.as_ref()?;
        let document = newest.document.as_ref().ok()?;
        let Some(trial) = &document.trial else {
            let made = PolicyMade::Confirmed(newest.policy.revision);
            return Some(PolicyDocument { made, rules: document.rules.clone(), trial: None });
        };
        let previous = trial.previous.as_ref();
        // While it lasts it is nobody's to confirm.
        newest.has_lapsed.then(|| PolicyDocument {
            made: PolicyMade::RolledBack(previous.map_or(0, |previous| previous.revision)),
            rules: previous.map(|previous| previous.rules.clone()),
            trial: None,
        })
    }

    /// The newest rules that are not on trial.
    fn proven(&self) -> Option<PreviousPolicy> {
        let newest = self.newest.as_ref()?;
        match &newest.document {
            Ok(PolicyDocument { trial: Some(trial), .. }) => trial.previous.clone(),
            Ok(PolicyDocument { rules, .. }) => {
                rules.clone().map(|rules| PreviousPolicy { revision: newest.policy.revision, rules })
            }
            Err(_) => {
                let rules = self.in_force.clone()?;
                rules.text.map(|text| PreviousPolicy { revision: rules.revision, rules: text })
            }
        }
    }

    /// The newest document.
    #[must_use]
    pub fn newest(&self) -> Option<&ClusterPolicy> {
        self.newest.as_ref().map(|newest| &newest.policy)
    }

    /// The newest document, where it can be read.
    #[must_use]
    pub fn document(&self) -> Option<&PolicyDocument> {
        self.newest.as_ref()?.document.as_ref().ok()
    }

    /// When the trial ends, while there is one.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.newest.as_ref().filter(|newest| !newest.has_lapsed)?.deadline
    }

    /// Whether nobody confirmed the newest in time.
    #[must_use]
    pub fn has_lapsed(&self) -> bool {
        self.newest.as_ref().is_some_and(|newest| newest.has_lapsed)
    }

    /// What is in force; absent or without rules: this host's own policy.
    #[must_use]
    pub fn in_force(&self) -> Option<&Rules> {
        self.in_force.as_ref()
    }

    /// Why the rules that should be in force are not.
    #[must_use]
    pub fn refusal(&self) -> Option<&PolicyRefusal> {
        self.refusal.as_ref()
    }

    /// Earlier revisions and the newest, oldest first.
    #[must_use]
    pub fn history(&self) -> &[PastPolicy] {
        &self.history
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> PolicyCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests;

//! What the director does for the policy of the whole cluster: tries what is newest in the kernel, swaps it in, tells the
//! others, goes back when nobody confirms, and publishes changes that this host is asked for.

use std::sync::Arc;
use std::time::Instant;

use overlay_control::{ApiError, Code};
use overlay_routing::gossip::{GossipError, GossipEvent};
use overlay_routing::policy::{HISTORY, PolicyRefusal, PolicyTracker, read_rules};
use overlay_wire::gossip::RecordKind;
use overlay_wire::membership::{PolicyDocument, PolicyMade};

use super::Director;
use super::membership::unix_now;
use crate::cluster_policy::{Heard, PolicyChange, PolicyState};
use crate::core::{Change, Core};
use crate::rebuild::{Known, host_policy};

/// The director's part that knows of the cluster's policy.
#[derive(Debug)]
pub(crate) struct PolicyDriver {
    tracker: PolicyTracker,
    /// Whether something changed since the last turn.
    has_moved: bool,
    /// Whether rules are being tried in the kernel.
    is_trying: bool,
}

impl PolicyDriver {
    /// Goes on from what the core was made with.
    pub(crate) fn new(core: &Core) -> Self {
        let tracker = core.cluster_policy.load().tracker.clone();
        Self { tracker, has_moved: true, is_trying: false }
    }

    /// When the next turn is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.tracker.poll_timeout()
    }

    /// What is to be kept.
    pub(super) fn save(&self) -> overlay_routing::policy::SavedPolicy {
        self.tracker.save()
    }
}

impl Director {
    /// Takes what an event says about the cluster's policy.
    pub(super) fn policy_event(&mut self, event: &GossipEvent) {
        match event {
            GossipEvent::PolicyChanged(policy) => {
                let by = self.core.name_of(policy.author);
                self.policy.tracker.handle_policy((**policy).clone(), unix_now(), Instant::now());
                let made = self.policy.tracker.document().map_or_else(String::new, |document| {
                    let trial =
                        document.trial.as_ref().map(|trial| format!(", for {} s unless confirmed", trial.seconds));
                    format!(": {}{}", made(document.made), trial.unwrap_or_default())
                });
                let told = format!("{by} published revision {}{made}", policy.revision);
                self.core.events.info("policy-published", None, told);
                self.policy.has_moved = true;
            }
            GossipEvent::RecordChanged { key } if key.kind == RecordKind::POLICY_STATUS => self.hear_policy(),
            GossipEvent::MemberRevoked { .. } => {
                self.hear_policy();
                self.policy.has_moved = true;
            }
            GossipEvent::StandingChanged { .. } => self.policy.has_moved = true,
            _ => {}
        }
    }

    /// Notes what members say they made of it.
    fn hear_policy(&mut self) {
        let before = self.core.policy_heard.load_full();
        let now = Instant::now();
        let statuses = self.gossip.policy_statuses().into_iter();
        let heard: Heard = statuses
            .map(|(host, status)| {
                let since = before.get(&host).filter(|(old, _)| *old == status).map_or(now, |(_, since)| *since);
                (host, (status, since))
            })
            .collect();
        self.core.policy_heard.store(Arc::new(heard));
    }

    /// Ends a trial whose time is over, begins to put in force what should be, and tells where this host stands.
    pub(super) fn policy_turn(&mut self) {
        let now = Instant::now();
        let is_due = self.policy.poll_timeout().is_some_and(|due| due <= now);
        if self.policy.tracker.handle_timeout(unix_now(), now) {
            self.core.events.warn(
                "policy-lapsed",
                None,
                "nobody confirmed the newest policy: the one before counts again",
            );
            self.policy.has_moved = true;
        }
        if !self.policy.has_moved && !is_due {
            return;
        }
        self.policy.has_moved = false;
        self.adopt_policy();
        self.try_policy();
        if let Some(status) = self.policy.tracker.status() {
            self.gossip.publish_policy_status(status, now);
            self.hear_policy();
        }
        let rules = self.core.cluster_policy.load().rules.clone();
        self.core.cluster_policy.store(Arc::new(PolicyState { tracker: self.policy.tracker.clone(), rules }));
        self.must_keep = true;
    }

    /// Publishes the newest as this host's own where its author may not write any more: its records go with it, and hosts
    /// that join later would have no policy.
    fn adopt_policy(&mut self) {
        let Some(newest) = self.policy.tracker.newest() else { return };
        let (author, revision) = (newest.author, newest.revision);
        if self.gossip.has_policy_right(author) || !self.gossip.has_policy_right(self.core.host) {
            return;
        }
        let Some(text) = self.policy.tracker.adoption().and_then(|document| document.emit().ok()) else { return };
        // Refused where a newer one is on its way: then that one counts.
        let next = revision.saturating_add(1);
        if self.gossip.publish_policy(next, &text, Instant::now()).is_ok() {
            let why = format!("revision {revision} is published again as {next}: its author may not write any more");
            self.core.events.info("policy-adopted", None, why);
        }
    }

    /// The kernel first: it is the part that can refuse. The packet path follows with one swap when it did not.
    fn try_policy(&mut self) {
        if self.policy.is_trying {
            return;
        }
        let Some(rules) = self.policy.tracker.poll_rules() else { return };
        let config = self.core.config.load_full();
        let (read, wanted) = match rules.text.as_deref().map(read_rules).transpose() {
            Ok(read) => {
                let (rib, networks, identities) = (self.gossip.rib(), self.gossip.networks(), self.gossip.identities());
                let known = Known { rib: &rib, networks: &networks, identities: &identities };
                let policy = host_policy(&config, read.as_ref().unwrap_or(&config.policy), known);
                (read.map(Arc::new), Arc::new(policy))
            }
            Err(refusal) => {
                self.policy.tracker.settled(rules, Err(refusal), Instant::now());
                return;
            }
        };
        self.policy.is_trying = true;
        let (plumbing, changes) = (self.core.plumbing.clone(), self.core.changes.clone());
        tokio::spawn(async move {
            let outcome = plumbing.try_host_policy(wanted).await;
            let outcome = outcome.map_err(|error| PolicyRefusal::System(error.to_string()));
            // The director may have ended meanwhile.
            let _ = changes.send(Change::Policy(PolicyChange::Tried { rules, read, outcome })).await;
        });
    }

    pub(super) fn policy_change(&mut self, change: PolicyChange) {
        match change {
            PolicyChange::Apply { text, trial_secs, done } => {
                let draft = self.policy.tracker.draft(PolicyMade::Applied, Some(text), trial_secs, unix_now());
                let _ = done.send(self.publish_policy(&draft));
            }
            PolicyChange::Confirm { done } => {
                let _ = done.send(self.confirm_policy());
            }
            PolicyChange::Rollback { revision, trial_secs, done } => {
                let _ = done.send(self.roll_policy_back(revision, trial_secs));
            }
            PolicyChange::Tried { rules, read, outcome } => {
                self.policy.is_trying = false;
                let revision = rules.revision;
                match &outcome {
                    Ok(()) => {
                        self.core.events.info("policy-in-force", None, in_force(revision, rules.text.is_some()));
                    }
                    Err(refusal) => {
                        let why = format!("revision {revision} is not in force here: {refusal}");
                        self.core.events.warn("policy-refused", None, why);
                    }
                }
                let is_ok = outcome.is_ok();
                self.policy.tracker.settled(rules, outcome, Instant::now());
                if is_ok {
                    let tracker = self.policy.tracker.clone();
                    self.core.cluster_policy.store(Arc::new(PolicyState { tracker, rules: read }));
                    // A rebuild in between may have given the kernel the old one again.
                    self.host_policy = None;
                    self.rebuild();
                }
                self.policy.has_moved = true;
                self.drain(false);
            }
        }
    }

    fn publish_policy(&mut self, document: &PolicyDocument) -> Result<(u64, [u8; 32]), ApiError> {
        let text = document.emit().map_err(|error| {
            let next = match &document.trial {
                Some(_) => {
                    "shorten the rules, or apply them without --confirm: a trial carries the rules before it too"
                }
                None => "shorten the rules: a prefix or a port list in one rule says what many rules do",
            };
            ApiError::new(Code::Invalid, "the policy is too long for the whole cluster", error.to_string(), next)
        })?;
        let known = self.gossip.policy().map_or(0, |policy| policy.revision);
        let revision = known.checked_add(1).ok_or_else(|| {
            ApiError::new(
                Code::Conflict,
                "nothing was changed",
                "there is no higher revision left",
                "found a new cluster",
            )
        })?;
        let hash = self.gossip.publish_policy(revision, &text, Instant::now()).map_err(|error| match error {
            GossipError::NoPolicyRight => self.no_policy_right(),
            other => ApiError::new(Code::Conflict, "nothing was changed", other.to_string(), "try again"),
        })?;
        self.drain(false);
        Ok((revision, hash))
    }

    fn no_policy_right(&self) -> ApiError {
        let members = self.gossip.members();
        let writers: Vec<&str> = members
            .iter()
            .filter(|member| self.gossip.has_policy_right(member.host))
            .map(|member| &*member.name)
            .collect();
        let next = if writers.is_empty() {
            "invite a host with `overlayctl invite --allow-policy` on an issuer, or import the authority's key here"
                .to_owned()
        } else {
            format!("run it on {}, or invite a host with `overlayctl invite --allow-policy`", writers.join(" or "))
        };
        ApiError::new(
            Code::Permission,
            "this host may not change the cluster's policy",
            "its certificate does not have the right `policy`, or is out of its time",
            next,
        )
    }

    fn confirm_policy(&mut self) -> Result<(u64, [u8; 32]), ApiError> {
        let conflict = |what: &str, why: &str, next: &str| ApiError::new(Code::Conflict, what, why, next);
        self.policy_turn();
        let Some(document) = self.policy.tracker.document().filter(|document| document.trial.is_some()) else {
            return Err(conflict(
                "nothing waits for a confirmation",
                "the newest policy is in force for good",
                "see `overlayctl policy status`",
            ));
        };
        if self.policy.tracker.has_lapsed() {
            return Err(conflict(
                "the confirmation comes too late",
                "the time of the trial is over and the policy before it counts again",
                "apply the file again, with a longer time: `overlayctl policy apply FILE --confirm 5m`",
            ));
        }
        let of = self.policy.tracker.newest().map_or(0, |newest| newest.revision);
        let (made, rules) = (PolicyMade::Confirmed(of), document.rules.clone());
        let draft = self.policy.tracker.draft(made, rules, None, unix_now());
        self.publish_policy(&draft)
    }

    fn roll_policy_back(&mut self, revision: u64, trial_secs: Option<u32>) -> Result<(u64, [u8; 32]), ApiError> {
        let past = self.policy.tracker.history();
        let rules = match past.iter().find(|past| past.revision == revision) {
            Some(past) => past.rules.clone(),
            None if revision == 0 => None,
            None => {
                let known: Vec<String> = past.iter().map(|past| past.revision.to_string()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(ApiError::new(
                    Code::NotFound,
                    format!("revision {revision} of the policy is not known here"),
                    format!("a host keeps the last {HISTORY} that it got; this one has: {known}"),
                    "roll back to one of these, to 0 for no policy of the cluster, or apply a file",
                ));
            }
        };
        let draft = self.policy.tracker.draft(PolicyMade::RolledBack(revision), rules, trial_secs, unix_now());
        self.publish_policy(&draft)
    }
}

/// How a revision came to be, in words.
pub(crate) fn made(made: PolicyMade) -> String {
    match made {
        PolicyMade::Applied => "applied from a file".to_owned(),
        PolicyMade::Confirmed(of) => format!("confirms {of}"),
        PolicyMade::RolledBack(0) => "no policy of the cluster".to_owned(),
        PolicyMade::RolledBack(to) => format!("back to {to}"),
    }
}

fn in_force(revision: u64, has_rules: bool) -> String {
    if has_rules {
        format!("revision {revision} of the cluster's policy is in force")
    } else {
        "no policy of the cluster: this host's own counts".to_owned()
    }
}

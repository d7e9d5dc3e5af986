//! The policy of the whole cluster: changes are passed to the director; status is put together from what it published.

use std::fmt::Write as _;
use std::time::{Duration, Instant, UNIX_EPOCH};

use overlay_config::Role;
use overlay_control::api::{
    ClusterPolicyStatus, PolicyHost, PolicyHostState, PolicyRequest, PolicyRevision, PolicyStage, PolicyTexts,
    PolicyWritten, Problem, Response,
};
use overlay_control::{ApiError, Code};
use overlay_routing::gossip::MemberState;
use overlay_routing::policy::PastPolicy;
use overlay_wire::HostId;
use overlay_wire::membership::PolicyOutcome;
use overlay_wire::membership::document::MAX_TRIAL_SECS;
use overlay_wire::policy::PolicySet;
use tokio::sync::oneshot;

use super::{Api, ended};
use crate::cluster_policy::{PolicyChange, Written};
use crate::core::Change;
use crate::director::policy_made;

/// The shortest trial: a confirmation must have the time to be typed and to arrive.
const MIN_TRIAL_SECS: u32 = 5;

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().take(6).fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn check_trial(confirm_s: Option<u32>) -> Result<(), ApiError> {
    match confirm_s {
        Some(seconds) if !(MIN_TRIAL_SECS..=MAX_TRIAL_SECS).contains(&seconds) => Err(ApiError::new(
            Code::Invalid,
            format!("a trial of {seconds} s is refused"),
            format!("it may last from {MIN_TRIAL_SECS} s to a day"),
            "give a time in these bounds, as in --confirm 60s",
        )),
        _ => Ok(()),
    }
}

impl Api {
    pub(super) async fn cluster_policy(&self, request: PolicyRequest) -> Result<Response, ApiError> {
        if self.core.config.load().role != Role::Certified {
            return Err(ApiError::new(
                Code::Unsupported,
                "this cluster has no policy for all hosts",
                "its members stand in the files of the hosts, and a policy for all is signed with a right in a certificate",
                "`overlayctl policy apply FILE --local` on each host, or found a cluster with `overlayctl init`",
            ));
        }
        match request {
            PolicyRequest::Apply { text, confirm_s } => {
                check_trial(confirm_s)?;
                let policy: PolicySet = text.parse().map_err(|error: overlay_wire::policy::PolicySetError| {
                    ApiError::new(Code::Policy, "nothing was changed", error.to_string(), "correct the line named")
                })?;
                let notes = self.policy_warnings(&policy);
                self.write_policy(notes, |done| PolicyChange::Apply { text, trial_secs: confirm_s, done }).await
            }
            PolicyRequest::Confirm => self.write_policy(Vec::new(), |done| PolicyChange::Confirm { done }).await,
            PolicyRequest::Rollback { revision, confirm_s } => {
                check_trial(confirm_s)?;
                let change = |done| PolicyChange::Rollback { revision, trial_secs: confirm_s, done };
                self.write_policy(Vec::new(), change).await
            }
            PolicyRequest::Status => Ok(Response::ClusterPolicy(Box::new(self.policy_status()))),
            PolicyRequest::Texts => {
                let state = self.core.cluster_policy.load();
                Ok(Response::PolicyTexts(Box::new(PolicyTexts {
                    revision: state.tracker.newest().map_or(0, |newest| newest.revision),
                    cluster: state.tracker.document().and_then(|document| document.rules.clone()),
                    local: self.core.config.load().policy.clone(),
                })))
            }
        }
    }

    async fn write_policy(
        &self,
        notes: Vec<String>,
        change: impl FnOnce(Written) -> PolicyChange,
    ) -> Result<Response, ApiError> {
        let (done, outcome) = oneshot::channel();
        self.core.changes.send(Change::Policy(change(done))).await.map_err(|_| ended("director"))?;
        let (revision, hash) = outcome.await.map_err(|_| ended("director"))??;
        Ok(Response::PolicyWritten(PolicyWritten { revision, hash: hex(&hash), notes }))
    }

    /// The newest revision, and what every host made of it.
    fn policy_status(&self) -> ClusterPolicyStatus {
        let (state, now) = (self.core.cluster_policy.load(), Instant::now());
        let tracker = &state.tracker;
        let (newest, document) = (tracker.newest(), tracker.document());
        let trial = document.and_then(|document| document.trial.as_ref());
        let stage = match (newest, trial) {
            (None, _) => PolicyStage::None,
            (Some(_), Some(_)) if tracker.has_lapsed() => PolicyStage::Lapsed,
            (Some(_), Some(_)) => PolicyStage::OnTrial,
            (Some(_), None) => PolicyStage::Settled,
        };
        let past = |past: &PastPolicy| PolicyRevision {
            revision: past.revision,
            author: self.policy_author(past.author),
            made: policy_made(past.made),
            seen: (UNIX_EPOCH + Duration::from_secs(past.seen)).into(),
            rules: past.rules.as_ref().map(|text| text.parse::<PolicySet>().map_or(0, |policy| policy.rules.len())),
        };
        ClusterPolicyStatus {
            revision: newest.map_or(0, |newest| newest.revision),
            hash: newest.map_or_else(String::new, |newest| hex(&newest.hash)),
            author: newest.map(|newest| self.policy_author(newest.author)),
            made: document.map(|document| policy_made(document.made)),
            stage,
            left_s: tracker.deadline().map(|at| at.saturating_duration_since(now).as_secs_f64().ceil() as u64),
            previous: trial.map(|trial| trial.previous.as_ref().map_or(0, |previous| previous.revision)),
            in_force: tracker.in_force().filter(|rules| rules.text.is_some()).map_or(0, |rules| rules.revision),
            hosts: self.policy_hosts(now),
            history: tracker.history().iter().rev().map(past).collect(),
        }
    }

    fn policy_author(&self, host: HostId) -> String {
        if host == self.core.host { self.core.config.load().node.name.clone() } else { self.core.name_of(host) }
    }

    fn policy_hosts(&self, now: Instant) -> Vec<PolicyHost> {
        let (state, heard, view) =
            (self.core.cluster_policy.load(), self.core.policy_heard.load(), self.core.view.load());
        let Some(newest) = state.tracker.newest() else { return Vec::new() };
        let own_name = self.core.config.load().node.name.clone();
        let own = std::iter::once((self.core.host, own_name, true));
        let members = view.members.iter().map(|member| {
            let is_live = matches!(member.state, MemberState::Up | MemberState::Degraded);
            (member.host, member.name.clone(), is_live)
        });
        let is_kept = self.core.store.has_policy(newest.revision, &newest.hash);
        let host = |(host, name, is_live): (HostId, String, bool)| {
            let said = heard.get(&host);
            let of_newest = said.filter(|(status, _)| (status.revision, status.hash) == (newest.revision, newest.hash));
            let state = match of_newest.map(|(status, _)| status.outcome) {
                _ if !is_live => PolicyHostState::Unreachable,
                // Before it is on disk nobody is told that it is done.
                _ if host == self.core.host && !is_kept => PolicyHostState::Waiting,
                Some(PolicyOutcome::Applied) => PolicyHostState::InForce,
                Some(PolicyOutcome::Lapsed) => PolicyHostState::WentBack,
                Some(PolicyOutcome::Refused) => PolicyHostState::Refused,
                None => PolicyHostState::Waiting,
            };
            PolicyHost {
                name,
                state,
                revision: said.map(|(status, _)| status.revision),
                why: of_newest.map(|(status, _)| status.reason.clone()).filter(|reason| !reason.is_empty()),
                age_s: said.map(|(_, since)| now.saturating_duration_since(*since).as_secs()),
            }
        };
        own.chain(members).map(host).collect()
    }

    /// What is wrong with the cluster's policy here, and where this host published it, elsewhere.
    pub(super) fn policy_problems(&self) -> Vec<Problem> {
        let state = self.core.cluster_policy.load();
        let Some(newest) = state.tracker.newest() else { return Vec::new() };
        let mut problems = Vec::new();
        if let Some(refusal) = state.tracker.refusal() {
            let in_force = match state.tracker.in_force().filter(|rules| rules.text.is_some()) {
                Some(rules) => format!("revision {} stays in force", rules.revision),
                None => "this host's own policy stays in force".to_owned(),
            };
            problems.push(Problem {
                code: "POLICY_REFUSED".to_owned(),
                what: format!("revision {} of the cluster's policy is not in force here: {in_force}", newest.revision),
                why: refusal.to_string(),
                next: "bring overlayd here to the release of the host that published it, or publish rules that all \
                       hosts know; `overlayctl policy status` names the hosts"
                    .to_owned(),
            });
        }
        if newest.author == self.core.host {
            let hosts = self.policy_hosts(Instant::now());
            let mut refusing: Vec<String> = hosts
                .iter()
                .skip(1)
                .filter(|host| host.state == PolicyHostState::Refused)
                .map(|host| host.name.clone())
                .collect();
            refusing.sort();
            if !refusing.is_empty() {
                problems.push(Problem {
                    code: "POLICY_NOT_EVERYWHERE".to_owned(),
                    what: format!(
                        "revision {} of the cluster's policy is not in force on {}",
                        newest.revision,
                        refusing.join(", ")
                    ),
                    why: "these hosts could not take it and keep the one before".to_owned(),
                    next: "`overlayctl policy status` has each host's reason".to_owned(),
                });
            }
        }
        problems
    }
}

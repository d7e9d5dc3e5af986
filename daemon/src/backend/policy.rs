//! The packet filter: what is in force, what a policy would mean, what decides a packet.

use overlay_config::OriginLayer;
use overlay_control::api::{PolicyTest, PolicyView, Response, RuleMatch, TestVerdict, Verdict};
use overlay_dataplane::{CompiledPolicy, DecidedBy, Outcome, Tuple, explain};
use overlay_wire::policy::PolicySet;

use super::{Api, done};
use crate::rebuild::{Known, Names};
use crate::underlay::route::route_to;

impl Api {
    pub(super) fn policy_show(&self) -> Response {
        let config = self.core.config.load();
        let written = ["policy.rules", "policy.default"].map(|key| config.origins.of(key));
        let [rules, default] = written;
        let origin = if rules.layer == OriginLayer::Default { default } else { rules };
        let cluster = self.core.cluster_policy.load();
        let in_force = cluster.tracker.in_force().filter(|_| cluster.rules.is_some());
        Response::Policy(PolicyView {
            policy: self.core.policy().as_ref().clone(),
            revision: self.core.revision(),
            origin: match origin.layer {
                _ if in_force.is_some() => "cluster",
                OriginLayer::Default => "default",
                OriginLayer::Membership => "membership",
                OriginLayer::File => "file",
                OriginLayer::Cli => "cli",
            }
            .to_owned(),
            cluster: in_force.map(|rules| rules.revision),
            hits: self.core.shared.snapshot.load().tables.policy.hits(),
        })
    }

    pub(super) fn policy_check(&self, policy: &PolicySet) -> Response {
        done(false, self.policy_warnings(policy))
    }

    /// What in a policy does not do what it seems to.
    pub(super) fn policy_warnings(&self, policy: &PolicySet) -> Vec<String> {
        let view = self.core.view.load();
        let config = self.core.config.load();
        let known = Known { rib: &view.rib, networks: &view.networks, identities: &view.identities };
        let names = Names::new(&config, known);
        let compiled = CompiledPolicy::compile(policy, &names);
        compiled.warnings().iter().map(ToString::to_string).collect()
    }

    pub(super) fn policy_test(&self, test: &PolicyTest) -> Response {
        let snapshot = self.core.shared.snapshot.load();
        let tuple = Tuple {
            src: test.from,
            dst: test.to,
            protocol: test.protocol,
            src_port: test.source_port.unwrap_or(0),
            dst_port: test.port.unwrap_or(0),
        };
        let mark = self.core.config.load().plumbing.mark_socket;
        // The kernel uses an address as the source towards itself exactly when it is one of the host's own.
        let is_own = |address| route_to((address, 9).into(), mark).is_ok_and(|route| route.source == address);
        let steps = explain(&snapshot.tables, &tuple, is_own);
        let last = steps.last();
        let verdict = match last.map(|step| step.outcome) {
            Some(Outcome::Pass) => Verdict::Allow,
            Some(Outcome::Reject(_)) => Verdict::Reject,
            Some(Outcome::Drop(_)) | None => Verdict::Deny,
        };
        let rule = last.and_then(|step| match step.decided_by {
            Some(DecidedBy::Rule(place)) => Some(RuleMatch {
                number: place + 1,
                rule: snapshot.tables.policy.rules().get(place as usize).map(ToString::to_string).unwrap_or_default(),
            }),
            _ => None,
        });
        let owner = |address| {
            let why = self.core.view.load().rib.why_ip(address);
            why.best.map(|claim| if claim.name.is_empty() { "this host".to_owned() } else { claim.name })
        };
        Response::Verdict(TestVerdict {
            verdict,
            rule,
            reason: last.map(|step| step.detail.clone()).unwrap_or_default(),
            from_owner: owner(test.from),
            to_owner: owner(test.to),
            steps: steps.iter().map(|step| format!("{}: {}", step.stage, step.detail)).collect(),
        })
    }
}

//! Routes: what is known, which claim counts and why.

use std::net::IpAddr;
use std::time::Duration;

use overlay_control::api::{Refusal, RefusedBy, Response, RouteAdded, RouteEntry, RouteWhy};
use overlay_control::{ApiError, Code};
use overlay_routing::ownership::Owner;
use overlay_routing::rib::Claim;
use overlay_wire::Prefix;
use overlay_wire::gossip::RouteVerdict;

use super::{Api, done};

/// How long `route add` waits for members to say what they make of the announcement.
const VERDICTS_WITHIN: Duration = Duration::from_secs(3);

impl Api {
    pub(super) fn routes(&self) -> Vec<RouteEntry> {
        self.core.view.load().rib.claims().iter().map(|claim| self.entry(claim)).collect()
    }

    fn entry(&self, claim: &Claim) -> RouteEntry {
        let (owner, kind) = match claim.owner {
            Owner::Local => (self.core.config.load().node.name.clone(), "local"),
            Owner::Member(_) => (claim.name.clone(), "member"),
            Owner::Foreign(_) => (claim.name.clone(), "foreign"),
        };
        RouteEntry {
            prefix: claim.prefix,
            owner,
            kind: kind.to_owned(),
            metric: claim.metric,
            best: claim.refusal.is_none(),
            reason: claim.refusal_reason().unwrap_or_else(|| claim.reason()),
        }
    }

    pub(super) fn route_get(&self, address: IpAddr) -> Result<Response, ApiError> {
        let why = self.core.view.load().rib.why_ip(address);
        why.best.map(|claim| Response::Route(self.entry(&claim))).ok_or_else(|| {
            ApiError::new(
                Code::NoRoute,
                format!("nobody owns {address}"),
                "no prefix in use covers it",
                format!("see `overlayctl route why {address}` for claims that are refused"),
            )
        })
    }

    pub(super) fn route_why(&self, prefix: Prefix) -> Response {
        let why = self.core.view.load().rib.why(prefix);
        let refused = why
            .refused
            .iter()
            .map(|claim| Refusal {
                prefix: claim.prefix,
                owner: claim.name.clone(),
                why: claim.refusal_reason().unwrap_or_default(),
                missing_line: missing_line(claim),
            })
            .collect();
        let candidates = why.best.iter().chain(&why.covering).map(|claim| self.entry(claim)).collect();
        Response::RouteWhy(RouteWhy { query: prefix, candidates, refused })
    }

    pub(super) async fn route_add(&self, prefix: Prefix) -> Result<Response, ApiError> {
        let changed = self
            .change_layer(|layer, config| {
                if config.node.announce.contains(&prefix) {
                    return Ok(false);
                }
                layer.announce.push(prefix);
                Ok(true)
            })
            .await?;
        let deadline = tokio::time::Instant::now() + VERDICTS_WITHIN;
        loop {
            let outcome = self.announcement(prefix, changed);
            if outcome.unanswered.is_empty() || tokio::time::Instant::now() >= deadline {
                return Ok(Response::RouteAdded(outcome));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn announcement(&self, prefix: Prefix, changed: bool) -> RouteAdded {
        let view = self.core.view.load();
        let own = self.core.config.load().node.name.clone();
        let mut outcome =
            RouteAdded { prefix, changed, accepted_by: Vec::new(), refused_by: Vec::new(), unanswered: Vec::new() };
        for member in &view.members {
            let verdicts = view.verdicts.get(&member.host);
            let verdict = verdicts.and_then(|all| all.iter().find(|(announced, _)| *announced == prefix));
            match verdict.map(|(_, verdict)| *verdict) {
                Some(RouteVerdict::Accepted) => outcome.accepted_by.push(member.name.clone()),
                Some(verdict) => outcome.refused_by.push(RefusedBy {
                    member: member.name.clone(),
                    why: verdict.name().to_owned(),
                    missing_line: matches!(verdict, RouteVerdict::OutsideAllow | RouteVerdict::TooLong)
                        .then(|| format!("allow = [\"{prefix}\"] for [[member]] name = \"{own}\"")),
                }),
                None => outcome.unanswered.push(member.name.clone()),
            }
        }
        outcome
    }

    pub(super) async fn route_remove(&self, prefix: Prefix) -> Result<Response, ApiError> {
        let changed = self
            .change_layer(|layer, config| {
                if let Some(place) = layer.announce.iter().position(|own| *own == prefix) {
                    layer.announce.remove(place);
                    return Ok(true);
                }
                if config.node.announce.contains(&prefix) {
                    return Err(ApiError::new(
                        Code::ReadOnly,
                        format!("{prefix} is announced by the file"),
                        "the command line changes only what it set",
                        "remove it from node.announce and run `overlayctl config reload`",
                    ));
                }
                Err(super::not_found("announced route", &prefix.to_string(), "overlayctl route list"))
            })
            .await?;
        Ok(done(changed, vec![format!("{prefix} is withdrawn")]))
    }
}

fn missing_line(claim: &Claim) -> Option<String> {
    use overlay_routing::rib::Refusal as Why;
    matches!(claim.refusal, Some(Why::OutsideAllow | Why::TooLong { .. }))
        .then(|| format!("allow = [\"{}\"] for [[member]] name = \"{}\"", claim.prefix, claim.name))
}

//! Why a flow would pass or not: the same decisions as the packet path's, for a tuple without a packet.

use std::fmt;

use overlay_wire::policy::Action;

use crate::early;
use crate::path::{self, End, Exit};
use crate::policy::{DecidedBy, Tuple};
use crate::reason::DropReason;
use crate::tables::{Route, Tables};
use crate::verdict::Origin;

/// One check of the packet path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// Addresses and protocols that never belong on the overlay.
    Early,
    /// The owners of source and destination.
    Path,
    /// The packet filter.
    Policy,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Early => "addresses",
            Self::Path => "path",
            Self::Policy => "policy",
        })
    }
}

/// How a check ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// The next check follows; after the last one the packet passes.
    Pass,
    /// The packet is dropped silently.
    Drop(DropReason),
    /// The packet is dropped and the sender told.
    Reject(DropReason),
}

/// One check with its outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which check.
    pub stage: Stage,
    /// How it ends.
    pub outcome: Outcome,
    /// What was found, in words.
    pub detail: String,
    /// What decided, where the check is the packet filter.
    pub decided_by: Option<DecidedBy>,
}

/// Explains what happens here to the first packet of a flow; the last step decides. The packet is taken to come from the
/// owner of its source: from a peer if a peer owns it, else from the TUN.
#[must_use]
pub fn explain(tables: &Tables, tuple: &Tuple) -> Vec<Step> {
    let mut steps = Vec::with_capacity(3);
    let mut step = |stage, outcome, detail: String, decided_by| {
        steps.push(Step { stage, outcome, detail, decided_by });
        outcome == Outcome::Pass
    };
    let early = early::addresses(tuple.src, tuple.dst).and_then(|()| early::tunnel(tuple.protocol));
    let (outcome, detail) = match early {
        Ok(()) => (Outcome::Pass, "addresses and protocol may appear on the overlay".to_owned()),
        Err(reason) => (Outcome::Drop(reason), format!("{tuple} never belongs on the overlay ({reason})")),
    };
    if !step(Stage::Early, outcome, detail, None) {
        return steps;
    }
    let source = tables.owners.lookup(tuple.src).copied();
    let target = tables.owners.lookup(tuple.dst).copied();
    let origin = match source {
        Some(Route::Peer(peer)) => Origin::Peer(peer),
        Some(Route::Local) | None => Origin::Tun,
    };
    let owners = format!("{} is {}, {} is {}", tuple.src, owner(tables, source), tuple.dst, owner(tables, target));
    let found = path::find(tables, origin, tuple.src, tuple.dst);
    let (outcome, detail) = match &found {
        Ok(path) => {
            let way = match (origin, path.exit) {
                (_, Exit::Peer(peer)) => format!("forwarded to {}", peer_name(tables, Route::Peer(peer))),
                (Origin::Peer(_), Exit::Tun) => "delivered here".to_owned(),
                (Origin::Tun, Exit::Tun) => match path.to {
                    End::Outside => "leaves through this host".to_owned(),
                    End::Host | End::Member | End::Foreign => "stays on this host".to_owned(),
                },
            };
            (Outcome::Pass, format!("{owners}: {way}"))
        }
        Err(DropReason::NoOwner) => (Outcome::Reject(DropReason::NoOwner), owners),
        Err(reason) => (Outcome::Drop(*reason), format!("{owners}: this host is not on the way ({reason})")),
    };
    if !step(Stage::Path, outcome, detail, None) {
        return steps;
    }
    let Ok(path) = found else { return steps };
    let decision = tables.policy.decide(tuple, path.from, path.to);
    let detail = match decision.by {
        DecidedBy::Rule(place) => match tables.policy.rules().get(place as usize) {
            Some(rule) => format!("rule {}: {rule}", place + 1),
            None => format!("rule {}", place + 1),
        },
        DecidedBy::Default(grounds) => grounds.to_string(),
    };
    let by_rule = matches!(decision.by, DecidedBy::Rule(_));
    let outcome = match (decision.action, by_rule) {
        (Action::Allow, _) => Outcome::Pass,
        (Action::Deny, true) => Outcome::Drop(DropReason::PolicyDeny),
        (Action::Reject, true) => Outcome::Reject(DropReason::PolicyReject),
        (Action::Deny, false) => Outcome::Drop(DropReason::PolicyDefault),
        (Action::Reject, false) => Outcome::Reject(DropReason::PolicyDefault),
    };
    step(Stage::Policy, outcome, detail, Some(decision.by));
    steps
}

fn owner(tables: &Tables, route: Option<Route>) -> String {
    match route {
        Some(Route::Local) => "on this host".to_owned(),
        Some(route) => format!("owned by {}", peer_name(tables, route)),
        None => "owned by nobody".to_owned(),
    }
}

fn peer_name(tables: &Tables, route: Route) -> String {
    match route {
        Route::Local => "this host".to_owned(),
        Route::Peer(peer) => tables.peer(peer).map_or_else(|| format!("peer {}", peer.0), |peer| peer.name.clone()),
    }
}

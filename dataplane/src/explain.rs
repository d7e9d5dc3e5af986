//! Why a flow would pass or not: the same decisions as the packet path's, for a tuple without a packet.

use std::fmt;
use std::net::IpAddr;

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
/// owner of its source: from a peer if a peer owns it, else from the TUN. `is_own` tells addresses of this host that are
/// not the overlay's: flows between this host and its containers do not pass the packet path, but the same rules in the
/// kernel ([`HostPolicy`](crate::HostPolicy)).
#[must_use]
pub fn explain(tables: &Tables, tuple: &Tuple, is_own: impl Fn(IpAddr) -> bool) -> Vec<Step> {
    let mut steps = Vec::with_capacity(3);
    let mut step = |stage, outcome, detail: String, decided_by| {
        steps.push(Step { stage, outcome, detail, decided_by });
        outcome == Outcome::Pass
    };
    let early = early::addresses(tuple.src, tuple.dst)
        .and_then(|()| early::tunnel(tuple.protocol))
        .and_then(|()| early::family(tuple.src.is_ipv4(), tuple.protocol));
    let (outcome, detail) = match early {
        Ok(()) => (Outcome::Pass, "addresses and protocol may appear on the overlay".to_owned()),
        Err(reason) => (Outcome::Drop(reason), format!("{tuple} never belongs on the overlay ({reason})")),
    };
    if !step(Stage::Early, outcome, detail, None) {
        return steps;
    }
    let (outcome, detail, ends) = match direct(tables, tuple, is_own) {
        Some(ends) => {
            let place = |end| if end == End::Host { "this host itself" } else { "a container of this host" };
            let (from, to) = (place(ends.0), place(ends.1));
            let way = "directly, filtered by the kernel with the same rules";
            (Outcome::Pass, format!("{} is {from}, {} is {to}: {way}", tuple.src, tuple.dst), Some(ends))
        }
        None => way(tables, tuple),
    };
    if !step(Stage::Path, outcome, detail, None) {
        return steps;
    }
    let Some((from, to)) = ends else { return steps };
    let decision = tables.policy.decide(tuple, from, to);
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

/// The two ends, where one is this host and the other one of its containers.
fn direct(tables: &Tables, tuple: &Tuple, is_own: impl Fn(IpAddr) -> bool) -> Option<(End, End)> {
    let local = &tables.local;
    let end = |address: IpAddr| {
        if local.host.contains(&address) || is_own(address) {
            Some(End::Host)
        } else if local.prefixes.iter().any(|prefix| prefix.contains(address)) {
            Some(End::Member)
        } else {
            None
        }
    };
    let ends = (end(tuple.src)?, end(tuple.dst)?);
    (ends.0 != ends.1).then_some(ends)
}

/// The way through the packet path: whether there is one, in words, and what its ends are.
fn way(tables: &Tables, tuple: &Tuple) -> (Outcome, String, Option<(End, End)>) {
    let source = tables.owners.lookup(tuple.src).copied();
    let target = tables.owners.lookup(tuple.dst).copied();
    let origin = match source {
        Some(Route::Peer(peer)) => Origin::Peer(peer),
        Some(Route::Local) | None => Origin::Tun,
    };
    let owners = format!("{} is {}, {} is {}", tuple.src, owner(tables, source), tuple.dst, owner(tables, target));
    match path::find(tables, origin, tuple.src, tuple.dst) {
        Ok(path) => {
            let way = match (origin, path.exit) {
                (_, Exit::Peer(peer)) => format!("forwarded to {}", peer_name(tables, Route::Peer(peer))),
                (Origin::Peer(_), Exit::Tun) => "delivered here".to_owned(),
                (Origin::Tun, Exit::Tun) => match path.to {
                    End::Outside => "leaves through this host".to_owned(),
                    End::Host | End::Member | End::Foreign => "stays on this host".to_owned(),
                },
            };
            (Outcome::Pass, format!("{owners}: {way}"), Some((path.from, path.to)))
        }
        Err(DropReason::NoOwner) => (Outcome::Reject(DropReason::NoOwner), owners, None),
        Err(reason) => (Outcome::Drop(reason), format!("{owners}: this host is not on the way ({reason})"), None),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Grounds;
    use crate::testing::{ip, tables};

    const CONTAINER: &str = "10.42.1.5";

    #[test]
    fn explanation_knows_the_host_behind_every_address_of_its_own() {
        let tables = tables("reject tcp/22 from any to 192.0.2.1\nallow tcp/22 from any to any\ndefault members");
        let nic = ip("192.0.2.1");
        let last = |src: &str, dst: &str, protocol, dst_port| {
            let tuple = Tuple { src: ip(src), dst: ip(dst), protocol, src_port: 1000, dst_port };
            explain(&tables, &tuple, |address| address == nic).pop().expect("at least one step")
        };
        let (rule, default) = (|place| Some(DecidedBy::Rule(place)), |grounds| Some(DecidedBy::Default(grounds)));
        for (src, dst, protocol, port, outcome, by) in [
            (CONTAINER, "10.42.1.1", 6, 22, Outcome::Pass, rule(1)),
            (CONTAINER, "10.42.1.1", 6, 23, Outcome::Reject(DropReason::PolicyDefault), default(Grounds::HostClosed)),
            (CONTAINER, "10.42.1.1", 1, 0, Outcome::Pass, default(Grounds::HostEcho)),
            (CONTAINER, "192.0.2.1", 6, 22, Outcome::Reject(DropReason::PolicyReject), rule(0)),
            (CONTAINER, "192.0.2.1", 6, 23, Outcome::Reject(DropReason::PolicyDefault), default(Grounds::HostClosed)),
            ("192.0.2.1", CONTAINER, 6, 23, Outcome::Pass, default(Grounds::Members)),
            // The same address on the outside is no host.
            (CONTAINER, "192.0.2.2", 6, 23, Outcome::Pass, default(Grounds::Egress)),
            ("192.0.2.2", CONTAINER, 6, 23, Outcome::Reject(DropReason::PolicyDefault), default(Grounds::Stranger)),
            (CONTAINER, "10.42.1.1", 47, 0, Outcome::Drop(DropReason::NestedTunnel), None),
            (CONTAINER, "10.42.1.1", 58, 0, Outcome::Drop(DropReason::IcmpType), None),
            (CONTAINER, "127.0.0.1", 6, 22, Outcome::Drop(DropReason::Martian), None),
        ] {
            let step = last(src, dst, protocol, port);
            assert_eq!((step.outcome, step.decided_by), (outcome, by), "{src} to {dst}: {step:?}");
        }
    }
}

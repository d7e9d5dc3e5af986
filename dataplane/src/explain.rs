//! Why a flow would pass or not: the same decisions as the packet path's, for a tuple without a packet.

use std::net::IpAddr;

use overlay_wire::policy::Action;

use crate::early;
use crate::note::Stage;
use crate::path::{self, End, Exit};
use crate::policy::{DecidedBy, LabelUse, Tuple};
use crate::reason::DropReason;
use crate::tables::{Route, Tables};
use crate::trace;
use crate::verdict::Origin;

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

impl Outcome {
    /// Why the packet is dropped, if it is.
    #[must_use]
    pub fn reason(self) -> Option<DropReason> {
        match self {
            Self::Pass => None,
            Self::Drop(reason) | Self::Reject(reason) => Some(reason),
        }
    }
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
    let (outcome, detail, ways) = match direct(tables, tuple, is_own) {
        Some(ends) => {
            let place = |end| if end == End::Host { "this host itself" } else { "a container of this host" };
            let (from, to) = (place(ends.0), place(ends.1));
            let way = "directly, filtered by the kernel with the same rules";
            let ways = Some((ends.0, ends.1, LabelUse::Count));
            (Outcome::Pass, format!("{} is {from}, {} is {to}: {way}", tuple.src, tuple.dst), ways)
        }
        None => way(tables, tuple),
    };
    if !step(Stage::Path, outcome, detail, None) {
        return steps;
    }
    let Some((from, to, labels)) = ways else { return steps };
    let decision = tables.policy.decide_with(tuple, from, to, labels);
    let detail = trace::policy_words(tables, tuple, decision.by);
    let by_rule = matches!(decision.by, DecidedBy::Rule(_));
    let outcome = match (decision.action, by_rule) {
        _ if decision.missing().is_some() => Outcome::Drop(DropReason::IdentityUnknown),
        (Action::Allow, _) => Outcome::Pass,
        (Action::Deny, true) => Outcome::Drop(DropReason::PolicyDeny),
        (Action::Reject, true) => Outcome::Reject(DropReason::PolicyReject),
        (Action::Deny, false) => Outcome::Drop(DropReason::PolicyDefault),
        (Action::Reject, false) => Outcome::Reject(DropReason::PolicyDefault),
    };
    step(Stage::Policy, outcome, detail, Some(decision.by));
    steps
}

/// The two ends, where one is this host and the other one of its containers: such packets do not pass the packet path.
#[must_use]
pub fn direct(tables: &Tables, tuple: &Tuple, is_own: impl Fn(IpAddr) -> bool) -> Option<(End, End)> {
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
fn way(tables: &Tables, tuple: &Tuple) -> (Outcome, String, Option<(End, End, LabelUse)>) {
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
                (_, Exit::Peer(peer)) => format!("forwarded to {}", tables.peer_name(Route::Peer(peer))),
                (Origin::Peer(_), Exit::Tun) => "delivered here".to_owned(),
                (Origin::Tun, Exit::Tun) => match path.to {
                    End::Outside => "leaves through this host".to_owned(),
                    End::Host | End::Member | End::Foreign => "stays on this host".to_owned(),
                },
            };
            (Outcome::Pass, format!("{owners}: {way}"), Some((path.from, path.to, path.labels)))
        }
        Err(DropReason::NoOwner) => (Outcome::Reject(DropReason::NoOwner), owners, None),
        Err(reason) => (Outcome::Drop(reason), format!("{owners}: this host is not on the way ({reason})"), None),
    }
}

fn owner(tables: &Tables, route: Option<Route>) -> String {
    match route {
        Some(Route::Local) => "on this host".to_owned(),
        Some(route) => format!("owned by {}", tables.peer_name(route)),
        None => "owned by nobody".to_owned(),
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

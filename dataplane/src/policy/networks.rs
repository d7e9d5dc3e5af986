//! Which network each address is in: different networks do not talk unless a rule says so, and nothing passes between an
//! internal one and the outside.

use std::net::IpAddr;

use overlay_routing::fib::Fib;
use overlay_routing::networks::Networks;
use overlay_wire::Prefix;

use super::{Grounds, Tuple};
use crate::path::End;

/// What the networks of the cluster mean to the filter.
#[derive(Clone, Debug, Default)]
pub(super) struct NetworkIndex {
    /// The place of an address; what is not found is in the default network.
    places: Fib<Place>,
    /// Whether each network is internal, by number.
    internal: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// A host itself: in no network, so apart from none.
    Host,
    /// The default network.
    Default,
    /// Another network, by number.
    Network(u32),
}

impl NetworkIndex {
    pub(super) fn new(networks: &Networks) -> Self {
        let mut places: Vec<(Prefix, Place)> =
            networks.hosts().iter().map(|host| (Prefix::host(*host), Place::Host)).collect();
        let mut internal = Vec::new();
        for (number, (_, network)) in (0u32..).zip(networks.iter()) {
            internal.push(network.options.internal);
            places.extend(network.blocks().map(|block| (block, Place::Network(number))));
        }
        if internal.is_empty() {
            return Self::default();
        }
        Self { places: Fib::build(places), internal }
    }

    fn place(&self, address: IpAddr, end: End) -> Option<Place> {
        match end {
            End::Member => Some(self.places.lookup(address).copied().unwrap_or(Place::Default)),
            End::Host | End::Foreign | End::Outside => None,
        }
    }

    fn is_internal(&self, place: Option<Place>) -> bool {
        match place {
            Some(Place::Network(number)) => self.internal.get(number as usize).is_some_and(|internal| *internal),
            _ => false,
        }
    }

    /// Why no rule can let a flow pass, where that is so.
    pub(super) fn forbids(&self, tuple: &Tuple, from: End, to: End) -> Option<Grounds> {
        if self.internal.is_empty() {
            return None;
        }
        let beyond = |end| matches!(end, End::Outside | End::Foreign);
        let out = beyond(to) && self.is_internal(self.place(tuple.src, from));
        let into = beyond(from) && self.is_internal(self.place(tuple.dst, to));
        (out || into).then_some(Grounds::Internal)
    }

    /// Whether a flow is between containers of different networks.
    pub(super) fn are_apart(&self, tuple: &Tuple, from: End, to: End) -> bool {
        if self.internal.is_empty() {
            return false;
        }
        match (self.place(tuple.src, from), self.place(tuple.dst, to)) {
            (Some(Place::Host), _) | (_, Some(Place::Host)) | (None, _) | (_, None) => false,
            (Some(source), Some(destination)) => source != destination,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use overlay_routing::networks::Announcement;
    use overlay_routing::rib::{LocalClaims, Rib, RibInput};
    use overlay_wire::gossip::{NetworkEntry, NetworkOptions};
    use overlay_wire::policy::Action;

    use super::*;
    use crate::policy::{CompiledPolicy, DecidedBy};

    const HOST: &str = "10.42.1.1";
    const DEFAULT: &str = "10.42.1.5";
    const WEB: &str = "10.42.1.225";
    const QUIET: &str = "10.42.1.193";
    const OUTSIDE: &str = "192.0.2.1";

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address in a test")
    }

    /// A host whose prefix has a block of an open and one of an internal network, under a policy.
    fn policy(text: &str) -> CompiledPolicy {
        let entry = |block: &str, internal| NetworkEntry {
            options: NetworkOptions { internal, ..NetworkOptions::default() },
            blocks: vec![block.parse().expect("a prefix in a test")],
        };
        let networks: BTreeMap<String, NetworkEntry> =
            [("web".to_owned(), entry("10.42.1.224/27", false)), ("quiet".to_owned(), entry("10.42.1.192/27", true))]
                .into();
        let prefixes = vec!["10.42.1.0/24".parse().expect("a prefix in a test")];
        let local = LocalClaims { name: "h1".to_owned(), prefixes, announced: Vec::new() };
        let rib = Rib::build(&RibInput { local, ..RibInput::default() });
        let own = Announcement { host: None, name: "h1".to_owned(), networks };
        let networks = Networks::new(&[own], &rib, vec![address(HOST)]);
        let set = text.parse().expect("a policy in a test");
        CompiledPolicy::compile(&set, &|_: &str| None).with_networks(&networks)
    }

    fn decide(policy: &CompiledPolicy, from: (&str, End), to: (&str, End)) -> (Action, DecidedBy) {
        let tuple = Tuple { src: address(from.0), dst: address(to.0), protocol: 6, src_port: 40000, dst_port: 80 };
        let decision = policy.decide(&tuple, from.1, to.1);
        (decision.action, decision.by)
    }

    #[test]
    fn networks_are_apart_unless_a_rule_says_otherwise() {
        for default in ["default members", "default open"] {
            let closed = policy(default);
            let open = policy(&format!("allow any from 10.42.1.224/27 to any\n{default}"));
            let apart = (Action::Reject, DecidedBy::Default(Grounds::Apart));
            for (from, to) in [(WEB, DEFAULT), (DEFAULT, WEB), (WEB, QUIET), (QUIET, WEB)] {
                let (from, to) = ((from, End::Member), (to, End::Member));
                assert_eq!(decide(&closed, from, to), apart, "{from:?} to {to:?}");
                let opened = decide(&open, from, to).0 == Action::Allow;
                assert_eq!(opened, from.0 == WEB, "{from:?} to {to:?}");
            }
            for same in [WEB, DEFAULT, QUIET] {
                assert_eq!(decide(&closed, (same, End::Member), (same, End::Member)).0, Action::Allow);
                // Another host's own address is in no network.
                assert_eq!(decide(&closed, (HOST, End::Member), (same, End::Member)).0, Action::Allow);
            }
        }
    }

    #[test]
    fn nothing_passes_between_an_internal_network_and_the_outside() {
        let all = policy("allow any from any to any");
        let internal = (Action::Reject, DecidedBy::Default(Grounds::Internal));
        for beyond in [End::Outside, End::Foreign] {
            let (quiet, out) = ((QUIET, End::Member), (OUTSIDE, beyond));
            assert_eq!(decide(&all, quiet, out), internal);
            assert_eq!(decide(&all, out, quiet), internal);
            assert_eq!(decide(&all, (WEB, End::Member), out).0, Action::Allow);
            assert_eq!(decide(&all, out, (WEB, End::Member)).0, Action::Allow);
        }
        assert_eq!(decide(&all, (QUIET, End::Member), (WEB, End::Member)).0, Action::Allow, "a rule opens it inside");
    }
}

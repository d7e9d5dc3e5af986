//! From a rule's selectors to the addresses they stand for.

use overlay_wire::Prefix;
use overlay_wire::policy::Selector;

use super::{HostResolver, Warning};

/// The addresses a selector stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// Every address of both families.
    Any,
    /// The addresses of these prefixes.
    Prefixes(Vec<Prefix>),
}

impl Addresses {
    /// Whether every address of `other` is among these.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Prefixes(_), Self::Any) => false,
            (Self::Prefixes(own), Self::Prefixes(theirs)) => theirs.iter().all(|t| own.iter().any(|o| o.covers(t))),
        }
    }

    /// Whether any address of a family is among these.
    #[must_use]
    pub fn has_family(&self, ipv4: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| prefix.is_ipv4() == ipv4),
        }
    }

    /// The same addresses without prefixes that lie inside another one, in ascending order.
    pub(super) fn minimal(self) -> Self {
        let Self::Prefixes(mut prefixes) = self else { return self };
        // A covering prefix comes before what it covers.
        prefixes.sort_unstable();
        let mut kept: Vec<Prefix> = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            if !kept.last().is_some_and(|last| last.covers(&prefix)) {
                kept.push(prefix);
            }
        }
        Self::Prefixes(kept)
    }
}

/// The addresses of a selector; `None`, and a warning, when it matches nothing.
pub(super) fn resolve(
    selector: &Selector,
    rule: usize,
    hosts: &impl HostResolver,
    warnings: &mut Vec<Warning>,
) -> Option<Addresses> {
    match selector {
        Selector::Any => Some(Addresses::Any),
        Selector::Prefix(prefix) => Some(Addresses::Prefixes(vec![*prefix])),
        Selector::Host(name) => match hosts.prefixes(name) {
            Some(prefixes) if !prefixes.is_empty() => Some(Addresses::Prefixes(prefixes)),
            _ => {
                warnings.push(Warning::UnknownHost { rule, name: name.clone() });
                None
            }
        },
        Selector::Network(name) => match hosts.network(name) {
            // A network without containers yet is nothing to warn of.
            Some(prefixes) => (!prefixes.is_empty()).then_some(Addresses::Prefixes(prefixes)),
            None => {
                warnings.push(Warning::UnknownNetwork { rule, name: name.clone() });
                None
            }
        },
        // Of a host's own: who else carries the label is looked up for each packet.
        Selector::Label { key, value } => {
            let carrying = hosts.identities().into_iter().flat_map(|identities| identities.carrying(key, value));
            Some(Addresses::Prefixes(carrying.map(Prefix::host).collect()))
        }
        Selector::Service(_) => {
            warnings.push(Warning::Unsupported { rule, selector: selector.clone() });
            None
        }
    }
}

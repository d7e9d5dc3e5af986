//! Rules that speak of labels: which of them an address meets, looked up beside its prefix.
//!
//! An address whose labels are not known meets every rule about labels *perhaps*. The index is empty, and costs nothing,
//! where no rule speaks of labels.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_routing::fib::Fib;
use overlay_routing::identities::Identities;
use overlay_wire::Prefix;
use overlay_wire::gossip::Labels;
use overlay_wire::policy::{Rule, Selector};

use super::bits::RuleBits;

/// Whether labels say anything about a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LabelUse {
    /// Whoever sends it was authenticated, or is on this host.
    Count,
    /// It comes from or goes to a peer without authentication: no rule about labels matches it.
    Ignore,
}

/// Which labels addresses carry, in the terms of one policy.
#[derive(Clone, Debug, Default)]
pub(super) struct LabelIndex {
    /// The class of an address; one without a class carries no label that a rule names.
    class_of: Fib<u32>,
    classes: Vec<LabelClass>,
}

/// Addresses that meet the same rules by their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LabelClass {
    /// Rules met as the source.
    pub(super) from: RuleBits,
    /// Rules met as the destination.
    pub(super) to: RuleBits,
    /// Whether the labels are known; else the rules are met perhaps.
    pub(super) is_known: bool,
}

/// The class of an address without labels.
pub(super) static WITHOUT: LabelClass = LabelClass { from: RuleBits::EMPTY, to: RuleBits::EMPTY, is_known: true };

type Wanted<'a> = (&'a str, &'a str, u32);

impl LabelIndex {
    /// Indexes the rules that speak of labels; without one, nothing.
    pub(super) fn new(rules: &[Rule], identities: Option<&Identities>) -> Self {
        let (mut from, mut to): (Vec<Wanted<'_>>, Vec<Wanted<'_>>) = (Vec::new(), Vec::new());
        for (number, rule) in (0u32..).zip(rules) {
            for (selector, list) in [(&rule.from, &mut from), (&rule.to, &mut to)] {
                if let Selector::Label { key, value } = selector {
                    list.push((key, value, number));
                }
            }
        }
        let Some(identities) = identities.filter(|_| !from.is_empty() || !to.is_empty()) else {
            return Self::default();
        };
        let met = |list: &[Wanted<'_>], labels: &Labels| {
            let met = list.iter().filter(|(key, value, _)| labels.get(*key).is_some_and(|own| own == value));
            RuleBits::from_sorted(&met.map(|(.., number)| *number).collect::<Vec<_>>())
        };
        let every =
            |list: &[Wanted<'_>]| RuleBits::from_sorted(&list.iter().map(|(.., number)| *number).collect::<Vec<_>>());
        let mut classes = vec![LabelClass { from: every(&from), to: every(&to), is_known: false }];
        let mut places: Vec<(Prefix, u32)> = identities.uncertain().iter().map(|prefix| (*prefix, 0)).collect();
        let mut by_labels: BTreeMap<&Labels, u32> = BTreeMap::new();
        for (address, labels) in identities.known() {
            let class = *by_labels.entry(labels).or_insert_with(|| {
                let class = LabelClass { from: met(&from, labels), to: met(&to, labels), is_known: true };
                let at = classes.iter().position(|known| *known == class).unwrap_or_else(|| {
                    classes.push(class);
                    classes.len() - 1
                });
                u32::try_from(at).expect("there are fewer classes than addresses of one overlay")
            });
            places.push((Prefix::host(address), class));
        }
        Self { class_of: Fib::build(places), classes }
    }

    /// Whether no rule speaks of labels.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    #[inline]
    pub(super) fn class(&self, address: IpAddr) -> &LabelClass {
        let class = self.class_of.lookup(address).and_then(|class| self.classes.get(*class as usize));
        class.unwrap_or(&WITHOUT)
    }
}

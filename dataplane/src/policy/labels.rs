//! Rules that speak of labels: which of them an address meets, looked up beside its prefix.
//!
//! An address whose labels are not known meets every rule about labels *perhaps*. The index is empty, and costs nothing,
//! where no rule speaks of labels.

use std::collections::{BTreeMap, HashMap};
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// The rules that name a label at one end, ascending.
#[derive(Default)]
struct Named<'a>(HashMap<(&'a str, &'a str), Vec<u32>>);

impl Named<'_> {
    /// The rules that name any of these labels.
    fn met(&self, labels: &Labels) -> RuleBits {
        let named = labels.iter().filter_map(|(key, value)| self.0.get(&(key.as_str(), value.as_str())));
        Self::bits(named.flatten().copied().collect())
    }

    fn every(&self) -> RuleBits {
        Self::bits(self.0.values().flatten().copied().collect())
    }

    fn bits(mut rules: Vec<u32>) -> RuleBits {
        rules.sort_unstable();
        RuleBits::from_sorted(&rules)
    }
}

impl LabelIndex {
    /// Indexes the rules that speak of labels; without one, nothing.
    pub(super) fn new(rules: &[Rule], identities: Option<&Identities>) -> Self {
        let (mut from, mut to) = (Named::default(), Named::default());
        for (number, rule) in (0u32..).zip(rules) {
            for (selector, list) in [(&rule.from, &mut from), (&rule.to, &mut to)] {
                if let Selector::Label { key, value } = selector {
                    list.0.entry((key, value)).or_default().push(number);
                }
            }
        }
        let Some(identities) = identities.filter(|_| !from.0.is_empty() || !to.0.is_empty()) else {
            return Self::default();
        };
        let mut classes = vec![LabelClass { from: from.every(), to: to.every(), is_known: false }];
        let mut numbers: HashMap<LabelClass, u32> = HashMap::new();
        let mut places: Vec<(Prefix, u32)> = identities.uncertain().iter().map(|prefix| (*prefix, 0)).collect();
        let mut by_labels: BTreeMap<&Labels, u32> = BTreeMap::new();
        for (address, labels) in identities.known() {
            let class = *by_labels.entry(labels).or_insert_with(|| {
                let class = LabelClass { from: from.met(labels), to: to.met(labels), is_known: true };
                *numbers.entry(class).or_insert_with_key(|class| {
                    classes.push(class.clone());
                    u32::try_from(classes.len() - 1).expect("there are fewer classes than addresses of one overlay")
                })
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

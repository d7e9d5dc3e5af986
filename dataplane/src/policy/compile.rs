//! From rules to the indexes of [`Matcher`].

use std::collections::BTreeMap;

use overlay_routing::fib::Fib;
use overlay_wire::Prefix;
use overlay_wire::policy::{Protocol, Rule, Selector};

use super::bits::RuleBits;
use super::labels::LabelIndex;
use super::matcher::{AddressIndex, Matcher, PortIndex, TrafficIndex};
use super::selector::{Addresses, resolve};
use super::{HostResolver, Warning};

/// Rules compared with each other in search of shadowed ones; beyond this the search is left out.
const SHADOW_SEARCH_RULES: usize = 512;

struct Resolved<'a> {
    number: u32,
    rule: &'a Rule,
    /// `None`: what it stands for follows from labels.
    from: Option<Addresses>,
    to: Option<Addresses>,
}

impl Resolved<'_> {
    fn shadows(&self, later: &Self) -> bool {
        let (own, theirs) = (self.rule, later.rule);
        let protocol = own.protocol == Protocol::Any || own.protocol == theirs.protocol;
        let ports = own.ports.is_empty()
            || (!theirs.ports.is_empty()
                && theirs
                    .ports
                    .iter()
                    .all(|t| own.ports.iter().any(|o| o.first() <= t.first() && t.last() <= o.last())));
        let from = covers((&self.from, &own.from), (&later.from, &theirs.from));
        protocol && ports && from && covers((&self.to, &own.to), (&later.to, &theirs.to))
    }

    fn has_family(&self, ipv4: bool) -> bool {
        let has = |end: &Option<Addresses>| end.as_ref().is_none_or(|addresses| addresses.has_family(ipv4));
        has(&self.from) && has(&self.to)
    }
}

/// Whether every address that a later selector stands for is among those of an earlier one.
fn covers(earlier: (&Option<Addresses>, &Selector), later: (&Option<Addresses>, &Selector)) -> bool {
    match (earlier.0, later.0) {
        (Some(Addresses::Any), _) => true,
        (Some(own), Some(theirs)) => own.covers(theirs),
        (None, None) => earlier.1 == later.1,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Compiles rules; those that can match nothing are left out of the indexes and give a warning.
pub(super) fn compile(rules: &[Rule], hosts: &impl HostResolver) -> (Matcher, Vec<Warning>) {
    let mut warnings = Vec::new();
    let mut live: Vec<Resolved<'_>> = Vec::with_capacity(rules.len());
    for (number, (place, rule)) in (0u32..).zip(rules.iter().enumerate()) {
        let mut end = |selector: &Selector| match selector {
            Selector::Label { .. } => Some(None),
            other => resolve(other, place, hosts, &mut warnings).map(Some),
        };
        let (Some(from), Some(to)) = (end(&rule.from), end(&rule.to)) else { continue };
        let resolved = Resolved { number, rule, from, to };
        if !resolved.has_family(true) && !resolved.has_family(false) {
            warnings.push(Warning::Families { rule: place });
            continue;
        }
        live.push(resolved);
    }
    if live.len() <= SHADOW_SEARCH_RULES {
        for (place, later) in live.iter().enumerate() {
            if let Some(earlier) = live[..place].iter().find(|earlier| earlier.shadows(later)) {
                warnings.push(Warning::Shadowed { rule: later.number as usize, by: earlier.number as usize });
            }
        }
    }
    let matcher = Matcher {
        sources: addresses(live.iter().filter_map(|r| Some((r.number, r.from.as_ref()?)))),
        destinations: addresses(live.iter().filter_map(|r| Some((r.number, r.to.as_ref()?)))),
        traffic: traffic(&live),
        labels: LabelIndex::new(rules, hosts.identities()),
    };
    (matcher, warnings)
}

fn addresses<'a>(rules: impl Iterator<Item = (u32, &'a Addresses)>) -> AddressIndex {
    let mut any = Vec::new();
    let mut by_prefix: BTreeMap<Prefix, Vec<u32>> = BTreeMap::new();
    for (number, addresses) in rules {
        match addresses {
            Addresses::Any => any.push(number),
            Addresses::Prefixes(prefixes) => {
                for prefix in prefixes {
                    by_prefix.entry(*prefix).or_default().push(number);
                }
            }
        }
    }
    // Prefixes come with covering ones first, so the open ones form a stack.
    let mut stack: Vec<(Prefix, Vec<u32>)> = Vec::new();
    let mut routes = Vec::with_capacity(by_prefix.len());
    let mut classes = Vec::with_capacity(by_prefix.len());
    for (prefix, mut own) in by_prefix {
        while stack.last().is_some_and(|(open, _)| !open.covers(&prefix)) {
            stack.pop();
        }
        if let Some((_, around)) = stack.last() {
            own.extend_from_slice(around);
        }
        own.sort_unstable();
        own.dedup();
        routes.push((prefix, u32::try_from(classes.len()).expect("there are at most as many classes as prefixes")));
        classes.push(RuleBits::from_sorted(&own));
        stack.push((prefix, own));
    }
    AddressIndex { any: RuleBits::from_sorted(&any), class_of: Fib::build(routes), classes }
}

fn traffic(rules: &[Resolved<'_>]) -> TrafficIndex {
    let mut any = Vec::new();
    let mut by_protocol: BTreeMap<u8, Vec<&Resolved<'_>>> = BTreeMap::new();
    for resolved in rules {
        match resolved.rule.protocol {
            Protocol::Any => any.push(resolved.number),
            Protocol::Number(number) => by_protocol.entry(number).or_default().push(resolved),
        }
    }
    let mut index = TrafficIndex { any: RuleBits::from_sorted(&any), ..TrafficIndex::default() };
    for (number, rules) in by_protocol {
        if rules.iter().all(|resolved| resolved.rule.ports.is_empty()) {
            let numbers: Vec<u32> = rules.iter().map(|resolved| resolved.number).collect();
            index.protocols.push((number, RuleBits::from_sorted(&numbers)));
        } else {
            index.ports.push((number, ports(&rules)));
        }
    }
    index
}

/// Cuts the ports at every range's edges; within an interval the same rules match. A sweep keeps the set of open rules.
fn ports(rules: &[&Resolved<'_>]) -> PortIndex {
    enum Edge {
        Opens(u32),
        Closes(u32),
    }
    let mut edges: BTreeMap<u32, Vec<Edge>> = BTreeMap::from([(0, Vec::new())]);
    let mut open: BTreeMap<u32, u32> = BTreeMap::new();
    for resolved in rules {
        if resolved.rule.ports.is_empty() {
            open.insert(resolved.number, 1);
        }
        for range in &resolved.rule.ports {
            edges.entry(u32::from(range.first())).or_default().push(Edge::Opens(resolved.number));
            edges.entry(u32::from(range.last()) + 1).or_default().push(Edge::Closes(resolved.number));
        }
    }
    let mut index = PortIndex::default();
    for (port, changes) in edges {
        for change in changes {
            match change {
                Edge::Opens(rule) => *open.entry(rule).or_insert(0) += 1,
                Edge::Closes(rule) => {
                    if let Some(count) = open.get_mut(&rule) {
                        *count -= 1;
                        if *count == 0 {
                            open.remove(&rule);
                        }
                    }
                }
            }
        }
        let Ok(start) = u16::try_from(port) else { break };
        index.starts.push(start);
        index.rules.push(RuleBits::from_sorted(&open.keys().copied().collect::<Vec<_>>()));
    }
    index
}

//! The three indexes of a compiled filter and the lookup over them.

use std::net::IpAddr;

use overlay_routing::fib::Fib;

use super::bits::{RuleBits, Union, lowest_common};
use super::labels::{LabelClass, LabelIndex, LabelUse, WITHOUT};
use super::{FlowEnd, Tuple};

/// The indexes of a compiled filter.
#[derive(Clone, Debug, Default)]
pub(super) struct Matcher {
    pub(super) sources: AddressIndex,
    pub(super) destinations: AddressIndex,
    pub(super) traffic: TrafficIndex,
    pub(super) labels: LabelIndex,
}

/// The rules that match a flow, and those that match it perhaps.
pub(super) struct Matches<'a> {
    sets: [Union<'a>; 3],
    source: &'a LabelClass,
    destination: &'a LabelClass,
}

/// Which rules match an address.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressIndex {
    /// Rules that match every address.
    pub(super) any: RuleBits,
    /// The class of an address, by longest prefix.
    pub(super) class_of: Fib<u32>,
    /// The rules of each class: those of the prefix and of every prefix around it.
    pub(super) classes: Vec<RuleBits>,
}

/// Which rules match a protocol and port.
#[derive(Clone, Debug, Default)]
pub(super) struct TrafficIndex {
    /// Rules that match every protocol.
    pub(super) any: RuleBits,
    /// Rules that match a protocol whatever the port, by protocol number; protocols with port rules are not here.
    pub(super) protocols: Vec<(u8, RuleBits)>,
    /// Protocols with port rules.
    pub(super) ports: Vec<(u8, PortIndex)>,
}

/// Which rules match a destination port of one protocol.
#[derive(Clone, Debug, Default)]
pub(super) struct PortIndex {
    /// The first port of each interval, ascending, beginning with 0.
    pub(super) starts: Vec<u16>,
    /// The rules of each interval.
    pub(super) rules: Vec<RuleBits>,
}

static NONE: RuleBits = RuleBits::EMPTY;

impl Matcher {
    /// Looks a flow up.
    #[inline]
    pub(super) fn look(&self, tuple: &Tuple, labels: LabelUse) -> Matches<'_> {
        let (source, destination) = if self.labels.is_empty() || labels == LabelUse::Ignore {
            (&WITHOUT, &WITHOUT)
        } else {
            (self.labels.class(tuple.src), self.labels.class(tuple.dst))
        };
        let sets = [
            self.sources.lookup(tuple.src, &source.from),
            self.destinations.lookup(tuple.dst, &destination.to),
            self.traffic.lookup(tuple.protocol, tuple.dst_port),
        ];
        Matches { sets, source, destination }
    }
}

impl Matches<'_> {
    /// The first rule from this one on that matches, or does perhaps.
    #[inline]
    pub(super) fn first(&self, from: u32) -> Option<u32> {
        lowest_common(&self.sets, from)
    }

    /// Whether a rule that was found matches only perhaps: the end whose labels it needs and that are not known.
    #[inline]
    pub(super) fn unknown(&self, rule: u32) -> Option<FlowEnd> {
        if !self.source.is_known && self.source.from.contains(rule) {
            return Some(FlowEnd::Source);
        }
        (!self.destination.is_known && self.destination.to.contains(rule)).then_some(FlowEnd::Destination)
    }
}

impl AddressIndex {
    #[inline]
    fn lookup<'a>(&'a self, address: IpAddr, by_labels: &'a RuleBits) -> Union<'a> {
        let class = self.class_of.lookup(address).and_then(|class| self.classes.get(*class as usize));
        Union(&self.any, class.unwrap_or(&NONE), by_labels)
    }
}

impl TrafficIndex {
    #[inline]
    fn lookup(&self, protocol: u8, port: u16) -> Union<'_> {
        if let Some((_, index)) = self.ports.iter().find(|(number, _)| *number == protocol) {
            let interval = index.starts.partition_point(|start| *start <= port).saturating_sub(1);
            return Union(&self.any, index.rules.get(interval).unwrap_or(&NONE), &NONE);
        }
        let specific = self.protocols.binary_search_by_key(&protocol, |(number, _)| *number).ok();
        let specific = specific.and_then(|at| self.protocols.get(at)).map_or(&NONE, |(_, rules)| rules);
        Union(&self.any, specific, &NONE)
    }
}

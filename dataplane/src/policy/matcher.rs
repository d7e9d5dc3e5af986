//! The three indexes of a compiled filter and the lookup over them.

use std::net::IpAddr;

use overlay_routing::fib::Fib;

use super::Tuple;
use super::bits::{RuleBits, Union, lowest_common};

/// The indexes of a compiled filter.
#[derive(Clone, Debug, Default)]
pub(super) struct Matcher {
    pub(super) sources: AddressIndex,
    pub(super) destinations: AddressIndex,
    pub(super) traffic: TrafficIndex,
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
    /// The first rule that matches.
    #[inline]
    pub(super) fn first(&self, tuple: &Tuple) -> Option<u32> {
        lowest_common([
            self.sources.lookup(tuple.src),
            self.destinations.lookup(tuple.dst),
            self.traffic.lookup(tuple.protocol, tuple.dst_port),
        ])
    }
}

impl AddressIndex {
    #[inline]
    fn lookup(&self, address: IpAddr) -> Union<'_> {
        let class = self.class_of.lookup(address).and_then(|class| self.classes.get(*class as usize));
        Union(&self.any, class.unwrap_or(&NONE))
    }
}

impl TrafficIndex {
    #[inline]
    fn lookup(&self, protocol: u8, port: u16) -> Union<'_> {
        if let Some((_, index)) = self.ports.iter().find(|(number, _)| *number == protocol) {
            let interval = index.starts.partition_point(|start| *start <= port).saturating_sub(1);
            return Union(&self.any, index.rules.get(interval).unwrap_or(&NONE));
        }
        let specific = self.protocols.binary_search_by_key(&protocol, |(number, _)| *number).ok();
        let specific = specific.and_then(|at| self.protocols.get(at)).map_or(&NONE, |(_, rules)| rules);
        Union(&self.any, specific)
    }
}

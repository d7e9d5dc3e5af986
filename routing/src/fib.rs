//! Forwarding table: an immutable longest-prefix-match index over both address families.
//!
//! A compressed multibit trie with stride 6 (after Asai and Ohara, "Poptrie", SIGCOMM 2015): every node holds two
//! 64-bit maps, one that marks which of its 64 slots continue in a child node and one that marks where a run of equal
//! leaves begins. A lookup costs one node visit per six bits of the matched prefix, whatever the number of routes: at
//! most 6 visits for IPv4 and 22 for IPv6. Leaves are pushed down at build time, so a lookup never walks back.

use std::net::IpAddr;

use overlay_wire::Prefix;
use overlay_wire::prefix::to_bits;

/// Address bits consumed by one node.
const STRIDE: u32 = 6;
/// Slots of one node.
const SLOTS: usize = 1 << STRIDE;
/// The leaf that means "no route".
const NO_ROUTE: u32 = 0;

/// An immutable longest-prefix-match table from prefixes to `T`.
#[derive(Debug, Clone)]
pub struct Fib<T> {
    /// Sorted by prefix; leaf `n` names entry `n - 1`.
    entries: Vec<(Prefix, T)>,
    v4: Trie,
    v6: Trie,
}

#[derive(Debug, Clone)]
struct Trie {
    nodes: Vec<Node>,
    leaves: Vec<u32>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Node {
    /// Bit set: the slot continues in a child node.
    children: u64,
    /// Bit set: a new run of equal leaves begins in this slot.
    runs: u64,
    first_leaf: u32,
    first_child: u32,
}

impl<T> Default for Fib<T> {
    fn default() -> Self {
        Self::build(Vec::new())
    }
}

impl<T> Fib<T> {
    /// Builds a table; where a prefix is given twice the later value counts.
    #[must_use]
    pub fn build(mut routes: Vec<(Prefix, T)>) -> Self {
        routes.sort_by_key(|(prefix, _)| *prefix);
        let mut entries: Vec<(Prefix, T)> = Vec::with_capacity(routes.len());
        for route in routes {
            match entries.last_mut() {
                Some(last) if last.0 == route.0 => *last = route,
                _ => entries.push(route),
            }
        }
        let keys: Vec<Key> = entries
            .iter()
            .zip(1u32..)
            .map(|((prefix, _), leaf)| Key { bits: prefix.bits(), len: u32::from(prefix.len()), leaf })
            .collect();
        let v6_start = entries.partition_point(|(prefix, _)| prefix.is_ipv4());
        let (v4_keys, v6_keys) = keys.split_at(v6_start);
        Self { entries, v4: Trie::build(v4_keys), v6: Trie::build(v6_keys) }
    }

    /// The value of the longest prefix that contains `ip`.
    #[inline]
    #[must_use]
    pub fn lookup(&self, ip: IpAddr) -> Option<&T> {
        self.lookup_entry(ip).map(|(_, value)| value)
    }

    /// The longest prefix that contains `ip`, and its value.
    #[inline]
    #[must_use]
    pub fn lookup_entry(&self, ip: IpAddr) -> Option<(&Prefix, &T)> {
        let leaf = match ip {
            IpAddr::V4(v4) => self.v4.lookup_v4(u32::from(v4)),
            IpAddr::V6(_) => self.v6.lookup_v6(to_bits(ip)),
        };
        let index = (leaf as usize).checked_sub(1)?;
        self.entries.get(index).map(|(prefix, value)| (prefix, value))
    }

    /// The value stored for exactly this prefix.
    #[must_use]
    pub fn get(&self, prefix: &Prefix) -> Option<&T> {
        let index = self.entries.binary_search_by_key(prefix, |(p, _)| *p).ok()?;
        Some(&self.entries[index].1)
    }

    /// Every prefix with its value, in prefix order.
    pub fn iter(&self) -> impl Iterator<Item = (&Prefix, &T)> {
        self.entries.iter().map(|(prefix, value)| (prefix, value))
    }

    /// The number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no prefix is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The memory the trie itself takes, in bytes.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        [&self.v4, &self.v6].iter().map(|t| t.nodes.len() * size_of::<Node>() + t.leaves.len() * 4).sum()
    }
}

/// One prefix during the build.
#[derive(Clone, Copy)]
struct Key {
    bits: u128,
    len: u32,
    leaf: u32,
}

impl Trie {
    /// Builds from keys of one family, sorted so that a covering prefix comes before what it covers.
    fn build(keys: &[Key]) -> Self {
        let mut trie = Self { nodes: vec![Node::default()], leaves: Vec::new() };
        trie.fill(0, keys, 0, NO_ROUTE);
        trie
    }

    /// Fills node `at`, which covers the bits from `depth` on, from keys longer than `depth` (or the default route).
    fn fill(&mut self, at: usize, keys: &[Key], depth: u32, inherited: u32) {
        let mut leaves = [inherited; SLOTS];
        let mut below: Vec<(usize, &[Key])> = Vec::new();
        let mut rest = keys;
        while let Some(key) = rest.first() {
            let slot = ((key.bits << depth) >> (128 - STRIDE)) as usize;
            if key.len <= depth + STRIDE {
                let span = 1usize << (depth + STRIDE - key.len);
                leaves[slot..slot + span].fill(key.leaf);
                rest = &rest[1..];
            } else {
                let end = rest.partition_point(|k| ((k.bits << depth) >> (128 - STRIDE)) as usize == slot);
                let (same, after) = rest.split_at(end);
                below.push((slot, same));
                rest = after;
            }
        }
        let mut node = Node {
            children: below.iter().fold(0, |map, (slot, _)| map | 1 << slot),
            runs: 0,
            first_leaf: index(self.leaves.len()),
            first_child: index(self.nodes.len()),
        };
        let mut previous = None;
        for (slot, leaf) in leaves.iter().enumerate() {
            if node.children & 1 << slot == 0 && previous != Some(*leaf) {
                node.runs |= 1 << slot;
                self.leaves.push(*leaf);
                previous = Some(*leaf);
            }
        }
        self.nodes[at] = node;
        let first = self.nodes.len();
        self.nodes.resize(first + below.len(), Node::default());
        for (child, (slot, keys)) in below.into_iter().enumerate() {
            self.fill(first + child, keys, depth + STRIDE, leaves[slot]);
        }
    }

    #[inline]
    fn lookup_v4(&self, addr: u32) -> u32 {
        let mut rest = u64::from(addr) << 32;
        let mut node = &self.nodes[0];
        loop {
            let slot = (rest >> (64 - STRIDE)) as u32;
            match self.step(node, slot) {
                Step::Child(child) => node = &self.nodes[child],
                Step::Leaf(leaf) => return leaf,
            }
            rest <<= STRIDE;
        }
    }

    #[inline]
    fn lookup_v6(&self, addr: u128) -> u32 {
        let mut rest = addr;
        let mut node = &self.nodes[0];
        loop {
            let slot = (rest >> (128 - STRIDE)) as u32;
            match self.step(node, slot) {
                Step::Child(child) => node = &self.nodes[child],
                Step::Leaf(leaf) => return leaf,
            }
            rest <<= STRIDE;
        }
    }

    #[inline]
    fn step(&self, node: &Node, slot: u32) -> Step {
        let up_to = u64::MAX >> (63 - slot);
        if node.children & 1 << slot != 0 {
            Step::Child(node.first_child as usize + (node.children & up_to).count_ones() as usize - 1)
        } else {
            Step::Leaf(self.leaves[node.first_leaf as usize + (node.runs & up_to).count_ones() as usize - 1])
        }
    }
}

enum Step {
    Child(usize),
    Leaf(u32),
}

fn index(len: usize) -> u32 {
    u32::try_from(len).expect("a table holds fewer than 2^32 nodes because prefixes are bounded far below")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a valid prefix in a test")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a valid address in a test")
    }

    #[test]
    fn longest_prefix_wins_in_both_families() {
        let fib = Fib::build(vec![
            (prefix("10.42.0.0/16"), 1),
            (prefix("10.42.2.0/24"), 2),
            (prefix("10.42.2.7/32"), 3),
            (prefix("0.0.0.0/0"), 0),
            (prefix("fd42::/48"), 4),
            (prefix("fd42:0:0:2::/64"), 5),
            (prefix("fd42:0:0:2::1/128"), 6),
        ]);
        let expected = [
            ("10.42.1.1", Some(1)),
            ("10.42.2.1", Some(2)),
            ("10.42.2.7", Some(3)),
            ("192.0.2.1", Some(0)),
            ("fd42::1", Some(4)),
            ("fd42:0:0:2::2", Some(5)),
            ("fd42:0:0:2::1", Some(6)),
            ("fd43::1", None),
        ];
        for (address, value) in expected {
            assert_eq!(fib.lookup(ip(address)).copied(), value, "{address}");
        }
    }

    #[test]
    fn empty_table_finds_nothing() {
        let fib: Fib<u8> = Fib::default();
        assert_eq!(fib.lookup(ip("10.0.0.1")), None);
        assert_eq!(fib.lookup(ip("::1")), None);
    }

    #[test]
    fn later_duplicate_counts() {
        let fib = Fib::build(vec![(prefix("10.0.0.0/8"), 1), (prefix("10.0.0.0/8"), 2)]);
        assert_eq!((fib.len(), fib.lookup(ip("10.1.1.1"))), (1, Some(&2)));
    }

    #[test]
    fn hundred_thousand_host_routes_stay_compact() {
        let routes = (0..100_000u32)
            .map(|n| (Prefix::host(IpAddr::V4(Ipv4Addr::from(n.wrapping_mul(2_654_435_761)))), n))
            .collect();
        let fib = Fib::build(routes);
        assert_eq!(fib.lookup(IpAddr::V4(Ipv4Addr::from(2_654_435_761))), Some(&1));
        assert!(fib.index_bytes() < 16 << 20, "{} bytes", fib.index_bytes());
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        // A narrow range of addresses makes nesting likely; the wide ones reach every depth.
        let v4 = (prop_oneof![0u32..1024, any::<u32>()], 0u8..=32)
            .prop_map(|(bits, len)| Prefix::truncating(IpAddr::V4(Ipv4Addr::from(bits)), len).expect("length fits"));
        let v6 = (prop_oneof![0u128..1024, any::<u128>()], 0u8..=128)
            .prop_map(|(bits, len)| Prefix::truncating(IpAddr::V6(Ipv6Addr::from(bits)), len).expect("length fits"));
        prop_oneof![v4, v6]
    }

    fn any_ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            prop_oneof![0u32..1024, any::<u32>()].prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
            prop_oneof![0u128..1024, any::<u128>()].prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
        ]
    }

    proptest! {
        #[test]
        fn trie_equals_linear_scan(
            prefixes in proptest::collection::vec(any_prefix(), 0..120),
            ips in proptest::collection::vec(any_ip(), 0..60),
        ) {
            let routes: Vec<(Prefix, usize)> = prefixes.iter().copied().zip(0..).collect();
            let fib = Fib::build(routes.clone());
            let edges = prefixes.iter().map(Prefix::addr);
            for address in ips.iter().copied().chain(edges) {
                let slow = routes
                    .iter()
                    .filter(|(p, _)| p.contains(address))
                    .max_by_key(|(p, value)| (p.len(), *value))
                    .map(|(p, value)| (*p, *value));
                prop_assert_eq!(fib.lookup_entry(address).map(|(p, v)| (*p, *v)), slow);
            }
        }
    }
}

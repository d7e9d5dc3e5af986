//! A deterministic network of gossip state machines: virtual time, seeded loss, duplication, delay, reorder, partition.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use overlay_wire::gossip::Grant;
use overlay_wire::{Encapsulation, HostId, Mtu, Prefix};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use crate::gossip::{Gossip, GossipConfig, GossipEvent, MemberState, OwnHost, StaticMember, Transmit, cluster_id};
use crate::identity::IdentityKey;

pub(crate) struct Node {
    pub(crate) gossip: Gossip,
    pub(crate) address: SocketAddr,
    /// More addresses, used towards their own family.
    pub(crate) others: Vec<SocketAddr>,
    pub(crate) nat: Option<Nat>,
    pub(crate) events: Vec<(Duration, GossipEvent)>,
    pub(crate) alive: bool,
    epoch: u64,
}

/// A NAT in front of a node. Only those that were sent to get in.
pub(crate) struct Nat {
    pub(crate) ip: IpAddr,
    pub(crate) kind: NatKind,
    /// Port outside and remote end of each mapping.
    mappings: Vec<(u16, SocketAddr)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NatKind {
    /// One port for all remote ends.
    EndpointIndependent,
    /// Another port for each remote end.
    Symmetric,
}

impl Nat {
    pub(crate) fn new(ip: IpAddr, kind: NatKind) -> Self {
        Self { ip, kind, mappings: Vec::new() }
    }

    fn outside(&mut self, from: SocketAddr, to: SocketAddr) -> SocketAddr {
        let known = self.mappings.iter().find(|(_, remote)| *remote == to).map(|(port, _)| *port);
        let port = known.unwrap_or_else(|| {
            let port = match self.kind {
                NatKind::EndpointIndependent => from.port(),
                NatKind::Symmetric => 20_000 + self.mappings.len() as u16,
            };
            self.mappings.push((port, to));
            port
        });
        SocketAddr::new(self.ip, port)
    }
}

pub(crate) struct Sim {
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) nodes: Vec<Node>,
    pub(crate) loss_percent: u32,
    pub(crate) duplicate_percent: u32,
    pub(crate) delay: (Duration, Duration),
    /// Ordered pairs of nodes between which nothing passes.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Addresses that nothing reaches and nothing leaves.
    pub(crate) dead: BTreeSet<SocketAddr>,
    /// Every datagram that was sent, for replay: (from, to, bytes).
    pub(crate) sent: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    wire: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    serial: u64,
    rng: ChaCha20Rng,
    cluster: [u8; 32],
}

pub(crate) fn prefix(text: &str) -> Prefix {
    text.parse().expect("a valid prefix in a test")
}

pub(crate) fn grant(text: &str) -> Grant {
    text.parse().expect("a valid grant in a test")
}

pub(crate) fn key(index: usize) -> IdentityKey {
    IdentityKey::generate(&mut ChaCha20Rng::seed_from_u64(1000 + index as u64))
}

pub(crate) fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, index as u8 + 1], 51821))
}

pub(crate) fn own_host(index: usize) -> OwnHost {
    OwnHost {
        name: format!("h{}", index + 1),
        endpoints: vec![address(index)],
        wireguard_key: [index as u8 + 1; 32],
        encapsulation: Encapsulation::Wireguard,
        mtu: Mtu::new(1420).expect("in range"),
        features: 0,
        software: "0.1.0".into(),
        prefixes: vec![prefix(&format!("10.42.{}.0/24", index + 1))],
    }
}

pub(crate) fn member(index: usize) -> StaticMember {
    StaticMember {
        name: format!("h{}", index + 1),
        identity: key(index).public(),
        endpoints: vec![address(index)],
        allow: vec![grant(&format!("10.42.{}.0/24", index + 1)), grant(&format!("172.16.{}.0/24", index + 1))],
    }
}

impl Sim {
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        let start = Instant::now();
        let mut sim = Self {
            start,
            now: start,
            nodes: Vec::new(),
            loss_percent: 0,
            duplicate_percent: 0,
            delay: (Duration::from_micros(200), Duration::from_micros(800)),
            cut: BTreeSet::new(),
            dead: BTreeSet::new(),
            sent: Vec::new(),
            wire: BTreeMap::new(),
            serial: 0,
            rng: ChaCha20Rng::seed_from_u64(seed),
            cluster: cluster_id("prod"),
        };
        for index in 0..count {
            let node = sim.boot(index, count, 1);
            sim.nodes.push(node);
        }
        sim
    }

    /// Adds a node that was started elsewhere.
    pub(crate) fn push(&mut self, gossip: Gossip, address: SocketAddr) {
        let (others, nat, events) = (Vec::new(), None, Vec::new());
        self.nodes.push(Node { gossip, address, others, nat, events, alive: true, epoch: 1 });
    }

    fn boot(&mut self, index: usize, count: usize, epoch: u64) -> Node {
        let config = GossipConfig {
            identity: key(index),
            cluster: self.cluster,
            own: own_host(index),
            members: (0..count).map(member).collect(),
            foreign: Vec::new(),
        };
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let gossip = Gossip::new(config, seed, self.now, epoch * 1000).expect("a valid configuration");
        let (others, nat, events) = (Vec::new(), None, Vec::new());
        Node { gossip, address: address(index), others, nat, events, alive: true, epoch }
    }

    /// Kills a node without a word and starts it again with a later boot epoch.
    pub(crate) fn restart(&mut self, index: usize) {
        let (count, epoch) = (self.nodes.len(), self.nodes[index].epoch + 1);
        self.nodes[index] = self.boot(index, count, epoch);
    }

    pub(crate) fn id(&self, index: usize) -> HostId {
        self.nodes[index].gossip.host_id()
    }

    pub(crate) fn state(&self, of: usize, at: usize) -> MemberState {
        self.nodes[at].gossip.member(self.id(of)).expect("a member").state
    }

    pub(crate) fn all_up(&self) -> bool {
        (0..self.nodes.len()).all(|a| (0..self.nodes.len()).all(|b| a == b || self.state(b, a) == MemberState::Up))
    }

    pub(crate) fn all_reachable(&self) -> bool {
        let count = self.nodes.len();
        (0..count).all(|a| (0..count).all(|b| a == b || self.state(b, a).is_reachable()))
    }

    pub(crate) fn converged(&self) -> bool {
        let stores: Vec<Vec<_>> = self.nodes.iter().map(|node| node.gossip.records().cloned().collect()).collect();
        stores.windows(2).all(|pair| pair[0] == pair[1]) && !stores.is_empty()
    }

    /// Cuts or heals both directions between two groups.
    pub(crate) fn partition(&mut self, left: &[usize], right: &[usize]) {
        for a in left {
            for b in right {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until_or(end, |_| false);
    }

    /// Runs until the condition holds; the time it took, or a panic after `limit`.
    pub(crate) fn run_until(&mut self, limit: Duration, condition: impl Fn(&Self) -> bool) -> Duration {
        let began = self.now;
        assert!(self.run_until_or(began + limit, condition), "the condition did not hold within {limit:?}");
        self.now - began
    }

    fn run_until_or(&mut self, end: Instant, condition: impl Fn(&Self) -> bool) -> bool {
        loop {
            for index in 0..self.nodes.len() {
                self.drain(index);
            }
            if condition(self) {
                return true;
            }
            let timer = self.nodes.iter().filter(|node| node.alive).filter_map(|node| node.gossip.poll_timeout()).min();
            let delivery = self.wire.keys().next().map(|(at, _)| *at);
            let next = [timer, delivery].into_iter().flatten().min().map_or(end, |at| at.max(self.now));
            if next >= end {
                self.now = end;
                return condition(self);
            }
            self.now = next;
            while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= next) {
                let (from, to, bytes) = entry.remove();
                self.deliver(from, to, &bytes);
            }
            for node in self.nodes.iter_mut().filter(|node| node.alive) {
                if node.gossip.poll_timeout().is_some_and(|at| at <= next) {
                    node.gossip.handle_timeout(next);
                }
            }
        }
    }

    /// Hands a datagram to whoever has the address.
    pub(crate) fn deliver(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let now = self.now;
        if self.dead.contains(&from) || self.dead.contains(&to) {
            return;
        }
        let gets_in = |node: &Node| match &node.nat {
            Some(nat) => nat.ip == to.ip() && nat.mappings.contains(&(to.port(), from)),
            None => node.address == to || node.others.contains(&to),
        };
        if let Some(node) = self.nodes.iter_mut().find(|node| node.alive && gets_in(node)) {
            node.gossip.handle_datagram(from, bytes, now);
        }
    }

    fn drain(&mut self, index: usize) {
        let since = self.now - self.start;
        while let Some(event) = self.nodes[index].gossip.poll_event() {
            self.nodes[index].events.push((since, event));
        }
        while let Some(transmit) = self.nodes[index].gossip.poll_transmit() {
            if self.nodes[index].alive {
                self.carry(index, transmit);
            }
        }
    }

    fn carry(&mut self, index: usize, transmit: Transmit) {
        assert!(transmit.bytes.len() <= 1232, "a datagram of {} bytes", transmit.bytes.len());
        let node = &mut self.nodes[index];
        let own = node.others.iter().find(|own| own.is_ipv4() == transmit.to.is_ipv4());
        let own = own.filter(|_| node.address.is_ipv4() != transmit.to.is_ipv4()).copied().unwrap_or(node.address);
        let from = node.nat.as_mut().map_or(own, |nat| nat.outside(own, transmit.to));
        let to_index = self.nodes.iter().position(|node| node.address == transmit.to);
        self.sent.push((from, transmit.to, transmit.bytes.clone()));
        if to_index.is_some_and(|to| self.cut.contains(&(index, to))) {
            return;
        }
        let copies = 1 + u32::from(self.rng.next_u32() % 100 < self.duplicate_percent);
        for _ in 0..copies {
            if self.rng.next_u32() % 100 < self.loss_percent {
                continue;
            }
            let spread = (self.delay.1 - self.delay.0).as_micros().max(1) as u64;
            let at = self.now + self.delay.0 + Duration::from_micros(self.rng.next_u64() % spread);
            self.serial += 1;
            self.wire.insert((at, self.serial), (from, transmit.to, transmit.bytes.clone()));
        }
    }
}

//! How a run begins: state machines that know each other already, or that know nobody yet.

use std::time::{Duration, Instant};

use overlay_routing::gossip::{Gossip, GossipConfig, Introduction, Membership, cluster_id};
use rand_core::RngCore as _;

use super::cast;
use super::disk::{Disk, WALL_CLOCK_START};
use super::fault::Fault;
use super::liar::{LIE_GAP, Liar};
use super::node::{Node, Role};
use super::referee::Violation;
use super::world::{Members, What, World};

impl World {
    pub(super) fn start_introduced(&mut self) -> Result<(), Box<Violation>> {
        let count = self.settings.nodes;
        let mut engines: Vec<(Gossip, [u8; 32], u64, Disk)> = Vec::with_capacity(count);
        for index in 0..count {
            // Everybody began within the last second: otherwise all would tick at once.
            let began = Duration::from_micros(self.rng.next_u64() % 1_000_000);
            let mut disk = Disk::default();
            let epoch = disk.next_epoch(began);
            let seed = self.draw_seed();
            engines.push((self.engine(index, seed, epoch, self.base + began), seed, epoch, disk));
        }
        self.now = Duration::from_secs(1);
        let clock = self.base + self.now;
        for first in 0..count {
            let (left, right) = engines.split_at_mut(first + 1);
            let one = &mut left[first].0;
            for (offset, (other, ..)) in right.iter_mut().enumerate() {
                let second = first + 1 + offset;
                let round_trip = self.link.base_delay(first, second) * 2;
                one.introduce_in_memory(cast::address(first), other, cast::address(second), round_trip, clock);
            }
        }
        for (index, (mut engine, seed, epoch, disk)) in engines.into_iter().enumerate() {
            // What happened up to here is the beginning, not news.
            while engine.poll_event().is_some() {}
            self.referee.started(index, &engine).map_err(|broken| self.violation(broken))?;
            let lies = index >= count - self.settings.liars;
            let role = if lies {
                self.schedule(self.now + LIE_GAP, What::Lie(index));
                Role::Liar(Box::new(Liar::take_over(index, &engine, seed, epoch)))
            } else {
                Role::Honest(Box::new(engine))
            };
            self.nodes.push(Node::new(role, disk));
        }
        (0..count).try_for_each(|index| self.drain(index))
    }

    pub(super) fn start_cold(&mut self, within: Duration) {
        for index in 0..self.settings.nodes {
            self.nodes.push(Node::new(Role::Dead, Disk::default()));
            let at = within.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX));
            self.plan(at, Fault::Boot(index));
        }
    }

    pub(super) fn draw_seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        seed
    }

    /// A state machine with empty tables.
    pub(super) fn engine(&self, index: usize, seed: [u8; 32], epoch: u64, clock: Instant) -> Gossip {
        let config = GossipConfig {
            identity: cast::identity(index),
            cluster: cluster_id(cast::CLUSTER),
            own: cast::own_host(index),
            members: self.members.clone(),
            foreign: Vec::new(),
        };
        let mut engine = Gossip::new(config, seed, clock, epoch).expect("the simulated configuration is valid");
        if self.settings.members == Members::Certified {
            let issuer = Introduction { certificate: cast::certificate(0), endpoints: vec![cast::address(0)] };
            let membership = Membership {
                unix_now: WALL_CLOCK_START / 1000,
                trusted: vec![cast::authority().public()],
                certificate: Some(cast::certificate(index)),
                introductions: vec![issuer],
                is_issuer: index == 0,
                ..Membership::default()
            };
            engine.set_membership(membership, clock).expect("the certificate is its own");
        }
        engine
    }
}

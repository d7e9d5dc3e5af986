//! The simulator: hosts, links and the event queue, moved on by one thread under virtual time.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_routing::gossip::{Gossip, StaticMember, Transmit};
use overlay_routing::membership::Issuer;
use overlay_wire::gossip::RouteAnnouncement;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::cast;
use super::disk::Damage;
use super::fault::Fault;
use super::liar::LIE_GAP;
use super::link::{Link, below, chance};
use super::node::{Node, Role};
use super::referee::{Broken, Referee, Scene, Violation};
use super::trace::{Line, Trace};
use super::watch::{Wanted, Watch};

/// IP and UDP headers of a datagram.
const HEADER_BYTES: u64 = 28;
/// Wake-ups of one host at one instant that are taken for a loop without end.
const SPINNING: u32 = 1000;
/// How often the referee looks at everything.
const SAMPLE_GAP: Duration = Duration::from_secs(1);

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Everybody knows everybody and all records.
    Introduced,
    /// Nobody knows anybody; hosts start at random within this time.
    Cold {
        /// The last host has started by then.
        within: Duration,
    },
}

/// On what membership rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Members {
    /// Every host's configuration names all others.
    Configured,
    /// Nobody's does: each shows a certificate. Host 0 holds the authority's key.
    Certified,
}

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Hosts, liars included; at most 1,024.
    pub nodes: usize,
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Decides everything else.
    pub seed: u64,
    /// How it begins.
    pub start: Start,
    /// Members that lie; they are the last ones, and need [`Start::Introduced`].
    pub liars: usize,
    /// On what membership rests.
    pub members: Members,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    Wake(usize),
    Deliver { to: usize, from: SocketAddr, bytes: Vec<u8> },
    Resume(usize),
    Lie(usize),
    Fault(usize),
    Sample,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    at: Duration,
    serial: u64,
    what: What,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A cluster under virtual time.
pub struct World {
    pub(super) base: Instant,
    pub(super) now: Duration,
    pub(crate) nodes: Vec<Node>,
    pub(crate) link: Link,
    pub(crate) referee: Referee,
    pub(crate) settings: Settings,
    queue: BinaryHeap<Reverse<Entry>>,
    serial: u64,
    pub(super) rng: ChaCha8Rng,
    faults: Vec<Fault>,
    trace: Trace,
    /// What every configuration says.
    pub(super) members: Vec<StaticMember>,
    /// The authority of certified members.
    issuer: Issuer,
    hash: u64,
    woken: (Duration, usize, u32),
}

impl World {
    /// Sets up hosts and links; nothing has moved yet.
    ///
    /// # Errors
    /// When an invariant does not hold at the start.
    pub fn new(settings: Settings) -> Result<Self, Box<Violation>> {
        let nodes = settings.nodes;
        let mut world = Self {
            base: Instant::now(),
            now: Duration::ZERO,
            nodes: Vec::with_capacity(nodes),
            link: Link::new(nodes, settings.loss, settings.seed),
            referee: Referee::new(nodes),
            settings,
            queue: BinaryHeap::new(),
            serial: 0,
            rng: ChaCha8Rng::seed_from_u64(settings.seed),
            faults: Vec::new(),
            trace: Trace::default(),
            members: match settings.members {
                Members::Configured => (0..nodes).map(cast::member).collect(),
                Members::Certified => Vec::new(),
            },
            issuer: cast::issuer(),
            hash: 0xcbf2_9ce4_8422_2325,
            woken: (Duration::ZERO, 0, 0),
        };
        match settings.start {
            Start::Introduced => world.start_introduced()?,
            Start::Cold { within } => world.start_cold(within),
        }
        world.schedule(world.now + SAMPLE_GAP, What::Sample);
        Ok(world)
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// A hash over every datagram sent so far, with time, sender and receiver.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.hash
    }

    /// Makes a fault happen at a time.
    pub(crate) fn plan(&mut self, at: Duration, fault: Fault) {
        self.faults.push(fault);
        self.schedule(at.max(self.now), What::Fault(self.faults.len() - 1));
    }

    pub(super) fn schedule(&mut self, at: Duration, what: What) {
        self.serial += 1;
        self.queue.push(Reverse(Entry { at, serial: self.serial, what }));
    }

    /// Runs up to a time.
    ///
    /// # Errors
    /// At the first broken invariant.
    pub fn run_until(&mut self, end: Duration) -> Result<(), Box<Violation>> {
        while self.queue.peek().is_some_and(|Reverse(entry)| entry.at <= end) {
            let Some(Reverse(entry)) = self.queue.pop() else { break };
            self.now = self.now.max(entry.at);
            match entry.what {
                What::Wake(node) => self.wake(node, entry.at)?,
                What::Deliver { to, from, bytes } => self.deliver(to, from, bytes)?,
                What::Resume(node) => self.resume(node)?,
                What::Lie(node) => self.lie(node),
                What::Fault(fault) => self.apply(self.faults[fault].clone())?,
                What::Sample => {
                    self.judge(|referee, scene| referee.sample(scene))?;
                    self.schedule(self.now + SAMPLE_GAP, What::Sample);
                }
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// Runs for a time.
    ///
    /// # Errors
    /// At the first broken invariant.
    pub fn run_for(&mut self, length: Duration) -> Result<(), Box<Violation>> {
        self.run_until(self.now + length)
    }

    /// Runs until a condition holds, asked every `step`; the time it took, or `None` after `limit`.
    ///
    /// # Errors
    /// At the first broken invariant.
    pub fn run_to(
        &mut self,
        limit: Duration,
        step: Duration,
        condition: impl Fn(&Self) -> bool,
    ) -> Result<Option<Duration>, Box<Violation>> {
        let began = self.now;
        while !condition(self) {
            if self.now - began >= limit {
                return Ok(None);
            }
            self.run_for(step)?;
        }
        Ok(Some(self.now - began))
    }

    /// Lets every honest running host learn something; the watch is in the referee's list at the returned place.
    pub(crate) fn watch(&mut self, wanted: Wanted, except: usize) -> usize {
        let missing: BTreeSet<usize> = (0..self.nodes.len())
            .filter(|node| *node != except && self.nodes[*node].engine().is_some() && !self.referee.is_revoked(*node))
            .collect();
        self.referee.watches.push(Watch::new(wanted, self.now, missing));
        self.referee.watches.len() - 1
    }

    /// Whether all honest running hosts hold the same records.
    pub(crate) fn same_records(&self) -> bool {
        let nodes = self.nodes.iter().zip(0usize..).filter(|(_, index)| !self.referee.is_revoked(*index));
        let mut digests = nodes.filter_map(|(node, _)| node.engine()).map(Gossip::digest);
        let first = digests.next();
        digests.all(|digest| Some(digest) == first)
    }

    /// Asks for equal tables at all honest hosts.
    ///
    /// # Errors
    /// When they differ (S3), or a cap is exceeded (S6).
    pub(crate) fn require_equal_tables(&mut self) -> Result<(), Box<Violation>> {
        self.judge(|referee, scene| referee.tables_equal(scene))
    }

    /// Fails the run.
    pub(crate) fn violation(&self, (invariant, what): Broken) -> Box<Violation> {
        let (seed, at) = (self.settings.seed, self.now);
        Box::new(Violation { invariant, what, seed, at, trace: self.trace.text() })
    }

    fn judge(
        &mut self,
        question: impl FnOnce(&mut Referee, &Scene<'_>) -> Result<(), Broken>,
    ) -> Result<(), Box<Violation>> {
        let scene = Scene { now: self.now, nodes: &self.nodes, link: &self.link };
        question(&mut self.referee, &scene).map_err(|broken| self.violation(broken))
    }

    pub(super) fn wake(&mut self, index: usize, at: Duration) -> Result<(), Box<Violation>> {
        let (base, now) = (self.base, self.now);
        let node = &mut self.nodes[index];
        if node.wake != Some(at) {
            return Ok(());
        }
        node.wake = None;
        if node.stalled_until.is_some() {
            return Ok(());
        }
        let clock = node.clock(base, now);
        if let Some(engine) = node.engine_mut()
            && engine.poll_timeout().is_some_and(|due| due <= clock)
        {
            engine.handle_timeout(clock);
        }
        let (when, who, count) = self.woken;
        self.woken = if (when, who) == (now, index) { (now, index, count + 1) } else { (now, index, 0) };
        if self.woken.2 > SPINNING {
            return Err(self.violation(("S4", format!("h{} wakes up again and again", index + 1))));
        }
        self.drain(index)
    }

    fn deliver(&mut self, to: usize, from: SocketAddr, bytes: Vec<u8>) -> Result<(), Box<Violation>> {
        let (base, now) = (self.base, self.now);
        let node = &mut self.nodes[to];
        if node.stalled_until.is_some() {
            node.keep(from, bytes);
            return Ok(());
        }
        let clock = node.clock(base, now);
        match &mut node.role {
            Role::Dead => Ok(()),
            Role::Honest(engine) => {
                engine.handle_datagram(from, &bytes, clock);
                self.drain(to)
            }
            Role::Liar(liar) => {
                let answers = liar.handle_datagram(bytes);
                answers.into_iter().for_each(|(address, bytes)| self.carry(to, address, bytes));
                Ok(())
            }
        }
    }

    fn lie(&mut self, index: usize) {
        let count = self.nodes.len();
        let Role::Liar(liar) = &mut self.nodes[index].role else { return };
        let lies = liar.lie(count);
        lies.into_iter().for_each(|(address, bytes)| self.carry(index, address, bytes));
        self.schedule(self.now + LIE_GAP, What::Lie(index));
    }

    fn resume(&mut self, index: usize) -> Result<(), Box<Violation>> {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.stalled_until.is_none_or(|until| until > now) {
            return Ok(());
        }
        node.stalled_until = None;
        node.disturbed = Some(now);
        for (from, bytes) in node.take_inbox() {
            self.deliver(index, from, bytes)?;
        }
        self.drain(index)
    }

    /// Takes everything out of a state machine, and sets its next wake-up.
    pub(super) fn drain(&mut self, index: usize) -> Result<(), Box<Violation>> {
        while let Some(event) = self.nodes[index].engine_mut().and_then(Gossip::poll_event) {
            self.trace.push(self.now, Line::Event(index, event.clone()));
            self.judge(|referee, scene| referee.event(index, &event, scene))?;
        }
        while let Some(Transmit { to, bytes }) = self.nodes[index].engine_mut().and_then(Gossip::poll_transmit) {
            self.judge(|referee, _| referee.datagram(index, bytes.len()))?;
            self.carry(index, to, bytes);
        }
        let node = &self.nodes[index];
        let Some(due) = node.engine().and_then(Gossip::poll_timeout) else { return Ok(()) };
        let at = due.saturating_duration_since(self.base + node.ahead).max(self.now);
        if node.wake.is_none_or(|wake| at < wake) {
            self.nodes[index].wake = Some(at);
            self.schedule(at, What::Wake(index));
        }
        Ok(())
    }

    fn carry(&mut self, from: usize, address: SocketAddr, mut bytes: Vec<u8>) {
        let sent = &mut self.nodes[from].sent;
        sent.datagrams += 1;
        sent.bytes += bytes.len() as u64 + HEADER_BYTES;
        let to = cast::index_of(address).filter(|to| *to < self.nodes.len());
        self.note(&[self.now.as_nanos() as u64, from as u64, to.map_or(u64::MAX, |to| to as u64)], &bytes);
        let Some(to) = to else { return };
        let copies = 1 + usize::from(chance(&mut self.rng, self.link.duplicate));
        for copy in (0..copies).rev() {
            if let Some(delay) = self.link.carry(from, to, &mut self.rng) {
                if chance(&mut self.rng, self.link.corrupt) {
                    let bit = below(&mut self.rng, bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                let bytes = if copy == 0 { std::mem::take(&mut bytes) } else { bytes.clone() };
                let at = self.now + delay;
                self.schedule(at, What::Deliver { to, from: cast::address(from), bytes });
            }
        }
    }

    fn note(&mut self, words: &[u64], bytes: &[u8]) {
        let mut mix = |word: u64| self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x0100_0000_01b3);
        words.iter().for_each(|word| mix(*word));
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(u64::from_le_bytes(word));
        }
    }

    /// Makes a fault happen now.
    pub(crate) fn apply(&mut self, fault: Fault) -> Result<(), Box<Violation>> {
        if !matches!(fault, Fault::Partition(_)) {
            self.trace.push(self.now, Line::Fault(format!("{fault:?}")));
        }
        let now = self.now;
        match fault {
            Fault::Boot(index) => self.boot(index)?,
            Fault::Crash(index, damage) => self.crash(index, damage),
            Fault::Stall(index, length) => {
                let node = &mut self.nodes[index];
                node.stalled_until = Some(now + length);
                node.wake = None;
                self.schedule(now + length, What::Resume(index));
            }
            Fault::Jump(index, length) => {
                let node = &mut self.nodes[index];
                node.ahead += length;
                node.disturbed = Some(now);
                node.wake = None;
                self.drain(index)?;
            }
            Fault::Cut(from, to) => self.link.cut(from, to),
            Fault::Mend(from, to) => {
                self.link.mend(from, to);
                self.referee.mended(from, to, now);
            }
            Fault::Partition(sides) => {
                self.trace.push(now, Line::Fault("partition".to_owned()));
                // Hosts that an earlier partition kept apart may meet now.
                self.referee.all_mended(now);
                sides.into_iter().enumerate().for_each(|(node, side)| self.link.put_on_side(node, side));
            }
            Fault::HalfConnect(index, only) => {
                for other in (0..self.nodes.len()).filter(|other| *other != index && *other != only) {
                    self.link.cut(index, other);
                    self.link.cut(other, index);
                }
            }
            Fault::Heal => {
                self.link.heal();
                self.referee.all_mended(now);
            }
            Fault::Announce(index, parts) => self.announce(index, &parts)?,
            Fault::Revoke(index) => self.revoke(index)?,
            Fault::Calm => {
                self.link.calm();
                self.referee.all_mended(now);
                self.let_liars_lie(false);
            }
        }
        Ok(())
    }

    /// Whether liars lie from now on; they answer probes in any case.
    pub(crate) fn let_liars_lie(&mut self, lies: bool) {
        for node in &mut self.nodes {
            if let Role::Liar(liar) = &mut node.role {
                liar.is_active = lies;
            }
        }
    }

    fn boot(&mut self, index: usize) -> Result<(), Box<Violation>> {
        if !matches!(self.nodes[index].role, Role::Dead) {
            return Ok(());
        }
        let (seed, now) = (self.draw_seed(), self.now);
        let node = &mut self.nodes[index];
        let epoch = node.disk.next_epoch(now);
        node.disturbed = Some(now);
        let clock = node.clock(self.base, now);
        let engine = self.engine(index, seed, epoch, clock);
        self.referee.started(index, &engine).map_err(|broken| self.violation(broken))?;
        self.nodes[index].role = Role::Honest(Box::new(engine));
        self.nodes[index].wake = None;
        self.drain(index)
    }

    fn crash(&mut self, index: usize, damage: Damage) {
        let node = &mut self.nodes[index];
        if node.is_liar() {
            return;
        }
        node.role = Role::Dead;
        node.disk.crash(damage);
        node.stalled_until = None;
        node.take_inbox();
        node.wake = None;
        node.disturbed = Some(self.now);
    }

    fn announce(&mut self, index: usize, parts: &[u8]) -> Result<(), Box<Violation>> {
        let clock = self.nodes[index].clock(self.base, self.now);
        if self.nodes[index].stalled_until.is_some() {
            return Ok(());
        }
        if let Some(engine) = self.nodes[index].engine_mut() {
            let routes = parts
                .iter()
                .map(|part| RouteAnnouncement { prefix: cast::announced(index, *part), metric: 10 })
                .collect();
            engine.announce(routes, clock).expect("a few prefixes are never too many");
        }
        self.drain(index)
    }

    fn revoke(&mut self, index: usize) -> Result<(), Box<Violation>> {
        let clock = self.nodes[0].clock(self.base, self.now);
        let Some(engine) = self.nodes[0].engine_mut() else { return Ok(()) };
        let pending = self.issuer.revoke(cast::identity(index).host_id()).expect("the list has room for every host");
        let records = self.issuer.commit(pending).expect("nobody else changes the issuer");
        self.referee.revoked(index, &records);
        engine.publish_authority(records, clock);
        self.drain(0)
    }

    /// Bytes and datagrams sent by all hosts so far.
    pub(crate) fn traffic(&self) -> Vec<super::node::Traffic> {
        self.nodes.iter().map(|node| node.sent).collect()
    }
}

//! The reference model: what must hold at every step, whatever the faults.
//!
//! S1 owners only inside their grants; S2 versions never go back, and none that its owner did not publish; S3 equal
//! records give equal tables; S4 a quiet network becomes quiet; S5 no honest host that lives and can be reached stays
//! dead for long; S6 caps. S3 and S4 are asked once the faults have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use overlay_routing::gossip::{DownReason, Gossip, GossipEvent};
use overlay_routing::ownership::Owner;
use overlay_wire::HostId;
use overlay_wire::gossip::{Grant, Record, RecordKey, RecordKind};

use super::cast;
use super::link::Link;
use super::node::{Node, Role};
use super::watch::{Wanted, Watch};

/// A verdict about a host whose path was in order for so long is false: rounds that failed before do not excuse it.
const BLAMELESS: Duration = Duration::from_secs(15);
/// The longest that a reachable host may stay dead, at up to 10 % loss.
const STAYS_DEAD: Duration = Duration::from_secs(15);
/// The same above 10 % loss.
const STAYS_DEAD_LOSSY: Duration = Duration::from_secs(45);
/// What no host may exceed (S6).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    /// The largest datagram.
    pub(crate) datagram_bytes: usize,
    /// The most records of one owner.
    pub(crate) records_per_owner: usize,
}

/// A broken invariant, with what is needed to see it again.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which, `S1` to `S6`.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
    /// The seed of the run.
    pub seed: u64,
    /// Virtual time.
    pub at: Duration,
    /// The last events before it.
    pub trace: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invariant, what, seed, at, trace } = self;
        write!(f, "{invariant} broken with seed {seed} at {:.3} s: {what}\n{trace}", at.as_secs_f64())
    }
}

impl std::error::Error for Violation {}

/// What broke, before the run adds seed, time and trace.
pub(crate) type Broken = (&'static str, String);

/// The model's own state.
#[derive(Debug)]
pub struct Referee {
    hosts: BTreeMap<HostId, usize>,
    grants: BTreeMap<HostId, Vec<Grant>>,
    /// The version of each record at each host in its present run.
    versions: Vec<BTreeMap<RecordKey, u64>>,
    /// The highest version each honest owner published.
    published: BTreeMap<RecordKey, u64>,
    /// Hosts that the authority took out: nobody has to reach them, and they know nobody.
    revoked: BTreeSet<usize>,
    /// Hosts that count as known to be revoked at every host, whatever it knows.
    out: BTreeSet<HostId>,
    /// Since when `.0` holds `.1` for dead.
    down: BTreeMap<(usize, usize), Duration>,
    /// When the path of two hosts was last mended.
    mended: BTreeMap<(usize, usize), Duration>,
    all_mended: Option<Duration>,
    /// Whether a false death ends the run instead of being counted.
    pub(crate) is_strict: bool,
    pub(crate) false_deaths: u64,
    pub(crate) deaths: u64,
    pub(crate) refused_claims: u64,
    pub(crate) watches: Vec<Watch>,
    pub(crate) caps: Caps,
}

/// What surrounds the host whose event is looked at.
pub(crate) struct Scene<'a> {
    pub(crate) now: Duration,
    pub(crate) nodes: &'a [Node],
    pub(crate) link: &'a Link,
}

impl Referee {
    pub(crate) fn new(nodes: usize) -> Self {
        let host = |index: usize| cast::identity(index).host_id();
        Self {
            hosts: (0..nodes).map(|index| (host(index), index)).collect(),
            grants: (0..nodes).map(|index| (host(index), cast::grants(index))).collect(),
            versions: vec![BTreeMap::new(); nodes],
            published: BTreeMap::new(),
            revoked: BTreeSet::new(),
            out: BTreeSet::new(),
            down: BTreeMap::new(),
            mended: BTreeMap::new(),
            all_mended: None,
            is_strict: false,
            false_deaths: 0,
            deaths: 0,
            refused_claims: 0,
            watches: Vec::new(),
            caps: Caps { datagram_bytes: 1232, records_per_owner: 64 },
        }
    }

    /// A host starts a run with empty tables.
    pub(crate) fn started(&mut self, node: usize, engine: &Gossip) -> Result<(), Broken> {
        self.versions[node].clear();
        self.down.retain(|(at, _), _| *at != node);
        let own: Vec<(RecordKey, u64)> = engine.records().map(|record| (record.key, record.version)).collect();
        own.into_iter().filter(|(key, _)| key.owner == engine.host_id()).try_for_each(|(key, version)| {
            self.published.insert(key, version.max(self.published.get(&key).copied().unwrap_or(0)));
            Ok(())
        })
    }

    pub(crate) fn mended(&mut self, a: usize, b: usize, now: Duration) {
        self.mended.insert((a.min(b), a.max(b)), now);
    }

    pub(crate) fn all_mended(&mut self, now: Duration) {
        self.all_mended = Some(now);
    }

    /// The authority revokes a host by these records.
    pub(crate) fn revoked(&mut self, node: usize, records: &[Record]) {
        self.revoked.insert(node);
        self.down.retain(|(at, of), _| *at != node && *of != node);
        records.iter().for_each(|record| {
            self.published.insert(record.key, record.version);
        });
    }

    pub(crate) fn is_revoked(&self, node: usize) -> bool {
        self.revoked.contains(&node)
    }

    #[cfg(test)]
    pub(crate) fn forget_grants(&mut self, host: HostId) {
        self.grants.remove(&host);
    }

    #[cfg(test)]
    pub(crate) fn assume_known_as_revoked(&mut self, host: HostId) {
        self.out.insert(host);
    }

    #[cfg(test)]
    pub(crate) fn forget_published(&mut self, host: HostId) {
        self.published.retain(|key, _| key.owner != host);
    }

    /// Looks at one event of an honest host.
    pub(crate) fn event(&mut self, at: usize, event: &GossipEvent, scene: &Scene<'_>) -> Result<(), Broken> {
        let Some(engine) = scene.nodes[at].engine() else { return Ok(()) };
        match event {
            GossipEvent::RecordChanged { key } => self.record_changed(at, *key, engine, scene),
            GossipEvent::RoutesChanged => self.routes_changed(at, engine, scene),
            GossipEvent::RouteRefused(_) => {
                self.refused_claims += 1;
                Ok(())
            }
            GossipEvent::MemberDown { host, reason } => self.member_down(at, *host, *reason, scene),
            GossipEvent::MemberUp { host } | GossipEvent::MemberDegraded { host } => {
                if let Some(of) = self.hosts.get(host) {
                    self.down.remove(&(at, *of));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn record_changed(&mut self, at: usize, key: RecordKey, engine: &Gossip, scene: &Scene<'_>) -> Result<(), Broken> {
        let Some(version) = engine.record(&key).map(|record| record.version) else { return Ok(()) };
        let before = self.versions[at].insert(key, version);
        if let Some(before) = before.filter(|before| *before > version) {
            return Err(("S2", format!("h{} went back from {before} to {version} of {key:?}", at + 1)));
        }
        let Some(owner) = self.hosts.get(&key.owner).copied() else {
            if key.kind == RecordKind::AUTHORITY {
                return match self.published.get(&key) {
                    Some(highest) if *highest >= version => Ok(()),
                    _ => Err(("S2", format!("h{} holds version {version} of {key:?}, never published", at + 1))),
                };
            }
            return Err(("S1", format!("h{} holds a record of nobody: {key:?}", at + 1)));
        };
        if owner == at {
            let highest = self.published.entry(key).or_insert(0);
            *highest = version.max(*highest);
        } else if !scene.nodes[owner].is_liar() && version > self.published.get(&key).copied().unwrap_or(0) {
            return Err(("S2", format!("h{} holds version {version} of {key:?}, never published", at + 1)));
        }
        Ok(())
    }

    fn routes_changed(&mut self, at: usize, engine: &Gossip, scene: &Scene<'_>) -> Result<(), Broken> {
        let rib = engine.rib();
        for claim in rib.best() {
            let Owner::Member(owner) = claim.owner else { continue };
            let permitted = self.grants.get(&owner).is_some_and(|all| all.iter().any(|g| g.permits(&claim.prefix)));
            if engine.revoked().contains(&owner) || self.out.contains(&owner) {
                return Err(("S1", format!("h{} gives {} to {owner:?}, which is revoked", at + 1, claim.prefix)));
            }
            if !permitted {
                return Err(("S1", format!("h{} gives {} to {owner:?} without a grant", at + 1, claim.prefix)));
            }
        }
        for watch in self.watches.iter_mut().filter(|watch| watch.is_missing(at)) {
            let is_known = match watch.wanted {
                Wanted::Owner(ip, owner) => rib.owner(ip) == Some(Owner::Member(owner)),
                Wanted::Out(ip, owner) => {
                    engine.revoked().contains(&owner) && rib.owner(ip) != Some(Owner::Member(owner))
                }
                Wanted::Down(_) => false,
            };
            if is_known {
                watch.learned(at, scene.now);
            }
        }
        Ok(())
    }

    fn member_down(&mut self, at: usize, host: HostId, reason: DownReason, scene: &Scene<'_>) -> Result<(), Broken> {
        let Some(of) = self.hosts.get(&host).copied() else { return Ok(()) };
        self.down.insert((at, of), scene.now);
        self.deaths += 1;
        if reason == DownReason::NoAnswer && self.fine_since(at, of, scene).is_some_and(|age| age >= BLAMELESS) {
            self.false_deaths += 1;
            if self.is_strict && scene.link.loss <= 0.1 {
                return Err(("S5", format!("h{} gave up h{}, which it could reach", at + 1, of + 1)));
            }
        }
        for watch in self.watches.iter_mut().filter(|watch| watch.wanted == Wanted::Down(host)) {
            watch.learned(at, scene.now);
        }
        Ok(())
    }

    /// For how long two honest hosts could have reached each other; `None` when they cannot now.
    fn fine_since(&self, a: usize, b: usize, scene: &Scene<'_>) -> Option<Duration> {
        if self.is_revoked(a) || self.is_revoked(b) {
            return None;
        }
        let mut last = None;
        for node in [&scene.nodes[a], &scene.nodes[b]] {
            if !matches!(node.role, Role::Honest(_)) || node.stalled_until.is_some() {
                return None;
            }
            last = last.max(node.disturbed);
        }
        if !scene.link.passes(a, b) || !scene.link.passes(b, a) {
            return None;
        }
        let mended = self.mended.get(&(a.min(b), a.max(b))).copied();
        let last = last.max(mended).max(self.all_mended);
        // Nothing was ever wrong: that is long enough for every question.
        Some(last.map_or(Duration::MAX, |last| scene.now.saturating_sub(last)))
    }

    /// Looks at one datagram that leaves a host.
    pub(crate) fn datagram(&self, from: usize, bytes: usize) -> Result<(), Broken> {
        if bytes > self.caps.datagram_bytes {
            return Err(("S6", format!("h{} sends a datagram of {bytes} bytes", from + 1)));
        }
        Ok(())
    }

    /// Looks at all hosts; asked once a second.
    pub(crate) fn sample(&self, scene: &Scene<'_>) -> Result<(), Broken> {
        let limit = if scene.link.loss <= 0.1 { STAYS_DEAD } else { STAYS_DEAD_LOSSY };
        for ((at, of), since) in &self.down {
            let fine = self.fine_since(*at, *of, scene);
            if fine.is_some_and(|fine| fine > limit && scene.now - *since > limit) {
                let held = (scene.now - *since).as_secs_f64();
                return Err(("S5", format!("h{} holds h{} for dead for {held:.1} s", at + 1, of + 1)));
            }
        }
        for (node, index) in scene.nodes.iter().zip(0usize..) {
            let dropped = node.engine().map_or(0, |engine| engine.counters().queue_full);
            if dropped > 0 {
                return Err(("S6", format!("h{} dropped {dropped} outputs: a queue was full", index + 1)));
            }
        }
        Ok(())
    }

    /// Once quiet: every honest host has the same records and the same owner for every prefix, and keeps within its caps.
    pub(crate) fn tables_equal(&self, scene: &Scene<'_>) -> Result<(), Broken> {
        let mut first: Option<(usize, Table)> = None;
        for (node, index) in scene.nodes.iter().zip(0usize..) {
            let Some(engine) = node.engine().filter(|_| !self.is_revoked(index)) else { continue };
            let mut per_owner: BTreeMap<HostId, usize> = BTreeMap::new();
            engine.records().for_each(|record| *per_owner.entry(record.key.owner).or_default() += 1);
            if let Some((owner, count)) = per_owner.iter().find(|(_, count)| **count > self.caps.records_per_owner) {
                return Err(("S6", format!("h{} keeps {count} records of {owner:?}", index + 1)));
            }
            let table = table(engine);
            match &first {
                None => first = Some((index, table)),
                Some((other, equal)) if *equal != table => {
                    return Err((
                        "S3",
                        format!("h{} and h{} differ: {}", other + 1, index + 1, equal.difference(&table)),
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// What must be the same everywhere.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    versions: BTreeMap<RecordKey, u64>,
    owners: BTreeMap<String, HostId>,
    revoked: BTreeSet<HostId>,
}

impl Table {
    fn difference(&self, other: &Self) -> String {
        let version = self.versions.iter().find(|(key, version)| other.versions.get(key) != Some(version));
        let owner = self.owners.iter().find(|(prefix, owner)| other.owners.get(*prefix) != Some(owner));
        let counts = (self.versions.len(), other.versions.len(), self.owners.len(), other.owners.len());
        let revoked: Vec<&HostId> = self.revoked.symmetric_difference(&other.revoked).collect();
        format!("record {version:?}, owner {owner:?}, records and routes {counts:?}, revoked {revoked:?}")
    }
}

fn table(engine: &Gossip) -> Table {
    let owner = |owner| match owner {
        Owner::Local => Some(engine.host_id()),
        Owner::Member(host) => Some(host),
        Owner::Foreign(_) => None,
    };
    Table {
        versions: engine.records().map(|record| (record.key, record.version)).collect(),
        owners: engine.rib().best().filter_map(|claim| Some((claim.prefix.to_string(), owner(claim.owner)?))).collect(),
        revoked: engine.revoked().clone(),
    }
}

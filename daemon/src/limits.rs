//! The limits on rates that the command line and plugins set: kept on disk, gone with the container they are about.

use std::sync::Arc;
use std::time::Instant;

use overlay_control::api::{LimitInfo, LimitRate};
use overlay_dataplane::{Limit, Rate, RateTable};
use overlay_wire::{PeerIndex, Prefix};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::plumbing::lease::{Lease, LeaseState};
use crate::state::{Slots, StateDir, StateError};

/// Limits on one host, at most.
pub(crate) const MAX_LIMITS: usize = 4096;
const FILE: &str = "limits";
const VERSION: u16 = 1;

/// What a limit is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// A container, by its lease: another of the same name is another one.
    Container {
        /// The lease's number.
        lease: u64,
        /// Its addresses.
        prefixes: Vec<Prefix>,
    },
    /// Addresses.
    Prefix(Prefix),
    /// A peer, by its name.
    Peer(String),
}

/// A limit as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    selector: String,
    target: Target,
    from: LimitRate,
    to: LimitRate,
}

#[derive(Debug)]
struct Entry {
    saved: Saved,
    limit: Arc<Limit>,
}

impl Entry {
    fn new(saved: Saved) -> Self {
        let limit = Limit::new(&saved.selector, rate(saved.from), rate(saved.to), Instant::now());
        Self { limit: Arc::new(limit), saved }
    }
}

fn rate(rate: LimitRate) -> Rate {
    Rate { bits: rate.bits, burst: rate.burst, packets: rate.packets }
}

/// Every limit.
#[derive(Debug)]
pub struct Limits {
    entries: Mutex<Vec<Entry>>,
    file: Mutex<Slots>,
}

impl Limits {
    /// Takes up what was kept.
    ///
    /// # Errors
    /// When the file is newer, damaged beyond repair, foreign or unreadable.
    pub(crate) fn open(directory: &Arc<StateDir>) -> Result<Self, StateError> {
        let (file, loaded) = Slots::open(directory, FILE, VERSION)?;
        let saved: Vec<Saved> = match loaded {
            None => Vec::new(),
            // What this release wrote and cannot read is nothing that packets need: they pass without the limit.
            Some(loaded) => serde_json::from_slice(&loaded.payload).unwrap_or_else(|error| {
                tracing::error!(cause = %error, "the limits that were kept cannot be read; set them again");
                Vec::new()
            }),
        };
        let entries = saved.into_iter().take(MAX_LIMITS).map(Entry::new).collect();
        Ok(Self { entries: Mutex::new(entries), file: Mutex::new(file) })
    }

    /// The limits for the packet path; buckets go on as they are. `peer` finds a peer by its name.
    pub(crate) fn table(&self, peer: impl Fn(&str) -> Option<PeerIndex>) -> RateTable {
        let entries = self.entries.lock();
        let limits = entries.iter().map(|entry| {
            let limit = Arc::clone(&entry.limit);
            match &entry.saved.target {
                Target::Container { prefixes, .. } => (limit, prefixes.clone(), None),
                Target::Prefix(prefix) => (limit, vec![*prefix], None),
                Target::Peer(name) => (limit, Vec::new(), peer(name)),
            }
        });
        RateTable::build(limits.collect())
    }

    /// Sets a limit and keeps it; a direction that is `None` stays as it was. Whether anything changed; `None` when there are
    /// too many.
    ///
    /// # Errors
    /// When it cannot be kept; then it is not in force either.
    pub(crate) fn set(
        &self,
        selector: &str,
        target: Target,
        from: Option<LimitRate>,
        to: Option<LimitRate>,
    ) -> Result<Option<bool>, StateError> {
        let mut entries = self.entries.lock();
        let known = entries.iter().position(|entry| entry.saved.selector == selector && entry.saved.target == target);
        let before = known.map(|at| (entries[at].saved.from, entries[at].saved.to)).unwrap_or_default();
        let saved =
            Saved { selector: selector.to_owned(), target, from: from.unwrap_or(before.0), to: to.unwrap_or(before.1) };
        if known.is_some_and(|at| entries[at].saved == saved) {
            return Ok(Some(false));
        }
        if known.is_none() && entries.len() >= MAX_LIMITS {
            return Ok(None);
        }
        // One selector is one thing: an older container of the same name is gone.
        let others = entries.iter().map(|entry| &entry.saved).filter(|other| other.selector != selector);
        let next: Vec<Saved> = others.cloned().chain([saved.clone()]).collect();
        self.store(&next)?;
        entries.retain(|entry| entry.saved.selector != selector);
        entries.push(Entry::new(saved));
        Ok(Some(true))
    }

    /// Takes a limit away; whether there was one.
    ///
    /// # Errors
    /// When that cannot be kept; then it stays.
    pub(crate) fn remove(&self, selector: &str) -> Result<bool, StateError> {
        self.retain(|saved| saved.selector != selector)
    }

    /// Takes away the limits of containers that are gone; whether there were any.
    ///
    /// # Errors
    /// When that cannot be kept; then they stay.
    pub(crate) fn prune(&self, leases: &[Lease]) -> Result<bool, StateError> {
        self.retain(|saved| match saved.target {
            Target::Container { lease, .. } => {
                leases.iter().any(|known| known.id == lease && known.state != LeaseState::Cooling)
            }
            Target::Prefix(_) | Target::Peer(_) => true,
        })
    }

    fn retain(&self, stays: impl Fn(&Saved) -> bool) -> Result<bool, StateError> {
        let mut entries = self.entries.lock();
        let next: Vec<Saved> = entries.iter().map(|entry| &entry.saved).filter(|saved| stays(saved)).cloned().collect();
        if next.len() == entries.len() {
            return Ok(false);
        }
        self.store(&next)?;
        entries.retain(|entry| stays(&entry.saved));
        Ok(true)
    }

    fn store(&self, saved: &[Saved]) -> Result<(), StateError> {
        let text = serde_json::to_vec(saved).expect("limits are plain values");
        self.file.lock().store(&text)
    }

    /// Every limit, for people.
    pub(crate) fn list(&self) -> Vec<LimitInfo> {
        let shown = |entry: &Entry| {
            let Saved { selector, target, from, to } = entry.saved.clone();
            let (kind, prefixes) = match target {
                Target::Container { prefixes, .. } => ("container", prefixes),
                Target::Prefix(prefix) => ("prefix", vec![prefix]),
                Target::Peer(_) => ("peer", Vec::new()),
            };
            let (dropped_from, dropped_to) = entry.limit.dropped();
            LimitInfo { selector, kind: kind.to_owned(), prefixes, from, to, dropped_from, dropped_to }
        };
        let mut limits: Vec<LimitInfo> = self.entries.lock().iter().map(shown).collect();
        limits.sort_by(|a, b| a.selector.cmp(&b.selector));
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, Arc<StateDir>) {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Arc::new(StateDir::open(place.path()).expect("a state directory"));
        (place, directory)
    }

    fn bits(bits: u64) -> LimitRate {
        LimitRate { bits: Some(bits), ..LimitRate::default() }
    }

    #[test]
    fn limits_outlive_a_restart_and_directions_are_set_apart() {
        let (_place, directory) = directory();
        let limits = Limits::open(&directory).expect("limits");
        let target = Target::Prefix("10.42.1.5/32".parse().expect("a prefix"));
        assert_eq!(limits.set("10.42.1.5", target.clone(), Some(bits(1000)), None).expect("kept"), Some(true));
        assert_eq!(limits.set("10.42.1.5", target.clone(), None, Some(bits(2000))).expect("kept"), Some(true));
        assert_eq!(limits.set("10.42.1.5", target, None, Some(bits(2000))).expect("kept"), Some(false));
        let before = limits.list();
        assert_eq!((before[0].from, before[0].to), (bits(1000), bits(2000)));
        drop(limits);
        let limits = Limits::open(&directory).expect("limits");
        assert_eq!(limits.list(), before);
        assert_eq!(limits.table(|_| None).limits().len(), 1);
        assert!(limits.remove("10.42.1.5").expect("kept"));
        assert!(!limits.remove("10.42.1.5").expect("kept"));
        assert_eq!(Limits::open(&directory).expect("limits").list(), []);
    }

    #[test]
    fn limit_goes_with_its_container_and_not_to_the_next_of_the_name() {
        let (_place, directory) = directory();
        let limits = Limits::open(&directory).expect("limits");
        let target = |lease| Target::Container { lease, prefixes: vec!["10.42.1.5/32".parse().expect("a prefix")] };
        limits.set("web", target(1), Some(bits(1000)), Some(bits(1000))).expect("kept");
        limits.set("web", target(2), Some(bits(2000)), None).expect("kept");
        let shown = limits.list();
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].from, shown[0].to), (bits(2000), LimitRate::default()), "nothing is left of the first");
        assert!(limits.prune(&[]).expect("kept"));
        assert_eq!(limits.list(), []);
    }
}

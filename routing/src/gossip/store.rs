//! The record store: the newest version of every key, and the digest that tells two stores apart.
//!
//! Merging is commutative, associative and idempotent: per key the greater (version, hash) stays; per owner the lowest
//! keys stay when there are too many. Nothing else, above all no order of arrival, decides.

use std::collections::BTreeMap;
use std::ops::Bound;

use blake2::{Blake2s256, Digest};
use overlay_wire::HostId;
use overlay_wire::gossip::message::{DIGEST_BUCKETS, VersionEntry};
use overlay_wire::gossip::{Record, RecordKey, RecordKind};

/// The most records kept per owner: 108 KiB at most. Of 32 pieces of policy, 32 of identities, 16 of names and 8 of networks
/// none takes another's room.
pub(super) const MAX_RECORDS_PER_OWNER: usize = 96;

/// The most records kept of one authority: more than 10,000 revoked hosts of a few issuers.
pub(super) const MAX_RECORDS_PER_AUTHORITY: usize = 512;

/// What merging a record did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// It is new or newer.
    Stored,
    /// It is there already, or is older, or its owner has too many.
    Ignored,
    /// Another record of the same version exists; the flag tells whether the new one replaced it.
    Equivocation { stored: bool },
}

/// How a record compares with what the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    Newer,
    Same,
    Older,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    record: Record,
    hash: [u8; 32],
}

/// The records, ordered by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Store {
    records: BTreeMap<RecordKey, Stored>,
    buckets: Box<[u64; DIGEST_BUCKETS]>,
}

impl Default for Store {
    fn default() -> Self {
        Self { records: BTreeMap::new(), buckets: Box::new([0; DIGEST_BUCKETS]) }
    }
}

impl Store {
    /// Compares before any signature is checked.
    pub(super) fn freshness(&self, record: &Record) -> Freshness {
        let Some(held) = self.records.get(&record.key) else { return Freshness::Newer };
        match (record.version, record_hash(record)).cmp(&(held.record.version, held.hash)) {
            std::cmp::Ordering::Greater => Freshness::Newer,
            std::cmp::Ordering::Equal => Freshness::Same,
            // An equal version with a lesser hash is still worth an alarm.
            std::cmp::Ordering::Less if record.version == held.record.version => Freshness::Newer,
            std::cmp::Ordering::Less => Freshness::Older,
        }
    }

    /// Merges a record whose signature was verified.
    pub(super) fn merge(&mut self, record: Record) -> Merge {
        let key = record.key;
        let hash = record_hash(&record);
        let mut alarm = false;
        if let Some(held) = self.records.get(&key) {
            alarm = held.record.version == record.version && held.record.body != record.body;
            if (record.version, hash) <= (held.record.version, held.hash) {
                return if alarm { Merge::Equivocation { stored: false } } else { Merge::Ignored };
            }
        }
        self.remove(&key);
        self.toggle(&key, record.version, &hash);
        self.records.insert(key, Stored { record, hash });
        let most = if key.kind == RecordKind::AUTHORITY { MAX_RECORDS_PER_AUTHORITY } else { MAX_RECORDS_PER_OWNER };
        let greatest = match self.of_owner(key.owner).count() {
            count if count > most => self.of_owner(key.owner).last().map(|record| record.key),
            _ => None,
        };
        if let Some(greatest) = greatest {
            self.remove(&greatest);
            if greatest == key {
                return Merge::Ignored;
            }
        }
        if alarm { Merge::Equivocation { stored: true } } else { Merge::Stored }
    }

    pub(super) fn get(&self, key: &RecordKey) -> Option<&Record> {
        self.records.get(key).map(|stored| &stored.record)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values().map(|stored| &stored.record)
    }

    pub(super) fn of_owner(&self, owner: HostId) -> impl Iterator<Item = &Record> {
        let first = RecordKey { owner, kind: RecordKind(0), shard: 0 };
        let last = RecordKey { owner, kind: RecordKind(u16::MAX), shard: u16::MAX };
        self.records.range(first..=last).map(|(_, stored)| &stored.record)
    }

    /// The records of one kind of an owner, by shard.
    pub(super) fn of_kind(&self, owner: HostId, kind: RecordKind) -> impl Iterator<Item = &Record> {
        let first = RecordKey { owner, kind, shard: 0 };
        let last = RecordKey { owner, kind, shard: u16::MAX };
        self.records.range(first..=last).map(|(_, stored)| &stored.record)
    }

    /// Forgets an owner who is no member any more.
    pub(super) fn remove_owner(&mut self, owner: HostId) {
        let keys: Vec<RecordKey> = self.of_owner(owner).map(|record| record.key).collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    /// Forgets the records of an owner that do not satisfy a condition.
    pub(super) fn retain_of(&mut self, owner: HostId, keep: impl Fn(&RecordKey) -> bool) {
        let keys: Vec<RecordKey> = self.of_owner(owner).map(|record| record.key).filter(|key| !keep(key)).collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    pub(super) fn digest(&self) -> &[u64; DIGEST_BUCKETS] {
        &self.buckets
    }

    /// The version entries of one bucket between two keys.
    pub(super) fn entries(
        &self,
        bucket: u8,
        after: Option<RecordKey>,
        through: Option<RecordKey>,
    ) -> Vec<VersionEntry> {
        let low = after.map_or(Bound::Unbounded, Bound::Excluded);
        let high = through.map_or(Bound::Unbounded, Bound::Included);
        if matches!((after, through), (Some(a), Some(t)) if a >= t) {
            return Vec::new();
        }
        let range = self.records.range((low, high));
        range
            .filter(|(key, _)| bucket_of(key) == bucket)
            .map(|(key, stored)| VersionEntry {
                key: *key,
                version: stored.record.version,
                hash: short_hash(&stored.hash),
            })
            .collect()
    }

    fn remove(&mut self, key: &RecordKey) {
        if let Some(held) = self.records.remove(key) {
            self.toggle(key, held.record.version, &held.hash);
        }
    }

    /// Adds an entry to its bucket's hash, or takes it out: exclusive or is its own inverse.
    fn toggle(&mut self, key: &RecordKey, version: u64, hash: &[u8; 32]) {
        let mut bytes = Vec::with_capacity(RecordKey::LEN + 40);
        key.encode(&mut bytes);
        bytes.extend_from_slice(&version.to_be_bytes());
        bytes.extend_from_slice(hash);
        let entry: [u8; 32] = Blake2s256::digest(&bytes).into();
        self.buckets[usize::from(bucket_of(key))] ^= short_hash(&entry);
    }
}

/// The hash by which records of one version are told apart: BLAKE2s-256 over the encoded record.
pub(super) fn record_hash(record: &Record) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(record.encoded_len());
    record.encode(&mut bytes);
    Blake2s256::digest(&bytes).into()
}

/// The first eight bytes of a hash, as version lists carry them.
pub(super) fn short_hash(hash: &[u8; 32]) -> u64 {
    let mut short = [0; 8];
    short.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(short)
}

/// The digest bucket of a key.
pub(super) fn bucket_of(key: &RecordKey) -> u8 {
    let mut bytes = Vec::with_capacity(RecordKey::LEN);
    key.encode(&mut bytes);
    Blake2s256::digest(&bytes)[0] % DIGEST_BUCKETS as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        (0u8..3, 0u16..3, 0u16..40, 1u64..4, 0u8..3).prop_map(|(owner, kind, shard, version, body)| Record {
            key: RecordKey { owner: HostId([owner; 16]), kind: RecordKind(kind), shard },
            version,
            body: vec![body; usize::from(body)],
            signature: [0; 64],
        })
    }

    fn store(records: &[Record]) -> Store {
        let mut store = Store::default();
        records.iter().for_each(|record| {
            store.merge(record.clone());
        });
        store
    }

    proptest! {
        #[test]
        fn merge_is_order_free_and_idempotent(
            records in proptest::collection::vec(record(), 0..200),
            seed in any::<u64>(),
        ) {
            let mut shuffled = records.clone();
            let mut state = seed | 1;
            for at in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                shuffled.swap(at, (state >> 33) as usize % (at + 1));
            }
            let doubled: Vec<Record> = records.iter().chain(&shuffled).cloned().collect();
            prop_assert_eq!(store(&records), store(&shuffled));
            prop_assert_eq!(store(&records), store(&doubled));
        }

        #[test]
        fn merge_is_associative(
            a in proptest::collection::vec(record(), 0..60),
            b in proptest::collection::vec(record(), 0..60),
            c in proptest::collection::vec(record(), 0..60),
        ) {
            let join = |x: &Store, y: &Store| store(&x.iter().chain(y.iter()).cloned().collect::<Vec<_>>());
            let (a, b, c) = (store(&a), store(&b), store(&c));
            prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        }

        #[test]
        fn equal_digests_mean_equal_stores(
            a in proptest::collection::vec(record(), 0..40),
            b in proptest::collection::vec(record(), 0..40),
        ) {
            let (a, b) = (store(&a), store(&b));
            prop_assert_eq!(a.digest() == b.digest(), a == b);
        }
    }

    #[test]
    fn too_many_records_of_one_owner_keep_the_lowest_keys() {
        let record = |shard| Record {
            key: RecordKey { owner: HostId([1; 16]), kind: RecordKind(9), shard },
            version: 1,
            body: vec![1],
            signature: [0; 64],
        };
        let store = store(&(0..500).rev().map(record).collect::<Vec<_>>());
        let shards: Vec<u16> = store.iter().map(|record| record.key.shard).collect();
        assert_eq!(shards, (0..MAX_RECORDS_PER_OWNER as u16).collect::<Vec<_>>());
    }
}

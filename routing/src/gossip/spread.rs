//! Dissemination: push of new records, and the digest exchange that finds what a push missed.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::envelope::MAX_MESSAGE_BYTES;
use overlay_wire::gossip::message::{DIGEST_BUCKETS, MAX_VERSION_ENTRIES, MAX_WANTED, VersionEntry};
use overlay_wire::gossip::{Message, Record, RecordKey, RecordKind};
use rand_core::RngCore as _;

use super::limiter::Rate;
use super::peer::Offer;
use super::store::bucket_of;
use super::{Gossip, TICK};

/// Pause between two pushes.
pub(super) const PUSH_GAP: Duration = Duration::from_millis(200);
/// Digests sent at once to members that come up; the digest of every second finds what is left.
pub(super) const GREETING_RATE: Rate = Rate { per_second: 8, burst: 32 };
/// Digests answered. One answer can take 40 KiB, and in a cluster that starts as a whole every digest differs.
pub(super) const EXCHANGE_RATE: Rate = Rate { per_second: 4, burst: 16 };
/// Offers remembered per member.
const MAX_OFFERS: usize = 128;
/// Members a push goes to.
const FANOUT: usize = 3;
/// Datagrams of one push to one member.
const MAX_PUSH_DATAGRAMS: usize = 8;
/// More records than these never fit the datagrams of one push.
const MAX_PUSH_RECORDS: usize = 128;
/// Buckets compared in one exchange.
const MAX_BUCKETS_PER_EXCHANGE: usize = 16;
/// Records sent in answer to one version list.
const MAX_OFFERED: usize = 32;
/// The first and the longest pause before a record is offered to the same member again.
const OFFER_PAUSE: (Duration, Duration) = (Duration::from_millis(900), Duration::from_secs(60));

impl Gossip {
    /// Queues a record for pushing.
    pub(super) fn queue_push(&mut self, key: RecordKey, now: Instant) {
        // 4 * ceil(log10(N + 1)) transmissions, as memberlist's retransmission count.
        let members = self.peers.len() + 1;
        let mut digits = 1;
        while 10usize.pow(digits) < members + 1 {
            digits += 1;
        }
        self.pushes.insert(key, 4 * digits);
        if self.next_push.is_none_or(|at| at > now) {
            self.next_push = Some(now);
        }
    }

    /// Sends queued records to a few members.
    pub(super) fn push_tick(&mut self, now: Instant) {
        self.next_push = None;
        let targets = self.random_reachable(FANOUT, self.host);
        if targets.is_empty() {
            self.next_push = Some(now + TICK);
            return;
        }
        // The urgent first, then the newest: in a burst, what was pushed least waits least.
        let mut queued: Vec<(u32, RecordKey)> = self.pushes.iter().map(|(key, left)| (*left, *key)).collect();
        queued.sort_by_key(|(left, key)| (urgency(*key), Reverse(*left), *key));
        queued.truncate(MAX_PUSH_RECORDS);
        let queued: Vec<Record> = queued.iter().filter_map(|(_, key)| self.store.get(key)).cloned().collect();
        let mut messages = record_messages(queued);
        messages.truncate(MAX_PUSH_DATAGRAMS);
        for message in &messages {
            targets.iter().for_each(|target| self.send(*target, message));
            if let Message::Records(records) = message {
                for record in records {
                    let left = self.pushes.get(&record.key).copied().unwrap_or(0);
                    if left <= 1 {
                        self.pushes.remove(&record.key);
                    } else {
                        self.pushes.insert(record.key, left - 1);
                    }
                }
            }
        }
        let store = &self.store;
        self.pushes.retain(|key, _| store.get(key).is_some());
        if !self.pushes.is_empty() {
            self.next_push = Some(now + PUSH_GAP);
        }
    }

    /// A record came that is here already: others push it too, so it needs fewer pushes from here.
    pub(super) fn pushed_by_others(&mut self, key: &RecordKey) {
        if let Some(left) = self.pushes.get_mut(key) {
            *left -= 1;
            if *left == 0 {
                self.pushes.remove(key);
            }
        }
    }

    /// Sends the digest to one member.
    pub(super) fn digest_tick(&mut self) {
        let targets = self.random_reachable(1, self.host);
        targets.into_iter().for_each(|target| self.greet(target));
    }

    /// Answers a digest with the version lists of the buckets that differ.
    pub(super) fn handle_digest(&mut self, host: HostId, theirs: &[u64; DIGEST_BUCKETS], now: Instant) {
        let ours = *self.store.digest();
        if ours == *theirs || !self.exchanges.take(EXCHANGE_RATE, 1, now) {
            return;
        }
        let start = self.rng.next_u64() as usize % DIGEST_BUCKETS;
        let differing = (0..DIGEST_BUCKETS)
            .map(|step| (start + step) % DIGEST_BUCKETS)
            .filter(|bucket| ours[*bucket] != theirs[*bucket])
            .take(MAX_BUCKETS_PER_EXCHANGE);
        for bucket in differing {
            let bucket = bucket as u8;
            let entries = self.store.entries(bucket, None, None);
            let mut after = None;
            let chunks = entries.len().div_ceil(MAX_VERSION_ENTRIES).max(1);
            for chunk in 0..chunks {
                let from = chunk * MAX_VERSION_ENTRIES;
                let part = entries[from..entries.len().min(from + MAX_VERSION_ENTRIES)].to_vec();
                let last = part.last().map(|entry| entry.key);
                let through = if chunk + 1 == chunks { None } else { last };
                self.send(host, &Message::Versions { bucket, after, through, entries: part });
                after = last;
            }
        }
    }

    /// Compares a version list: sends what is newer here, asks for what is newer there.
    pub(super) fn handle_versions(
        &mut self,
        host: HostId,
        bucket: u8,
        range: (Option<RecordKey>, Option<RecordKey>),
        theirs: &[VersionEntry],
        now: Instant,
    ) {
        let ours = self.store.entries(bucket, range.0, range.1);
        let stamp = |entry: &VersionEntry| (entry.version, entry.hash);
        let find = |list: &[VersionEntry], key: &RecordKey| {
            list.binary_search_by_key(key, |entry| entry.key).ok().map(|at| stamp(&list[at]))
        };
        let newer_here: Vec<VersionEntry> =
            ours.iter().filter(|entry| find(theirs, &entry.key).is_none_or(|s| s < stamp(entry))).copied().collect();
        let wanted: Vec<RecordKey> = theirs
            .iter()
            .filter(|entry| bucket_of(&entry.key) == bucket && self.is_wanted(&entry.key))
            .filter(|entry| find(&ours, &entry.key).is_none_or(|s| s < stamp(entry)))
            .map(|entry| entry.key)
            .take(MAX_WANTED)
            .collect();
        let offered: Vec<VersionEntry> =
            newer_here.into_iter().filter(|entry| self.may_offer(host, entry, now)).take(MAX_OFFERED).collect();
        let mut offered: Vec<Record> = offered.iter().filter_map(|entry| self.store.get(&entry.key).cloned()).collect();
        offered.sort_by_key(|record| urgency(record.key));
        record_messages(offered).iter().for_each(|message| self.send(host, message));
        if !wanted.is_empty() {
            self.send(host, &Message::Want(wanted));
        }
    }

    pub(super) fn handle_want(&mut self, host: HostId, keys: &[RecordKey]) {
        let mut records: Vec<Record> = keys.iter().filter_map(|key| self.store.get(key)).cloned().collect();
        records.sort_by_key(|record| urgency(record.key));
        record_messages(records).iter().for_each(|message| self.send(host, message));
    }

    /// Whether a record may be offered to a member now: one that it does not take is offered ever more rarely.
    pub(super) fn may_offer(&mut self, host: HostId, entry: &VersionEntry, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&host) else { return false };
        match peer.offered.get_mut(&entry.key) {
            Some(offer) if offer.version == entry.version => {
                if now < offer.next {
                    return false;
                }
                offer.pause = (offer.pause * 2).min(OFFER_PAUSE.1);
                offer.next = now + offer.pause;
            }
            _ => {
                if peer.offered.len() >= MAX_OFFERS {
                    peer.offered.retain(|_, offer| now < offer.next);
                    if peer.offered.len() >= MAX_OFFERS {
                        return false;
                    }
                }
                let offer = Offer { version: entry.version, next: now + OFFER_PAUSE.0, pause: OFFER_PAUSE.0 };
                peer.offered.insert(entry.key, offer);
            }
        }
        true
    }
}

/// What is sent first: what takes members out, then what brings them in, then everything else.
pub(super) fn urgency(key: RecordKey) -> u8 {
    match key.kind {
        RecordKind::AUTHORITY => 0,
        RecordKind::CERTIFICATE => 1,
        _ => 2,
    }
}

/// Packs records into as few messages as fit a datagram each.
pub(super) fn record_messages(records: Vec<Record>) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut part = Vec::new();
    let mut size = 2;
    for record in records {
        if size + record.encoded_len() > MAX_MESSAGE_BYTES && !part.is_empty() {
            messages.push(Message::Records(std::mem::take(&mut part)));
            size = 2;
        }
        size += record.encoded_len();
        part.push(record);
    }
    if !part.is_empty() {
        messages.push(Message::Records(part));
    }
    messages
}

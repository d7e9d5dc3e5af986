//! Questions about the state: members, records, routes, keys, counters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use overlay_wire::gossip::message::DIGEST_BUCKETS;
use overlay_wire::gossip::{HostBody, Record, RecordKey, RecordKind, RouteAnnouncement, RouteVerdict};
use overlay_wire::{HostId, Prefix};

use super::peer::Peer;
use super::view::{GossipCounters, MemberState, MemberView};
use super::{Gossip, OwnHost};
use crate::rib::Rib;

impl Gossip {
    /// The host id of this host.
    #[must_use]
    pub fn host_id(&self) -> HostId {
        self.host
    }

    /// What this host says about itself.
    #[must_use]
    pub fn own_host(&self) -> &OwnHost {
        &self.own
    }

    /// What this host announces beside its own prefixes.
    #[must_use]
    pub fn announced(&self) -> &[RouteAnnouncement] {
        &self.announced
    }

    /// The state of every member, in host id order.
    #[must_use]
    pub fn members(&self) -> Vec<MemberView> {
        self.peers.values().map(|peer| self.view(peer)).collect()
    }

    /// The state of one member.
    #[must_use]
    pub fn member(&self, host: HostId) -> Option<MemberView> {
        self.peers.get(&host).map(|peer| self.view(peer))
    }

    /// The routes that follow from configuration and records.
    #[must_use]
    pub fn rib(&self) -> Arc<Rib> {
        Arc::clone(&self.rib)
    }

    /// Every record held, in key order; withdrawn ones have an empty body.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.store.iter()
    }

    /// How many members answer, those included whose last round failed.
    #[must_use]
    pub fn members_answering(&self) -> usize {
        self.peers.values().filter(|peer| matches!(peer.state, MemberState::Up | MemberState::Suspect)).count()
    }

    /// One record.
    #[must_use]
    pub fn record(&self, key: &RecordKey) -> Option<&Record> {
        self.store.get(key)
    }

    /// The hashes of all buckets of records; two hosts with the same have the same records.
    #[must_use]
    pub fn digest(&self) -> &[u64; DIGEST_BUCKETS] {
        self.store.digest()
    }

    /// What each member that answered made of the prefixes this host claims, at their newest version.
    #[must_use]
    pub fn announced_verdicts(&self) -> BTreeMap<HostId, Vec<(Prefix, RouteVerdict)>> {
        let current = self.peers.values().filter(|peer| peer.verdicts.version >= self.own_version);
        current.map(|peer| (peer.host, peer.verdicts.entries.clone())).collect()
    }

    /// The GRE key shared with a member, and the previous one for 5 s after a change.
    #[must_use]
    pub fn gre_keys(&self, member: HostId, now: Instant) -> Option<(u32, Option<u32>)> {
        self.peers.get(&member)?.gre_keys(now)
    }

    /// The addresses under which members see this host.
    #[must_use]
    pub fn observed_addresses(&self) -> BTreeSet<SocketAddr> {
        self.peers.values().filter_map(|peer| peer.observed).collect()
    }

    /// What became of datagrams.
    #[must_use]
    pub fn counters(&self) -> GossipCounters {
        self.counters
    }

    fn view(&self, peer: &Peer) -> MemberView {
        let key = RecordKey { owner: peer.host, kind: RecordKind::HOST, shard: 0 };
        MemberView {
            host: peer.host,
            name: peer.member.name.clone(),
            identity: peer.member.identity,
            state: peer.state,
            since: peer.since,
            down_reason: peer.down_reason,
            endpoint: peer.address(),
            candidates: peer.candidates(),
            validated_source: peer.validated_source,
            observed: peer.observed,
            rtt: peer.rtt,
            loss_percent: peer.outcomes.loss_percent(),
            last_heard: peer.last_heard,
            plain: peer.plain_theirs,
            plain_heard: peer.plain_heard,
            host_record: self.store.get(&key).and_then(|record| HostBody::decode(&record.body).ok()),
            authority: peer.authority.clone(),
            standing: peer.standing,
        }
    }
}

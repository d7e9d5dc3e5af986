//! Labels of containers: published by the host they run on, believed where the host owns the address.
//!
//! A record goes to a few members at once when it is published, to the member that a flow begins towards, and from there
//! the way of every record. A member that misses one asks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_wire::gossip::identities::{Identities as Published, MAX_IDENTITY_SHARDS, place};
use overlay_wire::gossip::{HostBody, IdentitiesBody, Labels, Message, Record, RecordKey, RecordKind};
use overlay_wire::membership::Serial;
use overlay_wire::{HostId, Prefix};

use super::Gossip;
use super::membership::Authority;
use super::networks::host_addresses;
use super::peer::Peer;
use super::spread::record_messages;
use super::view::{GossipEvent, MemberState};
use crate::identities::{HostIdentities, Identities};
use crate::ownership::Owner;
use crate::rib::{ClaimSource, Rib};

/// Members that a new record goes to at once.
const DIRECT_MEMBERS: usize = 16;
/// The least pause between two questions to one member.
const ASK_GAP: Duration = Duration::from_secs(1);

/// What a host's identities follow from beside the routes: its records by shard, version and signature, and its certificate.
type Stamp = (Vec<(u16, u64, [u8; 8])>, Option<Serial>);

/// What was made of each member's records.
#[derive(Debug, Default)]
pub(super) struct IdentityCache {
    members: BTreeMap<HostId, (Stamp, Arc<HostIdentities>)>,
    own: Arc<HostIdentities>,
    uncertain: Vec<Prefix>,
}

impl Gossip {
    /// Publishes the labels of this host's containers, those without labels too; how many addresses there was no room for.
    pub fn publish_identities(&mut self, identities: &Published, now: Instant) -> usize {
        let published: Vec<IdentitiesBody> =
            (0..MAX_IDENTITY_SHARDS as u16).map_while(|shard| self.own_identities_in(shard)).collect();
        let (pieces, left_out) = place(&published, identities);
        let mut changed = Vec::new();
        for (shard, piece) in (0..).zip(&pieces) {
            // A piece of acceptable labels within its room always encodes.
            let body = if piece.is_empty() { Vec::new() } else { piece.encode().unwrap_or_default() };
            let key = RecordKey { shard, ..self.own_key(RecordKind::IDENTITIES) };
            let held = self.store.get(&key).map(|held| held.version);
            if !body.is_empty() || held.is_some() {
                self.publish(key, body, now);
            }
            changed.extend(self.store.get(&key).filter(|record| Some(record.version) != held).cloned());
        }
        self.own_identities.clone_from(identities);
        self.tell_at_once(&changed);
        self.routes_stale = true;
        self.settle_routes();
        left_out
    }

    fn own_identities_in(&self, shard: u16) -> Option<IdentitiesBody> {
        let record = self.store.get(&RecordKey { shard, ..self.own_key(RecordKind::IDENTITIES) })?;
        Some(IdentitiesBody::decode(&record.body).unwrap_or_default())
    }

    /// Sends records of ours to the members that answer, a bounded number: in a small cluster to all.
    fn tell_at_once(&mut self, records: &[Record]) {
        let up = self.peers.values().filter(|peer| peer.state == MemberState::Up);
        let members: Vec<HostId> = up.take(DIRECT_MEMBERS).map(|peer| peer.host).collect();
        for member in members {
            self.tell_records(member, records.to_vec());
        }
    }

    fn tell_records(&mut self, member: HostId, records: Vec<Record>) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.identities.told.extend(records.iter().map(|record| (record.key.shard, record.version)));
        }
        record_messages(records).iter().for_each(|message| self.send(member, message));
    }

    /// A flow from a container of this host begins towards a member: it gets the record with the container's labels, unless
    /// it was sent that already.
    pub fn introduce_identity(&mut self, member: HostId, address: IpAddr) {
        let shards = 0..MAX_IDENTITY_SHARDS as u16;
        let records =
            shards.map_while(|shard| self.store.get(&RecordKey { shard, ..self.own_key(RecordKind::IDENTITIES) }));
        let mut holding =
            records.filter(|record| IdentitiesBody::decode(&record.body).is_ok_and(|body| body.contains(address)));
        let Some(record) = holding.next().cloned() else { return };
        let told = self.peers.get(&member).map(|peer| peer.identities.told.get(&record.key.shard).copied());
        if told.is_some_and(|told| told != Some(record.version)) {
            self.tell_records(member, vec![record]);
        }
    }

    /// Asks a member for the labels of its containers, at most once a second.
    pub fn ask_identities(&mut self, member: HostId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&member) else { return };
        if peer.identities.asked.is_some_and(|asked| now.saturating_duration_since(asked) < ASK_GAP) {
            return;
        }
        peer.identities.asked = Some(now);
        let key = |shard| RecordKey { owner: member, kind: RecordKind::IDENTITIES, shard };
        self.send(member, &Message::Want((0..MAX_IDENTITY_SHARDS as u16).map(key).collect()));
    }

    /// What is known of the addresses of the overlay.
    #[must_use]
    pub fn identities(&self) -> Arc<Identities> {
        Arc::clone(&self.identities)
    }

    /// Puts together what members published, as far as they own the addresses.
    pub(super) fn settle_identities(&mut self, rib: &Rib, routes_moved: bool) {
        let mut cache = std::mem::take(&mut self.identity_cache);
        let mut changed = routes_moved;
        if routes_moved {
            let of_member = |claim: &&crate::rib::Claim| {
                matches!(claim.owner, Owner::Member(_)) && matches!(claim.source, ClaimSource::HostRecord { .. })
            };
            cache.uncertain = rib.best().filter(of_member).map(|claim| claim.prefix).collect();
        }
        let before = cache.members.len();
        cache.members.retain(|host, _| self.peers.get(host).is_some());
        changed |= cache.members.len() != before;
        let mut refusals = Vec::new();
        for peer in self.peers.values() {
            let stamp = self.identity_stamp(peer);
            if !routes_moved && cache.members.get(&peer.host).is_some_and(|(known, _)| *known == stamp) {
                continue;
            }
            let (identities, refused) = self.identities_of(peer, rib);
            let is_news = cache.members.get(&peer.host).is_none_or(|(known, _)| *known != stamp);
            if let Some(address) = refused.first().filter(|_| is_news) {
                refusals.push((peer.host, *address, refused.len()));
            }
            cache.members.insert(peer.host, (stamp, Arc::new(identities)));
            changed = true;
        }
        let own = self.own_host_identities();
        if *cache.own != own {
            cache.own = Arc::new(own);
            changed = true;
        }
        if changed {
            let members = cache.members.iter().map(|(host, (_, of_host))| (Some(*host), Arc::clone(of_host)));
            let hosts = members.chain([(None, Arc::clone(&cache.own))]).collect();
            let identities = Identities::new(hosts, cache.uncertain.clone());
            if *self.identities != identities {
                self.identities = Arc::new(identities);
                self.emit(GossipEvent::IdentitiesChanged);
            }
        }
        self.identity_cache = cache;
        for (host, address, count) in refusals {
            self.counters.identities_refused += count as u64;
            self.emit(GossipEvent::IdentityRefused { host, address, count });
        }
    }

    fn identity_stamp(&self, peer: &Peer) -> Stamp {
        let stamp = |record: &Record| {
            let mut signature = [0; 8];
            signature.copy_from_slice(&record.signature[..8]);
            (record.key.shard, record.version, signature)
        };
        let serial = match &peer.authority {
            Authority::Static => None,
            Authority::Certificate(certificate) => Some(certificate.certificate.serial),
        };
        (self.store.of_kind(peer.host, RecordKind::IDENTITIES).map(stamp).collect(), serial)
    }

    /// The identities of a member, and the addresses that it does not own or may not speak of.
    fn identities_of(&self, peer: &Peer, rib: &Rib) -> (HostIdentities, Vec<IpAddr>) {
        let owner = Some(Owner::Member(peer.host));
        let key = RecordKey { owner: peer.host, kind: RecordKind::HOST, shard: 0 };
        let prefixes = self.store.get(&key).and_then(|record| HostBody::decode(&record.body).ok());
        let prefixes = prefixes.map(|body| body.prefixes).unwrap_or_default();
        let hosts: BTreeSet<IpAddr> =
            host_addresses(&prefixes).filter(|address| rib.owner(*address) == owner).collect();
        let mut refused = Vec::new();
        // An address that moves from one piece to another is in both for a moment: the newer record counts.
        let mut found: BTreeMap<IpAddr, (u64, Arc<Labels>)> = BTreeMap::new();
        for record in self.store.of_kind(peer.host, RecordKind::IDENTITIES).filter(|record| !record.is_withdrawal()) {
            let Ok(body) = IdentitiesBody::decode(&record.body) else { continue };
            for (labels, addresses) in body.groups() {
                let labels = Arc::new(labels.clone());
                for address in addresses {
                    if rib.owner(*address) != owner || hosts.contains(address) {
                        refused.push(*address);
                    } else if found.get(address).is_none_or(|(version, _)| *version < record.version) {
                        found.insert(*address, (record.version, Arc::clone(&labels)));
                    }
                }
            }
        }
        let of_host = match &peer.authority {
            Authority::Static => Arc::default(),
            Authority::Certificate(certificate) => Arc::new(certificate.certificate.labels.clone()),
        };
        found.extend(hosts.into_iter().map(|address| (address, (0, Arc::clone(&of_host)))));
        let addresses = found.into_iter().map(|(address, (_, labels))| (address, labels)).collect();
        (HostIdentities { addresses }, refused)
    }

    fn own_host_identities(&self) -> HostIdentities {
        let mut found: BTreeMap<IpAddr, Arc<Labels>> = self
            .own_identities
            .iter()
            .filter(|(address, _)| self.own.prefixes.iter().any(|prefix| prefix.contains(**address)))
            .map(|(address, labels)| (*address, Arc::new(labels.clone())))
            .collect();
        let certificate = self.trust.certificate.as_ref();
        let of_host = Arc::new(certificate.map(|own| own.certificate.labels.clone()).unwrap_or_default());
        found.extend(host_addresses(&self.own.prefixes).map(|address| (address, Arc::clone(&of_host))));
        HostIdentities { addresses: found.into_iter().collect() }
    }
}

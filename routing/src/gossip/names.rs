//! Names of containers: published by the host they run on, believed where the host owns the address.

use std::collections::BTreeMap;
use std::time::Instant;

use overlay_wire::HostId;
use overlay_wire::gossip::names::{ContainerNames, MAX_NAME_SHARDS, place};
use overlay_wire::gossip::{NamesBody, RecordKey, RecordKind};

use super::Gossip;
use crate::ownership::Owner;

impl Gossip {
    /// Publishes the names of this host's containers. What there is no room for is left out.
    pub fn publish_names(&mut self, names: &ContainerNames, now: Instant) {
        let published: Vec<NamesBody> = (0..MAX_NAME_SHARDS as u16).map_while(|shard| self.own_names(shard)).collect();
        let pieces = place(&published, names);
        for (shard, piece) in (0..).zip(&pieces) {
            // A piece of acceptable names within its room always encodes.
            let body = if piece.names.is_empty() { Vec::new() } else { piece.encode().unwrap_or_default() };
            let key = RecordKey { shard, ..self.own_key(RecordKind::NAMES) };
            if !body.is_empty() || self.store.get(&key).is_some() {
                self.publish(key, body, now);
            }
        }
        self.settle_routes();
    }

    fn own_names(&self, shard: u16) -> Option<NamesBody> {
        let record = self.store.get(&RecordKey { shard, ..self.own_key(RecordKind::NAMES) })?;
        Some(NamesBody::decode(&record.body).unwrap_or_default())
    }

    /// The names that members published for containers of theirs: only addresses that the member owns.
    #[must_use]
    pub fn names(&self) -> BTreeMap<HostId, ContainerNames> {
        let mut found: BTreeMap<HostId, ContainerNames> = BTreeMap::new();
        for peer in self.peers.values() {
            let records = self.store.of_owner(peer.host).filter(|record| record.key.kind == RecordKind::NAMES);
            for body in records.filter_map(|record| NamesBody::decode(&record.body).ok()) {
                for (name, addresses) in body.names {
                    let owned =
                        addresses.into_iter().filter(|ip| self.rib.owner(*ip) == Some(Owner::Member(peer.host)));
                    let owned: Vec<_> = owned.collect();
                    if !owned.is_empty() {
                        found.entry(peer.host).or_default().entry(name).or_default().extend(owned);
                    }
                }
            }
        }
        found
    }
}

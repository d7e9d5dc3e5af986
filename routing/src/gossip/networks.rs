//! Networks: publishing our own, and what all members together say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use overlay_wire::gossip::networks::MAX_NETWORK_SHARDS;
use overlay_wire::gossip::{HostBody, NetworkEntry, NetworksBody, RecordKey, RecordKind};
use overlay_wire::{HostId, Prefix};

use super::Gossip;
use super::config::GossipError;
use super::view::{GossipEvent, MemberState};
use crate::networks::{Announcement, Networks};
use crate::ownership::Owner;
use crate::rib::Rib;

impl Gossip {
    /// Announces the networks this host takes part in, and its blocks of them.
    ///
    /// # Errors
    /// When they do not fit; then what was announced before stays.
    pub fn publish_networks(
        &mut self,
        networks: &BTreeMap<String, NetworkEntry>,
        now: Instant,
    ) -> Result<(), GossipError> {
        let bodies = NetworksBody::pack(networks)?;
        let used = bodies.len() as u16;
        for (shard, body) in (0..).zip(bodies) {
            self.publish(RecordKey { shard, ..self.own_key(RecordKind::NETWORKS) }, body, now);
        }
        for shard in used..MAX_NETWORK_SHARDS as u16 {
            let key = RecordKey { shard, ..self.own_key(RecordKind::NETWORKS) };
            if self.store.get(&key).is_some_and(|held| !held.is_withdrawal()) {
                self.publish(key, Vec::new(), now);
            }
        }
        self.own_networks.clone_from(networks);
        self.settle_routes();
        Ok(())
    }

    /// The networks of the cluster.
    #[must_use]
    pub fn networks(&self) -> Arc<Networks> {
        Arc::clone(&self.networks)
    }

    /// Members that answer and have not said yet that they have everything this host published.
    #[must_use]
    pub fn unaware_members(&self) -> Vec<HostId> {
        let behind =
            |peer: &&super::peer::Peer| peer.state == MemberState::Up && peer.verdicts.version < self.own_version;
        self.peers.values().filter(behind).map(|peer| peer.host).collect()
    }

    /// Puts together what members announce.
    pub(super) fn settle_networks(&mut self, rib: &Rib) {
        let own = Announcement { host: None, name: self.own.name.clone(), networks: self.own_networks.clone() };
        let mut announcements = vec![own];
        let mut hosts: Vec<IpAddr> = host_addresses(&self.own.prefixes).collect();
        for peer in self.peers.values() {
            let mut networks = BTreeMap::new();
            for record in self.store.of_owner(peer.host).filter(|record| !record.is_withdrawal()) {
                match record.key.kind {
                    RecordKind::HOST => {
                        let prefixes = HostBody::decode(&record.body).map(|body| body.prefixes).unwrap_or_default();
                        // Not what is another's: nobody takes others' containers out of their networks.
                        let owner = Some(Owner::Member(peer.host));
                        hosts.extend(host_addresses(&prefixes).filter(|address| rib.owner(*address) == owner));
                    }
                    RecordKind::NETWORKS => {
                        networks
                            .extend(NetworksBody::decode(&record.body).map(|body| body.networks).unwrap_or_default());
                    }
                    _ => {}
                }
            }
            if !networks.is_empty() {
                announcements.push(Announcement { host: Some(peer.host), name: peer.member.name.clone(), networks });
            }
        }
        hosts.sort_unstable();
        hosts.dedup();
        let networks = Networks::new(&announcements, rib, hosts);
        if *self.networks != networks {
            self.networks = Arc::new(networks);
            self.emit(GossipEvent::NetworksChanged);
        }
    }
}

/// Where a host with these prefixes may answer itself: the address behind the network address of each. Which of them it
/// uses depends on their order, which the record does not keep.
pub(super) fn host_addresses(prefixes: &[Prefix]) -> impl Iterator<Item = IpAddr> + '_ {
    prefixes.iter().map(|prefix| prefix.nth(1).unwrap_or_else(|| prefix.addr()))
}

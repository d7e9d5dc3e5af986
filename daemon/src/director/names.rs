//! What is known by name: hosts from their records, containers from the plumbing here and from members' records.

use std::sync::Arc;
use std::time::Instant;

use overlay_routing::gossip::GossipEvent;
use overlay_services::Zone;
use overlay_wire::gossip::RecordKind;

use super::Director;
use crate::core::host_addresses;

/// Whether an event may change what is known by name.
pub(super) fn concerns(event: &GossipEvent) -> bool {
    match event {
        GossipEvent::RecordChanged { key } => matches!(key.kind, RecordKind::NAMES | RecordKind::HOST),
        GossipEvent::MemberUp { .. }
        | GossipEvent::MemberDown { .. }
        | GossipEvent::MemberAdded { .. }
        | GossipEvent::MemberRevoked { .. }
        | GossipEvent::RoutesChanged => true,
        _ => false,
    }
}

impl Director {
    /// Publishes the names of this host's containers.
    pub(super) fn publish_names(&mut self) {
        let names = self.core.plumbing.names().borrow().clone();
        self.gossip.publish_names(&names, Instant::now());
        self.rebuild_zone();
    }

    /// Builds the zone that the server of names answers from.
    pub(super) fn rebuild_zone(&mut self) {
        let config = self.core.config.load();
        let prefixes: Vec<_> = config.overlay.pool.iter().chain(&config.node.prefixes).copied().collect();
        let serial = self.core.zone.load().serial().wrapping_add(1);
        let Ok(mut zone) = Zone::new(&config.dns.domain, &prefixes, &self.core.host_addresses, serial) else {
            // The configuration was checked.
            return;
        };
        zone.add_host(&config.node.name, &self.core.host_addresses);
        let published = self.gossip.names();
        for member in self.gossip.members() {
            if let Some(record) = &member.host_record {
                zone.add_host(&member.name, &host_addresses(&record.prefixes));
            }
            // What cannot be reached is not named, so that another container of the name is found.
            if member.state.is_reachable()
                && let Some(names) = published.get(&member.host)
            {
                names.iter().for_each(|(name, addresses)| zone.add_container(name, addresses));
            }
        }
        let own = self.core.plumbing.names();
        own.borrow().iter().for_each(|(name, addresses)| zone.add_container(name, addresses));
        self.core.zone.store(Arc::new(zone));
    }
}

//! Labels of containers: publishing those of this host, and getting those of others when packets wait for them.

use std::net::IpAddr;
use std::time::Instant;

use overlay_routing::ownership::Owner;
use overlay_wire::PeerIndex;

use super::Director;
use crate::peers::PeerKind;

impl Director {
    /// Publishes the labels that the plumbing has; in force on this host when it returns, but for what the kernel filters:
    /// which policy of those that the plumbing was given has them, unless it could not be given.
    pub(super) fn publish_identities(&mut self) -> Option<u64> {
        self.labels_published = self.core.plumbing.identities().borrow().clone();
        let left_out = self.gossip.publish_identities(&self.labels_published, Instant::now());
        let before = self.core.identities_left_out.swap(left_out, std::sync::atomic::Ordering::Relaxed);
        if left_out > before {
            let told = format!("{left_out} addresses of containers do not fit: rules about labels deny them elsewhere");
            self.core.events.warn("labels-full", None, told);
        }
        // A changed record has everything built anew.
        self.drain(!self.host_policy_taken);
        self.host_policy_taken.then_some(self.host_policies_given)
    }

    /// Publishes them where that was not done yet.
    pub(super) fn settle_labels(&mut self) {
        if *self.core.plumbing.identities().borrow() != self.labels_published {
            self.publish_identities();
        }
    }

    /// Packets wait for the labels of these addresses.
    pub(super) fn want_labels(&mut self, addresses: &[IpAddr]) {
        let now = Instant::now();
        let rib = self.gossip.rib();
        for address in addresses {
            if let Some(Owner::Member(host)) = rib.owner(*address) {
                self.gossip.ask_identities(host, now);
            }
        }
        self.transmit();
    }

    /// Containers of this host begin flows towards peers.
    pub(super) fn introduce(&mut self, pairs: &[(IpAddr, PeerIndex)]) {
        let peers = self.core.all_peers();
        for (address, peer) in pairs {
            let peer = peers.iter().find(|known| known.index == *peer);
            if let Some(PeerKind::Member(host)) = peer.map(|peer| &peer.kind) {
                self.gossip.introduce_identity(*host, *address);
            }
        }
        self.transmit();
    }
}

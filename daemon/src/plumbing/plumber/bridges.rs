//! Networks of mode `bridge`: one bridge for each on this host, made with its first container and removed with the last.
//!
//! To everything above, the bridge is what the host end of a link is in routed networks: packets that leave the bridge arrive
//! from it, are bound, marked and filtered as from a link, and the host reaches all its containers through it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_control::api::{EndpointRequest, Problem};
use overlay_wire::Prefix;
use overlay_wire::gossip::NetworkMode;
use overlay_wire::gossip::networks::DEFAULT_NETWORK;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute};

use super::{Lease, Plumber, PlumbingError, Reconciled, Scope, host_length};
use crate::plumbing::bridge_guard;
use crate::plumbing::desired::Attachment;
use crate::plumbing::endpoint::{self, GATEWAY_V6};
use crate::plumbing::netlink::Link;
use crate::plumbing::nft::Look;

impl Plumber {
    /// The bridge that a new endpoint is to be on, and what it reaches there without the gateway: the blocks around its own
    /// addresses. Neighbours in another block of the network are reached through the gateway, in both directions.
    pub(super) fn bridging(
        &self,
        request: &EndpointRequest,
        addresses: &[IpAddr],
    ) -> Result<(Option<String>, Vec<Prefix>), PlumbingError> {
        let network = request.network.as_deref().unwrap_or(DEFAULT_NETWORK);
        if self.network_options(network)?.mode != NetworkMode::Bridge {
            return Ok((None, Vec::new()));
        }
        let around = |block: &Prefix| addresses.iter().any(|address| block.contains(*address));
        let on_link = self.ledger.blocks().filter(|(name, block)| *name == network && around(block));
        let on_link = on_link.map(|(_, block)| block).collect();
        Ok((Some(endpoint::bridge_name(&self.config.interface, network)), on_link))
    }

    /// Makes the bridges that endpoints need and removes those that none does; the links as they are then.
    pub(super) async fn reconcile_bridges(&self, links: Vec<Link>, outcome: &mut Reconciled) -> Vec<Link> {
        let wanted: BTreeSet<&String> = self.journal.lives().filter_map(|lease| lease.bridge.as_ref()).collect();
        let present = |name: &str| links.iter().find(|link| link.name == name);
        let mut changed = false;
        for link in links.iter().filter(|link| self.is_our_bridge(link) && !wanted.contains(&link.name)) {
            outcome.note(self.kernel.delete_link(&link.name).await, || format!("removed bridge {}", link.name));
            changed = true;
        }
        for name in wanted {
            let (mtu, group) = (self.config.mtu, self.config.group);
            match present(name) {
                Some(link) if link.up && link.mtu == mtu && link.group == group => continue,
                Some(link) => {
                    let changes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::Group(group)];
                    outcome.note(self.kernel.change_link(link.index, changes).await, || format!("set {name} up"));
                }
                None => {
                    outcome.note(self.kernel.add_bridge(name, mtu, group).await, || format!("made bridge {name}"));
                }
            }
            changed = true;
        }
        if !changed {
            return links;
        }
        match self.kernel.links().await {
            Ok(links) => links,
            Err(error) => {
                outcome.problems.push(Problem::from(&error));
                links
            }
        }
    }

    /// Binds containers on bridges to their addresses; without any there is no table.
    pub(super) fn reconcile_bridge_guard(
        &mut self,
        scope: Scope,
        attachments: &[Attachment],
        outcome: &mut Reconciled,
    ) {
        let look = if scope == Scope::Everything { Look::Compare } else { Look::Known };
        if attachments.iter().any(|attachment| attachment.bridge.is_some()) {
            let script = bridge_guard::script(&self.config, attachments);
            match self.bridge_guard.ensure(&script, look) {
                Ok(false) => {}
                Ok(true) => {
                    outcome.changes.push(format!("installed the nft table bridge {}", self.config.nft_table));
                }
                Err(error) => outcome.problems.push(Problem::from(&error)),
            }
            return;
        }
        // One of an earlier run is found by a full look.
        let is_there = self.bridge_guard.is_installed()
            || (scope == Scope::Everything && self.bridge_guard.list().is_ok_and(|listing| listing.is_some()));
        if is_there {
            outcome
                .note(self.bridge_guard.remove(), || format!("removed the nft table bridge {}", self.config.nft_table));
        }
    }

    /// Makes a link a port of its bridge, and gives the bridge the gateway's address.
    pub(super) async fn reconcile_port(&self, lease: &Lease, link: &Link, links: &[Link], outcome: &mut Reconciled) {
        let Some(bridge) = links.iter().find(|bridge| lease.bridge.as_ref() == Some(&bridge.name)) else {
            return;
        };
        if link.controller != Some(bridge.index) {
            let result = self.kernel.change_link(link.index, vec![LinkAttribute::Controller(bridge.index)]).await;
            outcome.note(result, || format!("made {} a port of {}", link.name, bridge.name));
        }
        let mut wanted: Vec<(IpAddr, u8)> =
            lease.link_gateways.iter().map(|address| (*address, host_length(*address))).collect();
        if lease.addresses.iter().any(IpAddr::is_ipv6) {
            wanted.push((GATEWAY_V6, 64));
        }
        if wanted.is_empty() {
            return;
        }
        let present = match self.kernel.addresses(bridge.index).await {
            Ok(present) => present,
            Err(error) => return outcome.problems.push(Problem::from(&error)),
        };
        for (address, length) in wanted {
            if !present.iter().any(|(there, _)| *there == address) {
                let result = self.kernel.add_address(bridge.index, address, length).await;
                outcome.note(result, || format!("added {address} to {}", bridge.name));
            }
        }
    }

    /// Whether everything that binds and filters an endpoint is in force.
    pub(super) fn is_bound(&self, lease: &Lease, link: &Link) -> bool {
        let on_bridge = lease.bridge.is_none() || (self.bridge_guard.is_installed() && link.controller.is_some());
        on_bridge && self.guard.is_installed() && self.host_policy.is_installed()
    }

    /// Whether a link is a bridge that [`Self::reconcile_bridges`] made.
    pub(super) fn is_our_bridge(&self, link: &Link) -> bool {
        let named = link.name.strip_prefix("ob").is_some_and(|rest| rest.len() == 10);
        named && link.group == self.config.group && link.kind == Some(InfoKind::Bridge)
    }
}

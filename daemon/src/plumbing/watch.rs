//! Kernel notifications that say when to look again: links, addresses, our tables, our nft tables.
//!
//! A notification only says that something may have changed; the reconcile that follows reads the state afresh, so a lost
//! or overrun notification costs time and never correctness.

use std::io;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::mpsc;

use super::{PlumbingConfig, PlumbingError, Tables, host_policy, nft, ports};

/// Multicast group of nf_tables changes (`NFNLGRP_NFTABLES`).
const NFNLGRP_NFTABLES: u32 = 7;

/// The message about a new chain, or a chain whose policy changed: `NFNL_SUBSYS_NFTABLES`, `NFT_MSG_NEWCHAIN`.
const NEW_CHAIN: u16 = (10 << 8) | 3;

/// Length of the netlink header and of the nfgenmsg behind it, in bytes.
const HEADERS: usize = 16 + 4;

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Links, addresses, rules or routes.
    Routing,
    /// One of our nft tables.
    Nft,
}

/// Starts watching; must run inside a tokio runtime. A full channel is fine: a change is pending already.
pub(super) fn start(config: &PlumbingConfig, changes: mpsc::Sender<Change>) -> Result<(), PlumbingError> {
    watch_routing(config.tables, changes.clone()).map_err(PlumbingError::NetlinkSocket)?;
    let tables = [config.nft_table.clone(), host_policy::table(config), ports::table::table(config)];
    watch_nft(tables, changes).map_err(PlumbingError::NetlinkSocket)
}

fn watch_routing(tables: Tables, changes: mpsc::Sender<Change>) -> io::Result<()> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    follow_kernel(&groups, move |message| {
        let relevant = message.is_none_or(|message| concerns(message, tables));
        let is_over = relevant && changes.try_send(Change::Routing).is_err() && changes.is_closed();
        if is_over { Watching::Ends } else { Watching::Goes }
    })
}

/// Whether more messages are wanted.
pub(super) enum Watching {
    /// They are.
    Goes,
    /// Nobody listens any more.
    Ends,
}

/// Tells every message of the kernel to these groups, and `None` when some were lost; must run inside a tokio runtime.
pub(super) fn follow_kernel(
    groups: &[MulticastGroup],
    mut tell: impl FnMut(Option<&RouteNetlinkMessage>) -> Watching + Send + 'static,
) -> io::Result<()> {
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(groups)?;
    tokio::spawn(connection);
    tokio::spawn(async move {
        // The connection ends with its last handle.
        let _handle = handle;
        while let Some((message, _)) = messages.next().await {
            let next = match &message.payload {
                NetlinkPayload::InnerMessage(inner) => tell(Some(inner)),
                NetlinkPayload::Overrun(_) => tell(None),
                _ => Watching::Goes,
            };
            if matches!(next, Watching::Ends) {
                return;
            }
        }
    });
    Ok(())
}

fn concerns(message: &RouteNetlinkMessage, tables: Tables) -> bool {
    let ours = |table: u32| [tables.local, tables.overlay, tables.egress].contains(&table);
    match message {
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => ours(route_table(route)),
        RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => ours(rule_table(rule)),
        _ => true,
    }
}

/// Whether a change may be one of the underlay: everything but what we do ourselves to our tables.
pub(super) fn concerns_uplinks(message: &RouteNetlinkMessage, tables: Tables) -> bool {
    match message {
        RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => !concerns(message, tables),
        _ => true,
    }
}

fn route_table(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(route.header.table))
}

fn rule_table(rule: &RuleMessage) -> u32 {
    let attribute = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(rule.header.table))
}

fn watch_nft(tables: [String; 3], changes: mpsc::Sender<Change>) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
    tokio::spawn(async move {
        loop {
            let relevant = match socket.recv_from_full().await {
                Ok((bytes, _)) => tables.iter().any(|table| mentions_table(&bytes, table)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => true,
                Err(error) => {
                    tracing::warn!(%error, "nft notifications ended; the table is still checked every 30 s");
                    return;
                }
            };
            if relevant && changes.try_send(Change::Nft).is_err() && changes.is_closed() {
                return;
            }
        }
    });
    Ok(())
}

/// Whether a datagram of nf_tables messages tells of a new chain or policy of anybody else, which may stand in the overlay's
/// way, or names a table in a change that is not our own. In messages about tables, chains,
/// rules, sets and elements attribute 1 is the table's name; the header has the port of who made the change, which is the
/// number of its process.
fn mentions_table(mut bytes: &[u8], table: &str) -> bool {
    while let Some(length) = bytes.get(..4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize) {
        if length < 16 || length > bytes.len() {
            return false;
        }
        let maker = bytes.get(12..16).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        let attributes = bytes.get(HEADERS..length).unwrap_or_default();
        let is_named = first_attribute(attributes).is_some_and(|name| name == table.as_bytes());
        let is_chain = bytes.get(4..6).is_some_and(|kind| kind == NEW_CHAIN.to_ne_bytes());
        if (is_named || is_chain) && !nft::is_own(maker) {
            return true;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn first_attribute(mut attributes: &[u8]) -> Option<&[u8]> {
    while let Some(header) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = attributes.get(4..length)?;
        if kind == 1 {
            return Some(value.strip_suffix(&[0]).unwrap_or(value));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(table: &str) -> Vec<u8> {
        let mut attribute = Vec::new();
        attribute.extend(((4 + table.len() + 1) as u16).to_ne_bytes());
        attribute.extend(1u16.to_ne_bytes());
        attribute.extend(table.as_bytes());
        attribute.push(0);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let mut bytes = ((HEADERS + attribute.len()) as u32).to_ne_bytes().to_vec();
        bytes.resize(HEADERS, 0);
        bytes.extend(attribute);
        bytes
    }

    #[test]
    fn second_message_of_a_datagram_is_seen() {
        let datagram = [message("filter"), message("overlay")].concat();
        assert!(mentions_table(&datagram, "overlay"));
        assert!(!mentions_table(&datagram, "over"));
        assert!(!mentions_table(&message("filter"), "overlay"));
    }

    #[test]
    fn chain_of_another_table_is_a_cause_to_look() {
        let mut datagram = message("filter");
        datagram[4..6].copy_from_slice(&NEW_CHAIN.to_ne_bytes());
        assert!(mentions_table(&datagram, "overlay"));
        datagram[4..6].copy_from_slice(&(NEW_CHAIN + 3).to_ne_bytes());
        assert!(!mentions_table(&datagram, "overlay"));
    }

    #[test]
    fn cut_datagram_ends_without_a_match() {
        let datagram = message("overlay");
        for length in 0..datagram.len() {
            assert!(!mentions_table(&datagram[..length], "overlay"), "{length}");
        }
        assert!(!mentions_table(&[0; 64], "overlay"));
    }
}

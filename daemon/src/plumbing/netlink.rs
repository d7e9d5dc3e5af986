//! The kernel's links, addresses, rules and routes, read and changed over rtnetlink.
//!
//! Only this file speaks netlink messages; the rest of the module deals in the values of [`super::desired`]. Requests that
//! find their work already done (an address that exists, a route that is gone) succeed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use overlay_wire::Prefix;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::desired::{Family, RouteKey, RouteSpec, RuleSpec, Selector, Target};
use super::error::{PlumbingError, errno};

/// Metric of our IPv6 routes: the kernel's own default, written out so that a dump compares equal.
const IPV6_METRIC: u32 = 1024;

/// The hardware address of every bridge of ours, locally administered: no two of them share a wire.
const BRIDGE_ADDRESS: [u8; 6] = [0x02, 0x42, 0x6f, 0x76, 0x6c, 0x01];

/// A network interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) group: u32,
    pub(crate) txqueuelen: u32,
    pub(crate) kind: Option<InfoKind>,
    /// The bridge it is a port of.
    pub(crate) controller: Option<u32>,
    pub(crate) hardware: Vec<u8>,
}

/// An address of any interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelAddress {
    pub(crate) link: u32,
    pub(crate) ip: IpAddr,
    /// Neither on its way in or out, nor one of those of IPv6 that change every day.
    pub(crate) is_lasting: bool,
}

/// A rule in the kernel, with the message that deletes it.
#[derive(Debug)]
pub(crate) struct KernelRule {
    pub(crate) spec: Option<RuleSpec>,
    pub(crate) table: u32,
    pub(crate) protocol: u8,
    pub(crate) message: RuleMessage,
}

/// A route in the kernel, with the message that deletes it.
#[derive(Debug)]
pub(crate) struct KernelRoute {
    pub(crate) key: RouteKey,
    pub(crate) spec: Option<RouteSpec>,
    pub(crate) protocol: u8,
    pub(crate) message: RouteMessage,
}

/// A netlink connection in the network namespace of the thread that opened it.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    handle: Handle,
}

impl Kernel {
    /// Opens a connection; must run inside a tokio runtime.
    pub(crate) fn open() -> Result<Self, PlumbingError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(PlumbingError::NetlinkSocket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, PlumbingError> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(message) => Ok(message.map(|m| parse_link(&m))),
            Err(error) if matches!(errno(&error), Some(libc::ENODEV | libc::ENXIO)) => Ok(None),
            Err(error) => Err(PlumbingError::netlink(format!("show interface {name}"))(error)),
        }
    }

    pub(crate) async fn links(&self) -> Result<Vec<Link>, PlumbingError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(PlumbingError::netlink("list interfaces"))?;
        Ok(messages.iter().map(parse_link).collect())
    }

    pub(crate) async fn change_link(&self, index: u32, changes: Vec<LinkAttribute>) -> Result<(), PlumbingError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = changes;
        let what = format!("change interface {index}");
        self.handle.link().change(message).execute().await.map_err(PlumbingError::netlink(what))
    }

    pub(crate) async fn set_down(&self, index: u32) -> Result<(), PlumbingError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        let result = self.handle.link().change(message).execute().await;
        tolerate(result, &[libc::ENODEV], || format!("set interface {index} down"))
    }

    /// Sets `rp_filter` of one interface to loose, over netlink because `/proc/sys` is read-only for a confined service.
    pub(crate) async fn loosen_rp_filter(&self, index: u32) -> Result<(), PlumbingError> {
        let mut conf = InetDevConf::default();
        conf.rp_filter = 2;
        self.configure_inet(index, conf, format!("set rp_filter of interface {index}")).await
    }

    /// Lets one interface take packets whose source is an address of this host, for the same reason over netlink.
    pub(crate) async fn accept_local(&self, index: u32) -> Result<(), PlumbingError> {
        let mut conf = InetDevConf::default();
        conf.accept_local = 1;
        self.configure_inet(index, conf, format!("set accept_local of interface {index}")).await
    }

    /// Lets packets from and to 127.0.0.0/8 cross one interface, for the same reason over netlink.
    pub(crate) async fn route_localnet(&self, index: u32) -> Result<(), PlumbingError> {
        let mut conf = InetDevConf::default();
        conf.route_localnet = 1;
        self.configure_inet(index, conf, format!("set route_localnet of interface {index}")).await
    }

    async fn configure_inet(&self, index: u32, conf: InetDevConf, what: String) -> Result<(), PlumbingError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes =
            vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)])])];
        self.handle.link().change(message).execute().await.map_err(PlumbingError::netlink(what))
    }

    pub(crate) async fn add_veth(
        &self,
        host: &str,
        peer: &str,
        mtu: u32,
        group: u32,
        alias: &str,
    ) -> Result<(), PlumbingError> {
        let mut other = LinkMessage::default();
        other.attributes = vec![LinkAttribute::IfName(peer.into()), LinkAttribute::Mtu(mtu)];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(host.into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]),
        ];
        let what = format!("create veth {host}");
        self.handle.link().add(message).execute().await.map_err(PlumbingError::netlink(what))?;
        // The kernel takes no alias while it makes a link.
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(host.into()), LinkAttribute::IfAlias(alias.into())];
        let what = format!("name the owner of {host}");
        self.handle.link().change(message).execute().await.map_err(PlumbingError::netlink(what))
    }

    /// Its hardware address is given: else it would be that of one of its ports, change as they come and go, and containers would
    /// send to the one of before until they ask again.
    pub(crate) async fn add_bridge(&self, name: &str, mtu: u32, group: u32) -> Result<(), PlumbingError> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(group),
            LinkAttribute::Address(BRIDGE_ADDRESS.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        let result = self.handle.link().add(message).execute().await;
        tolerate(result, &[libc::EEXIST], || format!("create bridge {name}"))
    }

    pub(crate) async fn delete_link(&self, name: &str) -> Result<(), PlumbingError> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let result = self.handle.link().del(link.index).execute().await;
        tolerate(result, &[libc::ENODEV], || format!("delete interface {name}"))
    }

    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<(IpAddr, u8)>, PlumbingError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages: Vec<AddressMessage> =
            request.execute().try_collect().await.map_err(PlumbingError::netlink("list addresses"))?;
        Ok(messages.iter().filter_map(|m| Some((message_address(m)?, m.header.prefix_len))).collect())
    }

    pub(crate) async fn all_addresses(&self) -> Result<Vec<KernelAddress>, PlumbingError> {
        let request = self.handle.address().get();
        let messages: Vec<AddressMessage> =
            request.execute().try_collect().await.map_err(PlumbingError::netlink("list addresses"))?;
        Ok(messages.iter().filter_map(parse_address).collect())
    }

    /// The interfaces to which a route of any table leads through a gateway.
    pub(crate) async fn gateway_links(&self) -> Result<BTreeSet<u32>, PlumbingError> {
        let mut links = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = address_family(family);
            let mut routes = self.handle.route().get(filter).execute();
            loop {
                match routes.try_next().await {
                    Ok(Some(route)) => links.extend(gateways(&route)),
                    Ok(None) => break,
                    // The kernel has no IPv6.
                    Err(error) if errno(&error) == Some(libc::EAFNOSUPPORT) => break,
                    Err(error) => return Err(PlumbingError::netlink("list routes")(error)),
                }
            }
        }
        Ok(links)
    }

    pub(crate) async fn add_address(&self, index: u32, addr: IpAddr, len: u8) -> Result<(), PlumbingError> {
        let mut request = self.handle.address().add(index, addr, len);
        if addr.is_ipv6() {
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
            if len == 128 {
                // Routes are in tables of ours, never in main.
                let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
                request.message_mut().attributes.push(AddressAttribute::Flags(flags));
            }
        }
        tolerate(request.execute().await, &[libc::EEXIST], || format!("add address {addr}/{len}"))
    }

    pub(crate) async fn delete_address(&self, index: u32, addr: IpAddr, len: u8) -> Result<(), PlumbingError> {
        let mut message = AddressMessage::default();
        message.header.family = address_family(Family::of(addr));
        message.header.prefix_len = len;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Address(addr), AddressAttribute::Local(addr)];
        let result = self.handle.address().del(message).execute().await;
        tolerate(result, &[libc::EADDRNOTAVAIL, libc::ENODEV], || format!("delete address {addr}/{len}"))
    }

    pub(crate) async fn rules(&self, family: Family) -> Result<Vec<KernelRule>, PlumbingError> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let found: Result<Vec<RuleMessage>, _> = self.handle.rule().get(version).execute().try_collect().await;
        match found {
            Ok(messages) => Ok(messages.into_iter().map(|m| parse_rule(family, m)).collect()),
            Err(error) if errno(&error) == Some(libc::EAFNOSUPPORT) => Ok(Vec::new()),
            Err(error) => Err(PlumbingError::netlink("list rules")(error)),
        }
    }

    pub(crate) async fn add_rule(&self, rule: &RuleSpec, protocol: u8) -> Result<(), PlumbingError> {
        let mut request = self.handle.rule().add().table_id(rule.table).priority(rule.priority);
        let message = request.message_mut();
        message.header.family = address_family(rule.family);
        message.header.action = RuleAction::ToTable;
        if rule.table > 255 {
            message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        }
        message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(protocol)));
        match &rule.selector {
            Selector::Arrived(name) => message.attributes.push(RuleAttribute::Iifname(name.clone())),
            Selector::Marked(mark) | Selector::NotMarked(mark) => {
                message.attributes.push(RuleAttribute::FwMark(*mark));
                message.attributes.push(RuleAttribute::FwMask(*mark));
            }
        }
        if matches!(rule.selector, Selector::NotMarked(_)) {
            message.header.flags |= RuleFlags::Invert;
        }
        tolerate(request.execute().await, &[libc::EEXIST], || format!("add rule {}", rule.priority))
    }

    pub(crate) async fn delete_rule(&self, rule: &KernelRule) -> Result<(), PlumbingError> {
        let result = self.handle.rule().del(rule.message.clone()).execute().await;
        tolerate(result, &[libc::ENOENT], || format!("delete a rule to table {}", rule.table))
    }

    pub(crate) async fn routes(&self, family: Family, table: u32) -> Result<Vec<KernelRoute>, PlumbingError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = address_family(family);
        set_table(&mut filter, table);
        let found: Result<Vec<RouteMessage>, _> = self.handle.route().get(filter).execute().try_collect().await;
        match found {
            Ok(messages) => Ok(messages.into_iter().filter_map(parse_route).filter(|r| r.key.table == table).collect()),
            // The table does not exist yet, or the kernel has no IPv6.
            Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => Ok(Vec::new()),
            Err(error) => Err(PlumbingError::netlink(format!("list routes of table {table}"))(error)),
        }
    }

    pub(crate) async fn put_route(&self, key: RouteKey, spec: &RouteSpec, protocol: u8) -> Result<(), PlumbingError> {
        let family = Family::of(key.destination.addr());
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(family);
        message.header.destination_prefix_length = key.destination.len();
        message.header.protocol = RouteProtocol::from(protocol);
        set_table(&mut message, key.table);
        if key.destination.len() > 0 {
            message.attributes.push(RouteAttribute::Destination(key.destination.addr().into()));
        }
        match spec.target {
            Target::Interface(index) => {
                message.header.kind = RouteType::Unicast;
                message.header.scope = if family == Family::V4 { RouteScope::Link } else { RouteScope::Universe };
                message.attributes.push(RouteAttribute::Oif(index));
            }
            Target::Unreachable => message.header.kind = RouteType::Unreachable,
        }
        if let Some(source) = spec.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if family == Family::V6 {
            message.attributes.push(RouteAttribute::Priority(IPV6_METRIC));
        }
        let what = format!("add route {} to table {}", key.destination, key.table);
        self.handle.route().add(message).replace().execute().await.map_err(PlumbingError::netlink(what))
    }

    pub(crate) async fn delete_route(&self, route: &KernelRoute) -> Result<(), PlumbingError> {
        let result = self.handle.route().del(route.message.clone()).execute().await;
        tolerate(result, &[libc::ESRCH, libc::ENOENT], || {
            format!("delete route {} of table {}", route.key.destination, route.key.table)
        })
    }
}

fn tolerate(
    result: Result<(), rtnetlink::Error>,
    done_already: &[i32],
    what: impl FnOnce() -> String,
) -> Result<(), PlumbingError> {
    match result {
        Err(error) if errno(&error).is_some_and(|code| done_already.contains(&code)) => Ok(()),
        other => other.map_err(|error| PlumbingError::netlink(what())(error)),
    }
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn set_table(message: &mut RouteMessage, table: u32) {
    match u8::try_from(table) {
        Ok(small) => message.header.table = small,
        Err(_) => message.attributes.push(RouteAttribute::Table(table)),
    }
}

fn parse_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        group: 0,
        txqueuelen: 0,
        kind: None,
        controller: None,
        hardware: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::TxQueueLen(length) => link.txqueuelen = *length,
            LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|index| *index != 0),
            LinkAttribute::Address(bytes) => link.hardware.clone_from(bytes),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn message_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        })
    })
}

fn parse_address(message: &AddressMessage) -> Option<KernelAddress> {
    let ip = message_address(message)?;
    let wide = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = wide.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    let mut passing = AddressFlags::Dadfailed | AddressFlags::Tentative | AddressFlags::Deprecated;
    if ip.is_ipv6() {
        // In IPv6 this bit means temporary (linux/if_addr.h).
        passing |= AddressFlags::Secondary;
    }
    Some(KernelAddress { link: message.header.index, ip, is_lasting: !flags.intersects(passing) })
}

/// The interfaces that a route leads to through gateways.
fn gateways(route: &RouteMessage) -> Vec<u32> {
    let is_gateway = |a: &RouteAttribute| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    let mut links = Vec::new();
    let (mut through, mut oif) = (false, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(link) => oif = Some(*link),
            RouteAttribute::MultiPath(hops) => {
                let led = hops.iter().filter(|hop| hop.attributes.iter().any(is_gateway));
                links.extend(led.map(|hop| hop.interface_index));
            }
            other => through |= is_gateway(other),
        }
    }
    links.extend(oif.filter(|_| through));
    links
}

fn parse_rule(family: Family, message: RuleMessage) -> KernelRule {
    let (mut priority, mut mark, mut mask, mut arrived, mut protocol, mut other) = (0, None, None, None, 0, false);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = Some(*value),
            RuleAttribute::Iifname(name) => arrived = Some(name.clone()),
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Protocol(value) => protocol = u8::from(*value),
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => other = true,
        }
    }
    let invert = message.header.flags.contains(RuleFlags::Invert);
    let selector = match (arrived, mark) {
        (Some(name), None) if !invert => Some(Selector::Arrived(name)),
        (None, Some(mark)) if mask == Some(mark) => {
            Some(if invert { Selector::NotMarked(mark) } else { Selector::Marked(mark) })
        }
        _ => None,
    };
    let plain = !other && message.header.action == RuleAction::ToTable;
    let spec = selector.filter(|_| plain).map(|selector| RuleSpec { family, priority, selector, table });
    KernelRule { spec, table, protocol, message }
}

fn parse_route(message: RouteMessage) -> Option<KernelRoute> {
    let mut table = u32::from(message.header.table);
    let (mut destination, mut source, mut oif, mut metric, mut plain) = (None, None, None, None, true);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(value) => destination = route_address(value),
            RouteAttribute::PrefSource(value) => source = route_address(value),
            RouteAttribute::Oif(value) => oif = Some(*value),
            RouteAttribute::Priority(value) => metric = Some(*value),
            RouteAttribute::Gateway(_) | RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) => plain = false,
            _ => {}
        }
    }
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
        _ => return None,
    };
    let destination = Prefix::truncating(destination.unwrap_or(any), message.header.destination_prefix_length).ok()?;
    let expected_metric = if any.is_ipv4() { None } else { Some(IPV6_METRIC) };
    let target = match message.header.kind {
        RouteType::Unicast => oif.map(Target::Interface),
        RouteType::Unreachable => Some(Target::Unreachable),
        _ => None,
    };
    let spec = target.filter(|_| plain && metric == expected_metric).map(|target| RouteSpec { target, source });
    Some(KernelRoute {
        key: RouteKey { table, destination },
        spec,
        protocol: u8::from(message.header.protocol),
        message,
    })
}

fn route_address(value: &RouteAddress) -> Option<IpAddr> {
    match value {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

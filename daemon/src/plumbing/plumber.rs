//! Reads the host's state, compares it with what is wanted, and repairs the difference.
//!
//! Order of a reconcile: the guard (nft) first, so that nothing is reachable before it is filtered; then settings, links,
//! addresses, routes, and the rules that make them effective last. Teardown is the reverse and goes on past failures.

mod naming;
mod publish;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

mod addresses;
mod bridges;
mod held;
mod labels;
mod networks;

use arc_swap::ArcSwap;
use overlay_control::api::{EndpointRequest, Problem, link_alias};
use overlay_dataplane::HostPolicy;
use overlay_wire::gossip::NetworkEntry;
use overlay_wire::gossip::networks::DEFAULT_NETWORK;
use rtnetlink::packet_route::link::LinkAttribute;

use super::desired::{self, Attachment, Family};
use super::endpoint::{self, GATEWAY_V6};
use super::held::HeldAddresses;
use super::interfaces::{Interface, tunnels_in_the_way};
use super::lease::{COOLDOWN, Journal, Lease, LeaseState, PREPARE_TIMEOUT, VERSION, unix};
use super::ledger::Ledger;
use super::names::GivenNames;
use super::netlink::{Kernel, Link};
use super::nft::{Installation, Look};
use super::ports::table::NameServer;
use super::ports::{self, Ports};
use super::sysctl::Sysctl;
use super::{LearnedRoutes, PlumbingConfig, PlumbingError, TeardownErrors, firewall, host_policy, nft};

/// The least MTU of IPv6, in bytes.
const MTU_LEAST: u32 = 1280;

/// How much of the host a reconcile looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Links, addresses, routes and rules: what netlink tells cheaply.
    Routing,
    /// Also the installed nft tables, foreign firewalls and kernel settings.
    Everything,
}

/// The outcome of a reconcile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// What was changed, one short phrase each.
    pub changes: Vec<String>,
    /// What stands in the way.
    pub problems: Vec<Problem>,
}

impl Reconciled {
    fn note(&mut self, result: Result<(), PlumbingError>, change: impl FnOnce() -> String) {
        match result {
            Ok(()) => self.changes.push(change()),
            Err(error) => self.problems.push(Problem::from(&error)),
        }
    }
}

/// The networks this host takes part in, with its blocks of them, as last written.
pub(super) type OwnNetworks = Arc<ArcSwap<BTreeMap<String, NetworkEntry>>>;

/// The host plumbing of one daemon, in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Plumber {
    config: PlumbingConfig,
    learned: LearnedRoutes,
    kernel: Kernel,
    sysctl: Sysctl,
    journal: Journal,
    held: HeldAddresses,
    ledger: Ledger,
    own_networks: OwnNetworks,
    boot_id: String,
    /// The tables that bind containers and lead their packets.
    guard: Installation,
    /// The table that binds containers on bridges.
    bridge_guard: Installation,
    /// The table with the policy between containers and this host, and its script.
    host_policy: Installation,
    host_script: String,
    /// The table that translates packets to published ports, and which these are.
    nat: Installation,
    ports: Ports,
    /// Where questions about names go, and the names that callers gave to endpoints.
    name_servers: Vec<NameServer>,
    names: GivenNames,
    /// Problems found only by a full look, kept between cheap ones.
    standing: Vec<Problem>,
}

/// What came of a request for an endpoint before the tables were looked at.
enum Begun {
    /// It was made before; its lease.
    Known(Lease),
    /// Its lease is written and its links are made.
    New(Lease),
}

impl Plumber {
    /// Opens netlink, the journal and the recorded settings; must run inside a tokio runtime. Changes nothing.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn open(config: PlumbingConfig) -> Result<Self, PlumbingError> {
        let name = config.nft_table.clone();
        let mut ledger = Ledger::open(&config.state_dir)?;
        ledger.drop_foreign_blocks(&config.own_prefixes)?;
        let bridge_table = vec![("bridge", name.clone())];
        let guard = vec![("inet", name.clone()), ("arp", name)];
        Ok(Self {
            guard: Installation::new("install the overlay tables", guard),
            bridge_guard: Installation::new("bind containers on bridges", bridge_table),
            host_policy: Installation::new(
                "install the policy between containers and this host",
                vec![("inet", host_policy::table(&config))],
            ),
            host_script: host_policy::script(&config, &HostPolicy::default()),
            nat: Installation::new("install published ports", vec![("inet", ports::table::table(&config))]),
            ports: Ports::open(&config.state_dir)?,
            name_servers: Vec::new(),
            names: GivenNames::open(&config.state_dir)?,
            kernel: Kernel::open()?,
            sysctl: Sysctl::open(&config.state_dir)?,
            journal: Journal::open(&config.state_dir)?,
            held: HeldAddresses::open(&config.state_dir)?,
            own_networks: Arc::new(ArcSwap::from_pointee(ledger.networks())),
            ledger,
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            learned: LearnedRoutes::default(),
            standing: Vec::new(),
            config,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &PlumbingConfig {
        &self.config
    }

    /// Sets what the overlay reaches; effective with the next reconcile.
    pub fn set_routes(&mut self, learned: LearnedRoutes) {
        self.learned = learned;
    }

    /// Sets the policy between containers and this host; effective with the next reconcile. Before, it is the default
    /// without any rule.
    pub fn set_host_policy(&mut self, policy: &HostPolicy) {
        self.host_script = host_policy::script(&self.config, policy);
    }

    /// Puts a policy in force now; one that the kernel refuses changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses it or `nft` cannot be run.
    pub fn try_host_policy(&mut self, policy: &HostPolicy) -> Result<(), PlumbingError> {
        let script = host_policy::script(&self.config, policy);
        self.host_policy.ensure(&script, Look::Known)?;
        self.host_script = script;
        Ok(())
    }

    /// Whether tables were installed that have not been listed.
    pub fn has_new_tables(&self) -> bool {
        [&self.guard, &self.bridge_guard, &self.host_policy, &self.nat].into_iter().any(Installation::is_new)
    }

    /// Lists the tables that were installed since the last call, to compare with later. Nobody waits for it.
    pub fn remember_tables(&mut self) {
        for tables in [&mut self.guard, &mut self.bridge_guard, &mut self.host_policy, &mut self.nat] {
            // What could not be listed is installed again at the next full look.
            let _ = tables.remember();
        }
    }

    /// Repairs the host. Failures become problems; everything that can be done is done.
    pub async fn reconcile(&mut self, scope: Scope) -> Reconciled {
        let mut outcome = Reconciled::default();
        let links = match self.kernel.links().await {
            Ok(links) => links,
            Err(error) => {
                outcome.problems.push(Problem::from(&error));
                return outcome;
            }
        };
        self.settle_leases(&links, &mut outcome).await;
        let links = self.reconcile_bridges(links, &mut outcome).await;
        let attachments = self.attachments(&links);
        self.reconcile_bridge_guard(scope, &attachments, &mut outcome);
        self.reconcile_nft(scope, &attachments, &mut outcome);
        if scope == Scope::Everything {
            let (changes, problems) = self.sysctl.ensure(&self.config);
            outcome.changes.extend(changes);
            self.standing = problems;
            match firewall::find_problems(&self.config.nft_table, &self.config.interface) {
                Ok(problems) => self.standing.extend(problems),
                Err(error) => self.standing.push(Problem::from(&error)),
            }
        }
        self.reconcile_veths(&links, &mut outcome).await;
        self.reconcile_loopback(&links, &attachments, &mut outcome).await;
        match links.iter().find(|link| link.name == self.config.interface) {
            Some(tun) => {
                self.reconcile_tun(tun, &mut outcome).await;
                self.reconcile_routes(&attachments, tun.index, &mut outcome).await;
            }
            None => {
                let missing = PlumbingError::InterfaceMissing(self.config.interface.clone());
                outcome.problems.push(Problem::from(&missing));
            }
        }
        self.reconcile_rules(&desired::rules(&self.config), &mut outcome).await;
        outcome.problems.extend(self.standing.iter().cloned());
        outcome
    }

    fn attachments(&self, links: &[Link]) -> Vec<Attachment> {
        // A container with several links answers on any of them: its routes know nothing of the link a packet came by.
        let siblings = |lease: &Lease| -> Vec<IpAddr> {
            let same = self.journal.lives().filter(|other| !lease.netns.is_empty() && other.netns == lease.netns);
            same.filter(|other| other.name != lease.name).flat_map(|other| other.addresses.iter().copied()).collect()
        };
        let attachment = |lease: &Lease| Attachment {
            host_ifname: lease.host_ifname.clone(),
            bridge: lease.bridge.clone(),
            index: links.iter().find(|link| link.name == *lease.interface_on_host()).map(|link| link.index),
            addresses: lease.addresses.clone(),
            siblings: siblings(lease),
            internal: lease.internal,
        };
        self.journal.lives().map(attachment).collect()
    }

    /// Ends leases whose veth is gone or whose caller never came back, and forgets those that have cooled down.
    async fn settle_leases(&mut self, links: &[Link], outcome: &mut Reconciled) {
        let now = SystemTime::now();
        match self.held.settle(now) {
            Ok(freed) if freed.is_empty() => {}
            Ok(freed) => outcome.changes.push(format!("freed {} held addresses", freed.len())),
            Err(error) => outcome.problems.push(Problem::from(&error)),
        }
        let leases: Vec<Lease> = self.journal.iter().cloned().collect();
        for lease in leases {
            let exists = links.iter().any(|link| link.name == lease.host_ifname);
            let over = match lease.state {
                LeaseState::Cooling if lease.older_than(COOLDOWN, now) => {
                    outcome.note(self.journal.forget(&lease), || format!("freed the addresses of {}", lease.name));
                    continue;
                }
                // A link of that name is the new one's where the name was attached again.
                LeaseState::Cooling => exists && self.journal.live(&lease.name).is_none(),
                LeaseState::Committed => !exists,
                LeaseState::Prepared => !exists || lease.older_than(PREPARE_TIMEOUT, now),
            };
            if over {
                let result = self.end_lease(&lease).await;
                outcome.note(result, || format!("ended the endpoint of {} ({})", lease.name, lease.host_ifname));
            }
        }
    }

    fn reconcile_nft(&mut self, scope: Scope, attachments: &[Attachment], outcome: &mut Reconciled) {
        let look = if scope == Scope::Everything { Look::Compare } else { Look::Known };
        match self.host_policy.ensure(&self.host_script, look) {
            Ok(false) => {}
            Ok(true) => {
                let table = host_policy::table(&self.config);
                outcome.changes.push(format!("installed the policy between containers and this host in {table}"));
            }
            Err(error) => {
                outcome.problems.push(Problem::from(&error));
                // What was in force stays; where nothing was, nothing passes.
                if self.host_policy.list().is_ok_and(|listing| listing.is_none()) {
                    let closed = host_policy::script(&self.config, &HostPolicy::closed());
                    let result = self.host_policy.ensure(&closed, Look::Known).map(drop);
                    outcome.note(result, || "closed the way between containers and this host".to_owned());
                }
            }
        }
        self.reconcile_ports(look, outcome);
        let script = nft::script(&self.config, &self.learned, attachments);
        match self.guard.ensure(&script, look) {
            Ok(false) => {}
            Ok(true) => outcome.changes.push(format!("installed the nft tables {}", self.config.nft_table)),
            Err(error) => outcome.problems.push(Problem::from(&error)),
        }
    }

    async fn reconcile_tun(&self, tun: &Link, outcome: &mut Reconciled) {
        let name = &self.config.interface;
        if !tun.up || tun.mtu != self.config.mtu || tun.txqueuelen != self.config.txqueuelen {
            let changes = vec![LinkAttribute::Mtu(self.config.mtu), LinkAttribute::TxQueueLen(self.config.txqueuelen)];
            outcome.note(self.kernel.change_link(tun.index, changes).await, || format!("set {name} up"));
        }
        if self.sysctl.rp_filter_is_strict(name) {
            outcome.note(self.kernel.loosen_rp_filter(tun.index).await, || format!("set rp_filter of {name} to loose"));
        }
        // Errors that the daemon writes to the TUN ("fragmentation needed") come from the host's own address.
        if self.sysctl.get(&format!("net/ipv4/conf/{name}/accept_local")).is_some_and(|value| value == "0") {
            outcome.note(self.kernel.accept_local(tun.index).await, || format!("set accept_local of {name} to 1"));
        }
        let present = match self.kernel.addresses(tun.index).await {
            Ok(present) => present,
            Err(error) => return outcome.problems.push(Problem::from(&error)),
        };
        for addr in &self.config.host_addresses {
            let len = host_length(*addr);
            if !present.contains(&(*addr, len)) {
                outcome.note(self.kernel.add_address(tun.index, *addr, len).await, || {
                    format!("added {addr}/{len} to {name}")
                });
            }
        }
        // Only what an earlier configuration of ours can have left: an address of the overlay that is not ours now.
        let overlay = || self.config.pool.iter().chain(&self.config.own_prefixes);
        for (addr, len) in present {
            let wanted = self.config.host_addresses.contains(&addr) && len == host_length(addr);
            if !wanted && overlay().any(|prefix| prefix.contains(addr)) {
                let result = self.kernel.delete_address(tun.index, addr, len).await;
                outcome.note(result, || format!("removed {addr}/{len} from {name}"));
            }
        }
    }

    async fn reconcile_veths(&self, links: &[Link], outcome: &mut Reconciled) {
        for lease in self.journal.lives() {
            if let Some(link) = links.iter().find(|link| link.name == lease.host_ifname) {
                self.reconcile_veth(lease, link, links, outcome).await;
            }
        }
    }

    async fn reconcile_veth(&self, lease: &Lease, link: &Link, links: &[Link], outcome: &mut Reconciled) {
        if lease.bridge.is_some() {
            self.reconcile_port(lease, link, links, outcome).await;
        }
        if !link.up || link.mtu != lease.mtu || link.group != self.config.group {
            let changes = vec![LinkAttribute::Mtu(lease.mtu), LinkAttribute::Group(self.config.group)];
            outcome.note(self.kernel.change_link(link.index, changes).await, || format!("set {} up", link.name));
        }
        let mut wanted: Vec<(IpAddr, u8)> =
            lease.link_gateways.iter().map(|address| (*address, host_length(*address))).collect();
        if lease.addresses.iter().any(IpAddr::is_ipv6) {
            wanted.push((GATEWAY_V6, 64));
        }
        if lease.bridge.is_some() || wanted.is_empty() {
            return;
        }
        let present = match self.kernel.addresses(link.index).await {
            Ok(present) => present,
            Err(error) => return outcome.problems.push(Problem::from(&error)),
        };
        for (address, length) in wanted {
            if !present.iter().any(|(there, _)| *there == address) {
                let result = self.kernel.add_address(link.index, address, length).await;
                outcome.note(result, || format!("added {address} to {}", link.name));
            }
        }
    }

    async fn reconcile_routes(&self, attachments: &[Attachment], tun: u32, outcome: &mut Reconciled) {
        let mut missing = desired::routes(&self.config, &self.learned, attachments, tun);
        let tables = self.config.tables;
        for family in Family::ALL {
            for table in [tables.local, tables.overlay, tables.egress] {
                let present = match self.kernel.routes(family, table).await {
                    Ok(present) => present,
                    Err(error) => {
                        outcome.problems.push(Problem::from(&error));
                        continue;
                    }
                };
                for route in present.into_iter().filter(|r| r.protocol == self.config.route_protocol) {
                    if route.spec.is_some() && route.spec.as_ref() == missing.get(&route.key) {
                        missing.remove(&route.key);
                    } else {
                        let what = format!("removed route {} from table {table}", route.key.destination);
                        outcome.note(self.kernel.delete_route(&route).await, || what);
                    }
                }
            }
        }
        for (key, spec) in missing {
            let result = self.kernel.put_route(key, &spec, self.config.route_protocol).await;
            outcome.note(result, || format!("added route {} to table {}", key.destination, key.table));
        }
    }

    async fn reconcile_rules(&self, wanted: &BTreeSet<desired::RuleSpec>, outcome: &mut Reconciled) {
        let mut missing = wanted.clone();
        for family in Family::ALL {
            let present = match self.kernel.rules(family).await {
                Ok(present) => present,
                Err(error) => {
                    outcome.problems.push(Problem::from(&error));
                    continue;
                }
            };
            for rule in present.into_iter().filter(|rule| self.is_ours(rule.table, rule.protocol)) {
                if !rule.spec.as_ref().is_some_and(|spec| missing.remove(spec)) {
                    outcome.note(self.kernel.delete_rule(&rule).await, || {
                        format!("removed a rule to table {}", rule.table)
                    });
                }
            }
        }
        for rule in missing {
            let result = self.kernel.add_rule(&rule, self.config.route_protocol).await;
            outcome.note(result, || format!("added rule {} ({:?})", rule.priority, rule.family));
        }
    }

    fn is_ours(&self, table: u32, protocol: u8) -> bool {
        let tables = self.config.tables;
        protocol == self.config.route_protocol && [tables.local, tables.overlay, tables.egress].contains(&table)
    }

    /// Journals an endpoint and makes its veth pair, addresses, route and binding on the host side. The same request
    /// again while it is only prepared gives the same lease.
    ///
    /// # Errors
    /// When names or addresses are refused or the kernel refuses; then nothing is left behind.
    pub async fn prepare(&mut self, request: &EndpointRequest) -> Result<Lease, PlumbingError> {
        let mut outcomes = self.prepare_all(std::slice::from_ref(request)).await;
        outcomes.pop().unwrap_or_else(|| Err(PlumbingError::InterfaceMissing(request.name.clone())))
    }

    /// The same for several at once; the tables are made anew once for all of them.
    pub async fn prepare_all(&mut self, requests: &[EndpointRequest]) -> Vec<Result<Lease, PlumbingError>> {
        let mut begun = Vec::with_capacity(requests.len());
        for request in requests {
            begun.push(self.begin(request).await);
        }
        let is_new = |begun: &Result<Begun, PlumbingError>| matches!(begun, Ok(Begun::New(_)));
        let any_new = begun.iter().any(is_new);
        let outcome = if any_new { self.reconcile(Scope::Routing).await } else { Reconciled::default() };
        let mut leases = Vec::with_capacity(begun.len());
        for begun in begun {
            leases.push(match begun {
                // It may be one that was begun just before.
                Ok(Begun::Known(lease)) if any_new => self.is_ready(&lease, &outcome).await.map(|()| lease),
                Ok(Begun::Known(lease)) => Ok(lease),
                Ok(Begun::New(lease)) => match self.is_ready(&lease, &outcome).await {
                    Ok(()) => Ok(lease),
                    Err(error) => {
                        // The caller hears why it failed; a failed clean-up is retried from the journal.
                        let _ = self.undo_prepared(&lease).await;
                        Err(error)
                    }
                },
                Err(error) => Err(error),
            });
        }
        leases
    }

    /// Writes down a lease and makes its links; the tables do not hold it yet.
    async fn begin(&mut self, request: &EndpointRequest) -> Result<Begun, PlumbingError> {
        endpoint::check_names(request)?;
        if let Some(lease) = self.journal.live(&request.name) {
            let same = lease.interface == request.interface
                && lease.netns == request.netns
                && lease.network_name() == request.network.as_deref().unwrap_or(DEFAULT_NETWORK);
            if lease.state == LeaseState::Prepared && same {
                let lease = Lease { labels: request.labels.clone(), ..lease.clone() };
                if self.journal.live(&request.name) != Some(&lease) {
                    self.journal.put(lease.clone())?;
                }
                return Ok(Begun::Known(lease));
            }
            return Err(PlumbingError::EndpointExists(request.name.clone()));
        }
        let addresses = self.give_addresses(request)?;
        let (bridge, on_link) = self.bridging(request, &addresses)?;
        let engine = request.engine.clone().unwrap_or_default();
        let gateways = if engine.gateways.is_empty() {
            endpoint::gateways(&addresses, &self.config.host_addresses)
        } else {
            engine.gateways.clone()
        };
        let (host_ifname, peer_ifname) = endpoint::interface_names(&self.config.interface, &request.name);
        let lease = Lease {
            version: VERSION,
            id: self.journal.next_id(SystemTime::now()),
            name: request.name.clone(),
            interface: request.interface.clone(),
            netns: request.netns.clone(),
            owner: request.owner.clone(),
            host_ifname,
            peer_ifname,
            gateways,
            link_gateways: engine.gateways,
            internal: engine.internal,
            network: request.network.clone().filter(|network| network != DEFAULT_NETWORK),
            labels: request.labels.clone(),
            bridge,
            on_link,
            addresses,
            mtu: engine.mtu.map_or(self.config.mtu, |mtu| u32::from(mtu).max(MTU_LEAST).min(self.config.mtu)),
            state: LeaseState::Prepared,
            boot_id: self.boot_id.clone(),
            changed_unix: unix(SystemTime::now()),
        };
        self.journal.put(lease.clone())?;
        if let Err(error) = self.make_links(&lease).await {
            let _ = self.undo_prepared(&lease).await;
            return Err(error);
        }
        Ok(Begun::New(lease))
    }

    async fn make_links(&mut self, lease: &Lease) -> Result<(), PlumbingError> {
        // A veth of that name can only be a leftover of ours: names are derived from the endpoint.
        self.kernel.delete_link(&lease.host_ifname).await?;
        let alias = link_alias(&lease.name, &lease.interface);
        self.kernel.add_veth(&lease.host_ifname, &lease.peer_ifname, lease.mtu, self.config.group, &alias).await
    }

    /// Whether the host's side of a lease is up and bound, after this comparison.
    async fn is_ready(&self, lease: &Lease, outcome: &Reconciled) -> Result<(), PlumbingError> {
        let link = self.kernel.link(&lease.host_ifname).await?;
        match link {
            Some(link) if link.up && self.is_bound(lease, &link) => Ok(()),
            Some(_) => Err(PlumbingError::Nft {
                what: "bind the new interface",
                stderr: outcome.problems.first().map_or_else(String::new, |p| p.what.clone()),
            }),
            None => Err(PlumbingError::InterfaceMissing(lease.host_ifname.clone())),
        }
    }

    /// Marks an endpoint as in use; the caller has configured the container. Again is fine.
    ///
    /// # Errors
    /// When the lease is unknown or the journal cannot be written.
    pub fn commit(&mut self, id: u64) -> Result<Lease, PlumbingError> {
        let lease = self.leased(id)?;
        let lease = Lease { state: LeaseState::Committed, changed_unix: unix(SystemTime::now()), ..lease };
        self.journal.put(lease.clone())?;
        Ok(lease)
    }

    /// Undoes a prepared endpoint; its addresses are free again at once. A committed one is left alone.
    ///
    /// # Errors
    /// When the lease is unknown, committed, or cannot be undone.
    pub async fn abort(&mut self, id: u64) -> Result<(), PlumbingError> {
        let lease = self.leased(id)?;
        if lease.state == LeaseState::Committed {
            return Err(PlumbingError::LeaseCommitted(id));
        }
        self.undo_prepared(&lease).await?;
        self.reconcile(Scope::Routing).await;
        Ok(())
    }

    /// Removes an endpoint; its addresses cool down.
    ///
    /// # Errors
    /// When it is unknown or cannot be removed.
    pub async fn remove(&mut self, name: &str) -> Result<Lease, PlumbingError> {
        let unknown = || PlumbingError::EndpointUnknown(name.to_owned());
        let lease = self.journal.live(name).cloned().ok_or_else(unknown)?;
        self.end_lease(&lease).await?;
        self.reconcile(Scope::Routing).await;
        Ok(lease)
    }

    /// Every endpoint, prepared and committed.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Lease> {
        self.journal.lives().cloned().collect()
    }

    fn leased(&self, id: u64) -> Result<Lease, PlumbingError> {
        self.journal.lives().find(|lease| lease.id == id).cloned().ok_or(PlumbingError::LeaseUnknown(id))
    }

    async fn undo_prepared(&mut self, lease: &Lease) -> Result<(), PlumbingError> {
        self.kernel.delete_link(&lease.host_ifname).await?;
        self.journal.forget(lease)
    }

    async fn end_lease(&mut self, lease: &Lease) -> Result<(), PlumbingError> {
        self.kernel.delete_link(&lease.host_ifname).await?;
        // Held addresses rest, or not, as their owner says.
        if lease.addresses.iter().all(|address| self.held.knows(*address)) {
            return self.journal.forget(lease);
        }
        let ended = Lease { state: LeaseState::Cooling, changed_unix: unix(SystemTime::now()), ..lease.clone() };
        self.journal.put(ended)
    }

    /// Removes everything of ours from the host, in reverse order, past failures. Container veths and their leases stay,
    /// because containers outlive a restart of the daemon, but are set down: nothing is reachable unfiltered.
    ///
    /// # Errors
    /// All steps that failed.
    pub async fn remove_all(&mut self) -> Result<(), TeardownErrors> {
        let mut outcome = Reconciled::default();
        let mut errors = Vec::new();
        self.reconcile_rules(&BTreeSet::new(), &mut outcome).await;
        for family in Family::ALL {
            for table in [self.config.tables.egress, self.config.tables.overlay, self.config.tables.local] {
                match self.kernel.routes(family, table).await {
                    Ok(routes) => {
                        for route in routes.iter().filter(|r| r.protocol == self.config.route_protocol) {
                            errors.extend(self.kernel.delete_route(route).await.err());
                        }
                    }
                    Err(error) => errors.push(error),
                }
            }
        }
        errors.extend(self.remove_addresses().await);
        errors.extend(self.silence_veths().await);
        errors.extend(self.sysctl.restore());
        errors.extend(self.nat.remove().err());
        errors.extend(self.guard.remove().err());
        if self.bridge_guard.is_installed() {
            errors.extend(self.bridge_guard.remove().err());
        }
        errors.extend(self.host_policy.remove().err());
        for problem in outcome.problems {
            errors.push(PlumbingError::Nft { what: "remove a rule", stderr: problem.what });
        }
        if errors.is_empty() { Ok(()) } else { Err(TeardownErrors(errors)) }
    }

    async fn silence_veths(&self) -> Vec<PlumbingError> {
        let links = match self.kernel.links().await {
            Ok(links) => links,
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        for lease in self.journal.iter() {
            if let Some(link) = links.iter().find(|link| link.name == lease.host_ifname) {
                errors.extend(self.kernel.set_down(link.index).await.err());
            }
        }
        errors
    }

    async fn remove_addresses(&self) -> Vec<PlumbingError> {
        let tun = match self.kernel.link(&self.config.interface).await {
            Ok(Some(tun)) => tun,
            Ok(None) => return Vec::new(),
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        for addr in &self.config.host_addresses {
            errors.extend(self.kernel.delete_address(tun.index, *addr, host_length(*addr)).await.err());
        }
        errors
    }

    /// Removes every endpoint with its veth, for an uninstall.
    ///
    /// # Errors
    /// All that failed.
    pub async fn remove_endpoints(&mut self) -> Result<(), TeardownErrors> {
        let mut errors = Vec::new();
        for lease in self.journal.iter().cloned().collect::<Vec<_>>() {
            errors.extend(self.undo_prepared(&lease).await.err());
        }
        if let Ok(links) = self.kernel.links().await {
            for bridge in links.iter().filter(|link| self.is_our_bridge(link)) {
                errors.extend(self.kernel.delete_link(&bridge.name).await.err());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(TeardownErrors(errors)) }
    }

    /// Tunnels of the kernel that are up and would decapsulate beside us: kind by name.
    ///
    /// # Errors
    /// When links cannot be listed.
    pub async fn kernel_tunnels(&self) -> Result<BTreeMap<String, String>, PlumbingError> {
        let links: Vec<Interface> = self.kernel.links().await?.iter().map(Interface::from).collect();
        let kind = |tunnel: &Interface| tunnel.tunnel.map(|kind| (tunnel.name.clone(), kind.name().to_owned()));
        Ok(tunnels_in_the_way(&links).into_iter().filter_map(kind).collect())
    }
}

fn host_length(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

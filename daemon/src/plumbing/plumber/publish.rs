//! Publishing ports: the checks against the host, the journal, and the table that translates.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_control::api::{PortSelector, PublishRequest, PublishedPort};
use overlay_dataplane::Published;

use super::super::desired::{self, Attachment};
use super::super::endpoint::check_owner;
use super::super::lease::LeaseState;
use super::super::netlink::Link;
use super::super::nft::Look;
use super::super::ports::listeners::{find, listeners};
use super::super::ports::{Flow, Publication, forget, host_address, table};
use super::{Plumber, PlumbingError, Problem, Reconciled, Scope};

impl Plumber {
    /// Publishes a port. The same request again gives the same answer.
    ///
    /// # Errors
    /// When the request is not acceptable, the port is held by somebody, or the kernel refuses; then nothing has changed.
    pub async fn publish(&mut self, request: &PublishRequest) -> Result<(PublishedPort, bool), PlumbingError> {
        check_owner(&request.owner)?;
        if request.target.port() == 0 {
            return Err(PlumbingError::PortTarget { target: request.target, why: "it has no port" });
        }
        let host_ip = host_address(request)?;
        if let Some(same) = self.ports.same(request, host_ip) {
            return Ok((same.clone(), false));
        }
        if let Some(ip) = host_ip.filter(|ip| !ip.is_loopback()) {
            self.must_be_own(ip).await?;
        }
        let (endpoint, lease) = self.target(request)?.unzip();
        let ipv4 = request.target.is_ipv4();
        let listening = listeners(request.protocol);
        let host_port = match request.host_port {
            0 => self.ports.free(request, host_ip, |port| find(&listening, host_ip, ipv4, port).is_some())?,
            port => port,
        };
        let held = |by: String| PlumbingError::PortHeld { port: host_port, protocol: request.protocol, by };
        if let Some(holder) = self.ports.holder(host_ip, ipv4, request.protocol, host_port) {
            return Err(held(format!("{} publishes {holder}", holder.owner)));
        }
        if let Some(listener) = find(&listening, host_ip, ipv4, host_port) {
            return Err(held(format!("{} listens on it", listener.describe())));
        }
        let port = PublishedPort {
            owner: request.owner.clone(),
            host_ip,
            host_port,
            protocol: request.protocol,
            target: request.target,
            endpoint,
        };
        self.ports.add(Publication { port: port.clone(), lease })?;
        if let Err(error) = self.install_ports(Look::Known) {
            // The caller hears why; what the kernel had stays in force.
            self.ports.keep(|one| one.port != port)?;
            return Err(error);
        }
        // What came before was not translated, and would go on as it did.
        let own = self.kernel.all_addresses().await?;
        let is_own = |ip: IpAddr| ip.is_loopback() || own.iter().any(|address| address.ip == ip);
        forget_flows(&port, |flow| is_own(flow.to.ip()) && host_ip.is_none_or(|ip| ip == flow.to.ip()));
        self.reconcile(Scope::Routing).await;
        Ok((port, true))
    }

    /// Takes back the ports that a selector means; which they were.
    ///
    /// # Errors
    /// When the selector names nothing, or the list cannot be written.
    pub async fn unpublish(&mut self, selector: &PortSelector) -> Result<Vec<PublishedPort>, PlumbingError> {
        if selector.is_empty() {
            return Err(PlumbingError::NoSelector);
        }
        let gone = self.ports.remove(selector)?;
        if !gone.is_empty() {
            self.install_ports(Look::Known)?;
            gone.iter().for_each(forget_translated);
            self.reconcile(Scope::Routing).await;
        }
        Ok(gone)
    }

    /// Every published port.
    #[must_use]
    pub fn published(&self) -> Vec<PublishedPort> {
        self.ports.iter().map(|one| one.port.clone()).collect()
    }

    /// What the packet path must know of published ports.
    #[must_use]
    pub fn openings(&self) -> Published {
        self.ports.openings(&self.config)
    }

    async fn must_be_own(&self, ip: IpAddr) -> Result<(), PlumbingError> {
        let own = self.kernel.all_addresses().await?;
        if own.iter().any(|address| address.ip == ip) {
            return Ok(());
        }
        Err(PlumbingError::PortAddress { address: ip, why: "no interface of this host has it" })
    }

    /// The container that a request is about and its lease; `None` where the target is on another host.
    fn target(&self, request: &PublishRequest) -> Result<Option<(String, u64)>, PlumbingError> {
        let ip = request.target.ip();
        let refuse = |why| PlumbingError::PortTarget { target: request.target, why };
        let mut live = self.journal.iter().filter(|lease| lease.state != LeaseState::Cooling);
        if let Some(lease) = live.find(|lease| lease.addresses.contains(&ip)) {
            return Ok(Some((lease.name.clone(), lease.id)));
        }
        if self.config.own_prefixes.iter().any(|prefix| prefix.contains(ip)) {
            return Err(refuse("no container of this host has this address"));
        }
        let mut known = desired::overlay_destinations(&self.config, &self.learned).into_iter();
        if known.any(|prefix| prefix.contains(ip)) { Ok(None) } else { Err(refuse("it is not on the overlay")) }
    }

    fn install_ports(&mut self, look: Look) -> Result<bool, PlumbingError> {
        let script = table::script(&self.config, &self.name_servers, self.ports.iter().map(|one| &one.port));
        self.nat.ensure(&script, look)
    }

    /// Ends ports whose container is gone, and puts the table in place.
    pub(super) fn reconcile_ports(&mut self, look: Look, outcome: &mut Reconciled) {
        let live = self.journal.iter().filter(|lease| lease.state != LeaseState::Cooling);
        let live: BTreeSet<u64> = live.map(|lease| lease.id).collect();
        let gone = self.ports.keep(|one| one.lease.is_none_or(|lease| live.contains(&lease)));
        if let Err(error) = self.names.keep(|lease| live.contains(&lease)) {
            outcome.problems.push(Problem::from(&error));
        }
        let gone = gone.unwrap_or_else(|error| {
            outcome.problems.push(Problem::from(&error));
            Vec::new()
        });
        outcome.changes.extend(gone.iter().map(|port| format!("ended the published port {port}")));
        match self.install_ports(look) {
            Ok(false) => {}
            Ok(true) => outcome.changes.push(format!("installed published ports in {}", table::table(&self.config))),
            Err(error) => outcome.problems.push(Problem::from(&error)),
        }
        gone.iter().for_each(forget_translated);
    }

    /// Lets interfaces take answers to packets that the host sent to a published port from a loopback address. The table
    /// drops everything else for such an address.
    pub(super) async fn reconcile_loopback(
        &self,
        links: &[Link],
        attachments: &[Attachment],
        outcome: &mut Reconciled,
    ) {
        for name in self.ports.loopback_interfaces(&self.config, attachments) {
            let Some(link) = links.iter().find(|link| link.name == name) else { continue };
            let closed = self.sysctl.get(&format!("net/ipv4/conf/{name}/route_localnet"));
            if closed.is_some_and(|value| value == "0") {
                let result = self.kernel.route_localnet(link.index).await;
                outcome.note(result, || format!("set route_localnet of {name} to 1"));
            }
        }
    }
}

/// Makes the kernel forget the flows that it translates for a port.
fn forget_translated(port: &PublishedPort) {
    forget_flows(port, |flow| flow.answers == port.target);
}

/// Makes the kernel forget flows to a port. Where it cannot be asked they end by themselves.
fn forget_flows(port: &PublishedPort, is_meant: impl Fn(&Flow) -> bool) {
    let to_port = |flow: &Flow| flow.to.port() == port.host_port && is_meant(flow);
    match forget(port.target.is_ipv4(), port.protocol, to_port) {
        Ok(0) => {}
        Ok(count) => tracing::info!(%port, count, "the kernel forgot flows to a port"),
        Err(error) => tracing::warn!(%port, cause = %error, "flows to a port stay until they end by themselves"),
    }
}

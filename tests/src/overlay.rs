//! A lab with daemons and containers, ready to be used.

use anyhow::{Context as _, Result, anyhow, bail};
use overlay_control::api::{PeerStatus, Request, Response, RouteEntry, Status};
use overlay_netns_harness::{Binaries, Cluster, Container, HostSpec, Lab, Topology, ping};
use std::net::IpAddr;
use std::time::Duration;

/// Daemons on all hosts, containers behind them, everything ready.
#[derive(Debug)]
pub struct Overlay {
    /// What the daemons were configured with.
    pub cluster: Cluster,
    /// The containers, in the order of hosts.
    pub containers: Vec<Container>,
    /// The hosts.
    pub lab: Lab,
}

impl Overlay {
    /// Brings hosts and containers up; `edit` changes the configuration before it is written.
    pub fn start(
        name: &str,
        binaries: Binaries,
        hosts: &[HostSpec],
        containers_per_host: usize,
        encapsulation: &str,
        edit: impl FnOnce(&mut Cluster),
    ) -> Result<Overlay> {
        let lab = Lab::create(name, Topology::Routed, hosts, binaries)?;
        let mut cluster = Cluster::new(hosts.len(), encapsulation);
        edit(&mut cluster);
        cluster.write(&lab)?;
        lab.start_daemons()?;
        let mut containers = Vec::new();
        for host in lab.hosts() {
            for number in 1..=containers_per_host {
                containers.push(lab.add_container(host.name(), &format!("c{number}"))?);
            }
        }
        lab.wait_ready(Duration::from_secs(20))?;
        Ok(Overlay { cluster, containers, lab })
    }

    /// A container by its name.
    pub fn container(&self, name: &str) -> &Container {
        self.containers.iter().find(|container| container.name == name).expect("the test made this container")
    }

    /// Asks the daemon of a host.
    pub fn ask(&self, host: &str, request: Request) -> Result<Response> {
        let shown = format!("{request:?}");
        self.lab.control(host)?.call(request).with_context(|| format!("asking {host} for {shown}"))
    }

    /// The status of a host.
    pub fn status(&self, host: &str) -> Result<Status> {
        match self.ask(host, Request::Status)? {
            Response::Status(status) => Ok(*status),
            other => bail!("an answer of the wrong kind: {}", other.name()),
        }
    }

    /// What a host knows about a peer.
    pub fn peer(&self, host: &str, name: &str) -> Result<PeerStatus> {
        let peers = self.status(host)?.peers;
        peers.into_iter().find(|peer| peer.name == name).ok_or_else(|| anyhow!("{host} knows no peer {name}"))
    }

    /// The prefixes a host knows.
    pub fn routes(&self, host: &str) -> Result<Vec<RouteEntry>> {
        match self.ask(host, Request::RouteList)? {
            Response::Routes(routes) => Ok(routes),
            other => bail!("an answer of the wrong kind: {}", other.name()),
        }
    }

    /// The owner that a host's best route to a prefix names.
    pub fn owner(&self, host: &str, prefix: &str) -> Option<String> {
        let routes = self.routes(host).ok()?;
        routes.into_iter().find(|route| route.best && route.prefix.to_string() == prefix).map(|route| route.owner)
    }

    /// How often a host dropped a packet for a reason.
    pub fn drops(&self, host: &str, reason: &str) -> u64 {
        self.status(host).ok().and_then(|status| status.drops.get(reason).copied()).unwrap_or(0)
    }

    /// Whether one echo request from a container is answered in time.
    pub fn reaches(&self, from: &str, to: IpAddr) -> bool {
        let report = ping(&self.container(from).view, "-c 1 -W 0.3", &to.to_string());
        report.is_ok_and(|report| report.is_lossless())
    }
}

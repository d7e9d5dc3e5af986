//! What is remembered of dockerd's pools, networks and endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use overlay_wire::Prefix;
use overlay_wire::gossip::Labels;
use serde::{Deserialize, Serialize};

use super::message::PortBinding;
use super::store::Store;

/// Seconds since 1970.
pub(super) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An address that dockerd has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    /// When it was asked for, seconds since 1970.
    pub(super) since: u64,
    /// Whether it belongs to the network itself: a gateway or an auxiliary address.
    pub(super) fixed: bool,
}

/// What `RequestPool` gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pool {
    /// The prefix dockerd knows.
    pub(super) prefix: Prefix,
    /// Where addresses that dockerd does not name come from (`--ip-range`).
    #[serde(default)]
    pub(super) range: Option<Prefix>,
    /// Whether dockerd named the prefix (`--subnet`): such pools do not overlap.
    #[serde(default)]
    pub(super) named: bool,
    /// When it was asked for, seconds since 1970.
    #[serde(default)]
    pub(super) since: u64,
    /// The network of the cluster asked for (`--ipam-opt network=NAME`).
    #[serde(default)]
    pub(super) cluster: Option<String>,
    /// The Docker network that uses it, once there is one.
    #[serde(default)]
    pub(super) network: Option<String>,
    /// Addresses that dockerd has.
    #[serde(default)]
    pub(super) addresses: BTreeMap<IpAddr, Given>,
    /// Addresses that dockerd gave back and the daemon has not taken yet.
    #[serde(default)]
    pub(super) releasing: BTreeSet<IpAddr>,
    /// Whether dockerd gave the pool back.
    #[serde(default)]
    pub(super) released: bool,
}

impl Pool {
    /// Gives every address back.
    pub(super) fn release_all(&mut self) {
        self.released = true;
        self.releasing.extend(std::mem::take(&mut self.addresses).into_keys());
    }
}

/// Which network of the cluster a Docker network is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cluster {
    /// The default one: asked for, or made by a release that knew no other.
    #[default]
    Default,
    /// The one of the Docker network's own name, which drivers are not told: dockerd is asked for it afterwards.
    OfItsName,
    /// This one; the daemon knows of it.
    Named(String),
}

/// What `CreateNetwork` said.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Network {
    /// Each pool with the gateway in it.
    pub(super) gateways: Vec<(Prefix, IpAddr)>,
    /// `--internal`.
    pub(super) internal: bool,
    /// `-o com.docker.network.driver.mtu=N`.
    #[serde(default)]
    pub(super) mtu: Option<u16>,
    /// The network of the cluster that its containers are in.
    #[serde(default)]
    pub(super) cluster: Cluster,
    /// Whether this host takes part in that for this network's sake, and leaves it with it.
    #[serde(default)]
    pub(super) joined: bool,
    /// Whether dockerd removed it; the daemon has to be told.
    #[serde(default)]
    pub(super) deleted: bool,
}

impl Network {
    /// The gateway for an address.
    pub(super) fn gateway(&self, address: IpAddr) -> Option<IpAddr> {
        self.gateways.iter().find(|(pool, _)| pool.contains(address)).map(|(_, gateway)| *gateway)
    }
}

/// What `CreateEndpoint` and `Join` said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Endpoint {
    /// Its network.
    pub(super) network: String,
    /// At most one address per family.
    pub(super) addresses: Vec<IpAddr>,
    /// The namespace of the container, from Join to Leave.
    #[serde(default)]
    pub(super) sandbox: Option<String>,
    /// Ports to publish.
    #[serde(default)]
    pub(super) ports: Vec<PortBinding>,
    /// Whether its ports are to be taken back, and the daemon has not heard of it yet.
    #[serde(default)]
    pub(super) unpublishing: bool,
    /// When it was made, seconds since 1970.
    pub(super) since: u64,
    /// Whether the routes to the overlay lead over this endpoint's link, and not over another of the same container.
    #[serde(default)]
    pub(super) leads: bool,
    /// Its labels in the overlay.
    #[serde(default)]
    pub(super) labels: Labels,
    /// Whether dockerd deleted it; the daemon may have it still.
    #[serde(default)]
    pub(super) deleted: bool,
    /// The names the daemon has for it.
    #[serde(default)]
    pub(super) names: Vec<String>,
    /// Whether these are all: dockerd tells aliases only once the container runs.
    #[serde(default)]
    pub(super) named: bool,
}

/// Everything, on disk.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pools: Store<Pool>,
    pub(super) networks: Store<Network>,
    pub(super) endpoints: Store<Endpoint>,
}

impl State {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            pools: Store::open(directory.join("pools"))?,
            networks: Store::open(directory.join("networks"))?,
            endpoints: Store::open(directory.join("endpoints"))?,
        })
    }

    /// A network that dockerd has.
    pub(super) fn network(&self, id: &str) -> Option<&Network> {
        self.networks.get(id).filter(|network| !network.deleted)
    }

    /// The pool in which dockerd has an address.
    pub(super) fn pool_of(&self, address: IpAddr) -> Option<&String> {
        self.pools.iter().find(|(_, pool)| pool.addresses.contains_key(&address)).map(|(id, _)| id)
    }

    /// The endpoint that has an address.
    pub(super) fn endpoint_of(&self, address: IpAddr) -> Option<&String> {
        let mut live = self.endpoints.iter().filter(|(_, endpoint)| !endpoint.deleted);
        live.find(|(_, endpoint)| endpoint.addresses.contains(&address)).map(|(id, _)| id)
    }

    /// Whether the daemon has still to be told something.
    pub(super) fn is_pending(&self) -> bool {
        self.endpoints.iter().any(|(_, endpoint)| endpoint.deleted || endpoint.unpublishing)
            || self.pools.iter().any(|(_, pool)| pool.released || !pool.releasing.is_empty())
            || self.networks.iter().any(|(_, network)| network.deleted)
    }
}

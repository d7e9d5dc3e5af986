//! The services that the packet path knows: which virtual address and port leads to which backends.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use overlay_wire::Prefix;

use super::balance::{self, Algorithm};
use super::maglev::Maglev;

/// Most backends of one port of a service.
pub const MAX_BACKENDS: usize = 1024;

/// What lives as long as a backend does, across the tables that follow each other.
#[derive(Debug, Default)]
pub struct BackendState {
    /// Flows to it now.
    pub active: AtomicU32,
    /// Flows that were given to it.
    pub picked: AtomicU64,
    /// Connects that failed one after the other.
    pub failures: AtomicU32,
    /// Until when it gets no new flow, in milliseconds of the flow table's clock; 0: it may have some.
    pub ejected_until: AtomicU64,
    /// How often it was ejected since it last answered.
    pub ejections: AtomicU32,
}

impl BackendState {
    /// Whether it gets no new flow because connects to it failed.
    #[must_use]
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now_ms
    }
}

/// One place a service leads to.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name, unique in the service; the same on every host.
    pub id: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of new flows, 0 to 256; 0 gets none.
    pub weight: u16,
    /// Whether it finishes the flows it has and gets no new ones.
    pub draining: bool,
    /// Whether its neighbours on this host reach it past the packet path, as in a bridge.
    pub bridged: bool,
    /// What is counted of it.
    pub state: Arc<BackendState>,
}

/// How many connects may fail before a backend is left out for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outlier {
    /// Failures in a row; 0: never.
    pub consecutive: u32,
    /// How long the first time; the n-th time n times as long.
    pub base: Duration,
    /// The longest time.
    pub max: Duration,
    /// Most backends of a service that may be left out, in percent; one always stays.
    pub max_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        let (base, max) = (Duration::from_secs(10), Duration::from_secs(300));
        Self { consecutive: 3, base, max, max_percent: 50 }
    }
}

/// What lives as long as a port of a service does.
#[derive(Debug, Default)]
pub struct FrontendState {
    /// The place in the round.
    pub(crate) turn: AtomicU64,
    /// Flows opened.
    pub opened: AtomicU64,
    /// Flows refused because no backend was left.
    pub empty: AtomicU64,
    /// Flows refused by a limit.
    pub limited: AtomicU64,
    /// Connects that were tried again at another backend.
    pub retried: AtomicU64,
    /// Flows now.
    pub active: AtomicU32,
}

/// One port of a service.
#[derive(Debug)]
pub struct Frontend {
    /// The name of the service.
    pub service: Arc<str>,
    /// The virtual address and port.
    pub vip: SocketAddr,
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Whether, and how long, a client keeps its backend.
    pub affinity: Option<Duration>,
    /// How often a connect that failed is tried at another backend.
    pub retries: u8,
    /// When a backend is left out.
    pub outlier: Outlier,
    /// Most flows at once; 0: no limit.
    pub max_connections: u32,
    /// What is counted of it.
    pub state: Arc<FrontendState>,
    backends: Vec<Backend>,
    /// Each backend's turns in order (round robin), as places in `backends`.
    pub(crate) round: Vec<u16>,
    /// Weights added up (random).
    pub(crate) cumulative: Vec<u32>,
    maglev: OnceLock<Option<Maglev>>,
}

/// What [`Frontend::new`] is made from.
#[derive(Clone, Debug)]
pub struct FrontendOptions {
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Whether, and how long, a client keeps its backend.
    pub affinity: Option<Duration>,
    /// How often a connect that failed is tried at another backend.
    pub retries: u8,
    /// When a backend is left out.
    pub outlier: Outlier,
    /// Most flows at once; 0: no limit.
    pub max_connections: u32,
}

impl Default for FrontendOptions {
    fn default() -> Self {
        let outlier = Outlier::default();
        Self { algorithm: Algorithm::Maglev, affinity: None, retries: 2, outlier, max_connections: 0 }
    }
}

impl Frontend {
    /// Makes one; backends beyond [`MAX_BACKENDS`] and of the other family are left out.
    #[must_use]
    pub fn new(
        service: Arc<str>,
        vip: SocketAddr,
        protocol: u8,
        options: &FrontendOptions,
        mut backends: Vec<Backend>,
        state: Arc<FrontendState>,
    ) -> Self {
        backends.retain(|backend| backend.address.is_ipv4() == vip.is_ipv4());
        backends.truncate(MAX_BACKENDS);
        let weights = || backends.iter().map(Backend::share);
        let (round, cumulative) = (balance::round(weights()), balance::cumulative(weights()));
        Self {
            service,
            vip,
            protocol,
            algorithm: options.algorithm,
            affinity: options.affinity,
            retries: options.retries,
            outlier: options.outlier,
            max_connections: options.max_connections,
            state,
            backends,
            round,
            cumulative,
            maglev: OnceLock::new(),
        }
    }

    /// Everything it leads to, with those that are draining.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The backend that listens at an address.
    #[must_use]
    pub fn backend(&self, address: SocketAddr) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.address == address)
    }

    /// Built when the first flow asks for it: a host may know thousands of services and use few.
    pub(crate) fn maglev(&self) -> Option<&Maglev> {
        let build = || Maglev::build(self.backends.iter().map(|backend| (&*backend.id, backend.share())));
        self.maglev.get_or_init(build).as_ref()
    }
}

impl Backend {
    /// Its weight for new flows.
    pub(crate) fn share(&self) -> u16 {
        if self.draining { 0 } else { self.weight.min(256) }
    }
}

/// Every service, swapped whole with the rest of the tables.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    ranges: Vec<Prefix>,
    masks: Vec<IpAddr>,
    frontends: HashMap<(SocketAddr, u8), Arc<Frontend>>,
    /// Moves with every change of the services: a flow asks again whether its backend is there still.
    pub revision: u64,
}

impl ServiceTable {
    /// Makes a table. `ranges` hold the virtual addresses, and nothing in them is ever forwarded as it is; `masks` are this
    /// host's service addresses, one per family, that stand for clients whose backend would answer past the packet path.
    #[must_use]
    pub fn new(ranges: Vec<Prefix>, masks: Vec<IpAddr>, frontends: Vec<Arc<Frontend>>, revision: u64) -> Self {
        let frontends = frontends.into_iter().map(|frontend| ((frontend.vip, frontend.protocol), frontend)).collect();
        Self { ranges, masks, frontends, revision }
    }

    /// Whether there are no virtual addresses at all.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether an address is a virtual one, used or not.
    #[inline]
    #[must_use]
    pub fn is_virtual(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// The service behind an address, port and protocol.
    #[inline]
    #[must_use]
    pub fn find(&self, vip: SocketAddr, protocol: u8) -> Option<&Arc<Frontend>> {
        self.frontends.get(&(vip, protocol))
    }

    /// What stands for a client, of its family.
    pub(crate) fn mask(&self, client: IpAddr) -> Option<IpAddr> {
        self.masks.iter().copied().find(|mask| mask.is_ipv4() == client.is_ipv4())
    }

    /// All ports of all services, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = &Arc<Frontend>> {
        self.frontends.values()
    }
}

//! Networks of the cluster: `overlayctl network`.

use std::time::Duration;

use overlay_control::api::{NetworkCreate, NetworkHost, NetworkInfo, NetworkRequest, Problem, Response};
use overlay_control::{ApiError, Code};
use overlay_routing::networks::Network;
use overlay_wire::Prefix;
use overlay_wire::gossip::networks::{DEFAULT_NETWORK, MAX_POOL_PREFIXES, is_network_name};
use overlay_wire::gossip::{NetworkMode, NetworkOptions};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Api, done, ended, not_found};
use crate::core::{Change, Core, unix_ms};

/// How long an endpoint waits until the members that answer know of a new block.
const AWARE_WITHIN: Duration = Duration::from_millis(1500);
/// The pause between two looks whether they do.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Api {
    pub(super) async fn network(&self, request: NetworkRequest) -> Result<Response, ApiError> {
        match request {
            NetworkRequest::Create(create) => self.network_create(create).await,
            NetworkRequest::List => Ok(Response::Networks(self.networks(|_| true).await?)),
            NetworkRequest::Show { name } => {
                let found = self.networks(|other| other == name).await?;
                if found.is_empty() {
                    return Err(not_found("network", &name, "overlayctl network list"));
                }
                Ok(Response::Networks(found))
            }
            NetworkRequest::Remove { name } => self.network_remove(name).await,
        }
    }

    async fn network_create(&self, create: NetworkCreate) -> Result<Response, ApiError> {
        let invalid = |what: String, why: &str, next: &str| ApiError::new(Code::Invalid, what, why, next);
        let NetworkCreate { name, mut pool, internal, mode } = create;
        if name == DEFAULT_NETWORK {
            let why = "it is there from the start: every endpoint without another network is in it";
            return Err(ApiError::new(
                Code::Conflict,
                "the network `default` cannot be made",
                why,
                "choose another name",
            ));
        }
        if !is_network_name(&name) {
            let next = "use letters, digits, dot, dash and underscore, first a letter or digit, at most 63";
            return Err(invalid(format!("`{name}` is no name for a network"), "rules and records name it", next));
        }
        pool.sort_unstable();
        pool.dedup();
        self.check_pool(&pool)?;
        let known = self.core.view.load().networks.get(&name).map(|network| network.options.clone());
        if let Some(known) = &known {
            let differs = (!pool.is_empty() && pool != known.pool)
                || (internal && !known.internal)
                || mode.is_some_and(|mode| mode != known.mode);
            if differs {
                return Err(self.disagreement(&name, &pool, internal, mode));
            }
        }
        let options = known.unwrap_or(NetworkOptions {
            created_unix: unix_ms() / 1000,
            mode: mode.unwrap_or_default(),
            internal,
            pool,
        });
        let plumbing = &self.core.plumbing;
        let changed = plumbing.join_network(name.clone(), options).await.map_err(ApiError::from)?;
        if changed {
            self.announce_networks().await?;
            self.core.events.info("network-created", Some(&name), "asked for");
        }
        let mut notes =
            vec![format!("network {name} {}", if changed { "is known here" } else { "was known here already" })];
        let others = self.other_hosts(&name);
        if !others.is_empty() {
            notes.push(format!("it is the network of {} too", others.join(", ")));
        }
        Ok(done(changed, notes))
    }

    /// A pool must be what blocks can come from.
    fn check_pool(&self, pool: &[Prefix]) -> Result<(), ApiError> {
        let invalid = |what: String, why: &str, next: &str| Err(ApiError::new(Code::Invalid, what, why, next));
        if pool.len() > MAX_POOL_PREFIXES {
            let next = "name fewer, wider prefixes";
            return invalid(format!("{} prefixes are too many for a pool", pool.len()), "at most 4 are possible", next);
        }
        if let Some(pair) = pool.windows(2).find(|pair| pair[0].overlaps(&pair[1])) {
            let what = format!("{} and {} overlap", pair[0], pair[1]);
            return invalid(what, "a pool names each part once", "leave one of them out");
        }
        let config = self.core.config.load();
        let overlay: Vec<&Prefix> = config.overlay.pool.iter().chain(&config.node.prefixes).collect();
        if let Some(part) = pool.iter().find(|part| !overlay.iter().any(|prefix| prefix.overlaps(part))) {
            let what = format!("{part} is outside the overlay");
            let why = "each host carves its block of a network from its own prefix";
            return invalid(what, why, "choose a part of the overlay's pool: `overlayctl status`");
        }
        Ok(())
    }

    fn disagreement(&self, name: &str, pool: &[Prefix], internal: bool, mode: Option<NetworkMode>) -> ApiError {
        let wanted = NetworkOptions { created_unix: 0, mode: mode.unwrap_or_default(), internal, pool: pool.to_vec() };
        let view = self.core.view.load();
        let said = view.networks.get(name).map(|network| said(network).join("; ")).unwrap_or_default();
        ApiError::new(
            Code::Conflict,
            format!("network {name} exists and is not {}", words(&wanted)),
            said,
            format!(
                "leave the options out to take part in it (`overlayctl network create {name}`), or choose another name"
            ),
        )
    }

    async fn network_remove(&self, name: String) -> Result<Response, ApiError> {
        if name == DEFAULT_NETWORK {
            let why = "endpoints without another network are in it";
            return Err(ApiError::new(
                Code::Conflict,
                "the network `default` cannot be removed",
                why,
                "leave it alone",
            ));
        }
        let left = self.core.plumbing.leave_network(name.clone()).await.map_err(ApiError::from)?;
        let others = self.other_hosts(&name);
        if !left {
            if others.is_empty() {
                return Err(not_found("network", &name, "overlayctl network list"));
            }
            return Err(ApiError::new(
                Code::Conflict,
                format!("this host does not take part in network {name}"),
                format!("it is the network of {}", others.join(", ")),
                "run the same command there",
            ));
        }
        self.announce_networks().await?;
        self.core.events.info("network-removed", Some(&name), "asked for");
        let mut notes = vec![format!("network {name} is no longer this host's")];
        if !others.is_empty() {
            notes.push(format!("it stays the network of {}: run the same command there to end it", others.join(", ")));
        }
        Ok(done(true, notes))
    }

    /// Has the director announce what the plumbing has; in force here when this returns.
    pub(super) async fn announce_networks(&self) -> Result<(), ApiError> {
        let (told, answer) = oneshot::channel();
        self.core.changes.send(Change::Networks(told)).await.map_err(|_| ended("director"))?;
        answer.await.map_err(|_| ended("director"))?
    }

    /// Waits until every member that answers has what this host announced, for a while.
    pub(super) async fn members_aware(&self) {
        let deadline = Instant::now() + AWARE_WITHIN;
        while !self.core.view.load().unaware.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn other_hosts(&self, name: &str) -> Vec<String> {
        let view = self.core.view.load();
        let said = view.networks.get(name).map(|network| network.said.as_slice()).unwrap_or_default();
        said.iter().filter(|said| said.host.is_some()).map(|said| said.name.clone()).collect()
    }

    async fn networks(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<NetworkInfo>, ApiError> {
        let leases = self.core.plumbing.endpoints().await.map_err(ApiError::from)?;
        let endpoints = |name: &str| {
            let of_network = leases.iter().filter(|lease| lease.network_name() == name);
            of_network.map(|lease| lease.name.clone()).collect::<Vec<_>>()
        };
        let view = self.core.view.load();
        let mut found = Vec::new();
        if wanted(DEFAULT_NETWORK) {
            let info = NetworkInfo {
                name: DEFAULT_NETWORK.to_owned(),
                mode: NetworkMode::Routed,
                internal: false,
                pool: Vec::new(),
                here: true,
                hosts: Vec::new(),
                endpoints: endpoints(DEFAULT_NETWORK),
                notes: vec!["every host's prefixes without the blocks of other networks".to_owned()],
            };
            found.push(info);
        }
        for (name, network) in view.networks.iter().filter(|(name, _)| wanted(name)) {
            found.push(NetworkInfo {
                name: name.to_owned(),
                mode: network.options.mode,
                internal: network.options.internal,
                pool: network.options.pool.clone(),
                here: network.said.iter().any(|said| said.host.is_none()),
                hosts: hosts(network),
                endpoints: endpoints(name),
                notes: notes(network),
            });
        }
        Ok(found)
    }
}

/// Networks that hosts disagree about, for `status`.
pub(super) fn problems(core: &Core) -> Vec<Problem> {
    let view = core.view.load();
    let disputed = view.networks.iter().filter(|(_, network)| network.is_disputed());
    let is_here = |network: &Network| network.said.iter().any(|said| said.host.is_none());
    let unfiltered =
        view.networks.iter().filter(|(_, network)| network.options.mode == NetworkMode::Bridge && is_here(network));
    let unfiltered = unfiltered.map(|(name, _)| Problem {
        code: "BRIDGE_UNFILTERED".to_owned(),
        what: format!("containers of network {name} on this host are not filtered from each other"),
        why: "the network is of mode bridge, as it was made".to_owned(),
        next: "make it anew without --mode bridge where its containers do not trust each other".to_owned(),
    });
    let disputed = disputed.map(|(name, network)| Problem {
        code: "NETWORK_CONFLICT".to_owned(),
        what: format!("hosts want different things of network {name}; it is {}", words(&network.options)),
        why: said(network).join("; "),
        next: format!(
            "on the hosts that differ: `overlayctl network rm {name}` and `overlayctl network create {name}`"
        ),
    });
    disputed.chain(unfiltered).collect()
}

fn hosts(network: &Network) -> Vec<NetworkHost> {
    let host = |said: &overlay_routing::networks::Said| NetworkHost {
        host: said.name.clone(),
        blocks: said.blocks.clone(),
        wants: words(&said.options),
    };
    network.said.iter().map(host).collect()
}

fn said(network: &Network) -> Vec<String> {
    network.said.iter().map(|said| format!("{} wants it {}", said.name, words(&said.options))).collect()
}

fn notes(network: &Network) -> Vec<String> {
    let mut notes = Vec::new();
    if network.options.mode == NetworkMode::Bridge {
        notes.push("nothing is filtered between its containers on one host: they share a bridge".to_owned());
    }
    if network.options.internal {
        notes.push("nothing passes between it and the outside, whatever the rules say".to_owned());
    }
    if network.is_disputed() {
        notes.push(
            "hosts want different things of it; the stricter counts, and the pool of whoever made it first".to_owned(),
        );
    }
    notes
}

/// What a network is, in words.
fn words(options: &NetworkOptions) -> String {
    let mut words = vec![options.mode.name().to_owned()];
    if options.internal {
        words.push("internal".to_owned());
    }
    if !options.pool.is_empty() {
        words.push(format!("in {}", options.pool.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")));
    }
    words.join(" ")
}

//! Which network of the cluster a Docker network is, and taking part in it.
//!
//! Drivers are not told the names of Docker networks, and dockerd shows a network only after the driver has agreed to it. So
//! the name is asked for afterwards, at once and at the latest when the first container wants an address; nothing is given to
//! a container before it is known in which network it will be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use overlay_control::api::{AddressHold, NetworkCreate};
use overlay_control::{Code, ControlError};
use overlay_wire::gossip::networks::{DEFAULT_NETWORK, is_network_name};

use super::driver::{Deadline, Driver};
use super::refusal::Refusal;
use super::state::{Cluster, Network};
use crate::daemon::Daemon;

/// The option that names the network of the cluster, for the address driver and the network driver alike.
pub(super) const NETWORK_OPTION: &str = "network";
/// How long dockerd may take to tell a name.
const NAME_WITHIN: Duration = Duration::from_millis(800);

impl Cluster {
    /// What an option says; without one, the name of the Docker network counts.
    pub(super) fn of(option: Option<&str>) -> Self {
        match option {
            None => Self::OfItsName,
            Some(DEFAULT_NETWORK) => Self::Default,
            Some(name) => Self::Named(name.to_owned()),
        }
    }

    /// The name, but for the default one.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Default | Self::OfItsName => None,
        }
    }
}

/// The network of the cluster that IPAM options name.
pub(super) fn of_options(options: &BTreeMap<String, String>) -> Result<Option<String>, Refusal> {
    if let Some(key) = options.keys().find(|key| *key != NETWORK_OPTION && !key.starts_with("com.docker.")) {
        let shown: String = key.chars().take(64).collect();
        return Err(Refusal::new(format!(
            "overlayd: IPAM option {shown:?} is unknown; there is `--ipam-opt {NETWORK_OPTION}=NAME`"
        )));
    }
    let name = options.get(NETWORK_OPTION).filter(|name| !name.is_empty());
    name.map(|name| if name == DEFAULT_NETWORK { Ok(name.clone()) } else { checked(name) }).transpose()
}

/// A name that a network of the cluster can have.
pub(super) fn checked(name: &str) -> Result<String, Refusal> {
    if is_network_name(name) {
        return Ok(name.to_owned());
    }
    let shown: String = name.chars().take(64).collect();
    Err(Refusal::new(format!(
        "overlayd: no network of the cluster can be called {shown:?}: use letters, digits, dot, dash and underscore, first a \
         letter or digit, at most 63; or name another with `--ipam-opt {NETWORK_OPTION}=NAME`"
    )))
}

impl Driver {
    /// The network of the cluster that a Docker network is; `None`: the default one. Takes part in it first.
    pub(super) fn bind(&self, network: &str, deadline: Deadline) -> Result<Option<String>, Refusal> {
        let unknown =
            || Refusal::new("overlayd: this network is not known; remove the Docker network and make it again");
        let look = || self.state.lock().network(network).cloned().ok_or_else(unknown);
        match look()?.cluster {
            Cluster::Default => return Ok(None),
            Cluster::Named(name) => return Ok(Some(name)),
            Cluster::OfItsName => {}
        }
        let name = self.docker_name(network)?;
        // Not while the network is removed.
        let _alone = self.settle_alone(deadline);
        let known = look()?;
        let joined = join(&mut self.daemon(deadline)?, &name, known.internal)?;
        self.state.lock().networks.change(network, |network| {
            network.cluster = Cluster::Named(name.clone());
            network.joined |= joined;
        })?;
        Ok(Some(name))
    }

    fn docker_name(&self, network: &str) -> Result<String, Refusal> {
        let failed = |why: String| {
            Refusal::new(format!(
                "overlayd: dockerd does not tell the name of this network, by which the cluster knows it: {why}; try again, or \
                 make the network with `--ipam-opt {NETWORK_OPTION}=NAME`"
            ))
        };
        match self.dockerd.network(network, NAME_WITHIN) {
            Ok(Some(known)) => checked(&known.name),
            Ok(None) => Err(failed("it does not have it yet".to_owned())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Takes part in the network of the cluster that `CreateNetwork` names; whether that is new to this host.
    pub(super) fn join_named(&self, network: &Network, deadline: Deadline) -> Result<bool, Refusal> {
        match network.cluster.name() {
            None => Ok(false),
            Some(name) => join(&mut self.daemon(deadline)?, name, network.internal),
        }
    }

    /// Holds an address for a container of a Docker network.
    pub(super) fn hold_for_container(
        &self,
        network: &str,
        mut hold: AddressHold,
        deadline: Deadline,
    ) -> Result<IpAddr, Refusal> {
        let name = self.bind(network, deadline)?;
        hold.network = Some(name.clone().unwrap_or_else(|| DEFAULT_NETWORK.to_owned()));
        let mut daemon = self.daemon(deadline)?;
        match (daemon.hold(hold.clone()), name) {
            (Err(ControlError::Api(api)), Some(name)) if api.code.as_str() == Code::NotFound.name() => {
                // Somebody took this host out of it meanwhile.
                let internal = self.state.lock().network(network).is_some_and(|network| network.internal);
                let joined = join(&mut daemon, &name, internal)?;
                self.state.lock().networks.change(network, |network| network.joined |= joined)?;
                Ok(daemon.hold(hold)?.address)
            }
            (held, _) => Ok(held?.address),
        }
    }

    /// Asks for the names of networks that are not known yet; whether none is left.
    pub(super) fn bind_all(&self) -> bool {
        let of_its_name = |network: &Network| !network.deleted && network.cluster == Cluster::OfItsName;
        let unknown: Vec<String> = {
            let state = self.state.lock();
            state.networks.iter().filter(|(_, one)| of_its_name(one)).map(|(id, _)| id.clone()).collect()
        };
        // What is refused is told to whoever starts the first container.
        unknown.iter().all(|network| self.bind(network, Deadline::of_an_attempt()).is_ok())
    }

    /// Forgets a network that dockerd removed; with the last one of its name this host leaves the network of the cluster.
    pub(super) fn leave_cluster(&self, daemon: &mut Daemon, network: &str) -> Result<(), Refusal> {
        let (name, joined, heir) = {
            let state = self.state.lock();
            let Some(gone) = state.networks.get(network).filter(|one| one.deleted) else { return Ok(()) };
            let is_heir = |one: &Network| !one.deleted && one.cluster == gone.cluster;
            let heir = state.networks.iter().find(|(_, one)| is_heir(one)).map(|(id, _)| id.clone());
            (gone.cluster.name().map(str::to_owned), gone.joined, heir)
        };
        match (name, heir) {
            (Some(_), Some(heir)) => {
                self.state.lock().networks.change(&heir, |network| network.joined |= joined)?;
            }
            (Some(name), None) if joined => daemon.leave_network(&name)?,
            _ => {}
        }
        self.state.lock().networks.remove(network)?;
        Ok(())
    }
}

fn join(daemon: &mut Daemon, name: &str, internal: bool) -> Result<bool, Refusal> {
    let create = NetworkCreate { name: name.to_owned(), internal, ..NetworkCreate::default() };
    Ok(daemon.create_network(create)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_a_network_or_are_refused() {
        let options = |key: &str, value: &str| of_options(&BTreeMap::from([(key.to_owned(), value.to_owned())]));
        assert_eq!(options("network", "web").unwrap(), Some("web".to_owned()));
        assert_eq!(options("network", "default").unwrap(), Some("default".to_owned()));
        assert_eq!(options("network", "").unwrap(), None);
        assert_eq!(options("com.docker.network.x", "y").unwrap(), None);
        assert_eq!(of_options(&BTreeMap::new()).unwrap(), None);
        for (key, value) in [("network", "../x"), ("network", "a b"), ("colour", "red")] {
            assert!(options(key, value).unwrap_err().to_string().contains("network=NAME"), "{key}={value}");
        }
        assert_eq!(Cluster::of(Some("default")), Cluster::Default);
        assert_eq!(Cluster::of(None), Cluster::OfItsName);
        assert_eq!(Cluster::of(Some("web")).name(), Some("web"));
    }
}

//! The network driver: networks and endpoints as dockerd tells them, links made by the daemon at Join.
//!
//! A container's address stands alone on its link (/32, /128). The gateway of its network is reached on the link by a route of
//! its own, and all the rest by the gateway; each Docker network has its own gateway address, so that a container may be in
//! several. An internal network has a gateway too: the host drops what does not stay in the overlay.

use std::net::IpAddr;

use overlay_control::ControlError;
use overlay_control::api::{AddressBook, EndpointLease, EndpointRequest, EngineNetwork};
use overlay_wire::Prefix;
use overlay_wire::gossip::Labels;
use overlay_wire::gossip::identities::check_labels;
use overlay_wire::gossip::networks::DEFAULT_NETWORK;
use serde_json::{Map, Value, json};

use super::cluster::{NETWORK_OPTION, checked};
use super::driver::{Deadline, Driver, OWNER, SPACE, endpoint_name, exists_already};
use super::message::{EndpointCall, InterfaceName, JoinAnswer, NetworkRequest, PoolData, PortBinding, StaticRoute};
use super::refusal::Refusal;
use super::state::{Cluster, Endpoint, Network, State, now_unix};
use super::store::is_id;
use crate::daemon::Daemon;

/// What the daemon calls the interface until dockerd numbers it.
const INTERFACE: &str = "eth";
/// Options of the driver (`-o`) are in here.
const GENERIC: &str = "com.docker.network.generic";
const INTERNAL: &str = "com.docker.network.internal";
const MTU: &str = "com.docker.network.driver.mtu";
/// Labels of an endpoint (`--network name=NET,driver-opt=overlay.label.role=web`) begin with this.
const LABEL: &str = "overlay.label.";
const PORTS: &str = "com.docker.network.portmap";
/// Ports of one container at most.
const MAX_PORTS: usize = 4096;
/// Routes to blocks of a network that a container gets at most, its own host's first.
const MAX_BLOCK_ROUTES: usize = 256;

pub(super) fn check_ids(ids: &[&str]) -> Result<(), Refusal> {
    match ids.iter().find(|id| !is_id(id)) {
        None => Ok(()),
        Some(id) => Err(Refusal::unreadable(format_args!("{:?} is no id", id.chars().take(64).collect::<String>()))),
    }
}

/// An address, with or without a prefix length behind it.
pub(super) fn address(text: &str) -> Result<Option<IpAddr>, Refusal> {
    let alone = text.split('/').next().unwrap_or_default();
    if alone.is_empty() {
        return Ok(None);
    }
    alone.parse().map(Some).map_err(|_| Refusal::unreadable(format_args!("{alone:?} is no address")))
}

/// A hardware address that nobody else has: made here, and the same for the same endpoint.
fn hardware_address(endpoint: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in endpoint.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

/// What `-o` and the flags of `docker network create` say.
pub(super) fn options(all: &Map<String, Value>) -> Result<Network, Refusal> {
    let internal = all.get(INTERNAL).and_then(Value::as_bool).unwrap_or(false);
    let mut network = Network { internal, cluster: Cluster::OfItsName, ..Network::default() };
    for (key, value) in all.get(GENERIC).and_then(Value::as_object).into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        match key.as_str() {
            MTU => {
                let mtu = text.parse::<u16>().ok().filter(|mtu| *mtu >= 1280);
                let bad = || Refusal::new(format!("overlayd: MTU {text:?} is not acceptable; give 1280 to 65535"));
                network.mtu = Some(mtu.ok_or_else(bad)?);
            }
            NETWORK_OPTION if text == DEFAULT_NETWORK => network.cluster = Cluster::Default,
            NETWORK_OPTION => network.cluster = Cluster::Named(checked(text)?),
            _ if key.starts_with("com.docker.") => {}
            _ => {
                let shown: String = key.chars().take(64).collect();
                return Err(Refusal::new(format!(
                    "overlayd: option {shown:?} is unknown; there are `-o {MTU}=N` and `-o {NETWORK_OPTION}=NAME`"
                )));
            }
        }
    }
    Ok(network)
}

pub(super) fn ports(options: &Map<String, Value>) -> Result<Option<Vec<PortBinding>>, Refusal> {
    let Some(value) = options.get(PORTS).filter(|value| !value.is_null()) else { return Ok(None) };
    let ports: Vec<PortBinding> = serde_json::from_value(value.clone()).map_err(Refusal::unreadable)?;
    if ports.len() > MAX_PORTS {
        return Err(Refusal::new(format!("overlayd: more than {MAX_PORTS} published ports")));
    }
    Ok(Some(ports))
}

/// The labels that an endpoint's options give it.
fn labels(options: &Map<String, Value>) -> Result<Labels, Refusal> {
    let given = options.iter().filter_map(|(key, value)| Some((key.strip_prefix(LABEL)?, value)));
    let labels: Labels =
        given.map(|(key, value)| (key.to_owned(), value.as_str().unwrap_or_default().to_owned())).collect();
    check_labels(&labels).map_err(|why| Refusal::new(format!("overlayd: {why}")))?;
    Ok(labels)
}

impl Driver {
    pub(super) fn create_network(&self, request: &NetworkRequest, deadline: Deadline) -> Result<Value, Refusal> {
        check_ids(&[&request.network])?;
        let mut network = options(&request.options)?;
        let mut pools = Vec::new();
        {
            let state = self.state.lock();
            for data in request.v4.iter().chain(&request.v6) {
                let (pool, gateway) = pool_of(&state, data)?;
                let known = state.pools.get(&pool);
                if let Some(name) = known.and_then(|pool| pool.cluster.as_deref()) {
                    let named = Cluster::of(Some(name));
                    if network.cluster != Cluster::OfItsName && network.cluster != named {
                        return Err(Refusal::new(format!(
                            "overlayd: `--ipam-opt {NETWORK_OPTION}={name}` and `-o {NETWORK_OPTION}` name different \
                             networks; leave one of them out"
                        )));
                    }
                    network.cluster = named;
                }
                network.gateways.extend(known.map(|pool| (pool.prefix, gateway)));
                pools.push(pool);
            }
        }
        if pools.is_empty() {
            return Err(Refusal::new("overlayd: a network needs addresses; add --ipam-driver overlayd"));
        }
        network.joined = self.join_named(&network, deadline)?;
        let mut state = self.state.lock();
        state.networks.put(&request.network, network)?;
        for pool in pools {
            // What dockerd has asked for until now is the network's: its gateways and auxiliary addresses.
            state.pools.change(&pool, |pool| {
                pool.network = Some(request.network.clone());
                pool.addresses.values_mut().for_each(|given| given.fixed = true);
            })?;
        }
        drop(state);
        self.look_for_names();
        Ok(json!({}))
    }

    pub(super) fn delete_network(&self, request: &NetworkRequest) -> Result<Value, Refusal> {
        check_ids(&[&request.network])?;
        self.forget_network(&request.network)?;
        self.settle_quietly();
        Ok(json!({}))
    }

    /// Forgets a network with all that is left of it.
    pub(super) fn forget_network(&self, network: &str) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        let endpoints: Vec<String> =
            state.endpoints.iter().filter(|(_, one)| one.network == network).map(|(id, _)| id.clone()).collect();
        for id in endpoints {
            state.endpoints.change(&id, |endpoint| endpoint.deleted = true)?;
        }
        let is_its = |owner: &Option<String>| owner.as_deref() == Some(network);
        let pools: Vec<String> =
            state.pools.iter().filter(|(_, pool)| is_its(&pool.network)).map(|(id, _)| id.clone()).collect();
        for id in pools {
            state.pools.change(&id, super::state::Pool::release_all)?;
        }
        state.networks.change(network, |network| network.deleted = true)?;
        Ok(())
    }

    pub(super) fn create_endpoint(&self, call: &EndpointCall) -> Result<Value, Refusal> {
        check_ids(&[&call.network, &call.endpoint])?;
        let given = [address(&call.interface.address)?, address(&call.interface.address_v6)?];
        let addresses: Vec<IpAddr> = given.into_iter().flatten().collect();
        let mut state = self.state.lock();
        if state.network(&call.network).is_none() {
            return Err(Refusal::new(
                "overlayd: this network is not known; remove the Docker network and make it again",
            ));
        }
        if addresses.is_empty() {
            return Err(Refusal::new("overlayd: the container has no address; add --ipam-driver overlayd"));
        }
        for one in &addresses {
            if state.pool_of(*one).is_none() {
                return Err(Refusal::new(format!("overlayd: {one} was not given by this plugin")));
            }
            if let Some(other) = state.endpoint_of(*one).filter(|other| **other != call.endpoint) {
                let short: String = other.chars().take(12).collect();
                return Err(Refusal::new(format!("overlayd: {one} is taken: endpoint {short} has it")));
            }
        }
        let endpoint = Endpoint {
            network: call.network.clone(),
            addresses,
            sandbox: None,
            ports: ports(&call.options)?.unwrap_or_default(),
            labels: labels(&call.options)?,
            unpublishing: false,
            since: now_unix(),
            leads: false,
            deleted: false,
            names: Vec::new(),
            named: false,
        };
        state.endpoints.put(&call.endpoint, endpoint)?;
        // What dockerd gave must not come back.
        let answer = match call.interface.mac_address.as_str() {
            "" => json!({ "Interface": { "MacAddress": hardware_address(&call.endpoint) } }),
            _ => json!({ "Interface": {} }),
        };
        Ok(answer)
    }

    pub(super) fn join(&self, call: &EndpointCall, deadline: Deadline) -> Result<Value, Refusal> {
        check_ids(&[&call.network, &call.endpoint])?;
        let (endpoint, network) = self.known(call)?;
        let cluster = self.bind(&call.network, deadline)?;
        let leads = {
            let mut state = self.state.lock();
            let siblings = state.endpoints.iter().filter(|(id, one)| {
                let same = !call.sandbox_key.is_empty() && one.sandbox.as_deref() == Some(&call.sandbox_key);
                same && **id != call.endpoint && !one.deleted
            });
            let siblings: Vec<&Endpoint> = siblings.map(|(_, one)| one).collect();
            if let Some(name) = &cluster {
                refuse_twice(&state, &siblings, name)?;
            }
            let leads = !siblings.iter().any(|one| one.leads);
            // Before anything is made, so that it can be found again.
            state.endpoints.change(&call.endpoint, |endpoint| {
                endpoint.sandbox = Some(call.sandbox_key.clone());
                endpoint.leads = leads;
            })?;
            leads
        };
        let gateways: Vec<IpAddr> = endpoint.addresses.iter().filter_map(|address| network.gateway(*address)).collect();
        let request = EndpointRequest {
            name: endpoint_name(&call.endpoint),
            interface: INTERFACE.to_owned(),
            netns: call.sandbox_key.clone(),
            addresses: endpoint.addresses,
            owner: Some(format!("{OWNER}{}", call.network)),
            network: cluster.clone(),
            labels: endpoint.labels,
            engine: Some(EngineNetwork { gateways: gateways.clone(), mtu: network.mtu, internal: network.internal }),
        };
        let mut daemon = self.daemon(deadline)?;
        let book = daemon.addresses()?;
        let lease = prepare(&mut daemon, &request)?;
        let answer = routes_of(&mut daemon, cluster.as_deref(), &book, leads)
            .map(|overlay| join_answer(&lease, &gateways, &overlay))
            .and_then(|answer| daemon.commit(lease.lease).map(|()| answer));
        let answer = answer.inspect_err(|_| {
            // What cannot be undone now expires by itself.
            let _ = daemon.abort(lease.lease);
        })?;
        self.look_for_names();
        serde_json::to_value(answer).map_err(Refusal::unreadable)
    }

    pub(super) fn leave(&self, call: &EndpointCall) -> Result<Value, Refusal> {
        check_ids(&[&call.network, &call.endpoint])?;
        // dockerd takes the interface out of the container after this; the link goes with the endpoint.
        self.state.lock().endpoints.change(&call.endpoint, |endpoint| {
            endpoint.sandbox = None;
            endpoint.leads = false;
        })?;
        Ok(json!({}))
    }

    pub(super) fn delete_endpoint(&self, call: &EndpointCall) -> Result<Value, Refusal> {
        check_ids(&[&call.network, &call.endpoint])?;
        self.state.lock().endpoints.change(&call.endpoint, |endpoint| endpoint.deleted = true)?;
        self.settle_quietly();
        Ok(json!({}))
    }

    pub(super) fn known(&self, call: &EndpointCall) -> Result<(Endpoint, Network), Refusal> {
        let state = self.state.lock();
        let endpoint = state.endpoints.get(&call.endpoint).filter(|endpoint| !endpoint.deleted);
        match (endpoint, state.network(&call.network)) {
            (Some(endpoint), Some(network)) => Ok((endpoint.clone(), network.clone())),
            _ => Err(Refusal::new("overlayd: this endpoint is not known; start the container again")),
        }
    }
}

/// Prepares an endpoint; what an earlier call for it left is replaced.
fn prepare(daemon: &mut Daemon, request: &EndpointRequest) -> Result<EndpointLease, ControlError> {
    match daemon.prepare(request.clone()) {
        Err(error) if exists_already(&error) => {
            daemon.remove(&request.name)?;
            daemon.prepare(request.clone())
        }
        other => other,
    }
}

/// Two links into one network of the cluster would need the same routes, which dockerd refuses in words of its own.
fn refuse_twice(state: &State, siblings: &[&Endpoint], name: &str) -> Result<(), Refusal> {
    let is_same =
        |one: &&Endpoint| state.network(&one.network).is_some_and(|network| network.cluster.name() == Some(name));
    match siblings.iter().copied().find(|one| is_same(one)) {
        None => Ok(()),
        Some(one) => Err(Refusal::new(format!(
            "overlayd: the container is in network {name} of the cluster already, by Docker network {}",
            one.network.chars().take(12).collect::<String>()
        ))),
    }
}

/// What is reached over the link of an endpoint whatever the container's default route: the blocks of its network, so that
/// the container speaks there from its address of that network, and for the endpoint that leads all other hosts.
fn routes_of(
    daemon: &mut Daemon,
    cluster: Option<&str>,
    book: &AddressBook,
    leads: bool,
) -> Result<Vec<Prefix>, ControlError> {
    let others = if leads { elsewhere(&book.pool, &book.own) } else { Vec::new() };
    let Some(name) = cluster else { return Ok(others) };
    let hosts = daemon.show_network(name)?.map(|network| network.hosts).unwrap_or_default();
    let is_own = |block: &Prefix| book.own.iter().any(|own| own.covers(block));
    let mut blocks: Vec<Prefix> = hosts.into_iter().flat_map(|host| host.blocks).collect();
    blocks.retain(|block| !others.iter().any(|other| other.covers(block)) || is_own(block));
    blocks.sort_by_key(|block| (!is_own(block), *block));
    blocks.dedup();
    blocks.truncate(MAX_BLOCK_ROUTES);
    Ok([others, blocks].concat())
}

/// The overlay without this host's own prefixes. dockerd refuses a second network whose address a route of the first covers.
fn elsewhere(pool: &[Prefix], own: &[Prefix]) -> Vec<Prefix> {
    let mut found = Vec::new();
    let mut left: Vec<Prefix> = pool.to_vec();
    while let Some(prefix) = left.pop() {
        if own.iter().any(|own| own.covers(&prefix)) {
            continue;
        }
        match own.iter().any(|own| prefix.covers(own)).then(|| halves(prefix)).flatten() {
            Some(halves) => left.extend(halves),
            None => found.push(prefix),
        }
    }
    found.sort();
    found
}

fn halves(prefix: Prefix) -> Option<[Prefix; 2]> {
    let bits: u8 = if prefix.is_ipv4() { 32 } else { 128 };
    let rest = bits.checked_sub(prefix.len() + 1)?;
    let upper = prefix.nth(1u128.checked_shl(u32::from(rest))?)?;
    let half = |address| Prefix::truncating(address, prefix.len() + 1).ok();
    Some([half(prefix.addr())?, half(upper)?])
}

fn join_answer(lease: &EndpointLease, gateways: &[IpAddr], overlay: &[Prefix]) -> JoinAnswer {
    let text = |v6: bool| {
        let gateway = gateways.iter().find(|gateway| gateway.is_ipv6() == v6);
        gateway.map(ToString::to_string).unwrap_or_default()
    };
    let on_link = gateways.iter().map(|gateway| StaticRoute {
        destination: Prefix::host(*gateway).to_string(),
        route_type: 1,
        next_hop: String::new(),
    });
    // Neighbours on a bridge need no gateway.
    let near = lease.on_link.iter().map(|prefix| StaticRoute {
        destination: prefix.to_string(),
        route_type: 1,
        next_hop: String::new(),
    });
    let by_gateway = overlay.iter().filter(|prefix| !lease.on_link.contains(prefix)).filter_map(|prefix| {
        let gateway = gateways.iter().find(|gateway| gateway.is_ipv4() == prefix.is_ipv4())?;
        Some(StaticRoute { destination: prefix.to_string(), route_type: 0, next_hop: gateway.to_string() })
    });
    JoinAnswer {
        interface_name: InterfaceName { src_name: lease.peer_interface.clone(), dst_prefix: INTERFACE },
        gateway: text(false),
        gateway_v6: text(true),
        static_routes: on_link.chain(near).chain(by_gateway).collect(),
        disable_gateway_service: false,
    }
}

/// The pool of a network's data, and the gateway in it.
fn pool_of(state: &State, data: &PoolData) -> Result<(String, IpAddr), Refusal> {
    if data.address_space != SPACE {
        return Err(Refusal::new(format!(
            "overlayd: {} is not an address pool of the overlay; add --ipam-driver overlayd",
            data.pool.chars().take(64).collect::<String>()
        )));
    }
    let gateway = address(&data.gateway)?;
    let known = gateway.and_then(|gateway| Some((state.pool_of(gateway)?.clone(), gateway)));
    known.ok_or_else(|| Refusal::new("overlayd: the gateway was not given by this plugin; make the network again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> EndpointLease {
        EndpointLease {
            lease: 1,
            name: "docker-1".into(),
            host_interface: "ov1".into(),
            peer_interface: "op1".into(),
            interface: "eth".into(),
            addresses: vec![],
            gateways: vec![],
            network: None,
            on_link: vec![],
            mtu: 1420,
            expires_ms: 1,
        }
    }

    #[test]
    fn join_leads_over_the_gateway_and_to_other_hosts_whatever_the_default_route() {
        let gateways: Vec<IpAddr> = vec!["10.42.1.4".parse().unwrap(), "fd42::4".parse().unwrap()];
        let overlay: Vec<Prefix> = vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()];
        let answer = serde_json::to_value(join_answer(&lease(), &gateways, &overlay)).unwrap();
        assert_eq!(
            answer,
            json!({
                "InterfaceName": { "SrcName": "op1", "DstPrefix": "eth" },
                "Gateway": "10.42.1.4", "GatewayIPv6": "fd42::4", "DisableGatewayService": false,
                "StaticRoutes": [
                    { "Destination": "10.42.1.4/32", "RouteType": 1, "NextHop": "" },
                    { "Destination": "fd42::4/128", "RouteType": 1, "NextHop": "" },
                    { "Destination": "10.42.0.0/16", "RouteType": 0, "NextHop": "10.42.1.4" },
                    { "Destination": "fd42::/48", "RouteType": 0, "NextHop": "fd42::4" },
                ],
            })
        );
        let one_family = join_answer(&lease(), &gateways[..1], &overlay);
        assert_eq!((one_family.gateway_v6.as_str(), one_family.static_routes.len()), ("", 2));
    }

    #[test]
    fn routes_to_other_hosts_spare_the_own_prefix_and_nothing_else() {
        let prefixes = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<Prefix>>();
        let found =
            elsewhere(&prefixes(&["10.42.0.0/22", "fd42::/62"]), &prefixes(&["10.42.1.0/24", "fd42:0:0:1::/64"]));
        assert_eq!(found, prefixes(&["10.42.0.0/24", "10.42.2.0/23", "fd42::/64", "fd42:0:0:2::/63"]));
        assert_eq!(elsewhere(&prefixes(&["10.42.0.0/16"]), &[]), prefixes(&["10.42.0.0/16"]));
        assert!(elsewhere(&prefixes(&["10.42.0.0/16"]), &prefixes(&["10.42.0.0/16"])).is_empty());
        assert_eq!(
            elsewhere(&prefixes(&["10.42.0.0/16", "fd42::/48"]), &prefixes(&["10.42.1.0/24", "fd42:0:0:1::/64"])).len(),
            24
        );
    }

    #[test]
    fn options_are_read_or_refused_by_name() {
        let read = |value: Value| options(value.as_object().unwrap());
        let network = read(json!({ INTERNAL: true, GENERIC: { MTU: "1300", "com.docker.x": "y" } })).unwrap();
        assert_eq!((network.internal, network.mtu), (true, Some(1300)));
        assert!(read(json!({ GENERIC: null })).is_ok());
        assert_eq!(network.cluster, Cluster::OfItsName);
        assert_eq!(read(json!({ GENERIC: { "network": "web" } })).unwrap().cluster.name(), Some("web"));
        assert_eq!(read(json!({ GENERIC: { "network": "default" } })).unwrap().cluster, Cluster::Default);
        for bad in
            [json!({ "colour": "red" }), json!({ "network": "a/b" }), json!({ MTU: "12" }), json!({ MTU: "many" })]
        {
            assert!(read(json!({ GENERIC: bad })).is_err(), "{bad}");
        }
        assert_eq!(ports(json!({ PORTS: null }).as_object().unwrap()).unwrap(), None);
        assert!(ports(json!({ PORTS: [{ "Proto": "tcp" }] }).as_object().unwrap()).is_err());
    }

    #[test]
    fn options_of_an_endpoint_give_it_labels() {
        let read = |value: Value| labels(value.as_object().unwrap());
        let given = json!({ "overlay.label.role": "web", "overlay.label.a/b": "1", "com.docker.x": {}, "role": "no" });
        let wanted = Labels::from([("a/b".into(), "1".into()), ("role".into(), "web".into())]);
        assert_eq!(read(given).unwrap(), wanted);
        for bad in
            [json!({ "overlay.label.role": "we b" }), json!({ "overlay.label.": "x" }), json!({ "overlay.label.r": 7 })]
        {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn hardware_addresses_are_local_unicast_and_differ() {
        assert_ne!(hardware_address("a"), hardware_address("b"));
        assert!(hardware_address("a").starts_with("02:") && hardware_address("a").len() == 17);
    }
}

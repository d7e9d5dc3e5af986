//! ADD, DEL, CHECK, GC, STATUS and VERSION.

use std::collections::BTreeSet;

use overlay_control::api::{EndpointInfo, EndpointLease, EndpointRequest, EndpointState, link_alias};
use overlay_control::{Code, ControlError};
use serde_json::{Value, json};

use crate::attach::{self, Namespace};

use super::attachment;
use super::config::NetworkConfig;
use super::environment::Environment;
use super::error::{self, CniError};
use super::inspect::{self, Interface};
use super::labels;
use super::names;
use super::result;
use crate::daemon::Daemon;

/// Versions of the specification, oldest first.
pub const SUPPORTED: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What is printed for VERSION, whatever the body was.
pub(super) fn version(asked: &str) -> String {
    json!({ "cniVersion": asked, "supportedVersions": SUPPORTED }).to_string()
}

/// Carries out one command; what goes to standard output.
pub(super) fn run(verb: &str, config: &NetworkConfig, environment: &Environment) -> Result<String, CniError> {
    let since = |version: &str| {
        if config.is_at_least(version) {
            return Ok(());
        }
        let why = format!("it exists since {version}, the configuration asks for {}", config.version);
        Err(CniError::new(error::VERSION, format!("{verb} is not supported"), why))
    };
    match verb {
        "ADD" => add(config, environment).map(|result| result.to_string()),
        "DEL" => delete(config, environment).map(|()| String::new()),
        "CHECK" => since("0.4.0").and_then(|()| check(config, environment)).map(|()| String::new()),
        "GC" => since("1.1.0").and_then(|()| collect(config)).map(|()| String::new()),
        "STATUS" => since("1.1.0").and_then(|()| status(config)).map(|()| String::new()),
        _ => {
            let shown: String = verb.chars().take(32).collect();
            let why = "it must be ADD, DEL, CHECK, GC, STATUS or VERSION";
            Err(CniError::new(error::ENVIRONMENT, format!("CNI_COMMAND {shown:?} is unknown"), why))
        }
    }
}

fn add(config: &NetworkConfig, environment: &Environment) -> Result<Value, CniError> {
    let (container, interface) = environment.attachment()?;
    let netns = environment.namespace()?;
    let namespace = Namespace::named(netns);
    namespace.check().map_err(|error| CniError::from_api(&error, error::ENVIRONMENT))?;
    if config.previous.is_some() {
        let why = "it makes the interface that others work on; put it first in `plugins`";
        return Err(CniError::new(error::CONFIG, "overlay-cni must be the first of a chain", why));
    }
    let mac = config.mac(environment)?;
    let bandwidth = config.bandwidth()?;
    let mappings = config.mappings()?;
    let request = EndpointRequest {
        name: attachment::endpoint(&config.name, container, interface),
        interface: interface.to_owned(),
        netns: netns.to_owned(),
        addresses: config.addresses(environment)?,
        owner: Some(attachment::owner(&config.name)),
        engine: None,
        network: config.network()?,
        labels: labels::of(config, environment)?,
    };
    let mut daemon = Daemon::connect(&config.socket()).map_err(|error| down(&error))?;
    let lease = prepare(&mut daemon, &request)?;
    // Before the first packet: a limit that cannot be set fails the call.
    let limited = match bandwidth {
        Some((from, to)) => daemon.limit(lease.name.clone(), from, to).map_err(|error| down(&error)),
        None => Ok(()),
    };
    let configured = limited.and_then(|()| configure(&namespace, &lease, mac.as_deref())).and_then(|links| {
        let owner = attachment::owner(&config.name);
        for request in mappings.iter().flat_map(|mapping| mapping.requests(&owner, &lease)) {
            daemon.publish(request).map_err(|error| down(&error))?;
        }
        daemon.name(&lease.name, names::of(config, environment)).map_err(|error| down(&error))?;
        let dns = names::dns(config, &daemon.dns().map_err(|error| down(&error))?);
        daemon.commit(lease.lease).map_err(|error| down(&error))?;
        Ok((links, dns))
    });
    match configured {
        Ok(((host, inside), dns)) => Ok(result::added(config, &lease, netns, &host, &inside, dns)),
        Err(error) => {
            // The daemon removes its end and with it the other; if it cannot be asked, we do, and it notices.
            if daemon.abort(lease.lease).is_err() {
                attach::remove_link(&lease);
            }
            Err(error)
        }
    }
}

/// Prepares an endpoint. What an earlier call about the same attachment left is replaced, unless a container uses it.
fn prepare(daemon: &mut Daemon, request: &EndpointRequest) -> Result<EndpointLease, CniError> {
    let known = daemon.endpoints().map_err(|error| down(&error))?.into_iter().find(|one| one.name == request.name);
    if let Some(known) = known {
        let there = Namespace::named(&known.netns);
        let used = known.state == EndpointState::Attached
            && there.check().is_ok()
            && Interface::of(Some(&there), &known.interface)?.is_some();
        if used {
            let why = format!("it has {} in {}; DEL comes before another ADD", list(&known.addresses), known.netns);
            return Err(CniError::new(error::REFUSED, "the container is attached already", why));
        }
        daemon.remove(&request.name).map_err(|error| down(&error))?;
    }
    daemon.prepare(request.clone()).map_err(|error| down(&error))
}

/// Configures the container's end and reads back both ends: the host's, which is as it will be, meanwhile.
fn configure(
    namespace: &Namespace,
    lease: &EndpointLease,
    mac: Option<&str>,
) -> Result<(Interface, Interface), CniError> {
    let (configured, host) = std::thread::scope(|scope| {
        let host = scope.spawn(|| Interface::of(None, &lease.host_interface));
        (attach::configure(namespace, lease, mac), host.join())
    });
    configured.map_err(|error| CniError::from_api(&error, error::NAMESPACE))?;
    let host = host.unwrap_or_else(|_| Interface::of(None, &lease.host_interface));
    let gone =
        |name: &str| CniError::new(error::NAMESPACE, format!("{name} is gone again"), "somebody else removed it");
    let host = host?.ok_or_else(|| gone(&lease.host_interface))?;
    let inside = Interface::of(Some(namespace), &lease.interface)?.ok_or_else(|| gone(&lease.interface))?;
    Ok((host, inside))
}

/// Always ends with the container detached: without the daemon the link is removed here, and the daemon frees the
/// addresses once it sees that.
fn delete(config: &NetworkConfig, environment: &Environment) -> Result<(), CniError> {
    let (container, interface) = environment.attachment()?;
    let name = attachment::endpoint(&config.name, container, interface);
    let removed = Daemon::connect(&config.socket()).and_then(|mut daemon| daemon.remove(&name));
    match removed {
        Ok(true) => return Ok(()),
        // Gone already, or nobody there to ask.
        Ok(false) => (),
        Err(ControlError::Api(api)) if api.code.as_str() != Code::NotMember.name() => {
            return Err(CniError::from_control(&ControlError::Api(api), error::TRY_AGAIN));
        }
        Err(_) => (),
    }
    inspect::remove_link(&link_alias(&name, interface))
}

fn check(config: &NetworkConfig, environment: &Environment) -> Result<(), CniError> {
    let (container, interface) = environment.attachment()?;
    let namespace = Namespace::named(environment.namespace()?);
    let changed = |what: String, why: &str| Err(CniError::new(error::CHANGED, what, why));
    let Some(previous) = &config.previous else {
        let why = "CHECK compares with the result of ADD";
        return Err(CniError::new(error::CONFIG, "prevResult is missing", why));
    };
    let name = attachment::endpoint(&config.name, container, interface);
    let mut daemon = Daemon::connect(&config.socket()).map_err(|error| down(&error))?;
    let endpoints = daemon.endpoints().map_err(|error| down(&error))?;
    let Some(known) = endpoints.iter().find(|one| one.name == name && one.state == EndpointState::Attached) else {
        return changed(
            format!("the daemon has no endpoint {name}"),
            "it was removed, or the state was lost; DEL and ADD again",
        );
    };
    check_ports(config, &mut daemon, known)?;
    namespace.check().map_err(|error| CniError::from_api(&error, error::CHANGED))?;
    let Some(inside) = Interface::of(Some(&namespace), interface)? else {
        return changed(format!("{interface} is gone"), "somebody removed it inside the container");
    };
    let at = previous["interfaces"].as_array().into_iter().flatten().position(|shown| {
        shown["name"] == *interface && shown["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty())
    });
    let Some(at) = at else {
        return changed(format!("prevResult has no {interface} in a sandbox"), "it is not the result of this network");
    };
    let mac = previous["interfaces"][at]["mac"].as_str().unwrap_or_default();
    if !mac.is_empty() && !mac.eq_ignore_ascii_case(&inside.mac) {
        return changed(
            format!("{interface} has {} instead of {mac}", inside.mac),
            "somebody changed it inside the container",
        );
    }
    for address in &known.addresses {
        let text = format!("{address}/{}", result::host_length(*address));
        if !inside.has(*address, result::host_length(*address)) {
            return changed(format!("{interface} lacks {text}"), "somebody removed it inside the container");
        }
        let listed = previous["ips"].as_array().into_iter().flatten().any(|shown| shown["address"] == *text);
        if !listed {
            return changed(format!("prevResult lacks {text}"), "it is not the result of the last ADD");
        }
        if !inspect::has_default_route(&namespace, interface, address.is_ipv6())? {
            return changed(format!("there is no default route by {interface} for {address}"), "somebody removed it");
        }
    }
    Ok(())
}

/// Whether every port that the engine asked for leads to the container still.
fn check_ports(config: &NetworkConfig, daemon: &mut Daemon, known: &EndpointInfo) -> Result<(), CniError> {
    let wanted = config.mappings()?;
    if wanted.is_empty() {
        return Ok(());
    }
    let published = daemon.published().map_err(|error| down(&error))?;
    match wanted.iter().find(|mapping| !mapping.is_among(&published, &known.name)) {
        None => Ok(()),
        Some(mapping) => {
            let what = format!("port {mapping} does not lead to the container");
            Err(CniError::new(error::CHANGED, what, "somebody took it back; DEL and ADD again"))
        }
    }
}

/// Removes the endpoints of this network that the engine does not list. No list at all means that it knows nothing.
fn collect(config: &NetworkConfig) -> Result<(), CniError> {
    let Some(valid) = &config.valid else { return Ok(()) };
    let keep: BTreeSet<String> =
        valid.iter().map(|one| attachment::endpoint(&config.name, &one.container, &one.interface)).collect();
    let owner = attachment::owner(&config.name);
    let mut daemon = Daemon::connect(&config.socket()).map_err(|error| down(&error))?;
    let endpoints = daemon.endpoints().map_err(|error| down(&error))?;
    let mut failed = Vec::new();
    for stale in endpoints.into_iter().filter(|one| one.owner.as_ref() == Some(&owner) && !keep.contains(&one.name)) {
        if let Err(error) = daemon.remove(&stale.name) {
            failed.push(format!("{}: {error}", stale.name));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(CniError::new(error::TRY_AGAIN, "not everything could be removed", failed.join("; ")))
}

fn status(config: &NetworkConfig) -> Result<(), CniError> {
    // A daemon that does not run forwards nothing either.
    let cut_off = |error: &ControlError| CniError::from_control(error, error::UNAVAILABLE_AND_CUT_OFF);
    let mut daemon = Daemon::connect(&config.socket()).map_err(|error| cut_off(&error))?;
    match daemon.endpoints() {
        Ok(_) => Ok(()),
        Err(error @ ControlError::Api(_)) => {
            Err(CniError { code: error::UNAVAILABLE, ..CniError::from_control(&error, error::UNAVAILABLE) })
        }
        Err(error) => Err(cut_off(&error)),
    }
}

fn down(error: &ControlError) -> CniError {
    CniError::from_control(error, error::TRY_AGAIN)
}

fn list(addresses: &[std::net::IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

//! `overlayctl nat`: published ports.

use std::net::{IpAddr, SocketAddr};

use overlay_control::api::{
    ApiError, NatRequest, PortProtocol, PortSelector, PublishRequest, PublishedPort, Request, Response,
};
use overlay_control::codes::{Code, exit};

use super::Context;
use crate::args::{HostPort, Nat, Target};
use crate::output::{Failure, Outcome, unexpected};
use crate::table::Table;

pub(super) fn run(context: &mut Context<'_>, verb: Nat) -> Outcome {
    match verb {
        Nat::Publish { port, target, owner } => publish(context, port, &target, &owner),
        Nat::List => {
            let ports = ports(context, NatRequest::List)?;
            if context.output.json {
                context.output.object("nat-list", &serde_json::json!({ "ports": ports }))?;
            } else {
                context.output.table(&table(&ports), "no published ports")?;
            }
            Ok(exit::OK)
        }
        Nat::Unpublish { port, owner } => unpublish(context, port, owner),
    }
}

fn ports(context: &mut Context<'_>, request: NatRequest) -> Result<Vec<PublishedPort>, Failure> {
    match context.call(Request::Nat(request))? {
        Response::PublishedPorts(ports) => Ok(ports),
        other => Err(unexpected(&other)),
    }
}

fn publish(context: &mut Context<'_>, port: HostPort, target: &Target, owner: &str) -> Outcome {
    let targets = targets(context, port.ip, target)?;
    let protocol = port.protocol.unwrap_or(PortProtocol::Tcp);
    let before = ports(context, NatRequest::List)?;
    let mut published: Vec<PublishedPort> = Vec::new();
    let mut host_port = port.port;
    for target in targets {
        let request = PublishRequest { owner: owner.to_owned(), host_ip: port.ip, host_port, protocol, target };
        match ports(context, NatRequest::Publish(request)) {
            Ok(ports) => {
                published.extend(ports);
                // The second family gets the port that was found free for the first.
                host_port = published.last().map_or(host_port, |port| port.host_port);
            }
            Err(failure) => {
                // All families or none; what was there before stays.
                for port in published.iter().filter(|port| !before.contains(port)) {
                    let _ = ports(context, NatRequest::Unpublish(exactly(port)));
                }
                return Err(failure);
            }
        }
    }
    if context.output.json {
        let changed = published.iter().any(|port| !before.contains(port));
        context.output.object("nat-publish", &serde_json::json!({ "changed": changed, "ports": published }))?;
        return Ok(exit::OK);
    }
    for port in published {
        let word = if before.contains(&port) { "unchanged" } else { "published" };
        context.output.note(&format!("{word}: {port}"))?;
    }
    Ok(exit::OK)
}

/// The addresses behind a target, those only that the host's address can lead to.
fn targets(context: &mut Context<'_>, host: Option<IpAddr>, target: &Target) -> Result<Vec<SocketAddr>, Failure> {
    let (name, port) = match target {
        Target::Address(address) => return Ok(vec![*address]),
        Target::Endpoint(name, port) => (name, *port),
    };
    let endpoints = match context.call(Request::EndpointList)? {
        Response::Endpoints(endpoints) => endpoints,
        other => return Err(unexpected(&other)),
    };
    let addresses = endpoints.into_iter().find(|one| one.name == *name).map(|one| one.addresses).unwrap_or_default();
    let fits = |address: &IpAddr| host.is_none_or(|host| host.is_ipv4() == address.is_ipv4());
    let found: Vec<SocketAddr> = addresses.into_iter().filter(fits).map(|ip| SocketAddr::new(ip, port)).collect();
    if found.is_empty() {
        let why = "no endpoint of this host has this name and an address of the wanted family";
        let next = "see `overlayctl endpoint list`; a container of another host is named by its address";
        return Err(ApiError::new(Code::NotFound, format!("a port cannot lead to {name}"), why, next).into());
    }
    Ok(found)
}

fn exactly(port: &PublishedPort) -> PortSelector {
    let any = if port.target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    PortSelector {
        owner: Some(port.owner.clone()),
        host_ip: Some(port.host_ip.unwrap_or(any)),
        host_port: Some(port.host_port),
        protocol: Some(port.protocol),
    }
}

fn unpublish(context: &mut Context<'_>, port: Option<HostPort>, owner: Option<String>) -> Outcome {
    let selector = PortSelector {
        owner: owner.or_else(|| port.map(|_| "cli".to_owned())),
        host_ip: port.and_then(|port| port.ip),
        host_port: port.map(|port| port.port),
        protocol: port.and_then(|port| port.protocol),
    };
    // A port of somebody else is no reason for silence.
    if let Some(port) = port {
        let anyone = PortSelector { owner: None, ..selector.clone() };
        let meant: Vec<PublishedPort> =
            ports(context, NatRequest::List)?.into_iter().filter(|one| anyone.matches(one)).collect();
        if let Some(other) = meant.iter().find(|_| !meant.iter().any(|one| selector.matches(one))) {
            let what = format!("port {} was not published by {}", port.port, selector.owner.unwrap_or_default());
            let next = format!("stop what asked for it, or add `--owner {}`", other.owner);
            return Err(ApiError::new(Code::Conflict, what, format!("{} publishes {other}", other.owner), next).into());
        }
    }
    context.change(Request::Nat(NatRequest::Unpublish(selector)), "taken back")
}

fn table(ports: &[PublishedPort]) -> Table {
    let mut table = Table::new(&["PORT", "TARGET", "ENDPOINT", "OWNER"]);
    for port in ports {
        let any = if port.target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let host = SocketAddr::new(port.host_ip.unwrap_or(any), port.host_port);
        table.row(vec![
            format!("{host}/{}", port.protocol),
            port.target.to_string(),
            port.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
            port.owner.clone(),
        ]);
    }
    table
}

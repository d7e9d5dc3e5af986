//! `overlayctl endpoint`: attach and detach network namespaces.

use overlay_control::api::{
    ApiError, EndpointInfo, EndpointLease, EndpointRequest, EndpointState, LabelChange, Request, Response,
};
use overlay_control::codes::{Code, exit};
use overlay_plugins::attach::{self as netns_attach, Namespace};
use overlay_wire::gossip::Labels;
use overlay_wire::gossip::networks::DEFAULT_NETWORK;

use super::Context;
use crate::args::{Endpoint, EndpointAdd};
use crate::output::{Outcome, unexpected};
use crate::table::Table;
use crate::units;

pub(super) fn run(context: &mut Context<'_>, verb: Endpoint) -> Outcome {
    match verb {
        Endpoint::Add(add) => attach(context, add),
        Endpoint::Rm { name } => {
            let done = format!("endpoint {name} detached");
            context.change(Request::EndpointRemove { name }, &done)
        }
        Endpoint::Label { name, labels } => {
            let change = change(name, labels)?;
            let done = format!("the labels of {} are as asked", change.endpoint);
            context.change(Request::EndpointLabel(change), &done)
        }
        Endpoint::List => {
            let endpoints = match context.call(Request::EndpointList)? {
                Response::Endpoints(endpoints) => endpoints,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("endpoint-list", &serde_json::json!({ "endpoints": endpoints }))?;
            } else {
                context.output.table(&table(&endpoints), "no endpoints")?;
            }
            Ok(exit::OK)
        }
    }
}

fn table(endpoints: &[EndpointInfo]) -> Table {
    let mut table = Table::new(&["ENDPOINT", "STATE", "NETWORK", "ADDRESSES", "LINK", "INSIDE", "NAMESPACE", "LABELS"]);
    for endpoint in endpoints {
        let state = match endpoint.state {
            EndpointState::Prepared => "prepared",
            EndpointState::Attached => "attached",
            EndpointState::Gone => "gone",
        };
        table.row(vec![
            endpoint.name.clone(),
            state.to_owned(),
            endpoint.network.clone().unwrap_or_else(|| DEFAULT_NETWORK.to_owned()),
            units::list(&endpoint.addresses),
            endpoint.host_interface.clone(),
            endpoint.interface.clone(),
            endpoint.netns.clone(),
            units::list(&endpoint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()),
        ]);
    }
    table
}

fn attach(context: &mut Context<'_>, add: EndpointAdd) -> Outcome {
    let namespace = match (&add.netns, add.pid) {
        (Some(netns), _) => Namespace::named(netns),
        (None, Some(pid)) => Namespace::of_process(pid),
        (None, None) => return Err(missing().into()),
    };
    namespace.check()?;
    let name = match add.name.or_else(|| add.netns.as_deref().map(netns_attach::base_name)) {
        Some(name) => name,
        None => format!("pid-{}", add.pid.unwrap_or_default()),
    };
    let request = EndpointRequest {
        engine: None,
        name,
        interface: add.interface,
        netns: namespace.path().display().to_string(),
        addresses: add.addresses,
        owner: None,
        network: add.network,
        labels: labels(add.labels)?,
    };
    let lease = match context.call(Request::EndpointPrepare(request))? {
        Response::Lease(lease) => lease,
        other => return Err(unexpected(&other)),
    };
    if let Err(error) = netns_attach::configure(&namespace, &lease, None) {
        // The daemon removes its end, and with it the other; if it is gone too, we do.
        if context.call(Request::EndpointAbort { lease: lease.lease }).is_err() {
            netns_attach::remove_link(&lease);
        }
        return Err(error.into());
    }
    match context.call(Request::EndpointCommit { lease: lease.lease }) {
        Ok(Response::Done { .. }) => report(context, &lease),
        Ok(other) => Err(unexpected(&other)),
        Err(failure) => {
            netns_attach::remove_link(&lease);
            Err(failure)
        }
    }
}

/// Labels as they are typed.
fn labels(words: Vec<String>) -> Result<Labels, ApiError> {
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(no_label(&word, "a label is KEY=VALUE")),
    };
    words.into_iter().map(pair).collect()
}

/// What is to be given and taken away.
fn change(endpoint: String, words: Vec<String>) -> Result<LabelChange, ApiError> {
    let (given, taken): (Vec<String>, Vec<String>) = words.into_iter().partition(|word| word.contains('='));
    let key = |word: String| match word.strip_suffix('-') {
        Some(key) if !key.is_empty() => Ok(key.to_owned()),
        _ => Err(no_label(&word, "a label is KEY=VALUE, and KEY- takes it away")),
    };
    let remove = taken.into_iter().map(key).collect::<Result<_, _>>()?;
    Ok(LabelChange { endpoint, set: labels(given)?, remove })
}

fn no_label(word: &str, why: &str) -> ApiError {
    let shown: String = word.chars().take(64).flat_map(char::escape_debug).collect();
    ApiError::new(Code::Usage, format!("`{shown}` is no label"), why, "write it as in role=web")
}

fn missing() -> ApiError {
    ApiError::new(
        Code::Usage,
        "no namespace given",
        "an endpoint is a network namespace",
        "add --netns NAME or --pid PID",
    )
}

fn report(context: &mut Context<'_>, lease: &EndpointLease) -> Outcome {
    if context.output.json {
        context.output.object("endpoint", lease)?;
    } else {
        let addresses = units::list(&lease.addresses);
        context.output.note(&format!("endpoint {} attached: {} has {addresses}", lease.name, lease.interface))?;
    }
    Ok(exit::OK)
}

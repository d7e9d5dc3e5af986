//! What can be said of a call or an answer by its bytes alone: the first look at everything that comes from outside, for tests
//! that throw anything at it.

use super::call::Call;
use super::dockerd;
use super::message::EndpointCall;
use super::network::{address, check_ids, options, ports};
use super::refusal::Refusal;
use super::{cluster, ipam};

/// Reads a call as the plugin does before it looks at what it knows.
///
/// # Errors
/// What dockerd would be told.
pub fn look_at_call(path: &str, body: &[u8]) -> Result<(), String> {
    look(path, body).map_err(|refusal| refusal.to_string())
}

fn look(path: &str, body: &[u8]) -> Result<(), Refusal> {
    match Call::read(path, body)? {
        Call::RequestPool(request) => {
            cluster::of_options(&request.options)?;
            ipam::parse(&request.pool, "subnet")?;
            ipam::parse(&request.sub_pool, "range").map(drop)
        }
        Call::RequestAddress(request) | Call::ReleaseAddress(request) => address(&request.address).map(drop),
        Call::CreateNetwork(request) => {
            check_ids(&[&request.network])?;
            request.v4.iter().chain(&request.v6).try_for_each(|data| address(&data.gateway).map(drop))?;
            options(&request.options).map(drop)
        }
        Call::DeleteNetwork(request) => check_ids(&[&request.network]),
        Call::CreateEndpoint(call)
        | Call::DeleteEndpoint(call)
        | Call::Join(call)
        | Call::Leave(call)
        | Call::Publish(call)
        | Call::Unpublish(call) => look_at_endpoint(&call),
        _ => Ok(()),
    }
}

fn look_at_endpoint(call: &EndpointCall) -> Result<(), Refusal> {
    check_ids(&[&call.network, &call.endpoint])?;
    address(&call.interface.address)?;
    address(&call.interface.address_v6)?;
    ports(&call.options).map(drop)
}

/// Reads an answer of dockerd about a network and about a container; how many endpoints and aliases it named.
#[must_use]
pub fn look_at_answer(bytes: &[u8]) -> (usize, usize) {
    let network = dockerd::read_network(bytes).ok().flatten();
    let first = network.as_ref().and_then(|network| network.endpoints.keys().next().cloned()).unwrap_or_default();
    let aliases = dockerd::read_aliases(bytes, &first).ok().flatten();
    (network.map_or(0, |network| network.endpoints.len()), aliases.map_or(0, |aliases| aliases.len()))
}

//! `overlayctl network`: networks of the cluster.

use overlay_control::api::{NetworkCreate, NetworkInfo, NetworkRequest, Request, Response};
use overlay_control::codes::exit;

use super::Context;
use crate::args::Network;
use crate::output::{Outcome, unexpected};
use crate::table::Table;
use crate::units;

pub(super) fn run(context: &mut Context<'_>, verb: Network) -> Outcome {
    match verb {
        Network::Create(words) => {
            let done = format!("network {} made", words.name);
            let mode = words.mode.map(Into::into);
            let create = NetworkCreate { name: words.name, pool: words.pool, internal: words.internal, mode };
            context.change(Request::Network(NetworkRequest::Create(create)), &done)
        }
        Network::Rm { name } => {
            let done = format!("network {name} removed");
            context.change(Request::Network(NetworkRequest::Remove { name }), &done)
        }
        Network::List => {
            let networks = ask(context, NetworkRequest::List)?;
            if context.output.json {
                context.output.object("network-list", &serde_json::json!({ "networks": networks }))?;
            } else {
                context.output.table(&table(&networks), "no networks")?;
            }
            Ok(exit::OK)
        }
        Network::Show { name } => {
            let networks = ask(context, NetworkRequest::Show { name })?;
            for network in &networks {
                if context.output.json {
                    context.output.object("network", network)?;
                } else {
                    show(context, network)?;
                }
            }
            Ok(exit::OK)
        }
    }
}

fn ask(context: &mut Context<'_>, request: NetworkRequest) -> Result<Vec<NetworkInfo>, crate::output::Failure> {
    match context.call(Request::Network(request))? {
        Response::Networks(networks) => Ok(networks),
        other => Err(unexpected(&other)),
    }
}

fn kind(network: &NetworkInfo) -> String {
    let internal = if network.internal { " internal" } else { "" };
    format!("{}{internal}", network.mode.name())
}

fn hosts(network: &NetworkInfo) -> String {
    let names: Vec<&str> = network.hosts.iter().map(|host| host.host.as_str()).collect();
    if names.is_empty() { "all".to_owned() } else { names.join(", ") }
}

fn table(networks: &[NetworkInfo]) -> Table {
    let mut table = Table::new(&["NETWORK", "KIND", "POOL", "HERE", "HOSTS", "ENDPOINTS HERE"]);
    for network in networks {
        table.row(vec![
            network.name.clone(),
            kind(network),
            units::list(&network.pool),
            if network.here { "yes" } else { "no" }.to_owned(),
            hosts(network),
            network.endpoints.len().to_string(),
        ]);
    }
    table
}

fn show(context: &mut Context<'_>, network: &NetworkInfo) -> Result<(), crate::output::Failure> {
    let mut text = format!("network {}: {}\n", network.name, kind(network));
    if !network.pool.is_empty() {
        text.push_str(&format!("  pool       {}\n", units::list(&network.pool)));
    }
    text.push_str(&format!("  endpoints  {}\n", units::list(&network.endpoints)));
    network.notes.iter().for_each(|note| text.push_str(&format!("  note       {note}\n")));
    context.output.text(&text)?;
    if !network.hosts.is_empty() {
        let mut table = Table::new(&["HOST", "BLOCKS", "WANTS IT"]);
        for host in &network.hosts {
            table.row(vec![host.host.clone(), units::list(&host.blocks), host.wants.clone()]);
        }
        context.output.table(&table, "no hosts")?;
    }
    Ok(())
}

//! `overlayctl ipam`: the addresses of this host.

use overlay_control::api::{AddressState, IpamAddress, IpamRequest, IpamResponse, IpamUsage, Request, Response};
use overlay_control::codes::exit;

use super::Context;
use crate::args::Ipam;
use crate::output::{Failure, Outcome, unexpected};
use crate::table::Table;

pub(super) fn run(context: &mut Context<'_>, verb: Ipam) -> Outcome {
    let request = match verb {
        Ipam::Show => IpamRequest::Show,
        Ipam::List => IpamRequest::List,
        Ipam::Check { fix } => IpamRequest::Check { fix },
        Ipam::Release { address } => {
            return context.change(Request::Ipam(IpamRequest::Release { address }), "released");
        }
        Ipam::Reserve { address } => {
            return context.change(Request::Ipam(IpamRequest::Reserve { address }), "reserved");
        }
    };
    let answer = match context.call(Request::Ipam(request))? {
        Response::Ipam(answer) => answer,
        other => return Err(unexpected(&other)),
    };
    match answer {
        IpamResponse::Usage(blocks) => {
            let object = serde_json::json!({ "blocks": blocks });
            print(context, "ipam-show", &object, &usage(&blocks), "this host has no prefix")?;
            Ok(exit::OK)
        }
        IpamResponse::Addresses(list) => {
            let object = serde_json::json!({ "addresses": list });
            print(context, "ipam-list", &object, &addresses(&list), "no address is held")?;
            Ok(exit::OK)
        }
        IpamResponse::Findings(findings) => {
            let mut table = Table::new(&["FOUND", "PUT RIGHT"]);
            for finding in &findings {
                let outcome = match (&finding.why, finding.fixed) {
                    (_, true) => "yes".to_owned(),
                    (Some(why), false) => format!("no: {why}"),
                    (None, false) => "no".to_owned(),
                };
                table.row(vec![finding.what.clone(), outcome]);
            }
            let object = serde_json::json!({ "findings": findings });
            print(context, "ipam-check", &object, &table, "leases, links and addresses agree")?;
            Ok(if findings.iter().all(|finding| finding.fixed) { exit::OK } else { exit::DEGRADED })
        }
    }
}

fn print(
    context: &mut Context<'_>,
    schema: &str,
    object: &serde_json::Value,
    table: &Table,
    nothing: &str,
) -> Result<(), Failure> {
    if context.output.json {
        context.output.object(schema, object)?;
    } else {
        context.output.table(table, nothing)?;
    }
    Ok(())
}

fn usage(blocks: &[IpamUsage]) -> Table {
    let mut table = Table::new(&["PREFIX", "NETWORK", "USED", "RESTING", "RESERVED", "FREE"]);
    for block in blocks {
        table.row(vec![
            block.prefix.to_string(),
            block.network.clone(),
            block.used.to_string(),
            block.resting.to_string(),
            block.reserved.to_string(),
            if block.free == u64::MAX { "many".to_owned() } else { block.free.to_string() },
        ]);
    }
    table
}

fn addresses(list: &[IpamAddress]) -> Table {
    let mut table = Table::new(&["ADDRESS", "NETWORK", "STATE", "ENDPOINT", "OWNER"]);
    for address in list {
        let state = match (address.state, address.seconds) {
            (AddressState::Used, _) => "used".to_owned(),
            (AddressState::Resting, Some(seconds)) => format!("resting {seconds} s"),
            (AddressState::Resting, None) => "resting".to_owned(),
            (AddressState::Reserved, _) => "reserved".to_owned(),
        };
        table.row(vec![
            address.address.to_string(),
            address.network.clone(),
            state,
            address.endpoint.clone().unwrap_or_default(),
            address.owner.clone().unwrap_or_default(),
        ]);
    }
    table
}

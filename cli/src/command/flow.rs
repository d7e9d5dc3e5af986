//! `overlayctl flow`.

use overlay_control::api::{ApiError, Flow, FlowSelector, Request, Response};
use overlay_control::codes::{Code, exit};

use super::Context;
use crate::args::{self, FlowSelect};
use crate::output::{Failure, Outcome, unexpected};
use crate::table::Table;
use crate::units;

pub(super) fn run(context: &mut Context<'_>, verb: args::Flow) -> Outcome {
    match verb {
        args::Flow::List { select, limit } => {
            let (flows, more) = match context.call(Request::FlowList { selector: selector(select)?, limit })? {
                Response::Flows { flows, more } => (flows, more),
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("flow-list", &serde_json::json!({ "flows": flows, "more": more }))?;
                return Ok(exit::OK);
            }
            context.output.table(&table(&flows), "no flows")?;
            if more {
                context.output.note("there are more; narrow it down with --from, --to, --port or --peer")?;
            }
            Ok(exit::OK)
        }
        args::Flow::Kill { select, all } => {
            let selector = selector(select)?;
            if selector == FlowSelector::default() && !all {
                let why = "without a selector every flow of this host would be cut";
                let next = "add --from, --to, --port or --peer, or --all if that is what you want";
                return Err(ApiError::new(Code::Usage, "nothing selected", why, next).into());
            }
            let count = match context.call(Request::FlowKill { selector })? {
                Response::Killed { count } => count,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("flow-kill", &serde_json::json!({ "count": count }))?;
            } else {
                context.output.note(&format!("flows cut: {count}"))?;
            }
            Ok(exit::OK)
        }
    }
}

fn table(flows: &[Flow]) -> Table {
    let mut table = Table::new(&["PROTOCOL", "SOURCE", "DESTINATION", "STATE", "PEER", "SENT", "RECEIVED", "IDLE"]);
    for flow in flows {
        table.row(vec![
            flow.protocol.clone(),
            flow.source.clone(),
            flow.destination.clone(),
            flow.state.clone(),
            flow.peer.clone().unwrap_or_default(),
            units::bytes(flow.bytes),
            units::bytes(flow.reply_bytes),
            units::age(flow.idle_ms),
        ]);
    }
    table
}

fn selector(select: FlowSelect) -> Result<FlowSelector, Failure> {
    let protocol = select.protocol.as_deref().map(protocol).transpose()?;
    Ok(FlowSelector { from: select.from, to: select.to, protocol, port: select.port, peer: select.peer })
}

/// The number of a protocol name.
pub(super) fn protocol(name: &str) -> Result<u8, Failure> {
    match name {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        number => number.parse().map_err(|_| {
            let what = format!("`{number}` is not a protocol");
            let next = "write tcp, udp, icmp, icmpv6 or a number from 0 to 255";
            ApiError::new(Code::Usage, what, "protocols are named or numbered", next).into()
        }),
    }
}

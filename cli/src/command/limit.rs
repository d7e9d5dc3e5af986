//! `overlayctl limit`.

use overlay_control::api::{LimitInfo, LimitRate, LimitRequest, Request, Response};
use overlay_control::codes::exit;

use super::Context;
use crate::args::{Limit, LimitDirection};
use crate::output::{Outcome, unexpected};
use crate::table::Table;
use crate::units;

pub(super) fn run(context: &mut Context<'_>, verb: Limit) -> Outcome {
    match verb {
        Limit::Set { selector, rate, burst, pps, direction } => {
            let rate = LimitRate { bits: rate, burst, packets: pps };
            let (from, to) = match direction {
                LimitDirection::Both => (Some(rate), Some(rate)),
                LimitDirection::Egress => (Some(rate), None),
                LimitDirection::Ingress => (None, Some(rate)),
            };
            let done = format!("{selector} is limited");
            context.change(Request::Limit(LimitRequest::Set { selector, from, to }), &done)
        }
        Limit::Rm { selector } => {
            let done = format!("{selector} is not limited any more");
            context.change(Request::Limit(LimitRequest::Remove { selector }), &done)
        }
        Limit::List => {
            let limits = match context.call(Request::Limit(LimitRequest::List))? {
                Response::Limits(limits) => limits,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("limit-list", &serde_json::json!({ "limits": limits }))?;
            } else {
                context.output.table(&table(&limits), "no limits")?;
            }
            Ok(exit::OK)
        }
    }
}

fn table(limits: &[LimitInfo]) -> Table {
    let mut table = Table::new(&["LIMIT", "KIND", "ADDRESSES", "SENDS", "DROPPED", "GETS", "DROPPED"]);
    for limit in limits {
        table.row(vec![
            limit.selector.clone(),
            limit.kind.clone(),
            units::list(&limit.prefixes),
            words(limit.from),
            limit.dropped_from.to_string(),
            words(limit.to),
            limit.dropped_to.to_string(),
        ]);
    }
    table
}

fn words(rate: LimitRate) -> String {
    let bits = rate.bits.map(units::bit_rate);
    let burst = rate.burst.map(|burst| format!("burst {}", units::bytes(burst)));
    let packets = rate.packets.map(|packets| format!("{packets} packets/s"));
    [bits, burst, packets].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

//! `overlayctl route`.

use overlay_control::api::{ApiError, Refusal, Request, Response, RouteAdded, RouteEntry};
use overlay_control::codes::{Code, exit};

use super::Context;
use crate::args::{Route, prefix_or_address};
use crate::output::{Failure, Outcome, Output, unexpected};
use crate::table::Table;
use crate::units;

pub(super) fn run(context: &mut Context<'_>, verb: Route) -> Outcome {
    match verb {
        Route::List => {
            let routes = match context.call(Request::RouteList)? {
                Response::Routes(routes) => routes,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("route-list", &serde_json::json!({ "routes": routes }))?;
            } else {
                table(context.output, &routes, "no routes")?;
            }
            Ok(exit::OK)
        }
        Route::Get { address } => {
            let route = match context.call(Request::RouteGet { address })? {
                Response::Route(route) => route,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("route", &route)?;
            } else {
                let RouteEntry { prefix, owner, kind, reason, .. } = &route;
                context.output.line(&format!("{address} is in {prefix}, owned by {owner} ({kind}): {reason}"))?;
            }
            Ok(exit::OK)
        }
        Route::Add { prefix } => {
            let added = match context.call(Request::RouteAdd { prefix })? {
                Response::RouteAdded(added) => added,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("route-added", &added)?;
            } else if !context.output.quiet {
                announced(context.output, &added)?;
            }
            Ok(exit::OK)
        }
        Route::Rm { prefix } => context.change(Request::RouteRemove { prefix }, &format!("{prefix} withdrawn")),
        Route::Why { target } => why(context, &target),
    }
}

fn announced(output: &mut Output, added: &RouteAdded) -> Result<(), Failure> {
    let what = if added.changed { "announced" } else { "was announced already" };
    output.line(&format!("{} {what}", added.prefix))?;
    output.line(&format!("  accepted by  {}", units::list(&added.accepted_by)))?;
    if !added.unanswered.is_empty() {
        output.line(&format!("  no answer    {}", units::list(&added.unanswered)))?;
    }
    for refused in &added.refused_by {
        output.line(&format!("  refused by   {}: {}", refused.member, refused.why))?;
        if let Some(line) = &refused.missing_line {
            output.line(&format!("               missing there: {line}"))?;
        }
    }
    Ok(())
}

fn why(context: &mut Context<'_>, target: &str) -> Outcome {
    let prefix = prefix_or_address(target).map_err(|error| {
        ApiError::new(Code::Usage, error, "expected a prefix or an address", "write 10.42.1.0/24 or 10.42.1.5")
    })?;
    let why = match context.call(Request::RouteWhy { prefix })? {
        Response::RouteWhy(why) => why,
        other => return Err(unexpected(&other)),
    };
    let code = if why.candidates.iter().any(|candidate| candidate.best) { exit::OK } else { exit::NO_ROUTE };
    if context.output.json {
        context.output.object("route-why", &why)?;
        return Ok(code);
    }
    table(context.output, &why.candidates, &format!("nobody owns {}", why.query))?;
    for Refusal { prefix, owner, why, missing_line } in &why.refused {
        context.output.line(&format!("refused: {prefix} from {owner}: {why}"))?;
        if let Some(line) = missing_line {
            context.output.line(&format!("  missing: {line}"))?;
        }
    }
    Ok(code)
}

fn table(output: &mut Output, routes: &[RouteEntry], empty: &str) -> Result<(), Failure> {
    let mut table = Table::new(&["PREFIX", "OWNER", "KIND", "METRIC", "BEST", "REASON"]);
    for route in routes {
        table.row(vec![
            route.prefix.to_string(),
            route.owner.clone(),
            route.kind.clone(),
            route.metric.to_string(),
            if route.best { "yes" } else { "no" }.to_owned(),
            route.reason.clone(),
        ]);
    }
    output.table(&table, empty)
}

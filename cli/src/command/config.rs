//! `overlayctl config`.

use std::path::PathBuf;

use overlay_config::{Applies, Change, Config, Setting, defaults};
use overlay_control::api::{Request, Response};
use overlay_control::codes::exit;

use super::Context;
use crate::args;
use crate::output::{Failure, Outcome, Output, unexpected};
use crate::table::Table;
use crate::units;

/// The example that `config example` prints and a test keeps valid.
const EXAMPLE: &str = include_str!("../../../examples/overlayd.toml");

pub(super) fn run(context: &mut Context<'_>, verb: args::Config) -> Outcome {
    match verb {
        args::Config::Check { file } => {
            let path = file.unwrap_or_else(|| PathBuf::from(defaults::CONFIG_FILE));
            let config = Config::load(&path)?;
            if context.output.json {
                let value = serde_json::json!({ "file": path, "ok": true, "members": config.members.len() });
                context.output.object("config-check", &value)?;
            } else {
                context.output.note(&format!("{}: no problems", path.display()))?;
            }
            Ok(exit::OK)
        }
        args::Config::Show { origin } => {
            let settings = match context.call(Request::ConfigShow)? {
                Response::Settings(settings) => settings,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("config", &serde_json::json!({ "settings": settings }))?;
            } else {
                show(context.output, &settings, origin)?;
            }
            Ok(exit::OK)
        }
        args::Config::Diff => changes(context, Request::ConfigDiff, "no difference"),
        args::Config::Reload => changes(context, Request::ConfigReload, "reloaded, nothing changed"),
        args::Config::Example => {
            context.output.text(EXAMPLE)?;
            Ok(exit::OK)
        }
    }
}

fn show(output: &mut Output, settings: &[Setting], origin: bool) -> Result<(), Failure> {
    let mut table = if origin { Table::new(&["KEY", "VALUE", "ORIGIN"]) } else { Table::new(&["KEY", "VALUE"]) };
    for setting in settings {
        let mut row = vec![setting.key.clone(), setting.value.clone()];
        if origin {
            row.push(setting.origin.to_string());
        }
        table.row(row);
    }
    output.table(&table, "no settings")
}

fn changes(context: &mut Context<'_>, request: Request, none: &str) -> Outcome {
    let changes = match context.call(request)? {
        Response::Changes(changes) => changes,
        other => return Err(unexpected(&other)),
    };
    if context.output.json {
        context.output.object("config-changes", &serde_json::json!({ "changes": changes }))?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["KEY", "FROM", "TO", "APPLIES"]);
    for Change { key, from, to, applies } in &changes {
        let applies = match applies {
            Applies::Live => "at once",
            Applies::Restart => "at a restart",
        };
        table.row(vec![key.clone(), units::or_dash(from.as_ref()), units::or_dash(to.as_ref()), applies.to_owned()]);
    }
    context.output.table(&table, none)?;
    Ok(exit::OK)
}

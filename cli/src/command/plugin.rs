//! `overlayctl plugin`: plugins of container engines put in place and taken away. Works without a daemon.

use std::path::Path;

use overlay_control::api::ApiError;
use overlay_control::codes::{Code, exit};
use overlay_plugins::cni_install::{CniInstall, PLUGIN};

use super::Context;
use crate::args::{Cni, CniPlaces, Plugin};
use crate::output::Outcome;

pub(super) fn run(context: &mut Context<'_>, verb: Plugin) -> Outcome {
    let Plugin::Cni(verb) = verb;
    let changes = match verb {
        Cni::Install(places) => plan(context, places)?.install()?,
        Cni::Remove(places) => plan(context, places)?.remove()?,
    };
    if context.output.json {
        let object = serde_json::json!({ "changed": !changes.is_empty(), "notes": changes });
        context.output.object("change", &object)?;
    } else if changes.is_empty() {
        context.output.note("unchanged")?;
    } else {
        changes.iter().try_for_each(|change| context.output.note(change))?;
    }
    Ok(exit::OK)
}

fn plan(context: &Context<'_>, places: CniPlaces) -> Result<CniInstall, ApiError> {
    // The plugin is installed beside this program.
    let here = std::env::current_exe().and_then(std::fs::canonicalize).map_err(|error| {
        let next = format!("link {PLUGIN} into {} yourself", places.bin_dir.display());
        ApiError::new(Code::Io, "cannot tell where this program lies", error.to_string(), next)
    })?;
    let socket = (context.socket != Path::new(overlay_config::defaults::SOCKET)).then(|| context.socket.clone());
    Ok(CniInstall {
        program: here.with_file_name(PLUGIN),
        network: places.name,
        bin_dir: places.bin_dir,
        conf_dir: places.conf_dir,
        socket,
    })
}

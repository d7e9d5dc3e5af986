//! `overlayctl plugin`: plugins of container engines put in place and taken away. Works without a daemon.

use std::path::{Path, PathBuf};

use overlay_control::api::ApiError;
use overlay_control::codes::{Code, exit};
use overlay_plugins::cni_install::{self, CniInstall, PLUGIN};
use overlay_plugins::docker_install::{DockerInstall, PROGRAM};

use super::Context;
use crate::args::{Cni, CniPlaces, Docker, Plugin};
use crate::output::Outcome;

pub(super) fn run(context: &mut Context<'_>, verb: Plugin) -> Outcome {
    let changes = match verb {
        Plugin::Cni(Cni::Install(places)) => plan(context, places)?.install()?,
        Plugin::Cni(Cni::Remove(places)) => plan(context, places)?.remove()?,
        Plugin::Docker(Docker::Install) => docker_plan()?.install()?,
        Plugin::Docker(Docker::Remove) => docker_plan()?.remove()?,
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

/// A program that is installed beside this one.
fn beside(name: &str, next: String) -> Result<PathBuf, ApiError> {
    let here = std::env::current_exe()
        .and_then(std::fs::canonicalize)
        .map_err(|error| ApiError::new(Code::Io, "cannot tell where this program lies", error.to_string(), next))?;
    Ok(here.with_file_name(name))
}

fn docker_plan() -> Result<DockerInstall, ApiError> {
    Ok(DockerInstall { program: beside(PROGRAM, format!("start {PROGRAM} yourself"))? })
}

fn plan(context: &Context<'_>, places: CniPlaces) -> Result<CniInstall, ApiError> {
    let socket = (context.socket != Path::new(overlay_config::defaults::SOCKET)).then(|| context.socket.clone());
    let bin_dirs = match places.bin_dir {
        Some(directory) => vec![directory],
        None => cni_install::bin_dirs(Path::new(cni_install::CONTAINERD_CONFIG)),
    };
    Ok(CniInstall {
        program: beside(PLUGIN, format!("link {PLUGIN} into {} yourself", bin_dirs[0].display()))?,
        network: places.name,
        bin_dirs,
        conf_dir: places.conf_dir,
        socket,
    })
}

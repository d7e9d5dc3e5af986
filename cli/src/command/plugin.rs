//! `overlayctl plugin`: plugins of container engines put in place and taken away. Names for Docker need the daemon, the rest does not.

use std::path::{Path, PathBuf};

use overlay_control::api::ApiError;
use overlay_control::codes::{Code, exit};
use overlay_plugins::cni_install::{self, CniInstall, PLUGIN};
use overlay_plugins::docker_dns::{DockerDns, Names};
use overlay_plugins::docker_install::{DockerInstall, PROGRAM};

use super::Context;
use crate::args::{Cni, CniPlaces, Docker, DockerParts, Plugin};
use crate::output::{Failure, Outcome};

pub(super) fn run(context: &mut Context<'_>, verb: Plugin) -> Outcome {
    let changes = match verb {
        Plugin::Cni(Cni::Install(places)) => plan(context, places)?.install()?,
        Plugin::Cni(Cni::Remove(places)) => plan(context, places)?.remove()?,
        Plugin::Docker(Docker::Install(parts)) => docker_install(context, parts)?,
        Plugin::Docker(Docker::Remove(parts)) => docker_remove(parts)?,
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

/// The file first: what stands in its way is found before anything has changed.
fn docker_install(context: &mut Context<'_>, parts: DockerParts) -> Result<Vec<String>, Failure> {
    let mut changes = Vec::new();
    let file = DockerDns { file: parts.file };
    if !parts.no_dns {
        changes = file.install(&names_for_docker(context)?)?;
    }
    if !parts.no_units {
        match docker_plan().and_then(|plan| plan.install()) {
            Ok(more) => changes.extend(more),
            Err(error) => {
                if !changes.is_empty() {
                    file.remove()?;
                }
                return Err(error.into());
            }
        }
    }
    Ok(changes)
}

fn docker_remove(parts: DockerParts) -> Result<Vec<String>, Failure> {
    let mut changes = Vec::new();
    if !parts.no_dns {
        changes = DockerDns { file: parts.file }.remove()?;
    }
    if !parts.no_units {
        changes.extend(docker_plan()?.remove()?);
    }
    Ok(changes)
}

/// What the daemon says of its server of names.
fn names_for_docker(context: &mut Context<'_>) -> Result<Names, Failure> {
    let status = super::dns::status(context)?;
    if status.servers.is_empty() {
        let why = "this host does not answer questions about names";
        let next = "join the overlay first (`overlayctl status`), or leave the names out: --no-dns";
        return Err(ApiError::new(Code::Unsupported, "there is no server to tell dockerd of", why, next).into());
    }
    // Addresses of the host; dockerd takes either family.
    Ok(Names { servers: status.servers, search: format!("ctr.{}", status.domain) })
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

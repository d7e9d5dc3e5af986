//! `overlayctl dns`: the server of names, names of endpoints, and the host's own resolver.

use std::path::Path;
use std::process::{Command, Stdio};

use overlay_control::api::{ApiError, DnsRequest, DnsStatus, Request, Response};
use overlay_control::codes::{Code, exit};

use super::Context;
use crate::args::Dns;
use crate::output::{Failure, Outcome, unexpected};
use crate::units;

/// There while systemd-resolved runs.
const RESOLVED: &str = "/run/systemd/resolve/stub-resolv.conf";
/// The device of the overlay, unless the configuration names another.
const INTERFACE_KEY: &str = "overlay.interface";

pub(super) fn run(context: &mut Context<'_>, verb: Dns) -> Outcome {
    match verb {
        Dns::Status => {
            let status = status(context)?;
            if context.output.json {
                context.output.object("dns-status", &status)?;
                return Ok(exit::OK);
            }
            let shown =
                |servers: &[std::net::IpAddr]| if servers.is_empty() { "-".to_owned() } else { units::list(servers) };
            for line in [
                format!("domain      {}", status.domain),
                format!("servers     {}", shown(&status.servers)),
                format!("forward to  {}", shown(&status.forward)),
                format!("names       {} hosts, {} containers", status.hosts, status.containers),
                format!(
                    "queries     {} answered, {} passed on, {} refused",
                    status.answered, status.forwarded, status.refused
                ),
            ] {
                context.output.text(&format!("{line}\n"))?;
            }
            Ok(exit::OK)
        }
        Dns::Name { endpoint, names } => {
            let done =
                format!("{endpoint} is named {}", if names.is_empty() { "-".to_owned() } else { names.join(", ") });
            context.change(Request::Dns(DnsRequest::SetNames { endpoint, names }), &done)
        }
        Dns::Host { undo } => host(context, undo),
    }
}

pub(super) fn status(context: &mut Context<'_>) -> Result<DnsStatus, Failure> {
    match context.call(Request::Dns(DnsRequest::Status))? {
        Response::Dns(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

fn host(context: &mut Context<'_>, undo: bool) -> Outcome {
    let status = status(context)?;
    let interface = match context.call(Request::ConfigShow)? {
        Response::Settings(settings) => settings.into_iter().find(|setting| setting.key == INTERFACE_KEY),
        other => return Err(unexpected(&other)),
    };
    let interface = interface.map_or_else(|| "overlay0".to_owned(), |setting| setting.value);
    if Path::new(RESOLVED).exists() {
        let servers: Vec<String> = status.servers.iter().map(ToString::to_string).collect();
        let mut commands = vec![vec!["revert".to_owned(), interface.clone()]];
        if !undo {
            let domain = format!("~{}", status.domain);
            commands = vec![
                [vec!["dns".to_owned(), interface.clone()], servers].concat(),
                vec!["domain".to_owned(), interface.clone(), domain],
                vec!["default-route".to_owned(), interface, "false".to_owned()],
            ];
        }
        for words in commands {
            resolvectl(&words)?;
            context.output.note(&format!("resolvectl {}", words.join(" ")))?;
        }
        return Ok(exit::OK);
    }
    let server = status.servers.first().map(ToString::to_string).unwrap_or_default();
    if server.is_empty() {
        let why = "this host does not answer questions about names";
        return Err(
            ApiError::new(Code::Unsupported, "there is no server to ask", why, "see `overlayctl status`").into()
        );
    }
    let verb = if undo { "remove these lines from" } else { "add these lines at the top of" };
    context.output.text(&format!(
        "systemd-resolved does not run here, and overlayctl does not write resolv.conf; {verb} /etc/resolv.conf:\n\
         nameserver {server}\nsearch ctr.{}\n",
        status.domain
    ))?;
    Ok(exit::OK)
}

fn resolvectl(words: &[String]) -> Result<(), ApiError> {
    let failed = |why: String| {
        let next = "run it as root; `resolvectl status` shows what is set";
        ApiError::new(Code::Io, format!("`resolvectl {}` failed", words.join(" ")), why, next)
    };
    let output = Command::new("resolvectl").args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

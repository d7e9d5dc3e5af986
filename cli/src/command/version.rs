//! `overlayctl version`.

use overlay_control::api::{Request, Response};
use overlay_control::codes::exit;
use overlay_control::frame::PROTOCOL_VERSION;

use super::Context;
use crate::output::{Failure, Outcome, unexpected};

pub(super) fn run(context: &mut Context<'_>) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    // The program's own version is worth printing also when the daemon does not run.
    let daemon = match context.call(Request::Version) {
        Ok(Response::Version(version)) => Ok(version),
        Ok(other) => return Err(unexpected(&other)),
        Err(Failure::Api(error)) => Err(error),
        Err(other) => return Err(other),
    };
    if context.output.json {
        let program = serde_json::json!({ "version": own, "protocol": PROTOCOL_VERSION });
        let value = serde_json::json!({ "program": program, "daemon": daemon.as_ref().ok() });
        context.output.object("version", &value)?;
        return Ok(exit::OK);
    }
    context.output.line(&format!("overlayctl {own} (control protocol {PROTOCOL_VERSION})"))?;
    match daemon {
        Ok(daemon) => context.output.line(&format!(
            "overlayd   {} (control protocol {}), process {}, since {}",
            daemon.version, daemon.protocol, daemon.pid, daemon.started
        ))?,
        Err(error) => context.output.line(&format!("overlayd   -: {}", error.what))?,
    }
    Ok(exit::OK)
}

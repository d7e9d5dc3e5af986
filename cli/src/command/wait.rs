//! `overlayctl wait`.

use std::thread;
use std::time::{Duration, Instant};

use overlay_control::api::{ApiError, Request, Response};
use overlay_control::codes::{Code, exit};

use super::Context;
use crate::args::Wait;
use crate::output::{Failure, Outcome, unexpected};

/// How often the daemon is asked.
const POLL: Duration = Duration::from_millis(50);

pub(super) fn run(context: &mut Context<'_>, verb: Wait) -> Outcome {
    let Wait::Ready { timeout } = verb;
    let end = Instant::now() + timeout;
    loop {
        // A daemon that is still starting has no socket yet: that is waiting, not failing, until the time is over.
        let failure = match context.call(Request::WaitReady) {
            Ok(Response::Ready { ready: true, .. }) => break,
            Ok(Response::Ready { ready: false, missing }) => Failure::Api(ApiError::new(
                Code::NotReady,
                format!("not ready after {timeout:?}"),
                if missing.is_empty() { "still starting".to_owned() } else { missing.join("; ") },
                "`overlayctl status` shows the state of every peer",
            )),
            Ok(other) => return Err(unexpected(&other)),
            Err(Failure::Api(error))
                if matches!(Code::from_name(&error.code), Some(Code::NotRunning | Code::Timeout)) =>
            {
                context.disconnect();
                Failure::Api(error)
            }
            Err(other) => return Err(other),
        };
        if Instant::now() >= end {
            return Err(failure);
        }
        thread::sleep(POLL);
    }
    if context.output.json {
        context.output.object("ready", &serde_json::json!({ "ready": true }))?;
    } else {
        context.output.note("ready")?;
    }
    Ok(exit::OK)
}

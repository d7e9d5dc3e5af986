//! `overlayctl events`.

use overlay_control::api::{Request, Response, Severity};
use overlay_control::codes::exit;

use super::Context;
use crate::output::{Outcome, unexpected};

pub(super) fn run(context: &mut Context<'_>, count: Option<u64>) -> Outcome {
    match context.call(Request::EventsFollow)? {
        Response::Done { .. } => {}
        other => return Err(unexpected(&other)),
    }
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = context.client()?.next_event()?;
        if context.output.json {
            context.output.stream("event", &event)?;
        } else {
            let severity = match event.severity {
                Severity::Info => "info",
                Severity::Warn => "warn",
                Severity::Error => "error",
            };
            let subject = event.subject.as_deref().unwrap_or("-");
            context
                .output
                .line(&format!("{}  {severity:<5}  {}  {subject}  {}", event.time, event.kind, event.cause))?;
            context.output.flush()?;
        }
        left -= 1;
    }
    Ok(exit::OK)
}

//! `overlayctl ping`.

use std::thread;
use std::time::Duration;

use overlay_control::api::{PingProgress, PingReply, Request, Response};
use overlay_control::codes::exit;

use super::Context;
use crate::output::{Failure, Outcome, Output, unexpected};
use crate::units;

/// How often the daemon is asked for new answers.
const POLL: Duration = Duration::from_millis(50);

pub(super) fn run(context: &mut Context<'_>, target: String, count: u32, size: u16, interval: Duration) -> Outcome {
    let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    let id = match context.call(Request::PingStart { target, count, size, interval_ms })? {
        Response::PingStarted { id } => id,
        other => return Err(unexpected(&other)),
    };
    let mut shown = 0;
    let progress = loop {
        let progress = match context.call(Request::PingPoll { id })? {
            Response::Ping(progress) => progress,
            other => return Err(unexpected(&other)),
        };
        if !context.output.json {
            for reply in progress.replies.iter().skip(shown) {
                line(context.output, &progress, *reply, size)?;
            }
            shown = progress.replies.len();
            context.output.flush()?;
        }
        if progress.done {
            break progress;
        }
        thread::sleep(POLL);
    };
    let answered: Vec<u64> = progress.replies.iter().filter_map(|reply| reply.rtt_us).collect();
    let code = if answered.is_empty() { exit::PATH_DOWN } else { exit::OK };
    if context.output.json {
        context.output.object("ping", &progress)?;
        return Ok(code);
    }
    let (sent, received) = (progress.replies.len(), answered.len());
    let loss = if sent == 0 { 0.0 } else { (sent - received) as f64 * 100.0 / sent as f64 };
    let summary = match (answered.iter().min(), answered.iter().max()) {
        (Some(min), Some(max)) => {
            let mean = answered.iter().sum::<u64>() / answered.len() as u64;
            format!(
                ", round trip {} / {} / {} (least, mean, most)",
                units::rtt(*min),
                units::rtt(mean),
                units::rtt(*max)
            )
        }
        _ => String::new(),
    };
    context.output.line(&format!("{received} of {sent} answered, {} lost{summary}", units::percent(loss)))?;
    Ok(code)
}

fn line(output: &mut Output, progress: &PingProgress, reply: PingReply, size: u16) -> Result<(), Failure> {
    let peer = &progress.peer;
    let text = match reply.rtt_us {
        Some(us) => {
            let endpoint = progress.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
            let path = format!("{}{endpoint}", progress.encapsulation);
            format!("{size} bytes from {peer} over {path}: number {} in {}", reply.sequence, units::rtt(us))
        }
        None => format!("no answer from {peer}: number {}", reply.sequence),
    };
    output.line(&text)
}

//! `overlayctl trace`.

use std::time::Instant;

use overlay_control::api::{ApiError, CaptureRequest, Request, Response, Trace, TraceOutcome, TraceRequest, TraceStep};
use overlay_control::codes::{Code, exit};
use overlay_control::{Client, ControlError};

use super::{Context, capture, flow};
use crate::args::Trace as Words;
use crate::output::{Failure, Outcome, Output, unexpected};

pub(super) fn run(context: &mut Context<'_>, words: &Words) -> Outcome {
    let protocol = match words.protocol.as_deref() {
        None if words.dport.is_some() => Some(6),
        None => None,
        Some(name) => Some(flow::protocol(name)?),
    };
    let has_ports = matches!(protocol, Some(6 | 17));
    if has_ports != words.dport.is_some() {
        let (what, next) = if has_ports {
            ("tcp and udp need a port", "add --dport PORT")
        } else {
            ("this protocol has no ports", "leave --dport out, or add -p tcp or -p udp")
        };
        let why = "the filter may decide by the port";
        return Err(ApiError::new(Code::Usage, what, why, next).into());
    }
    let request = TraceRequest {
        from: words.from.clone(),
        to: words.to.clone(),
        protocol,
        source_port: words.sport,
        port: words.dport.unwrap_or(0),
        size: words.size,
        may_fragment: words.fragment,
        send: false,
    };
    let trace = ask(context, request.clone())?;
    let code = exit_code(trace.outcome);
    if words.live {
        // Watched before the packet is sent, so that it is seen.
        let mut watched = capture::begin(context, flow_of(&trace))?;
        let is_echo = matches!(trace.protocol, 1 | 58);
        let sent = if is_echo { ask(context, TraceRequest { send: true, ..request })?.sent } else { None };
        show(context.output, &Trace { sent, ..trace.clone() }, words)?;
        watch(context.output, &mut watched, words)?;
        return Ok(code);
    }
    show(context.output, &trace, words)?;
    Ok(code)
}

fn ask(context: &mut Context<'_>, request: TraceRequest) -> Result<Trace, Failure> {
    match context.call(Request::Trace(request))? {
        Response::Trace(trace) => Ok(*trace),
        other => Err(unexpected(&other)),
    }
}

fn exit_code(outcome: TraceOutcome) -> u8 {
    match outcome {
        TraceOutcome::Pass => exit::OK,
        TraceOutcome::Denied => exit::DENIED,
        TraceOutcome::NoRoute => exit::NO_ROUTE,
        TraceOutcome::PathDown => exit::PATH_DOWN,
        TraceOutcome::TooBig => exit::TOO_BIG,
        TraceOutcome::AntiSpoof => exit::ANTI_SPOOF,
        TraceOutcome::Dropped => exit::FAILED,
    }
}

/// Both directions of the flow.
fn flow_of(trace: &Trace) -> CaptureRequest {
    let Trace { from, to, protocol, port, .. } = trace;
    let mut filter = format!("host {from} and host {to} and proto {protocol}");
    if *port != 0 {
        filter.push_str(&format!(" and port {port}"));
    }
    CaptureRequest { filter, peer: None, container: None, verdict: None, back_ms: None, snaplen: 64 }
}

fn show(output: &mut Output, trace: &Trace, words: &Words) -> Result<(), Failure> {
    if output.json {
        return output.object("trace", trace);
    }
    let last = trace.steps.last().filter(|step| step.outcome != TraceOutcome::Pass);
    if words.why_not {
        match last {
            Some(step) => {
                output.line(&format!("{} by {} on {}: {}", verdict(step.outcome), step.step, step.host, step.text))?;
                if let Some(permit) = &step.permit {
                    output.line(&format!("  permitted by  {permit}"))?;
                }
            }
            None => output.line("nothing that is known refuses it")?,
        }
    } else {
        output.line(&trace.packet)?;
        let mut host = "";
        for step in &trace.steps {
            if host != step.host {
                host = &step.host;
                output.line(&format!("on {host}"))?;
            }
            show_step(output, step)?;
        }
        let ends = match (last, &trace.missing) {
            (Some(step), _) => format!("{}: by {} on {}", verdict(step.outcome), step.step, step.host),
            (None, Some(_)) => "passes as far as is known".to_owned(),
            (None, None) => "passes".to_owned(),
        };
        output.line(&ends)?;
    }
    if let Some(missing) = &trace.missing {
        output.line(&format!("  not known  {missing}"))?;
    }
    if let Some(sent) = &trace.sent {
        output.line(&format!("  live  {sent}"))?;
    }
    Ok(())
}

fn show_step(output: &mut Output, step: &TraceStep) -> Result<(), Failure> {
    let mark = if step.outcome == TraceOutcome::Pass { "pass" } else { "STOP" };
    output.line(&format!("  {mark}  {:<14} {}", step.step, step.text))?;
    match &step.permit {
        Some(permit) => output.line(&format!("        {:<14} {permit}", "permitted by")),
        None => Ok(()),
    }
}

fn verdict(outcome: TraceOutcome) -> &'static str {
    match outcome {
        TraceOutcome::Pass => "passes",
        TraceOutcome::Denied => "denied",
        TraceOutcome::NoRoute => "no route",
        TraceOutcome::PathDown => "path down",
        TraceOutcome::TooBig => "too big",
        TraceOutcome::AntiSpoof => "refused source",
        TraceOutcome::Dropped => "dropped",
    }
}

/// Shows what is decided about real packets of the flow.
fn watch(output: &mut Output, client: &mut Client, words: &Words) -> Result<(), Failure> {
    let end = Instant::now() + words.watch;
    let mut seen = 0;
    output.flush()?;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let captured = match client.next_captured(Some(left)) {
            Ok(Some(captured)) => captured,
            Ok(None) | Err(ControlError::Closed) => break,
            Err(error) => return Err(error.into()),
        };
        for packet in &captured.packets {
            seen += 1;
            if output.json {
                output.stream("trace-packet", packet)?;
            } else {
                let way = if packet.outbound { "out" } else { "in" };
                output.line(&format!("  live  {way:<3} {:>5} bytes  {}", packet.length, capture::words(packet)))?;
            }
        }
        output.flush()?;
    }
    if seen == 0 && !output.json {
        output.line("  live  no packet of this flow came by")?;
    }
    Ok(())
}

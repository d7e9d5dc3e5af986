//! `overlayctl status`.

use overlay_control::api::{ControlState, DataState, Health, PeerStatus, Problem, Request, Response, Status};
use overlay_control::codes::exit;

use super::Context;
use crate::output::{Failure, Outcome, Output, unexpected};
use crate::table::Table;
use crate::units;

/// Whether the exit code tells the health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    On,
    Off,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Full,
    Problems,
}

pub(crate) fn run(context: &mut Context<'_>, check: Check, view: View) -> Outcome {
    let status = match context.call(Request::Status)? {
        Response::Status(status) => *status,
        other => return Err(unexpected(&other)),
    };
    let output = &mut *context.output;
    if output.json {
        output.object("status", &status)?;
    } else {
        if view == View::Full {
            overview(output, &status)?;
        }
        problems(output, &status, view)?;
    }
    Ok(match (check, status.health) {
        (Check::Off, _) | (Check::On, Health::Healthy) => exit::OK,
        (Check::On, Health::Degraded) => exit::DEGRADED,
        (Check::On, Health::Unhealthy) => exit::UNHEALTHY,
    })
}

fn overview(output: &mut Output, status: &Status) -> Result<(), Failure> {
    let host = &status.host;
    let health = match status.health {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::Unhealthy => "unhealthy",
    };
    let ready = if status.ready { "" } else { ", starting" };
    output.line(&format!("{} in cluster {}: {health}{ready}", host.name, host.cluster))?;
    let device = format!("{} (MTU {}), UDP port {}", host.interface, host.mtu, host.listen_port);
    let drops: u64 = status.drops.values().sum();
    for (name, value) in [
        ("address", units::list(&host.addresses)),
        ("subnets", units::list(&host.prefixes)),
        ("announced", units::list(&host.announce)),
        ("device", device),
        ("containers", host.endpoints.to_string()),
        ("flows", format!("{} of {}", status.flows.count, status.flows.limit)),
        ("dropped", format!("{drops} packets{}", top_drops(status))),
    ] {
        output.line(&format!("  {name:<11} {value}"))?;
    }
    output.line("")?;
    peers(output, &status.peers)
}

/// The three most frequent reasons.
fn top_drops(status: &Status) -> String {
    let mut drops: Vec<_> = status.drops.iter().filter(|(_, count)| **count > 0).collect();
    drops.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    if drops.is_empty() {
        return String::new();
    }
    let top: Vec<String> = drops.iter().take(3).map(|(reason, count)| format!("{reason} {count}")).collect();
    format!(" ({})", top.join(", "))
}

/// The table of peers, shared with `peer list`.
pub(super) fn peers(output: &mut Output, peers: &[PeerStatus]) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "PEER",
        "SUBNET",
        "ENCAPSULATION",
        "ENDPOINT",
        "CONTROL",
        "DATA",
        "RTT",
        "LOSS",
        "HANDSHAKE",
        "SENT",
        "RECEIVED",
        "MTU",
    ]);
    for peer in peers {
        let subnet = match peer.subnets.as_slice() {
            [] => String::new(),
            [one] => one.to_string(),
            [one, more @ ..] => format!("{one} +{}", more.len()),
        };
        table.row(vec![
            peer.name.clone(),
            subnet,
            peer.encapsulation.to_string(),
            peer.endpoint.clone().unwrap_or_default(),
            control(peer.control).to_owned(),
            data(peer.data).to_owned(),
            peer.rtt_us.map(units::rtt).unwrap_or_default(),
            peer.loss_percent.map(units::percent).unwrap_or_default(),
            peer.handshake_age_ms.map(|ms| format!("{} ago", units::age(ms))).unwrap_or_default(),
            units::bytes(peer.tx_bytes),
            units::bytes(peer.rx_bytes),
            units::or_dash(peer.mtu),
        ]);
    }
    output.table(&table, "no peers: add [[member]] entries to the configuration")
}

pub(super) fn control(state: ControlState) -> &'static str {
    match state {
        ControlState::Up => "up",
        ControlState::Suspect => "suspect",
        ControlState::Down => "down",
        ControlState::Unknown => "unknown",
        ControlState::None => "-",
    }
}

pub(super) fn data(state: DataState) -> &'static str {
    match state {
        DataState::Up => "up",
        DataState::Down => "down",
        DataState::Idle => "idle",
    }
}

fn problems(output: &mut Output, status: &Status, view: View) -> Result<(), Failure> {
    let own = status.problems.iter().map(|problem| (None, problem));
    let theirs = status
        .peers
        .iter()
        .flat_map(|peer| peer.problems.iter().map(move |problem| (Some(peer.name.as_str()), problem)));
    let all: Vec<(Option<&str>, &Problem)> = own.chain(theirs).collect();
    if all.is_empty() {
        return if view == View::Problems { output.note("no problems") } else { Ok(()) };
    }
    for (index, (peer, problem)) in all.iter().enumerate() {
        if index > 0 || view == View::Full {
            output.line("")?;
        }
        super::status::problem(output, *peer, problem)?;
    }
    Ok(())
}

/// One problem, shared with `peer show`.
pub(super) fn problem(output: &mut Output, peer: Option<&str>, problem: &Problem) -> Result<(), Failure> {
    let whose = peer.map(|name| format!("{name}: ")).unwrap_or_default();
    output.line(&format!("problem[{}]: {whose}{}", problem.code, problem.what))?;
    output.line(&format!("  why: {}", problem.why))?;
    output.line(&format!("  next: {}", problem.next))
}

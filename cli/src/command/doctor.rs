//! `overlayctl doctor`.

use std::time::Duration;

use overlay_control::api::{DoctorMode, Finding, FindingStatus, Request, Response};
use overlay_control::codes::exit;

use super::Context;
use crate::output::{Failure, Outcome, Output, unexpected};

/// A peer is asked while the command waits, which takes longer than other answers.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is to be done, from the flags.
pub(super) fn mode(fix: bool, undo: bool) -> DoctorMode {
    match (fix, undo) {
        (true, _) => DoctorMode::Fix,
        (false, true) => DoctorMode::Undo,
        (false, false) => DoctorMode::Check,
    }
}

pub(super) fn run(context: &mut Context<'_>, mode: DoctorMode, peer: Option<String>) -> Outcome {
    context.client()?.set_timeout(TIMEOUT)?;
    let findings = match context.call(Request::Doctor { mode, peer })? {
        Response::Findings(findings) => findings,
        other => return Err(unexpected(&other)),
    };
    if context.output.json {
        context.output.object("doctor", &serde_json::json!({ "findings": findings }))?;
    } else {
        show(context.output, &findings)?;
    }
    let bad = findings.iter().any(|finding| finding.status == FindingStatus::Bad);
    Ok(if bad { exit::FAILED } else { exit::OK })
}

/// One finding in a sentence.
pub(super) fn sentence(finding: &Finding) -> String {
    format!("{}: {}", finding.check, finding.why)
}

fn show(output: &mut Output, findings: &[Finding]) -> Result<(), Failure> {
    let width = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    for finding in findings {
        let status = match finding.status {
            FindingStatus::Ok => "ok",
            FindingStatus::Bad => "bad",
            FindingStatus::Fixed => "fixed",
            FindingStatus::Undone => "undone",
            FindingStatus::Skipped => "skipped",
        };
        output.line(&format!("{:<width$}  {status:<7}  {}", finding.check, finding.why))?;
        if finding.status == FindingStatus::Bad
            && let Some(fix) = &finding.fix
        {
            output.line(&format!("{:<width$}  fix:     {fix}", ""))?;
        }
        if matches!(finding.status, FindingStatus::Bad | FindingStatus::Fixed)
            && let Some(undo) = &finding.undo
        {
            output.line(&format!("{:<width$}  undo:    {undo}", ""))?;
        }
    }
    let bad = findings.iter().filter(|finding| finding.status == FindingStatus::Bad).count();
    match bad {
        0 => output.note("nothing is wrong"),
        _ => output.note(&format!(
            "{bad} of {} checks are bad; `overlayctl doctor --fix` puts right what it can",
            findings.len()
        )),
    }
}

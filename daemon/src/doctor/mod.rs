//! `doctor`: what is wrong around the daemon, why it matters, the exact fix and its undo.
//!
//! Three parts: [`facts`] looks (and changes nothing), [`checks`] and [`asked`] are pure functions from facts to findings, [`remedy`]
//! applies fixes and journals how to take them back before it does so.

pub mod asked;
pub mod checks;
pub mod facts;
pub mod remedy;
#[cfg(test)]
mod tests;

use std::path::Path;

use overlay_control::api::{DoctorMode, Finding, FindingStatus};

pub use asked::{Asked, Carrier, Data, NoPath, Sizes, Udp};
pub use checks::{Check, Outcome};
pub use facts::{Facts, Inputs, Reach, gather, route_words};
pub use remedy::{Action, Remedies};

use crate::plumbing::PlumbingConfig;

/// What the largest encapsulation adds: WireGuard in UDP over IPv6 with its padding, in bytes.
pub const OVERHEAD_BYTES: u32 = 80;

/// Runs `doctor` in a mode; must run inside a tokio runtime.
pub async fn run(mode: DoctorMode, config: &PlumbingConfig, inputs: Inputs) -> Vec<Finding> {
    let mut remedies = Remedies::open(&config.state_dir);
    if mode == DoctorMode::Undo {
        return undo(&mut remedies);
    }
    let facts = gather(config, inputs).await;
    let found = checks::all(config, &facts);
    if mode == DoctorMode::Check {
        return found.into_iter().map(|check| finding(&check, check.status())).collect();
    }
    let applied: Vec<(Check, Result<(), String>)> = found
        .into_iter()
        .map(|check| {
            let result = fix(&check, &mut remedies);
            (check, result)
        })
        .collect();
    applied
        .into_iter()
        .map(|(check, result)| match result {
            Ok(()) if check.outcome == Outcome::Bad && !check.actions.is_empty() => {
                finding(&check, FindingStatus::Fixed)
            }
            Ok(()) => finding(&check, check.status()),
            Err(why) => {
                let mut finding = finding(&check, FindingStatus::Bad);
                finding.why = format!("{}; it could not be fixed from here: {why}", finding.why);
                finding
            }
        })
        .collect()
}

fn fix(check: &Check, remedies: &mut Result<Remedies, String>) -> Result<(), String> {
    if check.outcome != Outcome::Bad {
        return Ok(());
    }
    let remedies = remedies.as_mut().map_err(|why| why.clone())?;
    check.actions.iter().try_for_each(|action| remedies.apply(check.name, action))
}

fn undo(remedies: &mut Result<Remedies, String>) -> Vec<Finding> {
    let done = match remedies {
        Ok(remedies) => remedies.undo_all(),
        Err(why) => vec![("undo".to_owned(), String::new(), Err(why.clone()))],
    };
    done.into_iter()
        .map(|(check, command, result)| Finding {
            check,
            status: if result.is_ok() { FindingStatus::Undone } else { FindingStatus::Bad },
            why: result.err().unwrap_or_else(|| command.clone()),
            fix: (!command.is_empty()).then_some(command),
            undo: None,
        })
        .collect()
}

fn finding(check: &Check, status: FindingStatus) -> Finding {
    let joined = |commands: Vec<String>| (!commands.is_empty()).then(|| commands.join(" && "));
    let bad = check.outcome == Outcome::Bad;
    let advice = check.advice.clone().filter(|_| bad);
    Finding {
        check: check.name.to_owned(),
        status,
        why: check.why.clone(),
        fix: joined(check.actions.iter().map(Action::command).collect()).or(advice),
        undo: joined(check.actions.iter().rev().map(Action::undo_command).collect()),
    }
}

/// Where the undo journal of a state directory is.
#[must_use]
pub fn journal_path(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("doctor-undo.json")
}

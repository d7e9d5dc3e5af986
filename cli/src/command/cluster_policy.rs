//! `overlayctl policy` for the whole cluster: publish, wait for the hosts, confirm, go back, compare.

use std::time::{Duration, Instant};

use overlay_control::api::{
    ApiError, ClusterPolicyStatus, PolicyHost, PolicyHostState, PolicyRequest, PolicyStage, PolicyTexts, PolicyWritten,
    Request, Response,
};
use overlay_control::codes::{Code, exit};
use overlay_wire::policy::PolicySet;
use serde::Serialize;

use super::Context;
use crate::output::{Failure, Outcome, unexpected};
use crate::table::Table;
use crate::units;

/// How long a change waits for the hosts that answer.
const WAIT: Duration = Duration::from_secs(5);
/// How often it looks.
const POLL: Duration = Duration::from_millis(100);

/// What became of a change.
#[derive(Serialize)]
struct Change<'a> {
    notes: &'a [String],
    #[serde(flatten)]
    status: &'a ClusterPolicyStatus,
}

pub(super) fn apply(context: &mut Context<'_>, text: String, confirm: Option<Duration>) -> Outcome {
    write(context, PolicyRequest::Apply { text, confirm_s: confirm.map(seconds) })
}

pub(super) fn confirm(context: &mut Context<'_>) -> Outcome {
    write(context, PolicyRequest::Confirm)
}

pub(super) fn roll_back(context: &mut Context<'_>, revision: u64, confirm: Option<Duration>) -> Outcome {
    write(context, PolicyRequest::Rollback { revision, confirm_s: confirm.map(seconds) })
}

pub(super) fn status(context: &mut Context<'_>) -> Outcome {
    let status = ask(context)?;
    if context.output.json {
        context.output.object("policy-status", &status)?;
        return Ok(exit::OK);
    }
    let output = &mut *context.output;
    output.line(&headline(&status))?;
    let in_force = match status.in_force {
        0 => "this host's own policy".to_owned(),
        revision => format!("revision {revision}"),
    };
    output.line(&format!("in force here: {in_force}"))?;
    show_hosts(context, &status.hosts)?;
    if !status.history.is_empty() {
        let mut table = Table::new(&["REVISION", "BY", "WHAT", "RULES", "SEEN"]);
        for past in &status.history {
            table.row(vec![
                past.revision.to_string(),
                past.author.clone(),
                past.made.clone(),
                units::or_dash(past.rules),
                past.seen.to_string(),
            ]);
        }
        context.output.line("")?;
        context.output.table(&table, "")?;
    }
    Ok(exit::OK)
}

/// Lines of two policies, `-` for those of the first alone and `+` for those of the second alone.
pub(super) fn diff(context: &mut Context<'_>, file: Option<PolicySet>) -> Outcome {
    let texts = match context.call(Request::ClusterPolicy(PolicyRequest::Texts))? {
        Response::PolicyTexts(texts) => *texts,
        other => return Err(unexpected(&other)),
    };
    let PolicyTexts { revision, cluster, local } = texts;
    let (with, wanted) = match file {
        Some(policy) => ("file", policy),
        None => ("local", local),
    };
    let cluster = match cluster.map(|text| text.parse::<PolicySet>()) {
        Some(Ok(policy)) => lines(&policy),
        Some(Err(error)) => {
            let next = "use the overlayctl of the release of the host that published it";
            return Err(
                ApiError::new(Code::Policy, "the cluster's policy cannot be read", error.to_string(), next).into()
            );
        }
        None => Vec::new(),
    };
    let changes = differences(&cluster, &lines(&wanted));
    if context.output.json {
        let listed: Vec<_> =
            changes.iter().map(|(sign, line)| serde_json::json!({ "sign": sign, "line": line })).collect();
        let object = serde_json::json!({ "revision": revision, "with": with, "lines": listed });
        context.output.object("policy-diff", &object)?;
        return Ok(exit::OK);
    }
    if changes.iter().all(|(sign, _)| *sign == ' ') {
        context.output.note("no difference")?;
        return Ok(exit::OK);
    }
    let other = if with == "file" { "the file" } else { "this host's own policy" };
    context.output.line(&format!("--- the cluster's policy, revision {revision}"))?;
    context.output.line(&format!("+++ {other}"))?;
    changes.iter().try_for_each(|(sign, line)| context.output.line(&format!("{sign} {line}")))?;
    Ok(exit::OK)
}

fn seconds(span: Duration) -> u32 {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX)
}

fn ask(context: &mut Context<'_>) -> Result<ClusterPolicyStatus, Failure> {
    match context.call(Request::ClusterPolicy(PolicyRequest::Status))? {
        Response::ClusterPolicy(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// Publishes, then waits until every host that answers has said what it made of it.
fn write(context: &mut Context<'_>, request: PolicyRequest) -> Outcome {
    let written = match context.call(Request::ClusterPolicy(request))? {
        Response::PolicyWritten(written) => written,
        other => return Err(unexpected(&other)),
    };
    let until = Instant::now() + WAIT;
    let status = loop {
        let status = ask(context)?;
        overtaken(&written, &status)?;
        let is_settled = status.hosts.iter().all(|host| host.state != PolicyHostState::Waiting);
        if is_settled || Instant::now() >= until {
            break status;
        }
        std::thread::sleep(POLL);
    };
    let is_everywhere =
        status.hosts.iter().all(|host| matches!(host.state, PolicyHostState::InForce | PolicyHostState::Unreachable));
    let code = if is_everywhere { exit::OK } else { exit::DEGRADED };
    if context.output.json {
        context.output.object("policy-change", &Change { notes: &written.notes, status: &status })?;
        return Ok(code);
    }
    context.output.note(&headline(&status))?;
    written.notes.iter().try_for_each(|note| context.output.note(&format!("  {note}")))?;
    if !context.output.quiet || !is_everywhere {
        show_hosts(context, &status.hosts)?;
    }
    if status.stage == PolicyStage::OnTrial {
        context.output.note("keep it with: overlayctl policy confirm")?;
    }
    Ok(code)
}

/// Of two changes at once the same one counts on every host; the other is told so.
fn overtaken(written: &PolicyWritten, status: &ClusterPolicyStatus) -> Result<(), Failure> {
    if (status.revision, &status.hash) == (written.revision, &written.hash) {
        return Ok(());
    }
    let author = status.author.as_deref().unwrap_or("another host");
    Err(ApiError::new(
        Code::Conflict,
        format!("revision {} of the policy was overtaken", written.revision),
        format!("{author} published revision {} at the same time, and that one counts on all hosts", status.revision),
        "compare with `overlayctl policy diff FILE`, and apply again if that is still wanted",
    )
    .into())
}

fn headline(status: &ClusterPolicyStatus) -> String {
    let by = status.author.as_deref().unwrap_or("?");
    let made = status.made.as_deref().unwrap_or("unreadable here");
    let head = format!("revision {} by {by}: {made}", status.revision);
    let before = match status.previous {
        Some(0) | None => "each host's own policy".to_owned(),
        Some(revision) => format!("revision {revision}"),
    };
    match status.stage {
        PolicyStage::None => "the cluster has no policy: each host's own counts".to_owned(),
        PolicyStage::Settled => head,
        PolicyStage::OnTrial => {
            format!("{head}; back to {before} in {} s unless confirmed", status.left_s.unwrap_or(0))
        }
        PolicyStage::Lapsed => format!("{head}; not confirmed in time, back to {before}"),
    }
}

fn show_hosts(context: &mut Context<'_>, hosts: &[PolicyHost]) -> Result<(), Failure> {
    if hosts.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["HOST", "STATE", "REVISION", "SINCE", "WHY"]);
    for host in hosts {
        table.row(vec![
            host.name.clone(),
            host.state.name().to_owned(),
            units::or_dash(host.revision),
            host.age_s.map_or_else(|| "-".to_owned(), |age| units::age(age * 1000)),
            units::or_dash(host.why.as_ref()),
        ]);
    }
    context.output.table(&table, "")
}

fn lines(policy: &PolicySet) -> Vec<String> {
    policy.to_string().lines().map(str::to_owned).collect()
}

/// The longest common lines stay, in order; the order of rules decides, so a moved rule is one gone and one new.
fn differences(old: &[String], new: &[String]) -> Vec<(char, String)> {
    let head = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (old.get(head..).unwrap_or_default(), new.get(head..).unwrap_or_default());
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    let old_middle = old_rest.get(..old_rest.len() - tail).unwrap_or_default();
    let new_middle = new_rest.get(..new_rest.len() - tail).unwrap_or_default();
    let mut out: Vec<(char, String)> = old.iter().take(head).map(|line| (' ', line.clone())).collect();
    // Row by row from the end: how many lines are common from here on.
    let width = new_middle.len() + 1;
    let mut common = vec![0_u16; (old_middle.len() + 1) * width];
    for i in (0..old_middle.len()).rev() {
        for j in (0..new_middle.len()).rev() {
            common[i * width + j] = if old_middle[i] == new_middle[j] {
                common[(i + 1) * width + j + 1].saturating_add(1)
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old_middle.len() || j < new_middle.len() {
        if i < old_middle.len() && j < new_middle.len() && old_middle[i] == new_middle[j] {
            out.push((' ', old_middle[i].clone()));
            (i, j) = (i + 1, j + 1);
        } else if j == new_middle.len()
            || (i < old_middle.len() && common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            out.push(('-', old_middle[i].clone()));
            i += 1;
        } else {
            out.push(('+', new_middle[j].clone()));
            j += 1;
        }
    }
    out.extend(old.iter().skip(old.len() - tail).map(|line| (' ', line.clone())));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(old: &str, new: &str) -> String {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let signed = differences(&words(old), &words(new));
        signed.iter().map(|(sign, line)| format!("{sign}{line}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn differences_keep_what_is_common_in_order() {
        assert_eq!(shown("a b c", "a b c"), " a, b, c");
        assert_eq!(shown("", "a"), "+a");
        assert_eq!(shown("a", ""), "-a");
        assert_eq!(shown("a b c d", "a c x d"), " a,-b, c,+x, d");
        assert_eq!(shown("a b c", "c a b"), "+c, a, b,-c");
        assert_eq!(shown("a a", "a"), " a,-a");
    }
}

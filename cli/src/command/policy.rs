//! `overlayctl policy`.

use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use overlay_control::api::{ApiError, PolicyTest, PolicyView, Request, Response, TestVerdict, Verdict};
use overlay_control::codes::{Code, exit};
use overlay_wire::policy::PolicySet;

use super::{Context, cluster_policy, flow};
use crate::args::Policy;
use crate::output::{Failure, Outcome, Output, unexpected};

/// The largest file of rules read, in bytes.
const MAX_RULES_BYTES: u64 = 512 << 10;

pub(super) fn run(context: &mut Context<'_>, verb: Policy) -> Outcome {
    match verb {
        Policy::Show => {
            let policy = match context.call(Request::PolicyShow)? {
                Response::Policy(policy) => policy,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("policy", &policy)?;
            } else {
                show(context.output, &policy)?;
            }
            Ok(exit::OK)
        }
        Policy::Check { file } => {
            let policy = read(&file)?;
            let rules = policy.rules.len();
            match context.call(Request::PolicyCheck { policy })? {
                Response::Done { changed: _, notes } => {
                    if context.output.json {
                        context
                            .output
                            .object("policy-check", &serde_json::json!({ "rules": rules, "notes": notes }))?;
                    } else {
                        context.output.note(&format!("no problems, rules: {rules}"))?;
                        notes.iter().try_for_each(|note| context.output.note(&format!("  {note}")))?;
                    }
                    Ok(exit::OK)
                }
                other => Err(unexpected(&other)),
            }
        }
        Policy::Apply { file, confirm, local: false, reset: _ } => {
            let text = file.as_deref().map(read_text).transpose()?.unwrap_or_default();
            cluster_policy::apply(context, text, confirm)
        }
        Policy::Apply { file, confirm: _, local: true, reset: _ } => apply_local(context, file.as_deref()),
        Policy::Confirm => cluster_policy::confirm(context),
        Policy::Rollback { revision, confirm } => cluster_policy::roll_back(context, revision, confirm),
        Policy::Status => cluster_policy::status(context),
        Policy::Diff { file } => {
            let policy = file.as_deref().map(read).transpose()?;
            cluster_policy::diff(context, policy)
        }
        Policy::Test { from, to, protocol, source_port, local: _ } => {
            test(context, packet(from, to, &protocol, source_port)?)
        }
    }
}

/// Replaces this host's own policy.
fn apply_local(context: &mut Context<'_>, file: Option<&Path>) -> Outcome {
    let policy = file.map(read).transpose()?;
    let done = match &policy {
        Some(policy) => format!("policy applied, rules: {}", policy.rules.len()),
        None => "policy as in the configuration file".to_owned(),
    };
    let notes = match context.call(Request::PolicyApply { policy })? {
        Response::Done { changed, notes } if context.output.json => {
            context.output.object("change", &serde_json::json!({ "changed": changed, "notes": notes }))?;
            return Ok(exit::OK);
        }
        Response::Done { changed, notes } => {
            context.output.note(if changed { &done } else { "unchanged" })?;
            notes
        }
        other => return Err(unexpected(&other)),
    };
    // Warnings about rules that can never match, say.
    notes.iter().try_for_each(|note| context.output.note(&format!("  {note}")))?;
    Ok(exit::OK)
}

fn show(output: &mut Output, view: &PolicyView) -> Result<(), Failure> {
    let origin = match view.cluster {
        Some(revision) => format!("cluster revision {revision}"),
        None => view.origin.clone(),
    };
    output.line(&format!("default {} ({origin}, revision {})", view.policy.default, view.revision))?;
    for (index, rule) in view.policy.rules.iter().enumerate() {
        let hits = view.hits.get(index).map(|hits| format!("  # {hits} hits")).unwrap_or_default();
        output.line(&format!("{:>3}  {rule}{hits}", index + 1))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<PolicySet, Failure> {
    parse(path, &read_file(path)?)
}

/// The text of a file that holds a policy.
fn read_text(path: &Path) -> Result<String, Failure> {
    let text = read_file(path)?;
    parse(path, &text)?;
    Ok(text)
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if path == Path::new("-") {
        std::io::stdin().take(MAX_RULES_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_RULES_BYTES).read_to_string(&mut text))
    };
    result.map_err(|error| {
        ApiError::new(Code::Io, format!("cannot read {}", path.display()), error.to_string(), "check the path")
    })?;
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<PolicySet, Failure> {
    text.parse().map_err(|error| {
        let what = format!("{} holds no policy", path.display());
        let next =
            "one rule per line, as in `allow tcp/443 from any to 10.42.1.0/24`; `default members` sets the default";
        ApiError::new(Code::Policy, what, format!("{error}"), next).into()
    })
}

fn packet(from: IpAddr, to: IpAddr, text: &str, source_port: u16) -> Result<PolicyTest, Failure> {
    let usage = |what: String| {
        let why = "expected tcp/PORT, udp/PORT, icmp, icmpv6 or a protocol number";
        Failure::from(ApiError::new(
            Code::Usage,
            what,
            why,
            "write `overlayctl policy test 10.42.1.5 10.42.2.7 tcp/443`",
        ))
    };
    if from.is_ipv4() != to.is_ipv4() {
        return Err(usage(format!("{from} and {to} are of different families")));
    }
    let (name, port) = match text.split_once('/') {
        Some((name, port)) => (name, Some(port.parse::<u16>().map_err(|_| usage(format!("`{port}` is not a port")))?)),
        None => (text, None),
    };
    // `icmp` means the family's own, so that the default fits both.
    let name = if name == "icmp" && from.is_ipv6() { "icmpv6" } else { name };
    let protocol = flow::protocol(name)?;
    let has_ports = matches!(protocol, 6 | 17);
    if has_ports != port.is_some() {
        return Err(usage(format!("`{text}` {}", if has_ports { "has no port" } else { "cannot have a port" })));
    }
    Ok(PolicyTest { from, to, protocol, port, source_port: has_ports.then_some(source_port) })
}

fn test(context: &mut Context<'_>, test: PolicyTest) -> Outcome {
    let verdict = match context.call(Request::PolicyTest(test))? {
        Response::Verdict(verdict) => verdict,
        other => return Err(unexpected(&other)),
    };
    let code = if verdict.verdict == Verdict::Allow { exit::OK } else { exit::DENIED };
    if context.output.json {
        context.output.object("policy-test", &verdict)?;
        return Ok(code);
    }
    let TestVerdict { verdict, rule, reason, from_owner, to_owner, steps } = &verdict;
    let word = match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Reject => "reject",
    };
    match rule {
        Some(rule) => {
            context.output.line(&format!("{word} by rule {}: {}", rule.number, rule.rule))?;
            context.output.line(&format!("  why   {reason}"))?;
        }
        None => context.output.line(&format!("{word}: {reason}"))?,
    }
    for (name, owner) in [("from", from_owner), ("to", to_owner)] {
        if let Some(owner) = owner {
            context.output.line(&format!("  {name:<5} {owner}"))?;
        }
    }
    steps.iter().try_for_each(|step| context.output.line(&format!("  step  {step}")))?;
    Ok(code)
}

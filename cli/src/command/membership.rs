//! `overlayctl init`, `invite`, `join`, `leave` and `token`.

use std::collections::BTreeMap;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use overlay_control::api::{
    ApiError, DataState, DoctorMode, FindingStatus, InitRequest, InviteRequest, Joined, MembershipRequest,
    MembershipResponse, Problem, Request, Response, SecretText, Status, TokenInfo,
};
use overlay_control::codes::{Code, exit};

use super::{Context, doctor};
use crate::args::{Init, Invite, Join, Token};
use crate::output::{Failure, Outcome, unexpected};
use crate::table::Table;
use crate::units;

/// How often the daemon is asked while this host becomes a member.
const POLL: Duration = Duration::from_millis(50);
/// How long a founding host may take to start.
const INIT_LIMIT: Duration = Duration::from_secs(10);
/// The daemon's own limit is 25 s: other hosts are asked.
const SLOW: Duration = Duration::from_secs(30);
/// The largest token file read, in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

impl Context<'_> {
    /// Asks something about membership.
    pub(super) fn membership(&mut self, request: MembershipRequest) -> Result<Response, Failure> {
        let client = self.client()?;
        client.set_timeout(SLOW)?;
        Ok(client.call(Request::Membership(request))?)
    }

    /// Asks for a change of membership and prints what was done.
    pub(super) fn change_membership(&mut self, request: MembershipRequest, done: &str) -> Outcome {
        self.client()?.set_timeout(SLOW)?;
        self.change(Request::Membership(request), done)
    }
}

pub(super) fn init(context: &mut Context<'_>, words: Init) -> Outcome {
    let Init { cluster, pool, name, trusted_underlay, encapsulation, policy } = words;
    let request = InitRequest { cluster, name, pool, trusted_underlay, encapsulation, policy };
    let joined = joined(context, MembershipRequest::Init(request))?;
    await_member(context, INIT_LIMIT, Wait::Ready)?;
    let next =
        "`overlayctl invite` makes a token for the next host, `overlayctl ca export FILE` a backup of the authority";
    report(context, &joined, next)
}

pub(super) fn join(context: &mut Context<'_>, words: Join) -> Outcome {
    let Join { token, name, trusted_underlay, timeout } = words;
    let token = read_token(&token)?;
    let joined = joined(context, MembershipRequest::Join { token, name, trusted_underlay })?;
    await_member(context, timeout, Wait::Packets)?;
    report(context, &joined, "`overlayctl endpoint add` attaches a container")
}

pub(super) fn leave(context: &mut Context<'_>, keep_identity: bool) -> Outcome {
    context.change_membership(MembershipRequest::Leave { keep_identity }, "this host is a member no more")
}

pub(super) fn invite(context: &mut Context<'_>, words: Invite) -> Outcome {
    let Invite { uses, ttl, labels, subnets, name, allow_policy } = words;
    let request = InviteRequest {
        uses,
        ttl_s: ttl.as_secs(),
        labels: labels.iter().map(|text| label(text)).collect::<Result<BTreeMap<_, _>, _>>()?,
        subnets,
        name,
        may_change_policy: allow_policy,
    };
    let invitation = match context.membership(MembershipRequest::Invite(request))? {
        Response::Membership(MembershipResponse::Invitation(invitation)) => invitation,
        other => return Err(unexpected(&other)),
    };
    if context.output.json {
        context.output.object("invitation", &invitation)?;
    } else {
        // The token alone on standard output, so that it can be piped.
        context.output.line(invitation.token.reveal())?;
    }
    Ok(exit::OK)
}

pub(super) fn token(context: &mut Context<'_>, verb: Token) -> Outcome {
    match verb {
        Token::List => {
            let tokens = match context.membership(MembershipRequest::TokenList)? {
                Response::Membership(MembershipResponse::Tokens(tokens)) => tokens,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("token-list", &serde_json::json!({ "tokens": tokens }))?;
            } else {
                context.output.table(&table(&tokens), "no tokens: `overlayctl invite` makes one")?;
            }
            Ok(exit::OK)
        }
        Token::Revoke { id } => {
            let done = format!("token {id} is withdrawn");
            context.change_membership(MembershipRequest::TokenRevoke { id }, &done)
        }
    }
}

fn table(tokens: &[TokenInfo]) -> Table {
    let mut table = Table::new(&["TOKEN", "STATE", "USES LEFT", "EXPIRES", "NAME", "LABELS", "ADMITTED"]);
    for token in tokens {
        let labels: Vec<String> = token.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row(vec![
            token.id.clone(),
            token.state.clone(),
            token.uses_left.to_string(),
            token.expires.to_string(),
            units::or_dash(token.name.as_ref()),
            units::list(&labels),
            token.redeemed_by.len().to_string(),
        ]);
    }
    table
}

fn label(text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ApiError::new(
            Code::Usage,
            format!("`{text}` is not a label"),
            "a label is KEY=VALUE",
            "write `--label role=web`",
        )
        .into()),
    }
}

fn read_token(text: &str) -> Result<SecretText, Failure> {
    let mut token = String::new();
    let read = match (text, text.strip_prefix('@')) {
        ("-", _) => std::io::stdin().take(MAX_TOKEN_BYTES).read_to_string(&mut token),
        (_, Some(path)) => {
            std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut token))
        }
        _ => {
            token.push_str(text);
            Ok(0)
        }
    };
    read.map_err(|error| {
        let what = format!("cannot read the token from {}", text.trim_start_matches('@'));
        ApiError::new(Code::Io, what, error.to_string(), "check the path, or give the token itself")
    })?;
    Ok(SecretText::new(token.trim().to_owned()))
}

fn joined(context: &mut Context<'_>, request: MembershipRequest) -> Result<Joined, Failure> {
    match context.membership(request)? {
        Response::Membership(MembershipResponse::Joined(joined)) => Ok(joined),
        other => Err(unexpected(&other)),
    }
}

fn report(context: &mut Context<'_>, joined: &Joined, next: &str) -> Outcome {
    if context.output.json {
        context.output.object("joined", joined)?;
    } else {
        let Joined { cluster, name, prefixes, .. } = joined;
        context.output.note(&format!("{name} is a member of {cluster} with {}", units::list(prefixes)))?;
        context.output.note(&format!("next: {next}"))?;
    }
    Ok(exit::OK)
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The host is ready.
    Ready,
    /// A packet came back from at least one member.
    Packets,
}

/// Waits until this host carries packets; what stands in the way otherwise.
fn await_member(context: &mut Context<'_>, limit: Duration, wait: Wait) -> Result<(), Failure> {
    let end = Instant::now() + limit;
    let mut last: Option<Box<Status>> = None;
    loop {
        match context.call(Request::Status) {
            Ok(Response::Status(status)) => {
                let done = match wait {
                    Wait::Ready => status.ready,
                    Wait::Packets => status.peers.iter().any(|peer| peer.data == DataState::Up),
                };
                if done {
                    return Ok(());
                }
                last = Some(status);
            }
            Ok(other) => return Err(unexpected(&other)),
            // Between standby and membership the connection is closed, or the question comes a moment too early.
            Err(Failure::Api(error)) if is_passing(&error) => context.disconnect(),
            Err(other) => return Err(other),
        }
        if Instant::now() >= end {
            break;
        }
        thread::sleep(POLL);
    }
    Err(reasons(context, limit, last.as_deref()).into())
}

fn is_passing(error: &ApiError) -> bool {
    matches!(Code::from_name(&error.code), Some(Code::NotRunning | Code::NotMember | Code::Timeout))
}

/// What `status` and `doctor` say about a host that does not carry packets.
fn reasons(context: &mut Context<'_>, limit: Duration, status: Option<&Status>) -> ApiError {
    let mut whys = Vec::new();
    let mut next = None;
    if let Some(status) = status {
        let peers = status.peers.iter().flat_map(|peer| &peer.problems);
        for Problem { what, why, next: advice, .. } in status.problems.iter().chain(peers) {
            whys.push(format!("{what}: {why}"));
            next.get_or_insert_with(|| advice.clone());
        }
    }
    // The daemon's look around takes longer than other answers.
    let asked = context.client().and_then(|client| {
        client.set_timeout(SLOW)?;
        Ok(client.call(Request::Doctor { mode: DoctorMode::Check, peer: None })?)
    });
    if let Ok(Response::Findings(findings)) = asked {
        for finding in findings.into_iter().filter(|finding| finding.status == FindingStatus::Bad) {
            whys.push(doctor::sentence(&finding));
            next = finding.fix.or(next);
        }
    }
    if whys.is_empty() {
        whys.push("nothing is known to be wrong; the other host may be slow to answer".to_owned());
    }
    ApiError::new(
        Code::NotReady,
        format!("this host is a member, and no packet came back within {limit:?}"),
        whys.join("; "),
        next.unwrap_or_else(|| "`overlayctl status` and `overlayctl doctor` show more".to_owned()),
    )
}

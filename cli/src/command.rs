//! The commands.

mod authority;
mod capture;
mod cluster_policy;
mod config;
mod dns;
mod doctor;
mod endpoint;
mod events;
mod flow;
mod ipam;
mod key;
mod limit;
mod membership;
mod nat;
mod network;
mod passphrase;
mod peer;
mod ping;
mod plugin;
mod policy;
mod route;
mod status;
mod trace;
mod version;
mod wait;

use clap::CommandFactory;
use overlay_control::Client;
use overlay_control::api::{ApiError, Request, Response};
use overlay_control::codes::{Code, exit};

use crate::args::{Args, Command};
use crate::output::{Failure, Outcome, Output, unexpected};

/// What a command works with: the daemon, connected to when first needed.
pub(crate) struct Context<'a> {
    socket: std::path::PathBuf,
    client: Option<Client>,
    pub(crate) output: &'a mut Output,
}

impl Context<'_> {
    /// The connection to the daemon.
    pub(crate) fn client(&mut self) -> Result<&mut Client, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket)?,
        };
        Ok(self.client.insert(client))
    }

    /// A connection of its own, for a stream beside questions.
    pub(crate) fn another(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.socket)?)
    }

    /// Forgets a connection that failed; the next question opens a new one.
    pub(crate) fn disconnect(&mut self) {
        self.client = None;
    }

    /// Asks the daemon.
    pub(crate) fn call(&mut self, request: Request) -> Result<Response, Failure> {
        Ok(self.client()?.call(request)?)
    }

    /// Asks for a change and says what changed.
    pub(crate) fn change(&mut self, request: Request, done: &str) -> Outcome {
        let (changed, notes) = match self.call(request)? {
            Response::Done { changed, notes } => (changed, notes),
            other => return Err(unexpected(&other)),
        };
        if self.output.json {
            self.output.object("change", &serde_json::json!({ "changed": changed, "notes": notes }))?;
        } else {
            // The daemon's own words say more than ours.
            match (changed, notes.is_empty()) {
                (false, _) => self.output.note("unchanged")?,
                (true, true) => self.output.note(done)?,
                (true, false) => notes.iter().try_for_each(|note| self.output.note(note))?,
            }
        }
        Ok(exit::OK)
    }
}

/// Runs one command.
pub(crate) fn run(args: Args, output: &mut Output) -> Outcome {
    let mut context = Context { socket: args.global.socket, client: None, output };
    let context = &mut context;
    match args.command {
        None => status::run(context, status::Check::Off, status::View::Full),
        Some(Command::Status { check, problems }) => {
            let check = if check { status::Check::On } else { status::Check::Off };
            status::run(context, check, if problems { status::View::Problems } else { status::View::Full })
        }
        Some(Command::Init(words)) => membership::init(context, words),
        Some(Command::Invite(words)) => membership::invite(context, words),
        Some(Command::Join(words)) => membership::join(context, words),
        Some(Command::Leave { keep_identity }) => membership::leave(context, keep_identity),
        Some(Command::Token(verb)) => membership::token(context, verb),
        Some(Command::Cert(verb)) => authority::cert(context, verb),
        Some(Command::Node(verb)) => authority::node(context, verb),
        Some(Command::Ca(verb)) => authority::ca(context, verb),
        Some(Command::Peer(verb)) => peer::run(context, verb),
        Some(Command::Route(verb)) => route::run(context, verb),
        Some(Command::Policy(verb)) => policy::run(context, verb),
        Some(Command::Flow(verb)) => flow::run(context, verb),
        Some(Command::Endpoint(verb)) => endpoint::run(context, verb),
        Some(Command::Limit(verb)) => limit::run(context, verb),
        Some(Command::Dns(verb)) => dns::run(context, verb),
        Some(Command::Nat(verb)) => nat::run(context, verb),
        Some(Command::Network(verb)) => network::run(context, verb),
        Some(Command::Ipam(verb)) => ipam::run(context, verb),
        Some(Command::Plugin(verb)) => plugin::run(context, verb),
        Some(Command::Config(verb)) => config::run(context, verb),
        Some(Command::Ping { target, count, size, interval }) => ping::run(context, target, count, size, interval),
        Some(Command::Trace(words)) => trace::run(context, &words),
        Some(Command::Capture(words)) => capture::run(context, &words),
        Some(Command::Wait(verb)) => wait::run(context, verb),
        Some(Command::Doctor { fix, undo, peer }) => doctor::run(context, doctor::mode(fix, undo), peer),
        Some(Command::Events { follow: _, count }) => events::run(context, count),
        Some(Command::Version) => version::run(context),
        Some(Command::Key(verb)) => key::run(context, verb),
        Some(Command::Completion { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "overlayctl", &mut script);
            context.output.text(&String::from_utf8_lossy(&script))?;
            Ok(exit::OK)
        }
        Some(Command::Man { directory }) => {
            clap_mangen::generate_to(Args::command(), &directory).map_err(|error| {
                let what = format!("cannot write manual pages to {}", directory.display());
                ApiError::new(Code::Io, what, error.to_string(), "check that the directory exists and is writable")
            })?;
            Ok(exit::OK)
        }
    }
}

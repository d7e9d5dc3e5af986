//! overlayctl, the command line of the overlay network.
//!
//! Every command is a function from parsed arguments to output through [`output::Output`] and an exit code. Errors are
//! `error[CODE]: what`, `why:`, `next:` on standard error, or one JSON object with the same fields.

#![forbid(unsafe_code)]

mod args;
mod command;
mod output;
mod pcapng;
mod table;
mod units;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use overlay_control::api::ApiError;
use overlay_control::codes::{Code, exit};

use crate::args::Args;
use crate::output::{Failure, Output};

fn main() -> ExitCode {
    let json_wanted = std::env::args().any(|word| word == "--json" || word == "-j");
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // Help and version: asked for, so they go to standard output.
            let _ = error.print();
            return ExitCode::from(exit::OK);
        }
        Err(error) => return fail(&usage(&error), json_wanted),
    };
    let mut output = Output::new(&args.global);
    let json = args.global.json;
    let ended = command::run(args, &mut output).and_then(|code| output.flush().map(|()| code));
    match ended {
        Ok(code) => ExitCode::from(code),
        // The reader has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(exit::OK),
        Err(Failure::Output(error)) => {
            let error = ApiError::new(
                Code::Io,
                "cannot write the output",
                error.to_string(),
                "check where standard output goes",
            );
            fail(&error, json)
        }
        Err(Failure::Api(error)) => {
            // What was printed before the failure stays in front of it.
            let _ = output.flush();
            fail(&error, json)
        }
        Err(Failure::Problems(problems)) => {
            let _ = output.flush();
            // One line per problem; in JSON one object with all.
            let text = if json {
                let list: Vec<_> = problems.0.iter().map(output::problem_json).collect();
                serde_json::json!({ "code": Code::Config.name(), "problems": list }).to_string()
            } else {
                problems.to_string()
            };
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::from(Code::Config.exit())
        }
    }
}

fn fail(error: &ApiError, json: bool) -> ExitCode {
    let text = if json { output::error_json(error) } else { error.to_string() };
    // Standard error may be closed; there is nobody left to tell then.
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::from(error.exit())
}

fn usage(error: &clap::Error) -> ApiError {
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let more: Vec<&str> = text.lines().skip(1).map(str::trim).take_while(|line| !line.starts_with("Usage:")).collect();
    let more = more.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let why = if more.is_empty() { "the command line is not one of those known".to_owned() } else { more };
    ApiError::new(
        Code::Usage,
        first,
        why,
        "`overlayctl help` shows every command, `overlayctl help COMMAND` one of them",
    )
}

//! Passphrases: from a file that nobody else can read, or from the terminal without showing them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use overlay_config::secret;
use overlay_control::api::{ApiError, SecretText};
use overlay_control::codes::Code;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::output::Failure;

/// The shortest passphrase accepted for a new export: what it protects lets its reader admit any host.
const SHORTEST: usize = 8;

/// Whether the passphrase is new, and so typed twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    New,
    Known,
}

/// Reads a passphrase from a file, or asks for it on the terminal.
pub(super) fn read(file: Option<&Path>, purpose: Use) -> Result<SecretText, Failure> {
    let passphrase = match file {
        Some(path) => from_file(path)?,
        None => ask(purpose)?,
    };
    if purpose == Use::New && passphrase.chars().count() < SHORTEST {
        return Err(usage(
            "the passphrase is too short",
            "it protects the key that admits hosts",
            "use 8 characters or more",
        )
        .into());
    }
    Ok(SecretText::new(passphrase.to_string()))
}

fn from_file(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = secret::read(path).map_err(|error| {
        let next = "give a file of mode 0600 with the passphrase on its first line";
        ApiError::new(Code::Io, "cannot read the passphrase", error.to_string(), next)
    })?;
    let text = std::str::from_utf8(&bytes).ok().and_then(|text| text.lines().next()).unwrap_or_default();
    Ok(Zeroizing::new(text.to_owned()))
}

fn ask(purpose: Use) -> Result<Zeroizing<String>, Failure> {
    let first = prompt("passphrase: ")?;
    if purpose == Use::New && *prompt("again: ")? != *first {
        return Err(usage("the two passphrases differ", "one of them was mistyped", "try again").into());
    }
    Ok(first)
}

fn prompt(question: &str) -> Result<Zeroizing<String>, Failure> {
    let no_terminal = |error: String| {
        let next = "run it on a terminal, or give --passphrase-file PATH";
        Failure::from(usage("there is no terminal to ask for the passphrase", &error, next))
    };
    let terminal =
        File::options().read(true).write(true).open("/dev/tty").map_err(|error| no_terminal(error.to_string()))?;
    let before = tcgetattr(&terminal).map_err(|error| no_terminal(error.to_string()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    (&terminal).write_all(question.as_bytes())?;
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|error| no_terminal(error.to_string()))?;
    let mut line = Zeroizing::new(String::with_capacity(256));
    let read = BufReader::new(&terminal).read_line(&mut line);
    // The terminal must show what is typed again whatever came of the reading.
    let restored = tcsetattr(&terminal, OptionalActions::Flush, &before);
    (&terminal).write_all(b"\n")?;
    read?;
    restored.map_err(|error| no_terminal(error.to_string()))?;
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

fn usage(what: &str, why: &str, next: &str) -> ApiError {
    ApiError::new(Code::Usage, what, why, next)
}

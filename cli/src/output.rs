//! What commands print: text for people, JSON for programs, and how they fail.

use std::io::{self, BufWriter, Stdout, Write};

use overlay_config::{Problem, Problems};
use overlay_control::ControlError;
use overlay_control::api::{ApiError, Response};
use serde::Serialize;

use crate::args::Global;
use crate::table::Table;

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error with code, what, why and next.
    Api(ApiError),
    /// Problems of a configuration.
    Problems(Problems),
    /// Standard output failed.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::Api(error.to_api())
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Problems(problems)
    }
}

/// An exit code, or why the command failed.
pub(crate) type Outcome = Result<u8, Failure>;

/// The failure of a daemon that answers something else.
pub(crate) fn unexpected(response: &Response) -> Failure {
    ControlError::Unexpected(response.name()).into()
}

/// Standard output in the form asked for.
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    out: BufWriter<Stdout>,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        Self { json: global.json, quiet: global.quiet, out: BufWriter::new(io::stdout()) }
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }

    /// Prints one line.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        Ok(writeln!(self.out, "{}", printable(text))?)
    }

    /// Prints text as it is.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        Ok(self.out.write_all(text.as_bytes())?)
    }

    /// Prints a line that says what was done, unless quiet or JSON.
    pub(crate) fn note(&mut self, text: &str) -> Result<(), Failure> {
        if self.quiet || self.json { Ok(()) } else { self.line(text) }
    }

    /// Prints a table, or `empty` when it has no rows.
    pub(crate) fn table(&mut self, table: &Table, empty: &str) -> Result<(), Failure> {
        if table.is_empty() {
            return self.note(empty);
        }
        table.lines().iter().try_for_each(|line| self.line(line))
    }

    /// Prints an object as JSON with its schema, `overlay.NAME/v1`.
    pub(crate) fn object(&mut self, name: &str, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(&with_schema(name, value)?).map_err(io::Error::from)?;
        self.text(&text)?;
        self.text("\n")
    }

    /// Prints an object as one line of JSON at once, for streams.
    pub(crate) fn stream(&mut self, name: &str, value: &impl Serialize) -> Result<(), Failure> {
        let text = with_schema(name, value)?.to_string();
        self.text(&text)?;
        self.text("\n")?;
        self.flush()
    }
}

fn with_schema(name: &str, value: &impl Serialize) -> Result<serde_json::Value, Failure> {
    let mut value = serde_json::to_value(value).map_err(io::Error::from)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("schema".to_owned(), format!("overlay.{name}/v1").into());
    }
    Ok(value)
}

/// Text without control characters: names come from other hosts and must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// An error as one JSON object.
pub(crate) fn error_json(error: &ApiError) -> String {
    serde_json::json!({ "code": error.code, "what": error.what, "why": error.why, "next": error.next }).to_string()
}

/// A configuration problem as JSON.
pub(crate) fn problem_json(problem: &Problem) -> serde_json::Value {
    serde_json::json!({
        "file": &*problem.place.file,
        "line": problem.place.line,
        "key": problem.key,
        "what": problem.what,
        "expected": problem.expected,
    })
}

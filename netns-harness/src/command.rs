//! Running the system's tools, with errors that name the command and show what it said.

use anyhow::{Context as _, Result, bail};
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::netns::{self, View};

/// Runs a command to its end and returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| not_started(command))?;
    printed(command, output)
}

/// Runs a program inside a namespace to its end and returns what it printed.
pub fn run_in(view: &View, argv: &[&str]) -> Result<String> {
    let mut command = netns::command(view, argv)?;
    run(&mut command)
}

/// Runs `ip` with the words of one line.
pub fn ip(line: &str) -> Result<String> {
    run(Command::new("ip").args(line.split_whitespace()))
}

/// Runs many `ip` lines in one namespace by one process.
pub fn ip_batch(namespace: &str, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "-batch", "-"]);
    feed(&mut command, &lines.join("\n")).with_context(|| format!("ip batch:\n{}", lines.join("\n")))?;
    Ok(())
}

/// Applies an nft script in one namespace, whole or not at all.
pub fn nft(namespace: &str, script: &str) -> Result<()> {
    let mut command = netns::command(&View::of(namespace), &["nft", "-f", "-"])?;
    feed(&mut command, script).with_context(|| format!("nft script:\n{script}"))?;
    Ok(())
}

fn feed(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| not_started(command))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
        stdin.write_all(b"\n")?;
    }
    let output = child.wait_with_output()?;
    printed(command, output)
}

fn printed(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{} ended with {}\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn not_started(command: &Command) -> String {
    format!("{} could not be started", shown(command))
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

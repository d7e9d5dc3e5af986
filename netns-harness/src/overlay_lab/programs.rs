//! The test programs of the workspace: built once, and run one, or two, at a time.
//!
//! Every program is built by one `cargo build` over the whole workspace, so that each dependency is compiled with one set of
//! features; a `cargo test -p` for each part would compile most of them again.

use anyhow::{Context as _, Result, bail};
use overlay_netns_harness::workspace;
use serde::Deserialize;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

/// The directory of the package whose tests make clusters.
const SYSTEM: &str = "tests";
/// System tests that hold times and rates against a figure, and so share the machine with no other.
const ALONE: [&str; 8] = [
    "containers_figures",
    "crash",
    "harness",
    "interop_wireguard",
    "limits",
    "membership_figures",
    "startup",
    "streams",
];
/// System tests that take longest begin first, so that no lane waits long for the other.
const LONGEST: [&str; 6] = ["docker", "cluster_policy", "endpoints", "containerd", "host_policy", "mtu"];
/// System tests that run at once: most of their time they wait for a daemon.
const LANES: usize = 2;

/// What was built.
pub(crate) struct Built {
    programs: Vec<Program>,
    /// Where `overlayd`, `overlayctl` and the plugins lie.
    directory: PathBuf,
}

#[derive(Debug, Clone)]
struct Program {
    /// The directory of its package.
    home: PathBuf,
    /// As cargo calls it: that of a library or program with unit tests, or of a file under `tests`.
    name: String,
    path: PathBuf,
}

impl Program {
    fn is_system(&self) -> bool {
        self.home.ends_with(SYSTEM)
    }
}

/// What one program did.
pub(crate) struct Ran {
    /// The directory of its package and its own name, as `tests/join`.
    pub(crate) name: String,
    /// What it printed, both streams.
    pub(crate) output: String,
    /// Whether it ended with success.
    pub(crate) succeeded: bool,
    /// How long it ran.
    pub(crate) took: Duration,
}

/// One line of cargo's messages, of which only this is of interest.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds every program and every test of the workspace.
pub(crate) fn build() -> Result<Built> {
    let mut child = cargo()
        .args(["build", "--quiet", "--workspace", "--bins", "--tests", "--message-format=json-render-diagnostics"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo could not be started")?;
    let mut programs = Vec::new();
    let mut directory = None;
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).lines() {
        let Ok(message) = serde_json::from_str::<Message>(&line?) else { continue };
        if let ("compiler-artifact", Some(path), Some(target)) =
            (message.reason.as_str(), message.executable, message.target)
        {
            if message.profile.is_some_and(|profile| profile.test) {
                let home = message.manifest_path.parent().context("a manifest lies in no directory")?.to_owned();
                programs.push(Program { home, name: target.name, path });
            } else if target.name == "overlayd" {
                directory = path.parent().map(Path::to_owned);
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the tests do not compile ({status}); the compiler's messages are above");
    }
    let directory = directory.context("cargo built no overlayd")?;
    Ok(Built { programs, directory })
}

impl Built {
    /// Runs the tests that make no clusters, each program by itself with its own threads.
    pub(crate) fn unit(&self, report: impl FnMut(Ran)) -> Result<()> {
        let programs = self.programs.iter().filter(|program| !program.is_system()).cloned();
        self.in_lanes(programs.collect(), 1, report)
    }

    /// Runs the tests that make clusters: two programs at a time, then one by one those that measure.
    pub(crate) fn system(&self, mut report: impl FnMut(Ran)) -> Result<()> {
        let system = self.programs.iter().filter(|program| program.is_system()).cloned();
        let (alone, mut shared): (Vec<_>, Vec<_>) = system.partition(|program| ALONE.contains(&program.name.as_str()));
        let rank = |program: &Program| LONGEST.iter().position(|name| *name == program.name).unwrap_or(LONGEST.len());
        shared.sort_by_key(rank);
        self.in_lanes(shared, LANES, &mut report)?;
        self.in_lanes(alone, 1, report)
    }

    fn in_lanes(&self, programs: Vec<Program>, lanes: usize, mut report: impl FnMut(Ran)) -> Result<()> {
        let waiting = Mutex::new(programs.into_iter());
        let (ended, results) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                let ended = ended.clone();
                let next = || waiting.lock().ok().and_then(|mut waiting| waiting.next());
                scope.spawn(move || {
                    while let Some(program) = next() {
                        if ended.send(self.run(&program)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(ended);
            for ran in results {
                report(ran?);
            }
            Ok(())
        })
    }

    fn run(&self, program: &Program) -> Result<Ran> {
        let start = Instant::now();
        // A file and no pipe: a process that a broken test left behind would keep a pipe open for ever.
        let mut output = tempfile::tempfile()?;
        let mut command = Command::new(&program.path);
        // As `cargo test` does it.
        command.current_dir(&program.home).env("CARGO_MANIFEST_DIR", &program.home);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        if program.is_system() {
            // What was built above; else each of them would ask cargo again.
            command.env("OVERLAY_BIN_DIR", &self.directory).arg("--test-threads=1");
        }
        let status = command.status().with_context(|| format!("{} could not be started", program.path.display()))?;
        let mut text = Vec::new();
        output.rewind()?;
        output.read_to_end(&mut text)?;
        let package = program.home.file_name().unwrap_or_default();
        Ok(Ran {
            name: format!("{}/{}", package.to_string_lossy(), program.name),
            output: String::from_utf8_lossy(&text).into_owned(),
            succeeded: status.success(),
            took: start.elapsed(),
        })
    }
}

/// Cargo, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

//! `overlay-lab test`: every check and test, and one closing line.

use anyhow::Result;
use clap::Args;
use overlay_netns_harness::clean;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::programs::{self, Ran, cargo};
use crate::{checks, packages};

/// The crates whose code may not reach outside itself.
const PURE: [&str; 4] = ["overlay-wire", "overlay-routing", "overlay-dataplane", "overlay-services"];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave out the tests that make clusters.
    #[arg(long)]
    no_clusters: bool,
}

/// What happened so far.
#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
    failures: Vec<String>,
}

impl Tally {
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        println!("-- {name}");
        let start = Instant::now();
        match work() {
            Ok(()) => {
                self.passed += 1;
                println!("   ok, {:.1} s", start.elapsed().as_secs_f64());
            }
            Err(error) => {
                println!("   FAILED: {error:#}");
                self.fail(name.to_owned());
            }
        }
    }

    fn fail(&mut self, name: String) {
        self.failed += 1;
        self.failures.push(name);
    }

    /// Adds what one test program did, and prints what it printed.
    fn ran(&mut self, ran: &Ran) {
        println!("-- {}", ran.name);
        let before = self.failed;
        for line in ran.output.lines() {
            println!("{line}");
            if let Some([passed, failed, skipped]) = result_line(line) {
                self.passed += passed;
                self.failed += failed;
                self.skipped += skipped;
            } else if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
                self.failures.push(format!("{}: {test}", ran.name));
            }
        }
        // A test program that crashes prints no result line.
        if !ran.succeeded && self.failed == before {
            self.fail(format!("{} did not run to its end", ran.name));
        }
        println!("   {}: {:.1} s", ran.name, ran.took.as_secs_f64());
    }

    /// Runs a group of test programs and says how long all of it took.
    fn group(&mut self, name: &str, run: impl FnOnce(&mut dyn FnMut(Ran)) -> Result<()>) {
        let start = Instant::now();
        if let Err(error) = run(&mut |ran| self.ran(&ran)) {
            println!("   FAILED: {error:#}");
            self.fail(name.to_owned());
        }
        println!("   {name}: {:.1} s", start.elapsed().as_secs_f64());
    }

    fn finish(mut self) -> ExitCode {
        if self.skipped > 0 {
            println!("{} skipped", self.skipped);
            if in_ci() {
                self.failed += self.skipped;
                self.failures.push("a skipped test counts as a failure here".to_owned());
            }
        }
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The whole suite.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut tally = Tally::default();
    if !options.no_clusters {
        tally.step("Debian packages", || packages::ensure(packages::TEST));
    }
    static_checks(&mut tally);
    let mut built = None;
    tally.step("build", || {
        built = Some(programs::build()?);
        Ok(())
    });
    if let Some(built) = built {
        tally.group("unit tests", |report| built.unit(report));
        tally
            .step("examples in the documentation", || quiet(cargo().args(["test", "--quiet", "--workspace", "--doc"])));
        if !options.no_clusters {
            tally.group("system tests", |report| built.system(report));
        }
    }
    if !options.no_clusters {
        tally.step("nothing left behind", || {
            let left: Vec<String> =
                clean::labs().into_iter().filter(|(_, owned)| !owned).map(|(name, _)| name).collect();
            // A lab made by `up` also has no owner; it is older than this run and not a leak, but it is named.
            anyhow::ensure!(left.iter().all(|name| !name.starts_with("t")), "labs left behind: {}", left.join(" "));
            Ok(())
        });
    }
    Ok(tally.finish())
}

/// The checks that compile and read the source, without tests.
pub(crate) fn check() -> Result<ExitCode> {
    let mut tally = Tally::default();
    static_checks(&mut tally);
    Ok(tally.finish())
}

fn static_checks(tally: &mut Tally) {
    tally.step("file sizes", checks::file_sizes);
    tally.step("dependencies of the pure crates", checks::pure_dependencies);
    tally.step("figures on record", checks::figures_on_record);
    tally.step("format", || quiet(cargo().args(["fmt", "--all", "--check"])));
    tally.step("clippy", || {
        quiet(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    });
    tally.step("bans in the pure crates", || {
        let mut command = cargo();
        command.args(["clippy", "--quiet", "--lib"]);
        command.args(PURE.iter().flat_map(|name| ["-p", name]));
        quiet(command.args(["--", "-D", "clippy::disallowed_methods", "-D", "clippy::disallowed_types"]))
    });
    tally.step("documentation", || {
        quiet(cargo().args(["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    });
}

fn quiet(command: &mut Command) -> Result<()> {
    overlay_netns_harness::run(command).map(drop)
}

fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// Passed, failed and ignored of a line as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn result_line(line: &str) -> Option<[u32; 3]> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let part = rest.split(['.', ';']).find(|part| part.trim_end().ends_with(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    Some([number(" passed")?, number(" failed")?, number(" ignored")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_line_gives_its_counts() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(result_line(line), Some([12, 3, 1]));
        assert_eq!(result_line("running 3 tests"), None);
    }
}

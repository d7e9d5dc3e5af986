//! Debian packages and other programs the tests run against, installed where they are missing.

use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::binaries::target_directory;
use crate::command::run;
use crate::debian::{Quiet, disable_services};

/// Whether dpkg says that a package is installed.
pub fn installed(package: &str) -> bool {
    let asked = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    asked.is_ok_and(|output| output.stdout == b"installed")
}

/// Whether a program lies where programs are looked for, those of the administrator included.
pub fn exists(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|directory| Path::new(directory).join(program).is_file())
}

/// Installs packages through `apt-get` for their programs alone; `words` are packages and further options.
pub fn install(words: &[&str]) -> Result<()> {
    if !exists("apt-get") {
        bail!("these Debian packages are missing: {}", words.join(" "));
    }
    let install = [&["-y", "--no-install-recommends", "install"], words].concat();
    // Two test programs may want packages at once; the second finds them there.
    let _turn = Turn::take()?;
    let _quiet = Quiet::ask()?;
    with_lists(|| apt(&install)).with_context(|| format!("apt-get could not install {}", words.join(" ")))?;
    disable_services(words)
}

/// Fetches packages with what they need and is not installed, into a directory, and installs nothing; for machines that
/// are booted for a test alone. A package that is installed here is not fetched.
pub fn fetch(words: &[&str], directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory.join("partial"))?;
    let place = format!("Dir::Cache::archives={}/", directory.display());
    let fetch = [&["-y", "--no-install-recommends", "--download-only", "-o", &place, "install"], words].concat();
    with_lists(|| apt(&fetch)).with_context(|| format!("apt-get could not fetch {}", words.join(" ")))
}

/// Does something that needs apt's lists of packages, and once more with fresh lists where it failed.
pub fn with_lists<T>(work: impl Fn() -> Result<T>) -> Result<T> {
    work().or_else(|_| apt(&["update"]).and_then(|()| work()))
}

/// One process of the harness at a time installs.
struct Turn(#[expect(dead_code, reason = "open, it holds the lock")] File);

impl Turn {
    fn take() -> Result<Turn> {
        let path = target_directory()?.join("installing");
        let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(Turn(file))
    }
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "DPkg::Lock::Timeout=120"]);
    run(command.args(arguments)).map(drop)
}

/// The program `boringtun-cli`, installed from crates.io into the build directory once.
pub fn boringtun_cli() -> Result<PathBuf> {
    let root = target_directory()?.join("tools");
    let program = root.join("bin/boringtun-cli");
    if !program.is_file() {
        println!("installing boringtun-cli (once)");
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["install", "--quiet", "--locked", "boringtun-cli", "--root"]).arg(&root);
        run(command.stdin(Stdio::null()))?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_is_there_is_found_and_another_is_not() {
        assert!(exists("sh"));
        assert!(!exists("sh-of-nobody"));
    }
}

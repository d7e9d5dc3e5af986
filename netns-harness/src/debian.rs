//! Installing Debian packages for their programs alone: no service of theirs is started, now or at the next boot.

use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// What maintainer scripts ask before they start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Packages that come with a service.
const SERVICES: [(&str, &str); 1] = [("prometheus", "prometheus.service")];

/// Whether a program is there.
pub fn exists(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|directory| Path::new(directory).join(program).is_file())
}

/// Installs packages; the package lists are fetched where they are too old.
pub fn install(packages: &[&str]) -> Result<()> {
    let _quiet = Quiet::ask()?;
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "DPkg::Lock::Timeout=300"]).args(words);
        let output = command.stdin(Stdio::null()).output().context("apt-get could not be started")?;
        Ok::<_, anyhow::Error>((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let words = [&["-y", "--no-install-recommends", "install"], packages].concat();
    let (mut installed, mut errors) = apt(&words)?;
    if !installed && apt(&["update"])?.0 {
        (installed, errors) = apt(&words)?;
    }
    ensure!(installed, "apt-get could not install {}:\n{errors}", packages.join(" "));
    for (_, service) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
        if exists("systemctl") {
            crate::run(Command::new("systemctl").args(["disable", "--quiet", service]))?;
        }
    }
    Ok(())
}

/// While it lives, maintainer scripts are told to start nothing.
struct Quiet {
    ours: bool,
}

impl Quiet {
    fn ask() -> Result<Quiet> {
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY) {
            Ok(mut file) => {
                let quiet = Quiet { ours: true };
                file.write_all(b"#!/bin/sh\nexit 101\n").with_context(|| format!("writing {POLICY}"))?;
                Ok(quiet)
            }
            // The machine has a policy of its own already, as in containers.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Quiet { ours: false }),
            Err(error) => Err(error).with_context(|| format!("writing {POLICY}")),
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("{POLICY} could not be removed; remove it by hand: {error}");
        }
    }
}

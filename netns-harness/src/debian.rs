//! Installing Debian packages for their programs alone: no service of theirs is started, now or at the next boot.

use anyhow::{Context as _, Result};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use crate::packages::exists;

/// What maintainer scripts ask before they start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Packages that come with a service.
const SERVICES: [(&str, &str); 8] = [
    ("prometheus", "prometheus.service"),
    ("podman", "podman.service"),
    ("podman", "podman.socket"),
    ("podman", "podman-restart.service"),
    ("podman", "podman-auto-update.timer"),
    ("docker.io", "docker.service"),
    ("docker.io", "docker.socket"),
    ("docker.io", "containerd.service"),
];

/// Keeps the services of packages that were just installed from starting at the next boot.
pub(crate) fn disable_services(packages: &[&str]) -> Result<()> {
    for (_, service) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
        if exists("systemctl") {
            crate::run(Command::new("systemctl").args(["disable", "--quiet", service]))?;
        }
    }
    Ok(())
}

/// While it lives, maintainer scripts are told to start nothing.
pub(crate) struct Quiet {
    ours: bool,
}

impl Quiet {
    pub(crate) fn ask() -> Result<Quiet> {
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

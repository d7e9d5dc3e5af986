//! The Debian packages a command needs: installed where that is allowed, else named.

use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program and the package that has it.
type Need = (&'static str, &'static str);

/// What clusters need.
pub(crate) const DEMO: &[Need] = &[("ip", "iproute2"), ("nft", "nftables"), ("ping", "iputils-ping")];
/// What the whole test suite needs.
pub(crate) const TEST: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("wireguard-go", "wireguard-go"),
    ("wg", "wireguard-tools"),
    ("faketime", "faketime"),
];
/// What the measurements need.
pub(crate) const BENCH: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("iperf3", "iperf3"),
    ("taskset", "util-linux"),
    ("wireguard-go", "wireguard-go"),
    ("wg", "wireguard-tools"),
];

/// Installs what is missing, or says what to install.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    let missing = missing(needs);
    if !missing.is_empty() {
        let list = missing.join(" ");
        if !root || !exists("apt-get") {
            bail!("these Debian packages are missing: {list}\nnext: apt-get install {list}");
        }
        println!("installing {list}");
        let install = |update: bool| {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
            if update {
                command.args(["-qq", "update"]);
            } else {
                command.args(["-qq", "-y", "--no-install-recommends", "install"]).args(&missing);
            }
            command.status().map(|status| status.success())
        };
        let installed = install(false).context("apt-get could not be started")? || (install(true)? && install(false)?);
        if !installed {
            bail!("apt-get could not install {list}; install them and try again");
        }
    }
    if !root {
        bail!("network namespaces need root\nnext: run the same command as root, for example through sudo");
    }
    Ok(())
}

/// The packages whose programs are not there.
pub(crate) fn missing(needs: &[Need]) -> Vec<&'static str> {
    let mut missing: Vec<_> =
        needs.iter().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect();
    missing.dedup();
    missing
}

fn exists(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|directory| Path::new(directory).join(program).is_file())
}

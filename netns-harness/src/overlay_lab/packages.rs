//! The Debian packages a command needs: installed where that is allowed, else named.

use anyhow::{Result, bail};
use overlay_netns_harness::packages::{exists, install};

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
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
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
        install(&missing)?;
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

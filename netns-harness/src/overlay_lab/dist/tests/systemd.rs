//! The installed service under a real systemd, in namespaces of its own.

use overlay_netns_harness::packages;

use super::*;

/// Makes a cgroup of its own, boots in it, and removes what the machine made there; the whole may take four
/// minutes. Arguments: WORK NAME.
const WRAPPER: &str = r#"
mount --make-rprivate / && mount -t cgroup2 cgroup2 "$1/cgroup" && mkdir "$1/cgroup/$2" || exit 1
sh -c 'echo $$ >"$1/cgroup/$2/cgroup.procs" &&
    exec timeout -s KILL 240 unshare -m -p -n -u -i -C --fork --kill-child sh "$1/boot.sh" "$1"' sh "$1" "$2"
find "$1/cgroup/$2" -depth -type d -exec rmdir {} +
"#;

/// Whether this machine can boot another; a loud line where it cannot.
fn can_boot(more: &[(&str, &str)]) -> Result<bool> {
    let needed = [("/lib/systemd/systemd", "systemd"), ("/dev/net/tun", "a TUN device"), ("/usr/sbin/nft", "nft")];
    let missing = needed.iter().chain(more).find(|(path, _)| !Path::new(path).exists());
    let root = output(Command::new("id").arg("-u"))? == b"0\n";
    if let Some((_, what)) = missing.copied().or((!root).then_some(("", "root"))) {
        assert!(std::env::var_os("CI").is_none(), "this test needs {what}");
        eprintln!("SKIPPED: this test needs {what}");
        return Ok(false);
    }
    Ok(true)
}

/// Boots a machine that has what `fill` puts into a directory as `/package`, and runs a probe in it.
fn boot(probe: &[u8], fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let work = tempfile::tempdir()?;
    for directory in ["guest", "cgroup"] {
        fs::create_dir(work.path().join(directory))?;
    }
    let package = work.path().join("package");
    fill(&package)?;
    write(&work.path().join("boot.sh"), include_bytes!("boot.sh"))?;
    write(&package.join("parts.sh"), include_bytes!("parts.sh"))?;
    write(&package.join("probe.sh"), probe)?;
    let directory =
        work.path().file_name().and_then(|name| name.to_str()).context("a temporary directory has a name")?;
    let name = format!("overlayd-probe-{}-{}", std::process::id(), directory.trim_start_matches('.'));
    let machine = Command::new("unshare")
        .args(["-m", "sh", "-c", WRAPPER, "sh"])
        .arg(work.path())
        .arg(&name)
        .stdin(Stdio::null())
        .output()?;
    let result = fs::read_to_string(package.join("result")).unwrap_or_default();
    let said = String::from_utf8_lossy(&machine.stderr);
    assert!(result.lines().last() == Some("PASSED"), "{result}{said}");
    Ok(())
}

#[test]
fn service_under_systemd_is_confined_survives_and_uninstalls_without_a_trace() -> Result<()> {
    if !can_boot(&[])? {
        return Ok(());
    }
    boot(include_bytes!("probe.sh"), |package| fill(&Binaries::for_tests()?, package))
}

#[test]
fn debian_package_installs_upgrades_and_purges_without_a_trace() -> Result<()> {
    if !can_boot(&[("/usr/bin/dpkg", "dpkg")])? {
        return Ok(());
    }
    boot(include_bytes!("probe-deb.sh"), |package| build(&Binaries::for_tests()?, package).map(drop))
}

/// The version of a package, where it is installed.
fn version(package: &str) -> Option<String> {
    let asked = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output().ok()?;
    Some(String::from_utf8(asked.stdout).ok()?).filter(|version| !version.is_empty())
}

#[test]
fn service_lives_with_systemd_resolved_podman_and_firewalld() -> Result<()> {
    if !can_boot(&[("/usr/bin/dpkg", "dpkg"), ("/usr/bin/dbus-daemon", "dbus")])? {
        return Ok(());
    }
    boot(include_bytes!("probe-host.sh"), |package| {
        fill(&Binaries::for_tests()?, package)?;
        // Of the same source as the systemd that is booted; another version would bring all of systemd with it.
        let resolved = format!("systemd-resolved={}", version("systemd").context("systemd is installed")?);
        let words = [&resolved, "podman", "crun", "containernetworking-plugins", "busybox-static", "firewalld"];
        packages::fetch(&words, &package.join("debs"))
    })
}

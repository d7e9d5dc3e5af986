//! The installed service under a real systemd, in namespaces of its own.

use super::*;

/// Makes a cgroup of its own, boots in it, and removes what the machine made there; the whole may take two
/// minutes. Arguments: WORK NAME.
const WRAPPER: &str = r#"
mount --make-rprivate / && mount -t cgroup2 cgroup2 "$1/cgroup" && mkdir "$1/cgroup/$2" || exit 1
sh -c 'echo $$ >"$1/cgroup/$2/cgroup.procs" &&
    exec timeout -s KILL 120 unshare -m -p -n -u -i -C --fork --kill-child sh "$1/boot.sh" "$1"' sh "$1" "$2"
find "$1/cgroup/$2" -depth -type d -exec rmdir {} +
"#;

#[test]
fn service_under_systemd_is_confined_survives_and_uninstalls_without_a_trace() -> Result<()> {
    let missing = [("/lib/systemd/systemd", "systemd"), ("/dev/net/tun", "a TUN device"), ("/usr/sbin/nft", "nft")]
        .into_iter()
        .find(|(path, _)| !Path::new(path).exists());
    let root = output(Command::new("id").arg("-u"))? == b"0\n";
    if let Some((_, what)) = missing.or((!root).then_some(("", "root"))) {
        assert!(std::env::var_os("CI").is_none(), "this test needs {what}");
        eprintln!("SKIPPED: this test needs {what}");
        return Ok(());
    }
    let work = tempfile::tempdir()?;
    for directory in ["guest", "cgroup"] {
        fs::create_dir(work.path().join(directory))?;
    }
    let package = work.path().join("package");
    fill(&Binaries::for_tests()?, &package)?;
    write(&work.path().join("boot.sh"), include_bytes!("boot.sh"))?;
    write(&package.join("probe.sh"), include_bytes!("probe.sh"))?;
    let name = format!("overlayd-probe-{}", std::process::id());
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

//! Packages are built from the development binaries, installed into a throw-away tree, and removed again.

use super::*;

mod systemd;

fn sh(directory: &Path, command: &str) -> Result<String> {
    Ok(String::from_utf8(output(Command::new("sh").args(["-c", command]).current_dir(directory))?)?)
}

/// Every file and directory below a tree with mode and content sum.
fn tree(root: &Path) -> Result<String> {
    sh(root, "find . -printf '%M %p ' \\( -type f -exec sha256sum {} \\; -o -printf '\\n' \\) | LC_ALL=C sort")
}

#[test]
fn installation_is_idempotent_and_removal_leaves_nothing() -> Result<()> {
    let out = tempfile::tempdir()?;
    let packages = build(&Binaries::for_tests()?, out.path())?;
    assert_eq!(packages.len(), 3);
    sh(out.path(), "sha256sum --quiet -c SHA256SUMS")?;
    let content = output(Command::new("dpkg-deb").arg("--contents").arg(&packages[1]))?;
    let content = String::from_utf8(content)?;
    for file in ["./usr/bin/overlayd", "./usr/bin/overlayctl", "./lib/systemd/system/overlayd.service"] {
        assert!(content.contains(file), "{file} is missing: {content}");
    }
    assert!(content.lines().all(|line| line.contains("root/root")), "{content}");
    let unpacked = tempfile::tempdir()?;
    sh(unpacked.path(), &format!("tar --strip-components=1 -xf {}", packages[0].display()))?;
    let root = tempfile::tempdir()?;
    // What a fresh host has; empty directories of its own must stay.
    sh(root.path(), "mkdir -p usr/local/bin etc/systemd/system var/lib; echo other > etc/other")?;
    let before = tree(root.path())?;
    let install =
        |arguments: &str| sh(unpacked.path(), &format!("./install --root {} {arguments}", root.path().display()));
    install("")?;
    let installed = tree(root.path())?;
    for file in ["usr/local/bin/overlayd", "etc/systemd/system/overlayd.service", "etc/sysctl.d/60-overlayd.conf"] {
        assert!(installed.contains(file), "{file} is missing: {installed}");
    }
    let unit = fs::read_to_string(root.path().join("etc/systemd/system/overlayd.service"))?;
    assert!(unit.contains("ExecStart=/usr/local/bin/overlayd "), "{unit}");
    sh(root.path(), "usr/local/bin/overlayctl --version")?;
    install("")?;
    assert_eq!(tree(root.path())?, installed);
    sh(root.path(), "echo '[node]' > etc/overlay/overlayd.toml")?;
    install("--uninstall")?;
    assert!(root.path().join("etc/overlay/overlayd.toml").exists());
    install("--uninstall --purge")?;
    assert_eq!(tree(root.path())?, before);
    Ok(())
}

#[test]
fn damaged_archive_is_refused_before_anything_changes() -> Result<()> {
    let stage = tempfile::tempdir()?;
    fill(&Binaries::for_tests()?, stage.path())?;
    sh(stage.path(), "printf x >> overlayd.service")?;
    let root = tempfile::tempdir()?;
    let refused = sh(stage.path(), &format!("./install --root {}", root.path().display()));
    assert!(refused.is_err_and(|error| error.to_string().contains("differs from its checksum")));
    assert_eq!(fs::read_dir(root.path())?.count(), 0);
    Ok(())
}

#[test]
fn unit_is_confined_to_an_exposure_of_at_most_two_and_a_half() -> Result<()> {
    let unit = workspace().join("dist/overlayd.service");
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--no-pager"]).arg(&unit);
    let report = match command.output() {
        Ok(report) => String::from_utf8(report.stdout)?,
        Err(_) if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED: systemd-analyze is not installed");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let score = report.lines().rev().find_map(|line| line.split_once("overlayd.service: ")).context("a score")?.1;
    let score: f32 = score.split_whitespace().next().context("a number")?.parse()?;
    assert!(score <= 2.5, "{report}");
    // The positive control: the same unit without its confinement is judged worse.
    let open: String = fs::read_to_string(&unit)?
        .lines()
        .filter(|l| !l.starts_with("System") && !l.starts_with("Protect"))
        .map(|l| format!("{l}\n"))
        .collect();
    let directory = tempfile::tempdir()?;
    let loose = directory.path().join("overlayd.service");
    fs::write(&loose, open)?;
    let report =
        Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=25"]).arg(&loose).output()?;
    assert!(!report.status.success());
    Ok(())
}

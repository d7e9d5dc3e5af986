//! Packages for installation: a tarball with its own `install` script, and a Debian package of the same files.
//!
//! Both hold the release binaries, the unit, the settings and the user of `dist/`, completions and manual pages generated
//! by `overlayctl`, examples and checksums. The same sources give the same bytes: names sorted, owners and times fixed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use overlay_netns_harness::{Binaries, Profile, target_directory, workspace};

/// Time stamp of every packed file: 2024-01-01, so that packages can be compared.
const PACKED_AT: &str = "@1704067200";

/// Shells and the names their completion files have.
const COMPLETIONS: [(&str, &str, &str); 3] = [
    ("bash", "overlayctl.bash", "usr/share/bash-completion/completions/overlayctl"),
    ("zsh", "_overlayctl", "usr/share/zsh/vendor-completions/_overlayctl"),
    ("fish", "overlayctl.fish", "usr/share/fish/vendor_completions.d/overlayctl.fish"),
];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to write; default `target/dist`.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let out = match &options.out {
        Some(out) => out.clone(),
        None => target_directory()?.join("dist"),
    };
    let binaries = Binaries::build(Profile::Release)?;
    for package in build(&binaries, &out)? {
        println!("{}", package.display());
    }
    Ok(())
}

/// Writes both packages and a file of their checksums below `out`; returns all three.
pub(crate) fn build(binaries: &Binaries, out: &Path) -> Result<Vec<PathBuf>> {
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("overlayd-{version}-{}", std::env::consts::ARCH);
    let stage = out.join(&name);
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot clear {}", stage.display()))?;
    }
    fill(binaries, &stage)?;
    let tarball = out.join(format!("{name}.tar.gz"));
    tar(out, &name, &tarball)?;
    let package = debian(&stage, out, version)?;
    let files = [tarball, package];
    let sums = out.join("SHA256SUMS");
    let names: Vec<&str> = files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    fs::write(&sums, output(Command::new("sha256sum").args(&names).current_dir(out))?)?;
    let [tarball, package] = files;
    Ok(vec![tarball, package, sums])
}

/// The content of the tarball.
fn fill(binaries: &Binaries, stage: &Path) -> Result<()> {
    let dist = workspace().join("dist");
    for program in ["overlayd", "overlayctl", "overlay-cni", "overlay-docker"] {
        let target = stage.join("bin").join(program);
        copy(Path::new(&binaries.path(program)), &target, 0o755)?;
        // Without symbols a third of the size; a host without `strip` packs them as they are.
        let _ = Command::new("strip").arg(&target).stderr(Stdio::null()).status();
    }
    copy(&dist.join("install"), &stage.join("install"), 0o755)?;
    for file in ["overlayd.service", "overlay-docker.socket", "overlay-docker.service"] {
        copy(&dist.join(file), &stage.join(file), 0o644)?;
    }
    for file in ["sysctl.d/60-overlayd.conf", "sysusers.d/overlayd.conf"] {
        copy(&dist.join(file), &stage.join(file), 0o644)?;
    }
    let overlayctl = stage.join("bin/overlayctl");
    for (shell, file, _) in COMPLETIONS {
        let text = output(Command::new(&overlayctl).args(["completion", shell]))?;
        if text.is_empty() {
            bail!("overlayctl prints no completion for {shell}: the programs are not whole, build them again");
        }
        write(&stage.join("completions").join(file), &text)?;
    }
    let man = stage.join("man");
    fs::create_dir_all(&man)?;
    output(Command::new(&overlayctl).arg("man").arg(&man))?;
    for example in examples(&workspace().join("examples"))? {
        let name = example.file_name().context("an example has a name")?;
        copy(&example, &stage.join("examples").join(name), 0o644)?;
    }
    for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        let source = workspace().join(file);
        if source.is_file() {
            copy(&source, &stage.join(file), 0o644)?;
        }
    }
    let list = "find . -type f ! -name SHA256SUMS -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum";
    let sums = output(Command::new("sh").args(["-c", list]).current_dir(stage))?;
    write(&stage.join("SHA256SUMS"), &sums)
}

/// Configurations, of engines too, alert rules and the dashboard.
fn examples(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(),
    };
    let known = |extension: &std::ffi::OsStr| {
        ["toml", "yml", "json", "conf", "conflist"].iter().any(|known| extension == *known)
    };
    found.retain(|path| path.extension().is_some_and(known));
    found.sort();
    Ok(found)
}

fn tar(directory: &Path, name: &str, target: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.arg("-C").arg(directory).arg("-caf").arg(target);
    command.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime", PACKED_AT, name]);
    output(&mut command).map(drop)
}

/// The Debian package from the files of the tarball.
fn debian(stage: &Path, out: &Path, version: &str) -> Result<PathBuf> {
    let architecture = String::from_utf8(output(Command::new("dpkg").arg("--print-architecture"))?)?.trim().to_owned();
    let tree = out.join("debian");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let mut placed: Vec<(PathBuf, String, u32)> = vec![
        (stage.join("bin/overlayd"), "usr/bin/overlayd".into(), 0o755),
        (stage.join("bin/overlayctl"), "usr/bin/overlayctl".into(), 0o755),
        (stage.join("bin/overlay-cni"), "usr/bin/overlay-cni".into(), 0o755),
        (stage.join("bin/overlay-docker"), "usr/bin/overlay-docker".into(), 0o755),
        (stage.join("install"), "usr/lib/overlayd/install".into(), 0o755),
        (stage.join("overlayd.service"), "lib/systemd/system/overlayd.service".into(), 0o644),
        (stage.join("overlay-docker.socket"), "lib/systemd/system/overlay-docker.socket".into(), 0o644),
        (stage.join("overlay-docker.service"), "lib/systemd/system/overlay-docker.service".into(), 0o644),
        (stage.join("sysctl.d/60-overlayd.conf"), "usr/lib/sysctl.d/60-overlayd.conf".into(), 0o644),
        (stage.join("sysusers.d/overlayd.conf"), "usr/lib/sysusers.d/overlayd.conf".into(), 0o644),
    ];
    for (_, file, target) in COMPLETIONS {
        placed.push((stage.join("completions").join(file), target.into(), 0o644));
    }
    for (from, to) in [("man", "usr/share/man/man1"), ("examples", "usr/share/doc/overlayd/examples")] {
        let Ok(entries) = fs::read_dir(stage.join(from)) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).context("packed names are plain")?.to_owned();
            placed.push((path, format!("{to}/{name}"), 0o644));
        }
    }
    for (source, target, mode) in &placed {
        copy(source, &tree.join(target), *mode)?;
    }
    let kib: u64 =
        placed.iter().filter_map(|(source, ..)| source.metadata().ok()).map(|data| data.len() / 1024 + 1).sum();
    let control = format!(
        "Package: overlayd\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: overlayd <overlayd@localhost>\n\
         Installed-Size: {kib}\nDepends: libc6, nftables, iproute2, systemd\nSection: net\nPriority: optional\n\
         Description: container overlay network daemon\n Carries container packets between hosts inside WireGuard, GRE or \
         IP-in-IP,\n learns subnets by signed gossip and filters every packet.\n"
    );
    write(&tree.join("DEBIAN/control"), control.as_bytes())?;
    let scripts = workspace().join("dist/debian");
    for script in ["postinst", "prerm", "postrm"] {
        copy(&scripts.join(script), &tree.join("DEBIAN").join(script), 0o755)?;
    }
    let package = out.join(format!("overlayd_{version}_{architecture}.deb"));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-Zgzip", "--build"]).arg(&tree).arg(&package);
    command.env("SOURCE_DATE_EPOCH", PACKED_AT.trim_start_matches('@'));
    output(&mut command)?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

fn copy(source: &Path, target: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
    write(target, &bytes)?;
    fs::set_permissions(target, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn write(target: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(directory) = target.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let mut file = fs::File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    Ok(())
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} could not be started"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests;

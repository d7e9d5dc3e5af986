//! A lab host as a container engine needs it: process, mount and name namespaces of its own that outlive one command.
//!
//! The host's `/run` and `/var/lib` are those of the lab; here `/etc`, `/opt` and Debian's directory of CNI plugins become private copies too, and the groups
//! of processes (cgroups) are mounted again, which a network namespace of its own hides.

use anyhow::{Context as _, Result};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::lab::{Lab, tail};
use crate::state::PREFIX;

/// Mounts what an engine wants to see and stays. Arguments: the host's name.
const HOLD: &str = r#"
mount -t tmpfs none /mnt || exit 1
for place in etc opt usr/lib/cni; do
    [ -d "/$place" ] || continue
    mkdir -p "/mnt/$place" "/mnt/$place-work"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=/mnt/$place,workdir=/mnt/$place-work" "/$place" || exit 1
done
if grep -q '^devices[[:space:]]*[1-9]' /proc/cgroups; then
    mount -t tmpfs none /sys/fs/cgroup
    for name in $(grep -v '^#' /proc/cgroups | while read -r name tree _; do [ "$tree" = 0 ] || echo "$name"; done); do
        mkdir "/sys/fs/cgroup/$name"
        mount -t cgroup -o "$name" none "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
    done
else
    mount -t cgroup2 none /sys/fs/cgroup
fi
# Namespaces that an engine names are its own.
mount -t tmpfs none /run/netns
hostname "$1"
echo ready
# Not by exec: the shell is the first process here and buries those whose parents are gone.
cat
exit 0
"#;

/// The namespaces. Everything that runs in them ends with this value.
#[derive(Debug)]
pub struct EngineHost {
    host: String,
    holder: Child,
    /// The first process of the namespaces, as this namespace numbers it.
    inside: u32,
    directory: tempfile::TempDir,
    group: String,
}

impl EngineHost {
    /// Makes the namespaces on a host of a lab.
    pub fn new(lab: &Lab, host: &str) -> Result<EngineHost> {
        let words =
            ["unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc", "sh", "-c", HOLD, "sh", host];
        // By this prefix the lab is cleared also when this process is interrupted.
        let prefix = format!("{PREFIX}{}-{host}-", lab.name());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let mut command = lab.command(host, &words)?;
        let holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("unshare did not start")?;
        let group = format!("{}{host}", lab.name());
        let mut made = EngineHost { host: host.to_owned(), holder, inside: 0, directory, group };
        let mut ready = [0; 6];
        let output = made.holder.stdout.as_mut().context("a pipe was asked for")?;
        output.read_exact(&mut ready).context("the namespaces of an engine were not made")?;
        let children = format!("/proc/{0}/task/{0}/children", made.holder.id());
        made.inside = fs::read_to_string(children)?.trim().parse()?;
        Ok(made)
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.host
    }

    /// The group of processes that containers belong below; removed with this value.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// A directory that the host sees at the same path, removed with this value.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that will run in the namespaces.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--pid", "--uts", "--target", &self.inside.to_string(), "--"]).args(words);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root").stdin(Stdio::null());
        command
    }

    /// Runs a command and waits for it.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        self.command(words).output().with_context(|| format!("{words:?} on {}", self.host))
    }

    /// Runs a command that must succeed; what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        crate::run(&mut self.command(words)).with_context(|| format!("on {}", self.host))
    }

    /// Starts a program whose output is appended to the log of this name.
    pub fn spawn(&self, name: &str, words: &[&str]) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path(name))?;
        let mut command = self.command(words);
        command.stdout(log.try_clone()?).stderr(log).spawn().with_context(|| format!("{words:?} did not start"))
    }

    /// The end of a log.
    pub fn log(&self, name: &str) -> String {
        format!("--- {name} of {}\n{}\n", self.host, tail(&self.log_path(name), 20))
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }
}

/// Sends a signal to a program that [`EngineHost::spawn`] started and waits for its end.
pub fn end(mut child: Child, signal: libc::c_int) {
    // `nsenter --pid` forks, so its child is told.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()) {
        // SAFETY: the child of our own child, which has not been waited for.
        unsafe { libc::kill(pid, signal) };
    }
    let _ = child.wait();
}

impl Drop for EngineHost {
    fn drop(&mut self) {
        // What still runs in the process namespace ends with its first process.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let mut groups = vec![Path::new("/sys/fs/cgroup").join(&self.group)];
        groups.extend(
            fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|tree| tree.path().join(&self.group)),
        );
        for group in groups.iter().filter(|group| group.is_dir()) {
            let empty = ["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"];
            let _ = Command::new("find").arg(group).args(empty).output();
        }
    }
}

/// Packs a directory as an image that `ctr image import` takes, under this name; the tar file.
pub fn pack_image(tree: &Path, name: &str, directory: &Path) -> Result<PathBuf> {
    let shell = |script: &str| crate::run(Command::new("sh").args(["-euc", script]).current_dir(directory));
    let layer = format!("tar -C '{}' --owner 0 --group 0 -cf layer.tar . && sha256sum layer.tar", tree.display());
    let sum = shell(&layer)?;
    let sum = sum.split_whitespace().next().context("sha256sum printed nothing")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": { "Cmd": ["/bin/sleep", "3600"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
    });
    fs::write(directory.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(directory.join("manifest.json"), manifest.to_string())?;
    shell("tar -cf image.tar manifest.json config.json layer.tar")?;
    Ok(directory.join("image.tar"))
}

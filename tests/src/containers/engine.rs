//! A real dockerd on a lab host, with namespaces of its own, and Docker's plugin of ours beside it.

use anyhow::{Context as _, Result, bail};
use overlay_netns_harness::{Lab, packages, wait_for};
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long dockerd and the plugin may take to answer.
const LIMIT: Duration = Duration::from_secs(40);
/// Where dockerd finds the plugin.
pub(super) const SOCKET: &str = "/run/docker/plugins/overlayd.sock";

/// Mounts what dockerd needs to see and stays: the first process of its namespace, which buries what loses its parent.
const HOLD: &str = r#"
mount -t tmpfs none /etc/docker || exit 1
if grep -q '^devices[[:space:]]*[1-9]' /proc/cgroups; then
    mount -t tmpfs none /sys/fs/cgroup
    for name in $(grep -v '^#' /proc/cgroups | while read -r name tree _; do [ "$tree" = 0 ] || echo "$name"; done); do
        mkdir "/sys/fs/cgroup/$name"
        mount -t cgroup -o "$name" none "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
    done
else
    mount -t cgroup2 none /sys/fs/cgroup
fi
echo ready
cat
exit 0
"#;

/// The engine of one host; what runs in it ends with it.
pub(super) struct Engine {
    holder: Child,
    inside: u32,
    dockerd: Option<Child>,
    plugin: Option<Child>,
    directory: tempfile::TempDir,
    group: String,
}

impl Engine {
    /// The plugin running; dockerd not yet.
    pub(super) fn new(lab: &Lab, host: &str) -> Result<Engine> {
        let words = ["docker.io", "iptables", "busybox-static"];
        let missing: Vec<&str> = words.into_iter().filter(|word| !packages::installed(word)).collect();
        if !missing.is_empty() {
            packages::install(&missing)?;
        }
        let words = ["unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc", "sh", "-c", HOLD];
        let mut holder = lab.command(host, &words)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut ready = [0; 6];
        holder.stdout.as_mut().context("it has an output")?.read_exact(&mut ready)?;
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id()))?;
        let inside = children.trim().parse().context("the holder has one child")?;
        let group = format!("{}{host}", lab.name());
        let directory = tempfile::tempdir()?;
        let mut engine = Engine { holder, inside, dockerd: None, plugin: None, directory, group };
        let program = lab.binary("overlay-docker").context("the plugin is one of the programs")?;
        engine.plugin = Some(engine.spawn("plugin", &[&program])?);
        let socket = lab.host(host)?.path(SOCKET);
        wait_for("the plugin's socket", LIMIT, || UnixStream::connect(&socket).ok())?;
        Ok(engine)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--pid", "--uts", "--target", &self.inside.to_string(), "--"]).args(words);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root").stdin(Stdio::null());
        command
    }

    fn spawn(&self, name: &str, words: &[&str]) -> Result<Child> {
        let path = self.directory.path().join(name);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        Ok(self.command(words).stdout(log.try_clone()?).stderr(log).spawn()?)
    }

    /// Starts dockerd and waits until it answers; how long that took.
    pub(super) fn start(&mut self) -> Result<Duration> {
        let _ = self.command(&["rm", "-f", "/run/docker.pid"]).output();
        let group = self.group.clone();
        let words = ["dockerd", "--storage-driver", "vfs", "--pidfile", "/run/docker.pid", "--cgroup-parent", &group];
        self.dockerd = Some(self.spawn("dockerd", &words)?);
        let answers = || self.output("version").ok()?.status.success().then_some(());
        let ((), took) = wait_for("dockerd to answer", LIMIT, answers).with_context(|| self.log())?;
        Ok(took)
    }

    /// Asks dockerd to end and waits for that.
    pub(super) fn stop(&mut self) {
        end(self.dockerd.take(), libc::SIGTERM);
    }

    /// Makes an image `box` of busybox.
    pub(super) fn import(&self) -> Result<()> {
        let tree = self.directory.path().join("root");
        std::fs::create_dir_all(tree.join("bin"))?;
        std::fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
        for name in ["sh", "sleep"] {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(name))?;
        }
        let image = self.directory.path().join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&image).arg(".").status()?;
        if !packed.success() {
            bail!("tar ended with {packed}");
        }
        self.run(&format!("import {} box", image.display())).map(drop)
    }

    fn output(&self, words: &str) -> Result<Output> {
        let words: Vec<&str> = ["docker"].into_iter().chain(words.split_whitespace()).collect();
        Ok(self.command(&words).output()?)
    }

    /// One `docker` command that must succeed; what it prints.
    pub(super) fn run(&self, words: &str) -> Result<String> {
        let output = self.output(words)?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("docker {words}: {errors}\n{}", self.log());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.directory.path().join("dockerd")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.dockerd.is_some() {
            let _ = self.command(&["sh", "-c", "docker ps -aq | xargs -r docker rm -f"]).output();
        }
        end(self.dockerd.take(), libc::SIGKILL);
        end(self.plugin.take(), libc::SIGKILL);
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for root in roots.chain([Path::new("/sys/fs/cgroup").to_owned()]) {
            let group = root.join(&self.group);
            if group.is_dir() {
                let words = ["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"];
                let _ = Command::new("find").arg(&group).args(words).output();
            }
        }
    }
}

/// Sends a signal and waits for the end. `nsenter --pid` forks, so its child is told.
fn end(child: Option<Child>, signal: i32) {
    let Some(mut child) = child else { return };
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()) {
        // SAFETY: the child of our own child, which has not been waited for.
        unsafe { libc::kill(pid, signal) };
    }
    let _ = child.wait();
}

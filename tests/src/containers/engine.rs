//! A real dockerd on a lab host, with namespaces of its own, and Docker's plugin of ours beside it.

use anyhow::{Context as _, Result, bail};
use overlay_netns_harness::engine::{self, EngineHost};
use overlay_netns_harness::{Lab, packages, wait_for};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output};
use std::time::Duration;

/// How long dockerd and the plugin may take to answer.
const LIMIT: Duration = Duration::from_secs(40);
/// Where dockerd finds the plugin.
pub(super) const SOCKET: &str = "/run/docker/plugins/overlayd.sock";

/// The engine of one host; what runs in it ends with it.
pub(super) struct Engine {
    host: EngineHost,
    dockerd: Option<Child>,
    plugin: Option<Child>,
}

impl Engine {
    /// The plugin running; dockerd not yet.
    pub(super) fn new(lab: &Lab, host: &str) -> Result<Engine> {
        let words = ["docker.io", "iptables", "busybox-static"];
        let missing: Vec<&str> = words.into_iter().filter(|word| !packages::installed(word)).collect();
        if !missing.is_empty() {
            packages::install(&missing)?;
        }
        let mut engine = Engine { host: EngineHost::new(lab, host)?, dockerd: None, plugin: None };
        let program = lab.binary("overlay-docker").context("the plugin is one of the programs")?;
        engine.plugin = Some(engine.host.spawn("plugin", &[&program])?);
        let socket = lab.host(host)?.path(SOCKET);
        wait_for("the plugin's socket", LIMIT, || UnixStream::connect(&socket).ok())?;
        Ok(engine)
    }

    /// Starts dockerd and waits until it answers; how long that took.
    pub(super) fn start(&mut self) -> Result<Duration> {
        let _ = self.host.output(&["rm", "-f", "/run/docker.pid"]);
        let group = self.host.group();
        let words = ["dockerd", "--storage-driver", "vfs", "--pidfile", "/run/docker.pid", "--cgroup-parent", group];
        self.dockerd = Some(self.host.spawn("dockerd", &words)?);
        let answers = || self.output("version").ok()?.status.success().then_some(());
        let ((), took) = wait_for("dockerd to answer", LIMIT, answers).with_context(|| self.host.log("dockerd"))?;
        Ok(took)
    }

    /// Asks dockerd to end and waits for that.
    pub(super) fn stop(&mut self) {
        end(self.dockerd.take(), libc::SIGTERM);
    }

    /// Makes an image `box` of busybox.
    pub(super) fn import(&self) -> Result<()> {
        let tree = self.host.directory().join("root");
        std::fs::create_dir_all(tree.join("bin"))?;
        std::fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
        for name in ["sh", "sleep"] {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(name))?;
        }
        let image = self.host.directory().join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&image).arg(".").status()?;
        if !packed.success() {
            bail!("tar ended with {packed}");
        }
        self.run(&format!("import {} box", image.display())).map(drop)
    }

    fn output(&self, words: &str) -> Result<Output> {
        let words: Vec<&str> = ["docker"].into_iter().chain(words.split_whitespace()).collect();
        self.host.output(&words)
    }

    /// One `docker` command that must succeed; what it prints.
    pub(super) fn run(&self, words: &str) -> Result<String> {
        let output = self.output(words)?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("docker {words}: {errors}\n{}", self.host.log("dockerd"));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.dockerd.is_some() {
            let _ = self.host.output(&["sh", "-c", "docker ps -aq | xargs -r docker rm -f"]);
        }
        end(self.dockerd.take(), libc::SIGKILL);
        end(self.plugin.take(), libc::SIGKILL);
    }
}

/// Sends a signal and waits for the end.
fn end(child: Option<Child>, signal: i32) {
    if let Some(child) = child {
        engine::end(child, signal);
    }
}

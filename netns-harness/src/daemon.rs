//! Starting, stopping and asking the daemons of a lab.

use anyhow::{Context as _, Result, anyhow, bail};
use overlay_control::Client;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Output, Stdio};
use std::sync::PoisonError;
use std::time::Duration;

use crate::lab::{Host, Lab, tail};
use crate::{netns, wait_for};

/// Where a host keeps the configuration of its daemon.
pub const CONFIG_PATH: &str = "/run/overlay/overlayd.toml";
/// The control socket of a host's daemon.
pub const SOCKET_PATH: &str = "/run/overlay/overlayd.sock";
/// How long a daemon may take to open its control socket.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long a daemon may take to stop cleanly.
const STOP_LIMIT: Duration = Duration::from_secs(15);

impl Lab {
    /// Starts the daemon of a host; its output is appended to the host's log.
    pub fn spawn_daemon(&self, host: &str) -> Result<()> {
        self.spawn_daemon_under(host, &[])
    }

    /// Starts the daemon of a host through another program that becomes it, as `faketime` does.
    pub fn spawn_daemon_under(&self, host: &str, program: &[&str]) -> Result<()> {
        let host = self.host(host)?;
        let mut daemon = host.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        if daemon.is_some() {
            bail!("the daemon of {} runs already", host.name());
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path(host))?;
        let overlayd = self.binaries.path("overlayd");
        let words = [program, &[overlayd.as_str(), "--config", CONFIG_PATH]].concat();
        let mut command = netns::command(host.view(), &words)?;
        command.env("RUST_BACKTRACE", "1").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("overlayd could not be started")?;
        self.record(&child, &format!("overlayd of {}", host.name()))?;
        *daemon = Some(child);
        Ok(())
    }

    /// Starts the daemon of a host and waits until it answers on its control socket.
    pub fn start_daemon(&self, host: &str) -> Result<Duration> {
        self.start_daemon_under(host, &[])
    }

    /// Starts the daemon of a host through another program that becomes it, and waits until it answers.
    pub fn start_daemon_under(&self, host: &str, program: &[&str]) -> Result<Duration> {
        self.spawn_daemon_under(host, program)?;
        let host = self.host(host)?;
        let socket = host.path(SOCKET_PATH);
        let (ended, took) = wait_for(&format!("the control socket of {}", host.name()), START_LIMIT, || {
            let ended = self.daemon_ended(host);
            (ended.is_some() || UnixStream::connect(&socket).is_ok()).then_some(ended)
        })
        .with_context(|| self.log_tail(host))?;
        match ended {
            Some(status) => bail!("overlayd of {} ended with {status}\n{}", host.name(), self.log_tail(host)),
            None => Ok(took),
        }
    }

    /// Starts the daemons of all hosts.
    pub fn start_daemons(&self) -> Result<()> {
        self.hosts().iter().try_for_each(|host| self.start_daemon(host.name()).map(drop))
    }

    /// Asks the daemon of a host to stop and waits for its end.
    pub fn stop_daemon(&self, host: &str) -> Result<ExitStatus> {
        self.end_daemon(host, libc::SIGTERM)
    }

    /// Kills the daemon of a host without a chance to clean up.
    pub fn kill_daemon(&self, host: &str) -> Result<ExitStatus> {
        self.end_daemon(host, libc::SIGKILL)
    }

    fn end_daemon(&self, host: &str, signal: libc::c_int) -> Result<ExitStatus> {
        let host = self.host(host)?;
        let pid = self.daemon_pid(host.name())?;
        // SAFETY: the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(pid, signal) };
        let (status, _) =
            wait_for(&format!("overlayd of {} to end", host.name()), STOP_LIMIT, || self.daemon_ended(host))
                .with_context(|| self.log_tail(host))?;
        host.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(status)
    }

    /// Waits until the daemon of a host ends by itself, and takes its status.
    pub fn wait_daemon_end(&self, host: &str, limit: Duration) -> Result<ExitStatus> {
        let host = self.host(host)?;
        let (status, _) = wait_for(&format!("overlayd of {} to end", host.name()), limit, || self.daemon_ended(host))?;
        host.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(status)
    }

    /// The process number of a host's daemon.
    pub fn daemon_pid(&self, host: &str) -> Result<i32> {
        let daemon = self.host(host)?.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        daemon.as_ref().map(|child| child.id().cast_signed()).ok_or_else(|| anyhow!("no daemon runs on {host}"))
    }

    fn daemon_ended(&self, host: &Host) -> Option<ExitStatus> {
        host.daemon.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.try_wait().ok().flatten()
    }

    /// Runs `overlayctl` on a host.
    pub fn ctl(&self, host: &str, arguments: &[&str]) -> Result<Output> {
        let program = self.binaries.path("overlayctl");
        let mut argv = vec![program.as_str(), "--socket", SOCKET_PATH];
        argv.extend(arguments);
        let view = self.host(host)?.view();
        netns::command(view, &argv)?.stdin(Stdio::null()).output().context("overlayctl could not be started")
    }

    /// Runs `overlayctl` on a host and returns what it printed; a failure is an error with its message.
    pub fn ctl_ok(&self, host: &str, arguments: &[&str]) -> Result<String> {
        let output = self.ctl(host, arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("on {host}: overlayctl {} ended with {}\n{text}{errors}", arguments.join(" "), output.status);
        }
        Ok(text)
    }

    /// Runs `overlayctl --json` on a host and reads the answer.
    pub fn ctl_json(&self, host: &str, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut words = vec!["--json"];
        words.extend(arguments);
        let text = self.ctl_ok(host, &words)?;
        serde_json::from_str(&text).with_context(|| format!("overlayctl {} printed no JSON:\n{text}", words.join(" ")))
    }

    /// A connection to the control socket of a host's daemon.
    pub fn control(&self, host: &str) -> Result<Client> {
        let path = self.host(host)?.path(SOCKET_PATH);
        Client::connect(&path).with_context(|| format!("connecting to the daemon of {host}"))
    }

    /// Runs the daemon of a host through other programs until it ends by itself, for starts that are to fail; what it
    /// printed. A daemon that has not ended within the limit is killed, and that is an error.
    pub fn run_daemon_under(&self, host: &str, program: &[&str], config: &str, limit: Duration) -> Result<Output> {
        let host = self.host(host)?;
        fs::write(host.path("/run/other.toml"), config)?;
        let overlayd = self.binaries.path("overlayd");
        let words = [program, &[overlayd.as_str(), "--config", "/run/other.toml"]].concat();
        let mut command = netns::command(host.view(), &words)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("overlayd could not be started")?;
        self.record(&child, &format!("another overlayd of {}", host.name()))?;
        let ended = wait_for("overlayd to end", limit, || child.try_wait().transpose());
        if ended.is_err() {
            let _ = child.kill();
        }
        let output = child.wait_with_output()?;
        ended.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?.0?;
        Ok(output)
    }

    /// Starts one more daemon on a host with a configuration of its own and gives it to the caller.
    pub fn spawn_other_daemon(&self, host: &str, config: &str) -> Result<Child> {
        let host = self.host(host)?;
        fs::write(host.path("/run/other.toml"), config)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path(host))?;
        let program = self.binaries.path("overlayd");
        let mut command = netns::command(host.view(), &[&program, "--config", "/run/other.toml"])?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("overlayd could not be started")?;
        self.record(&child, &format!("another overlayd of {}", host.name()))?;
        Ok(child)
    }

    /// Attaches a namespace to the overlay through the daemon of a host.
    pub(crate) fn attach(&self, host: &Host, namespace: &str) -> Result<()> {
        self.ctl_ok(host.name(), &["endpoint", "add", "--netns", namespace]).map(drop)
    }

    /// Waits until the daemon of each host says that it and all its members are ready.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        for host in self.hosts() {
            let mut last = String::new();
            wait_for(&format!("{} to be ready", host.name()), limit, || {
                match self.ctl_ok(host.name(), &["wait", "ready", "--timeout", "2s"]) {
                    Ok(_) => Some(()),
                    Err(error) => {
                        last = format!("{error:#}");
                        None
                    }
                }
            })
            .with_context(|| format!("{last}\n{}", self.log_tail(host)))?;
        }
        Ok(())
    }

    /// What the daemon of a host logged so far.
    pub fn log(&self, host: &str) -> Result<String> {
        let bytes = fs::read(self.log_path(self.host(host)?)).unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn log_path(&self, host: &Host) -> PathBuf {
        host.path("overlayd.log")
    }

    fn log_tail(&self, host: &Host) -> String {
        format!("the last lines of the log of {}:\n{}", host.name(), tail(&self.log_path(host), 30))
    }

    pub(crate) fn print_logs(&self) {
        for host in self.hosts() {
            eprintln!("{}", self.log_tail(host));
        }
    }
}

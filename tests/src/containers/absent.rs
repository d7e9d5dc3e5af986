//! What plugins answer, and how soon, while the daemon hangs or is not there.

use anyhow::{Context as _, Result, anyhow, bail};
use overlay_netns_harness::{Lab, wait_for};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::engine::SOCKET;
use super::pod::Pod;
use super::{Bound, Figure, LIMIT, Run, wide};

/// Calls at once: as when a host starts.
const PARALLEL: usize = 4;

/// Verbs of the CNI plugin that need the daemon, and the codes they may answer with.
const VERBS: [(&str, [u64; 2]); 2] = [("ADD", [11, 11]), ("STATUS", [50, 51])];

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay = wide("absent", run)?;
    let lab = &overlay.lab;
    let pods = (0..PARALLEL).map(|number| Pod::new(lab, "h1", &format!("p{number}"))).collect::<Result<Vec<_>>>()?;
    // The control: with the daemon there, the same calls succeed.
    for pod in &pods {
        pod.ok(lab, "STATUS")?;
        pod.ok(lab, "ADD")?;
        pod.ok(lab, "DEL")?;
    }
    let plugin = Plugin::start(lab)?;
    let pid = lab.daemon_pid("h1")?;
    let rounds = run.count(5, 1);
    let mut figures = Vec::new();
    for state in ["hung", "down"] {
        if state == "hung" {
            // SAFETY: the process belongs to this lab and has not been waited for.
            unsafe { libc::kill(pid, libc::SIGSTOP) };
        } else {
            lab.kill_daemon("h1")?;
        }
        let (mut slowest, mut wrong, mut calls) = (0.0_f64, 0, 0);
        for _ in 0..rounds {
            for (verb, codes) in VERBS {
                for (took, code) in ask_all(lab, &pods, verb)? {
                    slowest = slowest.max(took);
                    calls += 1;
                    if !code.is_some_and(|code| codes.contains(&code)) {
                        eprintln!("{state}: {verb} answered {code:?}");
                        wrong += 1;
                    }
                }
            }
        }
        figures.push(Figure::new(
            format!("daemon {state}, {calls} calls of CNI: slowest answer"),
            slowest,
            "s",
            Bound::AtMost(3.0),
        ));
        let what = format!("daemon {state}: answers without code 11, 50 or 51");
        figures.push(Figure::new(what, f64::from(wrong), "answers", Bound::AtMost(0.0)));
        let (slowest, wrong) = ask_plugin(&plugin.socket, rounds)?;
        let what = format!("daemon {state}, Docker's plugin: slowest answer");
        figures.push(Figure::new(what, slowest, "s", Bound::AtMost(3.0)));
        let what = format!("daemon {state}, Docker's plugin: calls that got no error");
        figures.push(Figure::new(what, f64::from(wrong), "calls", Bound::AtMost(0.0)));
    }
    lab.start_daemon("h1")?;
    lab.wait_ready(LIMIT)?;
    for pod in &pods {
        // Engines clean up after a failed ADD.
        pod.ok(lab, "DEL")?;
        pod.ok(lab, "ADD").context("after the daemon's return")?;
        pod.ok(lab, "DEL")?;
    }
    Ok(figures)
}

/// The same call for all at once: seconds and code of each answer.
fn ask_all(lab: &Lab, pods: &[Pod], verb: &str) -> Result<Vec<(f64, Option<u64>)>> {
    std::thread::scope(|scope| {
        let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.call(lab, verb))).collect();
        let replies = calls.into_iter().map(|call| {
            let reply = call.join().map_err(|_| anyhow!("a call panicked"))??;
            Ok((reply.took.as_secs_f64(), reply.code()))
        });
        replies.collect()
    })
}

/// Calls of dockerd that need the daemon: the slowest in seconds, and how many got no error.
fn ask_plugin(socket: &Path, rounds: u64) -> Result<(f64, u32)> {
    let (mut slowest, mut wrong) = (0.0_f64, 0);
    for _ in 0..rounds {
        for (path, body) in [
            ("/IpamDriver.RequestPool", r#"{"AddressSpace":"overlayd","V6":false}"#),
            ("/IpamDriver.RequestAddress", r#"{"PoolID":"none"}"#),
        ] {
            let began = Instant::now();
            let answer = post(socket, path, body)?;
            slowest = slowest.max(began.elapsed().as_secs_f64());
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let value: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
            if !value["Err"].is_string() {
                eprintln!("{path} answered {answer:?}");
                wrong += 1;
            }
        }
    }
    Ok((slowest, wrong))
}

fn post(socket: &Path, path: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer to {path}"))?;
    if answer.is_empty() {
        bail!("an empty answer to {path}");
    }
    Ok(answer)
}

/// Docker's plugin without dockerd.
struct Plugin {
    child: Child,
    socket: std::path::PathBuf,
}

impl Plugin {
    fn start(lab: &Lab) -> Result<Plugin> {
        let program = lab.binary("overlay-docker").context("the plugin is one of the programs")?;
        let mut command = lab.command("h1", &[&program])?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let plugin = Plugin { child, socket: lab.host("h1")?.path(SOCKET) };
        wait_for("the plugin's socket", Duration::from_secs(10), || UnixStream::connect(&plugin.socket).ok())?;
        Ok(plugin)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Pings from a namespace, with the summary read back.

use anyhow::{Context as _, Result, bail};
use std::process::{Child, Stdio};

use crate::netns::{self, View};

/// What a run of `ping` counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PingReport {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo replies received.
    pub received: u32,
    /// Median-like round trip time in milliseconds, where there was one.
    pub average_ms: Option<f64>,
    /// Everything ping printed, errors from routers included.
    pub text: String,
}

impl PingReport {
    /// Every request was answered.
    pub fn is_lossless(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }

    fn parse(text: String) -> PingReport {
        let mut report = PingReport::default();
        for line in text.lines() {
            if let Some((sent, rest)) = line.split_once(" packets transmitted, ") {
                report.sent = sent.trim().parse().unwrap_or(0);
                report.received = rest.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
            } else if let Some((_, numbers)) = line.split_once("min/avg/max/mdev = ") {
                report.average_ms = numbers.split('/').nth(1).and_then(|word| word.parse().ok());
            }
        }
        report.text = text;
        report
    }
}

/// Runs `ping -n -q`-like with the given extra words (for example `-c 3 -s 1472 -M dont`) to an address.
pub fn ping(view: &View, words: &str, to: &str) -> Result<PingReport> {
    // A damaged reply can make ping wait for ever; an interrupt makes it print its summary.
    let mut argv = vec!["timeout", "--signal=INT", "60", "ping", "-n"];
    argv.extend(words.split_whitespace());
    argv.push(to);
    let output = netns::command(view, &argv)?.output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        // 1: no reply, or an error from a router, or the message is too long for the device.
        Some(0 | 1 | 124) => Ok(PingReport::parse(text)),
        _ => bail!("ping {words} {to}: {text}"),
    }
}

/// A `ping` that runs beside what happens meanwhile, for a minute at most.
#[derive(Debug)]
pub struct Pinging {
    child: Option<Child>,
}

impl Pinging {
    /// Starts `ping -n` with the given extra words.
    pub fn start(view: &View, words: &str, to: &str) -> Result<Pinging> {
        let mut argv = vec!["ping", "-n", "-w", "60"];
        argv.extend(words.split_whitespace());
        argv.push(to);
        let mut command = netns::command(view, &argv)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Pinging { child: Some(child.context("ping could not be started")?) })
    }

    /// Ends it and reads what it counted.
    pub fn finish(mut self) -> Result<PingReport> {
        let child = self.child.take().context("it was ended before")?;
        let id = libc::pid_t::try_from(child.id()).context("a process id")?;
        // SAFETY: the process was started here and has not been waited for, so the number is still its own.
        unsafe { libc::kill(id, libc::SIGINT) };
        let output = child.wait_with_output()?;
        Ok(PingReport::parse(String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

impl Drop for Pinging {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_is_read_with_errors_between() {
        let report = PingReport::parse(
            "5 packets transmitted, 4 received, +1 errors, 20% packet loss, time 804ms\n\
             rtt min/avg/max/mdev = 0.026/0.042/0.054/0.010 ms\n"
                .to_owned(),
        );
        assert_eq!((report.sent, report.received, report.average_ms), (5, 4, Some(0.042)));
        assert!(!report.is_lossless());
    }

    #[test]
    fn silence_is_no_success() {
        assert!(!PingReport::parse(String::new()).is_lossless());
    }
}

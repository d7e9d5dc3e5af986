//! Pings from a namespace, with the summary read back.

use anyhow::{Context as _, Result, bail};
use std::io::Read as _;
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

/// A `ping` that runs beside other work.
#[derive(Debug)]
pub struct Pings {
    child: Child,
}

impl Pings {
    /// Starts `ping -n -q` with the given extra words, which say how many to send or for how long, to an address.
    pub fn start(view: &View, words: &str, to: &str) -> Result<Pings> {
        let mut argv = vec!["ping", "-n", "-q"];
        argv.extend(words.split_whitespace());
        argv.push(to);
        let mut command = netns::command(view, &argv)?;
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Pings { child: piped.spawn().context("ping could not be started")? })
    }

    /// Ends it now and reads what it counted; the last one may still be under way.
    pub fn stop(self) -> Result<PingReport> {
        let id = libc::pid_t::try_from(self.child.id()).context("a process id")?;
        // SAFETY: the process was started here and has not been waited for, so the number is still its own.
        unsafe { libc::kill(id, libc::SIGINT) };
        self.finish()
    }

    /// Waits until the last one was answered or given up.
    pub fn finish(mut self) -> Result<PingReport> {
        let mut text = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            output.read_to_string(&mut text)?;
        }
        self.child.wait()?;
        Ok(PingReport::parse(text))
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

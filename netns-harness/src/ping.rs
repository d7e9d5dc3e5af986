//! Pings from a namespace, each echo accounted for by its number.
//!
//! `ping -c N` gives up on its last echo after twice the longest round trip, or one interval, whatever `-W` says: too short on a
//! busy machine. So `ping` runs without a count here, is read line by line, and is ended once the echoes asked for are decided.

use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::netns::{self, View};

/// What a run of `ping` counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PingReport {
    /// Echo requests that were asked for and sent.
    pub sent: u32,
    /// Those of them that were answered, each counted once.
    pub received: u32,
    /// Everything ping printed, errors from routers included.
    pub text: String,
}

impl PingReport {
    /// Every request was answered.
    pub fn is_lossless(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }

    /// Median round trip time in milliseconds, where there was one.
    pub fn median_ms(&self) -> Option<f64> {
        let times = self.text.split("time=").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<f64>().ok());
        let mut times: Vec<f64> = times.collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    }
}

/// Runs `ping -n` with the given words to an address. `-c` is needed; `-i` is 1 s and `-W` 10 s unless told.
///
/// Each answer may take until `-W` after the last echo was due, with as much time again as sending takes.
pub fn ping(view: &View, words: &str, to: &str) -> Result<PingReport> {
    let pings = Pings::start(view, words, to)?;
    ensure!(pings.words.count.is_some(), "ping {words}: say how many with -c");
    pings.finish()
}

/// How long a ping runs at most.
const LONGEST: Duration = Duration::from_secs(300);

/// A `ping` that runs beside other work, for five minutes at most.
#[derive(Debug)]
pub struct Pings {
    child: Child,
    words: Words,
    lines: Receiver<String>,
    started: Instant,
    seen: Seen,
}

impl Pings {
    /// Starts `ping -n` with the given words to an address; without `-c` it goes on until it is stopped.
    pub fn start(view: &View, words: &str, to: &str) -> Result<Pings> {
        let words = Words::parse(words)?;
        let patience = words.patience.as_secs_f64().to_string();
        let mut argv = vec!["ping", "-n"];
        // A single one it waits for as long as told.
        if words.count == Some(1) {
            argv.extend(["-c", "1", "-W", &patience]);
        } else {
            argv.extend(["-w", "300"]);
        }
        argv.extend(words.passed.iter().map(String::as_str));
        argv.push(to);
        let mut command = netns::command(view, &argv)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("ping could not be started")?;
        let (sender, lines) = mpsc::channel();
        let outputs: [Option<Box<dyn Read + Send>>; 2] =
            [child.stdout.take().map(|out| Box::new(out) as _), child.stderr.take().map(|out| Box::new(out) as _)];
        for output in outputs.into_iter().flatten() {
            let sender = sender.clone();
            // Ends with the output, which ends with the process.
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Pings { child, words, lines, started: Instant::now(), seen: Seen::default() })
    }

    /// Ends it once every echo up to the newest one heard of until now is decided or `-W` has passed, and says what became of those.
    pub fn stop(mut self) -> Result<PingReport> {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.note(line);
        }
        let newest = self.seen.newest;
        self.decide(newest, Instant::now() + self.words.patience)
    }

    /// Waits until every echo asked for by `-c` was answered or given up.
    pub fn finish(mut self) -> Result<PingReport> {
        let Some(count) = self.words.count else { bail!("a ping without a count has no end") };
        let Words { interval, patience, .. } = self.words;
        let limit = if count == 1 { LONGEST } else { interval * count * 2 + patience };
        self.decide(count, self.started + limit)
    }

    fn decide(&mut self, count: u32, limit: Instant) -> Result<PingReport> {
        while !self.seen.are_decided(count) {
            match self.lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.note(line),
                Err(RecvTimeoutError::Timeout) => break,
                // It ended by itself: told to do what it cannot, or after its five minutes.
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    // 1: no reply, or one that says why not.
                    ensure!(matches!(status.code(), Some(0 | 1)), "ping: {status}: {}", self.seen.text);
                    break;
                }
            }
        }
        Ok(self.seen.report(count))
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The words given, those that are our own business taken out.
#[derive(Debug, Clone, PartialEq)]
struct Words {
    count: Option<u32>,
    interval: Duration,
    patience: Duration,
    passed: Vec<String>,
}

impl Words {
    fn parse(text: &str) -> Result<Words> {
        let mut words =
            Words { count: None, interval: Duration::from_secs(1), patience: Duration::from_secs(10), passed: vec![] };
        let seconds = |value: Option<&str>| -> Result<Duration> {
            Ok(Duration::try_from_secs_f64(value.context("a number of seconds is missing")?.parse()?)?)
        };
        let mut rest = text.split_whitespace();
        while let Some(word) = rest.next() {
            match word {
                "-c" => words.count = Some(rest.next().context("a count is missing")?.parse()?),
                "-W" => words.patience = seconds(rest.next())?,
                "-i" => {
                    words.interval = seconds(rest.next())?;
                    words.passed.extend(["-i".to_owned(), words.interval.as_secs_f64().to_string()]);
                }
                "-q" | "-w" | "-f" => bail!("ping {text}: {word} does not go with counting each echo"),
                other => words.passed.push(other.to_owned()),
            }
        }
        Ok(words)
    }
}

/// What the lines read until now say.
#[derive(Debug, Default)]
struct Seen {
    answered: BTreeSet<u32>,
    /// Refused on the way, by a router.
    refused: BTreeSet<u32>,
    /// Refused by the own host: these lines have no number.
    unsent: u32,
    newest: u32,
    text: String,
}

impl Seen {
    fn note(&mut self, line: String) {
        let number = line
            .split_once("icmp_seq=")
            .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        match number {
            Some(number) if line.contains(" bytes from ") => {
                self.answered.insert(number);
                self.newest = self.newest.max(number);
            }
            Some(number) => {
                self.refused.insert(number);
                self.newest = self.newest.max(number);
            }
            None if line.starts_with("ping: ") => self.unsent += 1,
            None => (),
        }
        self.text += &line;
        self.text.push('\n');
    }

    fn are_decided(&self, count: u32) -> bool {
        let decided = self.answered.union(&self.refused).filter(|number| **number <= count).count();
        u32::try_from(decided).unwrap_or(u32::MAX).saturating_add(self.unsent) >= count
    }

    fn report(&self, count: u32) -> PingReport {
        let received = self.answered.iter().filter(|number| **number <= count).count();
        PingReport { sent: count, received: u32::try_from(received).unwrap_or(u32::MAX), text: self.text.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lines: &[&str]) -> Seen {
        let mut seen = Seen::default();
        lines.iter().for_each(|line| seen.note((*line).to_owned()));
        seen
    }

    fn answer(number: u32) -> String {
        format!("64 bytes from 10.0.0.1: icmp_seq={number} ttl=64 time=0.05 ms")
    }

    #[test]
    fn echoes_are_counted_once_each_and_none_beyond_those_asked_for() {
        let lines = [answer(1), answer(3), format!("{} (DUP!)", answer(1)), answer(4)];
        let seen = seen(&lines.each_ref().map(String::as_str));
        assert!(!seen.are_decided(3), "the second is open");
        assert_eq!((seen.report(3).sent, seen.report(3).received), (3, 2));
        assert!(!seen.report(3).is_lossless());
        assert_eq!(seen.report(4).received, 3);
    }

    #[test]
    fn answer_that_comes_after_a_later_one_counts() {
        let seen = seen(&[&answer(2), &answer(1)]);
        assert!(seen.are_decided(2) && seen.report(2).is_lossless());
        assert_eq!(seen.report(2).median_ms(), Some(0.05));
    }

    #[test]
    fn refusal_decides_an_echo_but_is_no_answer() {
        let seen = seen(&[
            "PING 10.0.0.1 (10.0.0.1) 1472(1500) bytes of data.",
            "From 10.0.0.9 icmp_seq=1 Frag needed and DF set (mtu = 1420)",
            "ping: local error: message too long, mtu=1420",
        ]);
        assert!(seen.are_decided(2) && !seen.are_decided(3));
        assert_eq!(seen.report(2).received, 0);
    }

    #[test]
    fn words_that_are_ours_do_not_reach_ping() {
        let words = Words::parse("-c 100 -i 0.01 -W 2 -s 1472 -M dont").unwrap();
        assert_eq!(words.passed.join(" "), "-i 0.01 -s 1472 -M dont");
        assert_eq!((words.count, words.patience), (Some(100), Duration::from_secs(2)));
        assert!(Words::parse("-c 5 -w 5").unwrap_err().to_string().contains("-w"));
        assert!(Words::parse("-c").is_err() && Words::parse("-i x").is_err() && Words::parse("-W -1").is_err());
    }

    #[test]
    fn silence_is_no_success() {
        assert!(!seen(&[]).report(0).is_lossless());
        assert!(!seen(&[]).report(1).is_lossless());
    }
}

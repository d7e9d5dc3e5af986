//! What a run showed: rows with their limits, and what it cost.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// One measured value and its limit.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The most it may be.
    pub limit: Option<f64>,
}

impl Row {
    /// A value that may not exceed a limit.
    #[must_use]
    pub fn limited(what: impl Into<String>, value: f64, unit: &'static str, limit: f64) -> Self {
        Self { what: what.into(), value, unit, limit: Some(limit) }
    }

    /// A value for information.
    #[must_use]
    pub fn shown(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { what: what.into(), value, unit, limit: None }
    }

    /// Whether it is within its limit.
    #[must_use]
    pub fn held(&self) -> bool {
        self.limit.is_none_or(|limit| self.value <= limit)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<52} {:>10.3} {:<8}", self.what, self.value, self.unit)?;
        match self.limit {
            Some(limit) if self.held() => write!(f, " held, at most {limit}"),
            Some(limit) => write!(f, " MISSED, at most {limit}"),
            None => Ok(()),
        }
    }
}

/// The result of one scenario; the same for the same seed.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The scenario.
    pub scenario: String,
    /// Hosts.
    pub nodes: usize,
    /// Probability of loss.
    pub loss: f64,
    /// The seed.
    pub seed: u64,
    /// Virtual time simulated.
    pub virtual_seconds: f64,
    /// Hosts times virtual time.
    pub host_hours: f64,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Hash over all datagrams.
    pub fingerprint: String,
}

impl Outcome {
    /// Whether every row is within its limit.
    #[must_use]
    pub fn held(&self) -> bool {
        self.rows.iter().all(Row::held)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, nodes, loss, seed, virtual_seconds, host_hours, rows, fingerprint } = self;
        let percent = loss * 100.0;
        writeln!(f, "{scenario}: {nodes} hosts, {percent} % loss, seed {seed}")?;
        rows.iter().try_for_each(|row| writeln!(f, "  {row}"))?;
        writeln!(f, "  {virtual_seconds:.0} virtual seconds, {host_hours:.1} host-hours, datagrams {fingerprint}")
    }
}

/// Memory of one host in a simulated cluster, at most.
const PEAK_MIB_PER_HOST: f64 = 64.0;

/// What a run cost on this machine.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// Processor time in seconds.
    pub cpu_seconds: f64,
    /// The most memory in use, in MiB.
    pub peak_mib: f64,
    /// The same per host.
    pub peak_mib_per_host: f64,
    /// The most that may be.
    pub limit_mib_per_host: f64,
}

impl Cost {
    /// Of this process up to now.
    #[must_use]
    pub fn so_far(nodes: usize) -> Self {
        let schedule = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
        let nanos: f64 = schedule.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: f64 = peak.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
        let peak_mib = kib / 1024.0;
        let (cpu_seconds, peak_mib_per_host) = (nanos / 1e9, peak_mib / nodes as f64);
        Self { cpu_seconds, peak_mib, peak_mib_per_host, limit_mib_per_host: PEAK_MIB_PER_HOST }
    }

    /// Whether the memory is within its limit.
    #[must_use]
    pub fn held(&self) -> bool {
        self.peak_mib_per_host <= self.limit_mib_per_host
    }
}

/// The smallest value that so many percent of all do not exceed, in seconds; 0 of none.
#[must_use]
pub fn percentile(values: &[Duration], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<Duration> = (1..=200).rev().map(Duration::from_secs).collect();
        assert_eq!([50.0, 99.0, 100.0].map(|percent| percentile(&values, percent)), [100.0, 198.0, 200.0]);
        assert_eq!(percentile(&values[..1], 50.0), 200.0);
        assert_eq!(percentile(&[], 50.0), 0.0);
    }
}

//! Throughput against wireguard-go, boringtun-cli and a plain veth, and what an idle daemon costs.
//!
//! All contenders stand at the same time and are measured in turns, so that a change of the machine's mood hits all.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use overlay_netns_harness::{Binaries, Profile, netns, ping, wait_for};
use serde::Serialize;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::contenders::{Contender, Rig};
use crate::machine::Machine;
use crate::table::Table;
use crate::{packages, signals};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One short round.
    #[arg(long)]
    quick: bool,
    /// Write the result to this file.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
    /// Only these contenders, by name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Parallel TCP streams.
    #[arg(long, default_value_t = 1)]
    streams: u32,
    /// Seconds per run.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

/// The figures that the result of a full run holds, on record in `docs/results/bench.json`.
pub(crate) const FIGURES: &[&str] = &[
    "wireguard / boringtun-cli",
    "wireguard / wireguard-go",
    "ipip / wireguard",
    "gre / wireguard",
    "idle, percent of one core",
    "idle, resident MiB",
    "start to first packet, seconds",
];

/// The throughput of one contender.
#[derive(Debug, Serialize)]
struct Throughput {
    name: String,
    runs_mbit_per_s: Vec<f64>,
    median_mbit_per_s: f64,
}

/// What one of our daemons costs while nothing happens.
#[derive(Debug, Serialize)]
struct Idle {
    percent_of_one_core: f64,
    resident_mib: f64,
    start_to_first_packet_s: f64,
}

/// A figure held against its target.
#[derive(Debug, Serialize)]
struct Figure {
    what: String,
    value: f64,
    target: String,
    held: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    streams: u32,
    seconds: u32,
    throughput: Vec<Throughput>,
    idle: Option<Idle>,
    figures: Vec<Figure>,
}

pub(crate) fn run_bench(options: &Options) -> Result<ExitCode> {
    packages::ensure(packages::BENCH)?;
    signals::clean_on_interrupt();
    println!("building overlayd and overlayctl (release)");
    let binaries = Binaries::build(Profile::Release)?;
    let wanted: Vec<Contender> = Contender::ALL
        .into_iter()
        .filter(|contender| options.only.is_empty() || options.only.iter().any(|name| name == contender.name()))
        .collect();
    if wanted.is_empty() {
        bail!("no contender is named so; there are {}", Contender::ALL.map(Contender::name).join(", "));
    }
    let (rounds, seconds) = if options.quick { (1, options.seconds.min(2)) } else { (5, options.seconds) };
    let mut rigs = Vec::new();
    for (index, contender) in wanted.into_iter().enumerate() {
        println!("setting up {}", contender.name());
        let rig = Rig::build(contender, &format!("x{index}"), &binaries)
            .with_context(|| format!("setting up {}", contender.name()))?;
        wait_for(&format!("a ping over {}", contender.name()), Duration::from_secs(10), || {
            let report = ping(&rig.from.view, "-c 1 -W 0.2", &rig.to.v4.to_string()).ok()?;
            report.is_lossless().then_some(())
        })?;
        rigs.push(rig);
    }
    let mut runs = vec![Vec::new(); rigs.len()];
    for round in 1..=rounds {
        for (rig, runs) in rigs.iter().zip(&mut runs) {
            let mbit =
                iperf(rig, seconds, options.streams).with_context(|| format!("measuring {}", rig.contender.name()))?;
            println!("round {round}: {:<14} {mbit:>8.0} Mbit/s", rig.contender.name());
            runs.push(mbit);
        }
    }
    let idle = match rigs.iter().find(|rig| rig.contender == Contender::Ours("wireguard")) {
        Some(rig) => Some(idle(rig, if options.quick { 2 } else { 10 })?),
        None => None,
    };
    let throughput: Vec<Throughput> = rigs
        .iter()
        .zip(runs)
        .map(|(rig, runs)| Throughput {
            name: rig.contender.name().to_owned(),
            median_mbit_per_s: median(&runs),
            runs_mbit_per_s: runs,
        })
        .collect();
    let figures = figures(&throughput, idle.as_ref());
    let report = Report { machine: Machine::here(), streams: options.streams, seconds, throughput, idle, figures };
    show(&report);
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let held = report.figures.iter().all(|figure| figure.held);
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run of iperf3, client on the first processor and server on the second.
fn iperf(rig: &Rig, seconds: u32, streams: u32) -> Result<f64> {
    let to = rig.to.v4.to_string();
    let server = ["taskset", "-c", "1", "iperf3", "--server", "--bind", &to];
    let mut server = netns::command(&rig.to.view, &server)?.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let limit = 10 + 2 * u64::from(seconds);
    let (seconds, streams) = (seconds.to_string(), streams.to_string());
    let client = [
        "taskset",
        "-c",
        "0",
        "iperf3",
        "--client",
        &to,
        "--time",
        &seconds,
        "--omit",
        "1",
        "--congestion",
        "cubic",
        "--parallel",
        &streams,
        "--json",
    ];
    // The server says nothing useful when it listens, so the client tries until it does.
    let mut last = String::new();
    let result = wait_for("an iperf3 run", Duration::from_secs(limit), || {
        let output = netns::command(&rig.from.view, &client).ok()?.stdin(Stdio::null()).output().ok()?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        last = report["error"].as_str().unwrap_or_default().to_owned();
        report["end"]["sum_received"]["bits_per_second"].as_f64()
    });
    let _ = server.kill();
    let _ = server.wait();
    let (bits, _) = result.with_context(|| format!("iperf3 said last: {last}"))?;
    Ok(bits / 1e6)
}

/// Processor share and memory of the daemon of h1 over some seconds, then the time both need from start to first packet.
fn idle(rig: &Rig, seconds: u64) -> Result<Idle> {
    let pid = rig.lab.daemon_pid("h1")?;
    let (start, before) = (Instant::now(), cpu_seconds(pid)?);
    let _ = wait_for::<()>("the end of the idle time", Duration::from_secs(seconds), || None);
    let percent_of_one_core = (cpu_seconds(pid)? - before) / start.elapsed().as_secs_f64() * 100.0;
    let resident_mib = resident_mib(pid)?;
    for host in ["h1", "h2"] {
        rig.lab.stop_daemon(host)?;
    }
    let (from, to) = (rig.lab.host("h1")?, rig.lab.host("h2")?);
    let start = Instant::now();
    rig.lab.spawn_daemon("h1")?;
    rig.lab.spawn_daemon("h2")?;
    wait_for("the first packet after a start", Duration::from_secs(20), || {
        let report = ping(from.view(), "-c 1 -W 0.05", &to.overlay_v4().to_string()).ok()?;
        report.is_lossless().then_some(())
    })?;
    Ok(Idle { percent_of_one_core, resident_mib, start_to_first_packet_s: start.elapsed().as_secs_f64() })
}

fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok((ticks(11) + ticks(12)) / per_second)
}

fn resident_mib(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("the kernel reports no memory")?;
    let kib = line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
    Ok(kib.context("the kernel reports no memory")? / 1024.0)
}

fn figures(throughput: &[Throughput], idle: Option<&Idle>) -> Vec<Figure> {
    let rate = |name: &str| throughput.iter().find(|entry| entry.name == name).map(|entry| entry.median_mbit_per_s);
    let mut figures = Vec::new();
    for (name, base, least) in [
        ("wireguard", "boringtun-cli", 4.0),
        ("wireguard", "wireguard-go", 4.0),
        ("ipip", "wireguard", 0.8),
        ("gre", "wireguard", 0.8),
    ] {
        if let (Some(ours), Some(theirs)) = (rate(name), rate(base)) {
            let value = ours / theirs;
            figures.push(Figure {
                what: format!("{name} / {base}"),
                value,
                target: format!("at least {least}"),
                held: value >= least,
            });
        }
    }
    if let Some(idle) = idle {
        for (what, value, most) in [
            ("idle, percent of one core", idle.percent_of_one_core, 0.5),
            ("idle, resident MiB", idle.resident_mib, 32.0),
            ("start to first packet, seconds", idle.start_to_first_packet_s, 1.5),
        ] {
            figures.push(Figure {
                what: what.to_owned(),
                value,
                target: format!("at most {most}"),
                held: value <= most,
            });
        }
    }
    figures
}

fn show(report: &Report) {
    let mut table = Table::new(&["over", "median Mbit/s", "runs"]);
    for entry in &report.throughput {
        let runs: Vec<String> = entry.runs_mbit_per_s.iter().map(|run| format!("{run:.0}")).collect();
        table.row([entry.name.clone(), format!("{:.0}", entry.median_mbit_per_s), runs.join(" ")]);
    }
    println!("\n{table}");
    let mut table = Table::new(&["figure", "value", "target", "result"]);
    for figure in &report.figures {
        let result = if figure.held { "held" } else { "MISSED" };
        table.row([figure.what.clone(), format!("{:.2}", figure.value), figure.target.clone(), result.to_owned()]);
    }
    println!("{table}");
    let machine = &report.machine;
    println!(
        "{}, {} processors, kernel {}, commit {}",
        machine.processor, machine.processors, machine.kernel, machine.commit
    );
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn ratio_below_its_target_is_missed() {
        let entry = |name: &str, rate| Throughput {
            name: name.to_owned(),
            runs_mbit_per_s: vec![rate],
            median_mbit_per_s: rate,
        };
        let figures = figures(&[entry("wireguard", 390.0), entry("boringtun-cli", 100.0), entry("gre", 390.0)], None);
        let held: Vec<bool> = figures.iter().map(|figure| figure.held).collect();
        assert_eq!(held, [false, true]);
    }
}

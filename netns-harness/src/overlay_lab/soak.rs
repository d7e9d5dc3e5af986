//! The full forms of the measurements, with a result file.

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::wire::WireSpec;
use overlay_netns_harness::{
    Binaries, Cluster, Container, HostSpec, Lab, Profile, Topology, ping, wait_for, workspace,
};
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::{packages, rows, saving, signals, sim};

const ENCAPSULATIONS: [&str; 3] = ["wireguard", "gre", "ipip"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// 1 GiB over each encapsulation, with underlays of 1500 and 1400 and in both families, every byte compared.
    Mtu,
    /// A daemon killed again and again: how long until traffic is back.
    Restart,
    /// Verified streams over wires that delay, reorder, corrupt, lose and repeat.
    Faults,
    /// Throughput with and without saving the flow table, in turns.
    Saving,
    /// Every `sim-...` that has no result of this source yet: after an interruption it goes on where it was.
    Sim,
    /// A thousand hosts, simulated: how soon all know a change of routes.
    SimSpread,
    /// A thousand hosts, simulated: how soon all know a death.
    SimDeaths,
    /// Simulated, 24 virtual hours among them: nobody is given up because of a liar and a half-connected host.
    SimFalseDeaths,
    /// A thousand hosts, simulated: how soon all tables are equal after a partition.
    SimPartition,
    /// A thousand hosts, simulated: what each sends while nothing happens.
    SimIdle,
    /// A thousand certified hosts, simulated: how soon nobody knows a revoked one any more.
    SimRevocation,
    /// Hundreds of hosts, simulated: all start at once.
    SimStarts,
    /// Simulated: a random part of all faults.
    SimChaos,
    /// The figures of membership on real daemons: revocation, tokens, forgery, floods, kills. Each row alone with `--row`.
    Membership,
    /// The figures of containers on real daemons, plugins and engines. Each row alone with `--row`.
    Containers,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which one.
    name: Name,
    /// Start of the random sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Part of the full size, in percent.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100))]
    size: u64,
    /// Where to write; default `docs/results/NAME.json`.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only this row of `membership` or `containers`.
    #[arg(long, alias = "only")]
    row: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    name: String,
    machine: Machine,
    seed: u64,
    size_percent: u64,
    measurements: Vec<Measurement>,
    held: bool,
}

/// One line of a result.
#[derive(Debug, Serialize)]
pub(crate) struct Measurement {
    what: String,
    pub(crate) value: f64,
    unit: String,
    error: Option<String>,
}

impl Measurement {
    /// A value that may not exceed its limit.
    pub(crate) fn limited(what: String, value: f64, unit: String, limit: Option<f64>) -> Self {
        let error = limit.filter(|limit| value > *limit).map(|limit| format!("at most {limit} {unit}"));
        Self { what, value, unit, error }
    }

    /// A measurement that did not come to its end.
    pub(crate) fn failed(what: String, error: String) -> Self {
        Self { what, value: 0.0, unit: String::new(), error: Some(error) }
    }

    pub(crate) fn print(&self) {
        match &self.error {
            Some(error) => println!("{}: {:.2} {} FAILED: {error}", self.what, self.value, self.unit),
            None => println!("{}: {:.2} {}", self.what, self.value, self.unit),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let set = match options.name {
        Name::Membership => Some(&rows::MEMBERSHIP),
        Name::Containers => Some(&rows::CONTAINERS),
        _ => None,
    };
    if let Some(set) = set {
        return rows::run(set, options.row.as_deref(), options.seed, options.size, options.json.as_deref());
    }
    let name = options.name.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    if options.name == Name::Sim {
        ensure!(options.json.is_none(), "`soak sim` writes one file for each of its parts; give --json to one of them");
        let mut held = true;
        for part in &sim::PARTS {
            let path = result_path(part.name);
            if is_current(&path, options) {
                println!("{}: {} is of this source and held", part.name, path.display());
            } else {
                held &= record(part.name, &path, options, sim::full(part, options.seed, options.size)?)?;
            }
        }
        return Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let part = sim::PARTS.iter().find(|part| part.name == name);
    let measurements = match (part, options.name) {
        (Some(part), _) => sim::full(part, options.seed, options.size)?,
        (None, Name::Mtu) => mtu(&with_daemons()?, options)?,
        (None, Name::Restart) => restart(&with_daemons()?, options)?,
        (None, Name::Faults) => faults(&with_daemons()?, options)?,
        (None, Name::Saving) => saving::run(&with_daemons()?, options.size)?,
        (None, _) => bail!("no part of the simulation is called {name}"),
    };
    let path = options.json.clone().unwrap_or_else(|| result_path(&name));
    let held = record(&name, &path, options, measurements)?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn result_path(name: &str) -> PathBuf {
    workspace().join(format!("docs/results/{name}.json"))
}

/// Writes a result; whether everything held.
fn record(name: &str, path: &Path, options: &Options, measurements: Vec<Measurement>) -> Result<bool> {
    let held = measurements.iter().all(|measurement| measurement.error.is_none());
    let (machine, seed, size_percent) = (Machine::here(), options.seed, options.size);
    let report = Report { name: name.to_owned(), machine, seed, size_percent, measurements, held };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("writing {}", path.display()))?;
    println!("{}, written to {}", if held { "all held" } else { "something did not hold" }, path.display());
    Ok(held)
}

/// Whether a result held, is of this seed and size, and nothing that it follows from has changed since.
fn is_current(path: &Path, options: &Options) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let Some(commit) = report["machine"]["commit"].as_str().filter(|commit| !commit.ends_with("-dirty")) else {
        return false;
    };
    let unchanged = Command::new("git")
        .current_dir(workspace())
        .args(["diff", "--quiet", commit, "--", "wire", "routing", "tests/src/sim", "Cargo.lock"])
        .status()
        .is_ok_and(|status| status.success());
    unchanged && report["held"] == true && report["seed"] == options.seed && report["size_percent"] == options.size
}

fn with_daemons() -> Result<Binaries> {
    packages::ensure(packages::DEMO)?;
    signals::clean_on_interrupt();
    println!("building overlayd and overlayctl (release)");
    Binaries::build(Profile::Release)
}

/// Two hosts with one container each.
fn cluster(binaries: &Binaries, encapsulation: &str, hosts: &[HostSpec]) -> Result<(Lab, Container, Container)> {
    let name = format!("soak{}", std::process::id());
    let lab = Lab::create(&name, Topology::Routed, hosts, binaries.clone())?;
    Cluster::new(hosts.len(), encapsulation).write(&lab)?;
    lab.start_daemons()?;
    let containers = (lab.add_container("h1", "c1")?, lab.add_container("h2", "c1")?);
    lab.wait_ready(Duration::from_secs(20))?;
    Ok((lab, containers.0, containers.1))
}

pub(crate) fn measured(what: String, unit: &'static str, work: impl FnOnce() -> Result<f64>) -> Measurement {
    let result = work();
    let error = result.as_ref().err().map(|error| format!("{error:#}"));
    let value = result.unwrap_or(0.0);
    let measurement = Measurement { what, value, unit: unit.to_owned(), error };
    measurement.print();
    measurement
}

fn mtu(binaries: &Binaries, options: &Options) -> Result<Vec<Measurement>> {
    let bytes = (1 << 30) * options.size / 100;
    let mut all = Vec::new();
    for encapsulation in ENCAPSULATIONS {
        for underlay in [1500, 1400] {
            let hosts = [HostSpec::named("h1"), HostSpec::named("h2").with_mtu(underlay)];
            let (_lab, from, to) = cluster(binaries, encapsulation, &hosts)?;
            for address in [IpAddr::V4(to.v4), IpAddr::V6(to.v6)] {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                let title = format!("{encapsulation}, underlay {underlay}, {family}");
                all.push(measured(format!("{title}: {bytes} bytes compared"), "Mbit/s", || {
                    let server = Server::start(to.view.namespace(), SocketAddr::new(address, 0))?;
                    let from = from.view.namespace();
                    let transfer = load::send(from, server.address(), Amount::Bytes(bytes), Content::Verified)?;
                    Ok(transfer.bits_per_second() / 1e6)
                }));
                all.push(measured(format!("{title}: pings of 1472 bytes without DF"), "answers", || {
                    // IPv6 is never fragmented on the way: the first packet is answered "too big" and teaches the sender.
                    if address.is_ipv6() {
                        ping(&from.view, "-c 1 -W 2 -s 1472 -M dont", &address.to_string())?;
                    }
                    let report = ping(&from.view, "-c 100 -i 0.01 -W 2 -s 1472 -M dont", &address.to_string())?;
                    ensure!(report.is_lossless(), "{}", report.text);
                    Ok(f64::from(report.received))
                }));
            }
        }
    }
    Ok(all)
}

fn restart(binaries: &Binaries, options: &Options) -> Result<Vec<Measurement>> {
    let mut all = Vec::new();
    for encapsulation in ENCAPSULATIONS {
        let (lab, from, to) = cluster(binaries, encapsulation, &HostSpec::numbered(2))?;
        for round in 0..options.size {
            let host = if round % 2 == 0 { "h1" } else { "h2" };
            all.push(measured(format!("{encapsulation}, kill {} of {host}: traffic after", round + 1), "s", || {
                lab.kill_daemon(host)?;
                let start = Instant::now();
                lab.spawn_daemon(host)?;
                wait_for("traffic", Duration::from_secs(20), || {
                    let report = ping(&from.view, "-c 1 -W 0.1", &to.v4.to_string()).ok()?;
                    report.is_lossless().then_some(())
                })?;
                let took = start.elapsed().as_secs_f64();
                ensure!(took <= 2.0, "traffic was back after {took:.2} s, 2 s is the limit");
                Ok(took)
            }));
        }
    }
    Ok(all)
}

fn faults(binaries: &Binaries, options: &Options) -> Result<Vec<Measurement>> {
    let bytes = (64 << 20) * options.size / 100;
    let mut all = Vec::new();
    let wires = [
        ("delay 10 ms", WireSpec { delay_ms: 10.0, ..WireSpec::default() }),
        ("reorder 5 %", WireSpec { delay_ms: 1.0, reorder_percent: 5.0, ..WireSpec::default() }),
        ("corrupt 0.5 %", WireSpec { corrupt_percent: 0.5, ..WireSpec::default() }),
        ("lose 1 %, repeat 1 %", WireSpec { loss_percent: 1.0, duplicate_percent: 1.0, ..WireSpec::default() }),
    ];
    for encapsulation in ENCAPSULATIONS {
        for (title, wire) in &wires {
            let wire = WireSpec { seed: options.seed, ..wire.clone() };
            let hosts = [HostSpec::named("h1").with_wire(wire), HostSpec::named("h2")];
            let (_lab, from, to) = cluster(binaries, encapsulation, &hosts)?;
            all.push(measured(format!("{encapsulation}, {title}: {bytes} bytes compared"), "Mbit/s", || {
                let server = Server::start(to.view.namespace(), SocketAddr::new(to.v4.into(), 0))?;
                let from = from.view.namespace();
                let transfer = load::send(from, server.address(), Amount::Bytes(bytes), Content::Verified)?;
                Ok(transfer.bits_per_second() / 1e6)
            }));
        }
    }
    Ok(all)
}

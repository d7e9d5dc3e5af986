//! Labs that stay: up, status, exec, cut, heal, down, clean.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use overlay_netns_harness::wire::WireSpec;
use overlay_netns_harness::{Binaries, Cluster, HostSpec, Impairment, Lab, Profile, Topology, clean};
use std::process::ExitCode;
use std::time::Duration;

use crate::table::Table;
use crate::{packages, signals};

/// The name of a lab for which none was given.
const DEFAULT: &str = "lab";

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The lab, as given to `up --name`.
    #[arg(default_value = DEFAULT)]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct UpOptions {
    /// Name of the lab: lower-case letters and digits.
    #[arg(long, default_value = DEFAULT)]
    name: String,
    /// Number of hosts, named h1, h2, …
    #[arg(long, default_value_t = 3)]
    hosts: usize,
    /// Containers on each host, named h1c1, h1c2, …
    #[arg(long, default_value_t = 2)]
    containers: usize,
    /// wireguard, gre or ipip.
    #[arg(long, default_value = "wireguard")]
    encapsulation: String,
    /// MTU of a host's underlay link, as h2=1400.
    #[arg(long, value_parser = pair::<u32>)]
    mtu: Vec<(String, u32)>,
    /// Packets lost on a host's link in percent, as h3=5.
    #[arg(long, value_parser = pair::<f64>)]
    loss: Vec<(String, f64)>,
    /// Packets that arrive twice on a host's link in percent, as h3=5.
    #[arg(long, value_parser = pair::<f64>)]
    duplicate: Vec<(String, f64)>,
    /// Delay of a host's link in milliseconds, as h1=20 (through a userspace wire).
    #[arg(long, value_parser = pair::<f64>)]
    delay: Vec<(String, f64)>,
    /// Additional random delay of a host's link in milliseconds, as h1=5 (through a userspace wire; reorders).
    #[arg(long, value_parser = pair::<f64>)]
    jitter: Vec<(String, f64)>,
    /// Frames of a host's link with a flipped bit in percent, as h1=1 (through a userspace wire).
    #[arg(long, value_parser = pair::<f64>)]
    corrupt: Vec<(String, f64)>,
    /// Seed of the userspace wires.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ExecOptions {
    /// The lab.
    #[arg(long, default_value = DEFAULT)]
    name: String,
    /// A host (h1), a container (h1c1) or the switch (sw).
    place: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LinkOptions {
    /// The lab.
    #[arg(long, default_value = DEFAULT)]
    name: String,
    /// The host.
    host: String,
    /// Only between the host and this one.
    other: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CleanOptions {
    /// Only this lab; it is removed even when the process that made it still runs.
    name: Option<String>,
    /// Also labs whose process still runs.
    #[arg(long)]
    all: bool,
}

pub(crate) fn up(options: &UpOptions) -> Result<()> {
    packages::ensure(packages::DEMO)?;
    signals::clean_on_interrupt();
    println!("building overlayd and overlayctl");
    let binaries = Binaries::build(Profile::Release)?;
    let lab = Lab::create(&options.name, Topology::Routed, &hosts(options)?, binaries)?;
    for (host, loss_percent) in &options.loss {
        lab.impair(
            host,
            Impairment { loss_percent: *loss_percent, duplicate_percent: value(&options.duplicate, host) },
        )?;
    }
    for (host, duplicate_percent) in &options.duplicate {
        lab.impair(
            host,
            Impairment { loss_percent: value(&options.loss, host), duplicate_percent: *duplicate_percent },
        )?;
    }
    Cluster::new(options.hosts, &options.encapsulation).write(&lab)?;
    println!("starting {} daemons", options.hosts);
    lab.start_daemons()?;
    for host in lab.hosts() {
        for number in 1..=options.containers {
            let container = lab.add_container(host.name(), &format!("c{number}"))?;
            println!("{}: {} {}", container.name, container.v4, container.v6);
        }
    }
    lab.wait_ready(Duration::from_secs(20))?;
    println!("ready; try: cargo lab exec h1 -- overlayctl status");
    lab.keep()
}

fn hosts(options: &UpOptions) -> Result<Vec<HostSpec>> {
    let mut hosts = HostSpec::numbered(options.hosts);
    let named = options.mtu.iter().map(|(host, _)| host);
    let faults = [&options.loss, &options.duplicate, &options.delay, &options.jitter, &options.corrupt];
    for name in named.chain(faults.iter().flat_map(|list| list.iter().map(|(host, _)| host))) {
        if !hosts.iter().any(|host| host.name == *name) {
            bail!("there is no host {name}; with --hosts {} there are h1 to h{}", options.hosts, options.hosts);
        }
    }
    for host in &mut hosts {
        if let Some((_, mtu)) = options.mtu.iter().find(|(name, _)| *name == host.name) {
            host.mtu = *mtu;
        }
        let wire = WireSpec {
            seed: options.seed,
            delay_ms: value(&options.delay, &host.name),
            jitter_ms: value(&options.jitter, &host.name),
            corrupt_percent: value(&options.corrupt, &host.name),
            ..WireSpec::default()
        };
        if wire != (WireSpec { seed: options.seed, ..WireSpec::default() }) {
            host.wire = Some(wire);
        }
    }
    Ok(hosts)
}

pub(crate) fn status(options: &Named) -> Result<()> {
    let labs = clean::labs();
    if !labs.iter().any(|(name, _)| *name == options.name) {
        if labs.is_empty() {
            println!("no lab; `cargo lab up` makes one");
        }
        for (name, owned) in labs {
            println!("{name}: {}", if owned { "in use by the process that made it" } else { "left by an earlier run" });
        }
        return Ok(());
    }
    let lab = Lab::open(&options.name, Binaries::built())?;
    let mut table = Table::new(&["host", "underlay", "overlay", "daemon", "containers"]);
    for host in lab.hosts() {
        let answers = lab.ctl(host.name(), &["version"]).is_ok_and(|output| output.status.success());
        let containers = lab.containers().into_iter().filter(|(on, _)| on == host.name());
        table.row([
            host.name().to_owned(),
            host.underlay_v4().to_string(),
            host.prefixes().join(" "),
            if answers { "answers" } else { "does not answer" }.to_owned(),
            containers.map(|(_, name)| name).collect::<Vec<_>>().join(" "),
        ]);
    }
    print!("{table}");
    Ok(())
}

pub(crate) fn exec(options: &ExecOptions) -> Result<ExitCode> {
    let lab = Lab::open(&options.name, Binaries::built())?;
    let mut argv: Vec<&str> = options.command.iter().map(String::as_str).collect();
    let program = lab.binary(argv[0]);
    if let Some(program) = &program {
        argv[0] = program;
    }
    let status =
        lab.command(&options.place, &argv)?.status().with_context(|| format!("{} could not be started", argv[0]))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

pub(crate) fn cut(options: &LinkOptions) -> Result<()> {
    let lab = Lab::open(&options.name, Binaries::built())?;
    match &options.other {
        Some(other) => lab.cut_between(&options.host, other),
        None => lab.cut(&options.host),
    }
}

pub(crate) fn heal(options: &LinkOptions) -> Result<()> {
    Lab::open(&options.name, Binaries::built())?.heal(&options.host)
}

pub(crate) fn down(options: &Named) -> Result<()> {
    if let Some((_, true)) = clean::labs().into_iter().find(|(name, _)| *name == options.name) {
        bail!(
            "the lab {} is in use by the process that made it; `cargo lab clean {0}` removes it all the same",
            options.name
        );
    }
    clean::lab(&options.name)
}

pub(crate) fn clean(options: &CleanOptions) -> Result<()> {
    if let Some(name) = &options.name {
        return clean::lab(name);
    }
    let mut failures = Vec::new();
    for (name, owned) in clean::labs() {
        if owned && !options.all {
            println!("{name} is left alone: the process that made it still runs (`--all` removes it too)");
            continue;
        }
        match clean::lab(&name) {
            Ok(()) => println!("removed {name}"),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

fn pair<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let wrong = || format!("{text:?} is not HOST=NUMBER, for example h2=1400");
    let (host, value) = text.split_once('=').ok_or_else(wrong)?;
    Ok((host.to_owned(), value.parse().map_err(|_| wrong())?))
}

fn value(list: &[(String, f64)], host: &str) -> f64 {
    list.iter().find(|(name, _)| name == host).map_or(0.0, |(_, value)| *value)
}

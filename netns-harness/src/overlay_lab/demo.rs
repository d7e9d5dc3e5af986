//! The demonstration: three hosts with two containers each, once per encapsulation, and two containers of a real engine
//! where one is installed.

use anyhow::{Context as _, Result};
use clap::Args;
use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{Binaries, Cluster, Container, HostSpec, Lab, Profile, Topology, ping, wait_for};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::table::Table;
use crate::{packages, signals};

mod engine;

const ENCAPSULATIONS: [&str; 3] = ["wireguard", "gre", "ipip"];
/// A port every container may reach.
const OPEN_PORT: u16 = 5001;
/// A port the policy rejects.
const CLOSED_PORT: u16 = 5002;
const RULE: &str = "reject tcp/5002 from any to any name demo-closed-port";
/// A subnet behind h1 that is announced while the cluster runs.
const ANNOUNCED: &str = "192.168.7.0/24";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this encapsulation.
    #[arg(long)]
    encapsulation: Option<String>,
    /// Length of each TCP measurement in seconds.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    packages::ensure(packages::DEMO)?;
    signals::clean_on_interrupt();
    println!("building overlayd and overlayctl (release)");
    let binaries = Binaries::build(Profile::Release)?;
    let start = Instant::now();
    let mut table = Table::new(&["from", "to", "over", "ping", "TCP", "result"]);
    let mut held = true;
    for encapsulation in ENCAPSULATIONS {
        if options.encapsulation.as_deref().is_some_and(|only| only != encapsulation) {
            continue;
        }
        held &= stage(encapsulation, &binaries, options, &mut table)
            .with_context(|| format!("the cluster over {encapsulation}"))?;
    }
    println!("\n{table}");
    let seconds = start.elapsed().as_secs_f64();
    if held {
        println!("all held, in {seconds:.0} s");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("something did not hold (see above), in {seconds:.0} s");
        Ok(ExitCode::FAILURE)
    }
}

fn stage(encapsulation: &str, binaries: &Binaries, options: &Options, table: &mut Table) -> Result<bool> {
    println!("\n== {encapsulation}: three hosts, two containers on each");
    let start = Instant::now();
    let name = format!("demo{}", std::process::id());
    let lab = Lab::create(&name, Topology::Routed, &HostSpec::numbered(3), binaries.clone())?;
    let mut cluster = Cluster::new(3, encapsulation);
    cluster.rules = vec![RULE.to_owned()];
    cluster.allow.push(ANNOUNCED.to_owned());
    cluster.write(&lab)?;
    lab.start_daemons()?;
    let mut containers = Vec::new();
    for host in lab.hosts() {
        for number in 1..=2 {
            containers.push(lab.add_container(host.name(), &format!("c{number}"))?);
        }
    }
    lab.wait_ready(Duration::from_secs(20))?;
    println!("   daemons and containers ready after {:.1} s", start.elapsed().as_secs_f64());
    let mut held = gossip(&lab)?;
    for (from, to) in [(0, 2), (3, 4), (5, 1)] {
        held &= pair(encapsulation, &containers[from], &containers[to], options, table)?;
    }
    held &= denial(encapsulation, &containers[0], &containers[2], table)?;
    if encapsulation == ENCAPSULATIONS[0] {
        held &= self::engine::show(&lab, table)?;
    }
    if !held {
        for host in lab.hosts() {
            println!("{}", lab.log(host.name())?);
        }
    }
    Ok(held)
}

/// Shows what h2 learned, and that a subnet announced while running arrives.
fn gossip(lab: &Lab) -> Result<bool> {
    lab.ctl_ok("h1", &["route", "add", ANNOUNCED])?;
    let wanted = ["10.42.1.0/24", "10.42.3.0/24", ANNOUNCED];
    let mut routes = String::new();
    let learned = wait_for("the routes to arrive at h2", Duration::from_secs(10), || {
        routes = lab.ctl_ok("h2", &["route", "list"]).unwrap_or_default();
        wanted.iter().all(|prefix| routes.contains(prefix)).then_some(())
    });
    println!("   subnets known to h2, learned by gossip:");
    routes.lines().for_each(|line| println!("     {line}"));
    if let Err(error) = &learned {
        println!("   {error}");
    }
    Ok(learned.is_ok())
}

fn pair(over: &str, from: &Container, to: &Container, options: &Options, table: &mut Table) -> Result<bool> {
    let server4 = Server::start(to.view.namespace(), SocketAddr::new(IpAddr::V4(to.v4), OPEN_PORT))?;
    let server6 = Server::start(to.view.namespace(), SocketAddr::new(IpAddr::V6(to.v6), OPEN_PORT))?;
    let mut held = true;
    for server in [&server4, &server6] {
        let address = server.address();
        let report = ping(&from.view, "-c 5 -i 0.05 -W 2", &address.ip().to_string())?;
        let time = Duration::from_secs_f64(options.seconds);
        let transfer = load::send(from.view.namespace(), address, Amount::Time(time), Content::Counted);
        let good = report.is_lossless() && transfer.is_ok();
        held &= good;
        let rate = match &transfer {
            Ok(transfer) => format!("{:.0} Mbit/s", transfer.bits_per_second() / 1e6),
            Err(error) => {
                println!("   {error:#}");
                "failed".to_owned()
            }
        };
        let round_trip = report.median_ms().map(|ms| format!(" {ms:.2} ms")).unwrap_or_default();
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        println!("   {} -> {} {family}: {}/{} pings, {rate}", from.name, to.name, report.received, report.sent);
        table.row([
            from.name.clone(),
            address.ip().to_string(),
            over.to_owned(),
            format!("{}/{}{round_trip}", report.received, report.sent),
            rate,
            if good { "ok" } else { "FAILED" }.to_owned(),
        ]);
    }
    Ok(held)
}

/// A server listens on the closed port, so that only the policy can refuse; the open port is the control.
fn denial(over: &str, from: &Container, to: &Container, table: &mut Table) -> Result<bool> {
    let mut held = true;
    for address in [IpAddr::V4(to.v4), IpAddr::V6(to.v6)] {
        let closed = Server::start(to.view.namespace(), SocketAddr::new(address, CLOSED_PORT))?;
        let open = Server::start(to.view.namespace(), SocketAddr::new(address, OPEN_PORT))?;
        let control = load::send(from.view.namespace(), open.address(), Amount::Bytes(1000), Content::Verified);
        let refused = load::send(from.view.namespace(), closed.address(), Amount::Bytes(1000), Content::Verified);
        let denied = refused.as_ref().is_err_and(|error| format!("{error:#}").contains("refused"));
        let good = control.is_ok() && denied;
        held &= good;
        let answer = match &refused {
            Ok(_) => "went through".to_owned(),
            Err(_) if denied => format!("port {CLOSED_PORT} refused"),
            Err(error) => {
                println!("   {error:#}");
                "not refused".to_owned()
            }
        };
        println!("   {} -> {}: {answer} ({RULE})", from.name, closed.address());
        table.row([
            from.name.clone(),
            address.to_string(),
            over.to_owned(),
            "-".to_owned(),
            answer,
            if good { "denied as expected" } else { "FAILED" }.to_owned(),
        ]);
    }
    Ok(held)
}

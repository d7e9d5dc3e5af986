//! What saving the flow table costs while packets pass: throughput with and without it, in turns, in one run.
//!
//! Saving is held up by a directory that stands where the new file would be written: the attempt ends before a flow is
//! read. So both halves of a round have the same daemons, the same flows and the same path.

use anyhow::{Context as _, Result, ensure};
use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{Cluster, Container, HostSpec, Lab, Topology, netns, wait_for};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::soak::{Measurement, measured};

/// Flows in the tables of both hosts while it is measured.
const FLOWS: u16 = 60_000;
/// Room for them from one source, which may hold an eighth of a table.
const LIMITS: &str = "[limits]\nconntrack_entries = 524288\n";
/// How long one half of a round takes; at least one save falls into it.
const TIME: Duration = Duration::from_secs(8);
/// Bytes of the saved file around the flows, and of one flow.
const FILE: [u64; 2] = [84, 133];
/// The least ratio that is no cost: the machine's own noise, over the median of all rounds.
const LEAST: f64 = 0.95;

struct Rig {
    lab: Lab,
    from: Container,
    to: Container,
    /// One for all rounds: every other port would make as many flows again.
    socket: UdpSocket,
}

impl Rig {
    fn path(&self, host: &str, name: &str) -> Result<PathBuf> {
        Ok(self.lab.host(host)?.path("/var/lib/overlay").join(name))
    }

    /// Sends one datagram on each flow, from one socket: unanswered flows live for 30 s.
    fn fill(&self) {
        for port in 1..=FLOWS {
            // A refusal by ICMP is reported at the next call and means nothing here.
            let _ = self.socket.send_to(&[0], (self.to.v4, port));
        }
    }

    fn hold_up(&self, saving: bool) -> Result<()> {
        for host in ["h1", "h2"] {
            let obstacle = self.path(host, "flows.new")?;
            if saving {
                std::fs::remove_dir(&obstacle)?;
            } else {
                // A save under way leaves its file there for a moment.
                wait_for("the end of a save", Duration::from_secs(10), || std::fs::create_dir(&obstacle).ok())?;
            }
        }
        Ok(())
    }

    fn saved(&self) -> Result<Vec<(u64, u64)>> {
        let file = |host| -> Result<(u64, u64)> {
            let data = self.path(host, "flows.state")?.metadata()?;
            Ok((data.ino(), data.len().saturating_sub(FILE[0]) / FILE[1]))
        };
        ["h1", "h2"].into_iter().map(file).collect()
    }

    /// Megabits per second, with saves or without any.
    fn half(&self, saving: bool) -> Result<f64> {
        if !saving {
            self.hold_up(false)?;
        }
        let outcome = self.transfer(saving);
        if !saving {
            self.hold_up(true)?;
        }
        outcome
    }

    fn transfer(&self, saving: bool) -> Result<f64> {
        self.fill();
        let server = Server::start(self.to.view.namespace(), SocketAddr::new(self.to.v4.into(), 0))?;
        let before = self.saved()?;
        let transfer = load::send(self.from.view.namespace(), server.address(), Amount::Time(TIME), Content::Counted)?;
        let after = self.saved()?;
        let moved = before.iter().zip(&after).filter(|(before, after)| before.0 != after.0).count();
        ensure!(moved == if saving { 2 } else { 0 }, "{moved} of 2 hosts saved in a half with saving {saving}");
        let least = after.iter().map(|(_, flows)| *flows).min().unwrap_or(0);
        ensure!(!saving || least > u64::from(FLOWS) / 2, "only {least} flows were saved");
        Ok(transfer.bits_per_second() / 1e6)
    }
}

/// Measures in rounds; the last line is the median of their ratios.
pub(crate) fn run(binaries: &overlay_netns_harness::Binaries, size: u64) -> Result<Vec<Measurement>> {
    let lab = Lab::create(
        &format!("soak{}", std::process::id()),
        Topology::Routed,
        &HostSpec::numbered(2),
        binaries.clone(),
    )?;
    let mut cluster = Cluster::new(2, "wireguard");
    for host in ["h1", "h2"] {
        cluster.extra.insert(host.to_owned(), LIMITS.to_owned());
    }
    cluster.write(&lab)?;
    lab.start_daemons()?;
    let (from, to) = (lab.add_container("h1", "c1")?, lab.add_container("h2", "c1")?);
    lab.wait_ready(Duration::from_secs(20))?;
    let socket = netns::within(from.view.namespace(), || Ok(UdpSocket::bind((from.v4, 0))?))?;
    let rig = Rig { lab, from, to, socket };
    wait_for("the first save on both hosts", Duration::from_secs(30), || rig.saved().ok())?;
    let (mut all, mut ratios) = (Vec::new(), Vec::new());
    for round in 1..=(size / 10).max(1) {
        let mut rates = [0.0; 2];
        // Which half comes first changes, so that a drift of the machine cancels.
        for step in 0..2 {
            let saving = (round + step) % 2 == 0;
            let what = format!("round {round}, {} saving {FLOWS} flows", if saving { "with" } else { "without" });
            let measurement = measured(what, "Mbit/s", || rig.half(saving));
            rates[usize::from(saving)] = measurement.value;
            all.push(measurement);
        }
        if rates.iter().all(|rate| *rate > 0.0) {
            ratios.push(rates[1] / rates[0]);
        }
    }
    ratios.sort_by(f64::total_cmp);
    all.push(measured("with / without, median of rounds".to_owned(), "", || {
        let ratio = *ratios.get(ratios.len() / 2).context("no round was complete")?;
        ensure!(ratio >= LEAST, "saving costs throughput: {ratio:.3} of it is left, {LEAST} is the least");
        Ok(ratio)
    }));
    Ok(all)
}

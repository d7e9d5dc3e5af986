//! The CNI plugin and the daemon killed at random instants of `ADD` and `DEL`. What an engine does after a failure is done
//! here too: `DEL` until it succeeds. Then exactly what is attached is there, in the daemon and in the kernel.

use anyhow::{Context as _, Result, bail, ensure};
use overlay_control::api::{EndpointInfo, NatRequest, Request, Response};
use overlay_netns_harness::{Lab, ping, run_in, wait_for};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Child;
use std::time::{Duration, Instant};

use super::pod::{Pod, finish};
use super::{Bound, Figure, LIMIT, Run, wide};
use crate::{Overlay, Snapshot};

/// Containers that come and go.
const PODS: usize = 8;
/// Calls at once, at most.
const CALLS: u32 = 4;
/// How long what is gone may still be seen.
const SETTLED: Duration = Duration::from_secs(5);
/// The latest instant of a kill during the daemon's start.
const EARLY: Duration = Duration::from_millis(120);
/// Rounds from one look at the kernel to the next.
const LOOK_EVERY: u64 = 12;

/// What is to be attached, by name: addresses.
type Attached = BTreeMap<String, BTreeSet<IpAddr>>;

#[derive(Debug, Default)]
struct Tally {
    of_plugin: u64,
    of_daemon: u64,
    leaks: BTreeSet<String>,
    duplicates: BTreeSet<String>,
    unreachable: u64,
    slowest_cleanup: f64,
}

struct Scene {
    overlay: Overlay,
    pods: Vec<Pod>,
    attached: Attached,
    random: ChaCha20Rng,
    /// How long calls take when nothing is killed, by verb.
    usual: BTreeMap<&'static str, Duration>,
    tally: Tally,
}

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay = wide("ctkills", run)?;
    println!("kills: seed {}", run.seed);
    let before = still(&Snapshot::take(&overlay.lab.view("h1")?)?);
    let pods = (0..PODS).map(|number| {
        let pod = Pod::new(&overlay.lab, "h1", &format!("k{number}"))?;
        Ok(pod.with_port(7400 + number as u16))
    });
    let pods = pods.collect::<Result<Vec<_>>>()?;
    let random = ChaCha20Rng::seed_from_u64(run.seed);
    let (attached, usual, tally) = (Attached::new(), BTreeMap::new(), Tally::default());
    let mut scene = Scene { overlay, pods, attached, random, usual, tally };
    scene.learn()?;
    let (wanted, mut round) = (run.count(1000, 25), 0);
    while scene.tally.of_plugin + scene.tally.of_daemon < wanted {
        ensure!(round < wanted * 4 + 40, "of {round} rounds only a few met a call");
        scene.round(round).with_context(|| format!("round {round}, seed {}", run.seed))?;
        round += 1;
    }
    scene.finish(&before)?;
    let tally = scene.tally;
    let what = format!("{wanted} kills during ADD and DEL");
    for (kind, list) in [("leaked", &tally.leaks), ("duplicate", &tally.duplicates)] {
        list.iter().for_each(|one| eprintln!("{kind}: {one}"));
    }
    Ok(vec![
        Figure::new(format!("{what}: of the plugin"), tally.of_plugin as f64, "kills", Bound::Told),
        Figure::new(format!("{what}: of the daemon"), tally.of_daemon as f64, "kills", Bound::Told),
        Figure::new(
            "links, addresses, leases, ports, rules left behind",
            tally.leaks.len() as f64,
            "things",
            Bound::AtMost(0.0),
        ),
        Figure::new("addresses of two containers", tally.duplicates.len() as f64, "addresses", Bound::AtMost(0.0)),
        Figure::new(
            "attached containers that did not reach the other host",
            tally.unreachable as f64,
            "times",
            Bound::AtMost(0.0),
        ),
        Figure::new("slowest return to exactly what is attached", tally.slowest_cleanup, "s", Bound::Told),
    ])
}

impl Scene {
    fn below(&mut self, limit: u32) -> u32 {
        self.random.next_u32() % limit.max(1)
    }

    fn instant(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(f64::from(self.random.next_u32()) / f64::from(u32::MAX))
    }

    /// Sees how long undisturbed calls take, so that kills fall into them.
    fn learn(&mut self) -> Result<()> {
        for _ in 0..3 {
            for verb in ["ADD", "DEL"] {
                let reply = self.pods[0].ok(&self.overlay.lab, verb)?;
                self.usual.insert(verb, reply.took);
            }
        }
        Ok(())
    }

    fn round(&mut self, round: u64) -> Result<()> {
        let count = 1 + self.below(CALLS);
        let mut chosen = BTreeSet::new();
        while chosen.len() < count as usize {
            chosen.insert(self.below(PODS as u32) as usize);
        }
        let verbs: Vec<(usize, &'static str)> = chosen
            .into_iter()
            .map(|at| (at, if self.attached.contains_key(&self.pods[at].name) { "DEL" } else { "ADD" }))
            .collect();
        let daemon_dies = self.below(10) < 4;
        // When each plugin is killed, and the daemon beside one of them.
        let mut kills: Vec<(Duration, Option<usize>)> = Vec::new();
        for (call, (_, verb)) in verbs.iter().enumerate() {
            let latest = self.usual.get(verb).copied().unwrap_or(LIMIT).mul_f64(1.1);
            if self.below(10) < 6 {
                kills.push((self.instant(latest), Some(call)));
            }
            if daemon_dies && call == 0 {
                kills.push((self.instant(latest), None));
            }
        }
        kills.sort_unstable();
        let began = Instant::now();
        let mut calls: Vec<(usize, &'static str, Child)> = Vec::new();
        for (at, verb) in verbs {
            calls.push((at, verb, self.pods[at].start(&self.overlay.lab, verb)?));
        }
        for (instant, call) in kills {
            pass(instant.saturating_sub(began.elapsed()));
            if let Some(call) = call {
                let child = &mut calls[call].2;
                if child.try_wait()?.is_none() {
                    child.kill()?;
                    self.tally.of_plugin += 1;
                }
            } else {
                let mut running = 0;
                for (_, _, child) in &mut calls {
                    running += u64::from(child.try_wait()?.is_none());
                }
                self.overlay.lab.kill_daemon("h1")?;
                self.tally.of_daemon += running.min(1);
            }
        }
        let mut failed = Vec::new();
        for (at, verb, child) in calls {
            let reply = finish(child, began)?;
            let name = self.pods[at].name.clone();
            match (verb, reply.success) {
                ("ADD", true) => drop(self.attached.insert(name, reply.addresses()?.into_iter().collect())),
                ("DEL", true) => drop(self.attached.remove(&name)),
                _ => {
                    self.attached.remove(&name);
                    failed.push(at);
                }
            }
        }
        if daemon_dies {
            if self.below(2) == 0 {
                // Engines do not wait for the daemon with their cleaning up.
                self.clean_up(&failed)?;
            }
            if self.below(4) == 0 {
                let early = self.instant(EARLY);
                self.overlay.lab.spawn_daemon("h1")?;
                pass(early);
                self.overlay.lab.kill_daemon("h1")?;
            }
            self.overlay.lab.start_daemon("h1")?;
        }
        self.clean_up(&failed)?;
        self.compare(round)
    }

    fn clean_up(&self, failed: &[usize]) -> Result<()> {
        for at in failed {
            self.pods[*at].ok(&self.overlay.lab, "DEL").context("cleaning up after a failure")?;
        }
        Ok(())
    }

    /// Compares what is attached with what the daemon and, now and then, the kernel have.
    fn compare(&mut self, round: u64) -> Result<()> {
        let lab = &self.overlay.lab;
        let same = wait_for("the daemon to have what is attached", SETTLED, || {
            let given = endpoints(lab).ok()?;
            (named(&given) == self.attached).then_some(given)
        });
        let given = match same {
            Ok((given, took)) => {
                self.tally.slowest_cleanup = self.tally.slowest_cleanup.max(took.as_secs_f64());
                given
            }
            Err(_) => {
                let given = endpoints(lab)?;
                self.tally.leaks.insert(format!("round {round}: {given:?} instead of {:?}", self.attached));
                given
            }
        };
        let mut seen = BTreeSet::new();
        for address in given.iter().flat_map(|one| &one.addresses) {
            if !seen.insert(*address) {
                self.tally.duplicates.insert(format!("round {round}: {address}"));
            }
        }
        if round.is_multiple_of(LOOK_EVERY) {
            self.look(round, &given)?;
        }
        Ok(())
    }

    /// The kernel has the links, routes and rules of these and of no other; and they work.
    fn look(&mut self, round: u64, given: &[EndpointInfo]) -> Result<()> {
        let lab = &self.overlay.lab;
        let wanted: BTreeSet<String> = given.iter().map(|one| one.host_interface.clone()).collect();
        let view = lab.view("h1")?;
        let mut last = Vec::new();
        let same = wait_for("the kernel to have what is attached", SETTLED, || {
            last.clear();
            for (what, words) in [
                ("links", "ip -o link show group 42"),
                ("routes", "ip route show table 1001"),
                ("IPv6 routes", "ip -6 route show table 1001"),
                ("ARP bindings", "nft list set arp overlay bound"),
                ("IPv4 bindings", "nft list set inet overlay bound4"),
                ("IPv6 bindings", "nft list set inet overlay bound6"),
            ] {
                let text = run_in(&view, &words.split(' ').collect::<Vec<_>>()).unwrap_or_default();
                let there = interfaces(&text);
                if there != wanted {
                    last.push(format!("round {round}, {what}: {there:?} instead of {wanted:?}"));
                }
            }
            let leases = leases(lab).unwrap_or_default();
            if leases != wanted.len() {
                last.push(format!("round {round}: {leases} leases instead of {}", wanted.len()));
            }
            let ports = ports(lab).unwrap_or(usize::MAX);
            // One for each family.
            if ports != 2 * wanted.len() {
                last.push(format!("round {round}: {ports} ports instead of {}", 2 * wanted.len()));
            }
            last.is_empty().then_some(())
        });
        match same {
            Ok(((), took)) => self.tally.slowest_cleanup = self.tally.slowest_cleanup.max(took.as_secs_f64()),
            Err(_) => self.tally.leaks.extend(last),
        }
        let far = IpAddr::V4(self.overlay.container("h2c1").v4).to_string();
        for pod in &self.pods {
            let is_attached = self.attached.contains_key(&pod.name);
            let inside = run_in(&pod.view, &["ip", "-o", "link"])?.contains("eth0");
            if inside != is_attached {
                self.tally.leaks.insert(format!("round {round}: {} has eth0: {inside}", pod.name));
            }
            if is_attached {
                let reached = wait_for("a packet", LIMIT, || {
                    ping(&pod.view, "-c 1 -W 0.3", &far).ok()?.is_lossless().then_some(())
                });
                self.tally.unreachable += u64::from(reached.is_err());
            }
        }
        Ok(())
    }

    /// Takes all away; the host is as it was before the first container.
    fn finish(&mut self, before: &Snapshot) -> Result<()> {
        for pod in &self.pods {
            pod.ok(&self.overlay.lab, "DEL")?;
        }
        self.attached.clear();
        self.compare(0)?;
        let view = self.overlay.lab.view("h1")?;
        let mut difference = String::new();
        let same = wait_for("the host to be as before", SETTLED, || {
            difference = before.difference(&still(&Snapshot::take(&view).ok()?));
            difference.is_empty().then_some(())
        });
        if same.is_err() {
            self.tally.leaks.insert(format!("at the end: {difference}"));
        }
        Ok(())
    }
}

/// What a start of the daemon leaves as it was: not the ports on which it serves names, nor how the device's state is told.
fn still(snapshot: &Snapshot) -> Snapshot {
    let lines = snapshot.0.lines().filter(|line| !line.contains("dport 53 dnat"));
    let lines = lines.map(|line| line.replace("state UNKNOWN", "state UP"));
    Snapshot(lines.collect::<Vec<_>>().join("\n"))
}

/// Lets time pass: the instant of a kill is what varies.
fn pass(time: Duration) {
    let until = Instant::now() + time;
    while let left @ 1.. = until.saturating_duration_since(Instant::now()).as_micros() {
        let wait = libc::timespec { tv_sec: 0, tv_nsec: (left.min(900_000) * 1000) as libc::c_long };
        // SAFETY: the time is valid and nothing is written.
        unsafe { libc::nanosleep(&wait, std::ptr::null_mut()) };
    }
}

fn endpoints(lab: &Lab) -> Result<Vec<EndpointInfo>> {
    match lab.control("h1")?.call(Request::EndpointList)? {
        Response::Endpoints(endpoints) => Ok(endpoints),
        other => bail!("an answer of the wrong kind: {}", other.name()),
    }
}

/// Endpoints by the name of their container, which is the part before the interface.
fn named(given: &[EndpointInfo]) -> Attached {
    let name = |one: &EndpointInfo| {
        let netns = one.netns.rsplit('-').next().unwrap_or_default();
        netns.to_owned()
    };
    given.iter().map(|one| (name(one), one.addresses.iter().copied().collect())).collect()
}

fn ports(lab: &Lab) -> Result<usize> {
    match lab.control("h1")?.call(Request::Nat(NatRequest::List))? {
        Response::PublishedPorts(ports) => Ok(ports.len()),
        other => bail!("an answer of the wrong kind: {}", other.name()),
    }
}

/// Leases on disk, without those that rest.
fn leases(lab: &Lab) -> Result<usize> {
    let files = std::fs::read_dir(lab.host("h1")?.path("/var/lib/overlay/leases"))?;
    let names = files.map(|file| Ok(file?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    Ok(names.iter().filter(|name| !name.starts_with("cooling-")).count())
}

/// Host ends of containers that a text names: `ov` and ten digits.
fn interfaces(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let is_one = |word: &&str| {
        word.len() > 4 && word.starts_with("ov") && word[2..].chars().all(|digit| digit.is_ascii_hexdigit())
    };
    words.filter(is_one).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ends_are_found_in_what_tools_print() {
        let text =
            "7: ov0123456789@if6: <UP>\n10.42.1.4 dev ov00000000ab proto 99\n\"ovffffffffff\" . 10.42.1.5, overlay0";
        let wanted = ["ov0123456789", "ov00000000ab", "ovffffffffff"].map(str::to_owned);
        assert_eq!(interfaces(text), BTreeSet::from(wanted));
    }
}

//! Faults around a running container: a full disk, namespaces that are gone, input that is not what it should be, and rules that
//! somebody flushes. Each gets an answer in the client's own format in time, nothing is left, and the container goes on.

use anyhow::{Context as _, Result, bail, ensure};
use overlay_control::api::{Request, Response};
use overlay_netns_harness::{Cluster, HostSpec, Lab, Pings, Topology, netns, run_in, wait_for};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::pod::{Pod, Reply};
use super::{Bound, Figure, LIMIT, Run};
use crate::lab_name;

/// The state directory's own file system, in bytes.
const DISK: u64 = 4 << 20;
/// More input than any engine sends.
const LARGE: usize = 1 << 20;

#[derive(Debug, Default)]
struct Answers {
    count: u64,
    slowest: f64,
    wrong: u64,
}

impl Answers {
    /// Counts an answer that has to be one of these codes, or a success where it is `None`.
    fn note(&mut self, what: &str, reply: &Reply, wanted: Option<&[u64]>) {
        self.count += 1;
        self.slowest = self.slowest.max(reply.took.as_secs_f64());
        let is_right = match wanted {
            None => reply.success,
            Some(codes) => {
                let is_told = reply.value["msg"].as_str().is_some_and(|text| !text.is_empty());
                is_told && reply.code().is_some_and(|code| codes.contains(&code))
            }
        };
        if !is_right {
            eprintln!("{what}: {reply:?}");
            self.wrong += 1;
        }
    }
}

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let hosts = HostSpec::numbered(2);
    let lab = Lab::create(&lab_name("faults"), Topology::Routed, &hosts, run.binaries.clone())?;
    let disk = Disk::mount(&lab.host("h1")?.path("/var/lib/overlay"))?;
    Cluster::new(hosts.len(), "wireguard").write(&lab)?;
    lab.start_daemons()?;
    let far = lab.add_container("h2", "c1")?;
    lab.wait_ready(LIMIT)?;
    let [running, other, gone] =
        [Pod::new(&lab, "h1", "stays")?, Pod::new(&lab, "h1", "other")?, Pod::new(&lab, "h1", "gone")?];
    let v4 = running.ok(&lab, "ADD")?.addresses()?[0];
    wait_for("the running container to answer", LIMIT, || {
        overlay_netns_harness::ping(&far.view, "-c 1 -W 0.3", &v4.to_string()).ok()?.is_lossless().then_some(())
    })?;
    let pings = Pings::start(&far.view, "-i 0.05 -W 2", &v4.to_string())?;
    let mut answers = Answers::default();
    for _ in 0..run.count(5, 1) {
        full_disk(&lab, &disk, &other, &mut answers)?;
        bad_input(&lab, &other, &mut answers)?;
    }
    netns::remove(gone.view.namespace())?;
    // Without a namespace there is nothing to attach to; ending it is fine.
    answers.note("ADD without its namespace", &gone.call(&lab, "ADD")?, Some(&[4, 5, 7, 100, 102]));
    answers.note("DEL without its namespace", &gone.call(&lab, "DEL")?, None);
    let back = flush(&lab)?;
    let report = pings.stop()?;
    let left = attached(&lab)?;
    ensure!(left >= 1, "the running container is not attached any more");
    running.ok(&lab, "DEL")?;
    let lost = report.sent - report.received;
    Ok(vec![
        Figure::new(
            format!("{} answers during faults, slowest", answers.count),
            answers.slowest,
            "s",
            Bound::AtMost(3.0),
        ),
        Figure::new("answers that were not what they should be", answers.wrong as f64, "answers", Bound::AtMost(0.0)),
        Figure::new("endpoints left beside the running one", (left - 1) as f64, "endpoints", Bound::AtMost(0.0)),
        Figure::new(
            format!("echoes lost by the running container, of {}", report.sent),
            f64::from(lost),
            "echoes",
            Bound::AtMost(0.0),
        ),
        Figure::new("flushed rules are back after", back, "s", Bound::AtMost(1.0)),
    ])
}

/// No room for a lease: it is refused and nothing is left; with room again, all goes well.
fn full_disk(lab: &Lab, disk: &Disk, pod: &Pod, answers: &mut Answers) -> Result<()> {
    disk.fill()?;
    answers.note("ADD with a full disk", &pod.call(lab, "ADD")?, Some(&[5, 11, 100]));
    ensure!(attached(lab)? == 1, "a refused container is attached");
    answers.note("DEL of it", &pod.call(lab, "DEL")?, None);
    disk.free()?;
    answers.note("ADD with room again", &pod.call(lab, "ADD")?, None);
    // An end has to be written down too: it fails in time or succeeds, and the next try succeeds.
    disk.fill()?;
    let ended = pod.call(lab, "DEL")?;
    answers.note("DEL with a full disk", &ended, if ended.success { None } else { Some(&[5, 11, 100]) });
    disk.free()?;
    answers.note("DEL with room again", &pod.call(lab, "DEL")?, None);
    wait_for("the endpoint to go", LIMIT, || (attached(lab).ok()? == 1).then_some(()))?;
    Ok(())
}

fn bad_input(lab: &Lab, pod: &Pod, answers: &mut Answers) -> Result<()> {
    let config = |rest: &str| format!(r#"{{"cniVersion":"1.1.0","name":"overlay","type":"overlay-cni"{rest}}}"#);
    // Much of what nobody reads is no fault, and neither are keys that are not known.
    let padding = config(&format!(r#","x-padding":"{}""#, "x".repeat(LARGE)));
    let reply = pod.call_with(lab, "ADD", &padding)?;
    answers.note("ADD with a mebibyte", &reply, if reply.success { None } else { Some(&[6, 7]) });
    answers.note("DEL after it", &pod.call(lab, "DEL")?, None);
    for (what, input) in [
        ("a wrong type", config(r#","runtimeConfig":7"#)),
        ("no JSON", "{".to_owned()),
        ("nothing", String::new()),
        ("depth", "[".repeat(LARGE)),
        ("a bad name", config("").replace(r#""overlay","#, r#""../../etc","#)),
    ] {
        answers.note(what, &pod.call_with(lab, "ADD", &input)?, Some(&[6, 7]));
    }
    ensure!(attached(lab)? == 1, "bad input attached something");
    Ok(())
}

/// Flushes all rules of the first host; seconds until ours are back.
fn flush(lab: &Lab) -> Result<f64> {
    let view = lab.view("h1")?;
    let tables = ["inet overlay", "arp overlay", "inet overlay-host", "inet overlay-nat"];
    run_in(&view, &["nft", "flush", "ruleset"])?;
    let ((), took) = wait_for("our tables to be back", LIMIT, || {
        let there = run_in(&view, &["nft", "list", "tables"]).ok()?;
        tables.iter().all(|table| there.lines().any(|line| line == format!("table {table}"))).then_some(())
    })?;
    Ok(took.as_secs_f64())
}

fn attached(lab: &Lab) -> Result<usize> {
    match lab.control("h1")?.call(Request::EndpointList)? {
        Response::Endpoints(endpoints) => Ok(endpoints.len()),
        other => bail!("an answer of the wrong kind: {}", other.name()),
    }
}

/// A small file system in memory, mounted over a directory until this is dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(directory: &Path) -> Result<Disk> {
        std::fs::create_dir_all(directory)?;
        let options = format!("size={DISK},mode=0700");
        let words = ["-t", "tmpfs", "-o", &options, "overlay-faults"];
        let status = Command::new("mount").args(words).arg(directory).status()?;
        ensure!(status.success(), "mounting a small file system: {status}");
        Ok(Disk(directory.to_owned()))
    }

    /// Takes all room.
    fn fill(&self) -> Result<()> {
        let mut file = std::fs::File::create(self.0.join("filler")).context("no room for a file to fill the disk")?;
        for size in [4096, 512, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        std::fs::remove_file(self.0.join("filler")).context("freeing the disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Daemons that are still there keep it until they end.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

//! A mark in every inner packet, looked for on the underlay while everything happens that makes a tunnel come and go.

use anyhow::{Context as _, Result, ensure};
use overlay_netns_harness::{nft, wait_for};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::time::{Duration, Instant};

use super::{Bound, Figure, Mesh, Run, Size, Station};
use crate::{Capture, Certified, Outer, lab_name, wireguard_kind};

const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// Rounds sent while something is down or blocked: a second.
const ROUNDS: u64 = 50;
const BLOCK: &str =
    "table inet blocked { chain forward { type filter hook forward priority -1; udp dport 51821 drop; }; }";
/// WireGuard makes a new session of a used one after two minutes.
const REKEY: Duration = Duration::from_secs(150);

struct Rig {
    certified: Certified,
    mark: [u8; 16],
}

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let certified = Certified::standby(&lab_name("canary"), run.binaries.clone(), 3)?;
    let mut mark = [0; 16];
    ChaCha20Rng::seed_from_u64(run.seed).fill_bytes(&mut mark);
    let rig = Rig { certified, mark };
    let lab = &rig.certified.lab;
    // All that passes between hosts passes here.
    let contains = Capture::containing(&mark);
    let underlay = Capture::start(lab.switch().namespace(), contains)?;
    let tunnel = Capture::start(lab.switch().namespace(), |frame| {
        let content = Outer::parse(frame).and_then(|outer| outer.udp().map(|(.., content)| wireguard_kind(content)));
        content == Some(Some(4))
    })?;
    rig.certified.init("h1")?;
    lab.add_container("h1", "c1")?;
    rig.certified.join("h2", "h1")?;
    lab.add_container("h2", "c1")?;
    // The control: the same filter finds the mark where it is plain.
    let plain = Capture::start(lab.host("h1")?.view().namespace(), Capture::containing(&mark))?;
    let talk = rig.talk(&["h1", "h2"])?;
    Rig::passes(&talk).context("after the start")?;
    let plain = plain.finish();
    ensure!(plain.matches > 0, "the mark was not found where it is plain: {plain:?}");
    drop(talk);

    rig.certified.join("h3", "h1")?;
    lab.add_container("h3", "c1")?;
    let talk = rig.talk(&["h1", "h2", "h3"])?;
    Rig::passes(&talk).context("after a join")?;

    for host in ["h1", "h2", "h3"] {
        lab.ctl_ok(host, &["config", "reload"])?;
    }
    Rig::passes(&talk).context("after a reload")?;

    let mut phases = vec!["start", "join", "reload"];
    if run.size == Size::Percent(100) {
        let age = || -> Option<u64> { rig.certified.peer("h1", "h2")?.handshake_age_ms };
        let mut oldest = 0;
        wait_for("a rekey", REKEY, || {
            let now = age()?;
            let is_new = now + 1000 < oldest;
            oldest = oldest.max(now);
            is_new.then_some(())
        })?;
        Rig::passes(&talk).context("after a rekey")?;
        phases.push("rekey");
    }
    for victims in [&["h2"][..], &["h1", "h3"], &["h1", "h2", "h3"]] {
        for host in victims {
            lab.kill_daemon(host)?;
        }
        talk.wait_rounds(ROUNDS)?;
        for host in victims {
            lab.spawn_daemon(host)?;
        }
        Rig::passes(&talk).with_context(|| format!("after a kill of {victims:?}"))?;
    }
    phases.push("kill");

    nft(lab.switch().namespace(), BLOCK)?;
    talk.wait_rounds(ROUNDS)?;
    // Nobody has a session now, and nobody can make one.
    for host in ["h1", "h2"] {
        lab.kill_daemon(host)?;
        lab.start_daemon(host)?;
    }
    talk.wait_rounds(ROUNDS)?;
    let blocked = Instant::now();
    talk.wait_rounds(ROUNDS)?;
    let apart = between_hosts(&talk);
    ensure!(talk.silent(&apart, blocked).len() == apart.len(), "datagrams pass between hosts although UDP is blocked");
    nft(lab.switch().namespace(), "delete table inet blocked")?;
    Rig::passes(&talk).context("after UDP was blocked")?;
    phases.push("blocked UDP");

    drop(talk);
    let (underlay, tunnel) = (underlay.finish(), tunnel.finish());
    let what = format!("plain inner packets on the underlay through {}", phases.join(", "));
    Ok(vec![
        Figure::new(what, underlay.matches as f64, "frames", Bound::AtMost(0.0)),
        Figure::new("sealed packets seen there meanwhile", tunnel.matches as f64, "frames", Bound::AtLeast(100.0)),
    ])
}

impl Rig {
    /// Marked datagrams between the containers of these hosts, and from the hosts themselves to the containers.
    fn talk(&self, hosts: &[&str]) -> Result<Mesh> {
        let mut stations = Vec::new();
        for host in hosts {
            stations.push(Station::of(&self.certified.lab.container(&format!("{host}c1"))?));
        }
        for host in hosts {
            let namespace = self.certified.lab.view(host)?.namespace().to_owned();
            stations.push(Station { namespace, address: None });
        }
        Mesh::start(&stations, &self.mark, PAUSE)
    }

    /// Waits until hosts hear each other.
    fn passes(talk: &Mesh) -> Result<()> {
        talk.wait_all(&between_hosts(talk), Instant::now(), LIMIT)
    }
}

/// The pairs of stations on different hosts: as many hosts as containers, in the same order.
fn between_hosts(talk: &Mesh) -> Vec<(usize, usize)> {
    let hosts = talk.pairs().iter().map(|(_, to)| *to + 1).max().unwrap_or(1);
    talk.pairs().into_iter().filter(|(from, to)| from % hosts != to % hosts).collect()
}

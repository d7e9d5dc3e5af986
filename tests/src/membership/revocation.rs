//! A member revoked: how long until every host has cut it off, and whether its traffic ends then.

use anyhow::{Context as _, Result, anyhow, ensure};
use overlay_netns_harness::wait_for;
use std::time::{Duration, Instant};

use super::{Bound, Figure, Mesh, Run, Station};
use crate::{Certified, lab_name};

const HOSTS: usize = 10;
const LIMIT: Duration = Duration::from_secs(30);
/// Between two datagrams of one pair; what was cut later than this after its time is seen.
const PAUSE: Duration = Duration::from_millis(50);
/// Rounds watched after the last host cut the member off: 3 s.
const WATCHED: u64 = 60;

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let certified = Certified::cluster(&lab_name("revoked"), run.binaries.clone(), HOSTS)?;
    let containers =
        (1..=HOSTS).map(|number| certified.lab.container(&format!("h{number}c1"))).collect::<Result<Vec<_>>>()?;
    let stations: Vec<Station> = containers.iter().map(Station::of).collect();
    let mesh = Mesh::start(&stations, b"revocation", PAUSE)?;
    mesh.wait_all(&mesh.pairs(), Instant::now(), LIMIT)?;
    let (mut everywhere, mut cut) = (0.0_f64, 0.0_f64);
    // The first host is the issuer and stays; the last members go one after the other.
    for victim in ((HOSTS - run.count(5, 1) as usize)..HOSTS).rev() {
        let (slowest, latest) = revoke(&certified, &mesh, victim)?;
        everywhere = everywhere.max(slowest.as_secs_f64());
        cut = cut.max(latest.as_secs_f64());
    }
    Ok(vec![
        Figure::new(format!("revoked on {HOSTS} hosts after"), everywhere, "s", Bound::AtMost(2.0)),
        Figure::new("last packet of a revoked member after its revocation arrived", cut, "s", Bound::AtMost(1.0)),
    ])
}

/// Revokes one member: when the last of the hosts left had cut it off, and how long after that a packet still passed.
fn revoke(certified: &Certified, mesh: &Mesh, victim: usize) -> Result<(Duration, Duration)> {
    let name = format!("h{}", victim + 1);
    let hosts: Vec<String> = (1..=victim).map(|number| format!("h{number}")).collect();
    let start = Instant::now();
    let gone: Vec<Instant> = std::thread::scope(|scope| {
        let name = &name;
        let watch = move |host: String| -> Result<Instant> {
            wait_for(&format!("{host} to cut {name} off"), LIMIT, || {
                let peers = certified.status(&host).ok()?.peers;
                peers.iter().all(|peer| peer.name != *name).then(Instant::now)
            })
            .map(|(at, _)| at)
            .map_err(Into::into)
        };
        let watchers: Vec<_> = hosts.iter().cloned().map(|host| scope.spawn(move || watch(host))).collect();
        certified.lab.ctl_ok("h1", &["cert", "revoke", name])?;
        let joined = watchers.into_iter().map(|watcher| watcher.join().map_err(|_| anyhow!("a watcher panicked"))?);
        joined.collect::<Result<Vec<Instant>>>()
    })
    .with_context(|| format!("revoking {name}"))?;
    let all = gone.iter().max().copied().unwrap_or(start);
    mesh.wait_rounds(WATCHED)?;
    let mut latest = Duration::ZERO;
    for (other, at) in gone.iter().enumerate() {
        for (from, to) in [(other, victim), (victim, other)] {
            let seen = mesh.seen(from, to).ok_or_else(|| anyhow!("nothing ever passed from {from} to {to}"))?;
            latest = latest.max(seen.arrived.saturating_duration_since(*at));
        }
    }
    // The control: all others talk as before.
    let others: Vec<(usize, usize)> = mesh.pairs().into_iter().filter(|(a, b)| *a.max(b) < victim).collect();
    ensure!(!others.is_empty(), "nobody is left to compare with");
    mesh.wait_all(&others, all, LIMIT)?;
    Ok((all - start, latest))
}

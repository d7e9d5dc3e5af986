//! Every host killed and started at once, without the issuer, two of them under new addresses.

use anyhow::{Result, ensure};
use overlay_netns_harness::{ip, ip_batch, wait_for};
use std::time::{Duration, Instant};

use super::{Bound, Figure, Mesh, Run, Station};
use crate::{Certified, lab_name};

const HOSTS: usize = 10;
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let certified = Certified::cluster(&lab_name("allatonce"), run.binaries.clone(), HOSTS)?;
    let containers =
        (1..=HOSTS).map(|number| certified.lab.container(&format!("h{number}c1"))).collect::<Result<Vec<_>>>()?;
    let stations: Vec<Station> = containers.iter().map(Station::of).collect();
    let mesh = Mesh::start(&stations, b"restart", Duration::from_millis(50))?;
    mesh.wait_all(&mesh.pairs(), Instant::now(), LIMIT)?;
    let ids =
        (1..=HOSTS).map(|number| Ok(certified.status(&format!("h{number}"))?.host.id)).collect::<Result<Vec<_>>>()?;
    let mut slowest = 0.0_f64;
    for round in 0..run.count(10, 1) {
        // What was learned is on disk within seconds; that is the promise, so it is waited for.
        for number in 1..=HOSTS {
            wait_for(&format!("h{number} to have kept all others"), LIMIT, || {
                let kept = certified.kept_records(&format!("h{number}")).ok()?;
                ids.iter().all(|id| kept.iter().any(|record| record.key.owner == *id)).then_some(())
            })?;
        }
        for number in 1..=HOSTS {
            certified.lab.kill_daemon(&format!("h{number}"))?;
        }
        let dead = Instant::now();
        mesh.wait_rounds(20)?;
        ensure!(mesh.silent(&mesh.pairs(), dead).len() == mesh.pairs().len(), "datagrams pass without daemons");
        for number in [HOSTS - 1, HOSTS] {
            readdress(&certified, number, round)?;
        }
        let start = Instant::now();
        for number in 2..=HOSTS {
            certified.lab.spawn_daemon(&format!("h{number}"))?;
        }
        let pairs: Vec<(usize, usize)> = mesh.pairs().into_iter().filter(|(from, to)| *from > 0 && *to > 0).collect();
        mesh.wait_all(&pairs, start, LIMIT)?;
        let took = start.elapsed().as_secs_f64();
        eprintln!("round {round}: {} pairs carry data after {took:.2} s", pairs.len());
        slowest = slowest.max(took);
        certified.lab.spawn_daemon("h1")?;
        mesh.wait_all(&mesh.pairs(), Instant::now(), LIMIT)?;
    }
    let pairs = (HOSTS - 1) * (HOSTS - 2);
    let what = format!("{HOSTS} hosts killed and started without the issuer, two with new addresses: {pairs} pairs");
    Ok(vec![Figure::new(format!("{what} carry data after"), slowest, "s", Bound::AtMost(10.0))])
}

/// Gives a host underlay addresses that it never had.
fn readdress(certified: &Certified, number: usize, round: u64) -> Result<()> {
    let host = certified.lab.host(&format!("h{number}"))?;
    let (namespace, name) = (host.view().namespace(), host.name());
    let new = [format!("192.0.2.{}", 50 + 10 * round + number as u64), format!("2001:db8::{round:x}:{number:x}")];
    ip_batch(namespace, &["addr flush dev eth0 scope global".to_owned(), format!("addr add {}/32 dev eth0", new[0])])?;
    ip_batch(
        namespace,
        &[
            format!("addr add {}/128 dev eth0 nodad", new[1]),
            "route replace default via 192.0.2.254 dev eth0 onlink".to_owned(),
            "route replace ::/0 via fe80::1 dev eth0 onlink".to_owned(),
        ],
    )?;
    let switch = certified.lab.switch();
    ip(&format!("-n {} route flush dev {name} scope link", switch.namespace()))?;
    let routes =
        [format!("route replace {}/32 dev {name}", new[0]), format!("route replace {}/128 dev {name}", new[1])];
    ip_batch(switch.namespace(), &routes)
}

//! What containers are promised, measured on real daemons, plugins and engines in namespaces. Each row has one scenario; the
//! suite runs it small and `cargo lab soak containers` in full, with the same limits.

mod absent;
mod add;
mod dns;
mod dockerd;
mod engine;
mod faults;
mod hostile;
mod kills;
mod limits;
mod neighbours;
mod pod;
mod stream;

use anyhow::Result;
use overlay_netns_harness::{Cluster, HostSpec, Lab, Topology};
use std::time::Duration;

use crate::figures::{Bound, Figure, Row, Run, Size};
use crate::{Overlay, lab_name};

/// Every row, in the order of the soak.
pub const ROWS: &[Row] = &[
    Row { name: "add", about: "a container is attached by the CNI plugin in time, ten at once too", run: add::run },
    Row { name: "absent", about: "plugins answer in time when the daemon is down or hangs", run: absent::run },
    Row { name: "kills", about: "plugin and daemon killed during ADD and DEL leave nothing", run: kills::run },
    Row { name: "faults", about: "faults get an answer in time and leave nothing", run: faults::run },
    Row { name: "dockerd", about: "dockerd starts in time with our daemon stopped", run: dockerd::run },
    Row {
        name: "neighbours",
        about: "containers of one host are faster than WireGuard between two",
        run: neighbours::run,
    },
    Row { name: "hostile", about: "nothing that a container forges leaves it or is accepted", run: hostile::run },
    Row { name: "limits", about: "rates are kept from 1 Mbit/s to 2 Gbit/s", run: limits::run },
    Row { name: "dns", about: "names are answered fast, beside floods of garbage too", run: dns::run },
];

/// How long anything may take where the figure is not the point.
const LIMIT: Duration = Duration::from_secs(20);

/// Two hosts with containers, on one cable.
fn pair(subject: &str, run: &Run, containers: &[usize; 2], topology: Topology) -> Result<Overlay> {
    let hosts = HostSpec::numbered(2);
    let lab = Lab::create(&lab_name(subject), topology, &hosts, run.binaries.clone())?;
    let cluster = Cluster::new(hosts.len(), "wireguard");
    cluster.write(&lab)?;
    lab.start_daemons()?;
    let mut made = Vec::new();
    for (host, count) in lab.hosts().iter().zip(containers) {
        for number in 1..=*count {
            made.push(lab.add_container(host.name(), &format!("c{number}"))?);
        }
    }
    lab.wait_ready(LIMIT)?;
    Ok(Overlay { cluster, containers: made, lab })
}

/// The same, with four thousand addresses on the first host: an address rests for a minute after each use.
fn wide(subject: &str, run: &Run) -> Result<Overlay> {
    let hosts = HostSpec::numbered(2);
    let lab = Lab::create(&lab_name(subject), Topology::Routed, &hosts, run.binaries.clone())?;
    let cluster = Cluster::new(hosts.len(), "wireguard");
    cluster.write(&lab)?;
    let host = lab.host("h1")?;
    let text = cluster.text(&lab, host).replacen("10.42.1.0/24", "10.42.16.0/20", 1);
    std::fs::write(host.path("/run/overlay/overlayd.toml"), text)?;
    lab.start_daemons()?;
    let far = lab.add_container("h2", "c1")?;
    lab.wait_ready(LIMIT)?;
    Ok(Overlay { cluster, containers: vec![far], lab })
}

/// The value below which this part of all lies.
fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * part).ceil() as usize;
    values.get(place.max(1) - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_a_value_of_the_list() {
        let mut values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.99), 198.0);
        assert_eq!(percentile(&mut values, 0.5), 100.0);
        assert_eq!(percentile(&mut values, 0.0), 1.0);
        assert!(percentile(&mut [], 0.5).is_nan());
    }
}

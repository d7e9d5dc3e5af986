//! Throughput between two containers of one host through the filter, beside our WireGuard between two hosts, in turns.

use anyhow::Result;
use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{Container, Lab, Topology, wait_for};
use std::net::SocketAddr;
use std::time::Duration;

use super::{Bound, Figure, LIMIT, Run, pair, percentile};

/// How many times WireGuard the neighbours must be.
const LEAST: f64 = 1.5;
/// The rule that shows that the filter is on, and a port that it closes.
const RULE: &str = "deny tcp/9 from any to any\n";

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay = pair("near", run, &[2, 1], Topology::Direct)?;
    let lab = &overlay.lab;
    for host in ["h1", "h2"] {
        let file = lab.host(host)?.path("/run/overlay/rules");
        std::fs::write(&file, RULE)?;
        lab.ctl_ok(host, &["policy", "apply", "/run/overlay/rules", "--local"])?;
    }
    lab.ctl_ok("h1", &["network", "create", "wide", "--mode", "bridge"])?;
    let bridged = [attach(lab, "b1")?, attach(lab, "b2")?];
    let (one, two, far) = (overlay.container("h1c1"), overlay.container("h1c2"), overlay.container("h2c1"));
    let ways = [("routed", one, two), ("bridge", &bridged[0], &bridged[1]), ("WireGuard", one, far)];
    for (what, from, to) in ways {
        wait_for(&format!("{what} to carry packets"), LIMIT, || {
            overlay_netns_harness::ping(&from.view, "-c 1 -W 0.3", &to.v4.to_string()).ok()?.is_lossless().then_some(())
        })?;
    }
    // The filter decides on neighbours too: the closed port is refused to them, an open one is not.
    let closed = Server::start(two.view.namespace(), SocketAddr::new(two.v4.into(), 9))?;
    let refused = overlay_netns_harness::netns::within(one.view.namespace(), || {
        Ok(load::connect(closed.address(), Duration::from_millis(500)).is_err())
    })?;
    let time = Duration::from_millis(run.count(2000, 700).max(200));
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..run.count(7, 3) as usize {
        for step in 0..3 {
            let at = (round + step) % 3;
            let (_, from, to) = ways[at];
            let server = Server::start(to.view.namespace(), SocketAddr::new(to.v4.into(), 0))?;
            let way = load::send(from.view.namespace(), server.address(), Amount::Time(time), Content::Counted)?;
            rates[at].push(way.bits_per_second() / 1e6);
        }
    }
    let mut ratios: Vec<f64> = rates[0].iter().zip(&rates[2]).map(|(near, far)| near / far).collect();
    let ratio = percentile(&mut ratios, 0.5);
    let [near, bridge, far] = rates.each_mut().map(|rates| percentile(rates, 0.5));
    Ok(vec![
        Figure::new("closed port of a neighbour refused", f64::from(u8::from(refused)), "", Bound::AtLeast(1.0)),
        Figure::new("one host, routed, filter on, median", near, "Mbit/s", Bound::Told),
        Figure::new("one host, bridge, median", bridge, "Mbit/s", Bound::Told),
        Figure::new("two hosts, WireGuard, median", far, "Mbit/s", Bound::Told),
        Figure::new("routed / WireGuard, median of rounds", ratio, "times", Bound::AtLeast(LEAST)),
    ])
}

/// A container in the bridged network of the first host.
fn attach(lab: &Lab, name: &str) -> Result<Container> {
    let view = lab.add_namespace(name)?;
    lab.ctl_ok("h1", &["endpoint", "add", name, "--netns", view.namespace(), "--network", "wide"])?;
    lab.container(name)
}

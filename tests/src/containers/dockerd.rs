//! How long dockerd takes to start while it has a network of ours with a container, and our daemon is stopped or hangs.

use anyhow::{Context as _, Result};
use overlay_netns_harness::Topology;
use std::net::IpAddr;

use super::engine::Engine;
use super::{Bound, Figure, LIMIT, Run, pair};

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay = pair("dockerd", run, &[0, 1], Topology::Routed)?;
    let lab = &overlay.lab;
    let mut engine = Engine::new(lab, "h1")?;
    engine.start()?;
    engine.import()?;
    engine.run("network create -d overlayd --ipam-driver overlayd --ipam-opt network=default front")?;
    engine.run("run -d --name kept --network front --restart always box sleep 6000")?;
    let address = "inspect -f {{.NetworkSettings.Networks.front.IPAddress}} kept";
    let rounds = run.count(5, 1);
    let mut slowest = [0.0_f64; 3];
    for _ in 0..rounds {
        engine.stop();
        slowest[0] = slowest[0].max(engine.start()?.as_secs_f64());
        engine.stop();
        let pid = lab.daemon_pid("h1")?;
        // SAFETY: the process belongs to this lab and has not been waited for.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        let took = engine.start();
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGCONT) };
        slowest[1] = slowest[1].max(took?.as_secs_f64());
        engine.stop();
        lab.stop_daemon("h1")?;
        slowest[2] = slowest[2].max(engine.start()?.as_secs_f64());
        // The control: with the daemon back, the container is attached again.
        lab.start_daemon("h1")?;
        lab.wait_ready(LIMIT)?;
        engine.run("restart -t 0 kept")?;
        let ip: IpAddr = engine.run(address)?.parse().context("the container has no address")?;
        overlay_netns_harness::wait_for("the container to answer", LIMIT, || {
            overlay.reaches("h2c1", ip).then_some(())
        })?;
    }
    engine.run("rm -f kept")?;
    engine.run("network rm front")?;
    let what = "dockerd with a container in a network of ours starts, slowest of";
    Ok(vec![
        Figure::new(format!("{what} {rounds}: daemon running"), slowest[0], "s", Bound::Told),
        Figure::new(format!("{what} {rounds}: daemon hung"), slowest[1], "s", Bound::Told),
        Figure::new(format!("{what} {rounds}: daemon stopped"), slowest[2], "s", Bound::AtMost(5.0)),
    ])
}

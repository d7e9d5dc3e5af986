//! How long `ADD` takes, one after the other and ten at once.

use anyhow::{Result, anyhow, ensure};
use overlay_netns_harness::ping;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::pod::{Pod, Reply};
use super::{Bound, Figure, Run, percentile, wide};
use crate::Overlay;

/// How many at once.
const PARALLEL: usize = 10;

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay = wide("cniadd", run)?;
    let lab = &overlay.lab;
    let pods = (0..PARALLEL).map(|number| Pod::new(lab, "h1", &format!("p{number}"))).collect::<Result<Vec<_>>>()?;
    // The daemon is warm once it has done it.
    attach_all(&overlay, &pods[..1])?;
    let mut single = Vec::new();
    for number in 0..run.count(300, 30) {
        let pod = &pods[number as usize % PARALLEL];
        single.push(pod.ok(lab, "ADD")?.took.as_secs_f64() * 1e3);
        pod.ok(lab, "DEL")?;
    }
    let mut parallel = Vec::new();
    for _ in 0..run.count(30, 3) {
        parallel.extend(attach_all(&overlay, &pods)?);
    }
    let slowest = parallel.iter().copied().fold(0.0, f64::max);
    let count = single.len();
    Ok(vec![
        Figure::new(format!("{count} times ADD, median"), percentile(&mut single, 0.5), "ms", Bound::Told),
        Figure::new("ADD, 99th percentile", percentile(&mut single, 0.99), "ms", Bound::AtMost(100.0)),
        Figure::new("ADD, ten at once, median", percentile(&mut parallel, 0.5), "ms", Bound::Told),
        Figure::new("ADD, ten at once, slowest", slowest, "ms", Bound::AtMost(500.0)),
    ])
}

/// Attaches all at once, sees that they work, and takes them away; how long each `ADD` took, in milliseconds.
fn attach_all(overlay: &Overlay, pods: &[Pod]) -> Result<Vec<f64>> {
    let lab = &overlay.lab;
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.ok(lab, "ADD"))).collect();
        calls.into_iter().map(|call| call.join().map_err(|_| anyhow!("a call panicked"))?).collect::<Result<_>>()
    })?;
    let mut given = BTreeSet::new();
    for (pod, reply) in pods.iter().zip(&replies) {
        for address in reply.addresses()? {
            ensure!(given.insert(address), "{address} was given twice");
        }
        let far = IpAddr::V4(overlay.container("h2c1").v4).to_string();
        ensure!(ping(&pod.view, "-c 1 -W 2", &far)?.is_lossless(), "{} does not reach the other host", pod.name);
    }
    std::thread::scope(|scope| {
        let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.ok(lab, "DEL"))).collect();
        calls.into_iter().try_for_each(|call| call.join().map_err(|_| anyhow!("a call panicked"))?.map(drop))
    })?;
    Ok(replies.iter().map(|reply| reply.took.as_secs_f64() * 1e3).collect())
}

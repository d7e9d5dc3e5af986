//! Rates that `overlayctl limit set` gives, and what then arrives: both directions, TCP and UDP, 1 Mbit/s to 2 Gbit/s.

use anyhow::Result;
use overlay_netns_harness::{Container, Lab, Topology};
use std::time::Duration;

use super::stream::{self, Spans};
use super::{Bound, Figure, Run, Size, pair};

/// Bits per second.
const RATES: [u64; 6] = [1_000_000, 10_000_000, 100_000_000, 500_000_000, 1_000_000_000, 2_000_000_000];
/// Up to this a rate is measured for longer: a TCP stream sways by a burst, which is much of what passes in a second.
const SLOW: u64 = 10_000_000;
/// Those of the suite, whose build is slower.
const SHORT: [u64; 3] = [1_000_000, 10_000_000, 100_000_000];
/// How far a rate may be off, in percent.
const LIMIT: f64 = 5.0;
/// Datagrams are offered at so many times the rate, where the machine can.
const SURPLUS: f64 = 3.0;
const FASTEST: f64 = 2_600_000_000.0;
/// A full packet of the overlay and the payload in it, with the timestamps of TCP.
const TCP_PACKET: (f64, f64) = (1420.0, 1368.0);

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay = pair("rates", run, &[1, 1], Topology::Direct)?;
    let (one, other) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let rates: &[u64] = if run.size == Size::Short { &SHORT } else { &RATES };
    let percent = match run.size {
        Size::Short => 40,
        Size::Percent(percent) => percent,
    };
    let mut figures = Vec::new();
    for rate in rates {
        for direction in ["egress", "ingress"] {
            let (from, to) = if direction == "egress" { (one, other) } else { (other, one) };
            for protocol in ["UDP", "TCP"] {
                let got = with_limit(&overlay.lab, one, *rate, direction, || {
                    measure(from, to, *rate as f64, protocol, spans(*rate, percent))
                })?;
                let off = 100.0 * (got / *rate as f64 - 1.0);
                let what = format!("{protocol}, {direction} {} Mbit/s: off by", rate / 1_000_000);
                let figure = Figure::new(what, off.abs(), "%", Bound::AtMost(LIMIT));
                eprintln!("{figure} ({:.3} Mbit/s)", got / 1e6);
                figures.push(figure);
            }
        }
        // The control: what is measured is the limit and not the way.
        let free = measure(one, other, *rate as f64, "TCP", spans(*rate, 10))? / *rate as f64;
        let what = format!("without a limit of {} Mbit/s passes", rate / 1_000_000);
        figures.push(Figure::new(what, free, "times as much", Bound::AtLeast(1.1)));
    }
    Ok(figures)
}

/// Long enough for hundreds of packets, and for a TCP stream to find the rate.
fn spans(rate: u64, percent: u64) -> Spans {
    let seconds = if rate <= SLOW { 10.0 } else { 3.0 };
    let measure = Duration::from_secs_f64((seconds * percent as f64 / 100.0).max(0.3));
    let settle = Duration::from_millis(if rate <= SLOW { 3000 } else { 1000 });
    Spans { settle, measure }
}

fn measure(from: &Container, to: &Container, rate: f64, protocol: &str, spans: Spans) -> Result<f64> {
    if protocol == "UDP" {
        stream::udp(from, to, (rate * SURPLUS).min(FASTEST), spans)
    } else {
        Ok(stream::tcp(from, to, spans)? * TCP_PACKET.0 / TCP_PACKET.1)
    }
}

fn with_limit(
    lab: &Lab,
    container: &Container,
    rate: u64,
    direction: &str,
    work: impl FnOnce() -> Result<f64>,
) -> Result<f64> {
    let name = container.view.namespace();
    let bits = format!("{}kbit", rate / 1000);
    let mut words = vec!["limit", "set", name, "--rate", &bits, "--direction", direction];
    if rate < SLOW {
        // The usual burst is a second's worth here, and would be a tenth of what is measured.
        words.extend(["--burst", "8k"]);
    }
    lab.ctl_ok("h1", &words)?;
    let got = work();
    lab.ctl_ok("h1", &["limit", "rm", name])?;
    got
}

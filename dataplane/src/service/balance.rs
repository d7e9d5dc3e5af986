//! Which backend a new flow gets.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::Ordering;

use super::table::{Backend, Frontend};

/// How a backend is chosen among those that may have new flows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Algorithm {
    /// One after the other, by weight (smooth weighted round robin).
    RoundRobin,
    /// By weight, each time anew.
    Random,
    /// The one with fewer flows for its weight, of two taken at random.
    LeastConnections,
    /// By a hash of the flow, spread evenly and the same on every host.
    #[default]
    Maglev,
    /// By a hash of the client's address.
    SourceHash,
}

impl Algorithm {
    /// All of them with their names in configuration and output.
    pub const NAMES: [(Self, &'static str); 5] = [
        (Self::RoundRobin, "rr"),
        (Self::Random, "random"),
        (Self::LeastConnections, "least_conn"),
        (Self::Maglev, "maglev"),
        (Self::SourceHash, "source_hash"),
    ];
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(algorithm, _)| algorithm == self).map_or("", |(_, name)| name);
        f.pad(name)
    }
}

/// A name that no algorithm has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no way to balance; use one of rr, random, least_conn, maglev, source_hash")]
pub struct UnknownAlgorithm(String);

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::NAMES.iter().find(|(_, known)| *known == name).map(|(algorithm, _)| *algorithm);
        found.ok_or_else(|| UnknownAlgorithm(name.to_owned()))
    }
}

/// Longest round. Weights that would need a longer one are scaled down.
const MAX_ROUND: u64 = 8192;

/// The turns of one round: each backend as often as its weight says, and never twice in a row where that can be helped.
pub(crate) fn round(weights: impl Iterator<Item = u16>) -> Vec<u16> {
    let mut weights: Vec<u64> = weights.map(u64::from).collect();
    let divisor = weights.iter().copied().filter(|weight| *weight > 0).reduce(gcd).unwrap_or(1);
    weights.iter_mut().for_each(|weight| *weight /= divisor);
    let sum: u64 = weights.iter().sum();
    if sum > MAX_ROUND {
        weights
            .iter_mut()
            .filter(|weight| **weight > 0)
            .for_each(|weight| *weight = (*weight * MAX_ROUND / sum).max(1));
    }
    let sum: i64 = weights.iter().sum::<u64>() as i64;
    let mut credit = vec![0i64; weights.len()];
    (0..sum)
        .map(|_| {
            let mut best = 0;
            for at in 0..weights.len() {
                credit[at] += weights[at] as i64;
                if credit[at] > credit[best] || weights[best] == 0 {
                    best = at;
                }
            }
            credit[best] -= sum;
            best as u16
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Running sums of weights.
pub(crate) fn cumulative(weights: impl Iterator<Item = u16>) -> Vec<u32> {
    weights
        .scan(0u32, |sum, weight| {
            *sum += u32::from(weight);
            Some(*sum)
        })
        .collect()
}

/// What a choice is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    /// A hash of the flow, or of the client alone where it keeps its backend; the same on every host.
    pub(crate) flow_hash: u64,
    /// A hash of the client's address.
    pub(crate) client_hash: u64,
    /// A number nobody can guess.
    pub(crate) random: u64,
    /// Now, in milliseconds of the flow table's clock.
    pub(crate) now_ms: u64,
}

impl Frontend {
    /// Chooses a backend for a new flow that `may_have` accepts; ejected ones only where nothing else is left.
    pub(crate) fn pick(&self, draw: &Draw, may_have: impl Fn(&Backend) -> bool) -> Option<&Backend> {
        let fits = |backend: &Backend| backend.share() > 0 && may_have(backend);
        let open = |backend: &Backend| fits(backend) && !backend.state.is_ejected(draw.now_ms);
        self.choose(draw, &open).or_else(|| self.choose(draw, &fits))
    }

    fn choose(&self, draw: &Draw, fits: &dyn Fn(&Backend) -> bool) -> Option<&Backend> {
        let first = match self.algorithm {
            Algorithm::RoundRobin => {
                for _ in 0..self.round.len() {
                    let turn = self.state.turn.fetch_add(1, Ordering::Relaxed);
                    let at = self.round[(turn % self.round.len() as u64) as usize];
                    let backend = &self.backends()[usize::from(at)];
                    if fits(backend) {
                        return Some(backend);
                    }
                }
                return None;
            }
            Algorithm::Random => self.weighted(draw.random),
            Algorithm::LeastConnections => {
                // Two different ones: else a slow one would get every flow for which it is drawn twice.
                let a = self.weighted(draw.random)?;
                let b = self.weighted(draw.random.rotate_left(32))?;
                let b = if std::ptr::eq(a, b) { self.after(a, fits).unwrap_or(a) } else { b };
                match (fits(a), fits(b)) {
                    (true, true) => return Some(if a.load() <= b.load() { a } else { b }),
                    (true, false) => Some(a),
                    _ => Some(b),
                }
            }
            Algorithm::Maglev => self.maglev().map(|table| &self.backends()[table.pick(draw.flow_hash)]),
            Algorithm::SourceHash => self.maglev().map(|table| &self.backends()[table.pick(draw.client_hash)]),
        }?;
        if fits(first) {
            return Some(first);
        }
        // The next one that fits, from a place that the hash says, so that the flows of one that is left out are spread.
        let count = self.backends().len();
        let start = (draw.flow_hash.rotate_left(17) % count as u64) as usize;
        (0..count).map(|step| &self.backends()[(start + step) % count]).find(|backend| fits(backend))
    }

    /// The next one that fits.
    fn after(&self, backend: &Backend, fits: &dyn Fn(&Backend) -> bool) -> Option<&Backend> {
        let at = self.backends().iter().position(|other| std::ptr::eq(other, backend))?;
        self.backends()[at + 1..].iter().chain(&self.backends()[..at]).find(|other| fits(other))
    }

    /// A backend by its weight.
    fn weighted(&self, random: u64) -> Option<&Backend> {
        let sum = u64::from(*self.cumulative.last().filter(|sum| **sum > 0)?);
        // The upper half times the sum: even to one in four thousand million.
        let point = (((random >> 32) * sum) >> 32) as u32;
        let at = self.cumulative.partition_point(|sum| *sum <= point);
        self.backends().get(at)
    }
}

impl Backend {
    /// Flows for its weight; comparable, not a number of anything.
    fn load(&self) -> u64 {
        (u64::from(self.state.active.load(Ordering::Relaxed)) + 1) * 65_536 / u64::from(self.share().max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::service::table::{BackendState, FrontendOptions, FrontendState};
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    fn frontend(algorithm: Algorithm, weights: &[u16]) -> Frontend {
        let backends = weights.iter().enumerate().map(|(at, weight)| Backend {
            id: format!("web-{at}").into(),
            address: format!("10.42.2.{}:8080", at + 1).parse().expect("an address"),
            weight: *weight,
            draining: false,
            bridged: false,
            state: Arc::new(BackendState::default()),
        });
        let options = FrontendOptions { algorithm, ..FrontendOptions::default() };
        let vip = "10.96.0.1:80".parse().expect("an address");
        Frontend::new("web".into(), vip, 6, &options, backends.collect(), Arc::new(FrontendState::default()))
    }

    fn picks(frontend: &Frontend, count: usize, seed: u64) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count)
            .map(|_| {
                let [flow_hash, client_hash, random] = std::array::from_fn(|_| rng.next_u64());
                let draw = Draw { flow_hash, client_hash, random, now_ms: 0 };
                let picked = frontend.pick(&draw, |_| true).expect("a backend");
                frontend.backends().iter().position(|backend| backend.id == picked.id).expect("one of them")
            })
            .collect()
    }

    fn shares(picks: &[usize], backends: usize) -> Vec<usize> {
        let mut shares = vec![0; backends];
        picks.iter().for_each(|at| shares[*at] += 1);
        shares
    }

    #[test]
    fn round_robin_differs_by_at_most_one_and_weights_are_exact_in_every_window() {
        let even = shares(&picks(&frontend(Algorithm::RoundRobin, &[1; 7]), 10_000, 1), 7);
        assert!(even.iter().max().unwrap() - even.iter().min().unwrap() <= 1, "{even:?}");
        let weighted = picks(&frontend(Algorithm::RoundRobin, &[5, 1, 1]), 700, 1);
        for window in weighted.windows(7) {
            assert_eq!(shares(window, 3), [5, 1, 1]);
        }
        // Smooth: the heavy one does not take its five turns in a row.
        assert!(!weighted.windows(5).any(|window| window.iter().all(|at| *at == 0)));
    }

    #[test]
    fn random_passes_chi_squared_even_and_weighted() {
        for (weights, limit) in [(&[1u16, 1, 1, 1][..], 16.27), (&[3, 2, 1][..], 13.82)] {
            let sum: u16 = weights.iter().sum();
            for seed in 1..4 {
                let shares = shares(&picks(&frontend(Algorithm::Random, weights), 10_000, seed), weights.len());
                let chi: f64 = shares
                    .iter()
                    .zip(weights)
                    .map(|(share, weight)| {
                        let wanted = 10_000.0 * f64::from(*weight) / f64::from(sum);
                        (*share as f64 - wanted).powi(2) / wanted
                    })
                    .sum();
                assert!(chi < limit, "{weights:?} seed {seed}: {shares:?}, {chi}");
            }
        }
    }

    #[test]
    fn least_connections_leaves_a_slow_backend_alone() {
        let frontend = frontend(Algorithm::LeastConnections, &[1; 4]);
        // Flows end at once, but those of the first stay ten times as long.
        let mut ends: Vec<(u32, usize)> = Vec::new();
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let mut active = [0u32; 4];
        for step in 0..10_000u32 {
            ends.retain(|(end, at)| {
                let ended = *end <= step;
                if ended {
                    frontend.backends()[*at].state.active.fetch_sub(1, Ordering::Relaxed);
                }
                !ended
            });
            let draw = Draw { flow_hash: 0, client_hash: 0, random: rng.next_u64(), now_ms: 0 };
            let picked = frontend.pick(&draw, |_| true).expect("a backend");
            let at = frontend.backends().iter().position(|backend| backend.id == picked.id).expect("one of them");
            picked.state.active.fetch_add(1, Ordering::Relaxed);
            ends.push((step + if at == 0 { 1000 } else { 100 }, at));
            if step > 5000 {
                (0..4).for_each(|at| active[at] += frontend.backends()[at].state.active.load(Ordering::Relaxed));
            }
        }
        let mean = active.iter().sum::<u32>() / 4;
        assert!(active[0] <= mean * 3 / 2, "{active:?}");
    }

    #[test]
    fn those_that_may_not_are_passed_over_and_the_last_one_is_kept() {
        for (algorithm, name) in Algorithm::NAMES {
            assert_eq!(name.parse(), Ok(algorithm));
            assert_eq!(algorithm.to_string(), name);
            let frontend = frontend(algorithm, &[1, 1, 1, 0]);
            let draw = |hash| Draw { flow_hash: hash, client_hash: hash, random: hash, now_ms: 100 };
            let eject = |at: usize| frontend.backends()[at].state.ejected_until.store(101, Ordering::Relaxed);
            let picked = |hash: u64| frontend.pick(&draw(hash), |_| true).map(|it| it.id.to_string());
            let hashes = || (0..1000u64).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            eject(0);
            assert!(hashes().all(|hash| picked(hash).is_some_and(|id| id != "web-0" && id != "web-3")), "{name}");
            // Spread over the rest, not all to one neighbour.
            assert!(["web-1", "web-2"].iter().all(|id| hashes().any(|hash| picked(hash).as_deref() == Some(*id))));
            eject(1);
            eject(2);
            assert!(hashes().all(|hash| picked(hash).is_some_and(|id| id != "web-3")), "{name}");
            assert!(hashes().all(|hash| frontend.pick(&draw(hash), |it| &*it.id == "web-3").is_none()), "{name}");
        }
        assert!("fastest".parse::<Algorithm>().unwrap_err().to_string().contains("least_conn"));
    }
}

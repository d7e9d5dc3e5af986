//! Daemons killed at random instants while they are asked for changes: what they said yes to is there afterwards.

use anyhow::{Context as _, Result, anyhow, ensure};
use overlay_control::api::{Request, Response};
use overlay_netns_harness::wait_for;
use overlay_routing::membership::Token;
use overlay_wire::Prefix;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Bound, Figure, Mesh, Run, Station};
use crate::{Certified, lab_name};

const LIMIT: Duration = Duration::from_secs(30);
/// The latest instant of a kill, after traffic passes again.
const LATEST: Duration = Duration::from_millis(300);
/// The latest instant of a kill during the start.
const EARLY: Duration = Duration::from_millis(150);

/// What the daemons have confirmed.
#[derive(Debug, Default)]
struct Confirmed {
    /// Tokens of the issuer, by id, with their state.
    tokens: BTreeMap<String, &'static str>,
    /// What each host announces.
    announced: BTreeMap<String, BTreeSet<Prefix>>,
    /// The rule that each host applied last, unless its answer was cut off.
    rules: BTreeMap<String, String>,
}

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let certified = Certified::cluster(&lab_name("kills"), run.binaries.clone(), 2)?;
    let stations = ["h1c1", "h2c1"].map(|name| certified.lab.container(name));
    let stations = stations.into_iter().map(|container| Ok(Station::of(&container?))).collect::<Result<Vec<_>>>()?;
    let mesh = Mesh::start(&stations, b"kills", Duration::from_millis(5))?;
    mesh.wait_all(&mesh.pairs(), Instant::now(), LIMIT)?;
    let own: Vec<String> = ["h1", "h2"].map(|host| certificate(&certified, host)).into_iter().collect::<Result<_>>()?;
    let mut random = ChaCha20Rng::seed_from_u64(run.seed);
    let mut below = |limit: Duration| limit.mul_f64(f64::from(random.next_u32()) / f64::from(u32::MAX));
    let mut confirmed = Confirmed::default();
    let (mut lost, mut times) = (0, Vec::new());
    // More than a hundred, so that a 99th percentile is something else than the slowest of all.
    let (mut changes, rounds) = (0, run.count(300, 101));
    for round in 0..rounds {
        let victim = ["h1", "h2"][(below(Duration::from_secs(2)).as_secs() % 2) as usize];
        let instant = below(LATEST);
        changes += ask_until_killed(&certified, victim, round, instant, &mut confirmed)
            .with_context(|| format!("round {round}, {victim} killed after {instant:?}"))?;
        if round % 4 == 3 {
            // Once more while it starts.
            certified.lab.spawn_daemon(victim)?;
            pass(below(EARLY));
            certified.lab.kill_daemon(victim)?;
        }
        let start = Instant::now();
        certified.lab.spawn_daemon(victim)?;
        mesh.wait_all(&mesh.pairs(), start, LIMIT).with_context(|| {
            let log = certified.lab.log(victim).unwrap_or_default();
            let tail = log.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
            format!("round {round}, {victim}, whose log ends with\n{tail}")
        })?;
        let took = start.elapsed().as_secs_f64();
        println!("round {round}: {victim} killed after {instant:.3?}, packets pass {took:.3} s after its start");
        times.push(took);
        let missing = missing(&certified, &confirmed, &own, &stations)?;
        if !missing.is_empty() {
            eprintln!("round {round}, {victim} killed after {instant:?}: lost {missing:?}");
        }
        lost += missing.len();
    }
    times.sort_by(f64::total_cmp);
    let p99 = times[(times.len() * 99).div_ceil(100) - 1];
    let what = format!("{rounds} kills at random instants");
    // Half of all kills meet a daemon that has confirmed something since its start.
    ensure!(changes >= rounds / 2, "only {changes} changes were confirmed between {rounds} kills");
    Ok(vec![
        Figure::new(format!("{what}: confirmed changes"), changes as f64, "changes", Bound::Told),
        Figure::new(format!("{what}: confirmed and lost"), lost as f64, "changes", Bound::AtMost(0.0)),
        Figure::new(format!("{what}: median until packets pass"), times[times.len() / 2], "s", Bound::Told),
        Figure::new(format!("{what}: packets pass after, 99th percentile"), p99, "s", Bound::AtMost(1.0)),
    ])
}

/// Lets time pass: the instant of a kill is what varies.
fn pass(time: Duration) {
    // SAFETY: no descriptors are passed.
    unsafe { libc::poll(std::ptr::null_mut(), 0, i32::try_from(time.as_millis()).unwrap_or(0)) };
}

/// Asks a daemon for changes until it is killed at an instant; how many it confirmed.
fn ask_until_killed(
    certified: &Certified,
    victim: &str,
    round: u64,
    instant: Duration,
    confirmed: &mut Confirmed,
) -> Result<u64> {
    // What a kill cut off may have happened or not; such things are not counted.
    certified.lab.control(victim)?;
    let killed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            pass(instant);
            let outcome = certified.lab.kill_daemon(victim);
            killed.store(true, Ordering::Relaxed);
            outcome
        });
        let mut changes = 0;
        let mut step = 0;
        while !killed.load(Ordering::Relaxed) {
            step += 1;
            // The issuer keeps a thousand tokens; announcing waits for what the others make of it.
            let change = match step % 6 {
                1 | 2 if victim == "h1" && confirmed.tokens.len() < 900 => tokens(certified, step, confirmed),
                5 => routes(certified, victim, round, confirmed),
                _ => policy(certified, victim, round, step, confirmed),
            };
            // Anything may fail at the kill; what failed is in nobody's list.
            changes += u64::from(change.is_ok());
        }
        killer.join().map_err(|_| anyhow!("the killer panicked"))??;
        Ok(changes)
    })
}

/// Makes a token, or withdraws one.
fn tokens(certified: &Certified, step: u64, confirmed: &mut Confirmed) -> Result<()> {
    let open = confirmed.tokens.iter().find(|(_, state)| **state == "open").map(|(id, _)| id.clone());
    match open {
        Some(id) if step.is_multiple_of(2) => {
            // Until it is confirmed it may be either.
            confirmed.tokens.remove(&id);
            certified.lab.ctl_ok("h1", &["token", "revoke", &id])?;
            confirmed.tokens.insert(id, "revoked");
        }
        _ => {
            let token: Token = certified.invite("h1", &[])?.parse()?;
            confirmed.tokens.insert(token.id.to_string(), "open");
        }
    }
    Ok(())
}

/// Announces a prefix, or withdraws one.
fn routes(certified: &Certified, host: &str, round: u64, confirmed: &mut Confirmed) -> Result<()> {
    let announced = confirmed.announced.entry(host.to_owned()).or_default();
    let oldest = announced.iter().next().copied();
    match oldest {
        Some(prefix) if announced.len() > 4 => {
            announced.remove(&prefix);
            certified.lab.control(host)?.call(Request::RouteRemove { prefix })?;
        }
        _ => {
            let prefix: Prefix = format!("172.{}.{}.0/24", 16 + round % 16, round / 16).parse()?;
            let request = Request::RouteAdd { prefix };
            ensure!(matches!(certified.lab.control(host)?.call(request)?, Response::RouteAdded(_)), "no answer");
            announced.insert(prefix);
        }
    }
    Ok(())
}

/// Applies a policy that lets everything of members pass as before, with a rule never seen.
fn policy(certified: &Certified, host: &str, round: u64, step: u64, confirmed: &mut Confirmed) -> Result<()> {
    let rule = format!("deny tcp/{} from 203.0.113.{}/32 to any", 1 + step % 60_000, round % 256);
    let policy = serde_json::from_value(serde_json::json!({ "default": "members", "rules": [rule] }))?;
    confirmed.rules.remove(host);
    certified.lab.control(host)?.call(Request::PolicyApply { policy: Some(policy) })?;
    confirmed.rules.insert(host.to_owned(), rule);
    Ok(())
}

fn certificate(certified: &Certified, host: &str) -> Result<String> {
    Ok(certified.certificate(host)?["serial"].to_string())
}

/// What was confirmed and is not there.
fn missing(certified: &Certified, confirmed: &Confirmed, own: &[String], stations: &[Station]) -> Result<Vec<String>> {
    // Traffic may pass a moment before the control socket is there.
    wait_for("both daemons to answer", LIMIT, || {
        ["h1", "h2"].iter().all(|host| certified.status(host).is_ok()).then_some(())
    })?;
    let mut missing = Vec::new();
    let list = certified.lab.ctl_json("h1", &["token", "list"])?;
    let tokens = list["tokens"].as_array().context("no list of tokens")?;
    for (id, state) in &confirmed.tokens {
        let found = tokens.iter().find(|token| token["id"] == **id).and_then(|token| token["state"].as_str());
        if found != Some(*state) {
            missing.push(format!("token {id} is {found:?}, not {state}"));
        }
    }
    for (host, wanted) in &confirmed.announced {
        let announced = certified.status(host)?.host.announce;
        let lost = wanted.iter().filter(|prefix| !announced.contains(prefix));
        missing.extend(lost.map(|prefix| format!("route {prefix} of {host}")));
        // What a kill left without an answer is withdrawn, so that there is room for more.
        for prefix in announced.into_iter().filter(|prefix| !wanted.contains(prefix)) {
            certified.lab.control(host)?.call(Request::RouteRemove { prefix })?;
        }
    }
    for (host, rule) in &confirmed.rules {
        let shown = serde_json::to_string(&certified.lab.control(host)?.call(Request::PolicyShow)?)?;
        if !shown.contains(rule) {
            missing.push(format!("rule {rule} of {host}: {shown}"));
        }
    }
    for ((host, serial), station) in ["h1", "h2"].iter().zip(own).zip(stations) {
        if certificate(certified, host)? != *serial {
            missing.push(format!("the certificate of {host}"));
        }
        let address = certified.lab.container(&format!("{host}c1"))?.v4;
        if station.address != Some(address) || certified.status(host)?.host.endpoints != 1 {
            missing.push(format!("the container of {host}"));
        }
    }
    Ok(missing)
}

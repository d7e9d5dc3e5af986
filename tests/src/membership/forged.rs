//! A member announces what was not granted to it.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use overlay_control::api::{Request, Response};
use overlay_netns_harness::wait_for;
use overlay_wire::Prefix;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Bound, Figure, Mesh, Run, Station};
use crate::{Certified, lab_name};

const HOSTS: usize = 10;
const LIMIT: Duration = Duration::from_secs(30);
const LIAR: &str = "h10";

/// The routes that count on a host: prefix and owner.
type Routes = BTreeSet<(String, String)>;

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let certified = Certified::cluster(&lab_name("forged"), run.binaries.clone(), HOSTS)?;
    let honest: Vec<String> = (1..HOSTS).map(|number| format!("h{number}")).collect();
    let containers =
        (1..=HOSTS).map(|number| certified.lab.container(&format!("h{number}c1"))).collect::<Result<Vec<_>>>()?;
    let stations: Vec<Station> = containers.iter().map(Station::of).collect();
    let mesh = Mesh::start(&stations, b"forged", Duration::from_millis(100))?;
    mesh.wait_all(&mesh.pairs(), Instant::now(), LIMIT)?;
    let claims = claims(&certified, containers[0].v4, containers[0].v6)?;
    let (mut changes, mut slowest) = (0, Duration::ZERO);
    for _ in 0..run.count(5, 1) {
        for claim in &claims {
            let before = all_routes(&certified, &honest)?;
            slowest = slowest.max(announce(&certified, &honest, *claim)?);
            changes += differing(&before, &all_routes(&certified, &honest)?);
        }
        mesh.wait_all(&mesh.pairs(), Instant::now(), LIMIT)?;
        for claim in &claims {
            ask(&certified, LIAR, Request::RouteRemove { prefix: *claim })?;
        }
    }
    // The control: a route that a member may withdraw is missed by the same comparison.
    let before = all_routes(&certified, &honest)?;
    certified.lab.ctl_ok("h1", &["cert", "revoke", LIAR])?;
    wait_for("the routes of a revoked member to be missed", LIMIT, || {
        (differing(&before, &all_routes(&certified, &honest).ok()?) >= honest.len()).then_some(())
    })?;
    let what = format!("{} claims beyond the grant of a member, {} honest hosts", claims.len(), honest.len());
    Ok(vec![
        Figure::new(format!("{what}: routes changed"), changes as f64, "routes", Bound::AtMost(0.0)),
        Figure::new(format!("{what}: claims"), claims.len() as f64, "claims", Bound::AtLeast(24.0)),
        Figure::new(format!("{what}: shown as refused by all after"), slowest.as_secs_f64(), "s", Bound::AtMost(1.0)),
    ])
}

/// Announces one claim and waits until every honest host shows it as refused.
fn announce(certified: &Certified, honest: &[String], claim: Prefix) -> Result<Duration> {
    std::thread::scope(|scope| {
        let start = Instant::now();
        // The answer comes when every member has said what it makes of it.
        let added = scope.spawn(move || ask(certified, LIAR, Request::RouteAdd { prefix: claim }));
        let mut open: Vec<&String> = honest.iter().collect();
        let shown = wait_for(&format!("{claim} to be shown as refused"), LIMIT, || {
            open.retain(|host| !shows(certified, host, claim));
            open.is_empty().then(|| start.elapsed())
        });
        let answer = added.join().map_err(|_| anyhow!("announcing panicked"))?;
        let Response::RouteAdded(added) = answer? else { bail!("{claim} was not announced") };
        let (took, _) = shown.with_context(|| format!("still open: {open:?}"))?;
        ensure!(added.accepted_by.is_empty(), "{claim} was accepted: {added:?}");
        Ok(took)
    })
}

fn shows(certified: &Certified, host: &str, claim: Prefix) -> bool {
    match ask(certified, host, Request::RouteWhy { prefix: claim }) {
        Ok(Response::RouteWhy(why)) => {
            why.refused.iter().any(|refusal| refusal.owner == LIAR && refusal.prefix == claim)
        }
        _ => false,
    }
}

fn ask(certified: &Certified, host: &str, request: Request) -> Result<Response> {
    let shown = format!("{request:?}");
    certified.lab.control(host)?.call(request).map_err(|error| anyhow!("asking {host} for {shown}: {error:?}"))
}

fn all_routes(certified: &Certified, hosts: &[String]) -> Result<Vec<Routes>> {
    let routes = |host: &String| match ask(certified, host, Request::RouteList)? {
        Response::Routes(routes) => Ok(routes
            .into_iter()
            .filter(|route| route.best)
            .map(|route| (route.prefix.to_string(), route.owner))
            .collect()),
        other => bail!("an answer of the wrong kind: {}", other.name()),
    };
    hosts.iter().map(routes).collect()
}

fn differing(before: &[Routes], after: &[Routes]) -> usize {
    before.iter().zip(after).map(|(before, after)| before.symmetric_difference(after).count()).sum()
}

/// Twenty-four claims: what others own, whole and in parts, what covers it, and what is nobody's.
fn claims(certified: &Certified, v4: std::net::Ipv4Addr, v6: std::net::Ipv6Addr) -> Result<Vec<Prefix>> {
    let owned = |host: &str| -> Result<Vec<Prefix>> { Ok(certified.status(host)?.host.prefixes) };
    let mut texts: Vec<String> = Vec::new();
    for host in ["h1", "h2", "h9"] {
        texts.extend(owned(host)?.iter().map(Prefix::to_string));
    }
    let [a, b, c, _] = v4.octets();
    texts.extend([
        format!("{a}.{b}.{c}.0/25"),
        format!("{a}.{b}.{c}.128/25"),
        format!("{a}.{b}.{c}.1/32"),
        format!("{v4}/32"),
        format!("{v6}/128"),
    ]);
    let wide = [
        "0.0.0.0/0",
        "::/0",
        "0.0.0.0/2",
        "32.0.0.0/3",
        "10.0.0.0/8",
        "10.42.0.0/16",
        "10.42.0.0/20",
        "fd42::/48",
        "fd00::/8",
        "10.42.200.0/24",
        "10.42.255.0/24",
        "fd42:0:0:ffff::/64",
        "192.168.0.0/16",
        "8.8.8.0/24",
    ];
    texts.extend(wide.map(str::to_owned));
    let claims = texts.iter().map(|text| text.parse().with_context(|| text.clone()));
    let claims: BTreeSet<Prefix> = claims.collect::<Result<_>>()?;
    Ok(claims.into_iter().take(24).collect())
}

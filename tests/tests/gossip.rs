//! Prefixes are learned by gossip, withdrawn by gossip, and believed only within a member's grant.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{ControlState, Request, Response};
use overlay_netns_harness::{HostSpec, wait_for};
use overlay_tests::{Overlay, SharedLab};
use std::net::IpAddr;
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(10);

/// Three hosts; everyone may announce subnets of the pool and 192.168.7.0/24.
fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "gossip",
        |name, binaries| {
            Overlay::start(name, binaries, &HostSpec::numbered(3), 1, "wireguard", |cluster| {
                cluster.allow.push("192.168.7.0/24".to_owned());
            })
        },
        |overlay| &overlay.lab,
    )
}

fn announce(overlay: &Overlay, host: &str, prefix: &str) -> Response {
    overlay.ask(host, Request::RouteAdd { prefix: prefix.parse().unwrap() }).unwrap()
}

fn withdraw(overlay: &Overlay, host: &str, prefix: &str) {
    overlay.ask(host, Request::RouteRemove { prefix: prefix.parse().unwrap() }).unwrap();
}

#[test]
fn subnets_of_all_members_are_learned() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    for host in overlay.lab.hosts() {
        for other in overlay.lab.hosts() {
            for prefix in other.prefixes() {
                wait_for(&format!("{} to know {prefix}", host.name()), LIMIT, || {
                    (overlay.owner(host.name(), &prefix)? == other.name()).then_some(())
                })
                .unwrap();
            }
        }
    }
}

#[test]
fn announced_prefix_is_learned_and_forgotten_when_withdrawn() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let prefix = "192.168.7.0/24";
    announce(&overlay, "h1", prefix);
    for host in ["h2", "h3"] {
        wait_for("the announcement", LIMIT, || (overlay.owner(host, prefix)? == "h1").then_some(())).unwrap();
    }
    withdraw(&overlay, "h1", prefix);
    for host in ["h2", "h3"] {
        wait_for("the withdrawal", LIMIT, || overlay.owner(host, prefix).is_none().then_some(())).unwrap();
    }
}

#[test]
fn claims_beyond_the_grant_change_nothing_and_are_shown() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let victim = overlay.container("h1c1").v4;
    let claims = ["0.0.0.0/0".to_owned(), "10.42.1.128/25".to_owned(), format!("{victim}/32")];
    for claim in &claims {
        let request = Request::RouteAdd { prefix: claim.parse().unwrap() };
        // Refused on the spot, or announced and refused by the others: both change nothing.
        let Ok(answer) = overlay.ask("h3", request) else { continue };
        let Response::RouteAdded(_) = answer else { panic!("{answer:?}") };
        wait_for(&format!("h2 to show the refused claim {claim}"), LIMIT, || {
            let why = overlay.ask("h2", Request::RouteWhy { prefix: claim.parse().ok()? }).ok()?;
            let Response::RouteWhy(why) = why else { return None };
            why.refused.iter().any(|refusal| refusal.owner == "h3").then_some(())
        })
        .unwrap();
    }
    for address in [IpAddr::V4(victim), "10.42.1.200".parse().unwrap(), "10.42.1.1".parse().unwrap()] {
        let Response::Route(route) = overlay.ask("h2", Request::RouteGet { address }).unwrap() else { panic!() };
        assert_eq!(route.owner, "h1", "{route:?}");
    }
    assert!(overlay.ask("h2", Request::RouteGet { address: "8.8.8.8".parse().unwrap() }).is_err());
    assert!(overlay.reaches("h2c1", IpAddr::V4(victim)));
    for claim in &claims {
        let _ = overlay.ask("h3", Request::RouteRemove { prefix: claim.parse().unwrap() });
    }
}

#[test]
fn member_cut_off_is_shown_down_and_comes_back() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let limit = Duration::from_secs(20);
    let state = |wanted: ControlState| {
        move |overlay: &Overlay| overlay.peer("h1", "h3").is_ok_and(|peer| peer.control == wanted)
    };
    overlay.lab.cut("h3").unwrap();
    let down = wait_for("h3 to be down", limit, || state(ControlState::Down)(&overlay).then_some(()));
    overlay.lab.heal("h3").unwrap();
    down.unwrap();
    wait_for("h3 to be up again", limit, || state(ControlState::Up)(&overlay).then_some(())).unwrap();
    let to = IpAddr::V4(overlay.container("h3c1").v4);
    wait_for("traffic to h3", limit, || overlay.reaches("h1c1", to).then_some(())).unwrap();
}

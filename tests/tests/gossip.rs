//! Prefixes are learned by gossip, withdrawn by gossip, and believed only within a member's grant.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{ControlState, DataState, PeerStatus, Request, Response};
use overlay_netns_harness::{HostSpec, nft, wait_for};
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

/// Drops WireGuard's data packets of one host at another until it is taken back; handshakes and gossip pass.
struct OneWay(String);

impl OneWay {
    fn make(overlay: &Overlay, from: &str, to: &str) -> OneWay {
        let from = overlay.lab.host(from).unwrap();
        let namespace = overlay.lab.host(to).unwrap().view().namespace().to_owned();
        let hook = "type filter hook prerouting priority -310; policy accept;";
        let (v4, v6) = (from.underlay_v4(), from.underlay_v6());
        let table = format!(
            "table inet test_oneway {{\n chain c {{\n {hook}\n ip saddr {v4} udp dport 51821 @th,64,8 4 drop\n \
             ip6 saddr {v6} udp dport 51821 @th,64,8 4 drop\n }}\n}}\n"
        );
        nft(&namespace, &table).unwrap();
        OneWay(namespace)
    }
}

impl Drop for OneWay {
    fn drop(&mut self) {
        if let Err(error) = nft(&self.0, "delete table inet test_oneway") {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn data_that_fails_in_one_direction_is_shown_so_at_both_ends_and_nowhere_else() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let limit = Duration::from_secs(30);
    let states = |at: &str, of: &str| overlay.peer(at, of).ok().map(|peer| (peer.data, peer.arriving));
    let wait_states = |at: &str, of: &str, data: DataState, arriving: DataState| {
        let what = format!("{at} to see {data:?} and {arriving:?} of {of}");
        wait_for(&what, limit, || (states(at, of) == Some((data, arriving))).then_some(())).unwrap();
    };
    for (at, of) in [("h1", "h2"), ("h2", "h1")] {
        wait_states(at, of, DataState::Up, DataState::Up);
    }
    let problem = |peer: &PeerStatus| peer.problems.iter().find(|p| p.code == "DATA_DOWN").map(|p| p.why.clone());
    let cut = OneWay::make(&overlay, "h1", "h2");
    wait_states("h1", "h2", DataState::Down, DataState::Up);
    wait_states("h2", "h1", DataState::Down, DataState::Down);
    let (there, back) = (overlay.peer("h1", "h2").unwrap(), overlay.peer("h2", "h1").unwrap());
    assert_eq!((there.control, back.control), (ControlState::Up, ControlState::Up), "a path's state is no verdict");
    assert!(problem(&there).unwrap().contains("ours die on the way there"), "{:?}", there.problems);
    assert!(problem(&back).unwrap().contains("none of its packets arrive"), "{:?}", back.problems);
    for (at, of) in [("h1", "h3"), ("h2", "h3"), ("h3", "h1"), ("h3", "h2")] {
        assert_eq!(states(at, of), Some((DataState::Up, DataState::Up)), "{at} of {of}");
    }
    drop(cut);
    for (at, of) in [("h1", "h2"), ("h2", "h1")] {
        wait_states(at, of, DataState::Up, DataState::Up);
    }
}

//! Foreign WireGuard peers: the daemon against other implementations.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cookie;
mod exchange;
mod headers;
mod movement;
mod rekey;

use overlay_netns_harness::{run_in, wait_for};
use overlay_tests::{Foreign, Program, SharedLab};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Foreign> = SharedLab::new();
/// How long a condition may take: two repeats of an initiation, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Of `wg set`: where the device finds `h1`.
const OUR_ENDPOINT: &str = "endpoint 192.0.2.1:51821";
/// Of the configuration: where `h1` finds the device.
const THEIR_ENDPOINT: &str = "endpoint = \"192.0.2.2:51820\"";

/// The lab of two hosts. The sessions that take two minutes begin beside it, with the first test of all.
fn foreign(test: &str) -> Option<MutexGuard<'static, Foreign>> {
    if !Program::can_use_all(test) {
        return None;
    }
    rekey::begin();
    LAB.lease("wgf", Foreign::start, |foreign| &foreign.lab)
}

/// Runs a test against every program in turn.
fn against_each(test: &str, run: impl Fn(&Foreign, Program)) {
    let Some(foreign) = foreign(test) else { return };
    let _logs = foreign.lab.logs_on_failure();
    for program in Program::ALL {
        eprintln!("-- against {}", program.name());
        run(&foreign, program);
    }
}

fn comes_true(what: &str, mut condition: impl FnMut() -> bool) {
    if let Err(error) = wait_for(what, LIMIT, || condition().then_some(())) {
        panic!("{error}");
    }
}

/// Makes a preshared key for `h1` and another host; where each of them finds it.
fn preshared_key(foreign: &Foreign, host: &str, name: &str) -> (String, String) {
    let (ours, theirs) = (format!("/run/overlay/{name}.psk"), format!("/run/{name}.psk"));
    let h1 = foreign.lab.host("h1").unwrap();
    run_in(h1.view(), &["sh", "-c", &format!("umask 077; wg genpsk > {ours}")]).unwrap();
    std::fs::copy(h1.path(&ours), foreign.lab.host(host).unwrap().path(&theirs)).unwrap();
    (ours, theirs)
}

//! Short forms of the simulation; the full ones are `cargo lab soak sim` and its parts. A failure prints its seed and replays.

use overlay_tests::sim::{Outcome, Request, run};

fn request(nodes: usize, loss_percent: f64, seed: u64) -> Request {
    Request { nodes, loss: loss_percent / 100.0, seed, runs: None, minutes: None }
}

/// Runs a scenario; a broken invariant fails the test with seed, time and trace.
fn outcome(scenario: &str, request: Request) -> Outcome {
    println!("{scenario}: {request:?}");
    match run(scenario, &request).expect("a scenario of this name") {
        Ok(outcome) => {
            println!("{outcome}");
            outcome
        }
        Err(violation) => panic!("{violation}"),
    }
}

fn hold(scenario: &str, request: Request) -> Outcome {
    let outcome = outcome(scenario, request);
    assert!(outcome.held(), "{outcome}");
    outcome
}

fn value(outcome: &Outcome, what: &str) -> f64 {
    outcome.rows.iter().find(|row| row.what.starts_with(what)).map(|row| row.value).expect("a row of this name")
}

#[test]
fn same_seed_gives_the_same_run_byte_for_byte() {
    let chaos = |seed| outcome("chaos", Request { minutes: Some(1.0), ..request(16, 10.0, seed) });
    let (first, second) = (chaos(7), chaos(7));
    assert_eq!(first.fingerprint, second.fingerprint);
    assert_eq!(first.to_string(), second.to_string());
    assert_ne!(first.fingerprint, chaos(8).fingerprint, "the fingerprint tells runs apart");
}

#[test]
fn route_change_is_known_to_all_in_time() {
    hold("convergence", Request { runs: Some(10), ..request(100, 10.0, 1) });
    hold("convergence", Request { runs: Some(10), ..request(60, 30.0, 2) });
}

#[test]
fn nobody_is_given_up_because_of_a_liar_and_a_half_connected_host() {
    let outcome = hold("false-deaths", Request { minutes: Some(4.0), ..request(40, 10.0, 1) });
    // The controls: the half-connected host is given up, and the liar did lie.
    assert!(value(&outcome, "verdicts about the half-connected host") >= 38.0);
    assert!(value(&outcome, "claims of the liar refused") > 0.0);
}

#[test]
fn death_is_known_to_all_in_time() {
    hold("true-death", Request { runs: Some(5), ..request(60, 10.0, 1) });
}

#[test]
fn halves_of_a_partition_are_one_again_in_time() {
    let outcome = hold("partition-heal", Request { runs: Some(1), ..request(50, 10.0, 1) });
    // The control: while apart, each gave up the other half.
    assert!(value(&outcome, "members given up per host") >= 15.0);
}

#[test]
fn revoked_hosts_are_gone_everywhere_in_time() {
    let outcome = hold("revocation", Request { runs: Some(10), ..request(60, 30.0, 1) });
    // The control: before, everybody gave everybody a subnet.
    assert_eq!(value(&outcome, "prefixes with an owner before"), 60.0);
    assert_eq!(value(&outcome, "revocations"), 10.0);
}

#[test]
fn idle_cluster_is_quiet() {
    let outcome = hold("idle", Request { minutes: Some(1.0), ..request(60, 0.0, 1) });
    assert!(value(&outcome, "datagrams per host") > 4.0, "it still probes");
}

#[test]
fn whole_cluster_starts_cold_and_after_a_common_death() {
    hold("cold-start", request(50, 10.0, 1));
    hold("restart-all", request(50, 10.0, 2));
}

#[test]
fn no_invariant_breaks_whatever_the_faults() {
    for seed in 1..=8 {
        hold("chaos", Request { minutes: Some(2.0), ..request(24, 10.0, seed) });
    }
}

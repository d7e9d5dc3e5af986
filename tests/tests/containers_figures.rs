//! The figures of containers in their short form; `cargo lab soak containers` has the full counts and the same limits.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::Binaries;
use overlay_tests::can_make_namespaces;
use overlay_tests::containers::ROWS;
use overlay_tests::figures::{Figure, Run, Size, run};

/// Another one may be given in this variable.
const SEED: u64 = 1;

fn row(name: &str) {
    if !can_make_namespaces(name) {
        return;
    }
    let seed = std::env::var("OVERLAY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED);
    println!("OVERLAY_SEED={seed}");
    let figures = run(ROWS, name, &Run { binaries: Binaries::for_tests().unwrap(), seed, size: Size::Short }).unwrap();
    assert!(!figures.is_empty());
    figures.iter().for_each(|figure| println!("{figure}"));
    assert!(figures.iter().all(Figure::holds), "{figures:#?}");
}

macro_rules! rows {
    ($($test:ident => $name:literal,)*) => {
        $(#[test]
        fn $test() {
            row($name);
        })*

        #[test]
        fn every_row_has_a_test() {
            // How soon dockerd starts without our daemon is among the faults of `--test docker`, which have one running.
            let tested = [$($name),*];
            let rows: Vec<&str> = ROWS.iter().map(|row| row.name).filter(|name| *name != "dockerd").collect();
            assert_eq!(rows, tested);
        }
    };
}

rows! {
    container_is_attached_in_time => "add",
    plugins_answer_in_time_without_the_daemon => "absent",
    kills_of_plugin_and_daemon_leave_nothing => "kills",
    faults_get_an_answer_in_time_and_leave_nothing => "faults",
    neighbours_are_faster_than_wireguard_between_hosts => "neighbours",
    nothing_forged_leaves_a_container => "hostile",
    rates_are_kept => "limits",
    names_are_answered_beside_floods => "dns",
}

//! The figures of membership in their short form; `cargo lab soak membership` has the full counts and the same limits.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::Binaries;
use overlay_tests::can_make_namespaces;
use overlay_tests::figures::{Figure, Run, Size, run};
use overlay_tests::membership::ROWS;

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
            let tested = [$($name),*];
            assert_eq!(ROWS.iter().map(|row| row.name).collect::<Vec<_>>(), tested);
        }
    };
}

rows! {
    revoked_member_is_cut_off_everywhere => "revocation",
    token_used_a_hundred_times_at_once_admits_one_host => "token",
    forged_announcements_change_no_route_and_are_shown => "forged",
    inner_source_of_another_owner_is_not_delivered => "spoofed",
    garbage_is_dropped_without_an_answer_and_memory_stays_flat => "garbage",
    handshake_flood_starves_neither_a_flow_nor_a_join => "flood",
    packets_repeated_and_out_of_order_arrive_once => "replay",
    no_inner_packet_is_on_the_underlay => "canary",
    daemons_killed_at_random_instants_lose_nothing => "kills",
    all_hosts_started_at_once_find_each_other => "restart",
}

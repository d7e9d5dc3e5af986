//! The cost of one decision: established flows, new flows over growing rule sets, growing tables of flows and routes.
//!
//! Before anything is measured, steady-state forwarding is shown to allocate nothing.

#[path = "../tests/support/mod.rs"]
mod support;

use std::alloc::System;

use divan::{Bencher, black_box};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{Node, segment, udp};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let mut node = Node::new(100, 100);
    let mut packets = node.connect(1000);
    node.forward(&mut packets);
    let region = Region::new(ALLOCATOR);
    for _ in 0..100 {
        node.forward(&mut packets);
    }
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "steady-state forwarding allocates");
    divan::main();
}

/// One packet of one established flow: the packets of a flow come in trains.
#[divan::bench(args = ["v4", "v6"])]
fn established_same_flow(bencher: Bencher, family: &str) {
    let mut node = Node::new(100, 100);
    let mut packets = if family == "v4" { node.connect(1) } else { node.connect_v6(1) };
    bencher.bench_local(|| black_box(node.forward(&mut packets)));
}

/// Packets of as many established flows in turn, so that every cache is cold as the table grows.
#[divan::bench(args = [1, 100, 1000, 10_000, 100_000])]
fn established_flows_in_turn(bencher: Bencher, flows: usize) {
    let mut node = Node::new(100, 100);
    let mut packets = node.connect(flows);
    let mut next = 0;
    bencher.bench_local(|| {
        next = (next + 1) % packets.len();
        black_box(node.forward(&mut packets[next..=next]))
    });
}

/// The first packet of a flow, refused by the last of so many rules: a lookup in the table, then the whole filter.
#[divan::bench(args = [10, 100, 1000, 10_000])]
fn new_flow_refused_by_the_last_rule(bencher: Bencher, rules: usize) {
    let mut node = Node::new(rules, 100);
    let mut packets = [udp("10.42.1.5", 1, "10.42.2.5", 9)];
    bencher.bench_local(|| black_box(node.forward(&mut packets)));
}

/// The first packet of a flow that is admitted, with its place in the table.
#[divan::bench(args = [10, 10_000])]
fn new_flow_admitted(bencher: Bencher, rules: usize) {
    let mut node = Node::new(rules, 100);
    let mut port = 0u16;
    bencher
        .with_inputs(|| {
            port = port.wrapping_add(1);
            segment(&format!("10.42.1.{}", 10 + port % 200), port.max(1), "10.42.2.5", 80, 0x02, 1, 0, 0)
        })
        .bench_local_values(|packet| black_box(node.forward(&mut [packet])));
}

/// One packet of an established flow over so many routes.
#[divan::bench(args = [10, 1000, 100_000])]
fn established_by_routes(bencher: Bencher, routes: usize) {
    let mut node = Node::new(100, routes);
    let mut packets = node.connect(1);
    bencher.bench_local(|| black_box(node.forward(&mut packets)));
}

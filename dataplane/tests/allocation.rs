//! Steady-state forwarding allocates nothing, whatever the packet path does in it.

mod support;

use std::alloc::System;

use overlay_dataplane::{DropReason, Verdict};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{H2, Node, SYN, segment, udp};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn steady_state_allocates_nothing() {
    let mut node = Node::new(100, 100);
    let mut packets = node.connect(1000);
    let mut refused = udp("10.42.1.5", 1, "10.42.2.5", 9);
    let mut spoofed = udp("10.42.2.7", 1, "10.42.2.5", 9);
    let mut opening: Vec<_> =
        (0..1000).map(|port| segment("10.42.1.9", port + 2000, "10.42.2.5", 80, SYN, 1, 0, 0)).collect();
    node.forward(&mut packets);

    // The counter counts at all.
    let region = Region::new(ALLOCATOR);
    std::hint::black_box(vec![0u8; 100]);
    assert!(region.change().allocations > 0);

    let region = Region::new(ALLOCATOR);
    for _ in 0..20 {
        assert_eq!(node.forward(&mut packets), Verdict::Forward(H2));
        assert_eq!(node.out(&mut refused), Verdict::Drop(DropReason::PolicyDeny));
        assert_eq!(node.out(&mut spoofed), Verdict::Drop(DropReason::SpoofedSource));
        assert_eq!(node.forward(&mut opening), Verdict::Forward(H2));
    }
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0));
}

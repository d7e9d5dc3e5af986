//! Longest-prefix-match lookups: the cost per lookup must stay flat from 10 to 100,000 routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use divan::{Bencher, black_box, counter::ItemsCount};
use overlay_routing::fib::Fib;
use overlay_wire::Prefix;

const ROUTES: [u32; 5] = [10, 100, 1_000, 10_000, 100_000];
const LOOKUPS: u32 = 1_024;

fn main() {
    divan::main();
}

/// Spreads numbers over the 24 bits of 10.0.0.0/8, so that tables of every size reach the same depth.
fn spread(n: u32) -> u32 {
    n.wrapping_mul(2_654_435_761) >> 8
}

#[divan::bench(args = ROUTES)]
fn ipv4_slash_24(bencher: Bencher<'_, '_>, routes: u32) {
    let address = |n| Ipv4Addr::from(n << 8);
    let prefix = |n| Prefix::truncating(address(spread(n)).into(), 24).expect("24 fits IPv4");
    let fib = Fib::build((0..routes).map(|n| (prefix(n), n)).collect());
    let ips: Vec<IpAddr> = (0..LOOKUPS).map(|n| address(spread(n * 97 % routes)).into()).collect();
    bencher
        .counter(ItemsCount::new(LOOKUPS))
        .bench(|| ips.iter().map(|ip| u64::from(*fib.lookup(black_box(*ip)).expect("a route"))).sum::<u64>());
}

#[divan::bench(args = ROUTES)]
fn ipv6_slash_64(bencher: Bencher<'_, '_>, routes: u32) {
    let address = |n: u32| Ipv6Addr::from(0xfd42_u128 << 112 | u128::from(n) << 64);
    let prefix = |n| Prefix::truncating(address(spread(n)).into(), 64).expect("64 fits IPv6");
    let fib = Fib::build((0..routes).map(|n| (prefix(n), n)).collect());
    let ips: Vec<IpAddr> = (0..LOOKUPS).map(|n| address(spread(n * 97 % routes)).into()).collect();
    bencher
        .counter(ItemsCount::new(LOOKUPS))
        .bench(|| ips.iter().map(|ip| u64::from(*fib.lookup(black_box(*ip)).expect("a route"))).sum::<u64>());
}

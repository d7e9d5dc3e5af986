//! overlay-lab: clusters in network namespaces, tests, benches and packages.

fn main() {}

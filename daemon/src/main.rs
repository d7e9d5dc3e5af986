//! overlayd, the overlay network daemon.

fn main() {}

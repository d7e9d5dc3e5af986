//! overlayd, the overlay network daemon.

mod plumbing;

fn main() {}

//! overlayd, the overlay network daemon.

mod device;
mod underlay;
mod wireguard;

fn main() {}

//! overlayctl, the command line of the overlay network.

fn main() {}

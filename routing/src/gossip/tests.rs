//! Whole clusters of state machines under virtual time.

mod attack;
mod cluster;
mod large;
mod sim;
mod vectors;

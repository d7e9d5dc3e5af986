//! Whole clusters of state machines under virtual time.

mod attack;
mod cluster;
mod sim;
mod vectors;

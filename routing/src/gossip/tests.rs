//! Whole clusters of state machines under virtual time.

mod attack;
mod check;
mod cluster;
mod large;
mod sim;
mod vectors;

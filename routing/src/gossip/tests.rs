//! Whole clusters of state machines under virtual time.

mod attack;
mod certified;
mod cluster;
mod forgery;
mod sim;
mod vectors;

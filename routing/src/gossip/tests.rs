//! Whole clusters of state machines under virtual time.

mod attack;
mod certified;
mod check;
mod cluster;
mod forgery;
mod identities;
mod large;
mod paths;
mod probing;
mod sim;
mod vectors;

//! Simulation of whole clusters: the real gossip state machines of N hosts under virtual time.
//!
//! One thread, one event queue, one 64-bit seed that decides everything: the same seed gives the same datagrams, byte for
//! byte. [`World`] carries time, hosts and links; [`Referee`] is the reference model that watches every event and stops
//! the run at the first broken invariant; `scenario` holds what is measured. docs/simulation.md says what is modelled.

mod calm;
mod cast;
#[cfg(test)]
mod controls;
mod disk;
mod fault;
mod liar;
mod link;
mod node;
mod outcome;
mod referee;
mod scenario;
mod sealing;
mod start;
mod trace;
mod watch;
mod world;

pub use link::{Delay, Link};
pub use outcome::{Cost, Outcome, Row, percentile};
pub use referee::{Referee, Violation};
pub use scenario::{Request, SCENARIOS, Scenario, run};
pub use world::{Members, Settings, Start, World};

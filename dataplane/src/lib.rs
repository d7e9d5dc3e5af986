//! What happens to one packet or one super-packet: source checks, packet filter, connection tracking, fragments, MTU.
//!
//! The crate is pure: no sockets, clock or threads of its own. The daemon builds an immutable [`Tables`] snapshot, parses
//! each inner packet once with `overlay_wire::packet`, and asks its [`Engine`] for a [`Verdict`]: [`Engine::outbound`] for a
//! packet read from the TUN, [`Engine::inbound`] for one decapsulated from a peer. [`explain`] runs the same decisions
//! for a tuple without a packet and names what decides. Every drop has a [`DropReason`] with its own counter.
//!
//! Order of the checks: addresses that never belong on an overlay, source and destination owner, fragments, connection
//! tracking with the filter for new flows, MTU, limits on rates. Nothing before connection tracking leaves state behind.

#![forbid(unsafe_code)]

pub mod capture;
pub mod conntrack;
mod early;
mod engine;
mod explain;
mod fragment;
mod introductions;
mod limiter;
mod note;
mod path;
pub mod policy;
mod rate;
mod reason;
mod reply;
mod tables;
pub mod trace;
mod verdict;
pub mod waiting;

#[cfg(test)]
mod testing;

pub use conntrack::{Conntrack, Cursor, FLOW_BYTES, FlowSelector, FlowSnapshot, FlowState, Pass, Restored, SavedWhile};
pub use engine::{Engine, Limits, Question, rehearse};
pub use explain::{Outcome, Step, direct, explain};
pub use note::{FlowNote, Notes, SizeNote, Stage};
pub use path::End;
pub use policy::{
    Addresses, CompiledPolicy, DecidedBy, Decision, FlowEnd, Grounds, HostPolicy, HostRule, HostWay, LabelUse, Opening,
    Published, RuleEvent, Tuple, Warning,
};
pub use rate::{Limit, MAX_RATE, MIN_BURST, MIN_RATE, Rate, RateTable};
pub use reason::{Counters, DropReason, Traffic};
pub use tables::{LocalAddresses, PeerInfo, Route, Tables};
pub use verdict::{Origin, Released, Reply, Verdict};

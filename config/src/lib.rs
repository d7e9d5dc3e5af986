//! Configuration: TOML in, checked values out.
//!
//! A file goes through three steps. `reader` and `raw` parse it and keep the place of every value; `check` fills in
//! defaults and verifies values against each other; only [`Config`] leaves the crate. Every problem is reported in one
//! run, each with file, line, key and what was expected. Secrets are never part of a configuration, only the paths of
//! the files that hold them ([`secret`]).
//!
//! The crate reads files when asked to and is pure otherwise.

#![forbid(unsafe_code)]

mod check;
pub mod defaults;
pub mod diff;
pub mod effective;
pub mod key;
pub mod layer;
pub mod membership;
pub mod problem;
mod raw;
mod reader;
pub mod secret;
pub mod types;

pub use diff::{Applies, Change, diff};
pub use effective::{Origin, OriginLayer, Setting};
pub use key::PublicKey;
pub use layer::Layer;
pub use membership::MembershipLayer;
pub use problem::{Place, Problem, Problems};
pub use types::{
    Config, ForeignKind, ForeignPeer, Grant, Limits, Log, LogLevel, Member, Node, Overlay, Paths, Plumbing, Role,
};

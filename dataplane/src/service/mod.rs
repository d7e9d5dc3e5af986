//! Virtual addresses: a packet to one gets a healthy backend's address in its place, and the answers come back from the
//! virtual one. Done at the client's host, so that the backend sees the client and its own host's filter still holds.
//!
//! It stands before and behind the [`Engine`](crate::Engine), which sees the client and the backend and nothing else:
//! [`Translator::forward`] before a packet from the TUN is decided, [`Translator::backward`] on what is about to be written
//! to the TUN.

mod balance;
mod flows;
mod maglev;
mod opening;
mod table;
mod translator;

#[cfg(test)]
mod tests;

pub use balance::{Algorithm, UnknownAlgorithm};
pub use table::{Backend, BackendState, Frontend, FrontendOptions, FrontendState, MAX_BACKENDS, Outlier, ServiceTable};
pub use translator::{Back, Translator, Way};

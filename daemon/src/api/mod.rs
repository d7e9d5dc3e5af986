//! The control socket: accepts callers, checks who they are, reads requests and gives them to the [`Backend`].
//!
//! Bounds: 64 connections, 1 MiB per frame, 5 s to send a request once begun, 5 s to take an answer, 60 s idle. A caller
//! that follows events and reads too slowly is told so and closed. The backend decides what requests mean; this module
//! decides only who may make them.

mod access;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use access::{Access, Caller};
pub(crate) use server::{Backend, Batches, NoBatches, Server};

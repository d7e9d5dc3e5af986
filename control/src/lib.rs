//! The control socket: what `overlayctl` and the plugins say to `overlayd`, and a blocking client.
//!
//! Frames are a big-endian 32-bit length and that many bytes of JSON ([`frame`]). Every frame carries the protocol
//! version. Requests, responses and events are in [`api`], error codes with their exit codes in [`codes`].

#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod codes;
pub mod frame;
pub mod time;

pub use api::{ApiError, Event, Request, Response};
pub use client::{Client, ControlError};
pub use codes::Code;
pub use time::Timestamp;

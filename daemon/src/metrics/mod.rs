//! The page of figures for a collector: what is measured, the page as text, and the server that hands it out.
//!
//! Nothing here is on the packet path: the counters that exist anyway are read when the page is asked for.

pub mod definitions;
mod page;
mod server;
#[cfg(test)]
mod tests;

pub use definitions::{Definition, Kind, Metric};
pub use page::{CONTENT_TYPE, Page};
pub(crate) use server::{Deadlines, Server, Source};

//! What outlives a restart: the state directory, files in two slots, and the boot epoch.
//!
//! Nothing here is needed to forward packets: a disk that is full, read-only or gone refuses changes and is reported, and
//! what is in force stays in force.

mod directory;
mod epoch;
mod slots;
#[cfg(test)]
mod tests;

pub use directory::{StateDir, StateError};
pub use epoch::{EARLIEST_UNIX, next_boot_epoch};
pub use slots::{Loaded, Slots};

//! Cleaning up when the user interrupts.

pub(crate) use overlay_netns_harness::clean::on_interrupt as clean_on_interrupt;

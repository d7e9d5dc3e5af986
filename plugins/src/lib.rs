//! How container engines reach the daemon: the CNI plugin, and the one function that configures a container's namespace.
//!
//! Plugins are short-lived, run as root, keep no state of their own and speak to the daemon over its control socket.

#![forbid(unsafe_code)]

pub mod attach;
pub mod cni;
pub mod cni_install;
pub mod docker_dns;

//! How container engines reach the daemon: the CNI plugin, the Docker plugin, and the one function that configures a container's namespace.
//!
//! All of them run as root and speak to the daemon over its control socket. The CNI plugin is short-lived and keeps no state;
//! the Docker plugin is a service, because dockerd calls it at any time and never says again what it has said once.

#![forbid(unsafe_code)]

pub mod attach;
pub mod cni;
pub mod cni_install;
mod daemon;
pub mod docker;
pub mod docker_dns;
pub mod docker_install;

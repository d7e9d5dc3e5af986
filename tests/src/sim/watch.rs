//! Waiting for something to be known at every host, with the time at each.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use overlay_wire::HostId;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// This address belongs to this host.
    Owner(IpAddr, HostId),
    /// This host is down.
    Down(HostId),
    /// This host is revoked, and this address does not belong to it any more.
    Out(IpAddr, HostId),
}

/// One thing that every host is to learn.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) wanted: Wanted,
    began: Duration,
    missing: BTreeSet<usize>,
    /// How long each host that knows took.
    pub(crate) took: Vec<Duration>,
}

impl Watch {
    pub(crate) fn new(wanted: Wanted, began: Duration, missing: BTreeSet<usize>) -> Self {
        Self { wanted, began, missing, took: Vec::new() }
    }

    pub(crate) fn is_missing(&self, node: usize) -> bool {
        self.missing.contains(&node)
    }

    pub(crate) fn learned(&mut self, node: usize, now: Duration) {
        if self.missing.remove(&node) {
            self.took.push(now - self.began);
        }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// How long the last host took.
    pub(crate) fn slowest(&self) -> Option<Duration> {
        self.took.iter().max().copied()
    }
}

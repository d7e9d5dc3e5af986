//! Counting the handshake initiations between hosts.

use anyhow::Result;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::outer::{Outer, wireguard_kind};
use crate::traffic::Capture;

/// Initiations seen on a host, by sender and receiver.
#[derive(Debug)]
pub struct Initiations {
    seen: Arc<Mutex<BTreeMap<(SocketAddr, SocketAddr), u32>>>,
    _capture: Capture,
}

impl Initiations {
    /// Counts from now on what passes in a namespace.
    pub fn watch(namespace: &str) -> Result<Initiations> {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let counted = seen.clone();
        let capture = Capture::start(namespace, move |frame| {
            let Some(outer) = Outer::parse(frame) else { return false };
            let Some((from, to, content)) = outer.udp() else { return false };
            let initiation = wireguard_kind(content) == Some(1);
            if initiation {
                let ends = (SocketAddr::new(outer.source, from), SocketAddr::new(outer.target, to));
                *counted.lock().unwrap_or_else(PoisonError::into_inner).entry(ends).or_default() += 1;
            }
            initiation
        })?;
        Ok(Initiations { seen, _capture: capture })
    }

    /// How many one end sent to another.
    pub fn count(&self, from: SocketAddr, to: SocketAddr) -> u32 {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&(from, to)).copied().unwrap_or(0)
    }
}

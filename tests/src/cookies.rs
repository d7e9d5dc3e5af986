//! Load that makes a WireGuard responder ask for cookies, and the handshakes that answer with one.

use anyhow::{Context as _, Result, ensure};
use overlay_netns_harness::{Lab, WaitError};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::outer::{Outer, wireguard_kind};
use crate::traffic::Capture;

const FLOOD: &str = include_str!("flood.py");
/// How long a flood lasts, unless it is ended; longer than everything that is waited for below.
const SECONDS: &str = "120";

/// Forged initiations from a host to a WireGuard port, until this is dropped.
#[derive(Debug)]
pub struct Flood(Child);

impl Flood {
    /// Sends to the holder of a public key, so many in one burst and so many seconds between bursts.
    pub fn start(lab: &Lab, from: &str, key: &str, to: SocketAddr, burst: u32, pause: f32) -> Result<Flood> {
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let (burst, pause) = (burst.to_string(), pause.to_string());
        let argv = ["/usr/bin/python3", "-c", FLOOD, key, &ip, &port, SECONDS, &burst, &pause];
        let mut command = lab.command(from, &argv)?;
        Ok(Flood(command.stdin(Stdio::null()).spawn().context("the flood could not be started")?))
    }

    fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Watches the two steps of a handshake by cookie: the reply with it (type 3), and an initiation that carries its proof.
#[derive(Debug)]
pub struct Cookies {
    replied: Arc<AtomicBool>,
    proved: Arc<AtomicBool>,
    capture: Capture,
}

impl Cookies {
    /// Watches in a namespace what two ends send to each other.
    pub fn watch(namespace: &str, initiator: SocketAddr, responder: SocketAddr) -> Result<Cookies> {
        let (replied, proved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let seen = (replied.clone(), proved.clone());
        let capture = Capture::start(namespace, move |frame| {
            let Some(outer) = Outer::parse(frame) else { return false };
            let Some((from, to, content)) = outer.udp() else { return false };
            let ends = (SocketAddr::new(outer.source, from), SocketAddr::new(outer.target, to));
            let reply = ends == (responder, initiator) && wireguard_kind(content) == Some(3);
            // The second MAC, which only a cookie gives, ends an initiation.
            let proof = ends == (initiator, responder)
                && wireguard_kind(content) == Some(1)
                && content.get(132..148).is_some_and(|mac| mac.iter().any(|byte| *byte != 0));
            seen.0.fetch_or(reply, Ordering::Relaxed);
            seen.1.fetch_or(proof, Ordering::Relaxed);
            reply || proof
        })?;
        Ok(Cookies { replied, proved, capture })
    }

    /// Whether the responder has asked for a cookie.
    pub fn asked(&self) -> bool {
        self.replied.load(Ordering::Relaxed)
    }

    /// Whether the initiator has proved its address by a cookie.
    pub fn proved(&self) -> bool {
        self.proved.load(Ordering::Relaxed)
    }

    /// Whether an echo came through a handshake by cookie. One that came without forgets its session by `again`, because
    /// the first messages of each second pass without a cookie.
    pub fn echo_proves(&self, echo: bool, again: impl FnOnce()) -> Option<()> {
        if echo && !self.proved() {
            again();
        }
        (echo && self.proved()).then_some(())
    }

    /// Ends flood and capture, and says which step of the handshake did not come: a cookie asked for, an echo after it.
    pub fn finish(self, mut flood: Flood, steps: [Result<((), Duration), WaitError>; 2]) -> Result<()> {
        let running = flood.runs();
        drop(flood);
        let proved = self.proved.load(Ordering::Relaxed);
        let found = self.capture.finish();
        for step in steps {
            step.with_context(|| format!("{found:?}"))?;
        }
        ensure!(proved, "the handshake went without a cookie: {found:?}");
        ensure!(running, "the flood ended before the handshake");
        Ok(())
    }
}

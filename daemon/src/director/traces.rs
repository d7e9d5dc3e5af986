//! Questions about packets: those this host asked members, and those that members ask, answered by a task of their own.

use std::sync::Arc;
use std::time::Instant;

use overlay_routing::gossip::GossipEvent;
use overlay_wire::HostId;
use overlay_wire::gossip::{TraceAnswer, TracedPacket};
use tokio::sync::{Semaphore, oneshot};

use super::Director;
use crate::backend::Api;
use crate::core::Change;

/// Questions of members worked on at once; more are not answered, and asked again.
const AT_ONCE: usize = 8;
/// Own questions under way, at most.
const ASKED: usize = 64;

/// Questions about packets.
#[derive(Debug)]
pub(crate) struct TraceDesk {
    asked: Vec<(u64, oneshot::Sender<Option<TraceAnswer>>)>,
    slots: Arc<Semaphore>,
}

impl Default for TraceDesk {
    fn default() -> Self {
        Self { asked: Vec::new(), slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Director {
    /// Asks a member; the answer is told when it comes.
    pub(super) fn ask_trace(
        &mut self,
        host: HostId,
        packet: TracedPacket,
        answer: oneshot::Sender<Option<TraceAnswer>>,
    ) {
        self.traces.asked.retain(|(_, answer)| !answer.is_closed());
        if self.traces.asked.len() >= ASKED {
            return;
        }
        match self.gossip.ask_trace(host, packet, Instant::now()) {
            Some(nonce) => self.traces.asked.push((nonce, answer)),
            // Whoever asked may be gone.
            None => drop(answer.send(None)),
        }
    }

    /// Begins to answer a question, or hands on an answer.
    pub(super) fn trace_event(&mut self, event: &GossipEvent) {
        match event {
            GossipEvent::TraceAsked { host, nonce, packet } => {
                let Ok(slot) = Arc::clone(&self.traces.slots).try_acquire_owned() else { return };
                let (core, host, nonce, packet) = (Arc::clone(&self.core), *host, *nonce, *packet);
                tokio::spawn(async move {
                    let answer = Api::new(Arc::clone(&core)).answer_trace(host, &packet).await;
                    // A director that has ended answers nobody.
                    let _ = core.changes.send(Change::TellTrace(host, nonce, answer)).await;
                    drop(slot);
                });
            }
            GossipEvent::TraceTold { nonce, answer } => {
                if let Some(at) = self.traces.asked.iter().position(|(asked, _)| asked == nonce) {
                    let (_, waiting) = self.traces.asked.swap_remove(at);
                    // Whoever asked may have given up.
                    let _ = waiting.send(Some(answer.clone()));
                }
            }
            _ => {}
        }
    }
}

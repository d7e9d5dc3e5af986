//! The thread that saves flows while packets pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use overlay_dataplane::{Conntrack, SavedWhile};
use parking_lot::Mutex;

use super::FlowStore;
use crate::events::EventLog;

/// How often flows are saved. Those opened since are lost by a kill, so it is short; a table of usual size takes a few
/// milliseconds.
const EVERY: Duration = Duration::from_secs(3);
/// A pause is at least this many times the processor time of the save before it: two hundredths of one processor at most.
const PAUSE_PER_WORK: u32 = 50;
/// And this many times as long as the save took, waiting for the disk included: a slow disk is ours for a tenth at most.
const PAUSE_PER_SAVE: u32 = 10;

/// What saving did so far, for metrics and status.
#[derive(Debug, Default)]
pub struct SaveFigures {
    /// Saves that succeeded.
    pub saved: AtomicU64,
    /// Saves that did not.
    pub failed: AtomicU64,
    /// Flows in the last file.
    pub flows: AtomicU64,
    /// How long the last save took, in microseconds.
    pub took_us: AtomicU64,
    /// Why the last save did not succeed.
    pub problem: Mutex<Option<String>>,
}

/// The running thread.
#[derive(Debug)]
pub struct FlowSaver {
    stop: Sender<SavedWhile>,
    thread: JoinHandle<()>,
}

impl FlowSaver {
    /// Starts to save a table.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(
        store: FlowStore,
        table: Arc<Conntrack>,
        figures: Arc<SaveFigures>,
        events: EventLog,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let work = Work { store, table, figures, events };
        let thread = std::thread::Builder::new().name("flows".into()).spawn(move || work.run(&stopped))?;
        Ok(Self { stop, thread })
    }

    /// Saves once more and ends; call it when no packet passes any more, or say that they may.
    pub fn finish(self, saved: SavedWhile) {
        // The thread ends only on this word.
        let _ = self.stop.send(saved);
        let _ = self.thread.join();
    }
}

struct Work {
    store: FlowStore,
    table: Arc<Conntrack>,
    figures: Arc<SaveFigures>,
    events: EventLog,
}

impl Work {
    fn run(&self, stopped: &Receiver<SavedWhile>) {
        let mut pause = EVERY;
        loop {
            let last = match stopped.recv_timeout(pause) {
                Ok(saved) => Some(saved),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let before = processor_time();
            let took = self.save(last.unwrap_or(SavedWhile::Running));
            if last.is_some() {
                return;
            }
            let worked = processor_time().saturating_sub(before);
            pause = EVERY.max(worked * PAUSE_PER_WORK).max(took * PAUSE_PER_SAVE);
        }
    }

    fn save(&self, saved: SavedWhile) -> Duration {
        let start = Instant::now();
        let outcome = self.store.save(&self.table, saved);
        let took = start.elapsed();
        let mut problem = self.figures.problem.lock();
        match outcome {
            Ok(flows) => {
                self.figures.saved.fetch_add(1, Relaxed);
                self.figures.flows.store(flows as u64, Relaxed);
                self.figures.took_us.store(took.as_micros() as u64, Relaxed);
                if problem.take().is_some() {
                    self.events.info("flows-saved", None, "flows are saved again");
                }
            }
            Err(error) => {
                self.figures.failed.fetch_add(1, Relaxed);
                // Told once, not every few seconds.
                if problem.is_none() {
                    self.events.warn("flows-not-saved", None, error.to_string());
                }
                *problem = Some(error.to_string());
            }
        }
        took
    }
}

/// What the calling thread has had of a processor so far.
fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

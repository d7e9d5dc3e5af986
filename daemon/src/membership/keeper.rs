//! The keeper: writes what a member keeps whenever it changed, and again until it is on disk. Nothing waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::kept::Kept;
use super::store::Store;
use crate::core::Core;

/// How long to wait before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Writes what comes through `kept` until `stop` is told; the newest counts.
pub(crate) async fn keep(
    core: Arc<Core>,
    store: Store,
    mut kept: watch::Receiver<Option<Kept>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut is_unwritten = false;
    loop {
        tokio::select! {
            biased;
            changed = kept.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if is_unwritten => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let newest = kept.borrow_and_update().clone();
        let Some(newest) = newest else { continue };
        let writer = store.clone();
        let written = tokio::task::spawn_blocking(move || writer.save(newest)).await;
        let error = written.ok().and_then(Result::err).map(|error| error.to_api());
        is_unwritten = error.is_some();
        let mut problem = core.keep_problem.lock();
        if problem.is_none()
            && let Some(error) = &error
        {
            core.events.warn("state-not-saved", None, error.why.clone());
        }
        *problem = error;
    }
}

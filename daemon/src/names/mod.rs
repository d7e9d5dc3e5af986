//! The server of names: its own thread, so that a flood of questions costs no more than one processor.
//!
//! It listens on high ports of the host's overlay addresses; the plumbing leads questions of containers and of the host
//! there. What is ours is answered from [`Zone`], which the director swaps whole; everything else is passed on.

mod enclosed;
mod flight;
mod forward;
mod limit;
mod server;
mod upstream;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use overlay_services::Zone;
use tokio::sync::watch;

use crate::plumbing::ports::table::NameServer;

pub(crate) use enclosed::Enclosed;
pub(crate) use upstream::Upstreams;

/// What the server did so far.
#[derive(Debug, Default)]
pub struct NameCounters {
    /// Answered from the zone.
    pub answered: AtomicU64,
    /// Passed on.
    pub forwarded: AtomicU64,
    /// Passed on without an answer.
    pub failed: AtomicU64,
    /// Refused: too many of one client, too many under way, a circle, or a client of an internal network.
    pub refused: AtomicU64,
    /// No queries.
    pub malformed: AtomicU64,
}

/// What the server works with.
#[derive(Debug, Clone)]
pub(crate) struct NameParts {
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) counters: Arc<NameCounters>,
    pub(crate) upstreams: Arc<Upstreams>,
    /// This host's addresses on the overlay.
    pub(crate) addresses: Vec<IpAddr>,
    /// For whom nothing is passed on.
    pub(crate) enclosed: Enclosed,
}

/// Starts the server in this thread's network namespace; it ends when `stop` is told. Where it listens.
///
/// # Errors
/// When an address cannot be listened on, or there is no thread left.
pub(crate) fn start(
    parts: NameParts,
    stop: watch::Receiver<bool>,
) -> std::io::Result<(Vec<NameServer>, JoinHandle<()>)> {
    let sockets = server::Sockets::bind(&parts.addresses)?;
    let places = sockets.places()?;
    let body = move || {
        let local = tokio::task::LocalSet::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let serve =
            |runtime: tokio::runtime::Runtime| runtime.block_on(local.run_until(server::serve(sockets, parts, stop)));
        if let Err(error) = runtime.and_then(serve) {
            tracing::error!(cause = %error, "the server of names ended; names are not answered until a restart");
        }
    };
    Ok((places, std::thread::Builder::new().name("names".into()).spawn(body)?))
}

//! The calls: which function answers which, and what they share.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use overlay_control::{Code, ControlError};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde_json::{Value, json};

use super::call::Call;
use super::dockerd::Dockerd;
use super::refusal::Refusal;
use super::state::State;
use crate::daemon::Daemon;

/// The owner of everything of Docker's begins with it.
pub(super) const OWNER: &str = "docker/";
/// The address space of pools that are ours.
pub(super) const SPACE: &str = "overlayd";
/// All work for one call: dockerd hears of a daemon that hangs within 3 s.
const BUDGET: Duration = Duration::from_millis(2500);
/// How long a daemon that is just starting is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is tried meanwhile.
const RETRY: Duration = Duration::from_millis(100);

/// When a call must be answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    patience: Instant,
    end: Instant,
}

impl Deadline {
    pub(super) fn of_a_call() -> Self {
        let now = Instant::now();
        Self { patience: now + PATIENCE, end: now + BUDGET }
    }

    /// For work that can as well be done later: no waiting for a daemon that is not there, and half the time.
    pub(super) fn of_an_attempt() -> Self {
        let now = Instant::now();
        Self { patience: now, end: now + BUDGET / 2 }
    }
}

/// The plugin: what it remembers, and where the daemon is.
#[derive(Debug)]
pub struct Driver {
    socket: PathBuf,
    pub(super) state: Mutex<State>,
    /// Held while the daemon is told what dockerd gave back, so that nothing is given back twice.
    pub(super) settling: Mutex<()>,
    pub(super) dockerd: Dockerd,
    /// Whether somebody wants names to be looked for, and how that is told.
    pub(super) unnamed: Mutex<bool>,
    pub(super) name_soon: Condvar,
}

impl Driver {
    /// Opens the state directory.
    ///
    /// # Errors
    /// When it cannot be made or read, or a file in it is damaged.
    pub fn open(state_dir: &Path, socket: &Path, dockerd: Dockerd) -> io::Result<Self> {
        Ok(Self {
            socket: socket.to_owned(),
            state: Mutex::new(State::open(state_dir)?),
            settling: Mutex::new(()),
            dockerd,
            unnamed: Mutex::new(false),
            name_soon: Condvar::new(),
        })
    }

    /// A connection to the daemon. One that is not there yet, or not a member yet, is waited for a little.
    pub(super) fn daemon(&self, deadline: Deadline) -> Result<Daemon, ControlError> {
        loop {
            match Daemon::connect_until(&self.socket, deadline.end) {
                Err(ControlError::NotRunning { .. }) if Instant::now() < deadline.patience => {
                    std::thread::sleep(RETRY);
                }
                other => return other,
            }
        }
    }

    /// The lock on settling, unless it cannot be had in time.
    pub(super) fn settle_alone(&self, deadline: Deadline) -> Option<MutexGuard<'_, ()>> {
        self.settling.try_lock_until(deadline.end)
    }

    /// Answers one call.
    pub(super) fn answer(&self, path: &str, body: &[u8]) -> Result<Value, Refusal> {
        let deadline = Deadline::of_a_call();
        match Call::read(path, body)? {
            Call::Activate => Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
            // Swarm does not take plugins of this kind, so the scope is the host's; containers reach other hosts all the same.
            Call::NetworkCapabilities => Ok(json!({ "Scope": "local", "ConnectivityScope": "global" })),
            Call::AddressCapabilities => Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false })),
            Call::AddressSpaces => {
                Ok(json!({ "LocalDefaultAddressSpace": SPACE, "GlobalDefaultAddressSpace": "overlayd-global" }))
            }
            Call::RequestPool(request) => self.request_pool(&request, deadline),
            Call::ReleasePool(request) => self.release_pool(&request),
            Call::RequestAddress(request) => self.request_address(&request, deadline),
            Call::ReleaseAddress(request) => self.release_address(&request),
            Call::CreateNetwork(request) => self.create_network(&request, deadline),
            Call::DeleteNetwork(request) => self.delete_network(&request),
            Call::CreateEndpoint(call) => self.create_endpoint(&call),
            Call::DeleteEndpoint(call) => self.delete_endpoint(&call),
            Call::Join(call) => self.join(&call, deadline),
            Call::Leave(call) => self.leave(&call),
            Call::Publish(call) => self.publish(&call, deadline),
            Call::Unpublish(call) => self.unpublish(&call),
            Call::OperInfo => Ok(json!({ "Value": {} })),
            Call::Discover => Ok(json!({})),
        }
    }
}

/// The name of an endpoint at the daemon.
pub(super) fn endpoint_name(endpoint: &str) -> String {
    format!("docker-{endpoint}")
}

/// Whether a refusal says that what was named exists already.
pub(super) fn exists_already(error: &ControlError) -> bool {
    matches!(error, ControlError::Api(api) if api.code.as_str() == Code::Conflict.name() && api.why.contains("exists already"))
}

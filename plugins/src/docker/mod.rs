//! The Docker plugin: network driver and IPAM driver `overlayd` (Docker's plugin protocol 1.2, over HTTP on a unix socket).
//!
//! dockerd is never held up: systemd holds the socket, every call is answered within 3 s, and what gives something back succeeds
//! with the daemon away and is told to it later. What dockerd said is on disk before it is answered.

mod call;
mod cluster;
mod dockerd;
mod driver;
pub(crate) mod firewall;
mod hostile;
mod ipam;
mod message;
mod naming;
mod network;
mod ports;
mod refusal;
mod server;
mod settle;
mod state;
mod store;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use dockerd::Dockerd;
pub use driver::Driver;
pub use hostile::{look_at_answer, look_at_call};

/// Where dockerd looks for the plugin.
pub const PLUGIN_SOCKET: &str = "/run/docker/plugins/overlayd.sock";
/// Where dockerd's own API is.
pub const DOCKER_SOCKET: &str = "/run/docker.sock";
/// Where the plugin remembers what dockerd said.
pub const STATE_DIR: &str = "/var/lib/overlay-docker";

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Places {
    /// The socket to make where systemd gave none.
    pub listen: PathBuf,
    /// The control socket of the daemon.
    pub control: PathBuf,
    /// dockerd's socket.
    pub docker: PathBuf,
    /// The state directory.
    pub state: PathBuf,
}

/// Serves dockerd until the process ends.
///
/// # Errors
/// When the state cannot be read or the socket cannot be had.
pub fn serve(places: &Places) -> io::Result<std::convert::Infallible> {
    let listener = listener(&places.listen).map_err(|error| at(&places.listen, &error))?;
    let driver = Driver::open(&places.state, &places.control, Dockerd::at(&places.docker));
    let driver = Arc::new(driver.map_err(|error| at(&places.state, &error))?);
    let (keeper, namer) = (Arc::clone(&driver), Arc::clone(&driver));
    std::thread::Builder::new().name("settle".into()).spawn(move || keeper.keep_settled())?;
    std::thread::Builder::new().name("names".into()).spawn(move || namer.keep_named())?;
    std::thread::Builder::new().name("firewall".into()).spawn(firewall::keep_admitting)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(server::run(listener, driver))
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The socket that systemd gave, else one made here in the place of one that nobody listens on.
fn listener(path: &Path) -> io::Result<UnixListener> {
    if let Some(given) = listenfd::ListenFd::from_env().take_unix_listener(0)? {
        return Ok(given);
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // dockerd is root, and nobody else has business here.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

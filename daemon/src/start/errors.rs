//! What stands in the way of a start, as it is shown.

use std::path::Path;

use overlay_config::Problems;
use overlay_control::{ApiError, Code};

use crate::device::DeviceError;
use crate::plumbing;
use crate::underlay::SocketError;

pub(crate) fn internal(what: &str, error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::Internal, what, error.to_string(), "report this with the log lines around it")
}

pub(super) fn plumbing_error(error: &plumbing::PlumbingError) -> ApiError {
    ApiError::new(Code::Plumbing, "the host cannot be plumbed", error.to_string(), error.next())
}

pub(crate) fn socket_error(error: SocketError) -> ApiError {
    let what = error.to_string();
    match error {
        SocketError::PortInUse(port) => ApiError::new(
            Code::PortInUse,
            what,
            "another daemon or program listens there",
            format!("find it with `ss -ulnp sport = :{port}`, or set overlay.listen_port"),
        ),
        SocketError::NotPermitted(_) => capability(what),
        SocketError::Io { .. } => ApiError::new(Code::Io, "the underlay sockets cannot be opened", what, "see dmesg"),
    }
}

pub(super) fn capability(what: String) -> ApiError {
    ApiError::new(
        Code::Capability,
        what,
        "overlayd needs CAP_NET_ADMIN and CAP_NET_RAW",
        "start it as root or by its systemd unit, which grants both",
    )
}

pub(super) fn device_error(error: DeviceError) -> ApiError {
    let what = error.to_string();
    match error {
        DeviceError::NoTunDriver => ApiError::new(
            Code::TunMissing,
            what,
            "the kernel's TUN driver is not loaded, or the container has no such device",
            "run `modprobe tun`; in a container pass --device /dev/net/tun",
        ),
        DeviceError::NotPermitted { .. } => capability(what),
        DeviceError::Busy { name } => ApiError::new(
            Code::TunInUse,
            what,
            "two programs cannot share it",
            format!("stop the other program, or set overlay.interface to another name than {name}"),
        ),
        DeviceError::Name { .. } => ApiError::new(
            Code::Config,
            what,
            "Linux allows 1 to 15 bytes without `/` and spaces",
            "set overlay.interface to such a name",
        ),
        DeviceError::Io { .. } => ApiError::new(Code::Io, "the TUN device cannot be opened", what, "see dmesg"),
    }
}

/// Why a file of the configuration cannot be used.
pub(crate) fn config_error(path: &Path, problems: &Problems) -> ApiError {
    ApiError::new(
        Code::Config,
        format!("{} cannot be used", path.display()),
        problems.to_string(),
        "correct the lines named and try again; overlayd --check FILE checks without starting",
    )
}

//! The plain TUN device of the `tun-tap` crate: no virtio-net headers, one queue, packets one by one.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use tun_tap::{Iface, Mode};

use super::DeviceError;
use super::fast::{classify, set_persistent};

/// Opens the plain device, non-blocking and persistent.
pub(super) fn open(name: &str) -> Result<OwnedFd, DeviceError> {
    // An empty or over-long name would make the kernel pick or cut one.
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(DeviceError::Name { name: name.to_owned() });
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(DeviceError::NoTunDriver);
    }
    let iface = Iface::without_packet_info(name, Mode::Tun).map_err(|error| classify("attach", name, error))?;
    // SAFETY: `iface` owns the descriptor and lives until the end of this function.
    let borrowed = unsafe { BorrowedFd::borrow_raw(iface.as_raw_fd()) };
    let fd = borrowed.try_clone_to_owned().map_err(|error| classify("duplicate", name, error))?;
    // SAFETY: F_SETFL takes its flags by value.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(classify("configure", name, std::io::Error::last_os_error()));
    }
    set_persistent(&fd, true).map_err(|error| classify("persist", name, error))?;
    Ok(fd)
}

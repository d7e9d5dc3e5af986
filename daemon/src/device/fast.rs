//! The TUN device with virtio-net headers, opened by ioctl: `tun-tap` sets neither `IFF_VNET_HDR` nor
//! `IFF_MULTI_QUEUE`.
//!
//! Source: `Documentation/networking/tuntap.rst` and `include/uapi/linux/if_tun.h`.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use overlay_wire::offload::VnetHeader;

use super::{DeviceError, Offload};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// Which step of opening failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub(super) struct OpenError {
    step: &'static str,
    source: io::Error,
}

impl OpenError {
    /// Whether the kernel refused only what the plain device does without.
    pub(super) fn wants_plain(&self) -> bool {
        matches!(self.step, "offload" | "header size")
            || (self.step == "attach" && self.source.raw_os_error() == Some(libc::EINVAL))
    }

    pub(super) fn into_device_error(self, name: &str) -> DeviceError {
        classify(self.step, name, self.source)
    }
}

/// Turns the kernel's answer into the error a user can act on.
pub(super) fn classify(step: &'static str, name: &str, source: io::Error) -> DeviceError {
    let name = name.to_owned();
    match (step, source.raw_os_error()) {
        ("open", Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => DeviceError::NoTunDriver,
        (_, Some(libc::EPERM | libc::EACCES)) => DeviceError::NotPermitted { name },
        ("attach", Some(libc::EBUSY)) => DeviceError::Busy { name },
        _ => DeviceError::Io { step, name, source },
    }
}

/// Opens `/dev/net/tun`, attaches a queue to the device and switches on what the kernel offers.
pub(super) fn open(name: &str) -> Result<(OwnedFd, Offload), OpenError> {
    let fail = |step| move |source| OpenError { step, source };
    let fd: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(fail("open"))?
        .into();
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let mut request = request(name).map_err(fail("name"))?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is and outlives the call.
    ioctl(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &mut request) }).map_err(fail("attach"))?;
    let size: libc::c_int = VnetHeader::LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    ioctl(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &size) }).map_err(fail("header size"))?;
    let little: libc::c_int = 1;
    // SAFETY: TUNSETVNETLE reads one int.
    ioctl(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETLE, &little) }).map_err(fail("header size"))?;
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    let with_udp = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6) };
    let offload = if with_udp == 0 {
        Offload::TcpAndUdp
    } else {
        // SAFETY: as above.
        ioctl(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, tcp) }).map_err(fail("offload"))?;
        Offload::Tcp
    };
    set_persistent(&fd, true).map_err(fail("persist"))?;
    Ok((fd, offload))
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    let odd = name.is_empty()
        || name.len() >= libc::IFNAMSIZ
        || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'%');
    if odd {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// Makes the device outlive its descriptor, or not.
pub(super) fn set_persistent(fd: &OwnedFd, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    ioctl(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(persistent)) })
}

fn ioctl(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    let len = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if len < 0 { Err(io::Error::last_os_error()) } else { Ok(len as usize) }
}

pub(super) fn read_split(fd: &OwnedFd, header: &mut [u8; VnetHeader::LEN], buffer: &mut [u8]) -> io::Result<usize> {
    let parts = [
        libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() },
        libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() },
    ];
    // SAFETY: both parts point to live, exclusively borrowed memory of the stated lengths.
    let len = unsafe { libc::readv(fd.as_raw_fd(), parts.as_ptr(), 2) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    (len as usize)
        .checked_sub(VnetHeader::LEN)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "read shorter than its device header"))
}

pub(super) fn writev(fd: &OwnedFd, parts: &[IoSlice<'_>]) -> io::Result<()> {
    // SAFETY: IoSlice has the layout of iovec, and each points to borrowed memory of its length.
    let len = unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr().cast(), parts.len() as libc::c_int) };
    if len < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the interface is there and has carrier.
///
/// Asked by `ETHTOOL_GLINK`, which answers at once; `IFF_RUNNING` would lag by up to a second behind the end of a killed
/// daemon.
pub(super) fn has_carrier(name: &str) -> bool {
    const ETHTOOL_GLINK: u32 = 0x0a;
    let Ok(mut request) = request(name) else { return false };
    let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") else { return false };
    // The layout of `struct ethtool_value`: command, answer.
    let mut value = [ETHTOOL_GLINK, 0];
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads the name and the pointer of one ifreq and writes the answer to `value`, which lives on.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::c_ulong, &mut request) };
    asked == 0 && value[1] != 0
}

/// The effective user id.
pub(super) fn own_uid() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

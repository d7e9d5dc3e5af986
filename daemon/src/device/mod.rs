//! The TUN device: one queue per worker, with virtio-net headers and segmentation offloads where the kernel has them.
//!
//! The device is persistent, so that a killed daemon leaves addresses and routes in place (`docs/host-plumbing.md`). A
//! queue survives the device going down (EIO on write) and is opened again when the device vanished (EBADFD).

mod fast;
mod plain;

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use overlay_wire::Mtu;
use overlay_wire::offload::VnetHeader;
use overlay_wire::offload::coalesce::Joining;

/// The place of a TUN queue, and so of its worker, among the daemon's queues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct QueueIndex(pub u16);

/// What the device is to be.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Whether to ask for virtio-net headers and segmentation offloads.
    pub offload: bool,
    /// Interface MTU.
    pub mtu: Mtu,
}

/// Why the device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// `/dev/net/tun` is missing.
    #[error("/dev/net/tun does not exist")]
    NoTunDriver,
    /// The capability or the device permission is missing.
    #[error("not permitted to create the TUN device {name}")]
    NotPermitted {
        /// Interface name.
        name: String,
    },
    /// Another process holds the device.
    #[error("the TUN device {name} is in use by another process")]
    Busy {
        /// Interface name.
        name: String,
    },
    /// The name is empty, too long or holds odd characters.
    #[error("`{name}` is not an interface name")]
    Name {
        /// What was given.
        name: String,
    },
    /// Any other failure.
    #[error("cannot {step} the TUN device {name}: {source}")]
    Io {
        /// Which step failed.
        step: &'static str,
        /// Interface name.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What super-packets a queue takes and gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offload {
    /// None: plain packets, no virtio-net header.
    None,
    /// TCP segmentation both ways.
    Tcp,
    /// TCP and UDP segmentation both ways (Linux 6.2 and later).
    TcpAndUdp,
}

/// One opened queue.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    index: QueueIndex,
    offload: Offload,
}

impl Queue {
    /// Opens a queue of the device, creating the device where it does not exist.
    ///
    /// With `offload` set, the device without virtio-net headers is the automatic fallback; [`Self::offload`] tells
    /// which one it is.
    ///
    /// # Errors
    /// When the driver is missing, permission is missing, or another process holds the device.
    pub fn open(config: &DeviceConfig, index: QueueIndex) -> Result<Self, DeviceError> {
        if config.offload {
            match fast::open(&config.name) {
                Ok((fd, offload)) => return Ok(Self { fd, index, offload }),
                Err(error) if !error.wants_plain() => return Err(error.into_device_error(&config.name)),
                Err(error) => {
                    tracing::warn!(device = %config.name, cause = %error, "no segmentation offload; plain device used");
                }
            }
        }
        Ok(Self { fd: plain::open(&config.name)?, index, offload: Offload::None })
    }

    /// The queue's place.
    #[must_use]
    pub fn index(&self) -> QueueIndex {
        self.index
    }

    /// What super-packets the queue takes and gives.
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Which packets may be joined before a write.
    #[must_use]
    pub fn joining(&self) -> Joining {
        match self.offload {
            Offload::None => Joining::Off,
            Offload::Tcp => Joining::Tcp,
            Offload::TcpAndUdp => Joining::TcpAndUdp,
        }
    }

    /// The descriptor, for polling.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Reads one packet or super-packet and its device header into the front of `buffer`; the packet's length.
    ///
    /// # Errors
    /// `WouldBlock` when none waits; EBADFD when the device vanished.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<(VnetHeader, usize)> {
        if self.offload == Offload::None {
            return Ok((VnetHeader::default(), fast::read(&self.fd, buffer)?));
        }
        let mut header = [0; VnetHeader::LEN];
        let len = fast::read_split(&self.fd, &mut header, buffer)?;
        let header = VnetHeader::parse(&header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((header, len))
    }

    /// Writes one packet or super-packet given in parts, of which the first is the emitted device header.
    ///
    /// # Errors
    /// EIO when the device is down, EBADFD when it vanished.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        fast::writev(&self.fd, if self.offload == Offload::None { &parts[1..] } else { parts })
    }
}

/// Whether the error says that the device is gone and must be opened again (EBADFD, or the descriptor's EBADF).
#[must_use]
pub fn vanished(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
}

/// Whether the device exists and somebody holds it: a TUN has carrier only while a queue is attached.
#[must_use]
pub fn has_carrier(name: &str) -> bool {
    fast::has_carrier(name)
}

/// The user this process runs as.
#[must_use]
pub fn own_uid() -> u32 {
    fast::own_uid()
}

/// Removes the device for good by clearing its persistence; it goes when the last queue is closed.
///
/// # Errors
/// When the kernel refuses.
pub fn clear_persistence(queue: &Queue) -> io::Result<()> {
    fast::set_persistent(&queue.fd, false)
}

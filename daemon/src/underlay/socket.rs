//! Opening the underlay sockets.

#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::send::OuterFragments;

/// Receive and send buffer asked for: a few milliseconds of 10 Gbit/s. The kernel halves it by its own accounting.
const BUFFER_BYTES: usize = 8 << 20;
/// `IP_PMTUDISC_PROBE`: set DF, ignore the kernel's own path MTU (ip(7)); the daemon keeps one per peer.
const PMTUDISC_PROBE: libc::c_int = 3;
/// `IP_PMTUDISC_DONT`: no DF; the kernel fragments to the path MTU it knows, and routers on the way may do so again.
const PMTUDISC_DONT: libc::c_int = 0;
/// Outer time to live.
const TTL: libc::c_int = 64;

/// IP version of the underlay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A protocol carried by a raw socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RawProtocol {
    /// IPv4 inside (protocol 4).
    Ipv4,
    /// IPv6 inside (protocol 41).
    Ipv6,
    /// GRE (protocol 47).
    Gre,
}

impl RawProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ipv4, Self::Ipv6, Self::Gre];

    /// The protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 41,
            Self::Gre => 47,
        }
    }
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else has the port.
    #[error("UDP port {0} is in use by another process")]
    PortInUse(u16),
    /// The capability is missing.
    #[error("not permitted to {0}")]
    NotPermitted(&'static str),
    /// Any other failure.
    #[error("cannot {step}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn fail(step: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => SocketError::NotPermitted(step),
        _ => SocketError::Io { step, source },
    }
}

fn set_int(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option value is one int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            std::mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says whether what is sent from now on may be fragmented outside. The kernel reads it when it takes a datagram over.
pub(super) fn set_outer_fragments(fd: RawFd, ipv4: bool, fragments: OuterFragments) {
    let value = match fragments {
        OuterFragments::Never => PMTUDISC_PROBE,
        OuterFragments::Allowed => PMTUDISC_DONT,
    };
    let (level, name) =
        if ipv4 { (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) };
    // The kernel takes both values on any socket of the family; were it not to, the datagram is refused and counted.
    if let Err(error) = set_int(&fd, level, name, value) {
        tracing::debug!(cause = %error, "DF not changed");
    }
}

/// Asks for so many bytes of room for what arrives, past the system limit where CAP_NET_ADMIN allows, else up to it.
pub(crate) fn grow_receive_buffer<S: AsRawFd + AsFd>(socket: &S, bytes: usize) {
    let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    if set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, wanted).is_err() {
        let _ = socket2::SockRef::from(socket).set_recv_buffer_size(bytes);
    }
}

/// Asks for large buffers: past the system limit where CAP_NET_ADMIN allows, else up to it.
fn grow_buffers(socket: &Socket) {
    let bytes = BUFFER_BYTES as libc::c_int;
    grow_receive_buffer(socket, BUFFER_BYTES);
    if set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    }
}

fn common(socket: &Socket, family: Family, mark: u32) -> Result<(), SocketError> {
    socket.set_nonblocking(true).map_err(fail("make a socket non-blocking"))?;
    socket.set_mark(mark).map_err(fail("mark an underlay socket"))?;
    grow_buffers(socket);
    let options: &[(libc::c_int, libc::c_int, libc::c_int)] = match family {
        Family::V4 => &[
            (libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
            (libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, PMTUDISC_PROBE),
            (libc::IPPROTO_IP, libc::IP_TTL, TTL),
        ],
        Family::V6 => &[
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, PMTUDISC_PROBE),
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, TTL),
        ],
    };
    for (level, name, value) in options {
        set_int(socket, *level, *name, *value).map_err(fail("configure an underlay socket"))?;
    }
    Ok(())
}

/// Opens the UDP socket of one family on `port`, receive offload on where the kernel has it.
///
/// # Errors
/// When the port is taken or a capability is missing.
pub fn open_udp(family: Family, port: u16, mark: u32) -> Result<OwnedFd, SocketError> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::DGRAM.cloexec(), Some(Protocol::UDP)).map_err(fail("open a UDP socket"))?;
    let address: SocketAddr = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        Family::V6 => {
            socket.set_only_v6(true).map_err(fail("restrict a socket to IPv6"))?;
            (Ipv6Addr::UNSPECIFIED, port).into()
        }
    };
    common(&socket, family, mark)?;
    // Missing before Linux 5.0: datagrams then come one by one.
    if let Err(error) = set_int(&socket, libc::SOL_UDP, libc::UDP_GRO, 1) {
        tracing::info!(cause = %error, "no UDP receive offload");
    }
    socket.bind(&address.into()).map_err(|error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            SocketError::PortInUse(port)
        } else {
            fail("bind the UDP port")(error)
        }
    })?;
    Ok(socket.into())
}

/// Opens the raw socket of one protocol and family. Outer headers are the kernel's.
///
/// # Errors
/// When CAP_NET_RAW is missing.
pub fn open_raw(family: Family, protocol: RawProtocol, mark: u32) -> Result<OwnedFd, SocketError> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let number = i32::from(protocol.number());
    let socket =
        Socket::new(domain, Type::RAW.cloexec(), Some(Protocol::from(number))).map_err(fail("open a raw socket"))?;
    common(&socket, family, mark)?;
    Ok(socket.into())
}

/// A second descriptor of the same socket.
///
/// # Errors
/// When the descriptor table is full.
pub fn duplicate(fd: &OwnedFd) -> io::Result<std::net::UdpSocket> {
    let copy = fd.try_clone()?;
    // SAFETY: the descriptor was just made and is owned by nothing else.
    Ok(unsafe { std::net::UdpSocket::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(copy)) })
}

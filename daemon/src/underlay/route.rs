//! What the kernel's routes say of an underlay address: the source it would use and the MTU on the way.

#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

/// A route to an underlay address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnderlayRoute {
    /// The source address the kernel would use.
    pub source: IpAddr,
    /// The MTU of the route, in bytes.
    pub mtu: u16,
}

/// Asks the kernel for the route of marked datagrams to `to`; nothing is sent.
///
/// # Errors
/// When there is no route.
pub fn route_to(to: SocketAddr, mark: u32) -> io::Result<UnderlayRoute> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.set_mark(mark)?;
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    socket.bind(&any.into())?;
    socket.connect(&to.into())?;
    let source = socket.local_addr()?.as_socket().map(|address| address.ip()).ok_or(io::ErrorKind::Unsupported)?;
    let (level, name) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mut mtu: libc::c_int = 0;
    let mut len = std::mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option value is one int that lives through the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(&mut mtu).cast(), &mut len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnderlayRoute { source, mtu: u16::try_from(mtu).unwrap_or(u16::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_itself_as_source() {
        // Without a mark no privilege is needed.
        let route = route_to("127.0.0.1:9".parse().expect("an address"), 0).expect("loopback is routed");
        assert_eq!(route.source, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert!(route.mtu > 1500);
    }
}

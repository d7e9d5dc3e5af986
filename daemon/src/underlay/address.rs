//! Socket addresses and control messages in the kernel's layout.

#![allow(unsafe_code)]

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for the control messages of one message: packet info, segment size and traffic class of either family.
pub(super) const CONTROL_LEN: usize = 128;

/// Control message bytes, aligned as `cmsghdr` wants.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control(pub [u8; CONTROL_LEN]);

/// Writes a socket address; its length in bytes.
pub(super) fn write_address(address: SocketAddr, storage: &mut libc::sockaddr_storage) -> libc::socklen_t {
    match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and aligned for every sockaddr type.
            unsafe { std::ptr::from_mut(storage).cast::<libc::sockaddr_in>().write(raw) };
            mem::size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { std::ptr::from_mut(storage).cast::<libc::sockaddr_in6>().write(raw) };
            mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// Reads a socket address of either family.
pub(super) fn read_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which type the storage holds; it is large enough and aligned for it.
            let raw = unsafe { std::ptr::from_ref(storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(raw.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id)))
        }
        _ => None,
    }
}

/// Builds the control messages of one send.
pub(super) struct ControlWriter<'a> {
    buffer: &'a mut Control,
    used: usize,
}

impl<'a> ControlWriter<'a> {
    pub(super) fn new(buffer: &'a mut Control) -> Self {
        Self { buffer, used: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.used
    }

    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, value: T) {
        let size = mem::size_of::<T>();
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size as u32) as usize, libc::CMSG_LEN(size as u32) as usize) };
        if self.used + space > CONTROL_LEN {
            return;
        }
        // SAFETY: the range [used, used + space) lies inside the buffer (checked above); `used` is a multiple of the
        // header's alignment because CMSG_SPACE rounds up and the buffer is aligned to 8.
        unsafe {
            let header = self.buffer.0.as_mut_ptr().add(self.used).cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as _;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        self.used += space;
    }

    /// Cuts the message into datagrams of `size` bytes (`UDP_SEGMENT`, udp(7)).
    pub(super) fn segment(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, size);
    }

    /// Sends from this address.
    pub(super) fn source(&mut self, source: IpAddr) {
        match source {
            IpAddr::V4(ip) => self.push(
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                },
            ),
            IpAddr::V6(ip) => self.push(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 },
            ),
        }
    }

    /// Sets DSCP and ECN of the outer header.
    pub(super) fn traffic_class(&mut self, ipv4: bool, tos: u8) {
        let value = libc::c_int::from(tos);
        if ipv4 {
            self.push(libc::IPPROTO_IP, libc::IP_TOS, value);
        } else {
            self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, value);
        }
    }
}

/// What the control messages of a received message said.
#[derive(Clone, Copy, Default)]
pub(super) struct ReceivedControl {
    pub segment: Option<u16>,
    pub local: Option<IpAddr>,
    pub tos: u8,
}

/// Reads the control messages of a received message.
pub(super) fn read_control(header: &libc::msghdr) -> ReceivedControl {
    let mut found = ReceivedControl::default();
    // SAFETY: `header` was filled by recvmmsg and its control buffer is still borrowed by the caller; the CMSG macros
    // walk inside msg_controllen, and each read is of the size that level and type promise.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while !at.is_null() {
            let data = libc::CMSG_DATA(at);
            match ((*at).cmsg_level, (*at).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    found.segment = u16::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    found.local = Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    found.local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => found.tos = data.read(),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    found.tos = data.cast::<libc::c_int>().read_unaligned() as u8;
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back() {
        for text in ["192.0.2.1:51821", "[2001:db8::1]:51821", "[fe80::1%7]:9"] {
            let address: SocketAddr = text.parse().expect("an address");
            // SAFETY: all-zero bytes are a valid sockaddr_storage.
            let mut storage = unsafe { mem::zeroed() };
            write_address(address, &mut storage);
            assert_eq!(read_address(&storage), Some(address));
        }
    }

    #[test]
    fn control_messages_read_back() {
        let mut buffer = Control([0; CONTROL_LEN]);
        let mut writer = ControlWriter::new(&mut buffer);
        writer.traffic_class(false, 0xb9);
        let used = writer.len();
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_control = buffer.0.as_mut_ptr().cast();
        header.msg_controllen = used as _;
        assert_eq!(read_control(&header).tos, 0xb9);
    }
}

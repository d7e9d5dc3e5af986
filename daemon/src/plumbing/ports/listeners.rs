//! Who listens on a port of this host, as `/proc/net` tells it.
//!
//! An unspecified IPv6 address is taken to listen on IPv4 too: `/proc` does not tell the sockets that do not.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use overlay_control::api::PortProtocol;

/// Processes looked through in search of a socket's owner.
const MAX_PROCESSES: usize = 65_536;

/// State of a listening TCP socket, and of a UDP socket without a peer (include/net/tcp_states.h).
const LISTENS: u8 = 10;
const UNCONNECTED: u8 = 7;

/// A socket that takes packets for a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    address: IpAddr,
    port: u16,
    uid: u32,
    inode: u64,
}

/// Every socket of the network namespace of this thread that takes packets of a protocol.
#[must_use]
pub fn listeners(protocol: PortProtocol) -> Vec<Listener> {
    let (files, state) = match protocol {
        PortProtocol::Tcp => (["tcp", "tcp6"], LISTENS),
        PortProtocol::Udp => (["udp", "udp6"], UNCONNECTED),
    };
    // A host without IPv6 has one of the files only.
    let texts = files.iter().filter_map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok());
    texts.flat_map(|text| text.lines().skip(1).filter_map(|line| parse(line, state)).collect::<Vec<_>>()).collect()
}

/// The first of these that would lose packets to a published port: `host_ip` is the address published on, `None` for all of
/// the family.
#[must_use]
pub fn find(listeners: &[Listener], host_ip: Option<IpAddr>, ipv4: bool, port: u16) -> Option<&Listener> {
    listeners.iter().find(|one| {
        one.port == port
            && match host_ip {
                Some(ip) => one.address == ip || (one.address.is_unspecified() && covers(one.address, ipv4)),
                None => covers(one.address, ipv4),
            }
    })
}

fn covers(address: IpAddr, ipv4: bool) -> bool {
    address.is_ipv4() == ipv4 || (ipv4 && address.is_unspecified())
}

impl Listener {
    /// Who it is, as far as this process may see.
    #[must_use]
    pub fn describe(&self) -> String {
        match owner(Path::new("/proc"), self.inode) {
            Some((pid, name)) => format!("process {pid} ({name})"),
            None => format!("a process of user {}", user(self.uid)),
        }
    }
}

/// One line of `/proc/net/tcp` and its kin.
fn parse(line: &str, wanted: u8) -> Option<Listener> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    if state != wanted {
        return None;
    }
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Listener { address: parse_address(address)?, port: u16::from_str_radix(port, 16).ok()?, uid, inode })
}

/// An address as the kernel prints it: words of 32 bits in the machine's byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    if !text.is_ascii() {
        return None;
    }
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for (chunk, at) in bytes.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
                chunk.copy_from_slice(&word(at)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

/// The process that has a socket open, where this process may look at it.
fn owner(proc: &Path, inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir(proc).ok()?.flatten().take(MAX_PROCESSES);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find_map(|pid| {
        let mut open = fs::read_dir(proc.join(pid.to_string()).join("fd")).ok()?.flatten();
        open.find(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))?;
        let name = fs::read_to_string(proc.join(pid.to_string()).join("comm")).unwrap_or_default();
        Some((pid, name.trim().to_owned()))
    })
}

fn user(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "   1: 0100007F:0277 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 9021 1";

    #[test]
    fn lines_of_the_kernel_are_read() {
        let found = parse(LINE, LISTENS).unwrap();
        let (address, port) = ("127.0.0.1".parse().unwrap(), 631);
        assert_eq!(found, Listener { address, port, uid: 106, inode: 9021 });
        assert_eq!(parse(LINE, UNCONNECTED), None);
        assert_eq!(parse_address("0000000000000000FFFF00000100007F"), Some(address));
        assert_eq!(parse_address("00000000000000000000000001000000"), Some("::1".parse().unwrap()));
        for bad in ["", "sl local", "1: zz:1 a 0A", "1: 0100007F 0 0A 0 0 0 0 0 0", "1: 0100007F:0277 0:0 0A"] {
            assert_eq!(parse(bad, LISTENS), None, "{bad:?}");
        }
    }

    #[test]
    fn listener_is_in_the_way_where_addresses_overlap() {
        let at = |address: &str, port| Listener { address: address.parse().unwrap(), port, uid: 0, inode: 0 };
        let all = [at("127.0.0.1", 631), at("::", 80), at("0.0.0.0", 25), at("192.0.2.1", 443)];
        let ip = |text: &str| Some(text.parse().unwrap());
        for (host_ip, ipv4, port, held) in [
            (None, true, 631, true),
            (ip("127.0.0.1"), true, 631, true),
            (ip("192.0.2.1"), true, 631, false),
            (None, false, 631, false),
            (None, true, 80, true),
            (ip("fd42::1"), false, 80, true),
            (ip("192.0.2.9"), true, 25, true),
            (ip("fd42::1"), false, 25, false),
            (ip("192.0.2.2"), true, 443, false),
            (None, true, 444, false),
        ] {
            assert_eq!(find(&all, host_ip, ipv4, port).is_some(), held, "{host_ip:?} {port}");
        }
    }

    #[test]
    fn own_socket_is_found_with_this_process_as_its_owner() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let all = listeners(PortProtocol::Tcp);
        let found = find(&all, Some(address.ip()), true, address.port()).unwrap();
        assert!(found.describe().contains(&format!("process {} (", std::process::id())), "{}", found.describe());
        assert!(find(&listeners(PortProtocol::Udp), Some(address.ip()), true, address.port()).is_none());
        drop(socket);
        assert!(find(&listeners(PortProtocol::Tcp), Some(address.ip()), true, address.port()).is_none());
    }
}

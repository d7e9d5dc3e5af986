//! What the kernel's connection tracking remembers of a port, forgotten: a translation is decided once for a flow, and a
//! client that goes on sending would reach what was published before.
//!
//! Spoken over ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`): a dump, and a deletion for each entry that is meant.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use overlay_control::api::PortProtocol;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{self, Socket};

/// Message types of the subsystem conntrack (1): get and delete.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// Flags of a request, a request for an answer, and a request for everything.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Message types of netlink itself.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Attributes of an entry.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
/// Attributes inside a tuple, and inside its two parts.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// Sources of IPv4 and IPv6; destinations are one more.
const IP_V4_SOURCE: u16 = 1;
const IP_V6_SOURCE: u16 = 3;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
/// This attribute holds others.
const NESTED: u16 = 0x8000;
/// Length of the netlink header and of the nfgenmsg behind it, in bytes.
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = NETLINK_HEADER + 4;
/// The largest datagram that the kernel makes of a dump, in bytes.
const BUFFER: usize = 64 * 1024;

/// Makes the kernel forget the flows of a family and protocol that are meant; how many there were.
///
/// # Errors
/// When the kernel cannot be asked, or refuses.
pub fn forget(ipv4: bool, protocol: PortProtocol, is_meant: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&sys::SocketAddr::new(0, 0))?;
    let mut meant = Vec::new();
    ask(&socket, &message(GET, REQUEST | DUMP, family, &[]), |entry| {
        if let Some(flow) = Flow::parse(entry)
            && flow.protocol == protocol.number()
            && is_meant(&flow)
        {
            meant.push(flow.key);
        }
    })?;
    for key in &meant {
        match ask(&socket, &message(DELETE, REQUEST | ACK, family, key), |_| {}) {
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            outcome => outcome?,
        }
    }
    Ok(meant.len())
}

/// Sends a request and hands out the attributes of each message that answers it.
fn ask(socket: &Socket, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    socket.send(request, 0)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Some((kind, body, next)) = split(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let code = body.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => each(body.get(HEADERS - NETLINK_HEADER..).unwrap_or_default()),
            }
            rest = next;
        }
    }
}

/// The first message of a datagram: its type, what is behind its header, and the rest of the datagram.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(NETLINK_HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADERS + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and sender: one question at a time, and the kernel fills in the other.
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// One tracked flow.
#[derive(Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where its first packet was sent to.
    pub to: SocketAddr,
    /// Who answers: differs from `to` where the destination was translated.
    pub answers: SocketAddr,
    protocol: u8,
    /// The attributes by which the entry is deleted.
    key: Vec<u8>,
}

/// One of the two ends of a tuple.
#[derive(Debug, Clone, Copy)]
enum End {
    Source = 0,
    Destination = 1,
}

fn end(tuple: &[u8], end: End) -> Option<SocketAddr> {
    let (ip, protocol) = (find(tuple, TUPLE_IP)?, find(tuple, TUPLE_PROTOCOL)?);
    let end = end as u16;
    let ip = match (find(ip, IP_V4_SOURCE + end), find(ip, IP_V6_SOURCE + end)) {
        (Some(v4), _) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(v4).ok()?)),
        (None, Some(v6)) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(v6).ok()?)),
        (None, None) => return None,
    };
    let port = u16::from_be_bytes(*find(protocol, SOURCE_PORT + end)?.first_chunk()?);
    Some(SocketAddr::new(ip, port))
}

impl Flow {
    fn parse(entry: &[u8]) -> Option<Self> {
        let tuple = find(entry, TUPLE_ORIGINAL)?;
        let mut key = Vec::new();
        put(&mut key, TUPLE_ORIGINAL | NESTED, tuple);
        if let Some(zone) = find(entry, ZONE) {
            put(&mut key, ZONE, zone);
        }
        Some(Self {
            to: end(tuple, End::Destination)?,
            answers: end(find(entry, TUPLE_REPLY)?, End::Source)?,
            protocol: *find(find(tuple, TUPLE_PROTOCOL)?, PROTOCOL_NUMBER)?.first()?,
            key,
        })
    }
}

fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(header) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn put(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    attributes.extend(u16::try_from(value.len() + 4).unwrap_or_default().to_ne_bytes());
    attributes.extend(kind.to_ne_bytes());
    attributes.extend(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let (mut ip, mut protocol, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut ip, IP_V4_SOURCE, &from.0);
        put(&mut ip, IP_V4_SOURCE + 1, &to.0);
        put(&mut protocol, PROTOCOL_NUMBER, &[17]);
        put(&mut protocol, SOURCE_PORT, &from.1.to_be_bytes());
        put(&mut protocol, SOURCE_PORT + 1, &to.1.to_be_bytes());
        put(&mut tuple, TUPLE_IP | NESTED, &ip);
        put(&mut tuple, TUPLE_PROTOCOL | NESTED, &protocol);
        tuple
    }

    fn entry(zone: bool) -> Vec<u8> {
        let (client, host, container) = (([192, 0, 2, 9], 40_000), ([192, 0, 2, 1], 8080), ([10, 42, 1, 4], 80));
        let mut entry = Vec::new();
        put(&mut entry, TUPLE_ORIGINAL | NESTED, &tuple(client, host));
        put(&mut entry, TUPLE_REPLY | NESTED, &tuple(container, client));
        if zone {
            put(&mut entry, ZONE, &[0, 7]);
        }
        entry
    }

    #[test]
    fn entry_is_read_and_its_key_keeps_tuple_and_zone() {
        for zone in [false, true] {
            let whole = entry(zone);
            let flow = Flow::parse(&whole).unwrap();
            assert_eq!((flow.protocol, flow.to), (17, "192.0.2.1:8080".parse().unwrap()));
            assert_eq!(flow.answers, "10.42.1.4:80".parse().unwrap());
            assert_eq!(find(&flow.key, ZONE).is_some(), zone);
            assert_eq!(find(&flow.key, TUPLE_ORIGINAL), find(&whole, TUPLE_ORIGINAL));
        }
    }

    #[test]
    fn cut_messages_end_without_a_flow() {
        let whole = entry(false);
        for length in 0..whole.len() {
            assert_eq!(Flow::parse(&whole[..length]), None, "{length}");
        }
        let datagram = message(GET, REQUEST, 2, &whole);
        assert_eq!(split(&datagram).unwrap().0, GET);
        for length in 0..datagram.len() {
            assert!(split(&datagram[..length]).is_none(), "{length}");
        }
        // A length that goes nowhere.
        assert!(split(&[0; 32]).is_none() && find(&[0; 32], 5).is_none());
    }
}

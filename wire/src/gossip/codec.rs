//! The one reader and writer behind every gossip format: big-endian, fixed order, bounded, total.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::HostId;
use crate::prefix::Prefix;

/// Why bytes are not a gossip value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("cut short: {field} needs {needed} bytes, {available} are left")]
    Truncated {
        /// The field being read.
        field: &'static str,
        /// Bytes the field needs.
        needed: usize,
        /// Bytes left.
        available: usize,
    },
    /// Bytes follow the last field.
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
    /// A field holds a value that encoding never emits.
    #[error("{field} holds a value that is not allowed")]
    Value {
        /// The field.
        field: &'static str,
    },
    /// A list or text is longer than its limit.
    #[error("{field} is longer than {max}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The limit.
        max: usize,
    },
    /// The format version is not known.
    #[error("format version {version} of {what} is not known")]
    Version {
        /// What carries the version.
        what: &'static str,
        /// The version found.
        version: u8,
    },
    /// The message kind is not known to this version.
    #[error("message kind {0} is not known")]
    UnknownMessage(u8),
}

/// Reads fields in order from untrusted bytes.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What is left, without consuming it.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes exactly `len` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(DecodeError::Truncated { field, needed: len, available: self.rest.len() }),
        }
    }

    /// Takes a fixed array.
    ///
    /// # Errors
    /// When fewer bytes are left.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(field, N)?);
        Ok(array)
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// When none is left.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(field)?[0])
    }

    /// Takes a 16-bit number.
    ///
    /// # Errors
    /// When fewer bytes are left.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// Takes a 32-bit number.
    ///
    /// # Errors
    /// When fewer bytes are left.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// Takes a 64-bit number.
    ///
    /// # Errors
    /// When fewer bytes are left.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Takes a count of at most `max`.
    ///
    /// # Errors
    /// When it is larger, or no byte is left.
    pub fn count(&mut self, field: &'static str, max: usize) -> Result<usize, DecodeError> {
        let count = usize::from(self.u8(field)?);
        if count > max { Err(DecodeError::TooLong { field, max }) } else { Ok(count) }
    }

    /// Takes a length-prefixed text of printable ASCII without spaces, 1 to `max` bytes.
    ///
    /// # Errors
    /// When empty, too long, or holding any other byte.
    pub fn name(&mut self, field: &'static str, max: usize) -> Result<String, DecodeError> {
        let len = self.count(field, max)?;
        let bytes = self.bytes(field, len)?;
        if !is_name(bytes) {
            return Err(DecodeError::Value { field });
        }
        Ok(bytes.iter().copied().map(char::from).collect())
    }

    /// Takes a host id.
    ///
    /// # Errors
    /// When fewer bytes are left.
    pub fn host_id(&mut self, field: &'static str) -> Result<HostId, DecodeError> {
        self.array(field).map(HostId)
    }

    /// Takes an address; an IPv4 address inside IPv6 is refused, since it has a shorter encoding.
    ///
    /// # Errors
    /// When the family is not 4 or 6, or fewer bytes are left.
    pub fn ip(&mut self, field: &'static str) -> Result<IpAddr, DecodeError> {
        let addr = match self.u8(field)? {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>(field)?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>(field)?)),
            _ => return Err(DecodeError::Value { field }),
        };
        if addr.to_canonical() == addr { Ok(addr) } else { Err(DecodeError::Value { field }) }
    }

    /// Takes an address and a port.
    ///
    /// # Errors
    /// As [`Self::ip`], and when the port is 0.
    pub fn socket_addr(&mut self, field: &'static str) -> Result<SocketAddr, DecodeError> {
        let ip = self.ip(field)?;
        match self.u16(field)? {
            0 => Err(DecodeError::Value { field }),
            port => Ok(SocketAddr::new(ip, port)),
        }
    }

    /// Takes an optional address and port; a family byte of 0 means none.
    ///
    /// # Errors
    /// As [`Self::socket_addr`].
    pub fn optional_socket_addr(&mut self, field: &'static str) -> Result<Option<SocketAddr>, DecodeError> {
        if self.rest.first() == Some(&0) {
            self.u8(field)?;
            return Ok(None);
        }
        self.socket_addr(field).map(Some)
    }

    /// Takes a prefix: family, length, and the whole address.
    ///
    /// # Errors
    /// When the family or length is wrong or host bits are set.
    pub fn prefix(&mut self, field: &'static str) -> Result<Prefix, DecodeError> {
        let value = DecodeError::Value { field };
        let family = self.u8(field)?;
        let len = self.u8(field)?;
        let addr = match family {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>(field)?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>(field)?)),
            _ => return Err(value),
        };
        Prefix::new(addr, len).map_err(|_| value)
    }

    /// Ends the value.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}

/// Whether bytes are 1 or more printable ASCII characters without spaces.
#[must_use]
pub fn is_name(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic)
}

/// Appends an address: family byte, then 4 or 16 bytes.
pub fn put_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            out.push(4);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(6);
            out.extend_from_slice(&v6.octets());
        }
    }
}

/// Appends an address and a port.
pub fn put_socket_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    put_ip(out, addr.ip());
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// Appends an optional address and port.
pub fn put_optional_socket_addr(out: &mut Vec<u8>, addr: Option<SocketAddr>) {
    match addr {
        Some(addr) if addr.port() != 0 => put_socket_addr(out, addr),
        _ => out.push(0),
    }
}

/// Appends a prefix.
pub fn put_prefix(out: &mut Vec<u8>, prefix: &Prefix) {
    out.push(if prefix.is_ipv4() { 4 } else { 6 });
    out.push(prefix.len());
    match prefix.addr() {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
}

/// Appends a text behind its one-byte length; a text longer than 255 bytes is cut.
pub fn put_name(out: &mut Vec<u8>, name: &str) {
    let bytes = &name.as_bytes()[..name.len().min(255)];
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

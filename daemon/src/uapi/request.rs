//! Requests of the WireGuard cross-platform interface: `get=1` and `set=1`, as bytes to values.
//!
//! The parser is total: any input gives a request or an error with an errno, never a panic. Nothing is applied while
//! parsing, so a request that ends in an error changes nothing.

use std::net::{IpAddr, SocketAddr};

use overlay_wire::Prefix;
use zeroize::Zeroizing;

use crate::wireguard::PublicKeyBytes;

/// A secret of 32 bytes, wiped when dropped.
pub(super) type Secret = Zeroizing<[u8; 32]>;

/// One request.
#[derive(PartialEq, Eq)]
pub(super) enum Request {
    /// Show everything.
    Get,
    /// Change something.
    Set(Box<Set>),
}

/// What a `set=1` asks for.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Set {
    /// `private_key`; zeros where the caller wants none.
    pub(super) private_key: Option<Secret>,
    /// `listen_port`.
    pub(super) listen_port: Option<u16>,
    /// `fwmark`.
    pub(super) fwmark: Option<u32>,
    /// Whether peers that are not named go away.
    pub(super) replace_peers: bool,
    /// Peers, in the order given.
    pub(super) peers: Vec<PeerChange>,
}

impl Set {
    /// Whether the interface is described whole, as `wg setconf` and `wg syncconf` do: they give zero for each value that
    /// their file does not name.
    pub(super) fn is_whole(&self) -> bool {
        self.private_key.is_some() && self.listen_port.is_some() && self.fwmark.is_some()
    }
}

/// What is asked for one peer.
#[derive(Default, PartialEq, Eq)]
pub(super) struct PeerChange {
    /// Who.
    pub(super) public_key: PublicKeyBytes,
    /// Remove it.
    pub(super) remove: bool,
    /// Do nothing when there is no such peer.
    pub(super) update_only: bool,
    /// The preshared key; zeros for none.
    pub(super) preshared_key: Option<Secret>,
    /// Where it is.
    pub(super) endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; zero for none.
    pub(super) keepalive: Option<u16>,
    /// Forget the prefixes it has before the others are added.
    pub(super) replace_allowed_ips: bool,
    /// Prefixes to add and to take away, in order.
    pub(super) allowed_ips: Vec<Allowed>,
}

/// A change to a peer's prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    /// It gets this one.
    Add(Prefix),
    /// It loses this one.
    Remove(Prefix),
}

/// Why a request was refused before anything was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParseError {
    /// Not text, or without the empty line at the end.
    #[error("the request is not lines of text that end in an empty line")]
    Framing,
    /// The first line is neither of the two.
    #[error("the first line is neither get=1 nor set=1")]
    Operation,
    /// A line without `=`.
    #[error("line {line} is not KEY=VALUE")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A key this interface does not have, or not there.
    #[error("line {line} has a key that is unknown or out of place")]
    Key {
        /// Counted from 1.
        line: usize,
    },
    /// A value that does not fit its key.
    #[error("line {line} has a value that does not fit its key")]
    Value {
        /// Counted from 1.
        line: usize,
    },
}

impl ParseError {
    /// The error number of the answer.
    pub(super) fn errno(&self) -> i32 {
        match self {
            Self::Framing | Self::Operation => libc::EPROTO,
            Self::Line { .. } | Self::Key { .. } | Self::Value { .. } => libc::EINVAL,
        }
    }
}

impl Request {
    /// Parses one request, the empty line at its end included.
    ///
    /// # Errors
    /// With the first line that is wrong; values are never quoted, as they may be secrets.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ParseError::Framing)?;
        let text = text.strip_suffix("\n\n").ok_or(ParseError::Framing)?;
        let mut lines = text.split('\n').enumerate().map(|(at, line)| (at + 1, line));
        match lines.next() {
            Some((_, "get=1")) => match lines.next() {
                None => Ok(Self::Get),
                Some((line, _)) => Err(ParseError::Key { line }),
            },
            Some((_, "set=1")) => {
                let mut set = Set::default();
                for (line, text) in lines {
                    let (key, value) = text.split_once('=').ok_or(ParseError::Line { line })?;
                    set.take(line, key, value)?;
                }
                Ok(Self::Set(Box::new(set)))
            }
            _ => Err(ParseError::Operation),
        }
    }
}

impl Set {
    fn take(&mut self, line: usize, key: &str, value: &str) -> Result<(), ParseError> {
        let bad = ParseError::Value { line };
        if key == "public_key" {
            let public_key = *key_of(value).ok_or(bad)?;
            self.peers.push(PeerChange { public_key, ..PeerChange::default() });
            return Ok(());
        }
        let Some(peer) = self.peers.last_mut() else {
            match key {
                "private_key" => self.private_key = Some(key_of(value).ok_or(bad)?),
                "listen_port" => self.listen_port = Some(number(value).ok_or(bad)?),
                // An empty mark is an old way to say none.
                "fwmark" if value.is_empty() => self.fwmark = Some(0),
                "fwmark" => self.fwmark = Some(number(value).ok_or(bad)?),
                "replace_peers" => self.replace_peers = is_true(value).ok_or(bad)?,
                _ => return Err(ParseError::Key { line }),
            }
            return Ok(());
        };
        match key {
            "remove" => peer.remove = is_true(value).ok_or(bad)?,
            "update_only" => peer.update_only = is_true(value).ok_or(bad)?,
            "preshared_key" => peer.preshared_key = Some(key_of(value).ok_or(bad)?),
            "endpoint" => peer.endpoint = Some(endpoint(value).ok_or(bad)?),
            "persistent_keepalive_interval" => peer.keepalive = Some(number(value).ok_or(bad)?),
            "replace_allowed_ips" => {
                peer.replace_allowed_ips = is_true(value).ok_or(bad)?;
                peer.allowed_ips.clear();
            }
            "allowed_ip" => {
                let change = match value.strip_prefix('-') {
                    Some(prefix) => Allowed::Remove(prefix_of(prefix).ok_or(bad)?),
                    None => Allowed::Add(prefix_of(value).ok_or(bad)?),
                };
                peer.allowed_ips.push(change);
            }
            "protocol_version" if value == "1" => {}
            "protocol_version" => return Err(bad),
            _ => return Err(ParseError::Key { line }),
        }
        Ok(())
    }
}

fn is_true(value: &str) -> Option<bool> {
    (value == "true").then_some(true)
}

/// A number in decimal digits alone: no sign, no space.
fn number<T: std::str::FromStr>(value: &str) -> Option<T> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    value.parse().ok()
}

/// A key of 64 hexadecimal digits.
fn key_of(value: &str) -> Option<Secret> {
    let digits = value.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    let mut key = Secret::default();
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(*pair.first()?)? << 4 | nibble(*pair.last()?)?;
    }
    Some(key)
}

fn endpoint(value: &str) -> Option<SocketAddr> {
    value.parse::<SocketAddr>().ok().filter(|endpoint| endpoint.port() != 0)
}

/// `ADDRESS/LENGTH`, or an address alone; host bits are cleared, as WireGuard does.
fn prefix_of(value: &str) -> Option<Prefix> {
    match value.split_once('/') {
        Some((address, length)) => Prefix::truncating(address.parse::<IpAddr>().ok()?, number(length)?).ok(),
        None => Some(Prefix::host(value.parse::<IpAddr>().ok()?)),
    }
}

//! The answer to `get=1`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use overlay_wire::Prefix;
use zeroize::Zeroizing;

use super::request::Secret;
use crate::wireguard::PublicKeyBytes;

/// What is shown of the interface.
#[derive(Default)]
pub(super) struct Device {
    /// Our private key, where it is configured and the caller may see it.
    pub(super) private_key: Option<Secret>,
    /// Our UDP port.
    pub(super) listen_port: u16,
    /// The mark of our own datagrams.
    pub(super) fwmark: u32,
    /// Members and foreign WireGuard peers.
    pub(super) peers: Vec<Shown>,
}

/// What is shown of a peer.
#[derive(Default)]
pub(super) struct Shown {
    /// Its WireGuard key.
    pub(super) public_key: PublicKeyBytes,
    /// Its preshared key.
    pub(super) preshared: Preshared,
    /// Where its datagrams go.
    pub(super) endpoint: Option<SocketAddr>,
    /// When the last handshake was, since 1970.
    pub(super) handshake: Option<Duration>,
    /// Inner bytes sent.
    pub(super) tx_bytes: u64,
    /// Inner bytes received.
    pub(super) rx_bytes: u64,
    /// Seconds between keepalives; zero for none.
    pub(super) keepalive: u16,
    /// What is behind it.
    pub(super) subnets: Vec<Prefix>,
}

/// How much of a preshared key is told.
#[derive(Default)]
pub(super) enum Preshared {
    /// There is none: zeros.
    #[default]
    None,
    /// There is one and the caller may not see it: no line at all.
    Hidden,
    /// There is one and the caller may see it.
    Shown(Secret),
}

impl Device {
    /// The whole answer, wiped when dropped as it may hold secrets.
    pub(super) fn emit(&self) -> Zeroizing<String> {
        // Room for all of it from the start: a string that grows leaves copies of secrets behind.
        let room = 256 + self.peers.iter().map(|peer| 512 + 64 * peer.subnets.len()).sum::<usize>();
        let mut out = Zeroizing::new(String::with_capacity(room));
        if let Some(key) = &self.private_key {
            line(&mut out, "private_key", format_args!("{}", Hex(key)));
        }
        line(&mut out, "listen_port", format_args!("{}", self.listen_port));
        if self.fwmark != 0 {
            line(&mut out, "fwmark", format_args!("{}", self.fwmark));
        }
        for peer in &self.peers {
            peer.emit(&mut out);
        }
        line(&mut out, "errno", format_args!("0\n"));
        out
    }
}

impl Shown {
    fn emit(&self, out: &mut String) {
        line(out, "public_key", format_args!("{}", Hex(&self.public_key)));
        match &self.preshared {
            Preshared::None => line(out, "preshared_key", format_args!("{}", Hex(&[0; 32]))),
            Preshared::Hidden => {}
            Preshared::Shown(key) => line(out, "preshared_key", format_args!("{}", Hex(key))),
        }
        line(out, "protocol_version", format_args!("1"));
        if let Some(endpoint) = self.endpoint {
            line(out, "endpoint", format_args!("{endpoint}"));
        }
        let handshake = self.handshake.unwrap_or_default();
        line(out, "last_handshake_time_sec", format_args!("{}", handshake.as_secs()));
        line(out, "last_handshake_time_nsec", format_args!("{}", handshake.subsec_nanos()));
        line(out, "tx_bytes", format_args!("{}", self.tx_bytes));
        line(out, "rx_bytes", format_args!("{}", self.rx_bytes));
        line(out, "persistent_keepalive_interval", format_args!("{}", self.keepalive));
        for prefix in &self.subnets {
            line(out, "allowed_ip", format_args!("{prefix}"));
        }
    }
}

fn line(out: &mut String, key: &str, value: std::fmt::Arguments<'_>) {
    writeln!(out, "{key}={value}").expect("writing to a String does not fail");
}

struct Hex<'a>(&'a [u8; 32]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

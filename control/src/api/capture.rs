//! Captures: which packets, and the packets with what was decided about them.

use serde::{Deserialize, Serialize};

/// The longest part of a packet that is captured, in bytes.
pub const MAX_SNAPLEN: u32 = 65_535;

/// Which verdicts are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureVerdict {
    /// Packets that pass.
    Allow,
    /// Packets that are dropped, for whatever reason.
    Deny,
}

/// Which packets are captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRequest {
    /// The expression, as `tcp/443 and host 10.42.1.5`; empty: every packet.
    pub filter: String,
    /// Packets to and from this peer only.
    pub peer: Option<String>,
    /// Packets of this container only.
    pub container: Option<String>,
    /// Packets with this verdict only.
    pub verdict: Option<CaptureVerdict>,
    /// Begin with what was kept of the last so many milliseconds.
    pub back_ms: Option<u64>,
    /// Bytes of each packet, at most [`MAX_SNAPLEN`].
    pub snaplen: u32,
}

/// One captured packet or super-packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedPacket {
    /// When it was decided, in microseconds since 1970.
    pub at_us: u64,
    /// Whether it came from this host or one of its containers.
    pub outbound: bool,
    /// Its whole length in bytes.
    pub length: u32,
    /// What became of it, as `forwarded to h2` or `dropped: policy_deny`.
    pub verdict: String,
    /// Why it was dropped, as in counters; absent: it passed.
    pub dropped: Option<String>,
    /// What the filter said to its flow.
    pub rule: Option<String>,
    /// The peer it came from or goes to.
    pub peer: Option<String>,
    /// Its first bytes, in base64.
    pub data: String,
}

/// Packets captured since the last ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// The packets, in the order in which they were decided.
    pub packets: Vec<CapturedPacket>,
    /// Packets that were chosen and had no room, since the capture began.
    pub lost: u64,
}

//! Routes, policy, flows, ping, doctor and events.

use std::net::IpAddr;

use overlay_wire::policy::PolicySet;
use overlay_wire::{Encapsulation, Prefix};
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// One known prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// The prefix.
    pub prefix: Prefix,
    /// Who owns it: a peer's name, or this host's.
    pub owner: String,
    /// `local`, `member` or `foreign`.
    pub kind: String,
    /// The owner's preference; lower wins among paths of the same owner.
    pub metric: u32,
    /// Whether it decides where packets go.
    pub best: bool,
    /// Why it is best, or why not.
    pub reason: String,
}

/// A claim that does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The prefix claimed.
    pub prefix: Prefix,
    /// Who claims it.
    pub owner: String,
    /// Why it does not count.
    pub why: String,
    /// The configuration line that would make it count, where one would.
    pub missing_line: Option<String>,
}

/// Everything known about one prefix or address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteWhy {
    /// What was asked, as a prefix.
    pub query: Prefix,
    /// Claims that count, the deciding one first.
    pub candidates: Vec<RouteEntry>,
    /// Claims that do not count.
    pub refused: Vec<Refusal>,
}

/// Who does not accept an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedBy {
    /// The member.
    pub member: String,
    /// Why it does not accept it.
    pub why: String,
    /// The line missing in its configuration.
    pub missing_line: Option<String>,
}

/// The outcome of announcing a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAdded {
    /// The prefix.
    pub prefix: Prefix,
    /// Whether anything changed here.
    pub changed: bool,
    /// Members that accept it.
    pub accepted_by: Vec<String>,
    /// Members that do not.
    pub refused_by: Vec<RefusedBy>,
    /// Members that have not answered yet.
    pub unanswered: Vec<String>,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// Default action and rules.
    #[serde(flatten)]
    pub policy: PolicySet,
    /// Counts up with every change.
    pub revision: u64,
    /// `default`, `membership`, `file`, `cli`, or `cluster`: then the host's own does not count.
    pub origin: String,
    /// The revision of the cluster's policy, where that is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<u64>,
    /// Hits per rule, in the order of the rules; empty when not counted.
    pub hits: Vec<u64>,
}

/// A packet to be judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTest {
    /// The source address.
    pub from: IpAddr,
    /// The destination address.
    pub to: IpAddr,
    /// The protocol number.
    pub protocol: u8,
    /// The destination port, for TCP and UDP.
    pub port: Option<u16>,
    /// The source port, for TCP and UDP.
    pub source_port: Option<u16>,
}

/// What the policy does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Passed.
    Allow,
    /// Dropped silently.
    Deny,
    /// Dropped and the sender told.
    Reject,
}

/// The rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMatch {
    /// Its number, from 1.
    pub number: u32,
    /// The rule.
    pub rule: String,
}

/// The outcome of a policy test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestVerdict {
    /// What would happen.
    pub verdict: Verdict,
    /// The rule that decided; absent: the default did.
    pub rule: Option<RuleMatch>,
    /// Why, in one sentence.
    pub reason: String,
    /// Who owns the source, where known.
    pub from_owner: Option<String>,
    /// Who owns the destination, where known.
    pub to_owner: Option<String>,
    /// What was looked at, in order.
    pub steps: Vec<String>,
}

/// One tracked flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    pub protocol: String,
    /// Who began it, with the port where there is one.
    pub source: String,
    /// Whom it was begun with, with the port where there is one.
    pub destination: String,
    /// The state, as in `established`.
    pub state: String,
    /// The peer it crosses to or from; absent for flows within the host.
    pub peer: Option<String>,
    /// Packets in the direction of the first.
    pub packets: u64,
    /// Packets in the other direction.
    pub reply_packets: u64,
    /// Bytes in the direction of the first.
    pub bytes: u64,
    /// Bytes in the other direction.
    pub reply_bytes: u64,
    /// The time since the last packet, in milliseconds.
    pub idle_ms: u64,
}

/// Which flows are meant; every field given must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlowSelector {
    /// Source prefix.
    pub from: Option<Prefix>,
    /// Destination prefix.
    pub to: Option<Prefix>,
    /// The protocol number.
    pub protocol: Option<u8>,
    /// The destination port.
    pub port: Option<u16>,
    /// The peer's name.
    pub peer: Option<String>,
}

/// One answer, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingReply {
    /// The probe's number, from 1.
    pub sequence: u32,
    /// The round trip in microseconds; absent: lost.
    pub rtt_us: Option<u64>,
}

/// How far a ping is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingProgress {
    /// The peer that is pinged.
    pub peer: String,
    /// The address that is pinged.
    pub address: Option<IpAddr>,
    /// The encapsulation in use.
    pub encapsulation: Encapsulation,
    /// The underlay address in use.
    pub endpoint: Option<String>,
    /// Outcomes so far, in order.
    pub replies: Vec<PingReply>,
    /// Whether it is over.
    pub done: bool,
}

/// What `doctor` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DoctorMode {
    /// Look only.
    Check,
    /// Put right what can be put right.
    Fix,
    /// Take back what was put right before.
    Undo,
}

/// The outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingStatus {
    /// As it should be.
    Ok,
    /// Not as it should be.
    Bad,
    /// Was bad, is fixed now.
    Fixed,
    /// Was fixed before, is taken back now.
    Undone,
    /// Could not be checked.
    Skipped,
}

/// One check of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name.
    pub check: String,
    /// Its outcome.
    pub status: FindingStatus,
    /// What was seen, and what follows from it.
    pub why: String,
    /// The exact command that puts it right.
    pub fix: Option<String>,
    /// The exact command that takes the fix back.
    pub undo: Option<String>,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A change of state.
    Info,
    /// Something is not as it should be.
    Warn,
    /// Someone must act.
    Error,
}

/// One change of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// How much it matters.
    pub severity: Severity,
    /// What kind, as in `peer-up`.
    pub kind: String,
    /// What it is about: a peer, prefix or endpoint.
    pub subject: Option<String>,
    /// What happened and why.
    pub cause: String,
}

//! The packet-filter language: one rule per line, the same in TOML, on the command line and over the control socket.
//!
//! ```text
//! allow|deny|reject PROTOCOL[/PORT[-PORT][,PORT…]] from SELECTOR to SELECTOR [log] [count] [audit] [name NAME]
//! ```
//!
//! `PROTOCOL` is `any`, `tcp`, `udp`, `icmp`, `icmpv6` or a number; `SELECTOR` is `any`, a prefix or address,
//! `label=value`, `host:NAME`, `net:NAME` or `service:NAME`. Printing a rule gives the canonical text, which parses back
//! to an equal value. Parsing is total and bounded: a rule holds at most [`MAX_RULE_BYTES`] bytes and [`MAX_PORT_RANGES`]
//! ranges.

mod parse;
mod print;
mod set;
#[cfg(test)]
mod tests;

pub use parse::RuleError;
pub use set::{DefaultPolicy, DefaultPolicyError, PolicySet, PolicySetError};

use crate::Prefix;

/// The longest text of one rule, in bytes; 64 port ranges and two long selectors fit.
pub const MAX_RULE_BYTES: usize = 2048;
/// The most port ranges in one rule.
pub const MAX_PORT_RANGES: usize = 64;
/// The longest host, service or rule name and label key or value, in bytes (a DNS label has 63).
pub const MAX_NAME_BYTES: usize = 63;

/// One line of the packet filter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What happens to a packet that matches.
    pub action: Action,
    /// The upper-layer protocol that matches.
    pub protocol: Protocol,
    /// Destination ports that match, in the order written; empty matches every port. Only for TCP and UDP.
    pub ports: Vec<PortRange>,
    /// Who the packet comes from.
    pub from: Selector,
    /// Who the packet goes to.
    pub to: Selector,
    /// What is written down when the rule matches, and the rule's name.
    pub options: RuleOptions,
}

/// What a rule does with the packets it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets the packet pass.
    Allow,
    /// Drops the packet silently.
    Deny,
    /// Drops the packet and tells the sender: a TCP reset, or ICMP "administratively prohibited".
    Reject,
}

impl Action {
    /// The word used in a rule.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Reject => "reject",
        }
    }
}

/// The upper-layer protocol a rule matches: an IP protocol number after extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Every protocol.
    Any,
    /// One protocol number.
    Number(u8),
}

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self::Number(1);
    /// TCP.
    pub const TCP: Self = Self::Number(6);
    /// UDP.
    pub const UDP: Self = Self::Number(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self::Number(58);

    /// Whether packets of this protocol carry ports that a rule may name.
    #[must_use]
    pub fn has_ports(self) -> bool {
        self == Self::TCP || self == Self::UDP
    }

    /// Whether `number` matches.
    #[must_use]
    pub fn matches(self, number: u8) -> bool {
        match self {
            Self::Any => true,
            Self::Number(own) => own == number,
        }
    }
}

/// Destination ports from `first` to `last`, both included; 1 to 65,535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Builds a range; `None` when `first` is 0 or above `last`.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first != 0 && first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` lies inside.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Which end of a packet a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// Every address.
    Any,
    /// The addresses of a prefix.
    Prefix(Prefix),
    /// Containers that carry a label.
    Label {
        /// The label's key.
        key: String,
        /// The label's value.
        value: String,
    },
    /// Every prefix of a member host.
    Host(String),
    /// The containers of a network, on all hosts.
    Network(String),
    /// The backends of a service.
    Service(String),
}

/// The words after a rule's selectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleOptions {
    /// Log new flows that match.
    pub log: bool,
    /// Count packets that match.
    pub count: bool,
    /// Write new flows that match to the audit record.
    pub audit: bool,
    /// The rule's name in output.
    pub name: Option<String>,
}

/// Whether `text` may be a host, service or rule name: letters, digits, `.`, `_`, `-`, first a letter or digit.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether `text` may be a label key or value: a name that may also hold `/`.
#[must_use]
pub fn is_label(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'))
}

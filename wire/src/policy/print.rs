//! From a [`Rule`] to its canonical text, and the text form in serde.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Action, PortRange, Protocol, Rule, Selector};

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Any => f.pad("any"),
            Self::TCP => f.pad("tcp"),
            Self::UDP => f.pad("udp"),
            Self::ICMP => f.pad("icmp"),
            Self::ICMPV6 => f.pad("icmpv6"),
            Self::Number(number) => fmt::Display::fmt(&number, f),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first() == self.last() {
            write!(f, "{}", self.first())
        } else {
            write!(f, "{}-{}", self.first(), self.last())
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Prefix(prefix) => write!(f, "{prefix}"),
            Self::Label { key, value } => write!(f, "{key}={value}"),
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Network(name) => write!(f, "net:{name}"),
            Self::Service(name) => write!(f, "service:{name}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.protocol)?;
        for (index, range) in self.ports.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { '/' } else { ',' })?;
        }
        write!(f, " from {} to {}", self.from, self.to)?;
        for (word, set) in [("log", self.options.log), ("count", self.options.count), ("audit", self.options.audit)] {
            if set {
                write!(f, " {word}")?;
            }
        }
        match &self.options.name {
            Some(name) => write!(f, " name {name}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

//! From text to a [`Rule`]: one pass over the words, each error naming the word and what was expected in its place.

use std::net::IpAddr;
use std::str::FromStr;

use super::{
    Action, MAX_PORT_RANGES, MAX_RULE_BYTES, PortRange, Protocol, Rule, RuleOptions, Selector, is_label, is_name,
};
use crate::Prefix;
use crate::prefix::PrefixError;

const SELECTOR: &str = "any, a prefix, an address, label=value, host:NAME, net:NAME or service:NAME";
const PROTOCOL: &str = "any, tcp, udp, icmp, icmpv6 or a protocol number from 0 to 255";
const OPTION: &str = "log, count, audit, name NAME or the end of the rule";

/// Why a rule was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A word is not what the grammar wants in its place.
    #[error("word {position}: found `{found}`, expected {expected}")]
    Unexpected {
        /// The word's place, counted from 1.
        position: usize,
        /// The word, cut to 64 characters.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// The rule ends too early.
    #[error("the rule ends after word {position}, expected {expected}")]
    Incomplete {
        /// How many words there are.
        position: usize,
        /// What should follow.
        expected: &'static str,
    },
    /// A selector looks like a prefix and is none.
    #[error("word {position}: {source}")]
    Prefix {
        /// The word's place, counted from 1.
        position: usize,
        /// What is wrong with the prefix.
        source: PrefixError,
    },
    /// A port or port range is malformed.
    #[error("word {position}: `{found}` is not a port or range; expected PORT or PORT-PORT from 1 to 65535, low first")]
    Port {
        /// The word's place, counted from 1.
        position: usize,
        /// The part that is wrong, cut to 64 characters.
        found: String,
    },
    /// Ports were given for a protocol that has none.
    #[error("word {position}: `{found}` takes no ports; ports go with tcp or udp, as in tcp/443")]
    NoPorts {
        /// The word's place, counted from 1.
        position: usize,
        /// The protocol.
        found: String,
    },
    /// More than [`MAX_PORT_RANGES`] port ranges.
    #[error("word {position}: {count} port ranges, at most {MAX_PORT_RANGES} are possible; split the rule")]
    TooManyPorts {
        /// The word's place, counted from 1.
        position: usize,
        /// How many were given.
        count: usize,
    },
    /// An option stands twice.
    #[error("word {position}: `{found}` is given twice")]
    Repeated {
        /// The word's place, counted from 1.
        position: usize,
        /// The option.
        found: &'static str,
    },
    /// The text is longer than [`MAX_RULE_BYTES`].
    #[error("the rule has {length} bytes, at most {MAX_RULE_BYTES} are possible")]
    TooLong {
        /// The length in bytes.
        length: usize,
    },
    /// Source and destination are of different families, so nothing could match.
    #[error("`from` and `to` are of different address families; no packet can match")]
    Families,
}

/// At most 64 characters of a foreign text, without control characters, for an error message.
fn excerpt(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

struct Words<'a> {
    rest: std::str::SplitAsciiWhitespace<'a>,
    position: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self, expected: &'static str) -> Result<&'a str, RuleError> {
        let word = self.rest.next().ok_or(RuleError::Incomplete { position: self.position, expected })?;
        self.position += 1;
        Ok(word)
    }

    fn unexpected(&self, found: &str, expected: &'static str) -> RuleError {
        RuleError::Unexpected { position: self.position, found: excerpt(found), expected }
    }

    fn keyword(&mut self, keyword: &str, expected: &'static str) -> Result<(), RuleError> {
        let word = self.next(expected)?;
        if word == keyword { Ok(()) } else { Err(self.unexpected(word, expected)) }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_RULE_BYTES {
            return Err(RuleError::TooLong { length: text.len() });
        }
        let mut words = Words { rest: text.split_ascii_whitespace(), position: 0 };
        let action = action(&mut words)?;
        let (protocol, ports) = traffic(&mut words)?;
        words.keyword("from", "from SELECTOR")?;
        let from = selector(&mut words)?;
        words.keyword("to", "to SELECTOR")?;
        let to = selector(&mut words)?;
        let options = options(&mut words)?;
        if let (Selector::Prefix(a), Selector::Prefix(b)) = (&from, &to)
            && a.is_ipv4() != b.is_ipv4()
        {
            return Err(RuleError::Families);
        }
        Ok(Self { action, protocol, ports, from, to, options })
    }
}

fn action(words: &mut Words<'_>) -> Result<Action, RuleError> {
    const EXPECTED: &str = "allow, deny or reject";
    let word = words.next(EXPECTED)?;
    [Action::Allow, Action::Deny, Action::Reject]
        .into_iter()
        .find(|action| action.name() == word)
        .ok_or_else(|| words.unexpected(word, EXPECTED))
}

fn traffic(words: &mut Words<'_>) -> Result<(Protocol, Vec<PortRange>), RuleError> {
    let word = words.next(PROTOCOL)?;
    let (name, list) = word.split_once('/').map_or((word, None), |(name, list)| (name, Some(list)));
    let protocol = protocol(name).ok_or_else(|| words.unexpected(name, PROTOCOL))?;
    let Some(list) = list else { return Ok((protocol, Vec::new())) };
    let position = words.position;
    if !protocol.has_ports() {
        return Err(RuleError::NoPorts { position, found: excerpt(name) });
    }
    let count = list.split(',').count();
    if count > MAX_PORT_RANGES {
        return Err(RuleError::TooManyPorts { position, count });
    }
    let ports = list
        .split(',')
        .map(|part| range(part).ok_or_else(|| RuleError::Port { position, found: excerpt(part) }))
        .collect::<Result<_, _>>()?;
    Ok((protocol, ports))
}

fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "any" => Some(Protocol::Any),
        "tcp" => Some(Protocol::TCP),
        "udp" => Some(Protocol::UDP),
        "icmp" => Some(Protocol::ICMP),
        "icmpv6" => Some(Protocol::ICMPV6),
        _ => number(name, 3)?.try_into().ok().map(Protocol::Number),
    }
}

fn range(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    PortRange::new(number(first, 5)?.try_into().ok()?, number(last, 5)?.try_into().ok()?)
}

/// A decimal number of at most `digits` digits: no sign, no spaces.
fn number(text: &str, digits: usize) -> Option<u32> {
    let valid = !text.is_empty() && text.len() <= digits && text.bytes().all(|b| b.is_ascii_digit());
    valid.then(|| text.parse().ok()).flatten()
}

fn selector(words: &mut Words<'_>) -> Result<Selector, RuleError> {
    let word = words.next(SELECTOR)?;
    if word == "any" {
        return Ok(Selector::Any);
    }
    if let Some(name) = word.strip_prefix("host:") {
        return named(words, name, "host:NAME with letters, digits, dot, dash and underscore").map(Selector::Host);
    }
    if let Some(name) = word.strip_prefix("net:") {
        return named(words, name, "net:NAME with letters, digits, dot, dash and underscore").map(Selector::Network);
    }
    if let Some(name) = word.strip_prefix("service:") {
        return named(words, name, "service:NAME with letters, digits, dot, dash and underscore")
            .map(Selector::Service);
    }
    if let Some((key, value)) = word.split_once('=') {
        if !is_label(key) || !is_label(value) {
            return Err(words.unexpected(word, "label=value with letters, digits, dot, dash, underscore and slash"));
        }
        return Ok(Selector::Label { key: key.to_owned(), value: value.to_owned() });
    }
    if let Ok(address) = word.parse::<IpAddr>() {
        return Ok(Selector::Prefix(Prefix::host(address)));
    }
    if word.contains('/') {
        return word
            .parse()
            .map(Selector::Prefix)
            .map_err(|source| RuleError::Prefix { position: words.position, source });
    }
    Err(words.unexpected(word, SELECTOR))
}

fn named(words: &Words<'_>, name: &str, expected: &'static str) -> Result<String, RuleError> {
    if is_name(name) { Ok(name.to_owned()) } else { Err(words.unexpected(name, expected)) }
}

fn options(words: &mut Words<'_>) -> Result<RuleOptions, RuleError> {
    let mut options = RuleOptions::default();
    while let Some(word) = words.rest.next() {
        words.position += 1;
        let position = words.position;
        let (flag, found) = match word {
            "log" => (&mut options.log, "log"),
            "count" => (&mut options.count, "count"),
            "audit" => (&mut options.audit, "audit"),
            "name" => {
                const EXPECTED: &str = "a name with letters, digits, dot, dash and underscore";
                let name = words.next(EXPECTED)?;
                let name = named(words, name, EXPECTED)?;
                if options.name.replace(name).is_some() {
                    return Err(RuleError::Repeated { position, found: "name" });
                }
                continue;
            }
            _ => return Err(words.unexpected(word, OPTION)),
        };
        if std::mem::replace(flag, true) {
            return Err(RuleError::Repeated { position, found });
        }
    }
    Ok(options)
}

//! Which packets a capture takes: a small expression over addresses, ports and protocols.
//!
//! `tcp/443 from 10.42.1.5 to any` as rules have it, and the words of tcpdump: `host`, `net`, `port`, `proto`, with `src` or
//! `dst` in front, and `and`, `or`, `not`, parentheses. Parts that stand beside each other are joined by `and`.

use std::fmt;
use std::net::IpAddr;

use overlay_wire::Prefix;
use overlay_wire::packet::{Headers, Transport, protocol};

/// The longest expression, in bytes.
pub const MAX_BYTES: usize = 2048;
/// The most parts of an expression, so that a packet is never compared for long.
pub const MAX_PARTS: usize = 64;
/// The deepest nesting of parentheses and `not`.
const MAX_DEPTH: u32 = 16;

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A word is not what is wanted in its place.
    #[error("word {position}: found `{found}`, expected {expected}")]
    Unexpected {
        /// The word's place, counted from 1.
        position: usize,
        /// The word, cut to 64 characters.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// The expression ends too early.
    #[error("the filter ends too early, expected {0}")]
    Incomplete(&'static str),
    /// The expression is too long, has too many parts or is nested too deeply.
    #[error("the filter is too long: at most {MAX_BYTES} bytes, {MAX_PARTS} parts and {MAX_DEPTH} levels are possible")]
    TooLong,
}

/// Which end of a packet is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Source,
    Destination,
    Either,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Everything,
    Net(Side, Prefix),
    Port(Side, u16, u16),
    Protocol(u8),
    Not(Box<Part>),
    All(Vec<Part>),
    Any(Vec<Part>),
}

/// Chooses packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter(Part);

impl Default for Filter {
    fn default() -> Self {
        Self(Part::Everything)
    }
}

impl Filter {
    /// Whether it chooses every packet.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.0 == Part::Everything
    }

    /// Whether it chooses a packet with these headers.
    #[must_use]
    pub fn matches(&self, headers: &Headers) -> bool {
        let ports = match &headers.transport {
            Transport::Tcp(tcp) => Some((tcp.src_port, tcp.dst_port)),
            Transport::Udp(udp) => Some((udp.src_port, udp.dst_port)),
            Transport::Icmp(_) | Transport::Other | Transport::None => None,
        };
        matches(&self.0, (headers.src, headers.dst), ports, headers.protocol)
    }
}

fn matches(part: &Part, ends: (IpAddr, IpAddr), ports: Option<(u16, u16)>, number: u8) -> bool {
    let inner = |part: &Part| matches(part, ends, ports, number);
    match part {
        Part::Everything => true,
        Part::Net(side, prefix) => side.of(ends, |ip| prefix.contains(ip)),
        Part::Port(side, low, high) => ports.is_some_and(|ports| side.of(ports, |port| (*low..=*high).contains(&port))),
        Part::Protocol(own) => *own == number,
        Part::Not(part) => !inner(part),
        Part::All(parts) => parts.iter().all(inner),
        Part::Any(parts) => parts.iter().any(inner),
    }
}

impl Side {
    fn of<T: Copy>(self, (source, destination): (T, T), test: impl Fn(T) -> bool) -> bool {
        match self {
            Self::Source => test(source),
            Self::Destination => test(destination),
            Self::Either => test(source) || test(destination),
        }
    }
}

impl std::str::FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > MAX_BYTES {
            return Err(FilterError::TooLong);
        }
        let spaced = text.replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = spaced.split_ascii_whitespace().collect();
        if words.is_empty() {
            return Ok(Self::default());
        }
        let mut parser = Parser { words: &words, at: 0, parts: 0 };
        let part = parser.any(0)?;
        match parser.peek() {
            None => Ok(Self(part)),
            Some(_) => Err(parser.unexpected("and, or, or the end of the filter")),
        }
    }
}

const PART: &str = "host, net, port, proto, from, to, tcp, udp, icmp, not or a parenthesis";

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
    parts: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn next(&mut self, expected: &'static str) -> Result<&'a str, FilterError> {
        let word = self.peek().ok_or(FilterError::Incomplete(expected))?;
        self.at += 1;
        Ok(word)
    }

    /// The word at hand is wrong.
    fn unexpected(&self, expected: &'static str) -> FilterError {
        let found: String = self.peek().unwrap_or_default().chars().take(64).flat_map(char::escape_debug).collect();
        FilterError::Unexpected { position: self.at + 1, found, expected }
    }

    /// The word before is wrong.
    fn wrong(&mut self, expected: &'static str) -> FilterError {
        self.at -= 1;
        self.unexpected(expected)
    }

    fn any(&mut self, depth: u32) -> Result<Part, FilterError> {
        let mut parts = vec![self.all(depth)?];
        while self.peek().is_some_and(|word| word == "or" || word == "||") {
            self.at += 1;
            parts.push(self.all(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Part::Any(parts) })
    }

    fn all(&mut self, depth: u32) -> Result<Part, FilterError> {
        let mut parts = vec![self.one(depth)?];
        loop {
            match self.peek() {
                None | Some("or" | "||" | ")") => break,
                Some("and" | "&&") => self.at += 1,
                Some(_) => {}
            }
            parts.push(self.one(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Part::All(parts) })
    }

    fn one(&mut self, depth: u32) -> Result<Part, FilterError> {
        self.parts += 1;
        if depth > MAX_DEPTH || self.parts > MAX_PARTS {
            return Err(FilterError::TooLong);
        }
        let word = self.next(PART)?;
        match word {
            "not" | "!" => Ok(Part::Not(Box::new(self.one(depth + 1)?))),
            "(" => {
                let part = self.any(depth + 1)?;
                match self.next("a closing parenthesis")? {
                    ")" => Ok(part),
                    _ => Err(self.wrong("a closing parenthesis")),
                }
            }
            "src" | "dst" => {
                let side = if word == "src" { Side::Source } else { Side::Destination };
                match self.peek() {
                    Some("host" | "net" | "port") => {
                        let kind = self.next(PART)?;
                        self.sided(side, kind)
                    }
                    _ => self.net(side),
                }
            }
            "from" => self.net(Side::Source),
            "to" => self.net(Side::Destination),
            "host" | "net" | "port" => self.sided(Side::Either, word),
            "proto" => {
                let name = self.next("a protocol")?;
                self.protocol(name)
            }
            _ => match word.split_once('/') {
                Some((name @ ("tcp" | "udp"), ports)) => {
                    let own = self.protocol(name)?;
                    let mut ranges = Vec::new();
                    for range in ports.split(',') {
                        self.parts += 1;
                        let (low, high) = range_of(range)
                            .ok_or_else(|| self.wrong("a port or range, as in tcp/443 or udp/53,1000-2000"))?;
                        ranges.push(Part::Port(Side::Destination, low, high));
                    }
                    Ok(Part::All(vec![own, Part::Any(ranges)]))
                }
                _ => self.protocol(word),
            },
        }
    }

    fn sided(&mut self, side: Side, kind: &str) -> Result<Part, FilterError> {
        if kind != "port" {
            return self.net(side);
        }
        let word = self.next("a port")?;
        let (low, high) = range_of(word).ok_or_else(|| self.wrong("a port or a range of ports"))?;
        Ok(Part::Port(side, low, high))
    }

    fn net(&mut self, side: Side) -> Result<Part, FilterError> {
        let word = self.next("an address or a prefix")?;
        if word == "any" {
            return Ok(Part::Everything);
        }
        let prefix = match word.parse::<IpAddr>() {
            Ok(address) => Ok(Prefix::host(address)),
            Err(_) => word.parse::<Prefix>(),
        };
        prefix.map(|prefix| Part::Net(side, prefix)).map_err(|_| self.wrong("an address, a prefix or any"))
    }

    fn protocol(&mut self, word: &str) -> Result<Part, FilterError> {
        Ok(match word {
            "any" | "ip" => Part::Everything,
            "tcp" => Part::Protocol(protocol::TCP),
            "udp" => Part::Protocol(protocol::UDP),
            "icmp" => Part::Any(vec![Part::Protocol(protocol::ICMP), Part::Protocol(protocol::ICMPV6)]),
            "icmpv6" | "icmp6" => Part::Protocol(protocol::ICMPV6),
            _ => Part::Protocol(word.parse().map_err(|_| self.wrong(PART))?),
        })
    }
}

fn range_of(text: &str) -> Option<(u16, u16)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high): (u16, u16) = (low.parse().ok()?, high.parse().ok()?);
    (low <= high).then_some((low, high))
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_everything() { "everything" } else { "a filter" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{icmp, segment, udp};

    fn takes(filter: &str, packet: &[u8]) -> bool {
        let filter: Filter = filter.parse().unwrap_or_else(|error| panic!("{filter}: {error}"));
        filter.matches(&Headers::parse(packet).expect("a valid packet"))
    }

    #[test]
    fn words_choose_what_they_say() {
        let tcp = segment("10.42.1.5", 1000, "10.42.2.5", 443, 2, 1, 0, 0);
        for filter in [
            "",
            "any",
            "tcp",
            "tcp/443",
            "tcp/80,400-500",
            "proto 6",
            "host 10.42.2.5",
            "net 10.42.1.0/24",
            "port 443",
            "src host 10.42.1.5",
            "src 10.42.1.5",
            "dst port 443",
            "from 10.42.1.5 to 10.42.2.0/24",
            "tcp/443 from any to any",
            "not udp",
            "udp or tcp",
            "(udp or tcp) and port 443",
            "not (udp or icmp)",
            "tcp and not port 22",
            "port 400-500",
            "! udp && tcp || icmp",
        ] {
            assert!(takes(filter, &tcp), "`{filter}` leaves it out");
        }
        for filter in [
            "udp",
            "tcp/80",
            "tcp/1000",
            "proto 17",
            "host 10.42.2.6",
            "net 10.42.3.0/24",
            "port 80",
            "src port 443",
            "src 10.42.2.5",
            "from 10.42.2.5",
            "not tcp",
            "udp or icmp",
            "tcp and port 22",
            "host fd42::1",
        ] {
            assert!(!takes(filter, &tcp), "`{filter}` takes it");
        }
        assert!(takes("icmp", &icmp("10.42.1.5", "10.42.2.5", 8, 0, 1, &[])));
        assert!(takes("icmp", &icmp("fd42:0:0:1::5", "fd42:0:0:2::5", 128, 0, 1, &[])));
        assert!(!takes("port 0", &icmp("10.42.1.5", "10.42.2.5", 8, 0, 1, &[])), "ICMP has no ports");
        assert!(takes("udp/53", &udp("10.42.1.5", 1, "10.42.2.5", 53, 0)));
    }

    #[test]
    fn wrong_words_are_named_with_their_place() {
        for (filter, told) in [
            ("host", "the filter ends too early, expected an address or a prefix"),
            ("tcp and", "the filter ends too early"),
            ("tcp port x", "word 3: found `x`, expected a port or a range of ports"),
            ("host 10.42.1.300", "word 2: found `10.42.1.300`"),
            ("( tcp", "the filter ends too early, expected a closing parenthesis"),
            ("tcp )", "word 2: found `)`"),
            ("tcp/0x", "word 1: found `tcp/0x`"),
            ("port 9-1", "word 2: found `9-1`"),
            ("frobnicate", "word 1: found `frobnicate`"),
        ] {
            let error = filter.parse::<Filter>().expect_err(filter).to_string();
            assert!(error.contains(told), "`{filter}`: {error}");
        }
        assert_eq!("( ".repeat(100).parse::<Filter>(), Err(FilterError::TooLong));
        assert_eq!("not ".repeat(100).parse::<Filter>(), Err(FilterError::TooLong));
        assert_eq!("tcp ".repeat(100).parse::<Filter>(), Err(FilterError::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_is_a_filter_or_an_error(text in "[a-z0-9/ ().:!,-]{0,80}") {
            let _ = text.parse::<Filter>();
        }
    }
}

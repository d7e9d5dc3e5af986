//! Reads TOML tables key by key, keeps the place of each value, and gathers problems instead of stopping at the first.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use overlay_wire::Prefix;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::{Place, Problem};

/// The longest text quoted back in a problem, in characters.
const MAX_QUOTE_CHARS: usize = 60;

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// One text being read: turns byte spans into places and gathers problems.
pub(crate) struct Source<'a> {
    file: Arc<str>,
    text: &'a str,
    /// Where each line but the last ends, so that the line of a place is found without reading the text again.
    line_ends: Vec<usize>,
    pub(crate) problems: Vec<Problem>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &str, text: &'a str) -> Self {
        let line_ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { file: file.into(), text, line_ends, problems: Vec::new() }
    }

    /// Parses the text; syntax errors become problems.
    pub(crate) fn parse(&mut self) -> DeTable<'a> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let place = self.place(error.span().unwrap_or(0..0).start);
            let what = error.message().trim().replace('\n', ", ");
            self.problems.push(Problem { place, key: String::new(), what, expected: "valid TOML".to_owned() });
        }
        table.into_inner()
    }

    pub(crate) fn place(&self, offset: usize) -> Place {
        Place { file: Arc::clone(&self.file), line: self.line_ends.partition_point(|end| *end < offset) + 1 }
    }

    pub(crate) fn problem(&mut self, place: Place, key: &str, what: String, expected: &str) {
        self.problems.push(Problem { place, key: key.to_owned(), what, expected: expected.to_owned() });
    }
}

/// One table being read. Every key read is remembered; [`Section::finish`] reports the rest as unknown.
pub(crate) struct Section<'t> {
    pub(crate) path: String,
    pub(crate) place: Place,
    table: Option<&'t DeTable<'t>>,
    known: BTreeSet<&'static str>,
}

impl<'t> Section<'t> {
    pub(crate) fn root(source: &Source<'_>, table: &'t DeTable<'t>) -> Self {
        Self { path: String::new(), place: source.place(0), table: Some(table), known: BTreeSet::new() }
    }

    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn get(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.insert(key);
        self.table?.get(key)
    }

    /// Whether the key is written, valid or not.
    pub(crate) fn has(&mut self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// Reads a value through `parse`, whose error says what is wrong with it.
    pub(crate) fn value<T>(
        &mut self,
        source: &mut Source<'_>,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let value = self.get(key)?;
        let place = source.place(value.span().start);
        match parse(value.get_ref()) {
            Ok(value) => Some(Located { value, place }),
            Err(what) => {
                source.problem(place, &self.path_of(key), what, expected);
                None
            }
        }
    }

    /// Reads a string that parses as `T`.
    pub(crate) fn text<T: FromStr<Err: Display>>(
        &mut self,
        source: &mut Source<'_>,
        key: &'static str,
        expected: &str,
    ) -> Option<Located<T>> {
        self.value(source, key, expected, text)
    }

    /// Reads an integer inside `range`.
    pub(crate) fn integer<T: TryFrom<i64>>(
        &mut self,
        source: &mut Source<'_>,
        key: &'static str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<Located<T>> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.value(source, key, &expected, |value| {
            let number = integer(value)?;
            let in_range = range.contains(&number).then_some(number).and_then(|number| T::try_from(number).ok());
            in_range.ok_or_else(|| format!("{number} is out of range"))
        })
    }

    pub(crate) fn boolean(&mut self, source: &mut Source<'_>, key: &'static str) -> Option<Located<bool>> {
        self.value(source, key, "true or false", |value| value.as_bool().ok_or_else(|| kind(value)))
    }

    /// Reads an absolute path.
    pub(crate) fn path(&mut self, source: &mut Source<'_>, key: &'static str) -> Option<Located<PathBuf>> {
        self.value(source, key, "an absolute path, as in \"/etc/overlay/identity.key\"", |value| {
            let text = string(value)?;
            let path = PathBuf::from(text);
            if path.is_absolute() && !text.contains('\0') { Ok(path) } else { Err(format!("got {}", quote(text))) }
        })
    }

    /// Reads a list of strings; every bad element is reported at its own line.
    pub(crate) fn list<T: FromStr<Err: Display>>(
        &mut self,
        source: &mut Source<'_>,
        key: &'static str,
        expected: &str,
    ) -> Option<Located<Vec<Located<T>>>> {
        let value = self.get(key)?;
        let place = source.place(value.span().start);
        let path = self.path_of(key);
        let Some(array) = value.get_ref().as_array() else {
            source.problem(place, &path, kind(value.get_ref()), &format!("a list of {expected}"));
            return None;
        };
        let mut list = Vec::with_capacity(array.len());
        for element in array.iter() {
            let place = source.place(element.span().start);
            match text(element.get_ref()) {
                Ok(value) => list.push(Located { value, place }),
                Err(what) => source.problem(place, &path, what, expected),
            }
        }
        Some(Located { value: list, place })
    }

    /// Opens a table inside this one; an absent table reads as an empty one.
    pub(crate) fn table(&mut self, source: &mut Source<'_>, key: &'static str) -> Section<'t> {
        let path = self.path_of(key);
        let value = self.get(key);
        let place = value.map_or_else(|| self.place.clone(), |value| source.place(value.span().start));
        let table = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            source.problem(place.clone(), &path, kind(value.get_ref()), &format!("a table, as in [{path}]"));
        }
        Section { path, place, table, known: BTreeSet::new() }
    }

    /// Opens every table of an array of tables, named by its `name` key or its number.
    pub(crate) fn tables(&mut self, source: &mut Source<'_>, key: &'static str) -> Vec<Section<'t>> {
        let path = self.path_of(key);
        let Some(value) = self.get(key) else { return Vec::new() };
        let expected = format!("an array of tables, as in [[{path}]]");
        let Some(array) = value.get_ref().as_array() else {
            source.problem(source.place(value.span().start), &path, kind(value.get_ref()), &expected);
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(array.len());
        for (index, element) in array.iter().enumerate() {
            let place = source.place(element.span().start);
            let Some(table) = element.get_ref().as_table() else {
                source.problem(place, &path, kind(element.get_ref()), &expected);
                continue;
            };
            let name = table.get("name").and_then(|name| name.get_ref().as_str()).filter(|name| is_name(name));
            let path = name.map_or_else(|| format!("{path}[#{}]", index + 1), |name| format!("{path}[{name}]"));
            sections.push(Section { path, place, table: Some(table), known: BTreeSet::new() });
        }
        sections
    }

    /// Reports a key that must not be written here, with the reason.
    pub(crate) fn refuse(&mut self, source: &mut Source<'_>, key: &'static str, what: &str, expected: &str) {
        if let Some(value) = self.get(key) {
            let place = source.place(value.span().start);
            source.problem(place, &self.path_of(key), what.to_owned(), expected);
        }
    }

    /// Reports that a key is missing.
    pub(crate) fn missing(&self, source: &mut Source<'_>, key: &str, expected: &str) {
        source.problems.extend(self.lacks(key, expected));
    }

    /// The problem of a key that was not written. A value that was written and refused has been reported already.
    pub(crate) fn lacks(&self, key: &str, expected: &str) -> Option<Problem> {
        let (place, key_path) = (self.place.clone(), self.path_of(key));
        let what = "missing".to_owned();
        self.table.is_none_or(|table| !table.contains_key(key)).then(|| Problem {
            place,
            key: key_path,
            what,
            expected: expected.to_owned(),
        })
    }

    /// Reports every key that was never asked for.
    pub(crate) fn finish(self, source: &mut Source<'_>) {
        let Some(table) = self.table else { return };
        for key in table.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(name) {
                continue;
            }
            let known = self.known.iter().copied().collect::<Vec<_>>();
            let expected = match nearest(name, &known) {
                Some(near) => format!("`{near}`, perhaps"),
                None => format!("one of {}", known.join(", ")),
            };
            let place = source.place(key.span().start);
            source.problem(place, &self.path_of(&clip(name)), "unknown key".to_owned(), &expected);
        }
    }
}

/// Expected texts used in several places.
pub(crate) mod expect {
    pub(crate) const PREFIX: &str = "a prefix, as in \"10.42.1.0/24\" or \"fd42::/64\"";
    pub(crate) const NAME: &str = "1 to 63 lower-case letters, digits and hyphens, not at the ends";
    pub(crate) const ENDPOINT: &str = "ADDRESS:PORT, as in \"192.0.2.2:51821\" or \"[2001:db8::2]:51821\"";
    pub(crate) const ENCAPSULATION: &str = "\"wireguard\", \"gre\" or \"ipip\"";
    pub(crate) const KEY: &str = "a public key: 44 characters of base64";
    pub(crate) const IP: &str = "an IP address, as in \"192.0.2.2\"";
    pub(crate) const GRANT: &str = "\"PREFIX\" or \"PREFIX max LENGTH\", as in \"10.42.0.0/16 max 24\"";
}

/// Whether `text` is a host name label.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A host name label.
pub(crate) struct Name(pub(crate) String);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_name(text) { Ok(Self(text.to_owned())) } else { Err(format!("got {}", quote(text))) }
    }
}

/// An underlay address and port that can be sent to.
pub(crate) struct Endpoint(pub(crate) SocketAddr);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let endpoint: SocketAddr = text.parse().map_err(|_| format!("got {}", quote(text)))?;
        if endpoint.port() == 0 {
            return Err(format!("port 0 in {}", quote(text)));
        }
        unicast(endpoint.ip()).map(|()| Self(endpoint))
    }
}

/// An underlay address that can be sent to.
pub(crate) struct UnicastIp(pub(crate) IpAddr);

impl FromStr for UnicastIp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ip: IpAddr = text.parse().map_err(|_| format!("got {}", quote(text)))?;
        unicast(ip).map(|()| Self(ip))
    }
}

fn unicast(ip: IpAddr) -> Result<(), String> {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if ip.is_unspecified() || ip.is_multicast() || broadcast || mapped {
        Err(format!("{ip} is not the address of one host"))
    } else {
        Ok(())
    }
}

/// A prefix that containers may have addresses of.
pub(crate) struct UnicastPrefix(pub(crate) Prefix);

impl FromStr for UnicastPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let prefix: Prefix = text.parse().map_err(|error| format!("{error}"))?;
        let never = ["127.0.0.0/8", "224.0.0.0/3", "169.254.0.0/16", "::1/128", "ff00::/8", "fe80::/10"];
        let clash = never.iter().filter_map(|never| never.parse::<Prefix>().ok()).find(|never| {
            // The whole address space holds the special ranges without meaning them.
            prefix.len() > 0 && never.overlaps(&prefix)
        });
        clash.map_or(Ok(Self(prefix)), |never| Err(format!("{prefix} overlaps {never}, which is never routed")))
    }
}

pub(crate) fn string<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| kind(value))
}

fn text<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Result<T, String> {
    string(value)?.parse().map_err(|error| format!("{error}"))
}

pub(crate) fn integer(value: &DeValue<'_>) -> Result<i64, String> {
    let number = value.as_integer().ok_or_else(|| kind(value))?;
    i64::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| format!("{} is out of range", clip(number.as_str())))
}

/// What kind of value was written instead.
pub(crate) fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("got {}", quote(text)),
        DeValue::Integer(number) => format!("got {}", clip(number.as_str())),
        DeValue::Boolean(value) => format!("got {value}"),
        other => format!("got a value of type {}", other.type_str()),
    }
}

pub(crate) fn quote(text: &str) -> String {
    format!("{:?}", clip(text))
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_QUOTE_CHARS).collect()
}

/// The known key at most two edits away.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let name = clip(name);
    known.iter().map(|key| (distance(&name, key), *key)).filter(|(edits, _)| *edits <= 2).min().map(|(_, key)| key)
}

/// Edit distance (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

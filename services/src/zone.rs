//! What is known by name: hosts, containers, and the names of addresses.
//!
//! | name | what |
//! | --- | --- |
//! | `NODE.node.DOMAIN` | a host |
//! | `CONTAINER.ctr.DOMAIN` | a container |
//! | `HEX.addr.DOMAIN` | the address itself, 8 or 32 hexadecimal digits, inside the overlay |
//! | `ns.dns.DOMAIN` | this host |
//! | reverse names inside the overlay | a container or a host |

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use domain::base::Name;
use overlay_wire::Prefix;
use overlay_wire::gossip::names::is_label;

use crate::reverse;

/// A name in wire form.
pub(crate) type Wire = Name<Vec<u8>>;

/// The addresses behind a name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    pub(crate) v4: Vec<Ipv4Addr>,
    pub(crate) v6: Vec<Ipv6Addr>,
}

impl Addresses {
    fn add(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(v4) if !self.v4.contains(&v4) => self.v4.push(v4),
            IpAddr::V6(v6) if !self.v6.contains(&v6) => self.v6.push(v6),
            _ => {}
        }
    }
}

/// Why a zone cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// The domain is no name.
    #[error("`{0}` is no domain name")]
    Domain(String),
}

/// Everything that this host answers for itself.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The labels of the domain, the leftmost first, in lower case.
    labels: Vec<Vec<u8>>,
    pub(crate) apex: Wire,
    pub(crate) server: Wire,
    pub(crate) mailbox: Wire,
    /// Moves when the content does.
    pub(crate) serial: u32,
    hosts: BTreeMap<Vec<u8>, Addresses>,
    containers: BTreeMap<Vec<u8>, Addresses>,
    own: Addresses,
    names: BTreeMap<IpAddr, Wire>,
    prefixes: Vec<(Prefix, Wire)>,
}

/// What a name is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// Addresses.
    Addresses(&'a Addresses),
    /// One address, named by its digits.
    Address(IpAddr),
    /// The name of an address.
    Pointer(&'a Name<Vec<u8>>),
    /// The domain itself.
    Apex,
    /// There are names below, and nothing at it.
    Empty,
    /// There is no such name.
    Nothing,
    /// It is not for us to say.
    Elsewhere,
}

impl Zone {
    /// An empty zone: `domain` is the domain, `prefixes` those of the overlay, `own` the addresses of this host.
    ///
    /// # Errors
    /// When the domain is no name.
    pub fn new(domain: &str, prefixes: &[Prefix], own: &[IpAddr], serial: u32) -> Result<Self, ZoneError> {
        let refuse = || ZoneError::Domain(domain.to_owned());
        let trimmed = domain.trim_end_matches('.').to_ascii_lowercase();
        if trimmed.is_empty() || !trimmed.split('.').all(is_label) {
            return Err(refuse());
        }
        let name = |text: String| Wire::from_str(&text).map_err(|_| refuse());
        let mut zone = Self {
            labels: trimmed.split('.').map(|label| label.as_bytes().to_vec()).collect(),
            apex: name(format!("{trimmed}."))?,
            server: name(format!("ns.dns.{trimmed}."))?,
            mailbox: name(format!("hostmaster.{trimmed}."))?,
            serial,
            hosts: BTreeMap::new(),
            containers: BTreeMap::new(),
            own: Addresses::default(),
            names: BTreeMap::new(),
            prefixes: Vec::new(),
        };
        own.iter().for_each(|ip| zone.own.add(*ip));
        for prefix in prefixes {
            // Whole labels always make a name.
            if let Ok(wire) = Wire::from_str(&reverse::zone_name(prefix)) {
                zone.prefixes.push((*prefix, wire));
            }
        }
        Ok(zone)
    }

    /// Adds a host; a name that is no label is left out.
    pub fn add_host(&mut self, name: &str, addresses: &[IpAddr]) {
        Self::add(&mut self.hosts, &mut self.names, &self.apex, "node", name, addresses);
    }

    /// Adds addresses of a container; several hosts may have one of the same name.
    pub fn add_container(&mut self, name: &str, addresses: &[IpAddr]) {
        Self::add(&mut self.containers, &mut self.names, &self.apex, "ctr", name, addresses);
    }

    fn add(
        to: &mut BTreeMap<Vec<u8>, Addresses>,
        names: &mut BTreeMap<IpAddr, Wire>,
        apex: &Wire,
        kind: &str,
        name: &str,
        addresses: &[IpAddr],
    ) {
        let label = name.to_ascii_lowercase();
        if !is_label(&label) {
            return;
        }
        let entry = to.entry(label.clone().into_bytes()).or_default();
        for ip in addresses {
            entry.add(*ip);
            if !names.contains_key(ip)
                && let Ok(wire) = Wire::from_str(&format!("{label}.{kind}.{apex}."))
            {
                names.insert(*ip, wire);
            }
        }
    }

    /// Moves when the content does.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Names of hosts and of containers.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (self.hosts.len(), self.containers.len())
    }

    /// What a name is; its labels come with the leftmost first, without the root.
    #[must_use]
    pub fn find(&self, labels: &[&[u8]]) -> Found<'_> {
        if let Some(rest) = below(labels, &self.labels) {
            return self.find_own(rest);
        }
        for (suffix, ipv4) in [([&b"in-addr"[..], b"arpa"], true), ([b"ip6", b"arpa"], false)] {
            if let Some(rest) = below(labels, &suffix) {
                return self.find_reverse(rest, ipv4);
            }
        }
        Found::Elsewhere
    }

    fn find_own(&self, rest: &[&[u8]]) -> Found<'_> {
        let Some((kind, rest)) = rest.split_last() else { return Found::Apex };
        let kind = Kind::ALL.into_iter().find(|(name, _)| kind.eq_ignore_ascii_case(name)).map(|(_, kind)| kind);
        let (kind, label) = match (kind, rest) {
            (None, _) => return Found::Nothing,
            (Some(_), []) => return Found::Empty,
            (Some(kind), [label]) => (kind, label.to_ascii_lowercase()),
            (Some(_), _) => return Found::Nothing,
        };
        let found = match kind {
            Kind::Node => self.hosts.get(&label).map(Found::Addresses),
            Kind::Container => self.containers.get(&label).map(Found::Addresses),
            Kind::Server => (label == b"ns").then_some(Found::Addresses(&self.own)),
            Kind::Address => digits(&label).filter(|ip| self.is_inside(*ip)).map(Found::Address),
        };
        found.unwrap_or(Found::Nothing)
    }

    fn find_reverse(&self, rest: &[&[u8]], ipv4: bool) -> Found<'_> {
        let Some(asked) = reverse::parse(rest, ipv4) else {
            return Found::Elsewhere;
        };
        if !self.prefixes.iter().any(|(prefix, _)| prefix.covers(&asked)) {
            return Found::Elsewhere;
        }
        if usize::from(asked.len()) < if ipv4 { 32 } else { 128 } {
            return Found::Empty;
        }
        self.names.get(&asked.addr()).map_or(Found::Nothing, Found::Pointer)
    }

    fn is_inside(&self, ip: IpAddr) -> bool {
        self.prefixes.iter().any(|(prefix, _)| prefix.contains(ip))
    }

    /// The name of the zone that a name of ours lies in.
    pub(crate) fn zone_of(&self, labels: &[&[u8]]) -> &Wire {
        let mut fitting: Option<&Wire> = None;
        for (suffix, ipv4) in [([&b"in-addr"[..], b"arpa"], true), ([b"ip6", b"arpa"], false)] {
            let Some(asked) = below(labels, &suffix).and_then(|rest| reverse::parse(rest, ipv4)) else { continue };
            fitting = self.prefixes.iter().find(|(prefix, _)| prefix.covers(&asked)).map(|(_, wire)| wire);
        }
        fitting.unwrap_or(&self.apex)
    }
}

/// The second level of names.
#[derive(Clone, Copy)]
enum Kind {
    Node,
    Container,
    Address,
    Server,
}

impl Kind {
    const ALL: [(&'static [u8], Self); 4] =
        [(b"node", Self::Node), (b"ctr", Self::Container), (b"addr", Self::Address), (b"dns", Self::Server)];
}

/// The labels in front of a suffix, if the name ends with it.
fn below<'a, 'b, S: AsRef<[u8]>>(labels: &'a [&'b [u8]], suffix: &[S]) -> Option<&'a [&'b [u8]]> {
    let at = labels.len().checked_sub(suffix.len())?;
    let (rest, end) = labels.split_at(at);
    end.iter().zip(suffix).all(|(have, want)| have.eq_ignore_ascii_case(want.as_ref())).then_some(rest)
}

fn digits(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    match text.len() {
        8 => u32::from_str_radix(text, 16).ok().map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        32 => u128::from_str_radix(text, 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn zone() -> Zone {
        let prefixes = ["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()];
        let own = ["10.42.1.1".parse().unwrap(), "fd42:0:0:1::1".parse().unwrap()];
        let mut zone = Zone::new("Overlay.Internal.", &prefixes, &own, 7).unwrap();
        zone.add_host("H1", &own);
        zone.add_host("not a label", &own);
        zone.add_container("web", &["10.42.1.4".parse().unwrap(), "fd42:0:0:1::4".parse().unwrap()]);
        zone.add_container("web", &["10.42.2.4".parse().unwrap()]);
        zone.add_container("only6", &["fd42:0:0:1::6".parse().unwrap()]);
        zone
    }

    fn find(zone: &Zone, name: &str) -> String {
        let labels: Vec<&[u8]> = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect();
        format!("{:?}", zone.find(&labels)).split(['(', ' ']).next().unwrap().to_owned()
    }

    #[test]
    fn each_kind_of_name_is_found_and_the_rest_is_not_ours() {
        let zone = zone();
        for (name, what) in [
            ("overlay.internal", "Apex"),
            ("h1.node.overlay.internal", "Addresses"),
            ("H1.NODE.Overlay.INTERNAL", "Addresses"),
            ("h2.node.overlay.internal", "Nothing"),
            ("x.h1.node.overlay.internal", "Nothing"),
            ("node.overlay.internal", "Empty"),
            ("ctr.overlay.internal", "Empty"),
            ("web.ctr.overlay.internal", "Addresses"),
            ("ns.dns.overlay.internal", "Addresses"),
            ("nx.dns.overlay.internal", "Nothing"),
            ("other.overlay.internal", "Nothing"),
            ("0a2a0107.addr.overlay.internal", "Address"),
            ("c0000201.addr.overlay.internal", "Nothing"),
            ("+a2a0107.addr.overlay.internal", "Nothing"),
            ("4.1.42.10.in-addr.arpa", "Pointer"),
            ("9.1.42.10.in-addr.arpa", "Nothing"),
            ("1.42.10.in-addr.arpa", "Empty"),
            ("10.in-addr.arpa", "Elsewhere"),
            ("x.42.10.in-addr.arpa", "Elsewhere"),
            ("1.2.0.192.in-addr.arpa", "Elsewhere"),
            ("internal", "Elsewhere"),
            ("example.org", "Elsewhere"),
            ("", "Elsewhere"),
        ] {
            assert_eq!(find(&zone, name), what, "{name}");
        }
        assert_eq!(zone.count(), (1, 2));
    }

    #[test]
    fn domain_that_is_no_name_is_refused() {
        for bad in ["", ".", "a..b", "-a.b", "a b", &"x".repeat(64)] {
            assert!(Zone::new(bad, &[], &[], 1).is_err(), "{bad:?}");
        }
        assert!(Zone::new("internal", &[], &[], 1).is_ok());
    }
}

//! The file as written: every key optional, every value with its place, nothing checked against anything else.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use overlay_wire::policy::{DefaultPolicy, Rule};
use overlay_wire::{Encapsulation, Mtu};

use crate::key::PublicKey;
use crate::problem::{Place, Problem};
use crate::reader::{
    Endpoint, Located, Name, Section, Source, UnicastIp, UnicastPrefix, expect, integer, kind, quote, string,
};
use crate::types::{Grant, LogLevel};

type Value<T> = Option<Located<T>>;
type List<T> = Option<Located<Vec<Located<T>>>>;

/// One text as written.
#[derive(Default)]
pub(crate) struct Raw {
    /// Whether the file itself makes this host a member: it names the host, the pool or other members.
    pub(crate) is_static: bool,
    /// What is missing for that.
    pub(crate) required: Vec<Problem>,
    pub(crate) node: RawNode,
    pub(crate) overlay: RawOverlay,
    pub(crate) plumbing: RawPlumbing,
    pub(crate) members: Vec<RawMember>,
    pub(crate) peers: Vec<RawPeer>,
    pub(crate) sets: Vec<RawSet>,
    pub(crate) policy: RawPolicy,
    pub(crate) conntrack_entries: Value<u32>,
    pub(crate) capture_back_seconds: Value<u32>,
    pub(crate) state_dir: Value<PathBuf>,
    pub(crate) runtime_dir: Value<PathBuf>,
    pub(crate) socket: Value<PathBuf>,
    pub(crate) log_level: Value<LogLevel>,
    pub(crate) metrics_listen: Value<Option<SocketAddr>>,
    pub(crate) dns_enabled: Value<bool>,
    pub(crate) dns_domain: Value<String>,
    pub(crate) dns_forward: List<IpAddr>,
}

#[derive(Default)]
pub(crate) struct RawNode {
    pub(crate) place: Option<Place>,
    pub(crate) name: Value<Name>,
    pub(crate) identity_file: Value<PathBuf>,
    pub(crate) prefixes: List<UnicastPrefix>,
    pub(crate) announce: List<UnicastPrefix>,
    pub(crate) endpoints: List<Endpoint>,
}

#[derive(Default)]
pub(crate) struct RawOverlay {
    pub(crate) cluster: Value<Name>,
    pub(crate) pool: List<UnicastPrefix>,
    pub(crate) interface: Value<String>,
    pub(crate) listen_port: Value<u16>,
    pub(crate) mtu: Value<Option<Mtu>>,
    pub(crate) encapsulation: Value<Encapsulation>,
    pub(crate) trusted_underlay: List<UnicastPrefix>,
    pub(crate) offload: Value<bool>,
    pub(crate) private_key_file: Value<PathBuf>,
}

#[derive(Default)]
pub(crate) struct RawPlumbing {
    pub(crate) table_local: Value<u32>,
    pub(crate) table_overlay: Value<u32>,
    pub(crate) table_egress: Value<u32>,
    pub(crate) rule_priority: Value<u32>,
    pub(crate) route_protocol: Value<u8>,
    pub(crate) mark_container: Value<u32>,
    pub(crate) mark_socket: Value<u32>,
    pub(crate) group: Value<u32>,
    pub(crate) nft_table: Value<String>,
    pub(crate) masquerade: Value<bool>,
}

pub(crate) struct RawMember {
    pub(crate) path: String,
    pub(crate) place: Place,
    pub(crate) name: Value<Name>,
    pub(crate) identity: Value<PublicKey>,
    pub(crate) endpoint: Value<Endpoint>,
    pub(crate) allow: List<Grant>,
    pub(crate) encapsulation: Value<Encapsulation>,
}

pub(crate) struct RawPeer {
    pub(crate) path: String,
    pub(crate) place: Place,
    pub(crate) name: Value<Name>,
    pub(crate) allowed_ips: List<UnicastPrefix>,
    pub(crate) kind: RawKind,
}

pub(crate) enum RawKind {
    Wireguard {
        public_key: Value<PublicKey>,
        endpoint: Value<Endpoint>,
        preshared_key_file: Value<PathBuf>,
        persistent_keepalive: Value<u16>,
    },
    Gre {
        endpoint: Value<UnicastIp>,
        key: Value<u32>,
        checksum: Value<bool>,
        sequence: Value<bool>,
    },
    Ipip {
        endpoint: Value<UnicastIp>,
    },
}

/// An encapsulation set for a member by the command line.
pub(crate) struct RawSet {
    pub(crate) path: String,
    pub(crate) name: Value<Name>,
    pub(crate) encapsulation: Value<Encapsulation>,
}

#[derive(Default)]
pub(crate) struct RawPolicy {
    pub(crate) place: Option<Place>,
    pub(crate) default: Value<DefaultPolicy>,
    pub(crate) rules: List<Rule>,
}

const INLINE_SECRET: &str = "secrets are never written in the configuration";

/// Reads a configuration file.
pub(crate) fn read_file(source: &mut Source<'_>) -> Raw {
    let table = source.parse();
    if !source.problems.is_empty() {
        // What a broken text says further on is guesswork.
        return Raw::default();
    }
    let mut root = Section::root(source, &table);
    let mut raw = Raw::default();
    raw.node = node(source, &mut root, &mut raw.required);
    raw.overlay = overlay(source, &mut root, &mut raw.required);
    // What was written and refused counts as written: of three keys, each is either required or there.
    raw.is_static = raw.required.len() < 3 || root.has("member");
    raw.plumbing = plumbing(source, &mut root);
    raw.members = root.tables(source, "member").into_iter().map(|section| member(source, section)).collect();
    raw.peers = root.tables(source, "peer").into_iter().map(|section| peer(source, section)).collect();
    raw.policy = policy(source, &mut root);
    let mut limits = root.table(source, "limits");
    raw.conntrack_entries = limits.integer(source, "conntrack_entries", 1024..=16_777_216);
    raw.capture_back_seconds = limits.integer(source, "capture_back_seconds", 0..=300);
    limits.finish(source);
    let mut paths = root.table(source, "paths");
    raw.state_dir = paths.path(source, "state_dir");
    raw.runtime_dir = paths.path(source, "runtime_dir");
    raw.socket = paths.path(source, "socket");
    paths.finish(source);
    let mut log = root.table(source, "log");
    raw.log_level = log.text(source, "level", "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"");
    log.finish(source);
    let mut metrics = root.table(source, "metrics");
    raw.metrics_listen =
        metrics.value(source, "listen", "an address and port, as in \"127.0.0.1:9821\", or \"off\"", |value| {
            let text = string(value)?;
            if text == "off" {
                return Ok(None);
            }
            let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
            address.map(Some).ok_or_else(|| format!("got {}", quote(text)))
        });
    metrics.finish(source);
    let mut dns = root.table(source, "dns");
    raw.dns_enabled = dns.boolean(source, "enabled");
    raw.dns_domain =
        dns.value(source, "domain", "a domain of lower-case labels, as in \"overlay.internal\"", |value| {
            let text = string(value)?;
            let fits = text.len() <= 64 && text.split('.').all(overlay_wire::gossip::names::is_label);
            if fits { Ok(text.to_owned()) } else { Err(format!("got {}", quote(text))) }
        });
    raw.dns_forward = dns.list(source, "forward", "an address of a server, as in \"192.0.2.53\"");
    dns.finish(source);
    root.finish(source);
    raw
}

/// Reads the layer that the command line keeps: the keys it may change, and its format version.
pub(crate) fn read_layer(source: &mut Source<'_>) -> Raw {
    let table = source.parse();
    if !source.problems.is_empty() {
        return Raw::default();
    }
    let mut root = Section::root(source, &table);
    let version: Value<i64> = root.value(source, "version", "1, the only version this program knows", |value| {
        let version = integer(value)?;
        if version == 1 { Ok(version) } else { Err(format!("version {version} was written by another release")) }
    });
    if version.is_none() {
        root.missing(source, "version", "1");
        return Raw::default();
    }
    let mut raw = Raw::default();
    let mut node = root.table(source, "node");
    raw.node.announce = node.list(source, "announce", expect::PREFIX);
    node.finish(source);
    let mut overlay = root.table(source, "overlay");
    raw.overlay.encapsulation = overlay.text(source, "encapsulation", expect::ENCAPSULATION);
    overlay.finish(source);
    raw.policy = policy(source, &mut root);
    raw.peers = root.tables(source, "peer").into_iter().map(|section| peer(source, section)).collect();
    raw.sets = root.tables(source, "set").into_iter().map(|section| set(source, section)).collect();
    root.finish(source);
    raw
}

fn node(source: &mut Source<'_>, root: &mut Section<'_>, required: &mut Vec<Problem>) -> RawNode {
    let mut section = root.table(source, "node");
    let node = RawNode {
        place: Some(section.place.clone()),
        name: section.text(source, "name", expect::NAME),
        identity_file: section.path(source, "identity_file"),
        prefixes: section.list(source, "prefixes", expect::PREFIX),
        announce: section.list(source, "announce", expect::PREFIX),
        endpoints: section.list(source, "endpoints", expect::ENDPOINT),
    };
    section.refuse(source, "identity", INLINE_SECRET, "`identity_file`, the path of a file of mode 0600");
    required.extend(section.lacks("name", expect::NAME));
    required.extend(section.lacks("prefixes", "the prefixes of this host's containers, as in [\"10.42.1.0/24\"]"));
    section.finish(source);
    node
}

fn overlay(source: &mut Source<'_>, root: &mut Section<'_>, required: &mut Vec<Problem>) -> RawOverlay {
    let mut section = root.table(source, "overlay");
    let overlay = RawOverlay {
        cluster: section.text(source, "cluster", expect::NAME),
        pool: section.list(source, "pool", expect::PREFIX),
        interface: section.value(
            source,
            "interface",
            "an interface name: 1 to 15 characters without `/` and spaces",
            |value| {
                let name = string(value)?;
                if is_interface(name) { Ok(name.to_owned()) } else { Err(format!("got {}", quote(name))) }
            },
        ),
        listen_port: section.integer(source, "listen_port", 1..=65_535),
        mtu: section.value(source, "mtu", "an integer from 576 to 65535, or \"auto\"", |value| {
            if value.as_str() == Some("auto") {
                return Ok(None);
            }
            let number = integer(value).map_err(|_| kind(value))?;
            let mtu = u16::try_from(number).ok().and_then(|bytes| Mtu::new(bytes).ok());
            mtu.map(Some).ok_or_else(|| format!("{number} is out of range"))
        }),
        encapsulation: section.text(source, "encapsulation", expect::ENCAPSULATION),
        trusted_underlay: section.list(source, "trusted_underlay", expect::PREFIX),
        offload: section.boolean(source, "offload"),
        private_key_file: section.path(source, "private_key_file"),
    };
    section.refuse(source, "private_key", INLINE_SECRET, "`private_key_file`, the path of a file of mode 0600");
    required.extend(section.lacks("pool", "the prefixes all hosts share, as in [\"10.42.0.0/16\"]"));
    section.finish(source);
    overlay
}

fn plumbing(source: &mut Source<'_>, root: &mut Section<'_>) -> RawPlumbing {
    const TABLE: std::ops::RangeInclusive<i64> = 1..=4_294_967_295;
    let mut section = root.table(source, "plumbing");
    let mut tables = section.table(source, "tables");
    let (table_local, table_overlay, table_egress) = (
        tables.integer(source, "local", TABLE),
        tables.integer(source, "overlay", TABLE),
        tables.integer(source, "egress", TABLE),
    );
    tables.finish(source);
    let plumbing = RawPlumbing {
        table_local,
        table_overlay,
        table_egress,
        rule_priority: section.integer(source, "rule_priority", 1..=32_000),
        route_protocol: section.integer(source, "route_protocol", 5..=255),
        mark_container: section.integer(source, "mark_container", 1..=4_294_967_295),
        mark_socket: section.integer(source, "mark_socket", 1..=4_294_967_295),
        group: section.integer(source, "group", 1..=4_294_967_295),
        nft_table: section.value(source, "nft_table", "a name of letters, digits and `_`, at most 31", |value| {
            let name = string(value)?;
            let good = name.len() <= 31
                && name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if good { Ok(name.to_owned()) } else { Err(format!("got {}", quote(name))) }
        }),
        masquerade: section.boolean(source, "masquerade"),
    };
    section.finish(source);
    plumbing
}

fn member(source: &mut Source<'_>, mut section: Section<'_>) -> RawMember {
    let member = RawMember {
        path: section.path.clone(),
        place: section.place.clone(),
        name: section.text(source, "name", expect::NAME),
        identity: section.text(source, "identity", expect::KEY),
        endpoint: section.text(source, "endpoint", expect::ENDPOINT),
        allow: section.list(source, "allow", expect::GRANT),
        encapsulation: section.text(source, "encapsulation", expect::ENCAPSULATION),
    };
    if member.name.is_none() {
        section.missing(source, "name", expect::NAME);
    }
    if member.identity.is_none() {
        section.missing(source, "identity", "the member's public identity, printed there by `overlayctl key public`");
    }
    if member.allow.is_none() {
        section.missing(source, "allow", "what the member may announce, as in [\"10.42.2.0/24\"]");
    }
    section.finish(source);
    member
}

fn peer(source: &mut Source<'_>, mut section: Section<'_>) -> RawPeer {
    let name = section.text(source, "name", expect::NAME);
    let allowed_ips = section.list(source, "allowed_ips", expect::PREFIX);
    let encapsulation: Value<Encapsulation> = section.text(source, "encapsulation", expect::ENCAPSULATION);
    let kind = match encapsulation.map_or(Encapsulation::Wireguard, |written| written.value) {
        Encapsulation::Wireguard => {
            for key in ["gre_key", "gre_checksum", "gre_sequence"] {
                section.refuse(source, key, "not a key of a WireGuard peer", "encapsulation = \"gre\" beside it");
            }
            let expected = "`preshared_key_file`, the path of a file of mode 0600";
            section.refuse(source, "preshared_key", INLINE_SECRET, expected);
            RawKind::Wireguard {
                public_key: section.text(source, "public_key", expect::KEY),
                endpoint: section.text(source, "endpoint", expect::ENDPOINT),
                preshared_key_file: section.path(source, "preshared_key_file"),
                persistent_keepalive: section.integer(source, "persistent_keepalive", 0..=65_535),
            }
        }
        plain => {
            for key in ["public_key", "preshared_key_file", "persistent_keepalive"] {
                let what = format!("not a key of a peer with encapsulation {plain}");
                section.refuse(source, key, &what, "encapsulation = \"wireguard\" beside it");
            }
            let endpoint = section.text(source, "endpoint", expect::IP);
            if endpoint.is_none() {
                section.missing(source, "endpoint", expect::IP);
            }
            if plain == Encapsulation::Gre {
                RawKind::Gre {
                    endpoint,
                    key: section.integer(source, "gre_key", 0..=4_294_967_295),
                    checksum: section.boolean(source, "gre_checksum"),
                    sequence: section.boolean(source, "gre_sequence"),
                }
            } else {
                for key in ["gre_key", "gre_checksum", "gre_sequence"] {
                    section.refuse(source, key, "not a key of an ipip peer", "encapsulation = \"gre\" beside it");
                }
                RawKind::Ipip { endpoint }
            }
        }
    };
    if name.is_none() {
        section.missing(source, "name", expect::NAME);
    }
    if allowed_ips.is_none() {
        section.missing(source, "allowed_ips", "the prefixes behind the peer, as in [\"10.99.0.0/24\"]");
    }
    if matches!(kind, RawKind::Wireguard { public_key: None, .. }) {
        section.missing(source, "public_key", expect::KEY);
    }
    let peer = RawPeer { path: section.path.clone(), place: section.place.clone(), name, allowed_ips, kind };
    section.finish(source);
    peer
}

fn set(source: &mut Source<'_>, mut section: Section<'_>) -> RawSet {
    let set = RawSet {
        path: section.path.clone(),
        name: section.text(source, "name", expect::NAME),
        encapsulation: section.text(source, "encapsulation", expect::ENCAPSULATION),
    };
    if set.name.is_none() {
        section.missing(source, "name", expect::NAME);
    }
    if set.encapsulation.is_none() {
        section.missing(source, "encapsulation", expect::ENCAPSULATION);
    }
    section.finish(source);
    set
}

fn policy(source: &mut Source<'_>, root: &mut Section<'_>) -> RawPolicy {
    let written = root.has("policy");
    let mut section = root.table(source, "policy");
    let policy = RawPolicy {
        place: written.then(|| section.place.clone()),
        default: section.text(source, "default", "\"open\", \"members\" or \"deny\""),
        rules: section.list(source, "rules", "a rule, as in \"allow tcp/443 from any to 10.42.1.0/24\""),
    };
    section.finish(source);
    policy
}

fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

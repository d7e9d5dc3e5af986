//! Raw → checked: fills in defaults, merges the CLI layer over the file, verifies values against each other.

mod cross;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use overlay_wire::policy::PolicySet;
use overlay_wire::{Encapsulation, Prefix};

use crate::defaults;
use crate::effective::{OriginLayer, Origins};
use crate::membership::MembershipLayer;
use crate::problem::{Place, Problem, Problems};
use crate::raw::{self, Raw, RawKind, RawMember, RawPeer};
use crate::reader::{Located, Name, Source, UnicastPrefix};
use crate::types::{
    Config, Dns, ForeignKind, ForeignPeer, Limits, Log, Member, Metrics, Node, Overlay, Paths, Plumbing, Role,
};

/// The largest configuration text read, in bytes: thousands of members fit.
const MAX_TEXT_BYTES: u64 = 4 << 20;

impl Config {
    /// Checks a configuration text; `name` is what problems call it.
    ///
    /// # Errors
    /// Every problem found.
    pub fn parse(text: &str, name: &str) -> Result<Self, Problems> {
        Self::parse_layers(text, name, None)
    }

    /// Checks a configuration text with the layer of the command line merged over it.
    ///
    /// # Errors
    /// Every problem found in either, and every value that both set.
    pub fn parse_layers(text: &str, name: &str, layer: Option<(&str, &str)>) -> Result<Self, Problems> {
        Self::parse_all(text, name, None, layer)
    }

    /// Checks a configuration text over a membership, with the layer of the command line merged over it.
    ///
    /// # Errors
    /// Every problem found in either, and every value that two of them settle.
    pub fn parse_all(
        text: &str,
        name: &str,
        membership: Option<&MembershipLayer>,
        layer: Option<(&str, &str)>,
    ) -> Result<Self, Problems> {
        let mut source = Source::new(name, text);
        let file = raw::read_file(&mut source);
        let mut checker = Checker { problems: source.problems, origins: Origins::default() };
        let cli = layer.map(|(text, name)| {
            let mut source = Source::new(name, text);
            let raw = raw::read_layer(&mut source);
            checker.problems.append(&mut source.problems);
            raw
        });
        checker.finish(file, membership, cli.unwrap_or_default())
    }

    /// Reads and checks a configuration file and the CLI layer in its state directory, where there is one.
    ///
    /// # Errors
    /// When a file cannot be read, and every problem found in them.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        Self::load_text(&read_text(path)?, path, None)
    }

    /// Checks a configuration text as the file `path` over a membership, with the CLI layer in its state directory, where
    /// there is one.
    ///
    /// # Errors
    /// When the layer cannot be read, and every problem found.
    pub fn load_text(text: &str, path: &Path, membership: Option<&MembershipLayer>) -> Result<Self, Problems> {
        let name = path.display().to_string();
        // The state directory is known only from the file itself.
        let layer_path = state_dir(text, &name).join("cli-layer.toml");
        if !layer_path.exists() {
            return Self::parse_all(text, &name, membership, None);
        }
        let layer = read_text(&layer_path)?;
        Self::parse_all(text, &name, membership, Some((&layer, &layer_path.display().to_string())))
    }

    /// The text of a configuration file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn text(path: &Path) -> Result<String, Problems> {
        read_text(path)
    }

    /// The text of a configuration file; a missing file is an empty one.
    ///
    /// # Errors
    /// When there is a file that cannot be read.
    pub fn text_or_empty(path: &Path) -> Result<String, Problems> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            _ => read_text(path),
        }
    }

    /// The state directory that a configuration text names, whatever else is wrong with it.
    #[must_use]
    pub fn state_dir_of(text: &str, path: &Path) -> PathBuf {
        state_dir(text, &path.display().to_string())
    }

    /// Reads and checks a configuration file alone.
    ///
    /// # Errors
    /// When the file cannot be read, and every problem found in it.
    pub fn load_file(path: &Path) -> Result<Self, Problems> {
        Self::parse(&read_text(path)?, &path.display().to_string())
    }
}

/// Reads a configuration text of bounded size.
///
/// # Errors
/// When the file cannot be read, is too large or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String, Problems> {
    let problem = |what: String, expected: &str| {
        let place = Place { file: path.display().to_string().into(), line: 0 };
        Problems(vec![Problem { place, key: String::new(), what, expected: expected.to_owned() }])
    };
    let metadata = std::fs::metadata(path).map_err(|error| problem(format!("{error}"), "a readable file"))?;
    if !metadata.is_file() || metadata.len() > MAX_TEXT_BYTES {
        return Err(problem("not a regular file of at most 4 MiB".to_owned(), "a configuration file"));
    }
    std::fs::read_to_string(path).map_err(|error| problem(format!("{error}"), "a readable file of UTF-8 text"))
}

fn state_dir(text: &str, name: &str) -> PathBuf {
    let raw = raw::read_file(&mut Source::new(name, text));
    raw.state_dir.map_or_else(|| PathBuf::from(defaults::STATE_DIR), |located| located.value)
}

/// Gathers problems and origins while values are taken.
struct Checker {
    problems: Vec<Problem>,
    origins: Origins,
}

impl Checker {
    /// Takes a value from the file, or its default.
    fn take<T>(&mut self, key: &str, value: Option<Located<T>>, default: impl FnOnce() -> T) -> T {
        match self.optional(key, value) {
            Some(value) => value,
            None => default(),
        }
    }

    /// Takes a value that may be absent.
    fn optional<T>(&mut self, key: &str, value: Option<Located<T>>) -> Option<T> {
        let located = value?;
        self.origins.0.insert(key.to_owned(), (OriginLayer::File, located.place));
        Some(located.value)
    }

    /// Takes a list; each element's place is kept under `KEY[INDEX]` for the cross checks.
    fn list<T, U>(&mut self, key: &str, list: Option<Located<Vec<Located<T>>>>, convert: impl Fn(T) -> U) -> Vec<U> {
        let Some(list) = self.optional(key, list) else { return Vec::new() };
        let mut values = Vec::with_capacity(list.len());
        for (index, element) in list.into_iter().enumerate() {
            self.origins.0.insert(format!("{key}[{index}]"), (OriginLayer::File, element.place));
            values.push(convert(element.value));
        }
        values
    }

    fn problem(&mut self, key: &str, what: String, expected: &str) {
        let place = self.place(key);
        self.problems.push(Problem { place, key: shown(key), what, expected: expected.to_owned() });
    }

    /// The place of a key, or of the nearest written key above it.
    fn place(&self, key: &str) -> Place {
        let mut key = key;
        loop {
            if let Some((_, place)) = self.origins.0.get(key) {
                return place.clone();
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => {
                    return self
                        .origins
                        .0
                        .get("")
                        .map_or(Place { file: "".into(), line: 0 }, |(_, place)| place.clone());
                }
            }
        }
    }

    fn finish(mut self, mut file: Raw, membership: Option<&MembershipLayer>, cli: Raw) -> Result<Config, Problems> {
        let role = match membership {
            Some(membership) => {
                self.lay_below(&mut file, membership);
                Role::Certified
            }
            None if file.is_static => {
                self.problems.append(&mut file.required);
                Role::Static
            }
            None => Role::Standby,
        };
        let file_place = file.node.place.clone();
        if let Some(place) = file_place {
            let place = Place { line: 0, ..place };
            self.origins.0.insert(String::new(), (OriginLayer::File, place));
        }
        let paths = self.paths(file.state_dir, file.runtime_dir, file.socket);
        let node = self.node(file.node, &paths);
        let overlay = self.overlay(file.overlay);
        let plumbing = self.plumbing(file.plumbing);
        let members = file.members.into_iter().map(|raw| self.member(raw)).collect::<Vec<_>>();
        let peers = file.peers.into_iter().map(|raw| self.peer(raw, OriginLayer::File)).collect::<Vec<_>>();
        let policy = PolicySet {
            default: self.take("policy.default", file.policy.default, || defaults::POLICY),
            rules: self.list("policy.rules", file.policy.rules, |rule| rule),
        };
        let limits = Limits {
            conntrack_entries: self
                .take("limits.conntrack_entries", file.conntrack_entries, || defaults::CONNTRACK_ENTRIES),
            capture_back_seconds: self
                .take("limits.capture_back_seconds", file.capture_back_seconds, || defaults::CAPTURE_BACK_SECONDS),
        };
        let log = Log { level: self.take("log.level", file.log_level, || defaults::LOG_LEVEL) };
        let metrics =
            Metrics { listen: self.take("metrics.listen", file.metrics_listen, || Some(defaults::METRICS_LISTEN)) };
        let is_forward_written = file.dns_forward.is_some();
        let forward = self.list("dns.forward", file.dns_forward, |address| address);
        let dns = Dns {
            enabled: self.take("dns.enabled", file.dns_enabled, || defaults::DNS_ENABLED),
            domain: self.take("dns.domain", file.dns_domain, || defaults::DNS_DOMAIN.to_owned()),
            forward: is_forward_written.then_some(forward),
        };
        if !self.problems.is_empty() {
            // Values that were refused are missing now: cross checks would report the same thing again, differently.
            return Err(self.sorted());
        }
        if let Some(membership) = membership {
            for (layer, place) in self.origins.0.values_mut() {
                if *place.file == *membership.place {
                    *layer = OriginLayer::Membership;
                }
            }
        }
        let mut parts = Parts {
            role,
            node,
            overlay,
            members: members.into_iter().flatten().collect(),
            certified: BTreeMap::new(),
            peers: peers.into_iter().flatten().collect(),
            policy,
        };
        self.merge(&mut parts, cli);
        self.cross_checks(&parts, &plumbing);
        if !self.problems.is_empty() {
            return Err(self.sorted());
        }
        let Parts { role, node, overlay, members, certified, peers, policy } = parts;
        Ok(Config {
            role,
            node,
            overlay,
            plumbing,
            members,
            certified,
            peers,
            policy,
            limits,
            paths,
            log,
            metrics,
            dns,
            origins: self.origins,
        })
    }

    /// Fills what the file leaves open from a membership, and refuses what both settle.
    fn lay_below(&mut self, file: &mut Raw, membership: &MembershipLayer) {
        let place = Place { file: membership.place.as_str().into(), line: 0 };
        let written = [
            ("node.name", file.node.name.as_ref().map(|value| &value.place)),
            ("node.prefixes", file.node.prefixes.as_ref().map(|value| &value.place)),
            ("overlay.cluster", file.overlay.cluster.as_ref().map(|value| &value.place)),
            ("overlay.pool", file.overlay.pool.as_ref().map(|value| &value.place)),
        ];
        for (key, written) in written {
            if let Some(written) = written {
                self.problems.push(Problem {
                    place: written.clone(),
                    key: key.to_owned(),
                    what: format!("set here and also by this host's membership of {}", membership.cluster),
                    expected: "one of the two; `overlayctl leave` gives the membership up".to_owned(),
                });
            }
        }
        let list = |prefixes: &[Prefix]| Located {
            value: prefixes
                .iter()
                .map(|prefix| Located { value: UnicastPrefix(*prefix), place: place.clone() })
                .collect::<Vec<_>>(),
            place: place.clone(),
        };
        file.node.name = Some(Located { value: Name(membership.name.clone()), place: place.clone() });
        file.node.prefixes = Some(list(&membership.prefixes));
        file.overlay.cluster = Some(Located { value: Name(membership.cluster.clone()), place: place.clone() });
        file.overlay.pool = Some(list(&membership.pool));
        // Unencrypted packets need a trusted underlay written for this very host; the cluster's wish is none.
        let is_trusting = file.overlay.trusted_underlay.is_some() || !membership.trusted_underlay.is_empty();
        let wanted = membership.encapsulation.filter(|wanted| wanted.is_encrypted() || is_trusting);
        if let (None, Some(value)) = (&file.overlay.encapsulation, wanted) {
            file.overlay.encapsulation = Some(Located { value, place: place.clone() });
        }
        if file.overlay.trusted_underlay.is_none() && !membership.trusted_underlay.is_empty() {
            file.overlay.trusted_underlay = Some(list(&membership.trusted_underlay));
        }
        if let (None, Some(value)) = (&file.overlay.listen_port, membership.listen_port) {
            file.overlay.listen_port = Some(Located { value, place: place.clone() });
        }
        if let (None, Some(value)) = (&file.policy.default, membership.policy) {
            file.policy.default = Some(Located { value, place: place.clone() });
        }
    }

    /// Whether the file or the command line wrote a value, and not the membership alone.
    fn is_written(&self, key: &str) -> bool {
        self.origins.0.get(key).is_some_and(|(layer, _)| *layer != OriginLayer::Membership)
    }

    fn sorted(mut self) -> Problems {
        self.problems.sort();
        self.problems.dedup();
        Problems(self.problems)
    }

    fn paths(
        &mut self,
        state_dir: Option<Located<PathBuf>>,
        runtime_dir: Option<Located<PathBuf>>,
        socket: Option<Located<PathBuf>>,
    ) -> Paths {
        let state_dir = self.take("paths.state_dir", state_dir, || defaults::STATE_DIR.into());
        let runtime_dir = self.take("paths.runtime_dir", runtime_dir, || defaults::RUNTIME_DIR.into());
        let socket = self.take("paths.socket", socket, || runtime_dir.join(defaults::SOCKET_NAME));
        Paths { state_dir, runtime_dir, socket }
    }

    fn node(&mut self, raw: raw::RawNode, paths: &Paths) -> Node {
        Node {
            name: self.take("node.name", raw.name.map(|name| name.map(|name| name.0)), String::new),
            identity_file: self
                .take("node.identity_file", raw.identity_file, || paths.state_dir.join(defaults::IDENTITY_NAME)),
            prefixes: self.list("node.prefixes", raw.prefixes, |prefix| prefix.0),
            announce: self.list("node.announce", raw.announce, |prefix| prefix.0),
            endpoints: self.list("node.endpoints", raw.endpoints, |endpoint| endpoint.0),
        }
    }

    fn overlay(&mut self, raw: raw::RawOverlay) -> Overlay {
        let cluster = raw.cluster.map(|name| name.map(|name| name.0));
        Overlay {
            cluster: self.take("overlay.cluster", cluster, || defaults::CLUSTER.to_owned()),
            pool: self.list("overlay.pool", raw.pool, |prefix| prefix.0),
            interface: self.take("overlay.interface", raw.interface, || defaults::INTERFACE.to_owned()),
            listen_port: self.take("overlay.listen_port", raw.listen_port, || defaults::LISTEN_PORT),
            mtu: self.take("overlay.mtu", raw.mtu, || None),
            encapsulation: self.take("overlay.encapsulation", raw.encapsulation, || defaults::ENCAPSULATION),
            trusted_underlay: self.list("overlay.trusted_underlay", raw.trusted_underlay, |prefix| prefix.0),
            offload: self.take("overlay.offload", raw.offload, || defaults::OFFLOAD),
            private_key_file: self.optional("overlay.private_key_file", raw.private_key_file),
        }
    }

    fn plumbing(&mut self, raw: raw::RawPlumbing) -> Plumbing {
        Plumbing {
            table_local: self.take("plumbing.tables.local", raw.table_local, || defaults::TABLE_LOCAL),
            table_overlay: self.take("plumbing.tables.overlay", raw.table_overlay, || defaults::TABLE_OVERLAY),
            table_egress: self.take("plumbing.tables.egress", raw.table_egress, || defaults::TABLE_EGRESS),
            rule_priority: self.take("plumbing.rule_priority", raw.rule_priority, || defaults::RULE_PRIORITY),
            route_protocol: self.take("plumbing.route_protocol", raw.route_protocol, || defaults::ROUTE_PROTOCOL),
            mark_container: self.take("plumbing.mark_container", raw.mark_container, || defaults::MARK_CONTAINER),
            mark_socket: self.take("plumbing.mark_socket", raw.mark_socket, || defaults::MARK_SOCKET),
            group: self.take("plumbing.group", raw.group, || defaults::GROUP),
            nft_table: self.take("plumbing.nft_table", raw.nft_table, || defaults::NFT_TABLE.to_owned()),
            masquerade: self.take("plumbing.masquerade", raw.masquerade, || defaults::MASQUERADE),
        }
    }

    /// Checks one member; `None` when a problem that makes it unusable was reported while reading.
    fn member(&mut self, raw: RawMember) -> Option<Member> {
        let (name, identity) = (raw.name?, raw.identity?);
        let path = raw.path;
        self.origins.0.entry(path.clone()).or_insert((OriginLayer::File, raw.place));
        let member = Member {
            identity: self.optional(&format!("{path}.identity"), Some(identity))?,
            endpoint: self.optional(&format!("{path}.endpoint"), raw.endpoint).map(|endpoint| endpoint.0),
            allow: self.list(&format!("{path}.allow"), raw.allow, |grant| grant),
            encapsulation: self.optional(&format!("{path}.encapsulation"), raw.encapsulation),
            name: name.value.0,
        };
        Some(member)
    }

    /// Checks one foreign peer; `None` when a problem that makes it unusable was reported while reading.
    fn peer(&mut self, raw: RawPeer, layer: OriginLayer) -> Option<ForeignPeer> {
        let path = raw.path;
        let key = |name: &str| format!("{path}.{name}");
        let before: Vec<String> = self.origins.0.keys().cloned().collect();
        self.origins.0.entry(path.clone()).or_insert((layer, raw.place));
        let kind = match raw.kind {
            RawKind::Wireguard { public_key, endpoint, preshared_key_file, persistent_keepalive } => {
                ForeignKind::Wireguard {
                    public_key: self.optional(&key("public_key"), public_key)?,
                    endpoint: self.optional(&key("endpoint"), endpoint).map(|endpoint| endpoint.0),
                    preshared_key_file: self.optional(&key("preshared_key_file"), preshared_key_file),
                    persistent_keepalive: self
                        .optional(&key("persistent_keepalive"), persistent_keepalive)
                        .filter(|seconds| *seconds > 0),
                }
            }
            RawKind::Gre { endpoint, key: gre_key, checksum, sequence } => ForeignKind::Gre {
                endpoint: self.optional(&key("endpoint"), endpoint)?.0,
                key: self.optional(&key("gre_key"), gre_key),
                checksum: self.take(&key("gre_checksum"), checksum, || false),
                sequence: self.take(&key("gre_sequence"), sequence, || false),
            },
            RawKind::Ipip { endpoint } => ForeignKind::Ipip { endpoint: self.optional(&key("endpoint"), endpoint)?.0 },
        };
        let allowed_ips = self.list(&key("allowed_ips"), raw.allowed_ips, |prefix| prefix.0);
        if layer == OriginLayer::Cli {
            for (key, origin) in &mut self.origins.0 {
                if key.starts_with(&path) && before.binary_search(key).is_err() {
                    origin.0 = OriginLayer::Cli;
                }
            }
        }
        Some(ForeignPeer { name: raw.name?.value.0, allowed_ips, kind })
    }

    /// Merges what the command line set over the file; what both set is refused with both places.
    fn merge(&mut self, parts: &mut Parts, cli: Raw) {
        for prefix in cli.node.announce.map(|list| list.value).unwrap_or_default() {
            let (value, place) = (prefix.value.0, prefix.place);
            if let Some(index) = parts.node.announce.iter().position(|have| *have == value) {
                self.clash(
                    place,
                    "node.announce",
                    &format!("node.announce[{index}]"),
                    &format!("overlayctl route rm {value}"),
                );
                continue;
            }
            let key = format!("node.announce[{}]", parts.node.announce.len());
            self.origins.0.insert(key, (OriginLayer::Cli, place.clone()));
            self.origins.0.insert("node.announce".to_owned(), (OriginLayer::Cli, place));
            parts.node.announce.push(value);
        }
        if let Some(encapsulation) = cli.overlay.encapsulation {
            let undo = "overlayctl peer set --default encapsulation=config";
            self.set("overlay.encapsulation", encapsulation, &mut parts.overlay.encapsulation, undo);
        }
        if let Some(place) = cli.policy.place {
            // A file that spells out the defaults has no opinion of its own.
            let default = parts.policy.default != defaults::POLICY && self.is_written("policy.default");
            let written = [("policy.default", default), ("policy.rules", !parts.policy.rules.is_empty())];
            if let Some((key, _)) = written.into_iter().find(|(_, opinion)| *opinion) {
                self.clash(place, "policy", key, "overlayctl policy apply --local --reset");
            } else {
                if let Some(default) = cli.policy.default {
                    self.origins.0.insert("policy.default".to_owned(), (OriginLayer::Cli, default.place));
                    parts.policy.default = default.value;
                }
                if let Some(rules) = cli.policy.rules {
                    self.origins.0.insert("policy.rules".to_owned(), (OriginLayer::Cli, rules.place));
                    parts.policy.rules = rules.value.into_iter().map(|rule| rule.value).collect();
                }
            }
        }
        for set in cli.sets {
            let (Some(name), Some(encapsulation)) = (set.name, set.encapsulation) else { continue };
            let undo = format!("overlayctl peer set {} encapsulation=config", name.value.0);
            let key = format!("member[{}].encapsulation", name.value.0);
            match parts.members.iter_mut().find(|member| member.name == name.value.0) {
                // Members by certificate come and go without the file.
                None if parts.role == Role::Certified => {
                    self.origins.0.insert(key, (OriginLayer::Cli, encapsulation.place));
                    parts.certified.insert(name.value.0, encapsulation.value);
                }
                None => self.problems.push(Problem {
                    place: name.place,
                    key: set.path,
                    what: "no such member in the configuration file".to_owned(),
                    expected: format!("a member's name; `{undo}` removes this entry"),
                }),
                Some(member) => {
                    let mut value = member.encapsulation.unwrap_or(encapsulation.value);
                    self.set(&key, encapsulation, &mut value, &undo);
                    member.encapsulation = Some(value);
                }
            }
        }
        for raw in cli.peers {
            let clash = parts.peers.iter().find(|peer| Some(&peer.name) == raw.name.as_ref().map(|name| &name.value.0));
            if let Some(peer) = clash {
                let (path, undo) = (raw.path.clone(), format!("overlayctl peer rm {}", peer.name));
                self.clash(raw.place, &path, &path, &undo);
                continue;
            }
            let peer = self.peer(raw, OriginLayer::Cli);
            parts.peers.extend(peer);
        }
    }

    fn set<T>(&mut self, key: &str, new: Located<T>, value: &mut T, undo: &str) {
        if self.is_written(key) {
            self.clash(new.place, key, key, undo);
        } else {
            self.origins.0.insert(key.to_owned(), (OriginLayer::Cli, new.place));
            *value = new.value;
        }
    }

    fn clash(&mut self, cli: Place, key: &str, file_key: &str, undo: &str) {
        let file = self.place(file_key);
        self.problems.push(Problem {
            place: cli,
            key: key.to_owned(),
            what: format!("set here by the command line and also at {file}"),
            expected: format!("one of the two; `{undo}` drops the change made by the command line"),
        });
    }
}

impl<T> Located<T> {
    fn map<U>(self, convert: impl FnOnce(T) -> U) -> Located<U> {
        Located { value: convert(self.value), place: self.place }
    }
}

/// What the layers and the cross checks work on.
struct Parts {
    role: Role,
    node: Node,
    overlay: Overlay,
    members: Vec<Member>,
    certified: BTreeMap<String, Encapsulation>,
    peers: Vec<ForeignPeer>,
    policy: PolicySet,
}

/// A key path as shown: without the index of a list element.
fn shown(key: &str) -> String {
    match key.rfind('[') {
        Some(start) if key.ends_with(']') && key[start + 1..key.len() - 1].bytes().all(|b| b.is_ascii_digit()) => {
            key[..start].to_owned()
        }
        _ => key.to_owned(),
    }
}

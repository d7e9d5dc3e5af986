//! The configuration in force as flat settings, each with its origin.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::problem::Place;
use crate::types::{Config, ForeignKind};

/// Which layer a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OriginLayer {
    /// The table of defaults.
    Default,
    /// The membership that `init` or `join` made.
    Membership,
    /// The configuration file.
    File,
    /// A change made by the command line.
    Cli,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The layer.
    pub layer: OriginLayer,
    /// The file, absent for a default.
    pub file: Option<String>,
    /// The line in the file, from 1.
    pub line: Option<usize>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            _ if self.layer == OriginLayer::Membership => f.write_str("membership"),
            (Some(file), Some(line)) => write!(f, "{file}:{line}"),
            (Some(file), None) => f.write_str(file),
            (None, _) => f.write_str("default"),
        }
    }
}

/// One value in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The key path.
    pub key: String,
    /// The value as text; a list element is one setting with `[]` behind the key.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// The place of every value that is not a default.
#[derive(Debug, Clone, Default)]
pub struct Origins(pub(crate) BTreeMap<String, (OriginLayer, Place)>);

impl Origins {
    /// Where the value of `key` came from. A key below a written one (a list element) has the written one's place.
    #[must_use]
    pub fn of(&self, key: &str) -> Origin {
        match self.0.get(key) {
            Some((layer, place)) => Origin {
                layer: *layer,
                file: Some(place.file.to_string()),
                line: (place.line > 0).then_some(place.line),
            },
            None => Origin { layer: OriginLayer::Default, file: None, line: None },
        }
    }
}

impl Config {
    /// Every value in force in file order, each with its origin. No secret is among them: a configuration holds none.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        self.values()
            .into_iter()
            .map(|(key, value)| {
                let origin = self.origins.of(&key);
                Setting { key, value, origin }
            })
            .collect()
    }

    /// Every value in force as (key path, text), in file order.
    pub(crate) fn values(&self) -> Vec<(String, String)> {
        let mut out = Values(Vec::new());
        let (node, overlay, plumbing) = (&self.node, &self.overlay, &self.plumbing);
        out.put("node.name", &node.name);
        out.put("node.identity_file", node.identity_file.display());
        out.list("node.prefixes", &node.prefixes);
        out.list("node.announce", &node.announce);
        out.list("node.endpoints", &node.endpoints);
        out.put("overlay.cluster", &overlay.cluster);
        out.list("overlay.pool", &overlay.pool);
        out.put("overlay.interface", &overlay.interface);
        out.put("overlay.listen_port", overlay.listen_port);
        out.put("overlay.mtu", overlay.mtu.map_or_else(|| "auto".to_owned(), |mtu| mtu.to_string()));
        out.put("overlay.encapsulation", overlay.encapsulation);
        out.list("overlay.trusted_underlay", &overlay.trusted_underlay);
        out.put("overlay.offload", overlay.offload);
        out.optional("overlay.private_key_file", overlay.private_key_file.as_ref().map(|path| path.display()));
        out.put("plumbing.tables.local", plumbing.table_local);
        out.put("plumbing.tables.overlay", plumbing.table_overlay);
        out.put("plumbing.tables.egress", plumbing.table_egress);
        out.put("plumbing.rule_priority", plumbing.rule_priority);
        out.put("plumbing.route_protocol", plumbing.route_protocol);
        out.put("plumbing.mark_container", format!("{:#x}", plumbing.mark_container));
        out.put("plumbing.mark_socket", format!("{:#x}", plumbing.mark_socket));
        out.put("plumbing.group", plumbing.group);
        out.put("plumbing.nft_table", &plumbing.nft_table);
        out.put("plumbing.masquerade", plumbing.masquerade);
        for member in &self.members {
            let key = |name: &str| format!("member[{}].{name}", member.name);
            out.put(&key("identity"), member.identity);
            out.optional(&key("endpoint"), member.endpoint);
            out.list(&key("allow"), &member.allow);
            out.optional(&key("encapsulation"), member.encapsulation);
        }
        for (name, encapsulation) in &self.certified {
            out.put(&format!("member[{name}].encapsulation"), encapsulation);
        }
        for peer in &self.peers {
            let key = |name: &str| format!("peer[{}].{name}", peer.name);
            out.put(&key("encapsulation"), peer.kind.encapsulation());
            out.list(&key("allowed_ips"), &peer.allowed_ips);
            match &peer.kind {
                ForeignKind::Wireguard { public_key, endpoint, preshared_key_file, persistent_keepalive } => {
                    out.put(&key("public_key"), public_key);
                    out.optional(&key("endpoint"), *endpoint);
                    out.optional(&key("preshared_key_file"), preshared_key_file.as_ref().map(|path| path.display()));
                    out.optional(&key("persistent_keepalive"), *persistent_keepalive);
                }
                ForeignKind::Gre { endpoint, key: gre_key, checksum, sequence } => {
                    out.put(&key("endpoint"), endpoint);
                    out.optional(&key("gre_key"), *gre_key);
                    out.put(&key("gre_checksum"), checksum);
                    out.put(&key("gre_sequence"), sequence);
                }
                ForeignKind::Ipip { endpoint } => out.put(&key("endpoint"), endpoint),
            }
        }
        out.put("policy.default", self.policy.default);
        out.list("policy.rules", &self.policy.rules);
        out.put("limits.conntrack_entries", self.limits.conntrack_entries);
        out.put("limits.capture_back_seconds", self.limits.capture_back_seconds);
        out.put("paths.state_dir", self.paths.state_dir.display());
        out.put("paths.runtime_dir", self.paths.runtime_dir.display());
        out.put("paths.socket", self.paths.socket.display());
        out.put("log.level", self.log.level.name());
        out.put("dns.enabled", self.dns.enabled);
        out.put("dns.domain", &self.dns.domain);
        if let Some(forward) = &self.dns.forward {
            out.list("dns.forward", forward);
        }
        out.put("metrics.listen", self.metrics.listen.map_or_else(|| "off".to_owned(), |listen| listen.to_string()));
        out.0
    }
}

struct Values(Vec<(String, String)>);

impl Values {
    fn put(&mut self, key: &str, value: impl fmt::Display) {
        self.0.push((key.to_owned(), value.to_string()));
    }

    fn optional(&mut self, key: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn list(&mut self, key: &str, list: &[impl fmt::Display]) {
        let texts: Vec<String> = list.iter().map(ToString::to_string).collect();
        self.put(key, format!("[{}]", texts.join(", ")));
    }
}

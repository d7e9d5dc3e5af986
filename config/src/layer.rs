//! The CLI layer: changes made by `overlayctl`, kept beside the file and merged over it.
//!
//! The layer is written in the same language as the file, with a `version` of its own. It is replaced whole: a new file
//! is written, synced and renamed over the old one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use overlay_wire::policy::PolicySet;
use overlay_wire::{Encapsulation, Prefix};

use crate::check::read_text;
use crate::problem::Problems;
use crate::raw::{self, RawKind};
use crate::reader::Source;
use crate::types::{ForeignKind, ForeignPeer};

/// Changes made by the command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layer {
    /// Prefixes announced in addition to the file's.
    pub announce: Vec<Prefix>,
    /// The encapsulation that replaces the default one.
    pub encapsulation: Option<Encapsulation>,
    /// The encapsulation set per member.
    pub member_encapsulation: BTreeMap<String, Encapsulation>,
    /// Foreign peers in addition to the file's.
    pub peers: Vec<ForeignPeer>,
    /// The policy, where the file has none.
    pub policy: Option<PolicySet>,
}

impl Layer {
    /// Parses the text of a layer; `name` is what problems call it.
    ///
    /// # Errors
    /// Every problem found; a version this program does not know is one.
    pub fn parse(text: &str, name: &str) -> Result<Self, Problems> {
        let mut source = Source::new(name, text);
        let raw = raw::read_layer(&mut source);
        if !source.problems.is_empty() {
            return Err(Problems(source.problems));
        }
        let announce = raw.node.announce.map(|list| list.value).unwrap_or_default();
        let policy = raw.policy.place.map(|_| PolicySet {
            default: raw.policy.default.map_or(crate::defaults::POLICY, |default| default.value),
            rules: raw.policy.rules.map(|list| list.value).unwrap_or_default().into_iter().map(|r| r.value).collect(),
        });
        let set = |set: raw::RawSet| Some((set.name?.value.0, set.encapsulation?.value));
        Ok(Self {
            announce: announce.into_iter().map(|prefix| prefix.value.0).collect(),
            encapsulation: raw.overlay.encapsulation.map(|located| located.value),
            member_encapsulation: raw.sets.into_iter().filter_map(set).collect(),
            peers: raw.peers.into_iter().filter_map(peer).collect(),
            policy,
        })
    }

    /// Reads the layer; a missing file is an empty layer.
    ///
    /// # Errors
    /// When the file cannot be read, and every problem found in it.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            _ => Self::parse(&read_text(path)?, &path.display().to_string()),
        }
    }

    /// Replaces the file in one step that survives a crash at any point.
    ///
    /// # Errors
    /// When the file cannot be written; the old one is still in place then.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let new = path.with_extension("toml.new");
        let result = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(&new)
            .and_then(|mut file| {
                file.write_all(self.to_toml().as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&new, path))
            .and_then(|()| File::open(directory)?.sync_all());
        if result.is_err() {
            // The half-written file may be absent; its removal is a courtesy.
            let _ = std::fs::remove_file(&new);
        }
        result
    }

    /// The layer as text; [`Layer::parse`] reads it back.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::from("# Written by overlayd. Change it with overlayctl.\nversion = 1\n");
        if !self.announce.is_empty() {
            put(&mut out, format_args!("\n[node]\nannounce = {}\n", list(&self.announce)));
        }
        if let Some(encapsulation) = self.encapsulation {
            put(&mut out, format_args!("\n[overlay]\nencapsulation = \"{encapsulation}\"\n"));
        }
        if let Some(policy) = &self.policy {
            put(
                &mut out,
                format_args!("\n[policy]\ndefault = \"{}\"\nrules = {}\n", policy.default, list(&policy.rules)),
            );
        }
        for (name, encapsulation) in &self.member_encapsulation {
            put(&mut out, format_args!("\n[[set]]\nname = {}\nencapsulation = \"{encapsulation}\"\n", quoted(name)));
        }
        for peer in &self.peers {
            let (name, allowed) = (quoted(&peer.name), list(&peer.allowed_ips));
            put(&mut out, format_args!("\n[[peer]]\nname = {name}\nallowed_ips = {allowed}\n"));
            kind_to_toml(&mut out, &peer.kind);
        }
        out
    }
}

fn kind_to_toml(out: &mut String, kind: &ForeignKind) {
    put(out, format_args!("encapsulation = \"{}\"\n", kind.encapsulation()));
    let plain = |out: &mut String, endpoint: &IpAddr| put(out, format_args!("endpoint = \"{endpoint}\"\n"));
    match kind {
        ForeignKind::Wireguard { public_key, endpoint, preshared_key_file, persistent_keepalive } => {
            put(out, format_args!("public_key = \"{public_key}\"\n"));
            if let Some(endpoint) = endpoint {
                let endpoint: &SocketAddr = endpoint;
                put(out, format_args!("endpoint = \"{endpoint}\"\n"));
            }
            if let Some(path) = preshared_key_file {
                put(out, format_args!("preshared_key_file = {}\n", quoted(&path.display().to_string())));
            }
            if let Some(seconds) = persistent_keepalive {
                put(out, format_args!("persistent_keepalive = {seconds}\n"));
            }
        }
        ForeignKind::Gre { endpoint, key, checksum, sequence } => {
            plain(out, endpoint);
            if let Some(key) = key {
                put(out, format_args!("gre_key = {key}\n"));
            }
            put(out, format_args!("gre_checksum = {checksum}\ngre_sequence = {sequence}\n"));
        }
        ForeignKind::Ipip { endpoint } => plain(out, endpoint),
    }
}

fn peer(raw: raw::RawPeer) -> Option<ForeignPeer> {
    let kind = match raw.kind {
        RawKind::Wireguard { public_key, endpoint, preshared_key_file, persistent_keepalive } => {
            ForeignKind::Wireguard {
                public_key: public_key?.value,
                endpoint: endpoint.map(|endpoint| endpoint.value.0),
                preshared_key_file: preshared_key_file.map(|path| path.value),
                persistent_keepalive: persistent_keepalive.map(|seconds| seconds.value).filter(|seconds| *seconds > 0),
            }
        }
        RawKind::Gre { endpoint, key, checksum, sequence } => ForeignKind::Gre {
            endpoint: endpoint?.value.0,
            key: key.map(|key| key.value),
            checksum: checksum.is_some_and(|checksum| checksum.value),
            sequence: sequence.is_some_and(|sequence| sequence.value),
        },
        RawKind::Ipip { endpoint } => ForeignKind::Ipip { endpoint: endpoint?.value.0 },
    };
    let allowed_ips = raw.allowed_ips?.value.into_iter().map(|prefix| prefix.value.0).collect();
    Some(ForeignPeer { name: raw.name?.value.0, allowed_ips, kind })
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String does not fail");
}

fn list(values: &[impl ToString]) -> String {
    let texts: Vec<String> = values.iter().map(|value| quoted(&value.to_string())).collect();
    format!("[{}]", texts.join(", "))
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => put(&mut out, format_args!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

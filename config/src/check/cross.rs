//! Checks of values against each other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_wire::gossip::body::{MAX_ENDPOINTS, MAX_HOST_PREFIXES, MAX_ROUTES_PER_RECORD};
use overlay_wire::{Encapsulation, Prefix};

use super::{Checker, Parts};
use crate::defaults;
use crate::key::PublicKey;
use crate::types::{ForeignKind, Plumbing, Role};

impl Checker {
    pub(super) fn cross_checks(&mut self, parts: &Parts, plumbing: &Plumbing) {
        self.bounds(parts);
        self.prefixes(parts);
        self.names(parts);
        self.loops(parts);
        self.plain(parts);
        self.foreign(parts);
        self.kernel_numbers(plumbing);
    }

    /// What this host says about itself fits its gossip records.
    fn bounds(&mut self, parts: &Parts) {
        for (key, count, most) in [
            ("node.prefixes", parts.node.prefixes.len(), MAX_HOST_PREFIXES),
            ("node.announce", parts.node.announce.len(), MAX_ROUTES_PER_RECORD),
            ("node.endpoints", parts.node.endpoints.len(), MAX_ENDPOINTS),
        ] {
            if count > most {
                self.problem(key, format!("{count} entries do not fit a gossip record"), &format!("at most {most}"));
            }
        }
    }

    /// Own prefixes lie inside the pool, apart from each other, and have room for containers.
    fn prefixes(&mut self, parts: &Parts) {
        let is_member = parts.role != Role::Standby;
        if is_member && parts.node.prefixes.is_empty() {
            self.problem("node.prefixes", "empty list".to_owned(), "at least one prefix for this host's containers");
        }
        if is_member && parts.overlay.pool.is_empty() {
            self.problem("overlay.pool", "empty list".to_owned(), "at least one prefix that all hosts share");
        }
        for (index, prefix) in parts.overlay.pool.iter().enumerate() {
            let key = format!("overlay.pool[{index}]");
            if prefix.len() == 0 {
                self.problem(&key, format!("{prefix} is the whole address space"), "a smaller prefix");
            }
            if let Some(other) = parts.overlay.pool[..index].iter().find(|other| other.overlaps(prefix)) {
                self.problem(&key, format!("{prefix} overlaps {other}"), "pool prefixes that share no address");
            }
        }
        for (index, prefix) in parts.node.prefixes.iter().enumerate() {
            let key = format!("node.prefixes[{index}]");
            if !parts.overlay.pool.iter().any(|pool| pool.covers(prefix)) {
                let pool = join(&parts.overlay.pool);
                self.problem(&key, format!("{prefix} lies outside the pool"), &format!("a prefix inside {pool}"));
            }
            if prefix.nth(u128::from(defaults::RESERVED_ADDRESSES)).is_none() {
                let longest = if prefix.is_ipv4() { 29 } else { 125 };
                let what = format!("{prefix} has no address left for containers: the first four are reserved");
                self.problem(&key, what, &format!("length {longest} or shorter"));
            }
            if let Some(other) = parts.node.prefixes[..index].iter().find(|other| other.overlaps(prefix)) {
                self.problem(&key, format!("{prefix} overlaps {other}"), "own prefixes that share no address");
            }
        }
        for (index, prefix) in parts.node.announce.iter().enumerate() {
            let key = format!("node.announce[{index}]");
            if parts.node.announce[..index].contains(prefix) {
                self.problem(&key, format!("{prefix} is written twice"), "each prefix once");
            }
            if parts.node.prefixes.contains(prefix) {
                let what = format!("{prefix} is already announced as this host's own prefix");
                self.problem(&key, what, "prefixes behind this host other than node.prefixes");
            }
        }
    }

    /// Names and keys name one thing each.
    fn names(&mut self, parts: &Parts) {
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        let mut identities: BTreeMap<PublicKey, &str> = BTreeMap::new();
        for member in &parts.members {
            let key = format!("member[{}]", member.name);
            if names.insert(&member.name, "member").is_some() {
                self.problem(&key, format!("two members are named {}", member.name), "a name used once");
            }
            if let Some(other) = identities.insert(member.identity, &member.name).filter(|other| *other != member.name)
            {
                let what = format!("{} and {other} have the same identity", member.name);
                let expected =
                    "one identity per host; a cloned machine needs a key of its own (`overlayctl key generate`)";
                self.problem(&format!("{key}.identity"), what, expected);
            }
        }
        let mut keys: BTreeMap<PublicKey, &str> = BTreeMap::new();
        for peer in &parts.peers {
            let path = format!("peer[{}]", peer.name);
            if peer.name == parts.node.name {
                self.problem(&path, format!("{} is this host's own name", peer.name), "a name used once");
            }
            if let Some(other) = names.insert(&peer.name, "peer") {
                self.problem(&path, format!("a {other} is named {} too", peer.name), "a name used once");
            }
            if let ForeignKind::Wireguard { public_key, .. } = &peer.kind
                && let Some(other) = keys.insert(*public_key, &peer.name).filter(|other| *other != peer.name)
            {
                let what = format!("{} and {other} have the same public key", peer.name);
                self.problem(&format!("{path}.public_key"), what, "one key per peer");
            }
        }
    }

    /// No underlay address lies inside the overlay: packets to it would be carried to it, for ever.
    fn loops(&mut self, parts: &Parts) {
        let mut overlay: Vec<(Prefix, String)> = Vec::new();
        let mut add = |prefix: &Prefix, what: String| {
            // A default route through a peer is usual; marked sockets go past it.
            if prefix.len() > 0 {
                overlay.push((*prefix, what));
            }
        };
        parts.overlay.pool.iter().for_each(|prefix| add(prefix, "overlay.pool".to_owned()));
        parts.node.announce.iter().for_each(|prefix| add(prefix, "node.announce".to_owned()));
        for member in &parts.members {
            member.allow.iter().for_each(|grant| add(&grant.prefix(), format!("member[{}].allow", member.name)));
        }
        for peer in &parts.peers {
            peer.allowed_ips.iter().for_each(|prefix| add(prefix, format!("peer[{}].allowed_ips", peer.name)));
        }
        let mut check = |key: &str, ip: IpAddr| {
            if let Some((prefix, whose)) = overlay.iter().find(|(prefix, _)| prefix.contains(ip)) {
                let what = format!("{ip} lies inside the overlay prefix {prefix} ({whose})");
                self.problem(key, what, "an underlay address outside every overlay prefix, else packets would loop");
            }
        };
        for (index, endpoint) in parts.node.endpoints.iter().enumerate() {
            check(&format!("node.endpoints[{index}]"), endpoint.ip());
        }
        for member in &parts.members {
            if let Some(endpoint) = member.endpoint {
                check(&format!("member[{}].endpoint", member.name), endpoint.ip());
            }
        }
        for peer in &parts.peers {
            if let Some(ip) = peer.kind.endpoint_ip() {
                check(&format!("peer[{}].endpoint", peer.name), ip);
            }
        }
    }

    /// Unencrypted encapsulations are used inside a trusted underlay only.
    fn plain(&mut self, parts: &Parts) {
        let trusted = &parts.overlay.trusted_underlay;
        let is_trusted = |ip: IpAddr| trusted.iter().any(|prefix| prefix.contains(ip));
        let expected = if trusted.is_empty() {
            "overlay.trusted_underlay = [\"PREFIX\"] that holds both underlay addresses, or wireguard".to_owned()
        } else {
            format!("an underlay address inside overlay.trusted_underlay ({}), or wireguard", join(trusted))
        };
        let global = parts.overlay.encapsulation;
        let mut any_plain = !global.is_encrypted();
        if any_plain && trusted.is_empty() {
            let what = format!("{global} is neither encrypted nor authenticated, and no underlay is trusted");
            self.problem("overlay.encapsulation", what, &expected);
        }
        for member in &parts.members {
            let encapsulation = member.encapsulation.unwrap_or(global);
            if encapsulation.is_encrypted() {
                continue;
            }
            any_plain = true;
            let own = format!("member[{}].encapsulation", member.name);
            let key = if member.encapsulation.is_some() { own } else { format!("member[{}].endpoint", member.name) };
            match member.endpoint {
                Some(endpoint) if is_trusted(endpoint.ip()) => {}
                // Reported once, at overlay.encapsulation.
                Some(_) if trusted.is_empty() && member.encapsulation.is_none() => {}
                Some(endpoint) => {
                    let what = format!("{encapsulation} to {} would cross an untrusted underlay", endpoint.ip());
                    self.problem(&key, what, &expected);
                }
                None => {
                    let what = format!("{encapsulation} needs a known underlay address, and endpoint is missing");
                    self.problem(&key, what, "endpoint = \"ADDRESS:PORT\", or wireguard");
                }
            }
        }
        for peer in &parts.peers {
            let encapsulation = peer.kind.encapsulation();
            if let Some(ip) = peer.kind.endpoint_ip().filter(|ip| !encapsulation.is_encrypted() && !is_trusted(*ip)) {
                let what = format!("{encapsulation} to {ip} would cross an untrusted underlay");
                self.problem(&format!("peer[{}].endpoint", peer.name), what, &expected);
            }
            any_plain |= !encapsulation.is_encrypted();
        }
        let endpoints = &parts.node.endpoints;
        if any_plain && !trusted.is_empty() && !endpoints.is_empty() && !endpoints.iter().any(|e| is_trusted(e.ip())) {
            let what = "no own endpoint lies inside overlay.trusted_underlay".to_owned();
            self.problem("node.endpoints", what, "an own underlay address that is trusted, or no unencrypted peer");
        }
    }

    /// Foreign peers: a key to talk to them with, and addresses nobody else has.
    fn foreign(&mut self, parts: &Parts) {
        let mut plain: BTreeMap<(IpAddr, Encapsulation, Option<u32>), &str> = BTreeMap::new();
        for peer in &parts.peers {
            let path = format!("peer[{}]", peer.name);
            match &peer.kind {
                ForeignKind::Wireguard { .. } => {
                    if parts.overlay.private_key_file.is_none() {
                        let what = "a WireGuard peer needs a key of this host that does not change at every start";
                        let expected = "overlay.private_key_file = \"/PATH\" (make one with `wg genkey`, mode 0600)";
                        self.problem(&path, what.to_owned(), expected);
                    }
                }
                ForeignKind::Gre { endpoint, key, .. } => {
                    if let Some(other) = plain.insert((*endpoint, Encapsulation::Gre, *key), &peer.name) {
                        let what = format!("{other} has the same endpoint and gre_key");
                        self.problem(&format!("{path}.endpoint"), what, "one peer per endpoint and key");
                    }
                }
                ForeignKind::Ipip { endpoint } => {
                    if let Some(other) = plain.insert((*endpoint, Encapsulation::Ipip, None), &peer.name) {
                        let what = format!("{other} has the same endpoint");
                        self.problem(&format!("{path}.endpoint"), what, "one ipip peer per endpoint");
                    }
                }
            }
            for (index, prefix) in peer.allowed_ips.iter().enumerate() {
                let key = format!("{path}.allowed_ips[{index}]");
                if let Some(own) = parts.node.prefixes.iter().find(|own| own.covers(prefix)) {
                    self.problem(
                        &key,
                        format!("{prefix} lies inside this host's own {own}"),
                        "prefixes behind the peer",
                    );
                }
                let other = parts.peers.iter().take_while(|other| other.name != peer.name);
                let other = other.filter(|other| other.allowed_ips.contains(prefix)).map(|other| &other.name).next();
                if let Some(other) = other {
                    self.problem(&key, format!("{prefix} belongs to peer {other} too"), "each prefix behind one peer");
                }
            }
        }
    }

    /// Kernel numbers do not collide with each other or with the kernel's own.
    fn kernel_numbers(&mut self, plumbing: &Plumbing) {
        let tables = [
            ("plumbing.tables.local", plumbing.table_local),
            ("plumbing.tables.overlay", plumbing.table_overlay),
            ("plumbing.tables.egress", plumbing.table_egress),
        ];
        for (index, (key, table)) in tables.iter().enumerate() {
            if (253..=255).contains(table) {
                self.problem(key, format!("{table} is a table of the kernel"), "a table of our own, as in 1001");
            }
            if tables[..index].iter().any(|(_, other)| other == table) {
                self.problem(key, format!("{table} is used twice"), "three different tables");
            }
        }
        for (key, mark) in
            [("plumbing.mark_container", plumbing.mark_container), ("plumbing.mark_socket", plumbing.mark_socket)]
        {
            if !mark.is_power_of_two() {
                self.problem(key, format!("{mark:#x} is not a single bit"), "one bit, as in 0x100");
            }
        }
        if plumbing.mark_container & plumbing.mark_socket != 0 {
            let what = format!("{:#x} is plumbing.mark_container too", plumbing.mark_socket);
            self.problem("plumbing.mark_socket", what, "two different bits");
        }
    }
}

fn join(prefixes: &[Prefix]) -> String {
    prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

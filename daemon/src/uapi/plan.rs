//! What a `set=1` comes to: the foreign peers of the CLI layer as they shall be, or a refusal. Pure: files are read
//! through a function and written by the caller.
//!
//! Only foreign WireGuard peers of the CLI layer change. Members, peers of the configuration file and the interface itself
//! are fixed: the same value is accepted, any other is refused. A request that describes the interface whole
//! (`wg setconf`, `wg syncconf`) keeps what is fixed without being asked.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_config::{ForeignKind, ForeignPeer, PublicKey};
use overlay_wire::Prefix;

use super::request::{Allowed, PeerChange, Secret, Set};
use crate::wireguard::{Keys, PublicKeyBytes, is_low_order};

/// A peer that the interface shows and does not change.
#[derive(Debug, Clone, Default)]
pub(super) struct Fixed {
    /// Its name.
    pub(super) name: String,
    /// Its WireGuard key.
    pub(super) public_key: PublicKeyBytes,
    /// Where its datagrams go.
    pub(super) endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; zero for none.
    pub(super) keepalive: u16,
    /// Its preshared key file.
    pub(super) preshared_key_file: Option<PathBuf>,
    /// What is behind it.
    pub(super) subnets: Vec<Prefix>,
    /// How it is changed instead.
    pub(super) instead: &'static str,
}

/// What is in force.
pub(super) struct Present {
    /// Our public key.
    pub(super) public_key: PublicKeyBytes,
    /// Our UDP port.
    pub(super) listen_port: u16,
    /// The mark of our datagrams.
    pub(super) fwmark: u32,
    /// Whether our key is kept, so that foreign peers can know it.
    pub(super) has_key_file: bool,
    /// Members and peers of the file.
    pub(super) fixed: Vec<Fixed>,
    /// Names of members and peers of every kind.
    pub(super) names: BTreeSet<String>,
    /// Where preshared keys are written.
    pub(super) directory: PathBuf,
}

/// What is to be done.
#[derive(Default)]
pub(super) struct Plan {
    /// The foreign peers of the CLI layer, all kinds.
    pub(super) peers: Vec<ForeignPeer>,
    /// Preshared keys to write before that.
    pub(super) secrets: Vec<(PathBuf, Secret)>,
}

/// Why nothing is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The error number of the answer.
    pub(super) errno: i32,
    /// What was asked for and why it is refused.
    pub(super) what: String,
    /// What to do instead.
    pub(super) next: String,
}

fn not_permitted(what: impl Into<String>, next: impl Into<String>) -> Refusal {
    Refusal { errno: libc::EPERM, what: what.into(), next: next.into() }
}

/// Works out what the layer's peers become. `read` reads a preshared key file.
///
/// # Errors
/// When any part of the request is refused: nothing is to be done then.
pub(super) fn plan(
    set: &Set,
    present: &Present,
    layer: &[ForeignPeer],
    read: &dyn Fn(&Path) -> Option<Secret>,
    token: u32,
) -> Result<Plan, Refusal> {
    interface(set, present)?;
    let mut planner = Planner { set, present, old: layer, read, token, plan: Plan::default() };
    let keep = |peer: &&ForeignPeer| !set.replace_peers || key_of(peer).is_none();
    planner.plan.peers = layer.iter().filter(keep).cloned().collect();
    for change in &set.peers {
        planner.peer(change)?;
    }
    Ok(planner.plan)
}

/// The interface's own values may be repeated, not changed.
fn interface(set: &Set, present: &Present) -> Result<(), Refusal> {
    let whole = set.is_whole();
    if let Some(key) = &set.private_key {
        let unnamed = whole && **key == [0; 32];
        if !unnamed && Keys::from_secret(**key).public() != present.public_key {
            return Err(not_permitted(
                "the private key differs from the one in use",
                "write it to overlay.private_key_file and restart overlayd",
            ));
        }
    }
    if let Some(port) = set.listen_port.filter(|port| *port != present.listen_port && !(whole && *port == 0)) {
        return Err(not_permitted(
            format!("listen port {port} differs from {}", present.listen_port),
            "set overlay.listen_port on every host and restart overlayd",
        ));
    }
    if let Some(mark) = set.fwmark.filter(|mark| *mark != present.fwmark && !(whole && *mark == 0)) {
        return Err(not_permitted(
            format!("mark {mark:#x} differs from {:#x}", present.fwmark),
            "set plumbing.mark_socket and restart overlayd",
        ));
    }
    Ok(())
}

fn key_of(peer: &ForeignPeer) -> Option<PublicKeyBytes> {
    match &peer.kind {
        ForeignKind::Wireguard { public_key, .. } => Some(public_key.0),
        ForeignKind::Gre { .. } | ForeignKind::Ipip { .. } => None,
    }
}

struct Planner<'a> {
    set: &'a Set,
    present: &'a Present,
    old: &'a [ForeignPeer],
    read: &'a dyn Fn(&Path) -> Option<Secret>,
    token: u32,
    plan: Plan,
}

impl Planner<'_> {
    fn peer(&mut self, change: &PeerChange) -> Result<(), Refusal> {
        if change.public_key == self.present.public_key {
            // As the kernel does: a file shared by all hosts may name this one too.
            return Ok(());
        }
        if let Some(fixed) = self.present.fixed.iter().find(|fixed| fixed.public_key == change.public_key) {
            return self.fixed(change, fixed);
        }
        let place = self.plan.peers.iter().position(|peer| key_of(peer) == Some(change.public_key));
        if change.remove {
            place.map(|place| self.plan.peers.remove(place));
            return Ok(());
        }
        let place = match place {
            Some(place) => place,
            None if change.update_only => return Ok(()),
            None => self.add(change.public_key)?,
        };
        self.change(place, change)
    }

    /// A member or a peer of the file: what is asked must be what is there.
    fn fixed(&self, change: &PeerChange, fixed: &Fixed) -> Result<(), Refusal> {
        if change.remove && self.set.is_whole() {
            return Ok(());
        }
        let preshared = || fixed.preshared_key_file.as_deref().and_then(self.read);
        let differs = if change.remove {
            Some("removed")
        } else if change.endpoint.is_some_and(|endpoint| Some(endpoint) != fixed.endpoint) {
            Some("moved to another endpoint")
        } else if change.keepalive.is_some_and(|seconds| seconds != fixed.keepalive) {
            Some("given another keepalive interval")
        } else if change.preshared_key.as_ref().is_some_and(|key| **key != *preshared().unwrap_or_default()) {
            Some("given another preshared key")
        } else {
            let mut subnets = if change.replace_allowed_ips { Vec::new() } else { fixed.subnets.clone() };
            apply(&mut subnets, &change.allowed_ips);
            let (wanted, have): (BTreeSet<&Prefix>, BTreeSet<&Prefix>) =
                (subnets.iter().collect(), fixed.subnets.iter().collect());
            // A peer that is named without any detail is not meant to lose its prefixes.
            (wanted != have && !change.allowed_ips.is_empty()).then_some("given other prefixes")
        };
        match differs {
            None => Ok(()),
            Some(how) => Err(not_permitted(format!("{} cannot be {how} here", fixed.name), fixed.instead)),
        }
    }

    fn add(&mut self, public_key: PublicKeyBytes) -> Result<usize, Refusal> {
        let key = PublicKey(public_key);
        if !self.present.has_key_file {
            return Err(not_permitted(
                format!("peer {key} needs a key of this host that stays the same, and there is none"),
                "set overlay.private_key_file (`wg genkey`, mode 0600) and restart overlayd",
            ));
        }
        if is_low_order(&public_key) {
            return Err(Refusal {
                errno: libc::EINVAL,
                what: format!("{key} is not a usable public key"),
                next: "take the key that `wg pubkey` prints for the peer".to_owned(),
            });
        }
        let before = self.old.iter().find(|peer| key_of(peer) == Some(public_key));
        let name = before.map_or_else(|| self.name(&public_key), |peer| peer.name.clone());
        let kind = ForeignKind::Wireguard {
            public_key: key,
            endpoint: None,
            preshared_key_file: None,
            persistent_keepalive: None,
        };
        self.plan.peers.push(ForeignPeer { name, allowed_ips: Vec::new(), kind });
        Ok(self.plan.peers.len() - 1)
    }

    /// `wg-` and the start of the key, longer where another peer is called so.
    fn name(&self, public_key: &PublicKeyBytes) -> String {
        let text = name_text(public_key);
        let taken =
            |name: &String| self.present.names.contains(name) || self.plan.peers.iter().any(|peer| peer.name == *name);
        (8..=text.len())
            .filter_map(|length| text.get(..length))
            .map(|start| format!("wg-{start}"))
            .find(|name| !taken(name))
            .unwrap_or_else(|| format!("wg-{text}"))
    }

    fn change(&mut self, place: usize, change: &PeerChange) -> Result<(), Refusal> {
        for allowed in &change.allowed_ips {
            let Allowed::Add(prefix) = allowed else { continue };
            if let Some(owner) = self.present.fixed.iter().find(|fixed| fixed.subnets.contains(prefix)) {
                let what = format!("{prefix} belongs to {}", owner.name);
                return Err(not_permitted(what, "choose another prefix, or take it away there first"));
            }
            // A prefix has one peer: the last one that asks for it.
            for (other, peer) in self.plan.peers.iter_mut().enumerate() {
                if other != place && key_of(peer).is_some() {
                    peer.allowed_ips.retain(|have| have != prefix);
                }
            }
        }
        let before = self.old.iter().find(|peer| key_of(peer) == Some(change.public_key));
        let before = before.and_then(|peer| match &peer.kind {
            ForeignKind::Wireguard { preshared_key_file, .. } => preshared_key_file.clone(),
            _ => None,
        });
        let Some(peer) = self.plan.peers.get_mut(place) else { return Ok(()) };
        if change.replace_allowed_ips {
            peer.allowed_ips.clear();
        }
        apply(&mut peer.allowed_ips, &change.allowed_ips);
        let ForeignKind::Wireguard { endpoint, preshared_key_file, persistent_keepalive, .. } = &mut peer.kind else {
            return Ok(());
        };
        *endpoint = change.endpoint.or(*endpoint);
        if let Some(seconds) = change.keepalive {
            *persistent_keepalive = (seconds > 0).then_some(seconds);
        }
        if let Some(key) = &change.preshared_key {
            let same = |path: &PathBuf| (self.read)(path).is_some_and(|have| *have == **key);
            *preshared_key_file = if **key == [0; 32] {
                None
            } else if let Some(path) = before.filter(same) {
                Some(path)
            } else {
                // A new file each time: a change that fails leaves the old key where it was.
                let number = self.plan.secrets.len();
                let path = self.present.directory.join(format!("{}.{:08x}.{number}.psk", peer.name, self.token));
                self.plan.secrets.push((path.clone(), key.clone()));
                Some(path)
            };
        }
        Ok(())
    }
}

/// The key in base64 as a name may hold it: lower case, and `x` for what is neither letter nor digit.
fn name_text(public_key: &PublicKeyBytes) -> String {
    let text = STANDARD.encode(public_key);
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { 'x' };
    text.trim_end_matches('=').chars().map(allowed).collect()
}

fn apply(prefixes: &mut Vec<Prefix>, changes: &[Allowed]) {
    let mut set: BTreeSet<Prefix> = prefixes.drain(..).collect();
    for change in changes {
        match change {
            Allowed::Add(prefix) => set.insert(*prefix),
            Allowed::Remove(prefix) => set.remove(prefix),
        };
    }
    prefixes.extend(set);
}

//! The daemon's state as the interface shows it, and its changes through the CLI layer.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use overlay_config::{Config, ForeignKind, secret};
use overlay_control::{ApiError, Code};
use overlay_routing::ownership::Owner;
use overlay_wire::Prefix;
use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

use super::plan::{Fixed, Plan, Present, Refusal, plan};
use super::request::{Secret, Set};
use super::show::{Device, Preshared, Shown};
use crate::backend::Api;
use crate::peers::{Peer, PeerKind};

/// Where preshared keys are kept, below the state directory.
const SECRETS: &str = "uapi";
/// How a member is changed.
const MEMBER_INSTEAD: &str = "members follow gossip and the [[member]] entries of the configuration file";
/// How a peer of the file is changed.
const FILE_INSTEAD: &str = "change its [[peer]] entry in the configuration file and run `overlayctl config reload`";

fn read(path: &Path) -> Option<Secret> {
    secret::read_key(path).ok()
}

impl Api {
    /// What `get=1` shows; secrets for root alone.
    pub(super) fn uapi_device(&self, root: bool) -> Device {
        let core = self.core();
        let config = core.config.load();
        let mut device = Device {
            private_key: config.overlay.private_key_file.as_deref().filter(|_| root).and_then(read),
            listen_port: config.overlay.listen_port,
            fwmark: config.plumbing.mark_socket,
            peers: Vec::new(),
        };
        for (fixed, peer) in self.members() {
            device.peers.push(self.shown(&fixed, peer.as_deref(), Preshared::None));
        }
        for configured in &config.peers {
            let ForeignKind::Wireguard { public_key, endpoint, preshared_key_file, persistent_keepalive } =
                &configured.kind
            else {
                continue;
            };
            let peer = core.find_peer(&PeerKind::ForeignWireguard(public_key.0));
            let learned = peer.as_ref().and_then(|peer| peer.state.lock().path.map(|path| path.to));
            let fixed = Fixed {
                public_key: public_key.0,
                endpoint: learned.or(*endpoint),
                keepalive: persistent_keepalive.unwrap_or(0),
                subnets: configured.allowed_ips.clone(),
                ..Fixed::default()
            };
            let preshared = match preshared_key_file {
                None => Preshared::None,
                Some(path) if root => read(path).map_or(Preshared::Hidden, Preshared::Shown),
                Some(_) => Preshared::Hidden,
            };
            device.peers.push(self.shown(&fixed, peer.as_deref(), preshared));
        }
        device
    }

    fn shown(&self, fixed: &Fixed, peer: Option<&Peer>, preshared: Preshared) -> Shown {
        let handshake = peer.and_then(|peer| peer.state.lock().tunnel.as_ref()?.last_handshake());
        Shown {
            public_key: fixed.public_key,
            preshared,
            endpoint: fixed.endpoint,
            handshake: handshake.and_then(wall_clock),
            tx_bytes: peer.map_or(0, |peer| peer.counters.tx_bytes.load(Relaxed)),
            rx_bytes: peer.map_or(0, |peer| peer.counters.rx_bytes.load(Relaxed)),
            keepalive: fixed.keepalive,
            subnets: fixed.subnets.clone(),
        }
    }

    /// The members whose WireGuard key is known, by name.
    fn members(&self) -> Vec<(Fixed, Option<std::sync::Arc<Peer>>)> {
        let view = self.core().view.load();
        let mut members = Vec::new();
        for member in &view.members {
            let Some(record) = &member.host_record else { continue };
            let peer = self.core().find_peer(&PeerKind::Member(member.host));
            let path = peer.as_ref().and_then(|peer| peer.state.lock().path.map(|path| path.to));
            let owned = view.rib.best().filter(|claim| claim.owner == Owner::Member(member.host));
            let subnets: Vec<Prefix> = owned.map(|claim| claim.prefix).collect();
            let fixed = Fixed {
                name: member.name.clone(),
                public_key: record.wireguard_key,
                endpoint: path.or(member.endpoint),
                subnets,
                instead: MEMBER_INSTEAD,
                ..Fixed::default()
            };
            members.push((fixed, peer));
        }
        members.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        members
    }

    fn present(&self, config: &Config, layer: &overlay_config::Layer) -> Present {
        let mut fixed: Vec<Fixed> = self.members().into_iter().map(|(fixed, _)| fixed).collect();
        for peer in config.peers.iter().filter(|peer| !layer.peers.iter().any(|own| own.name == peer.name)) {
            let ForeignKind::Wireguard { public_key, endpoint, preshared_key_file, persistent_keepalive } = &peer.kind
            else {
                continue;
            };
            fixed.push(Fixed {
                name: peer.name.clone(),
                public_key: public_key.0,
                endpoint: *endpoint,
                keepalive: persistent_keepalive.unwrap_or(0),
                preshared_key_file: preshared_key_file.clone(),
                subnets: peer.allowed_ips.clone(),
                instead: FILE_INSTEAD,
            });
        }
        let names = config.members.iter().map(|member| &member.name).chain(config.peers.iter().map(|peer| &peer.name));
        Present {
            public_key: self.core().keys.public(),
            listen_port: config.overlay.listen_port,
            fwmark: config.plumbing.mark_socket,
            has_key_file: config.overlay.private_key_file.is_some(),
            fixed,
            names: names.chain([&config.node.name]).cloned().collect(),
            directory: config.paths.state_dir.join(SECRETS),
        }
    }

    /// Does what a `set=1` asks for, whole or not at all; the error number, zero when it is done.
    pub(super) async fn uapi_set(&self, set: &Set) -> i32 {
        let mut refused: Option<Refusal> = None;
        let mut written = Vec::new();
        let outcome = self
            .change_layer(|layer, config| {
                let present = self.present(config, layer);
                let plan = plan(set, &present, &layer.peers, &read, OsRng.next_u32()).map_err(|refusal| {
                    let error = ApiError::new(Code::Invalid, "refused", &refusal.what, &refusal.next);
                    refused = Some(refusal);
                    error
                })?;
                let Plan { peers, secrets } = plan;
                if peers == layer.peers {
                    return Ok(false);
                }
                for (path, key) in secrets {
                    written.push(path.clone());
                    write_secret(&path, &key)?;
                }
                layer.peers = peers;
                Ok(true)
            })
            .await;
        let number = match &outcome {
            Ok(false) => 0,
            Ok(true) => {
                self.core().events.info("peers-changed", None, "the wg tools changed the foreign peers");
                0
            }
            Err(error) => {
                tracing::warn!(why = %error.why, next = %error.next, "a change by the wg tools is refused");
                refused.map_or_else(|| errno_of(error), |refusal| refusal.errno)
            }
        };
        if outcome.is_err() {
            for path in written {
                let _ = fs::remove_file(path);
            }
        } else if outcome == Ok(true) {
            self.forget_secrets();
        }
        number
    }

    /// Removes preshared keys that no peer uses any more.
    fn forget_secrets(&self) {
        let config = self.core().config.load();
        let used = |path: &Path| {
            config.peers.iter().any(|peer| {
                matches!(&peer.kind, ForeignKind::Wireguard { preshared_key_file: Some(file), .. } if file == path)
            })
        };
        let Ok(entries) = fs::read_dir(config.paths.state_dir.join(SECRETS)) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "psk") && !used(&path) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn write_secret(path: &Path, key: &Zeroizing<[u8; 32]>) -> Result<(), ApiError> {
    let failed = |error: String| {
        ApiError::new(
            Code::Io,
            format!("{} cannot be written", path.display()),
            error,
            "make room, or make the state directory writable; nothing was changed",
        )
    };
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| failed(error.to_string()))?;
    }
    secret::write_key(path, key).map_err(|error| failed(error.to_string()))
}

fn errno_of(error: &ApiError) -> i32 {
    let is = |code: Code| error.code == code.name();
    if is(Code::Io) || is(Code::Internal) {
        libc::EIO
    } else if is(Code::RestartNeeded) {
        libc::EPERM
    } else {
        libc::EINVAL
    }
}

/// The wall clock's time of a past moment.
fn wall_clock(at: Instant) -> Option<Duration> {
    let age = Instant::now().saturating_duration_since(at);
    SystemTime::now().checked_sub(age)?.duration_since(UNIX_EPOCH).ok()
}

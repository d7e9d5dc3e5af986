//! `overlayctl peer`.

use overlay_config::{ForeignKind, ForeignPeer};
use overlay_control::api::{ApiError, EncapsulationSetting, PeerKind, PeerStatus, Request, Response};
use overlay_control::codes::{Code, exit};
use overlay_wire::Encapsulation;

use super::{Context, status};
use crate::args::{Peer, PeerAdd, socket_address};
use crate::output::{Failure, Outcome, Output, unexpected};
use crate::units;

pub(super) fn run(context: &mut Context<'_>, verb: Peer) -> Outcome {
    match verb {
        Peer::List => {
            let peers = match context.call(Request::PeerList)? {
                Response::Peers(peers) => peers,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("peer-list", &serde_json::json!({ "peers": peers }))?;
            } else {
                status::peers(context.output, &peers)?;
            }
            Ok(exit::OK)
        }
        Peer::Show { name } => {
            let peer = match context.call(Request::PeerShow { name })? {
                Response::Peer(peer) => *peer,
                other => return Err(unexpected(&other)),
            };
            if context.output.json {
                context.output.object("peer", &peer)?;
            } else {
                show(context.output, &peer)?;
            }
            Ok(exit::OK)
        }
        Peer::Add(add) => {
            let peer = foreign(add)?;
            let done = format!("peer {} added", peer.name);
            context.change(Request::PeerAdd { peer }, &done)
        }
        Peer::Rm { name } => {
            let done = format!("peer {name} removed");
            context.change(Request::PeerRemove { name }, &done)
        }
        Peer::Set { name, default: _, encapsulation, settings } => {
            let setting = encapsulation_setting(encapsulation, &settings)?;
            let whose = name.as_deref().map_or("the default".to_owned(), |name| format!("peer {name}"));
            let done = match setting {
                EncapsulationSetting::Config => format!("{whose}: encapsulation as in the configuration file"),
                EncapsulationSetting::Use(kind) => format!("{whose}: encapsulation {kind}"),
            };
            context.change(Request::PeerSet { name, encapsulation: setting }, &done)
        }
    }
}

fn encapsulation_setting(option: Option<String>, settings: &[String]) -> Result<EncapsulationSetting, Failure> {
    let next = "write `overlayctl peer set NAME encapsulation=gre`";
    let usage =
        |what: String| ApiError::new(Code::Usage, what, "the one setting of a member is its encapsulation", next);
    let mut value = option;
    for setting in settings {
        match setting.split_once('=') {
            Some(("encapsulation" | "encap", kind)) if value.is_none() => value = Some(kind.to_owned()),
            Some(("encapsulation" | "encap", _)) => return Err(usage("encapsulation is set twice".to_owned()).into()),
            _ => return Err(usage(format!("`{setting}` is not a setting")).into()),
        }
    }
    let value = value.ok_or_else(|| usage("nothing to set".to_owned()))?;
    if value == "config" {
        return Ok(EncapsulationSetting::Config);
    }
    match value.parse::<Encapsulation>() {
        Ok(kind) => Ok(EncapsulationSetting::Use(kind)),
        Err(error) => Err(usage(error.to_string()).into()),
    }
}

fn foreign(add: PeerAdd) -> Result<ForeignPeer, Failure> {
    let usage = |what: &str, why: &str, next: &str| Failure::from(ApiError::new(Code::Usage, what, why, next));
    let kind = match add.encapsulation {
        Encapsulation::Wireguard => {
            if add.gre_key.is_some() || add.gre_checksum || add.gre_sequence {
                return Err(usage(
                    "a GRE option for a WireGuard peer",
                    "the two have nothing in common",
                    "add --encapsulation gre",
                ));
            }
            let Some(public_key) = add.public_key else {
                return Err(usage(
                    "--public-key is missing",
                    "a WireGuard peer is known by its key",
                    "add --public-key KEY",
                ));
            };
            let endpoint = match add.endpoint.as_deref().map(|text| (text, socket_address(text))) {
                None => None,
                Some((_, Some(endpoint))) => Some(endpoint),
                Some((text, None)) => {
                    let what = format!("`{text}` is not ADDRESS:PORT");
                    return Err(usage(&what, "WireGuard runs over UDP", "write --endpoint 192.0.2.9:51820"));
                }
            };
            ForeignKind::Wireguard {
                public_key,
                endpoint,
                preshared_key_file: add.preshared_key_file,
                persistent_keepalive: add.persistent_keepalive.filter(|seconds| *seconds > 0),
            }
        }
        plain => {
            if add.public_key.is_some() || add.preshared_key_file.is_some() || add.persistent_keepalive.is_some() {
                let what = format!("a WireGuard option for a peer with encapsulation {plain}");
                return Err(usage(&what, "the two have nothing in common", "add --encapsulation wireguard"));
            }
            let Some(endpoint) = add.endpoint.as_deref().and_then(|text| text.parse().ok()) else {
                let why = format!("{plain} packets have no port");
                return Err(usage("--endpoint is not an IP address", &why, "write --endpoint 192.0.2.9"));
            };
            if plain == Encapsulation::Gre {
                ForeignKind::Gre { endpoint, key: add.gre_key, checksum: add.gre_checksum, sequence: add.gre_sequence }
            } else if add.gre_key.is_some() || add.gre_checksum || add.gre_sequence {
                return Err(usage("a GRE option for an ipip peer", "ipip has no options", "add --encapsulation gre"));
            } else {
                ForeignKind::Ipip { endpoint }
            }
        }
    };
    Ok(ForeignPeer { name: add.name, allowed_ips: add.allowed_ips, kind })
}

fn show(output: &mut Output, peer: &PeerStatus) -> Result<(), Failure> {
    let kind = match peer.kind {
        PeerKind::Member => "member",
        PeerKind::Foreign => "foreign peer",
    };
    let encapsulation = if peer.authenticated {
        peer.encapsulation.to_string()
    } else {
        format!("{} (unauthenticated underlay)", peer.encapsulation)
    };
    output.line(&format!("{} ({kind})", peer.name))?;
    for (name, value) in [
        ("host id", units::or_dash(peer.id)),
        ("public key", units::or_dash(peer.public_key)),
        ("subnets", units::list(&peer.subnets)),
        ("encapsulation", encapsulation),
        ("endpoint", units::or_dash(peer.endpoint.as_ref())),
        ("tried at", units::list(&peer.endpoints)),
        ("control", status::control(peer.control).to_owned()),
        ("data", status::data(peer.data).to_owned()),
        ("arriving", status::data(peer.arriving).to_owned()),
        ("round trip", units::or_dash(peer.rtt_us.map(units::rtt))),
        ("loss", units::or_dash(peer.loss_percent.map(units::percent))),
        ("handshake", units::or_dash(peer.handshake_age_ms.map(|ms| format!("{} ago", units::age(ms))))),
        ("sent", format!("{} in {} packets", units::bytes(peer.tx_bytes), peer.tx_packets)),
        ("received", format!("{} in {} packets", units::bytes(peer.rx_bytes), peer.rx_packets)),
        ("inner MTU", units::or_dash(peer.mtu)),
    ] {
        output.line(&format!("  {name:<14} {value}"))?;
    }
    for problem in &peer.problems {
        status::problem(output, None, problem)?;
    }
    Ok(())
}

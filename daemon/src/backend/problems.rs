//! What is wrong with a peer, why, and what to do about it.

use overlay_control::api::{ControlState, DataState, PeerStatus, Problem};
use overlay_routing::gossip::{DownReason, MemberState, MemberView};
use overlay_wire::{Encapsulation, Mtu, Prefix};

use super::no_path::{self, OwnSide};
use crate::core::Core;
use crate::sizes;
use crate::snapshot::PathPeer;

/// What this host knows beside gossip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here {
    /// The UDP port.
    pub port: u16,
    /// Whether a NAT stands in front.
    pub side: OwnSide,
}

/// What is wrong with a member: whether it is heard, answers, and is reached as asked.
pub(super) fn of_member(member: &MemberView, status: &PeerStatus, asked: Encapsulation, here: Here) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Here { port, side } = here;
    let is_known_by_others = member.state == MemberState::New && member.host_record.is_some();
    if is_known_by_others || member.state == MemberState::Degraded {
        problems.push(Problem {
            code: "NO_DIRECT_PATH".to_owned(),
            what: format!("{} is known through other members and does not answer this host", member.name),
            why: no_path::why(member, side),
            next: no_path::next(member, side, port),
        });
    }
    let endpoint = member.endpoint.map_or_else(|| "its address".to_owned(), |endpoint| endpoint.to_string());
    match status.control {
        ControlState::Unknown if is_known_by_others => {}
        ControlState::Unknown => problems.push(Problem {
            code: "MEMBER_UNHEARD".to_owned(),
            what: format!("{} was never heard of", member.name),
            why: format!("nothing authentic came from {endpoint}: overlayd is not running there, UDP {port} is closed on the way, or one of the two does not list the other's identity"),
            next: format!("on {}: `overlayctl status`, and compare identities with `overlayctl key public`", member.name),
        }),
        ControlState::Down => problems.push(Problem {
            code: "MEMBER_DOWN".to_owned(),
            what: format!("{} does not answer", member.name),
            why: match member.down_reason {
                Some(DownReason::Left) => DownReason::Left.name().to_owned(),
                _ => no_path::why(member, side),
            },
            next: no_path::next(member, side, port),
        }),
        _ => {}
    }
    if status.control == ControlState::Up && status.data == DataState::Down {
        problems.push(Problem {
            code: "DATA_DOWN".to_owned(),
            what: format!("gossip reaches {} and packets do not come back", member.name),
            why: match (status.encapsulation, status.arriving == DataState::Up) {
                (Encapsulation::Wireguard, false) => {
                    "none of its packets arrive either: the handshake fails, or packets die on the way here".to_owned()
                }
                (Encapsulation::Wireguard, true) => {
                    "its own packets arrive: ours die on the way there, or the other host does not forward".to_owned()
                }
                (kind, false) => {
                    format!("none of its packets arrive either: {kind} packets are dropped on the way, as firewalls often do with protocols 4 and 47")
                }
                (kind, true) => format!("its own packets arrive: {kind} packets die on the way there"),
            },
            next: format!("run `overlayctl doctor --peer {}` on both hosts", member.name),
        });
    }
    if asked != Encapsulation::Wireguard
        && status.encapsulation == Encapsulation::Wireguard
        && status.control == ControlState::Up
    {
        problems.push(Problem {
            code: "PLAIN_REFUSED".to_owned(),
            what: format!("{asked} is asked for with {} and WireGuard is used", member.name),
            why: "the stronger of what both ends allow is used, and a plain kind needs both underlay addresses inside trusted_underlay on both hosts".to_owned(),
            next: format!("set encapsulation = \"{asked}\" and trusted_underlay on {} too", member.name),
        });
    }
    if !status.encapsulation.is_encrypted() {
        problems.push(Problem {
            code: "UNAUTHENTICATED_UNDERLAY".to_owned(),
            what: format!("packets to {} are neither encrypted nor authenticated", member.name),
            why: format!("{} is in use, as the configuration asks", status.encapsulation),
            next: format!(
                "`overlayctl peer set {} encapsulation=wireguard` where the underlay is not yours alone",
                member.name
            ),
        });
    }
    problems
}

/// What is wrong with the sizes of IPv6 packets to a peer whose TUN has the MTU `theirs`, where it tells.
pub(super) fn of_sizes(core: &Core, path: &PathPeer, status: &PeerStatus, theirs: Option<Mtu>) -> Option<Problem> {
    let is_ipv6 = |prefix: &Prefix| !prefix.is_ipv4();
    let both_speak_it = core.config.load().node.prefixes.iter().any(is_ipv6) && status.subnets.iter().any(is_ipv6);
    let inner = Mtu::new(status.mtu?).ok()?;
    // A TUN of our own that is too small is a problem of this host, not of the peer.
    if inner >= Mtu::IPV6_MIN || core.mtu < Mtu::IPV6_MIN || !both_speak_it {
        return None;
    }
    let name = &status.name;
    if let Some(theirs) = theirs.filter(|theirs| *theirs < Mtu::IPV6_MIN) {
        return Some(Problem {
            code: "PEER_MTU_IPV6".to_owned(),
            what: format!("the overlay's MTU of {theirs} on {name} is too small for IPv6"),
            why: "the kernel there turns IPv6 off on a device of less than 1280 bytes".to_owned(),
            next: format!("set overlay.mtu to 1280 or more on {name}, or leave it out there"),
        });
    }
    let outside = path.plain.or(path.peer.state.lock().path)?.to.ip();
    let overhead = sizes::overhead(path.encapsulation, outside, &path.gre);
    Some(Problem {
        code: "IPV6_FRAGMENTED".to_owned(),
        what: format!("IPv6 packets of {} to 1280 bytes travel to {name} in two fragments", inner.get() + 1),
        why: format!(
            "the way there leaves {inner} bytes inside {}, and IPv6 needs 1280 (RFC 8200, section 5)",
            path.encapsulation
        ),
        next: format!("raise the MTU of the underlay to {} where the network carries it", 1280 + overhead),
    })
}

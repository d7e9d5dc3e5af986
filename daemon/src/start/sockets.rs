//! The underlay's sockets: UDP of both families, and raw ones where an unencrypted encapsulation may be used.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use overlay_config::Config;
use overlay_control::ApiError;
use overlay_wire::Encapsulation;

use super::errors::{internal, socket_error};
use crate::director::GossipSockets;
use crate::underlay::socket::duplicate;
use crate::underlay::{Family, RawProtocol, SocketError, open_raw, open_udp};
use crate::worker::{ReceiveSockets, SendSockets};

/// The underlay's sockets.
pub(super) struct Sockets {
    pub(super) udp4: Option<Arc<OwnedFd>>,
    pub(super) udp6: Option<Arc<OwnedFd>>,
    raw: Vec<(Arc<OwnedFd>, Family, RawProtocol)>,
}

fn wants_plain(config: &Config) -> bool {
    config.overlay.encapsulation != Encapsulation::Wireguard
        || !config.overlay.trusted_underlay.is_empty()
        || config.peers.iter().any(|peer| peer.kind.encapsulation() != Encapsulation::Wireguard)
}

pub(super) fn open_sockets(config: &Config) -> Result<Sockets, ApiError> {
    let (port, mark) = (config.overlay.listen_port, config.plumbing.mark_socket);
    let udp4 = open_udp(Family::V4, port, mark).map_err(socket_error)?;
    // A kernel without IPv6 has no such socket; anything else that fails is told.
    let udp6 = match open_udp(Family::V6, port, mark) {
        Ok(fd) => Some(Arc::new(fd)),
        Err(SocketError::Io { source, .. }) if source.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
        Err(error) => return Err(socket_error(error)),
    };
    let mut raw = Vec::new();
    if wants_plain(config) {
        let families = if udp6.is_some() { &[Family::V4, Family::V6][..] } else { &[Family::V4][..] };
        for family in families {
            for protocol in RawProtocol::ALL {
                let fd = open_raw(*family, protocol, mark).map_err(socket_error)?;
                raw.push((Arc::new(fd), *family, protocol));
            }
        }
    }
    Ok(Sockets { udp4: Some(Arc::new(udp4)), udp6, raw })
}

impl Sockets {
    pub(super) fn receive(&self) -> ReceiveSockets {
        ReceiveSockets { udp: self.udp4.iter().chain(&self.udp6).cloned().collect(), raw: self.raw.clone() }
    }

    pub(super) fn send(&self) -> SendSockets {
        let mut send = SendSockets { udp4: self.udp4.clone(), udp6: self.udp6.clone(), ..SendSockets::default() };
        for (fd, family, protocol) in &self.raw {
            send.raw[*family as usize][*protocol as usize] = Some(Arc::clone(fd));
        }
        send
    }

    pub(super) fn gossip(&self) -> Result<GossipSockets, ApiError> {
        let copy = |fd: &Option<Arc<OwnedFd>>| {
            fd.as_ref().map(|fd| duplicate(fd)).transpose().map_err(|error| internal("no descriptor left", error))
        };
        Ok(GossipSockets { udp4: copy(&self.udp4)?, udp6: copy(&self.udp6)? })
    }
}

//! Joining a cluster: the exchange over UDP from a host in standby, from the port it will use as a member.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use overlay_config::{Config, PublicKey};
use overlay_control::{ApiError, Code};
use overlay_routing::identity::IdentityKey;
use overlay_routing::membership::{JoinEvent, Joiner, Token};
use overlay_wire::membership::{Admission, JoinRefusal};
use rand_core::{OsRng, RngCore};
use tokio::net::UdpSocket;

use super::kept::{Bytes, Kept, SavedPeer};
use crate::start::errors::{internal, socket_error};
use crate::underlay::{Family, SocketError, open_udp};

/// How long an issuer may take to answer: several repetitions over a bad path.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest datagram of the exchange.
const MAX_DATAGRAM: usize = 2048;

/// Reads a token.
///
/// # Errors
/// When the text is not one.
fn parse(text: &str) -> Result<Token, ApiError> {
    text.parse().map_err(|error: overlay_routing::membership::TokenError| {
        ApiError::new(
            Code::Token,
            "this is not a token",
            error.to_string(),
            "copy it again from `OVL1-` to its end, or make a new one with `overlayctl invite` on an issuer",
        )
    })
}

/// Asks the issuer that a token names; nothing is stored yet.
///
/// # Errors
/// When the token is none, the issuer refuses, or nobody answers.
pub(crate) async fn join(text: &str, identity: &IdentityKey, name: &str, config: &Config) -> Result<Kept, ApiError> {
    let token = parse(text)?;
    let endpoints = token.endpoints.clone();
    let mut seed = [0; 32];
    OsRng.fill_bytes(&mut seed);
    let joiner = Joiner::new(token, identity, name, seed, Instant::now(), PATIENCE).map_err(|error| {
        ApiError::new(Code::Invalid, "the join cannot begin", error.to_string(), "correct what is named and try again")
    })?;
    match exchange(joiner, config).await? {
        JoinEvent::Admitted(admission) => Ok(kept(&admission)),
        JoinEvent::Refused(refusal) => Err(refused(refusal)),
        JoinEvent::NoAnswer => Err(no_answer(&endpoints)),
    }
}

async fn exchange(mut joiner: Joiner, config: &Config) -> Result<JoinEvent, ApiError> {
    let (port, mark) = (config.overlay.listen_port, config.plumbing.mark_socket);
    let v4 = socket(open_udp(Family::V4, port, mark).map_err(socket_error)?)?;
    // A kernel without IPv6 has no such socket; anything else that fails is told.
    let v6 = match open_udp(Family::V6, port, mark) {
        Ok(fd) => Some(socket(fd)?),
        Err(SocketError::Io { source, .. }) if source.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
        Err(error) => return Err(socket_error(error)),
    };
    let (mut first, mut second) = ([0; MAX_DATAGRAM], [0; MAX_DATAGRAM]);
    loop {
        while let Some(transmit) = joiner.poll_transmit() {
            let socket = if transmit.to.is_ipv4() { Some(&v4) } else { v6.as_ref() };
            if let Some(socket) = socket
                && let Err(error) = socket.send_to(&transmit.bytes, transmit.to).await
            {
                tracing::debug!(to = %transmit.to, cause = %error, "a request to join was not sent");
            }
        }
        if let Some(event) = joiner.poll_event() {
            return Ok(event);
        }
        let due = joiner.poll_timeout().unwrap_or_else(Instant::now);
        tokio::select! {
            received = v4.recv_from(&mut first) => take(&mut joiner, received, &first),
            received = receive(v6.as_ref(), &mut second) => take(&mut joiner, received, &second),
            () = tokio::time::sleep_until(due.into()) => joiner.handle_timeout(Instant::now()),
        }
    }
}

fn socket(fd: OwnedFd) -> Result<UdpSocket, ApiError> {
    let socket = std::net::UdpSocket::from(fd);
    let made = socket.set_nonblocking(true).and_then(|()| UdpSocket::from_std(socket));
    made.map_err(|error| internal("the underlay socket cannot be used", error))
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

fn take(joiner: &mut Joiner, received: std::io::Result<(usize, SocketAddr)>, buffer: &[u8]) {
    match received {
        Ok((length, from)) => {
            let datagram = buffer.get(..length).unwrap_or_default();
            tracing::trace!(%from, length, "a datagram while joining");
            joiner.handle_datagram(from, datagram);
        }
        // An ICMP error of an earlier datagram, say; the time decides.
        Err(error) => tracing::debug!(cause = %error, "the underlay socket reports an error"),
    }
}

fn kept(admission: &Admission) -> Kept {
    let authorities = std::iter::once(admission.ca).chain(admission.other_ca).map(PublicKey).collect();
    let mut kept = Kept::new(&admission.settings, authorities, &admission.certificate);
    kept.peers
        .push(SavedPeer { certificate: Bytes(admission.issuer.to_bytes()), endpoints: admission.endpoints.clone() });
    kept
}

fn refused(refusal: JoinRefusal) -> ApiError {
    let (why, next) = match refusal {
        JoinRefusal::Expired => ("the token's time is over", "make a new one with `overlayctl invite` on the issuer"),
        JoinRefusal::UsedUp => (
            "the token admitted as many hosts as it may",
            "make a new one with `overlayctl invite`; `overlayctl token list` there shows whom it admitted",
        ),
        JoinRefusal::NameTaken => ("another member has the name", "choose another one with --name"),
        JoinRefusal::NoSubnet => (
            "the issuer has no subnet left, or the one of the token is not free",
            "invite on another issuer, free subnets with `overlayctl node forget`, or name another --subnet",
        ),
        JoinRefusal::Revoked => (
            "the token was withdrawn, or this host's identity was revoked",
            "make a new token; a revoked host comes back with a new identity: move its identity.key away",
        ),
        JoinRefusal::Full => {
            ("the cluster holds as many members as it can", "`overlayctl node forget` those that are gone")
        }
        JoinRefusal::Unavailable => (
            "the issuer could not store the admission",
            "make room on the issuer's disk and try again: the token is still good",
        ),
    };
    ApiError::new(Code::JoinRefused, format!("the issuer refuses this host: {}", refusal.name()), why, next)
}

fn no_answer(endpoints: &[SocketAddr]) -> ApiError {
    let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    ApiError::new(
        Code::JoinTimeout,
        format!("nobody answered within {} s", PATIENCE.as_secs()),
        format!(
            "UDP to {} or back is filtered, overlayd does not run there, it does not know this token, or who answers \
             does not hold the authority's key that the token names",
            shown.join(", ")
        ),
        "on the issuer: `overlayctl status` and `overlayctl token list`; then try again, also with the same token",
    )
}

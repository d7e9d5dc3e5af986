//! Whether a host says that nobody listens on a UDP port: the port unreachable message of ICMP, as a connected socket
//! hears it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// How often the byte is sent: hosts refuse about once a second, and others may have used that up.
const EVERY: Duration = Duration::from_millis(300);

/// Sends a byte that no daemon answers, again and again, and waits for a refusal; false when none came within `limit`.
/// Must run inside a tokio runtime.
///
/// # Errors
/// When the socket cannot be made or there is no route.
pub async fn is_refused(to: SocketAddr, mark: u32, limit: Duration) -> io::Result<bool> {
    let (domain, any): (_, SocketAddr) = match to {
        SocketAddr::V4(_) => (Domain::IPV4, (Ipv4Addr::UNSPECIFIED, 0).into()),
        SocketAddr::V6(_) => (Domain::IPV6, (Ipv6Addr::UNSPECIFIED, 0).into()),
    };
    let socket = Socket::new(domain, Type::DGRAM.cloexec().nonblocking(), Some(Protocol::UDP))?;
    socket.set_mark(mark)?;
    socket.bind(&any.into())?;
    socket.connect(&to.into())?;
    let socket = tokio::net::UdpSocket::from_std(socket.into())?;
    let until = tokio::time::Instant::now() + limit;
    let is_refusal = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    while tokio::time::Instant::now() < until {
        // A first byte of zero is neither WireGuard nor gossip. A refusal of the byte before may be told here.
        match socket.send(&[0]).await {
            Err(error) if is_refusal(&error) => return Ok(true),
            sent => drop(sent?),
        }
        let wait = until.min(tokio::time::Instant::now() + EVERY);
        match tokio::time::timeout_at(wait, socket.recv(&mut [0; 1])).await {
            Ok(Err(error)) if is_refusal(&error) => return Ok(true),
            Ok(Err(error)) => return Err(error),
            // Nobody answers the byte; whatever came is not what was asked for.
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closed_port_of_this_host_is_refused_and_an_open_one_is_not() {
        let open = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let to = open.local_addr().expect("bound");
        // Without a mark no privilege is needed.
        assert!(!is_refused(to, 0, Duration::from_millis(50)).await.expect("loopback is routed"));
        drop(open);
        assert!(is_refused(to, 0, Duration::from_secs(5)).await.expect("loopback is routed"));
    }
}

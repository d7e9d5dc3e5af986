//! Questions about other names, passed on: from a port and with an id that nobody can guess, to one server after another,
//! and only an answer of the server that was asked to the question that was asked counts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use overlay_services::{failure, is_answer, question, with_id};
use rand_core::{OsRng, RngCore as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::server::State;

/// How long one server is waited for; three of them stay below the four seconds after which clients give up.
const EACH: Duration = Duration::from_millis(1200);
/// The largest answer in a datagram, in bytes.
const MAX_DATAGRAM: usize = 65_535;
/// DNS response code: the server failed (RFC 1035).
const SERVFAIL: u8 = 2;
/// The truncation bit, in the third byte of a message.
const TRUNCATED: u8 = 2;
/// The port of servers.
const PORT: u16 = 53;

/// How the client asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// In a datagram: a truncated answer is handed on, and the client asks again.
    Datagram,
    /// On a connection, where the whole answer is wanted.
    Connection,
}

/// Asks the servers in turn; what goes back to the client.
pub(super) async fn ask(state: &State, query: &[u8], way: Way) -> Option<Vec<u8>> {
    let counters = &state.parts.counters;
    counters.forwarded.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    state.forwarded.set(state.forwarded.get() + 1);
    let answer = ask_all(&state.parts.upstreams.servers(), query, way).await;
    state.forwarded.set(state.forwarded.get() - 1);
    answer.or_else(|| {
        counters.failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        failure(query, SERVFAIL)
    })
}

async fn ask_all(servers: &[IpAddr], query: &[u8], way: Way) -> Option<Vec<u8>> {
    let (client_id, asked) = question(query)?;
    let id = (OsRng.next_u32() >> 16) as u16;
    let own = with_id(query, id);
    for server in servers {
        let to = SocketAddr::new(*server, PORT);
        let is_wanted = |bytes: &[u8]| is_answer(bytes, id, &asked);
        // A server that cannot be reached, or says nothing in time, is passed over.
        let Ok(Ok(answer)) = timeout(EACH, by_datagram(to, &own, is_wanted)).await else { continue };
        let is_truncated = answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0);
        if is_truncated && way == Way::Connection {
            match timeout(EACH, by_connection(to, &own)).await {
                Ok(Ok(whole)) if is_wanted(&whole) => return Some(with_id(&whole, client_id)),
                _ => continue,
            }
        }
        return Some(with_id(&answer, client_id));
    }
    None
}

async fn by_datagram(to: SocketAddr, query: &[u8], is_wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    // The kernel chooses the port at random, and takes datagrams of the connected server only.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(to).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // A wrong answer ends nothing: the right one may come yet.
        if is_wanted(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_connection(to: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

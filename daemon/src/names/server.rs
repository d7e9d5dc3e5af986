//! Sockets of the server of names: datagrams, and connections with their limits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use overlay_services::{Answered, Transport, answer, failure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::flight::Flights;
use super::forward::Folding;
use super::limit::Limiter;
use super::{NameParts, forward};
use crate::plumbing::ports::table::NameServer;
use crate::underlay;

/// The largest query taken, in bytes: a name and an OPT record need far less.
const MAX_QUERY_BYTES: usize = 4096;
/// The largest answer in a datagram: to this host, and to containers (RFC 9715).
const CEILING_OWN: u16 = 4096;
const CEILING: u16 = 1232;
/// Datagrams taken in one turn.
const TURN: usize = 64;
/// Connections at once, in all and of one client.
const MAX_CONNECTIONS: usize = 1024;
const MAX_OF_ONE: usize = 64;
/// How long a connection may be silent, and how long a message may take.
const IDLE: Duration = Duration::from_secs(5);
const PARTIAL: Duration = Duration::from_secs(10);
/// Questions passed on at once.
const MAX_FORWARDED: usize = 1000;
/// DNS response code: the server refuses (RFC 1035).
pub(super) const REFUSED: u8 = 5;
/// How long a listener rests that could not accept.
const REST: Duration = Duration::from_millis(100);

/// Room for questions that come while others are answered, in bytes: a flood of garbage from one container fills it, and the
/// questions of others are lost only where it is full.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The sockets of each address.
pub(super) struct Sockets(Vec<(std::net::UdpSocket, std::net::TcpListener)>);

impl Sockets {
    /// Listens on a free port of each address.
    pub(super) fn bind(addresses: &[IpAddr]) -> io::Result<Self> {
        let bind = |ip: &IpAddr| {
            let udp = std::net::UdpSocket::bind(SocketAddr::new(*ip, 0))?;
            underlay::socket::grow_receive_buffer(&udp, RECEIVE_BUFFER);
            let tcp = std::net::TcpListener::bind(SocketAddr::new(*ip, 0))?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        };
        addresses.iter().map(bind).collect::<io::Result<_>>().map(Self)
    }

    /// Where they listen.
    pub(super) fn places(&self) -> io::Result<Vec<NameServer>> {
        let place = |(udp, tcp): &(std::net::UdpSocket, std::net::TcpListener)| {
            let udp = udp.local_addr()?;
            Ok(NameServer { address: udp.ip(), udp: udp.port(), tcp: tcp.local_addr()?.port() })
        };
        self.0.iter().map(place).collect()
    }
}

/// What the tasks of the thread share.
pub(super) struct State {
    pub(super) parts: NameParts,
    limiter: RefCell<Limiter>,
    pub(super) forwarded: Cell<usize>,
    pub(super) flights: Flights,
    pub(super) folding: Folding,
    connections: RefCell<HashMap<IpAddr, usize>>,
    turn: Cell<usize>,
}

/// Answers until it is told to stop.
pub(super) async fn serve(sockets: Sockets, parts: NameParts, mut stop: watch::Receiver<bool>) -> io::Result<()> {
    let state = Rc::new(State {
        parts,
        limiter: RefCell::default(),
        forwarded: Cell::new(0),
        flights: Flights::default(),
        folding: Folding::default(),
        connections: RefCell::default(),
        turn: Cell::new(0),
    });
    for (udp, tcp) in sockets.0 {
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        tokio::task::spawn_local(datagrams(Rc::clone(&state), Rc::new(udp)));
        tokio::task::spawn_local(accept(Rc::clone(&state), tcp));
    }
    // An error means that nobody is left who could tell.
    let _ = stop.wait_for(|stop| *stop).await;
    Ok(())
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What is to be done with a query.
enum Fate {
    Reply(Vec<u8>),
    Forward,
    Nothing,
}

impl State {
    fn is_own(&self, client: IpAddr) -> bool {
        client.is_loopback() || self.parts.addresses.contains(&client)
    }

    fn judge(&self, query: &[u8], client: IpAddr, transport: Transport) -> Fate {
        let counters = &self.parts.counters;
        self.turn.set(self.turn.get().wrapping_add(1));
        match answer(&self.parts.zone.load(), query, transport, self.turn.get()) {
            Answered::Reply(bytes) => {
                count(&counters.answered);
                Fate::Reply(bytes)
            }
            Answered::Nothing => {
                count(&counters.malformed);
                Fate::Nothing
            }
            Answered::Elsewhere => {
                // A server that asks us what we would ask it: a circle.
                let circle = self.parts.upstreams.servers().contains(&client);
                let room = self.forwarded.get() < MAX_FORWARDED;
                let may_ask = !circle && !self.parts.enclosed.contains(client);
                if may_ask && room && self.limiter.borrow_mut().take(client, Instant::now()) {
                    return Fate::Forward;
                }
                count(&counters.refused);
                failure(query, REFUSED).map_or(Fate::Nothing, Fate::Reply)
            }
        }
    }
}

async fn datagrams(state: Rc<State>, socket: Rc<UdpSocket>) {
    let mut buffer = vec![0; MAX_QUERY_BYTES];
    loop {
        if socket.readable().await.is_err() {
            tokio::time::sleep(REST).await;
            continue;
        }
        for _ in 0..TURN {
            // What cannot be received any more was meant for nobody.
            let Ok((length, client)) = socket.try_recv_from(&mut buffer) else { break };
            let ceiling = if state.is_own(client.ip()) { CEILING_OWN } else { CEILING };
            match state.judge(&buffer[..length], client.ip(), Transport::Udp { ceiling }) {
                // A client whose buffer is full asks again.
                Fate::Reply(bytes) => drop(socket.try_send_to(&bytes, client)),
                Fate::Nothing => {}
                Fate::Forward => {
                    let (state, socket, query) = (Rc::clone(&state), Rc::clone(&socket), buffer[..length].to_vec());
                    tokio::task::spawn_local(async move {
                        if let Some(bytes) = forward::ask(&state, &query, client.ip(), forward::Way::Datagram).await {
                            let _ = socket.send_to(&bytes, client).await;
                        }
                    });
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn accept(state: Rc<State>, listener: TcpListener) {
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            tokio::time::sleep(REST).await;
            continue;
        };
        let client = client.ip();
        {
            let mut connections = state.connections.borrow_mut();
            let all: usize = connections.values().sum();
            let own = connections.entry(client).or_default();
            if all >= MAX_CONNECTIONS || *own >= MAX_OF_ONE {
                count(&state.parts.counters.refused);
                continue;
            }
            *own += 1;
        }
        let state = Rc::clone(&state);
        tokio::task::spawn_local(async move {
            // The client is gone, or has had its time.
            let _ = converse(&state, stream, client).await;
            let mut connections = state.connections.borrow_mut();
            if let Some(own) = connections.get_mut(&client) {
                *own -= 1;
                if *own == 0 {
                    connections.remove(&client);
                }
            }
        });
    }
}

/// One query after another, each with its length before it (RFC 1035, 4.2.2).
async fn converse(state: &State, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
    let mut query = Vec::new();
    loop {
        let Ok(first) = timeout(IDLE, stream.read_u8()).await else { return Ok(()) };
        let first = first?;
        let Ok(read) = timeout(PARTIAL, read_query(&mut stream, first, &mut query)).await else { return Ok(()) };
        if !read? {
            return Ok(());
        }
        let reply = match state.judge(&query, client, Transport::Tcp) {
            Fate::Reply(bytes) => Some(bytes),
            Fate::Nothing => return Ok(()),
            Fate::Forward => forward::ask(state, &query, client, forward::Way::Connection).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let message = [&length.to_be_bytes()[..], &reply].concat();
        match timeout(PARTIAL, stream.write_all(&message)).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
    }
}

/// Reads the rest of a query; false when it is empty or larger than any.
async fn read_query(stream: &mut TcpStream, first: u8, query: &mut Vec<u8>) -> io::Result<bool> {
    let length = usize::from(u16::from_be_bytes([first, stream.read_u8().await?]));
    if length == 0 || length > MAX_QUERY_BYTES {
        return Ok(false);
    }
    query.resize(length, 0);
    stream.read_exact(query).await?;
    Ok(true)
}

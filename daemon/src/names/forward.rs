//! Questions about other names, passed on: from a port, with an id and with letters in a case that nobody can guess, to one
//! server after another, and only an answer of the server that was asked to the question that was asked counts. Of one question
//! one is under way at a time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use overlay_services::{
    NAME_BITS_BYTES, Question, as_asked, essence, failure, is_answer, is_spelled_alike, question, with_case, with_id,
};
use rand_core::{OsRng, RngCore as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::server::{REFUSED, State};

/// How long one server is waited for; three of them stay below the four seconds after which clients give up.
const EACH: Duration = Duration::from_millis(1200);
/// How long a client is kept waiting in all, also for its turn.
const IN_ALL: Duration = Duration::from_secs(5);
/// For how long a server that changes the case of names is asked without regard to it.
const FOLDING: Duration = Duration::from_secs(600);
/// Such servers remembered.
const MAX_FOLDING: usize = 64;
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

/// Servers that do not copy names as they were asked, and since when that is known.
pub(super) type Folding = RefCell<HashMap<IpAddr, Instant>>;

/// Asks the servers in turn, or waits for who does already; what goes back to the client.
pub(super) async fn ask(state: &State, query: &[u8], client: IpAddr, way: Way) -> Option<Vec<u8>> {
    let counters = &state.parts.counters;
    let (_, asked) = question(query)?;
    let essence = [&essence(query)[..], &[u8::from(way == Way::Connection)]].concat();
    let Some(seat) = state.flights.board(asked.clone(), essence, client) else {
        counters.refused.fetch_add(1, Ordering::Relaxed);
        return failure(query, REFUSED);
    };
    counters.forwarded.fetch_add(1, Ordering::Relaxed);
    state.forwarded.set(state.forwarded.get() + 1);
    let work = seat.answer.get_or_init(|| async {
        let _turn = seat.turn.lock().await;
        ask_all(state, &asked, query, way).await
    });
    let answer = timeout(IN_ALL, work).await.ok().and_then(|answer| Some(as_asked(answer.as_deref()?, query)));
    state.forwarded.set(state.forwarded.get() - 1);
    answer.or_else(|| {
        counters.failed.fetch_add(1, Ordering::Relaxed);
        failure(query, SERVFAIL)
    })
}

async fn ask_all(state: &State, asked: &Question, query: &[u8], way: Way) -> Option<Vec<u8>> {
    for server in state.parts.upstreams.servers() {
        if let Some(answer) = ask_one(state, server, asked, query, way).await {
            return Some(answer);
        }
        // It may be one that changes the case; who answered so is asked once more without.
        let is_news = |since: &Instant| since.elapsed() < EACH * 2;
        if state.folding.borrow().get(&server).is_some_and(is_news)
            && let Some(answer) = ask_one(state, server, asked, query, way).await
        {
            return Some(answer);
        }
    }
    None
}

/// Asks one server; what it answers in time.
async fn ask_one(state: &State, server: IpAddr, asked: &Question, query: &[u8], way: Way) -> Option<Vec<u8>> {
    let to = SocketAddr::new(server, PORT);
    let id = (OsRng.next_u32() >> 16) as u16;
    let folds = state.folding.borrow().get(&server).is_some_and(|since| since.elapsed() < FOLDING);
    let mut dice = [0; NAME_BITS_BYTES];
    if !folds {
        OsRng.fill_bytes(&mut dice);
    }
    let own = with_case(&with_id(query, id), &dice);
    let is_wanted = |bytes: &[u8]| {
        let is_answer = is_answer(bytes, id, asked);
        if is_answer && !folds && !is_spelled_alike(bytes, &own) {
            // Whoever forged this has guessed port and id already: without the case he would have won now. So to ask this
            // server without it for a while gives nothing away.
            state.note_folding(server);
            return false;
        }
        is_answer
    };
    // A server that cannot be reached, or says nothing in time, is passed over.
    let answer = timeout(EACH, by_datagram(to, &own, is_wanted)).await.ok()?.ok()?;
    let is_truncated = answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0);
    if is_truncated && way == Way::Connection {
        let whole = timeout(EACH, by_connection(to, &own)).await.ok()?.ok()?;
        return is_wanted(&whole).then_some(whole);
    }
    Some(answer)
}

impl State {
    fn note_folding(&self, server: IpAddr) {
        let mut folding = self.folding.borrow_mut();
        // Servers come and go with the host's configuration.
        if folding.len() >= MAX_FOLDING {
            folding.clear();
        }
        folding.insert(server, Instant::now());
    }
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

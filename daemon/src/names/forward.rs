//! Questions about other names, passed on: from a port, with an id and with letters in a case that nobody can guess, to one
//! server after another, and only an answer of the server that was asked to the question that was asked counts. Of one question
//! one is under way at a time.

use std::cell::{Cell, RefCell};
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
const FOLDING: Duration = Duration::from_secs(24 * 3600);
/// After how many questions in a row without any right answer that is certain.
const CERTAIN: u32 = 3;
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

/// Servers that answered in another case than they were asked, and nothing else in time.
pub(super) type Folding = RefCell<HashMap<IpAddr, Folds>>;

/// How sure it is that a server changes the case of names.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Folds {
    /// Questions in a row.
    times: u32,
    /// Since when it counts as certain.
    since: Option<Instant>,
}

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
        // A server that cannot be reached, or says nothing in time, is passed over.
        if let Some(answer) = ask_one(state, server, asked, query, way).await {
            return Some(answer);
        }
    }
    None
}

/// Asks one server; what it answers in time.
async fn ask_one(state: &State, server: IpAddr, asked: &Question, query: &[u8], way: Way) -> Option<Vec<u8>> {
    let to = SocketAddr::new(server, PORT);
    let id = (OsRng.next_u32() >> 16) as u16;
    let folds = state.folds(server);
    let mut dice = [0; NAME_BITS_BYTES];
    if !folds {
        OsRng.fill_bytes(&mut dice);
    }
    let own = with_case(&with_id(query, id), &dice);
    let misspelled = Cell::new(false);
    let is_wanted = |bytes: &[u8]| {
        let is_right = folds || is_spelled_alike(bytes, &own);
        let is_answer = is_answer(bytes, id, asked);
        misspelled.set(misspelled.get() || (is_answer && !is_right));
        is_answer && is_right
    };
    let answer = timeout(EACH, by_datagram(to, &own, is_wanted)).await.ok().and_then(Result::ok);
    match &answer {
        Some(_) => state.note_spelled(server),
        None if misspelled.get() => state.note_misspelled(server),
        None => {}
    }
    let answer = answer?;
    let is_truncated = answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0);
    if is_truncated && way == Way::Connection {
        let whole = timeout(EACH, by_connection(to, &own)).await.ok()?.ok()?;
        return is_wanted(&whole).then_some(whole);
    }
    Some(answer)
}

impl State {
    fn folds(&self, server: IpAddr) -> bool {
        let since = self.folding.borrow().get(&server).and_then(|folds| folds.since);
        since.is_some_and(|since| since.elapsed() < FOLDING)
    }

    /// One right answer among forged ones is enough to know that it does not.
    fn note_spelled(&self, server: IpAddr) {
        if !self.folds(server) {
            self.folding.borrow_mut().remove(&server);
        }
    }

    fn note_misspelled(&self, server: IpAddr) {
        let mut folding = self.folding.borrow_mut();
        // Servers come and go with the host's configuration.
        if folding.len() >= MAX_FOLDING {
            folding.clear();
        }
        let folds = folding.entry(server).or_default();
        folds.times += 1;
        if folds.times >= CERTAIN {
            *folds = Folds { times: 0, since: Some(Instant::now()) };
        }
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

//! Datagrams between every two stations, sent without a pause in their rhythm, so that silence means something.

use anyhow::{Context as _, Result};
use overlay_netns_harness::{Container, netns, wait_for};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PORT: u16 = 7200;
/// Behind the mark: who sent, and how long after the start, in microseconds.
const NOTE: usize = 9;

/// A namespace that sends, and takes if it has an address.
#[derive(Debug, Clone)]
pub struct Station {
    /// Its namespace.
    pub namespace: String,
    /// Its overlay address; a station without one only sends.
    pub address: Option<Ipv4Addr>,
}

impl Station {
    /// The station of a container.
    pub fn of(container: &Container) -> Station {
        Station { namespace: container.view.namespace().to_owned(), address: Some(container.v4) }
    }
}

/// The last datagram from one station to another: when it was sent, and when it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// When it was sent.
    pub sent: Instant,
    /// When it was read.
    pub arrived: Instant,
}

#[derive(Debug)]
struct State {
    seen: Mutex<Vec<Vec<Option<Seen>>>>,
    rounds: AtomicU64,
    stop: AtomicBool,
}

/// Sends from every station to every other in rounds until it is dropped.
#[derive(Debug)]
pub struct Mesh {
    stations: usize,
    takes: Vec<bool>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct Worker {
    sockets: Vec<UdpSocket>,
    addresses: Vec<Option<Ipv4Addr>>,
    mark: Vec<u8>,
    start: Instant,
    pause: Duration,
    state: Arc<State>,
}

impl Mesh {
    /// Starts to send. Each datagram begins with the mark.
    pub fn start(stations: &[Station], mark: &[u8], pause: Duration) -> Result<Mesh> {
        let socket = |station: &Station| {
            netns::within(&station.namespace, || {
                let address = station.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
                let socket = UdpSocket::bind((address, PORT)).with_context(|| format!("binding {address}"))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
        };
        let sockets = stations.iter().map(socket).collect::<Result<Vec<_>>>()?;
        let count = stations.len();
        let state = Arc::new(State {
            seen: Mutex::new(vec![vec![None; count]; count]),
            rounds: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let addresses: Vec<Option<Ipv4Addr>> = stations.iter().map(|station| station.address).collect();
        let takes = addresses.iter().map(Option::is_some).collect();
        let worker =
            Worker { sockets, addresses, mark: mark.to_vec(), start: Instant::now(), pause, state: state.clone() };
        let thread = Some(std::thread::spawn(move || worker.run()));
        Ok(Mesh { stations: count, takes, state, thread })
    }

    /// Every ordered pair of stations between which something can arrive.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let all = (0..self.stations).flat_map(|from| (0..self.stations).map(move |to| (from, to)));
        all.filter(|(from, to)| from != to && self.takes[*to]).collect()
    }

    /// The last datagram of a pair.
    pub fn seen(&self, from: usize, to: usize) -> Option<Seen> {
        self.state.seen.lock().unwrap_or_else(PoisonError::into_inner)[from][to]
    }

    /// The pairs between which nothing has arrived that was sent since an instant.
    pub fn silent(&self, pairs: &[(usize, usize)], since: Instant) -> Vec<(usize, usize)> {
        let seen = self.state.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = |(from, to): &(usize, usize)| seen[*from][*to].is_none_or(|seen| seen.sent < since);
        pairs.iter().copied().filter(is_silent).collect()
    }

    /// Waits until something sent since an instant has arrived between all these pairs; when the last one did.
    pub fn wait_all(&self, pairs: &[(usize, usize)], since: Instant, limit: Duration) -> Result<()> {
        wait_for("datagrams between all stations", limit, || self.silent(pairs, since).is_empty().then_some(()))
            .with_context(|| format!("silent: {:?}", self.silent(pairs, since)))?;
        Ok(())
    }

    /// Lets so many more rounds be sent.
    pub fn wait_rounds(&self, more: u64) -> Result<()> {
        let end = self.state.rounds.load(Ordering::Relaxed) + more;
        let reached = || (self.state.rounds.load(Ordering::Relaxed) >= end).then_some(());
        wait_for("rounds of datagrams", Duration::from_secs(60), reached)?;
        Ok(())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Worker {
    fn run(self) {
        let mut due = Instant::now();
        while !self.state.stop.load(Ordering::Relaxed) {
            if Instant::now() >= due {
                self.send();
                self.state.rounds.fetch_add(1, Ordering::Relaxed);
                due = Instant::now() + self.pause;
            }
            self.wait(due.saturating_duration_since(Instant::now()));
            self.take();
        }
    }

    fn send(&self) {
        let mut bytes = self.mark.clone();
        bytes.resize(self.mark.len() + NOTE, 0);
        for (from, socket) in self.sockets.iter().enumerate() {
            let targets = self.addresses.iter().enumerate().filter(|(to, _)| *to != from);
            for address in targets.filter_map(|(_, address)| *address) {
                bytes[self.mark.len()] = u8::try_from(from).unwrap_or(u8::MAX);
                bytes[self.mark.len() + 1..].copy_from_slice(&(self.start.elapsed().as_micros() as u64).to_be_bytes());
                // What is refused, as by a host whose daemon is down, is lost.
                let _ = socket.send_to(&bytes, SocketAddr::from((address, PORT)));
            }
        }
    }

    fn wait(&self, limit: Duration) {
        let poll = |socket: &UdpSocket| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut fds: Vec<libc::pollfd> = self.sockets.iter().map(poll).collect();
        let wait = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).clamp(1, 50);
        // SAFETY: the array lives across the call.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, wait) };
    }

    fn take(&self) {
        let mut buffer = [0; 256];
        for (to, socket) in self.sockets.iter().enumerate() {
            // An error of an earlier datagram is reported here and means nothing.
            while let Ok(length) = socket.recv(&mut buffer) {
                let Some(note) = buffer[..length].strip_prefix(self.mark.as_slice()) else { continue };
                let Some((from, micros)) = note.split_first() else { continue };
                let Ok(micros) = <[u8; 8]>::try_from(micros) else { continue };
                let sent = self.start + Duration::from_micros(u64::from_be_bytes(micros));
                let mut seen = self.state.seen.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(cell) = seen.get_mut(usize::from(*from)).and_then(|row| row.get_mut(to)) {
                    *cell = Some(Seen { sent, arrived: Instant::now() });
                }
            }
        }
    }
}

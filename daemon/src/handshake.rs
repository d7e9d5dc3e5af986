//! The handshake thread: WireGuard handshakes and timers of every peer, off the packet path.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use overlay_wire::PeerIndex;

use crate::counters::PathDrop;
use crate::peers::{Peer, PeerKind, PeerState};
use crate::shared::{Datagram, HandshakeMessage, SharedRef};
use crate::snapshot::{PathPeer, Snapshot};
use crate::underlay::{Destination, OuterFragments, SendBatch};
use crate::wireguard::{Admission, DATA_OVERHEAD, Front, HANDSHAKE_MAX, Keys, PublicKeyBytes};
use crate::worker::{inner_mtu, needs_fragments};

/// How often every tunnel's timers run; the engine wants at most 250 ms.
const TICK: Duration = Duration::from_millis(200);
/// Room for handshake messages and held packets of one turn.
const SEND_BYTES: usize = 512 << 10;

/// The thread's state.
pub struct HandshakeThread {
    shared: SharedRef,
    front: Front,
    messages: Receiver<HandshakeMessage>,
    sockets: [Option<Arc<OwnedFd>>; 2],
    batch: SendBatch,
    sealed: Box<[u8]>,
}

impl HandshakeThread {
    /// Assembles the thread's state. `sockets` are the UDP sockets of IPv4 and IPv6.
    #[must_use]
    pub fn new(
        shared: SharedRef,
        keys: Keys,
        messages: Receiver<HandshakeMessage>,
        sockets: [Option<Arc<OwnedFd>>; 2],
    ) -> Self {
        Self {
            front: Front::new(keys, Instant::now()),
            shared,
            messages,
            sockets,
            batch: SendBatch::new(SEND_BYTES, false),
            sealed: vec![0; 65_535 + DATA_OVERHEAD].into_boxed_slice(),
        }
    }

    /// Runs until it is told to end.
    pub fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(wait) {
                Ok(message) => {
                    let shared = self.shared.clone();
                    let snapshot = shared.snapshot.load();
                    let now = Instant::now();
                    match message {
                        HandshakeMessage::Received(datagram) => self.received(&snapshot, &datagram, now),
                        HandshakeMessage::Wanted(index) => self.wanted(&snapshot, index, now),
                        HandshakeMessage::Stop => return,
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                let shared = self.shared.clone();
                let snapshot = shared.snapshot.load();
                for path in &snapshot.peers {
                    self.tick(&snapshot, path, now);
                }
            }
            self.flush();
        }
    }

    fn received(&mut self, snapshot: &Snapshot, datagram: &Datagram, now: Instant) {
        let mut out = [0; HANDSHAKE_MAX];
        let path = match self.front.admit(datagram.from, &datagram.bytes, now, &mut out) {
            Admission::Initiation(public) => by_key(snapshot, &public),
            Admission::Answer(index) => snapshot.by_receiver.get(&index).and_then(|index| snapshot.peer(*index)),
            Admission::Cookie(len) => {
                self.send(datagram.from, datagram.local, &out[..len]);
                return;
            }
            Admission::Drop(_) => {
                self.shared.counters.add(PathDrop::Handshake, 1);
                return;
            }
        };
        let Some(path) = path else {
            self.shared.counters.add(PathDrop::Handshake, 1);
            return;
        };
        let mut state = path.peer.state.lock();
        let Some(tunnel) = state.tunnel.as_mut() else {
            self.shared.counters.add(PathDrop::Handshake, 1);
            return;
        };
        let outcome = tunnel.handle_handshake(&datagram.bytes, now, &mut out);
        if outcome.authenticated {
            Peer::learn_path(&mut state, datagram.from, datagram.local);
        } else if datagram.bytes.first() != Some(&3) {
            self.shared.counters.add(PathDrop::Handshake, 1);
        }
        if let Some(len) = outcome.reply {
            self.send(datagram.from, datagram.local, &out[..len]);
        }
        if outcome.established {
            tracing::debug!(peer = %path.peer.name, endpoint = %datagram.from, "session established");
            let mtu = inner_mtu(snapshot, path.peer.index);
            self.send_held(path, mtu, &mut state, now);
        }
    }

    /// Sends what waited for the session.
    fn send_held(&mut self, path: &PathPeer, inner_mtu: usize, state: &mut PeerState, now: Instant) {
        let Some(destination) = state.path else { return };
        let (mut packets, mut bytes) = (0, 0);
        while let Some(mut packet) = state.next_held(now) {
            let len = packet.len();
            let fits = len <= inner_mtu;
            let fragments = if fits { OuterFragments::Never } else { needs_fragments(packet.first().copied(), len) };
            packet.resize(len.next_multiple_of(16).min(inner_mtu.max(len)), 0);
            let Some(tunnel) = state.tunnel.as_mut() else { return };
            let Ok(sealed) = tunnel.seal(&packet, &mut self.sealed) else { return };
            push(&mut self.batch, &self.sockets, &self.sealed[..sealed], &destination, fragments);
            packets += 1;
            bytes += len as u64;
        }
        if let Some(tunnel) = state.tunnel.as_mut() {
            while let Some(len) = tunnel.take_queued(&mut self.sealed) {
                push(&mut self.batch, &self.sockets, &self.sealed[..len], &destination, OuterFragments::Never);
            }
        }
        if packets > 0 {
            path.peer.counters.sent(packets, bytes);
        }
    }

    fn wanted(&mut self, snapshot: &Snapshot, index: PeerIndex, now: Instant) {
        let Some(path) = snapshot.peer(index) else { return };
        let mut state = path.peer.state.lock();
        let state = &mut *state;
        let (Some(tunnel), Some(destination)) = (state.tunnel.as_mut(), state.path) else { return };
        if tunnel.has_session() {
            self.send_held(path, inner_mtu(snapshot, path.peer.index), state, now);
            return;
        }
        let mut out = [0; HANDSHAKE_MAX];
        if let Some(len) = tunnel.initiate(now, &mut out) {
            self.send(destination.to, destination.source, &out[..len]);
        }
    }

    fn tick(&mut self, snapshot: &Snapshot, path: &PathPeer, now: Instant) {
        let mut state = path.peer.state.lock();
        let state = &mut *state;
        let (Some(tunnel), Some(destination)) = (state.tunnel.as_mut(), state.path) else { return };
        let mut out = [0; HANDSHAKE_MAX];
        if let Some(len) = tunnel.tick(now, &mut out) {
            self.send(destination.to, destination.source, &out[..len]);
        }
        // A responder learns only with the first data packet that it may send.
        if tunnel.has_session() {
            self.send_held(path, inner_mtu(snapshot, path.peer.index), state, now);
        }
    }

    fn send(&mut self, to: SocketAddr, source: Option<IpAddr>, bytes: &[u8]) {
        push(&mut self.batch, &self.sockets, bytes, &Destination { to, source, tos: 0 }, OuterFragments::Never);
    }

    fn flush(&mut self) {
        // One batch serves both families in turn: `push` flushes when the family changes.
        flush(&mut self.batch, &self.sockets);
    }
}

fn by_key<'s>(snapshot: &'s Snapshot, public: &PublicKeyBytes) -> Option<&'s PathPeer> {
    snapshot.peers.iter().find(|path| {
        matches!(&path.peer.kind, PeerKind::ForeignWireguard(key) if key == public)
            || path.peer.state.lock().public_key.as_ref() == Some(public)
    })
}

fn push(
    batch: &mut SendBatch,
    sockets: &[Option<Arc<OwnedFd>>; 2],
    bytes: &[u8],
    destination: &Destination,
    fragments: OuterFragments,
) {
    if batch.family().is_some_and(|v6| v6 != destination.to.is_ipv6()) || !batch.push(bytes, destination, fragments) {
        flush(batch, sockets);
        batch.push(bytes, destination, fragments);
    }
}

fn flush(batch: &mut SendBatch, sockets: &[Option<Arc<OwnedFd>>; 2]) {
    if let Some(v6) = batch.family() {
        if let Some(fd) = &sockets[usize::from(v6)] {
            batch.flush(fd.as_raw_fd());
        }
        // What a full socket did not take is a handshake message or a held packet: both are repeated or given up.
        batch.clear();
    }
}

impl std::fmt::Debug for HandshakeThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandshakeThread").field("front", &self.front).finish_non_exhaustive()
    }
}

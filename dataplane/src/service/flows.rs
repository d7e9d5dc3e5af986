//! The flows that go through virtual addresses: who talks to which backend.
//!
//! A flow has two names: from the client to the virtual address, and from the backend to whoever it takes for the client.
//! Both are found in the shard that the client's side hashes to.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, MutexGuard};
use siphasher::sip::SipHasher13;

use super::table::{Backend, BackendState, Frontend, FrontendState};
use overlay_wire::packet::protocol;

const SHARDS: usize = 16;
/// Part of a shard that one client may fill.
const SHARE: usize = 8;
/// Slots looked at by one call of [`Flows::expire`].
const SWEEP: usize = 512;
/// Most clients whose backend is remembered, per shard.
const MAX_AFFINITIES: usize = 4096;

/// One end-to-end name of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Name {
    pub(crate) protocol: u8,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
}

/// How far a flow is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Nothing came back yet.
    Opening,
    /// The backend answered.
    Open,
    /// Both ends are done, or one gave up.
    Closing,
}

impl Phase {
    /// How long a flow lives without a packet, in milliseconds (TCP: RFC 5382 section 5; UDP: RFC 4787 section 4.3).
    fn patience_ms(self, protocol: u8) -> u64 {
        1000 * match (self, protocol == protocol::TCP) {
            (Self::Opening, _) => 30,
            (Self::Open, true) => 2 * 3600 + 600,
            (Self::Open, false) => 180,
            (Self::Closing, true) => 120,
            (Self::Closing, false) => 1,
        }
    }
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) client: SocketAddr,
    pub(crate) vip: SocketAddr,
    pub(crate) protocol: u8,
    pub(crate) backend: SocketAddr,
    /// Whom the backend takes for the client, where that is not the client.
    pub(crate) mask: Option<SocketAddr>,
    pub(crate) phase: Phase,
    /// Backends tried before this one.
    pub(crate) tried: Vec<SocketAddr>,
    /// The client's SYN, until the backend answers.
    pub(crate) syn: Option<Box<[u8]>>,
    /// Which ends have sent FIN: 1 the client, 2 the backend.
    pub(crate) fins: u8,
    /// The revision of the services that the backend was last seen in.
    pub(crate) revision: u64,
    pub(crate) state: Arc<BackendState>,
    pub(crate) frontend: Arc<FrontendState>,
    used_ms: u64,
}

impl Flow {
    /// A flow that begins.
    pub(crate) fn new(name: &Name, frontend: &Frontend, backend: &Backend, mask: Option<SocketAddr>) -> Self {
        Self {
            client: name.src,
            vip: name.dst,
            protocol: name.protocol,
            backend: backend.address,
            mask,
            phase: Phase::Opening,
            tried: Vec::new(),
            syn: None,
            fins: 0,
            revision: 0,
            state: Arc::clone(&backend.state),
            frontend: Arc::clone(&frontend.state),
            used_ms: 0,
        }
    }

    fn forward(&self) -> Name {
        Name { protocol: self.protocol, src: self.client, dst: self.vip }
    }

    /// What the backend's packets look like.
    fn backward(&self) -> Name {
        Name { protocol: self.protocol, src: self.backend, dst: self.mask.unwrap_or(self.client) }
    }

    /// Notes that it was used.
    pub(crate) fn touch(&mut self, now_ms: u64) {
        self.used_ms = now_ms;
    }

    /// How long ago it was used last.
    pub(crate) fn idle_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.used_ms)
    }

    fn is_over(&self, now_ms: u64) -> bool {
        self.idle_ms(now_ms) > self.phase.patience_ms(self.protocol)
    }
}

/// Why a flow could not be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Full {
    /// The table, or the client's share of it.
    Table,
    /// The backend already has a flow with this end.
    Taken,
}

/// The hasher of names: keyed, so that nobody can aim at one bucket.
#[derive(Clone, Debug)]
pub(crate) struct Keyed([u8; 16]);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

/// The flows whose clients hash alike.
#[derive(Debug)]
pub(crate) struct Shard {
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    names: HashMap<Name, u32, Keyed>,
    clients: HashMap<IpAddr, u32, Keyed>,
    affinities: HashMap<(IpAddr, SocketAddr), (SocketAddr, u64), Keyed>,
    capacity: usize,
    swept: usize,
}

impl Shard {
    fn new(capacity: usize, key: &Keyed) -> Self {
        Self {
            flows: Vec::new(),
            free: Vec::new(),
            names: HashMap::with_hasher(key.clone()),
            clients: HashMap::with_hasher(key.clone()),
            affinities: HashMap::with_hasher(key.clone()),
            capacity,
            swept: 0,
        }
    }

    /// The flow that a packet with this name belongs to, of either direction, if it still lives.
    pub(crate) fn find(&mut self, name: &Name, now_ms: u64) -> Option<(u32, &mut Flow)> {
        let at = *self.names.get(name)?;
        if self.flows.get(at as usize)?.as_ref()?.is_over(now_ms) {
            self.remove(at);
            return None;
        }
        self.flows.get_mut(at as usize)?.as_mut().map(|flow| (at, flow))
    }

    /// Whether a name is in use.
    pub(crate) fn knows(&self, name: &Name) -> bool {
        self.names.contains_key(name)
    }

    /// Adds a flow.
    pub(crate) fn add(&mut self, mut flow: Flow, now_ms: u64) -> Result<(), Full> {
        let client = flow.client.ip();
        let held = self.clients.get(&client).copied().unwrap_or(0) as usize;
        if self.len() >= self.capacity || held >= (self.capacity / SHARE).max(1) {
            return Err(Full::Table);
        }
        let (forward, backward) = (flow.forward(), flow.backward());
        if self.knows(&forward) || self.knows(&backward) {
            return Err(Full::Taken);
        }
        flow.touch(now_ms);
        flow.state.active.fetch_add(1, Ordering::Relaxed);
        flow.frontend.active.fetch_add(1, Ordering::Relaxed);
        let at = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() as u32 - 1
        });
        self.flows[at as usize] = Some(flow);
        self.names.insert(forward, at);
        self.names.insert(backward, at);
        *self.clients.entry(client).or_default() += 1;
        Ok(())
    }

    /// Removes a flow and gives it back.
    pub(crate) fn remove(&mut self, at: u32) -> Option<Flow> {
        let flow = self.flows.get_mut(at as usize)?.take()?;
        self.free.push(at);
        self.names.remove(&flow.forward());
        self.names.remove(&flow.backward());
        flow.state.active.fetch_sub(1, Ordering::Relaxed);
        flow.frontend.active.fetch_sub(1, Ordering::Relaxed);
        let client = flow.client.ip();
        if let Some(held) = self.clients.get_mut(&client) {
            *held -= 1;
            if *held == 0 {
                self.clients.remove(&client);
            }
        }
        Some(flow)
    }

    /// The backend that a client had before, while that is remembered.
    pub(crate) fn affinity(&self, client: IpAddr, vip: SocketAddr, now_ms: u64) -> Option<SocketAddr> {
        self.affinities.get(&(client, vip)).filter(|(_, until)| *until > now_ms).map(|(backend, _)| *backend)
    }

    /// Remembers the backend of a client.
    pub(crate) fn remember(
        &mut self,
        client: IpAddr,
        vip: SocketAddr,
        backend: SocketAddr,
        until_ms: u64,
        now_ms: u64,
    ) {
        if self.affinities.len() >= MAX_AFFINITIES {
            self.affinities.retain(|_, (_, until)| *until > now_ms);
            if self.affinities.len() >= MAX_AFFINITIES {
                return;
            }
        }
        self.affinities.insert((client, vip), (backend, until_ms));
    }

    fn len(&self) -> usize {
        self.flows.len() - self.free.len()
    }

    fn sweep(&mut self, now_ms: u64) {
        for _ in 0..SWEEP.min(self.flows.len()) {
            let at = self.swept % self.flows.len();
            self.swept = at + 1;
            if self.flows[at].as_ref().is_some_and(|flow| flow.is_over(now_ms)) {
                self.remove(at as u32);
            }
        }
    }
}

/// All flows, shared by the workers.
#[derive(Debug)]
pub(crate) struct Flows {
    shards: Box<[Mutex<Shard>]>,
    key: Keyed,
}

impl Flows {
    /// A table of so many flows at most; `seed` keys its hashes.
    pub(crate) fn new(capacity: usize, seed: [u8; 16]) -> Self {
        let key = Keyed(seed);
        let each = capacity.div_ceil(SHARDS);
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(each, &key))).collect(), key }
    }

    /// The shard of flows that the near end, a client or its mask, takes part in.
    pub(crate) fn shard(&self, near: SocketAddr) -> MutexGuard<'_, Shard> {
        self.shards[self.shard_of(near)].lock()
    }

    /// The number of that shard.
    pub(crate) fn shard_of(&self, near: SocketAddr) -> usize {
        (self.key.hash_one(near) >> 32) as usize % SHARDS
    }

    /// The shard that remembers the backends of a client.
    pub(crate) fn memory(&self, client: IpAddr) -> MutexGuard<'_, Shard> {
        self.shards[(self.key.hash_one(client) >> 32) as usize % SHARDS].lock()
    }

    /// A number from what is given, that nobody outside can tell.
    pub(crate) fn secret_hash(&self, words: &[u64]) -> u64 {
        let mut hasher = self.key.build_hasher();
        words.iter().for_each(|word| hasher.write_u64(*word));
        hasher.finish()
    }

    /// Ends what is over, with a bounded amount of work.
    pub(crate) fn expire(&self, now_ms: u64) {
        self.shards.iter().for_each(|shard| shard.lock().sweep(now_ms));
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

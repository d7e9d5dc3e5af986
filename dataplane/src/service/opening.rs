//! How a flow gets its backend, and another one when that does not answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::balance::Draw;
use super::flows::{Flow, Flows, Full, Name, Shard};
use super::table::{Backend, Frontend};
use crate::reason::DropReason;
use crate::tables::{Route, Tables};

/// Backends looked at for one flow, where the first ones already talk to the same client port.
const MAX_CLASHES: usize = 8;
/// Ports looked at for the mask of a client.
const MAX_PORTS: u16 = 2048;
/// The first port that a mask has.
const FIRST_PORT: u16 = 1024;

/// Gives a new flow a backend. `Err` when the packet cannot go anywhere.
pub(super) fn open(
    flows: &Flows,
    tables: &Tables,
    frontend: &Frontend,
    name: &Name,
    now_ms: u64,
) -> Result<Flow, DropReason> {
    let state = &frontend.state;
    if frontend.max_connections > 0 && state.active.load(Ordering::Relaxed) >= frontend.max_connections {
        state.limited.fetch_add(1, Ordering::Relaxed);
        return Err(DropReason::ServiceLimit);
    }
    let turn = state.opened.fetch_add(1, Ordering::Relaxed);
    choose(flows, tables, frontend, name, turn, &[], now_ms)
}

/// Chooses a backend none of `tried` and makes the flow to it, which is not added yet.
fn choose(
    flows: &Flows,
    tables: &Tables,
    frontend: &Frontend,
    name: &Name,
    turn: u64,
    tried: &[SocketAddr],
    now_ms: u64,
) -> Result<Flow, DropReason> {
    let client = name.src.ip();
    let draw = draw(flows, frontend, name, turn, now_ms);
    let may_have = |backend: &Backend| !tried.contains(&backend.address);
    let kept = frontend.affinity.and_then(|_| flows.memory(client).affinity(client, frontend.vip, now_ms));
    let kept = kept
        .and_then(|address| frontend.backend(address))
        .filter(|backend| may_have(backend) && backend.share() > 0 && !backend.state.is_ejected(now_ms));
    let Some(backend) = kept.or_else(|| frontend.pick(&draw, may_have)) else {
        frontend.state.empty.fetch_add(1, Ordering::Relaxed);
        return Err(DropReason::NoBackend);
    };
    let mask = mask(flows, tables, backend, name)?;
    if let Some(timeout) = frontend.affinity {
        let until = now_ms.saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        flows.memory(client).remember(client, frontend.vip, backend.address, until, now_ms);
    }
    let mut flow = Flow::new(name, frontend, backend, mask);
    flow.tried = tried.to_vec();
    flow.revision = tables.services.revision;
    Ok(flow)
}

/// Adds a flow, to another backend where the one chosen has a flow of the same ends already.
pub(super) fn settle(
    flows: &Flows,
    tables: &Tables,
    frontend: &Frontend,
    mut flow: Flow,
    now_ms: u64,
) -> Result<SocketAddr, DropReason> {
    let name = Name { protocol: flow.protocol, src: flow.client, dst: flow.vip };
    for turn in 0..MAX_CLASHES {
        let (backend, state) = (flow.backend, std::sync::Arc::clone(&flow.state));
        let (tried, syn) = (flow.tried.clone(), flow.syn.clone());
        match flows.shard(name.src).add(flow, now_ms) {
            Ok(()) => {
                state.picked.fetch_add(1, Ordering::Relaxed);
                return Ok(backend);
            }
            Err(Full::Table) => return Err(DropReason::ServiceFlowsFull),
            Err(Full::Taken) => {}
        }
        let avoided = [&tried[..], &[backend]].concat();
        flow = choose(flows, tables, frontend, &name, turn as u64, &avoided, now_ms)?;
        flow.syn = syn;
    }
    Err(DropReason::ServiceFlowsFull)
}

/// A connect failed: the backend is told so, and the flow moves to another where it may. Gives back the client's SYN to be
/// sent again when it does; else the flow is as before.
pub(super) fn retry(
    flows: &Flows,
    mut shard: MutexGuard<'_, Shard>,
    tables: &Tables,
    at: u32,
    now_ms: u64,
) -> Option<Box<[u8]>> {
    let old = shard.remove(at)?;
    drop(shard);
    let name = Name { protocol: old.protocol, src: old.client, dst: old.vip };
    let frontend = tables.services.find(old.vip, old.protocol);
    if let Some(frontend) = frontend {
        note_failure(frontend, old.backend, now_ms);
    }
    let next = frontend.filter(|frontend| old.tried.len() < frontend.retries.into() && old.syn.is_some()).and_then(
        |frontend| {
            let tried = [&old.tried[..], &[old.backend]].concat();
            let turn = frontend.state.opened.load(Ordering::Relaxed);
            let mut flow = choose(flows, tables, frontend, &name, turn, &tried, now_ms).ok()?;
            flow.syn = old.syn.clone();
            settle(flows, tables, frontend, flow, now_ms).ok()?;
            frontend.state.retried.fetch_add(1, Ordering::Relaxed);
            old.syn.clone()
        },
    );
    if next.is_none() {
        // Nothing else to try: the flow stays, so that what came from the backend reaches the client.
        let _ = flows.shard(name.src).add(old, now_ms);
    }
    next
}

/// Counts a failed connect; too many in a row, and the backend is left out for a while.
fn note_failure(frontend: &Frontend, address: SocketAddr, now_ms: u64) {
    let Some(backend) = frontend.backend(address) else { return };
    let (state, outlier) = (&backend.state, &frontend.outlier);
    let failures = state.failures.fetch_add(1, Ordering::Relaxed) + 1;
    if outlier.consecutive == 0 || failures < outlier.consecutive || state.is_ejected(now_ms) {
        return;
    }
    let usable = frontend.backends().iter().filter(|backend| backend.share() > 0);
    let (mut all, mut out) = (0u32, 0u32);
    usable.for_each(|backend| (all, out) = (all + 1, out + u32::from(backend.state.is_ejected(now_ms))));
    if out + 1 >= all || (out + 1) * 100 > all * outlier.max_percent {
        return;
    }
    let times = state.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    let pause = outlier.base.saturating_mul(times).min(outlier.max);
    state.failures.store(0, Ordering::Relaxed);
    state.ejected_until.store(now_ms + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX / 2), Ordering::Relaxed);
}

/// The numbers a choice is made with. Those that hosts share are not keyed with a secret of this one.
fn draw(flows: &Flows, frontend: &Frontend, name: &Name, turn: u64, now_ms: u64) -> Draw {
    let words = |address: IpAddr| match address {
        IpAddr::V4(v4) => [0, u64::from(u32::from(v4))],
        IpAddr::V6(v6) => [(u128::from(v6) >> 64) as u64, u128::from(v6) as u64],
    };
    let [high, low] = words(name.src.ip());
    let client_hash = super::maglev::hash_words(&[high, low]);
    let flow_hash = if frontend.affinity.is_some() {
        client_hash
    } else {
        let [vip_high, vip_low] = words(name.dst.ip());
        let ports = u64::from(name.src.port()) << 32 | u64::from(name.dst.port()) << 16 | u64::from(name.protocol);
        super::maglev::hash_words(&[high, low, vip_high, vip_low, ports])
    };
    let random = flows.secret_hash(&[high, low, u64::from(name.src.port()), turn, now_ms]);
    Draw { flow_hash, client_hash, random, now_ms }
}

/// Whom the backend is to take for the client. Its answer must come back through the packet path: that of a neighbour in a
/// bridge, of the client to itself, or to its own host, would not.
fn mask(flows: &Flows, tables: &Tables, backend: &Backend, name: &Name) -> Result<Option<SocketAddr>, DropReason> {
    let client = name.src.ip();
    if tables.owners.lookup(backend.address.ip()) != Some(&Route::Local) {
        return Ok(None);
    }
    if !backend.bridged && client != backend.address.ip() && !tables.local.host.contains(&client) {
        return Ok(None);
    }
    let Some(service) = tables.services.mask(client) else { return Err(DropReason::NoBackend) };
    // Its port is such that both names of the flow are found in one shard.
    let shard = flows.shard_of(name.src);
    let held = flows.shard(name.src);
    let first = name.src.port().max(FIRST_PORT);
    (0..MAX_PORTS)
        .map(|step| SocketAddr::new(service, first.checked_add(step).unwrap_or(FIRST_PORT + step)))
        .filter(|mask| flows.shard_of(*mask) == shard)
        .find(|mask| !held.knows(&Name { protocol: name.protocol, src: backend.address, dst: *mask }))
        .map(Some)
        .ok_or(DropReason::ServiceFlowsFull)
}

//! The time as a member: everything is started in the order in which each part needs the one before, and stopped in
//! reverse.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use overlay_config::{Config, secret};
use overlay_control::api::Problem;
use overlay_control::{ApiError, Code};
use overlay_dataplane::{Conntrack, Engine, SavedWhile};
use overlay_routing::gossip::{Gossip, GossipConfig, cluster_id};
use overlay_routing::identity::IdentityKey;
use overlay_wire::{Encapsulation, Mtu};
use rand_core::{OsRng, RngCore};
use tokio::sync::{mpsc, oneshot, watch};

use super::errors::{device_error, internal, plumbing_error};
use super::signals::{Asked, Signals, monotonic, notify};
use super::sockets::{Sockets, open_sockets};
use super::{Next, Process, check_identities};
use crate::asking::Listeners;
use crate::backend::Api;
use crate::capture::Captures;
use crate::cluster_policy::PolicyState;
use crate::core::{Change, Core, CoreParts, host_addresses, unix_ms};
use crate::counters::PathCounters;
use crate::device::{DeviceConfig, DeviceError, Queue, QueueIndex};
use crate::director::{
    ANYWHERE, Director, PolicyDriver, Underlay, announcements, enter, foreign_prefixes, own_endpoints, own_host,
    publish, static_members,
};
use crate::events::EventLog;
use crate::flow_store::{FlowSaver, FlowStore};
use crate::handshake::HandshakeThread;
use crate::limits::Limits;
use crate::membership::{IssuerTask, Kept, Work, keep};
use crate::metrics;
use crate::names::{self, Enclosed, NameParts};
use crate::plumbing::lease::Journal;
use crate::plumbing::ledger::Ledger;
use crate::plumbing::{self, Masquerade, PlumbingConfig, PlumbingHandle, UnderlayTracking};
use crate::rebuild::first_host_policy;
use crate::shared::{HandshakeMessage, Shared, WorkerCommand};
use crate::sizes;
use crate::snapshot::Snapshot;
use crate::state;
use crate::underlay::route::route_to;
use crate::wireguard::Keys;
use crate::worker::{Worker, WorkerHandle, WorkerParts};

/// Handshake messages between worker and handshake thread, at most.
const HANDSHAKE_QUEUE: usize = 512;
/// Gossip datagrams between worker and director, at most.
const GOSSIP_QUEUE: usize = 2048;
/// Joiners and callers that wait for the issuer, at most.
const WORK_QUEUE: usize = 256;
/// How long the handshake thread may take to see that it is to end.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// Largest underlay MTU used without being asked to: jumbo frames.
const MAX_UNDERLAY_MTU: u16 = 9000;
/// Length of the TUN's queue, in packets or super-packets.
const TX_QUEUE_LEN: u32 = 1000;

fn identity(config: &Config) -> Result<IdentityKey, ApiError> {
    let path = &config.node.identity_file;
    secret::read_key(path).map(|key| IdentityKey::from_bytes(&key)).map_err(|error| {
        ApiError::new(
            Code::Identity,
            format!("the identity key {} cannot be used", path.display()),
            error.to_string(),
            format!("make one with `overlayctl key generate --out {}`, or restore it from a backup", path.display()),
        )
    })
}

fn wireguard_keys(config: &Config) -> Result<Keys, ApiError> {
    if let Some(path) = &config.overlay.private_key_file {
        return secret::read_key(path).map(|key| Keys::from_secret(*key)).map_err(|error| {
            ApiError::new(
                Code::Identity,
                format!("the WireGuard key {} cannot be used", path.display()),
                error.to_string(),
                format!("make one with `wg genkey > {0}; chmod 600 {0}`", path.display()),
            )
        });
    }
    let mut secret = zeroize::Zeroizing::new([0; 32]);
    OsRng.fill_bytes(secret.as_mut());
    Ok(Keys::from_secret(*secret))
}

/// The MTU of the TUN: what the file says, else the smallest underlay MTU on the way to a member, less 80, as far as IPv6
/// allows. Members by certificate are where they were `seen` last.
fn tun_mtu(config: &Config, seen: impl Iterator<Item = SocketAddr>) -> Mtu {
    if let Some(mtu) = config.overlay.mtu {
        return mtu;
    }
    let mark = config.plumbing.mark_socket;
    let members: Vec<SocketAddr> = config.members.iter().filter_map(|member| member.endpoint).chain(seen).collect();
    let mtu = |to: &SocketAddr| route_to(*to, mark).ok().map(|route| route.mtu);
    let smallest = members.iter().filter_map(mtu).min().or_else(|| ANYWHERE.iter().filter_map(mtu).min());
    // Without a member to ask for, a route may be the loopback's: then a network card's usual MTU is the guess.
    let guess = if members.is_empty() { Mtu::ETHERNET.get() } else { MAX_UNDERLAY_MTU };
    sizes::tun_mtu(smallest.unwrap_or(Mtu::ETHERNET.get()).min(guess), &config.node.prefixes)
}

pub(crate) fn plumbing_config(config: &Config, mtu: Mtu) -> PlumbingConfig {
    let plumbing = &config.plumbing;
    PlumbingConfig {
        interface: config.overlay.interface.clone(),
        mtu: u32::from(mtu.get()),
        txqueuelen: TX_QUEUE_LEN,
        host_addresses: host_addresses(&config.node.prefixes),
        own_prefixes: config.node.prefixes.clone(),
        pool: config.overlay.pool.clone(),
        tables: plumbing::Tables {
            local: plumbing.table_local,
            overlay: plumbing.table_overlay,
            egress: plumbing.table_egress,
        },
        rule_priority: plumbing.rule_priority,
        route_protocol: plumbing.route_protocol,
        mark_container: plumbing.mark_container,
        mark_socket: plumbing.mark_socket,
        group: plumbing.group,
        nft_table: plumbing.nft_table.clone(),
        masquerade: if plumbing.masquerade { Masquerade::On } else { Masquerade::Off },
        underlay_tracking: UnderlayTracking::Skip,
        listen_port: config.overlay.listen_port,
        state_dir: config.paths.state_dir.clone(),
    }
}

/// Runs this host as a member until it is told to stop, leaves, or a part of the daemon ends on its own.
///
/// # Errors
/// When something that cannot be done without is missing; nothing of ours is left on the host then.
pub(super) async fn serve(process: &mut Process, config: Config) -> Result<Next, ApiError> {
    let start = Instant::now();
    check_identities(&config)?;
    let identity = identity(&config)?;
    let keys = wireguard_keys(&config)?;
    let boot_epoch = state::next_boot_epoch(&config.paths.state_dir, unix_ms())?;
    let sockets = open_sockets(&config)?;
    let kept = process.store.kept();
    let seen = kept.iter().flat_map(|kept| &kept.peers).filter_map(|peer| peer.endpoints.first().copied());
    let mtu = tun_mtu(&config, seen);
    let device = DeviceConfig { name: config.overlay.interface.clone(), offload: config.overlay.offload, mtu };
    if crate::device::has_carrier(&device.name) {
        return Err(device_error(DeviceError::Busy { name: device.name }));
    }
    let queue = Queue::open(&device, QueueIndex(0)).map_err(device_error)?;
    let offload = queue.offload();

    let policy =
        PolicyState::restored(kept.as_ref().map(|kept| kept.cluster_policy.clone()).unwrap_or_default(), start);
    let ledger = Ledger::open(&config.paths.state_dir).map_err(|error| plumbing_error(&error))?;
    let journal = Journal::open(&config.paths.state_dir).map_err(|error| plumbing_error(&error))?;
    let mut labels = journal.identities();
    drop(journal);
    if let Some(own) = kept.as_ref().and_then(Kept::certificate) {
        labels.extend(
            host_addresses(&config.node.prefixes).into_iter().map(|address| (address, own.certificate.labels.clone())),
        );
    }
    let first_policy =
        first_host_policy(&config, policy.rules.as_deref().unwrap_or(&config.policy), &ledger.networks(), labels);
    let (plumbing, first, plumbing_thread) =
        plumbing::start(plumbing_config(&config, mtu), first_policy).await.map_err(|error| plumbing_error(&error))?;
    for problem in &first.problems {
        tracing::warn!(code = problem.code, why = %problem.why, next = %problem.next, "{}", problem.what);
    }
    let kernel_tunnels = plumbing.kernel_tunnels().await.unwrap_or_default();
    if !kernel_tunnels.is_empty()
        && let Err(error) = refuse_kernel_tunnels(&config, &kernel_tunnels)
    {
        undo(&queue, &plumbing).await;
        return Err(error);
    }

    let (handshakes, handshake_messages) = crossbeam_channel::bounded::<HandshakeMessage>(HANDSHAKE_QUEUE);
    let (gossip_datagrams, datagrams) = mpsc::channel(GOSSIP_QUEUE);
    let (worker_event, worker_events) = mpsc::channel(64);
    let (change, changes) = mpsc::channel(64);
    let (leave, left) = watch::channel(false);
    let (work, works) = mpsc::channel(WORK_QUEUE);
    let (keeper, kept) = watch::channel(kept);
    let shared = Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        counters: PathCounters::default(),
        start,
        probe_id: (OsRng.next_u32() >> 16) as u16,
        waits_for_labels: AtomicBool::new(false),
        pings: crate::ping::Pings::default(),
        captures: Arc::new(Captures::new(Duration::from_secs(config.limits.capture_back_seconds.into()))),
        handshakes,
        gossip: gossip_datagrams,
        events: worker_event,
    });
    let mut seed = [0; 16];
    OsRng.fill_bytes(&mut seed);
    let conntrack = Arc::new(Conntrack::new(config.limits.conntrack_entries as usize, seed, start));
    let (worker, commands, wake) = WorkerHandle::channel().map_err(|error| internal("no descriptor left", error))?;

    let limits = Limits::open(process.store.directory()).map_err(|error| error.to_api())?;
    let core = Arc::new(Core::new(CoreParts {
        shared: Arc::clone(&shared),
        config_path: process.config_path.clone(),
        worker: worker.clone(),
        conntrack: Arc::clone(&conntrack),
        limits,
        plumbing: plumbing.clone(),
        keys: keys.clone(),
        identity: identity.public(),
        mtu,
        host_addresses: host_addresses(&config.node.prefixes),
        changes: change.clone(),
        kernel_tunnels,
        offload,
        events: EventLog::default(),
        file_text: process.text.clone(),
        layer: process.layer(),
        leave,
        work: work.clone(),
        store: process.store.clone(),
        cluster_policy: policy,
        config: Arc::new(config),
    }));
    let parts = DirectorParts { boot_epoch, datagrams, worker_events, changes, work, keeper };
    let started = issuer(&core, &identity, &sockets, works)
        .and_then(|issuer| Ok((director(&core, identity, &sockets, parts, issuer.issuer.is_some())?, issuer)));
    let (director, issuer) = match started {
        Ok(started) => started,
        Err(error) => {
            undo(&queue, &plumbing).await;
            return Err(error);
        }
    };
    // Before the first packet.
    let flows = restored_flows(&core);
    let worker_thread = {
        let parts = WorkerParts {
            device,
            queue,
            engine: Engine::for_worker(&conntrack, start),
            commands,
            wake,
            receive: sockets.receive(),
            send: sockets.send(),
            listen_port: core.config.load().overlay.listen_port,
        };
        let worker = Worker::new(Arc::clone(&shared), parts);
        std::thread::Builder::new().name("worker-0".into()).spawn(move || worker.run())
    }
    .map_err(|error| internal("the worker thread cannot start", error))?;
    let handshake_thread = {
        let thread = HandshakeThread::new(
            Arc::clone(&shared),
            keys,
            handshake_messages,
            [sockets.udp4.clone(), sockets.udp6.clone()],
        );
        std::thread::Builder::new().name("handshakes".into()).spawn(move || thread.run())
    }
    .map_err(|error| internal("the handshake thread cannot start", error))?;

    let saver = FlowSaver::start(flows, conntrack, Arc::clone(&core.flow_saves), core.events.clone())
        .map_err(|error| internal("the thread that saves flows cannot start", error))?;

    let (stop, stopped) = watch::channel(false);
    let director = tokio::spawn(director.run(stopped.clone()));
    let issuer = tokio::spawn(issuer.run(stopped.clone()));
    let keeper = tokio::spawn(keep(Arc::clone(&core), process.store.clone(), kept, stopped.clone()));
    let backend = Arc::new(Api::new(Arc::clone(&core)));
    let api = tokio::spawn(Arc::clone(&process.server).run(Arc::clone(&backend), stopped.clone()));
    let uapi = uapi(&core).map(|server| tokio::spawn(server.run(Arc::clone(&backend), stopped.clone())));
    let figures = figures(&core).await.map(|server| tokio::spawn(server.run(backend, stopped.clone())));
    let names = serve_names(&core, stopped.clone()).await;
    core.events.info("started", None, format!("overlayd {} is up", env!("CARGO_PKG_VERSION")));
    notify(&[sd_notify::NotifyState::Ready]);

    let end = supervise(&mut process.signals, &core, &change, left, [&worker_thread, &handshake_thread]).await;
    let why = match &end {
        End::Asked => "asked to stop",
        End::Left => "this host leaves the cluster",
        End::Failed(cause) => cause,
    };
    core.events.info("stopping", None, why);
    if end != End::Left {
        notify(&[sd_notify::NotifyState::Stopping]);
    }
    let _ = stop.send(true);
    let _ = director.await;
    if let Some(names) = names {
        let _ = tokio::task::spawn_blocking(move || names.join()).await;
    }
    let _ = issuer.await;
    let _ = keeper.await;
    let _ = api.await;
    for server in [uapi, figures].into_iter().flatten() {
        let _ = server.await;
    }
    // A crash of a part leaves the host as it is, so that a restart finds everything in place.
    let clean = !matches!(end, End::Failed(_));
    worker.send(WorkerCommand::Stop { remove_device: clean });
    let ending = move || {
        let saved = if worker_thread.join().is_ok() { SavedWhile::Stopped } else { SavedWhile::Running };
        saver.finish(saved);
    };
    let _ = tokio::task::spawn_blocking(ending).await;
    // The port must be free for what comes next. The thread takes from its queue all the time, so there is room.
    if shared.handshakes.send_timeout(HandshakeMessage::Stop, STOP_WITHIN).is_ok() {
        let _ = tokio::task::spawn_blocking(move || handshake_thread.join()).await;
    }
    if clean {
        stop_plumbing(&plumbing).await;
        let _ = tokio::task::spawn_blocking(move || plumbing_thread.join()).await;
    }
    process.text.clone_from(&core.file_text.lock());
    match end {
        End::Asked => Ok(Next::Stop),
        End::Left => Ok(Next::Standby(None)),
        End::Failed(cause) => Ok(Next::Failed(internal("a part of the daemon ended on its own", cause))),
    }
}

/// Takes back what a start that failed has put on the host.
async fn undo(queue: &Queue, plumbing: &PlumbingHandle) {
    if let Err(error) = crate::device::clear_persistence(queue) {
        tracing::warn!(cause = %error, "the TUN device stays");
    }
    stop_plumbing(plumbing).await;
}

/// The socket of the wg tools; without it everything else works.
fn uapi(core: &Core) -> Option<crate::uapi::Server> {
    let path = crate::uapi::socket_path(&core.config.load().overlay.interface);
    match crate::uapi::Server::bind(&path) {
        Ok(server) => Some(server),
        Err(problem) => {
            tracing::warn!(why = %problem.why, next = %problem.next, "{}", problem.what);
            let _ = core.uapi_problem.set(problem);
            None
        }
    }
}

/// The server of names; without it everything else works.
async fn serve_names(core: &Arc<Core>, stop: watch::Receiver<bool>) -> Option<JoinHandle<()>> {
    if !core.config.load().dns.enabled {
        return None;
    }
    let parts = NameParts {
        zone: Arc::clone(&core.zone),
        counters: Arc::clone(&core.name_counters),
        upstreams: Arc::clone(&core.upstreams),
        addresses: core.host_addresses.clone(),
        enclosed: Enclosed::new(Arc::clone(core)),
    };
    match names::start(parts, stop) {
        Ok((servers, thread)) => {
            if core.plumbing.set_name_servers(servers).await.is_err() {
                tracing::warn!("questions about names are not led to the server: the host plumbing has stopped");
            }
            Some(thread)
        }
        Err(error) => {
            let problem = Problem {
                code: "DNS".into(),
                what: "names are not answered on this host".into(),
                why: error.to_string(),
                next: "restart overlayd; `dns.enabled = false` turns the server off".into(),
            };
            tracing::warn!(why = %problem.why, next = %problem.next, "{}", problem.what);
            let _ = core.names_problem.set(problem);
            None
        }
    }
}

/// The page of figures; without it everything else works.
async fn figures(core: &Core) -> Option<metrics::Server> {
    let address = core.config.load().metrics.listen?;
    match metrics::Server::bind(address, metrics::Deadlines::default()).await {
        Ok(server) => Some(server),
        Err(problem) => {
            tracing::warn!(why = %problem.why, next = %problem.next, "{}", problem.what);
            let _ = core.metrics_problem.set(problem);
            None
        }
    }
}

/// Takes up the flows of the last run; where they are kept.
fn restored_flows(core: &Core) -> FlowStore {
    let store = FlowStore::new(&core.config.load().paths.state_dir, core.host, crate::device::own_uid());
    match store.restore(&core.conntrack) {
        Ok(None) => {}
        Ok(Some(told)) => core.events.info("flows-restored", None, told),
        Err(why) => core.events.warn("flows-not-restored", None, why),
    }
    store
}

async fn stop_plumbing(plumbing: &PlumbingHandle) {
    if let Err(errors) = plumbing.stop().await {
        tracing::warn!(cause = %errors, "something is left on the host");
    }
}

/// Plain encapsulations are refused while a kernel tunnel would receive their packets beside us.
fn refuse_kernel_tunnels(
    config: &Config,
    tunnels: &std::collections::BTreeMap<String, String>,
) -> Result<(), ApiError> {
    let names: Vec<&str> = tunnels.keys().map(String::as_str).collect();
    let plain_is_asked = config.overlay.encapsulation != Encapsulation::Wireguard
        || config.members.iter().any(|member| member.encapsulation.is_some_and(|kind| !kind.is_encrypted()))
        || config.peers.iter().any(|peer| !peer.kind.encapsulation().is_encrypted());
    if plain_is_asked {
        return Err(ApiError::new(
            Code::KernelTunnel,
            format!("the kernel tunnel {} is up", names.join(", ")),
            "it would receive IPIP or GRE packets beside overlayd and let them past the filter",
            format!("ip link set {} down, or use encapsulation = \"wireguard\"", names.first().unwrap_or(&"tunl0")),
        ));
    }
    Ok(())
}

/// The issuer's task, also where this host is no issuer yet.
fn issuer(
    core: &Arc<Core>,
    identity: &IdentityKey,
    sockets: &Sockets,
    work: mpsc::Receiver<Work>,
) -> Result<IssuerTask, ApiError> {
    Ok(IssuerTask {
        core: Arc::clone(core),
        store: core.store.clone(),
        issuer: core.store.issuer().map_err(|error| error.to_api())?,
        identity: IdentityKey::from_bytes(&identity.to_bytes()),
        sockets: sockets.gossip()?,
        work,
    })
}

/// What the director is made of beside the core.
struct DirectorParts {
    boot_epoch: u64,
    datagrams: mpsc::Receiver<crate::shared::Datagram>,
    worker_events: mpsc::Receiver<crate::shared::WorkerEvent>,
    changes: mpsc::Receiver<Change>,
    work: mpsc::Sender<Work>,
    keeper: watch::Sender<Option<Kept>>,
}

fn director(
    core: &Arc<Core>,
    identity: IdentityKey,
    sockets: &Sockets,
    parts: DirectorParts,
    is_issuer: bool,
) -> Result<Director, ApiError> {
    let config = core.config.load_full();
    let endpoints = own_endpoints(&config, &[], &BTreeSet::new());
    core.own_endpoints.store(Arc::new(endpoints.clone()));
    let gossip_config = GossipConfig {
        identity,
        cluster: cluster_id(&config.overlay.cluster),
        own: own_host(core, &config, &endpoints),
        members: static_members(&config),
        foreign: foreign_prefixes(&config),
    };
    let mut seed = [0; 32];
    OsRng.fill_bytes(&mut seed);
    let refused = |error: overlay_routing::gossip::GossipError| {
        ApiError::new(Code::Config, "gossip cannot start", error.to_string(), "shorten the list in the configuration")
    };
    let now = Instant::now();
    let mut gossip = Gossip::new(gossip_config, seed, now, parts.boot_epoch).map_err(refused)?;
    if let Some(kept) = parts.keeper.borrow().as_ref() {
        enter(&mut gossip, kept, is_issuer, now)?;
        publish(core, &gossip);
    }
    gossip.announce(announcements(&config), now).map_err(refused)?;
    if let Err(error) = gossip.publish_networks(&core.plumbing.own_networks(), now) {
        tracing::error!(cause = %error, "the networks of this host cannot be announced");
    }
    let labels_published = core.plumbing.identities().borrow().clone();
    gossip.publish_identities(&labels_published, now);
    Ok(Director {
        core: Arc::clone(core),
        gossip,
        sockets: sockets.gossip()?,
        datagrams: parts.datagrams,
        worker_events: parts.worker_events,
        changes: parts.changes,
        underlay: Underlay::default(),
        endpoints,
        learned: None,
        host_policy: None,
        labels_published,
        host_policy_taken: true,
        host_policies_given: 0,
        loop_told: None,
        listeners: Listeners::default(),
        traces: crate::director::TraceDesk::default(),
        work: parts.work,
        keeper: parts.keeper,
        is_unkept: false,
        must_keep: false,
        policy: PolicyDriver::new(core),
    })
}

/// How the time as a member ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// A signal asked for it.
    Asked,
    /// This host left the cluster.
    Left,
    /// A part of the daemon ended on its own.
    Failed(String),
}

/// Waits for a signal to stop, for this host to leave, or for a part to end on its own. Feeds the watchdog.
async fn supervise(
    signals: &mut Signals,
    core: &Arc<Core>,
    change: &mpsc::Sender<Change>,
    mut left: watch::Receiver<bool>,
    [worker, handshakes]: [&std::thread::JoinHandle<()>; 2],
) -> End {
    let mut check = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => return End::Asked,
                Asked::Reload => {
                    notify(&[sd_notify::NotifyState::Reloading, monotonic()]);
                    let (done, outcome) = oneshot::channel();
                    if change.send(Change::Reload(done)).await.is_ok() {
                        // The outcome is recorded as an event by the director.
                        let _ = outcome.await;
                    }
                    notify(&[sd_notify::NotifyState::Ready]);
                }
            },
            // The sender lives in the core, which outlives this.
            Ok(_) = left.wait_for(|left| *left) => return End::Left,
            _ = check.tick() => {
                if worker.is_finished() {
                    return End::Failed("the worker thread ended".to_owned());
                }
                if handshakes.is_finished() {
                    return End::Failed("the handshake thread ended".to_owned());
                }
                // Only a daemon whose every loop turns feeds the watchdog.
                let (answer, answered) = oneshot::channel();
                if core.worker.send(WorkerCommand::Counters(answer))
                    && tokio::time::timeout(Duration::from_secs(1), answered).await.is_ok()
                {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                }
            }
        }
    }
}

//! Starting the daemon, in the order in which each part needs the one before, and stopping it in reverse.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use overlay_config::{Config, secret};
use overlay_control::{ApiError, Code};
use overlay_dataplane::{Conntrack, Engine, SavedWhile};
use overlay_routing::gossip::{Gossip, GossipConfig, cluster_id};
use overlay_routing::identity::IdentityKey;
use overlay_wire::{Encapsulation, Mtu};
use rand_core::{OsRng, RngCore};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::{Access, Server};
use crate::asking::Listeners;
use crate::backend::Api;
use crate::core::{Change, Core, CoreParts, host_addresses, unix_ms};
use crate::counters::PathCounters;
use crate::device::{DeviceConfig, DeviceError, Queue, QueueIndex};
use crate::director::{
    Director, GossipSockets, announcements, foreign_prefixes, own_endpoints, own_host, static_members,
};
use crate::events::EventLog;
use crate::flow_store::{FlowSaver, FlowStore};
use crate::handshake::HandshakeThread;
use crate::metrics;
use crate::plumbing::{self, Masquerade, PlumbingConfig, PlumbingHandle, UnderlayTracking};
use crate::rebuild::first_host_policy;
use crate::shared::{HandshakeMessage, Shared, WorkerCommand};
use crate::sizes;
use crate::snapshot::Snapshot;
use crate::state;
use crate::underlay::route::route_to;
use crate::underlay::socket::duplicate;
use crate::underlay::{Family, RawProtocol, SocketError, open_raw, open_udp};
use crate::wireguard::Keys;
use crate::worker::{ReceiveSockets, SendSockets, Worker, WorkerHandle, WorkerParts};

/// Handshake messages between worker and handshake thread, at most.
const HANDSHAKE_QUEUE: usize = 512;
/// Gossip datagrams between worker and director, at most.
const GOSSIP_QUEUE: usize = 2048;
/// Largest underlay MTU used without being asked to: jumbo frames.
const MAX_UNDERLAY_MTU: u16 = 9000;
/// Length of the TUN's queue, in packets or super-packets.
const TX_QUEUE_LEN: u32 = 1000;

/// Loads the configuration, starts everything, and runs until told to stop.
///
/// # Errors
/// When something that cannot be done without is missing; nothing of ours is left on the host then.
pub fn run(config_path: &Path) -> Result<(), ApiError> {
    let config = load(config_path)?;
    crate::logging::start(config.log.level);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| internal("the task runtime cannot start", error))?;
    runtime.block_on(serve(config_path, config))
}

/// Reads and checks the configuration.
///
/// # Errors
/// With every problem found.
pub fn load(path: &Path) -> Result<Config, ApiError> {
    let config = Config::load(path).map_err(|problems| {
        ApiError::new(
            Code::Config,
            format!("{} cannot be used", path.display()),
            problems.to_string(),
            "correct the lines named and try again; overlayd --check FILE checks without starting",
        )
    })?;
    check_identities(&config)?;
    Ok(config)
}

/// Refuses member identities that are 32 bytes but no Ed25519 key.
///
/// # Errors
/// With the first such member.
pub fn check_identities(config: &Config) -> Result<(), ApiError> {
    for member in &config.members {
        if let Err(error) = overlay_routing::identity::IdentityPublic::from_bytes(&member.identity.0) {
            return Err(ApiError::new(
                Code::Config,
                format!("member[{}].identity is not an identity", member.name),
                error.to_string(),
                format!("take what `overlayctl key public` prints on {}", member.name),
            ));
        }
    }
    Ok(())
}

fn internal(what: &str, error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::Internal, what, error.to_string(), "report this with the log lines around it")
}

fn plumbing_error(error: &plumbing::PlumbingError) -> ApiError {
    ApiError::new(Code::Plumbing, "the host cannot be plumbed", error.to_string(), error.next())
}

fn socket_error(error: SocketError) -> ApiError {
    let what = error.to_string();
    match error {
        SocketError::PortInUse(port) => ApiError::new(
            Code::PortInUse,
            what,
            "another daemon or program listens there",
            format!("find it with `ss -ulnp sport = :{port}`, or set overlay.listen_port"),
        ),
        SocketError::NotPermitted(_) => capability(what),
        SocketError::Io { .. } => ApiError::new(Code::Io, "the underlay sockets cannot be opened", what, "see dmesg"),
    }
}

fn capability(what: String) -> ApiError {
    ApiError::new(
        Code::Capability,
        what,
        "overlayd needs CAP_NET_ADMIN and CAP_NET_RAW",
        "start it as root or by its systemd unit, which grants both",
    )
}

fn device_error(error: DeviceError) -> ApiError {
    let what = error.to_string();
    match error {
        DeviceError::NoTunDriver => ApiError::new(
            Code::TunMissing,
            what,
            "the kernel's TUN driver is not loaded, or the container has no such device",
            "run `modprobe tun`; in a container pass --device /dev/net/tun",
        ),
        DeviceError::NotPermitted { .. } => capability(what),
        DeviceError::Busy { name } => ApiError::new(
            Code::TunInUse,
            what,
            "two programs cannot share it",
            format!("stop the other program, or set overlay.interface to another name than {name}"),
        ),
        DeviceError::Name { .. } => ApiError::new(
            Code::Config,
            what,
            "Linux allows 1 to 15 bytes without `/` and spaces",
            "set overlay.interface to such a name",
        ),
        DeviceError::Io { .. } => ApiError::new(Code::Io, "the TUN device cannot be opened", what, "see dmesg"),
    }
}

/// The underlay's sockets.
struct Sockets {
    udp4: Option<Arc<OwnedFd>>,
    udp6: Option<Arc<OwnedFd>>,
    raw: Vec<(Arc<OwnedFd>, Family, RawProtocol)>,
}

fn wants_plain(config: &Config) -> bool {
    config.overlay.encapsulation != Encapsulation::Wireguard
        || !config.overlay.trusted_underlay.is_empty()
        || config.peers.iter().any(|peer| peer.kind.encapsulation() != Encapsulation::Wireguard)
}

fn open_sockets(config: &Config) -> Result<Sockets, ApiError> {
    let (port, mark) = (config.overlay.listen_port, config.plumbing.mark_socket);
    let udp4 = open_udp(Family::V4, port, mark).map_err(socket_error)?;
    // A kernel without IPv6 has no such socket; anything else that fails is told.
    let udp6 = match open_udp(Family::V6, port, mark) {
        Ok(fd) => Some(Arc::new(fd)),
        Err(SocketError::Io { source, .. }) if source.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
        Err(error) => return Err(socket_error(error)),
    };
    let mut raw = Vec::new();
    if wants_plain(config) {
        let families = if udp6.is_some() { &[Family::V4, Family::V6][..] } else { &[Family::V4][..] };
        for family in families {
            for protocol in RawProtocol::ALL {
                let fd = open_raw(*family, protocol, mark).map_err(socket_error)?;
                raw.push((Arc::new(fd), *family, protocol));
            }
        }
    }
    Ok(Sockets { udp4: Some(Arc::new(udp4)), udp6, raw })
}

impl Sockets {
    fn receive(&self) -> ReceiveSockets {
        ReceiveSockets { udp: self.udp4.iter().chain(&self.udp6).cloned().collect(), raw: self.raw.clone() }
    }

    fn send(&self) -> SendSockets {
        let mut send = SendSockets { udp4: self.udp4.clone(), udp6: self.udp6.clone(), ..SendSockets::default() };
        for (fd, family, protocol) in &self.raw {
            send.raw[*family as usize][*protocol as usize] = Some(Arc::clone(fd));
        }
        send
    }

    fn gossip(&self) -> Result<GossipSockets, ApiError> {
        let copy = |fd: &Option<Arc<OwnedFd>>| {
            fd.as_ref().map(|fd| duplicate(fd)).transpose().map_err(|error| internal("no descriptor left", error))
        };
        Ok(GossipSockets { udp4: copy(&self.udp4)?, udp6: copy(&self.udp6)? })
    }
}

/// Held for the daemon's life: two daemons never share an interface, a runtime or a state directory.
struct Locks(#[expect(dead_code, reason = "held, never read")] Vec<File>);

fn lock(paths: [PathBuf; 2]) -> Result<Locks, ApiError> {
    let mut held = Vec::new();
    for path in paths {
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|error| {
            ApiError::new(
                Code::Io,
                format!("cannot open {}", path.display()),
                error.to_string(),
                "check that its directory exists and belongs to the daemon's user",
            )
        })?;
        if file.try_lock().is_err() {
            return Err(ApiError::new(
                Code::AlreadyRunning,
                format!("another daemon holds {}", path.display()),
                "two daemons cannot share an interface or a directory",
                "stop the other one, or give this one its own overlay.interface and paths",
            ));
        }
        held.push(file);
    }
    Ok(Locks(held))
}

fn directory(path: &Path) -> Result<(), ApiError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(|error| {
        ApiError::new(
            Code::Io,
            format!("cannot make the directory {}", path.display()),
            error.to_string(),
            "make it by hand for the daemon's user, or set the paths in the configuration",
        )
    })
}

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
/// allows.
fn tun_mtu(config: &Config) -> Mtu {
    if let Some(mtu) = config.overlay.mtu {
        return mtu;
    }
    let anywhere: [SocketAddr; 2] = [([192, 0, 2, 1], 9).into(), ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9).into()];
    let mark = config.plumbing.mark_socket;
    let members: Vec<SocketAddr> = config.members.iter().filter_map(|member| member.endpoint).collect();
    let mtu = |to: &SocketAddr| route_to(*to, mark).ok().map(|route| route.mtu);
    let smallest = members.iter().filter_map(mtu).min().or_else(|| anywhere.iter().filter_map(mtu).min());
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

async fn serve(config_path: &Path, config: Config) -> Result<(), ApiError> {
    let start = Instant::now();
    directory(&config.paths.runtime_dir)?;
    directory(&config.paths.state_dir)?;
    let name = format!("{}.lock", config.overlay.interface);
    let _locks = lock([config.paths.runtime_dir.join(name), config.paths.state_dir.join("overlayd.lock")])?;
    let identity = identity(&config)?;
    let keys = wireguard_keys(&config)?;
    let boot_epoch = state::next_boot_epoch(&config.paths.state_dir, unix_ms())?;
    let sockets = open_sockets(&config)?;
    let mtu = tun_mtu(&config);
    let device = DeviceConfig { name: config.overlay.interface.clone(), offload: config.overlay.offload, mtu };
    if crate::device::has_carrier(&device.name) {
        return Err(device_error(DeviceError::Busy { name: device.name }));
    }
    let server =
        Server::bind(&config.paths.socket, Access::new(crate::device::own_uid())).map_err(|error| error.to_api())?;
    let queue = Queue::open(&device, QueueIndex(0)).map_err(device_error)?;
    let offload = queue.offload();

    let (plumbing, first, plumbing_thread) = plumbing::start(plumbing_config(&config, mtu), first_host_policy(&config))
        .await
        .map_err(|error| plumbing_error(&error))?;
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
    let shared = Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        counters: PathCounters::default(),
        start,
        probe_id: (OsRng.next_u32() >> 16) as u16,
        pings: crate::ping::Pings::default(),
        handshakes,
        gossip: gossip_datagrams,
        events: worker_event,
    });
    let mut seed = [0; 16];
    OsRng.fill_bytes(&mut seed);
    let conntrack = Arc::new(Conntrack::new(config.limits.conntrack_entries as usize, seed, start));
    let (worker, commands, wake) = WorkerHandle::channel().map_err(|error| internal("no descriptor left", error))?;

    let core = Arc::new(Core::new(CoreParts {
        shared: Arc::clone(&shared),
        config_path: config_path.to_owned(),
        worker: worker.clone(),
        conntrack: Arc::clone(&conntrack),
        plumbing: plumbing.clone(),
        keys: keys.clone(),
        identity: identity.public(),
        mtu,
        host_addresses: host_addresses(&config.node.prefixes),
        changes: change.clone(),
        kernel_tunnels,
        offload,
        events: EventLog::default(),
        file_text: std::fs::read_to_string(config_path).unwrap_or_default(),
        config: Arc::new(config),
    }));
    let director = match director(&core, identity, boot_epoch, &sockets, datagrams, worker_events, changes) {
        Ok(director) => director,
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
    let backend = Arc::new(Api::new(Arc::clone(&core)));
    let api = tokio::spawn(server.run(Arc::clone(&backend), stopped.clone()));
    let uapi = uapi(&core).map(|server| tokio::spawn(server.run(Arc::clone(&backend), stopped.clone())));
    let figures = figures(&core).await.map(|server| tokio::spawn(server.run(backend, stopped.clone())));
    core.events.info("started", None, format!("overlayd {} is up", env!("CARGO_PKG_VERSION")));
    notify(&[sd_notify::NotifyState::Ready]);

    let cause = supervise(&core, &change, &worker_thread, &handshake_thread).await;
    core.events.info("stopping", None, cause.as_deref().unwrap_or("asked to stop"));
    notify(&[sd_notify::NotifyState::Stopping]);
    let _ = stop.send(true);
    let _ = director.await;
    let _ = api.await;
    for server in [uapi, figures].into_iter().flatten() {
        let _ = server.await;
    }
    // A crash of a part leaves the host as it is, so that a restart finds everything in place.
    let clean = cause.is_none();
    worker.send(WorkerCommand::Stop { remove_device: clean });
    let ending = move || {
        let saved = if worker_thread.join().is_ok() { SavedWhile::Stopped } else { SavedWhile::Running };
        saver.finish(saved);
    };
    let _ = tokio::task::spawn_blocking(ending).await;
    if clean {
        stop_plumbing(&plumbing).await;
        let _ = tokio::task::spawn_blocking(move || plumbing_thread.join()).await;
    }
    match cause {
        None => Ok(()),
        Some(cause) => Err(internal("a part of the daemon ended on its own", cause)),
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

fn director(
    core: &Arc<Core>,
    identity: IdentityKey,
    boot_epoch: u64,
    sockets: &Sockets,
    datagrams: mpsc::Receiver<crate::shared::Datagram>,
    worker_events: mpsc::Receiver<crate::shared::WorkerEvent>,
    changes: mpsc::Receiver<Change>,
) -> Result<Director, ApiError> {
    let config = core.config.load_full();
    let endpoints = own_endpoints(&config);
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
    let mut gossip = Gossip::new(gossip_config, seed, now, boot_epoch).map_err(refused)?;
    gossip.announce(announcements(&config), now).map_err(refused)?;
    Ok(Director {
        core: Arc::clone(core),
        gossip,
        sockets: sockets.gossip()?,
        datagrams,
        worker_events,
        changes,
        endpoints,
        learned: None,
        host_policy: None,
        loop_told: None,
        listeners: Listeners::default(),
    })
}

/// Waits for a signal to stop or for a part to end on its own; the cause in the second case. Feeds the watchdog.
async fn supervise(
    core: &Arc<Core>,
    change: &mpsc::Sender<Change>,
    worker: &std::thread::JoinHandle<()>,
    handshakes: &std::thread::JoinHandle<()>,
) -> Option<String> {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        return Some("signals cannot be received".to_owned());
    };
    let mut check = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = term.recv() => return None,
            _ = int.recv() => return None,
            _ = hup.recv() => {
                notify(&[sd_notify::NotifyState::Reloading, monotonic()]);
                let (done, outcome) = oneshot::channel();
                if change.send(Change::Reload(done)).await.is_ok() {
                    // The outcome is recorded as an event by the director.
                    let _ = outcome.await;
                }
                notify(&[sd_notify::NotifyState::Ready]);
            }
            _ = check.tick() => {
                if worker.is_finished() {
                    return Some("the worker thread ended".to_owned());
                }
                if handshakes.is_finished() {
                    return Some("the handshake thread ended".to_owned());
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

fn monotonic() -> sd_notify::NotifyState<'static> {
    sd_notify::NotifyState::monotonic_usec_now().unwrap_or(sd_notify::NotifyState::Ready)
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(cause = %error, "the service manager was not told");
    }
}

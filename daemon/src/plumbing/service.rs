//! The thread that keeps the host plumbed: it takes commands, listens to the kernel and looks again every 30 s.
//!
//! It is one thread with its own single-threaded runtime, because `nft` runs as a child and must never hold up gossip or
//! the control socket. Notifications are gathered for a moment and reconciles are at least a second apart, so that a
//! busy host or a contest with another program costs little.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use overlay_control::api::{
    AddressBook, AddressHold, EndpointRequest, HeldAddress, IpamAddress, IpamFinding, IpamUsage, LabelChange,
    PortSelector, Problem, PublishRequest, PublishedPort,
};
use overlay_dataplane::{HostPolicy, Published};
use overlay_wire::gossip::identities::Identities;
use overlay_wire::gossip::names::ContainerNames;
use overlay_wire::gossip::{NetworkEntry, NetworkOptions};
use tokio::sync::{mpsc, oneshot, watch as watched};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::ipam::Holder;
use super::lease::Lease;
use super::plumber::{OwnNetworks, Plumber, Reconciled, Scope};
use super::ports::table::NameServer;
use super::watch::{self, Change};
use super::{LearnedRoutes, PlumbingConfig, PlumbingError, TeardownErrors};

/// How often everything is checked without a cause.
const FULL_CHECK: Duration = Duration::from_secs(30);

/// How long notifications are gathered before a look.
const GATHER: Duration = Duration::from_millis(50);

/// Least time between two looks caused by notifications.
const LEAST_GAP: Duration = Duration::from_secs(1);

/// Commands that may wait for the thread.
const QUEUE: usize = 64;

/// So long after somebody asked for something the tables that were installed are listed: it takes as long as to install them, and
/// who attaches a container asks several times.
const QUIET: Duration = Duration::from_millis(200);

/// Endpoints that are made together at most.
const MOST_TOGETHER: usize = 16;

type Reply<T> = oneshot::Sender<T>;

enum Command {
    SetRoutes(LearnedRoutes),
    SetHostPolicy(Arc<HostPolicy>),
    TryHostPolicy(Arc<HostPolicy>, Reply<Result<(), PlumbingError>>),
    Settled(Reply<()>),
    Reconcile(Reply<Reconciled>),
    Prepare(EndpointRequest, Reply<Result<Lease, PlumbingError>>),
    Commit(u64, Reply<Result<Lease, PlumbingError>>),
    Abort(u64, Reply<Result<(), PlumbingError>>),
    Remove(String, Reply<Result<Lease, PlumbingError>>),
    List(Reply<Vec<Lease>>),
    Hold(AddressHold, Reply<Result<HeldAddress, PlumbingError>>),
    ReleaseHeld(IpAddr, String, Reply<Result<bool, PlumbingError>>),
    AddressBook(Reply<AddressBook>),
    Publish(PublishRequest, Reply<Result<(PublishedPort, bool), PlumbingError>>),
    Unpublish(PortSelector, Reply<Result<Vec<PublishedPort>, PlumbingError>>),
    Published(Reply<Vec<PublishedPort>>),
    SetNames(String, Vec<String>, Reply<Result<bool, PlumbingError>>),
    SetNameServers(Vec<NameServer>, Reply<()>),
    ChangeLabels(LabelChange, Reply<Result<bool, PlumbingError>>),
    JoinNetwork(String, NetworkOptions, Reply<Result<bool, PlumbingError>>),
    LeaveNetwork(String, Reply<Result<bool, PlumbingError>>),
    Usage(Reply<Vec<IpamUsage>>),
    Addresses(Reply<Vec<IpamAddress>>),
    CheckAddresses(bool, Reply<Result<Vec<IpamFinding>, PlumbingError>>),
    Reserve(IpAddr, Reply<Result<bool, PlumbingError>>),
    Release(IpAddr, Reply<Result<Holder, PlumbingError>>),
    KernelTunnels(Reply<Result<BTreeMap<String, String>, PlumbingError>>),
    Stop(Reply<Result<(), TeardownErrors>>),
}

/// A handle to the plumbing thread; clones share it. Dropping all handles ends the thread and leaves the host as it is.
#[derive(Debug, Clone)]
pub struct PlumbingHandle {
    commands: mpsc::Sender<Command>,
    problems: Arc<Mutex<Vec<Problem>>>,
    openings: watched::Receiver<Published>,
    names: watched::Receiver<ContainerNames>,
    identities: watched::Receiver<Identities>,
    enclosed: watched::Receiver<BTreeSet<IpAddr>>,
    own_networks: OwnNetworks,
}

/// What the thread tells to those who hold a handle.
struct Told {
    problems: Arc<Mutex<Vec<Problem>>>,
    openings: watched::Sender<Published>,
    names: watched::Sender<ContainerNames>,
    identities: watched::Sender<Identities>,
    enclosed: watched::Sender<BTreeSet<IpAddr>>,
}

/// Starts the plumbing thread in this thread's network namespace and reconciles once, with this policy between containers
/// and the host; the TUN device must exist.
///
/// # Errors
/// When netlink, the journal or the recorded settings cannot be opened.
pub async fn start(
    config: PlumbingConfig,
    policy: HostPolicy,
) -> Result<(PlumbingHandle, Reconciled, JoinHandle<()>), PlumbingError> {
    let (commands, inbox) = mpsc::channel(QUEUE);
    let (ready, opened) = oneshot::channel();
    let problems = Arc::new(Mutex::new(Vec::new()));
    let (tell, openings) = watched::channel(Published::default());
    let (tell_names, names) = watched::channel(ContainerNames::new());
    let (tell_enclosed, enclosed) = watched::channel(BTreeSet::new());
    let (tell_identities, identities) = watched::channel(Identities::new());
    let told = Told {
        problems: Arc::clone(&problems),
        openings: tell,
        names: tell_names,
        identities: tell_identities,
        enclosed: tell_enclosed,
    };
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(serve(config, &policy, inbox, ready, &told)),
            Err(error) => drop(ready.send(Err(PlumbingError::NetlinkSocket(error)))),
        }
    };
    let thread =
        std::thread::Builder::new().name("plumbing".into()).spawn(body).map_err(PlumbingError::NetlinkSocket)?;
    let (first, own_networks) = opened.await.map_err(|_| PlumbingError::Stopped)??;
    Ok((PlumbingHandle { commands, problems, openings, names, identities, enclosed, own_networks }, first, thread))
}

impl PlumbingHandle {
    /// Sets what the overlay reaches; the kernel's routes follow shortly.
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn set_routes(&self, learned: LearnedRoutes) -> Result<(), PlumbingError> {
        self.commands.send(Command::SetRoutes(learned)).await.map_err(|_| PlumbingError::Stopped)
    }

    /// As [`Self::set_routes`], without waiting; false when the thread has ended or is behind.
    #[must_use]
    pub fn try_set_routes(&self, learned: LearnedRoutes) -> bool {
        self.commands.try_send(Command::SetRoutes(learned)).is_ok()
    }

    /// Sets the policy between containers and this host, without waiting; false when the thread has ended or is behind.
    #[must_use]
    pub fn try_set_host_policy(&self, policy: Arc<HostPolicy>) -> bool {
        self.commands.try_send(Command::SetHostPolicy(policy)).is_ok()
    }

    /// Puts a policy between containers and this host in force now, or leaves the one before.
    ///
    /// # Errors
    /// When the kernel refuses it, or the thread has ended.
    pub async fn try_host_policy(&self, policy: Arc<HostPolicy>) -> Result<(), PlumbingError> {
        self.call(|reply| Command::TryHostPolicy(policy, reply)).await?
    }

    /// Waits until everything asked for so far is done.
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn settled(&self) -> Result<(), PlumbingError> {
        self.call(Command::Settled).await
    }

    /// Looks at everything now.
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn reconcile(&self) -> Result<Reconciled, PlumbingError> {
        self.call(Command::Reconcile).await
    }

    /// See [`Plumber::prepare`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn prepare(&self, request: EndpointRequest) -> Result<Lease, PlumbingError> {
        self.call(|reply| Command::Prepare(request, reply)).await?
    }

    /// See [`Plumber::commit`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn commit(&self, lease: u64) -> Result<Lease, PlumbingError> {
        self.call(|reply| Command::Commit(lease, reply)).await?
    }

    /// See [`Plumber::abort`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn abort(&self, lease: u64) -> Result<(), PlumbingError> {
        self.call(|reply| Command::Abort(lease, reply)).await?
    }

    /// See [`Plumber::remove`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn remove(&self, name: String) -> Result<Lease, PlumbingError> {
        self.call(|reply| Command::Remove(name, reply)).await?
    }

    /// Every endpoint, prepared and committed.
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn endpoints(&self) -> Result<Vec<Lease>, PlumbingError> {
        self.call(Command::List).await
    }

    /// See [`Plumber::hold`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn hold(&self, wanted: AddressHold) -> Result<HeldAddress, PlumbingError> {
        self.call(|reply| Command::Hold(wanted, reply)).await?
    }

    /// See [`Plumber::release_held`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn release_held(&self, address: IpAddr, owner: String) -> Result<bool, PlumbingError> {
        self.call(|reply| Command::ReleaseHeld(address, owner, reply)).await?
    }

    /// See [`Plumber::address_book`].
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn address_book(&self) -> Result<AddressBook, PlumbingError> {
        self.call(Command::AddressBook).await
    }

    /// See [`Plumber::publish`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn publish(&self, request: PublishRequest) -> Result<(PublishedPort, bool), PlumbingError> {
        self.call(|reply| Command::Publish(request, reply)).await?
    }

    /// See [`Plumber::unpublish`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn unpublish(&self, selector: PortSelector) -> Result<Vec<PublishedPort>, PlumbingError> {
        self.call(|reply| Command::Unpublish(selector, reply)).await?
    }

    /// Every published port.
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn published(&self) -> Result<Vec<PublishedPort>, PlumbingError> {
        self.call(Command::Published).await
    }

    /// What the packet path must know of published ports; told anew when it changes.
    #[must_use]
    pub fn openings(&self) -> watched::Receiver<Published> {
        self.openings.clone()
    }

    /// The names of this host's containers; told anew when they change.
    #[must_use]
    pub fn names(&self) -> watched::Receiver<ContainerNames> {
        self.names.clone()
    }

    /// The addresses of containers that an engine wants without a way to the outside.
    #[must_use]
    pub fn enclosed(&self) -> watched::Ref<'_, BTreeSet<IpAddr>> {
        self.enclosed.borrow()
    }

    /// See [`Plumber::set_names`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn set_names(&self, endpoint: String, names: Vec<String>) -> Result<bool, PlumbingError> {
        self.call(|reply| Command::SetNames(endpoint, names, reply)).await?
    }

    /// The labels of this host's containers, by address; told anew when they change.
    #[must_use]
    pub fn identities(&self) -> watched::Receiver<Identities> {
        self.identities.clone()
    }

    /// See [`Plumber::change_labels`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn change_labels(&self, change: LabelChange) -> Result<bool, PlumbingError> {
        self.call(|reply| Command::ChangeLabels(change, reply)).await?
    }

    /// See [`Plumber::set_name_servers`].
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn set_name_servers(&self, servers: Vec<NameServer>) -> Result<(), PlumbingError> {
        self.call(|reply| Command::SetNameServers(servers, reply)).await
    }

    /// The networks this host takes part in, with its blocks of them.
    #[must_use]
    pub fn own_networks(&self) -> Arc<BTreeMap<String, NetworkEntry>> {
        self.own_networks.load_full()
    }

    /// See [`Plumber::join_network`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn join_network(&self, name: String, options: NetworkOptions) -> Result<bool, PlumbingError> {
        self.call(|reply| Command::JoinNetwork(name, options, reply)).await?
    }

    /// See [`Plumber::leave_network`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn leave_network(&self, name: String) -> Result<bool, PlumbingError> {
        self.call(|reply| Command::LeaveNetwork(name, reply)).await?
    }

    /// See [`Plumber::usage`].
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn usage(&self) -> Result<Vec<IpamUsage>, PlumbingError> {
        self.call(Command::Usage).await
    }

    /// See [`Plumber::addresses`].
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn addresses(&self) -> Result<Vec<IpamAddress>, PlumbingError> {
        self.call(Command::Addresses).await
    }

    /// See [`Plumber::check`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn check_addresses(&self, fix: bool) -> Result<Vec<IpamFinding>, PlumbingError> {
        self.call(|reply| Command::CheckAddresses(fix, reply)).await?
    }

    /// See [`Plumber::reserve`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn reserve(&self, address: IpAddr) -> Result<bool, PlumbingError> {
        self.call(|reply| Command::Reserve(address, reply)).await?
    }

    /// See [`Plumber::release`].
    ///
    /// # Errors
    /// As there, or when the thread has ended.
    pub async fn release(&self, address: IpAddr) -> Result<Holder, PlumbingError> {
        self.call(|reply| Command::Release(address, reply)).await?
    }

    /// Kernel tunnel devices that are up, with their kinds.
    ///
    /// # Errors
    /// When links cannot be listed, or the thread has ended.
    pub async fn kernel_tunnels(&self) -> Result<BTreeMap<String, String>, PlumbingError> {
        self.call(Command::KernelTunnels).await?
    }

    /// The problems found by the latest look.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes everything from the host and ends the thread; for a clean stop.
    ///
    /// # Errors
    /// Every step that failed.
    pub async fn stop(&self) -> Result<(), TeardownErrors> {
        self.call(Command::Stop).await.map_err(|error| TeardownErrors(vec![error]))?
    }

    async fn call<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, PlumbingError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| PlumbingError::Stopped)?;
        answer.await.map_err(|_| PlumbingError::Stopped)
    }
}

async fn serve(
    config: PlumbingConfig,
    policy: &HostPolicy,
    mut inbox: mpsc::Receiver<Command>,
    ready: Reply<Result<(Reconciled, OwnNetworks), PlumbingError>>,
    told: &Told,
) {
    // One slot per kind of change is enough: a waiting change says everything that a second one would.
    let (changes, mut changed) = mpsc::channel(4);
    let mut plumber = match watch::start(&config, changes).and_then(|()| Plumber::open(config)) {
        Ok(plumber) => plumber,
        Err(error) => return drop(ready.send(Err(error))),
    };
    plumber.set_host_policy(policy);
    let first = look(&mut plumber, Scope::Everything, told).await;
    plumber.remember_tables();
    if ready.send(Ok((first, plumber.own_networks()))).is_err() {
        return;
    }
    let mut full = interval(FULL_CHECK);
    full.set_missed_tick_behavior(MissedTickBehavior::Delay);
    full.reset();
    let mut last = Instant::now();
    // When somebody asked for something last.
    let mut asked = last;
    let mut pending: Option<(Instant, Scope)> = None;
    loop {
        let due = pending.map_or_else(|| Instant::now() + FULL_CHECK, |(at, _)| at);
        tokio::select! {
            command = inbox.recv() => {
                asked = Instant::now();
                match command {
                None => return,
                Some(Command::Stop(reply)) => {
                    drop(reply.send(plumber.remove_all().await));
                    return;
                }
                Some(Command::Prepare(request, reply)) => {
                    // Those that wait meanwhile are made together: most of the time goes to the tables, which hold all of them.
                    let mut waiting = vec![(request, reply)];
                    let mut next = None;
                    while waiting.len() < MOST_TOGETHER {
                        match inbox.try_recv() {
                            Ok(Command::Prepare(request, reply)) => waiting.push((request, reply)),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    prepare(&mut plumber, waiting, told).await;
                    match next {
                        Some(Command::Stop(reply)) => {
                            drop(reply.send(plumber.remove_all().await));
                            return;
                        }
                        Some(command) => obey(&mut plumber, command, told).await,
                        None => {}
                    }
                }
                Some(command) => obey(&mut plumber, command, told).await,
            }}
            Some(change) = changed.recv() => {
                let scope = if change == Change::Nft { Scope::Everything } else { Scope::Routing };
                pending = Some(match pending {
                    Some((at, Scope::Routing)) => (at, scope),
                    Some(already) => already,
                    None => ((Instant::now() + GATHER).max(last + LEAST_GAP), scope),
                });
            }
            () = sleep_until(asked + QUIET), if plumber.has_new_tables() => plumber.remember_tables(),
            () = sleep_until(due), if pending.is_some() => {
                plumber.remember_tables();
                let scope = pending.take().map_or(Scope::Everything, |(_, scope)| scope);
                look(&mut plumber, scope, told).await;
                last = Instant::now();
            }
            _ = full.tick() => {
                pending = None;
                plumber.remember_tables();
                look(&mut plumber, Scope::Everything, told).await;
                last = Instant::now();
            }
        }
    }
}

/// Makes endpoints ready, and tells each caller.
async fn prepare(
    plumber: &mut Plumber,
    waiting: Vec<(EndpointRequest, Reply<Result<Lease, PlumbingError>>)>,
    told: &Told,
) {
    let (requests, replies): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
    let outcomes = plumber.prepare_all(&requests).await;
    tell_state(plumber, told);
    for (outcome, reply) in outcomes.into_iter().zip(replies) {
        drop(reply.send(outcome));
    }
}

async fn obey(plumber: &mut Plumber, command: Command, told: &Told) {
    // A caller that stopped waiting is no error here: the work is done and journalled.
    match command {
        Command::SetRoutes(learned) => {
            plumber.set_routes(learned);
            look(plumber, Scope::Routing, told).await;
        }
        Command::SetHostPolicy(policy) => {
            plumber.set_host_policy(&policy);
            look(plumber, Scope::Routing, told).await;
        }
        Command::TryHostPolicy(policy, reply) => drop(reply.send(plumber.try_host_policy(&policy))),
        Command::Settled(reply) => drop(reply.send(())),
        Command::Reconcile(reply) => drop(reply.send(look(plumber, Scope::Everything, told).await)),
        Command::Prepare(request, reply) => drop(reply.send(tell(plumber.prepare(&request).await, plumber, told))),
        Command::Commit(lease, reply) => drop(reply.send(plumber.commit(lease))),
        Command::Abort(lease, reply) => drop(reply.send(plumber.abort(lease).await)),
        Command::Remove(name, reply) => drop(reply.send(tell(plumber.remove(&name).await, plumber, told))),
        Command::Publish(request, reply) => drop(reply.send(tell(plumber.publish(&request).await, plumber, told))),
        Command::Unpublish(selector, reply) => {
            drop(reply.send(tell(plumber.unpublish(&selector).await, plumber, told)))
        }
        Command::Published(reply) => drop(reply.send(plumber.published())),
        Command::SetNames(endpoint, names, reply) => {
            drop(reply.send(tell(plumber.set_names(&endpoint, &names), plumber, told)))
        }
        Command::SetNameServers(servers, reply) => {
            plumber.set_name_servers(servers).await;
            let _ = reply.send(());
        }
        Command::ChangeLabels(change, reply) => drop(reply.send(tell(plumber.change_labels(&change), plumber, told))),
        Command::KernelTunnels(reply) => drop(reply.send(plumber.kernel_tunnels().await)),
        Command::List(reply) => drop(reply.send(plumber.endpoints())),
        Command::Hold(wanted, reply) => drop(reply.send(plumber.hold(&wanted))),
        Command::ReleaseHeld(address, owner, reply) => drop(reply.send(plumber.release_held(address, &owner))),
        Command::AddressBook(reply) => drop(reply.send(plumber.address_book())),
        Command::JoinNetwork(name, options, reply) => drop(reply.send(plumber.join_network(&name, options))),
        Command::LeaveNetwork(name, reply) => drop(reply.send(plumber.leave_network(&name))),
        Command::Usage(reply) => drop(reply.send(plumber.usage())),
        Command::Addresses(reply) => drop(reply.send(plumber.addresses())),
        Command::CheckAddresses(fix, reply) => drop(reply.send(plumber.check(fix).await)),
        Command::Reserve(address, reply) => drop(reply.send(plumber.reserve(address))),
        Command::Release(address, reply) => drop(reply.send(plumber.release(address))),
        Command::Stop(_) => {}
    }
    tell_state(plumber, told);
}

/// Tells who works with it which ports are published and which names there are, before the caller hears the outcome.
fn tell<T>(outcome: T, plumber: &Plumber, told: &Told) -> T {
    tell_state(plumber, told);
    outcome
}

fn tell_state(plumber: &Plumber, told: &Told) {
    let openings = plumber.openings();
    told.openings.send_if_modified(|known| {
        let changed = *known != openings;
        *known = openings;
        changed
    });
    let enclosed = plumber.enclosed();
    told.enclosed.send_if_modified(|known| {
        let changed = *known != enclosed;
        *known = enclosed;
        changed
    });
    let identities = plumber.identities();
    told.identities.send_if_modified(|known| {
        let changed = *known != identities;
        *known = identities;
        changed
    });
    let names = plumber.names();
    told.names.send_if_modified(|known| {
        let changed = *known != names;
        *known = names;
        changed
    });
}

async fn look(plumber: &mut Plumber, scope: Scope, told: &Told) -> Reconciled {
    let outcome = plumber.reconcile(scope).await;
    if !outcome.changes.is_empty() {
        tracing::info!(changes = outcome.changes.join("; "), "host plumbing brought up to date");
    }
    let mut known = told.problems.lock().unwrap_or_else(PoisonError::into_inner);
    for problem in outcome.problems.iter().filter(|problem| !known.contains(problem)) {
        tracing::warn!(code = %problem.code, what = %problem.what, next = %problem.next, "host plumbing problem");
    }
    known.clone_from(&outcome.problems);
    drop(known);
    tell_state(plumber, told);
    outcome
}

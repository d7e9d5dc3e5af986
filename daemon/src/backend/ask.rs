//! Asking a peer on demand, for `doctor`: its UDP port, the data path, sizes and its clock, all within [`LIMIT`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_control::api::{PeerKind as ShownKind, PeerStatus, PingProgress};
use overlay_routing::gossip::MemberView;
use overlay_wire::{Encapsulation, HostId, PeerIndex};
use rand_core::RngCore;
use tokio::sync::{mpsc, oneshot};

use super::no_path::OwnSide;
use super::{Api, no_path};
use crate::asking::{Question, Told};
use crate::core::{Change, Core, host_address};
use crate::doctor::{self, Asked, Carrier, Data, NoPath, Sizes, Udp};
use crate::peers::PeerKind;
use crate::probe;
use crate::shared::WorkerCommand;
use crate::underlay::refusal::is_refused;
use crate::{sizes, worker};

/// How long asking takes at most, whatever the peer does. The waits below add up to half of it, and a slow round trip may
/// add to each round of sizes.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// How often a question is sent, and how far apart.
const TRIES: u32 = 3;
const TRY_EVERY: Duration = Duration::from_millis(400);
/// How long the answer to the last one is waited for.
const LAST_ANSWER: Duration = Duration::from_millis(700);
/// How long a refusal by the peer's host is waited for, from the second try on: longer than the other tries take.
const REFUSAL: Duration = Duration::from_millis(1300);
/// Rounds in which sizes are searched, sizes in one round, echoes of each size, and how long a round may take beyond the
/// usual round trip.
const SIZE_ROUNDS: usize = 4;
const SIZES: u16 = 8;
const EACH_SIZE: u32 = 2;
const SIZE_ROUND: Duration = Duration::from_millis(500);
/// A round trip longer than this is not waited for.
const LONGEST_TRIP: Duration = Duration::from_millis(500);
/// The smallest size tried: what every IPv4 host takes (RFC 791).
const SMALLEST: u16 = 576;
/// A member that is not reachable is called every 6 s at the latest: heard within this time means that it still gets
/// through.
const HEARD_WITHIN: Duration = Duration::from_secs(7);
/// Every peer sends an echo of its own each second.
const DATA_HEARD_WITHIN: Duration = Duration::from_secs(3);
/// Clocks asked for when no peer is named.
const CLOCKS: usize = 16;

/// What asking a peer gave.
pub(super) struct Answers {
    pub asked: Asked,
    /// How far its clock is ahead, in seconds.
    pub clock: Option<i64>,
}

/// Where echoes go and what carries them.
#[derive(Clone, Copy)]
struct Target {
    from: IpAddr,
    to: IpAddr,
    carrier: Carrier,
}

impl Api {
    /// Asks one peer everything.
    pub(super) async fn ask_peer(&self, status: &PeerStatus) -> Answers {
        let core = &self.core;
        let member = status.id;
        let view = match member {
            Some(host) => self.look(host).await,
            None => None,
        };
        let endpoint = view.as_ref().and_then(|view| view.endpoint);
        let targets = view.as_ref().map(|view| targets(core, view, status.encapsulation)).unwrap_or_default();
        let (udp, data, clock) =
            tokio::join!(self.ask_port(member, endpoint), self.echo(&targets), self.ask_clock(member));
        let heard = self.data_heard(member);
        let sizes = match targets.iter().zip(&data).find(|(_, answered)| **answered > 0) {
            Some((target, _)) => self.find_size(member, *target).await,
            None => None,
        };
        let carried = |(target, answered): (&Target, &u32)| Data {
            carrier: target.carrier,
            sent: TRIES,
            answered: *answered,
            heard,
        };
        // A member by certificate has no entry of its own: for it counts what this host asks of all.
        let config = core.config.load();
        let entry = config.members.iter().find(|own| own.name == status.name);
        let asked_of_it = entry.and_then(|own| own.encapsulation).unwrap_or(config.overlay.encapsulation);
        let configured = member.map(|_| asked_of_it);
        let asked = Asked {
            peer: status.name.clone(),
            endpoint,
            no_path: view.as_ref().filter(|view| !view.state.is_reachable()).map(|view| {
                let own = OwnSide::of(core.view.load().is_behind_nat);
                NoPath {
                    why: no_path::why(view, own),
                    next: no_path::next(view, own, core.config.load().overlay.listen_port),
                    between_nats: no_path::is_between_nats(view, own),
                }
            }),
            udp,
            data: targets.iter().zip(&data).map(carried).collect(),
            plain_unused: configured.filter(|kind| !kind.is_encrypted() && status.encapsulation.is_encrypted()),
            sizes,
            no_clock: clock.is_none().then(|| no_clock(status, udp)),
        };
        Answers { asked, clock: clock.map(seconds) }
    }

    /// Asks reachable members for their clocks; name and seconds ahead of those that told.
    pub(super) async fn ask_clocks(&self) -> Vec<(String, i64)> {
        let view = self.core.view.load_full();
        let reachable = view.members.iter().filter(|member| member.state.is_reachable()).take(CLOCKS);
        let mut waiting: Vec<(HostId, &str)> = reachable.map(|member| (member.host, member.name.as_str())).collect();
        let mut told = Vec::new();
        let Some(mut answers) = self.question(waiting.iter().map(|(host, _)| *host).collect(), Question::Clock).await
        else {
            return told;
        };
        let deadline = tokio::time::Instant::now() + LAST_ANSWER;
        while !waiting.is_empty() {
            let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.recv()).await else { break };
            let (host, ahead) = match answer {
                Told::Clock { host, ahead_ms } => (host, Some(ahead_ms)),
                Told::NoClock { host } => (host, None),
                Told::Reached { .. } => continue,
            };
            if let Some(at) = waiting.iter().position(|(asked, _)| *asked == host) {
                let (_, name) = waiting.swap_remove(at);
                told.extend(ahead.map(|ahead| (name.to_owned(), seconds(ahead))));
            }
        }
        told.sort();
        told
    }

    async fn question(&self, members: Vec<HostId>, question: Question) -> Option<mpsc::Receiver<Told>> {
        let (told, answers) = mpsc::channel(64);
        self.core.changes.send(Change::Ask(members, question, told)).await.ok().map(|()| answers)
    }

    async fn look(&self, host: HostId) -> Option<MemberView> {
        let (answer, answered) = oneshot::channel();
        self.core.changes.send(Change::Look(host, answer)).await.ok()?;
        answered.await.ok().flatten()
    }

    /// Probes the UDP port; `None` for a foreign peer.
    async fn ask_port(&self, member: Option<HostId>, endpoint: Option<SocketAddr>) -> Option<Udp> {
        let member = member?;
        let refusal = async {
            // A member that answers never gets the byte.
            tokio::time::sleep(TRY_EVERY).await;
            match endpoint {
                Some(to) => {
                    is_refused(to, self.core.config.load().plumbing.mark_socket, REFUSAL).await.unwrap_or(false)
                }
                None => false,
            }
        };
        let refused = tokio::select! {
            // Only an answer ends the wait for a refusal.
            Some(round_trip) = self.reach(member) => return Some(Udp::Answered { round_trip }),
            refused = refusal => refused,
        };
        if refused {
            return Some(Udp::Refused);
        }
        let last = self.look(member).await.and_then(|view| view.last_heard);
        Some(Udp::Silent { heard: last.is_some_and(|last| last.elapsed() < HEARD_WITHIN) })
    }

    /// Asks a member to answer, a few times; how long the first answer took.
    async fn reach(&self, member: HostId) -> Option<Duration> {
        let begun = Instant::now();
        for left in (0..TRIES).rev() {
            let mut answers = self.question(vec![member], Question::Reach).await?;
            let wait = if left > 0 { TRY_EVERY } else { LAST_ANSWER };
            let answer = tokio::time::timeout(wait, async {
                while let Some(told) = answers.recv().await {
                    if let Told::Reached { host, round_trip } = told
                        && host == member
                    {
                        return Some(round_trip.unwrap_or_else(|| begun.elapsed()));
                    }
                }
                None
            });
            if let Ok(Some(round_trip)) = answer.await {
                return Some(round_trip);
            }
        }
        None
    }

    /// Asks a member for its clock, a few times; how far it is ahead, in milliseconds.
    async fn ask_clock(&self, member: Option<HostId>) -> Option<i64> {
        let member = member?;
        for left in (0..TRIES).rev() {
            let mut answers = self.question(vec![member], Question::Clock).await?;
            let wait = if left > 0 { TRY_EVERY } else { LAST_ANSWER };
            let answer = tokio::time::timeout(wait, async {
                while let Some(told) = answers.recv().await {
                    match told {
                        Told::Clock { host, ahead_ms } if host == member => return Some(ahead_ms),
                        // It may be about to come up: asked again below.
                        Told::NoClock { host } if host == member => std::future::pending().await,
                        _ => {}
                    }
                }
                None
            });
            if let Ok(Some(ahead)) = answer.await {
                return Some(ahead);
            }
        }
        None
    }

    /// Sends a few small echoes to each target at once; how many of each came back.
    async fn echo(&self, targets: &[Target]) -> Vec<u32> {
        let rounds = targets.iter().map(|target| Echoes::begin(&self.core, *target, TRIES));
        let rounds: Vec<Echoes> = rounds.collect();
        for sequence in 1..=TRIES {
            rounds.iter().for_each(|echoes| echoes.send(sequence, probe::PAYLOAD));
            let last = sequence == TRIES;
            let deadline = Instant::now() + if last { LAST_ANSWER } else { TRY_EVERY / 2 };
            let done = |echoes: &Echoes| echoes.answered() == sequence;
            while Instant::now() < deadline && !(last && rounds.iter().all(done)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        rounds.into_iter().map(|echoes| echoes.end().len() as u32).collect()
    }

    /// Whether packets that a peer sends on its own arrived lately.
    pub(super) fn data_heard(&self, member: Option<HostId>) -> bool {
        let peer = member.and_then(|host| self.core.find_peer(&PeerKind::Member(host)));
        let last = peer.map_or(0, |peer| peer.counters.last_rx_ms.load(std::sync::atomic::Ordering::Relaxed));
        self.core.age_of(last, Instant::now()).is_some_and(|age| age < DATA_HEARD_WITHIN)
    }

    /// Finds the largest packet that comes back, by echoes of many sizes at once, closer in each round.
    async fn find_size(&self, member: Option<HostId>, target: Target) -> Option<Sizes> {
        let core = &self.core;
        let peer = core.find_peer(&PeerKind::Member(member?))?;
        let (told, outside, overhead) = told_size(core, peer.index)?;
        let wait = SIZE_ROUND + peer.probes.lock().round_trip().unwrap_or_default().min(LONGEST_TRIP);
        let route = doctor::route_words(outside, core.config.load().plumbing.mark_socket);
        let mut sizes = Sizes { told, largest: told.min(SMALLEST), overhead, route };
        if self.largest_of(target, &[told], wait).await.is_some() {
            return Some(Sizes { largest: told, ..sizes });
        }
        let mut refused = told;
        for _ in 0..SIZE_ROUNDS {
            let gap = refused - sizes.largest;
            if gap <= 1 {
                break;
            }
            let between = |part: u16| sizes.largest + (u32::from(gap) * u32::from(part) / u32::from(SIZES)) as u16;
            let mut tried: Vec<u16> = (1..SIZES).map(between).filter(|size| *size > sizes.largest).collect();
            tried.dedup();
            let largest = self.largest_of(target, &tried, wait).await.unwrap_or(sizes.largest);
            refused = tried.into_iter().find(|size| *size > largest).unwrap_or(refused);
            sizes.largest = sizes.largest.max(largest);
        }
        // Chance may have taken the first echoes of the full size; what is told to users must not hang on that.
        let again = self.largest_of(target, &[told], wait).await;
        Some(Sizes { largest: again.unwrap_or(sizes.largest), ..sizes })
    }

    /// The largest of these sizes that comes back.
    async fn largest_of(&self, target: Target, tried: &[u16], wait: Duration) -> Option<u16> {
        let headers = if target.to.is_ipv4() { 28 } else { 48 };
        let echoes = Echoes::begin(&self.core, target, tried.len() as u32 * EACH_SIZE);
        for (sequence, size) in (1..).zip(tried.iter().flat_map(|size| [size; EACH_SIZE as usize])) {
            echoes.send(sequence, usize::from(*size).saturating_sub(headers));
        }
        let size_of = |sequence: u32| tried.get(((sequence - 1) / EACH_SIZE) as usize).copied();
        let deadline = Instant::now() + wait;
        let complete = |answered: &[u32]| {
            answered.iter().filter_map(|sequence| size_of(*sequence)).max() == tried.iter().max().copied()
        };
        while Instant::now() < deadline && !complete(&echoes.sequences()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        echoes.end().into_iter().filter_map(size_of).max()
    }
}

/// Echoes under way to one target.
struct Echoes {
    core: Arc<Core>,
    target: Target,
    number: u64,
    id: u16,
}

impl Echoes {
    fn begin(core: &Arc<Core>, target: Target, count: u32) -> Self {
        let id = (rand_core::OsRng.next_u32() >> 16) as u16;
        let progress = PingProgress {
            peer: String::new(),
            address: Some(target.to),
            encapsulation: Encapsulation::Wireguard,
            endpoint: None,
            replies: Vec::new(),
            done: false,
        };
        Self { core: Arc::clone(core), target, number: core.shared.pings.begin(progress, id, count), id }
    }

    fn send(&self, sequence: u32, payload: usize) {
        let Target { from, to, .. } = self.target;
        if let Some(packet) = probe::echo_request(from, to, self.id, sequence as u16, payload) {
            self.core.shared.pings.sent(self.number, sequence, Instant::now());
            self.core.worker.send(WorkerCommand::Inject(packet));
        }
    }

    /// The echoes that came back.
    fn sequences(&self) -> Vec<u32> {
        let replies = self.core.shared.pings.progress(self.number).map(|progress| progress.replies).unwrap_or_default();
        replies.into_iter().filter(|reply| reply.rtt_us.is_some()).map(|reply| reply.sequence).collect()
    }

    fn answered(&self) -> u32 {
        self.sequences().len() as u32
    }

    fn end(self) -> Vec<u32> {
        self.core.shared.pings.finish(self.number);
        self.sequences()
    }
}

/// The addresses of a member that must answer, one for each protocol that carries packets to it.
fn targets(core: &Core, view: &MemberView, encapsulation: Encapsulation) -> Vec<Target> {
    let prefixes = view.host_record.iter().flat_map(|record| &record.prefixes);
    let own = |ipv4: bool| core.host_addresses.iter().copied().find(|own| own.is_ipv4() == ipv4);
    let mut found: Vec<Target> = Vec::new();
    for to in prefixes.map(host_address) {
        let carrier = match (encapsulation, to.is_ipv4()) {
            (Encapsulation::Wireguard, _) => Carrier::Wireguard,
            (Encapsulation::Gre, _) => Carrier::Gre,
            (Encapsulation::Ipip, true) => Carrier::Ipv4,
            (Encapsulation::Ipip, false) => Carrier::Ipv6,
        };
        if let Some(from) = own(to.is_ipv4())
            && !found.iter().any(|target| target.carrier == carrier)
        {
            found.push(Target { from, to, carrier });
        }
    }
    found
}

/// The inner MTU of a peer, its underlay address, and what its encapsulation adds.
fn told_size(core: &Core, index: PeerIndex) -> Option<(u16, IpAddr, u16)> {
    let snapshot = core.shared.snapshot.load();
    let told = u16::try_from(worker::inner_mtu(&snapshot, index)).ok()?;
    let path = snapshot.peer(index)?;
    let to = path.plain.or(path.peer.state.lock().path)?.to.ip();
    Some((told, to, sizes::overhead(path.encapsulation, to, &path.gre)))
}

fn no_clock(status: &PeerStatus, udp: Option<Udp>) -> String {
    let name = &status.name;
    match udp {
        _ if status.kind == ShownKind::Foreign => format!("{name} is a foreign peer and tells no clock"),
        Some(Udp::Answered { .. }) => {
            format!("{name} did not tell its clock: its release does not, or the answer was lost")
        }
        _ => format!("{name} does not answer, so its clock is not known"),
    }
}

/// Milliseconds as seconds, rounded.
fn seconds(ms: i64) -> i64 {
    (ms + 500).div_euclid(1000)
}

//! `overlayctl trace`: what becomes of a packet on this host, by the packet path itself, and on the other one, by asking it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use overlay_control::api::{
    ControlState, DataState, PeerStatus, Response, Trace, TraceOutcome, TraceRequest, TraceStep,
};
use overlay_control::{ApiError, Code};
use overlay_dataplane::trace::{sample, smallest, steps};
use overlay_dataplane::{
    DecidedBy, DropReason, FlowEnd, Grounds, Origin, Outcome, Question, Route, Stage, Tables, Tuple, direct, explain,
    rehearse,
};
use overlay_routing::ownership::Owner;
use overlay_wire::packet::Headers;
use overlay_wire::policy::Protocol;
use overlay_wire::{HostId, PeerIndex, gossip};

use super::{Api, not_found};
use crate::core::{Change, host_address};
use crate::peers::PeerKind;
use crate::plumbing::lease::{Lease, LeaseState};
use crate::shared::WorkerCommand;
use crate::underlay::route::route_to;

/// How long the other host's answer is waited for, and how often it is asked: a datagram may be lost.
const ANSWER: Duration = Duration::from_millis(700);
const TRIES: u32 = 3;

/// Which part of a packet's path is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// From this host's TUN on.
    Source,
    /// From a peer on.
    Destination(PeerIndex),
}

impl Api {
    pub(super) async fn trace(&self, request: &TraceRequest) -> Result<Response, ApiError> {
        let leases = self.core.plumbing.endpoints().await.unwrap_or_default();
        let (from, to) = self.ends(request, &leases)?;
        let echo = if from.is_ipv4() { 1 } else { 58 };
        let protocol = match request.protocol {
            // `icmp` means the one of the family.
            None | Some(1 | 58) => echo,
            Some(number) => number,
        };
        let has_ports = matches!(protocol, 6 | 17);
        let port = |port| if has_ports { port } else { 0 };
        let (src_port, dst_port) = (port(request.source_port), port(request.port));
        let tuple = Tuple { src: from, dst: to, protocol, src_port, dst_port };
        let size = request.size.max(smallest(&tuple));
        let may_fragment = request.may_fragment;
        let packet = gossip::TracedPacket { protocol, src: from, dst: to, src_port, dst_port, size, may_fragment };
        let (steps, missing) = self.both_parts(&packet, &leases).await?;
        let outcome = steps.last().map_or(TraceOutcome::Pass, |step| step.outcome);
        let sent = if request.send { self.send_traced(&packet) } else { None };
        let packet = format!("{tuple}, {size} bytes");
        let (source_port, port) = (src_port, dst_port);
        let trace = Trace { packet, from, to, protocol, source_port, port, steps, outcome, missing, sent };
        Ok(Response::Trace(Box::new(trace)))
    }

    /// The two addresses, of one family.
    fn ends(&self, request: &TraceRequest, leases: &[Lease]) -> Result<(IpAddr, IpAddr), ApiError> {
        let (from, to) = (self.addresses(&request.from, leases)?, self.addresses(&request.to, leases)?);
        let pair = from
            .iter()
            .find_map(|from| to.iter().find(|to| to.is_ipv4() == from.is_ipv4() && *to != from).map(|to| (*from, *to)));
        pair.ok_or_else(|| {
            ApiError::new(
                Code::Invalid,
                format!("no packet goes from {} to {}", request.from, request.to),
                "the two have no address family in common, or are the same address",
                "give two addresses of one family",
            )
        })
    }

    /// What a word stands for: an address, a container of this host, or a host.
    fn addresses(&self, word: &str, leases: &[Lease]) -> Result<Vec<IpAddr>, ApiError> {
        if let Ok(address) = word.parse() {
            return Ok(vec![address]);
        }
        let lease = leases.iter().find(|lease| lease.name == word && lease.state != LeaseState::Cooling);
        if let Some(lease) = lease {
            return Ok(lease.addresses.clone());
        }
        if word == self.core.config.load().node.name {
            return Ok(self.core.host_addresses.clone());
        }
        let view = self.core.view.load();
        let named =
            view.members.iter().find(|member| member.name == word).and_then(|member| member.host_record.as_ref());
        let addresses: Vec<IpAddr> = named.iter().flat_map(|record| &record.prefixes).map(host_address).collect();
        if addresses.is_empty() {
            return Err(not_found(
                "container of this host or host",
                word,
                "overlayctl endpoint list` and `overlayctl peer list",
            ));
        }
        Ok(addresses)
    }

    /// Both halves of a path, the source's first; the second why one is missing.
    async fn both_parts(
        &self,
        packet: &gossip::TracedPacket,
        leases: &[Lease],
    ) -> Result<(Vec<TraceStep>, Option<String>), ApiError> {
        let (source, target) = (self.owner(packet.src), self.owner(packet.dst));
        match (source, target) {
            (Some(Owner::Member(host)), Some(Owner::Local)) => {
                let (mut path, missing) = self.ask_part(host, packet).await;
                if path.last().is_none_or(|step| step.outcome == TraceOutcome::Pass) {
                    let peer =
                        self.core.find_peer(&PeerKind::Member(host)).map_or(PeerIndex(u32::MAX), |peer| peer.index);
                    path.extend(self.part(packet, Part::Destination(peer), leases));
                }
                Ok((path, missing))
            }
            (Some(Owner::Foreign(_)), Some(Owner::Local)) => {
                let snapshot = self.core.shared.snapshot.load();
                let Some(Route::Peer(peer)) = snapshot.tables.owners.lookup(packet.src).copied() else {
                    return Ok((self.part(packet, Part::Source, leases), None));
                };
                let name = snapshot.tables.peer_name(Route::Peer(peer));
                let missing =
                    format!("{name} is a foreign peer and cannot be asked: the part before this host is not known");
                Ok((self.part(packet, Part::Destination(peer), leases), Some(missing)))
            }
            (Some(Owner::Member(host)), _) => Err(ApiError::new(
                Code::Invalid,
                format!("{} and {} are both not on this host", packet.src, packet.dst),
                "a host tells only those whose packets it is about",
                format!("run `overlayctl trace` on {}", self.core.name_of(host)),
            )),
            (_, target) => {
                let mut path = self.part(packet, Part::Source, leases);
                let mut missing = None;
                if path.last().is_some_and(|step| step.outcome == TraceOutcome::Pass) {
                    match target {
                        Some(Owner::Member(host)) => {
                            let (more, why) = self.ask_part(host, packet).await;
                            path.extend(more);
                            missing = why;
                        }
                        Some(Owner::Foreign(_)) => {
                            missing =
                                Some("the destination is behind a foreign peer, which cannot be asked".to_owned());
                        }
                        Some(Owner::Local) | None => {}
                    }
                }
                Ok((path, missing))
            }
        }
    }

    fn owner(&self, address: IpAddr) -> Option<Owner> {
        self.core.view.load().rib.why_ip(address).best.map(|claim| claim.owner)
    }

    /// What this host does with a packet.
    fn part(&self, packet: &gossip::TracedPacket, part: Part, leases: &[Lease]) -> Vec<TraceStep> {
        let snapshot = self.core.shared.snapshot.load();
        let tables = &snapshot.tables;
        let gossip::TracedPacket { src, dst, protocol, src_port, dst_port, .. } = *packet;
        let tuple = Tuple { src, dst, protocol, src_port, dst_port };
        let host = self.core.config.load().node.name.clone();
        let step = |name: &str, outcome, text: String| TraceStep {
            host: host.clone(),
            step: name.to_owned(),
            outcome,
            text,
            permit: None,
        };
        let mark = self.core.config.load().plumbing.mark_socket;
        let is_own = |address| route_to((address, 9).into(), mark).is_ok_and(|route| route.source == address);
        let mut path = Vec::new();
        let found = if direct(tables, &tuple, is_own).is_some() {
            explain(tables, &tuple, is_own)
        } else {
            let Some(mut bytes) = sample(&tuple, packet.size, packet.may_fragment) else { return path };
            let Ok(headers) = Headers::parse(&bytes) else { return path };
            let (origin, segment_len) = match part {
                Part::Source => (Origin::Tun, bytes.len()),
                Part::Destination(peer) => (Origin::Peer(peer), 0),
            };
            let question = Question { origin, headers: &headers, segment_len, segments: 1 };
            let (verdict, notes) = rehearse(&self.core.conntrack, tables, &question, &mut bytes, Instant::now());
            steps(tables, &tuple, origin, &notes, verdict)
        };
        let mut goes_to = None;
        for found in found {
            let outcome = outcome_of(found.outcome);
            let mut shown = step(&found.stage.to_string(), outcome, found.detail);
            shown.permit = self.permit(tables, packet, found.stage, found.outcome, found.decided_by, part);
            let is_path = found.stage == Stage::Path;
            let passes = outcome == TraceOutcome::Pass;
            path.push(shown);
            if is_path && passes && part == Part::Source {
                goes_to = self.route_steps(dst, tables, &mut path, &step);
            }
        }
        if path.last().is_some_and(|step| step.outcome == TraceOutcome::Pass) {
            path.push(match goes_to {
                Some(peer) => self.path_step(&peer, &step),
                None => self.delivery_step(dst, tables, leases, &step),
            });
        }
        path
    }

    /// The claims on the destination, and what is rewritten on the way; the peer it goes to.
    fn route_steps(
        &self,
        dst: IpAddr,
        tables: &Tables,
        path: &mut Vec<TraceStep>,
        step: &impl Fn(&str, TraceOutcome, String) -> TraceStep,
    ) -> Option<String> {
        let why = self.core.view.load().rib.why_ip(dst);
        let lost = why.covering.iter().map(|claim| format!("{} of {} is shorter", claim.prefix, shown(&claim.name)));
        let refused = why.refused.iter().map(|claim| {
            format!("{} of {}: {}", claim.prefix, shown(&claim.name), claim.refusal_reason().unwrap_or_default())
        });
        let losers: Vec<String> = lost.chain(refused).take(4).collect();
        let losers = if losers.is_empty() { "no other claims it".to_owned() } else { losers.join("; ") };
        let text = match &why.best {
            Some(claim) => format!("{} of {}; {losers}", claim.prefix, shown(&claim.name)),
            None => "no claim in the overlay: the routes of the host decide".to_owned(),
        };
        path.push(step("route", TraceOutcome::Pass, text));
        let target = tables.owners.lookup(dst).copied();
        path.push(match target {
            Some(_) => step("nat", TraceOutcome::Pass, "none inside the overlay".to_owned()),
            None => {
                let text = "the source becomes the host's own address on its way out (masquerade)".to_owned();
                step("nat", TraceOutcome::Pass, text)
            }
        });
        match target {
            Some(route @ Route::Peer(_)) => Some(tables.peer_name(route)),
            Some(Route::Local) | None => None,
        }
    }

    /// What carries it to a peer.
    fn path_step(&self, name: &str, step: &impl Fn(&str, TraceOutcome, String) -> TraceStep) -> TraceStep {
        let Some(peer) = self.peers().into_iter().find(|peer| peer.name == name) else {
            return step("encapsulation", TraceOutcome::PathDown, format!("{name} is not known any more"));
        };
        let PeerStatus { encapsulation, endpoint, control, data, .. } = peer;
        let at = endpoint.map_or_else(|| "at no known address".to_owned(), |at| format!("at {at}"));
        let carried = format!("carried by {encapsulation} to {name} {at}");
        let down = data == DataState::Down || control == ControlState::Down;
        if !down {
            return step("encapsulation", TraceOutcome::Pass, carried);
        }
        let mut down = step("encapsulation", TraceOutcome::PathDown, format!("{carried}, which does not answer"));
        down.permit = Some(format!("`overlayctl doctor --peer {name}` finds out why and says what to do"));
        down
    }

    /// Who gets it on this host.
    fn delivery_step(
        &self,
        dst: IpAddr,
        tables: &Tables,
        leases: &[Lease],
        step: &impl Fn(&str, TraceOutcome, String) -> TraceStep,
    ) -> TraceStep {
        let name = "delivery";
        if tables.local.host.contains(&dst) {
            return step(name, TraceOutcome::Pass, "to this host itself; what listens there answers".to_owned());
        }
        let lease = leases.iter().find(|lease| lease.addresses.contains(&dst) && lease.state == LeaseState::Committed);
        if let Some(lease) = lease {
            let text = format!("to the container {} through {}", lease.name, lease.host_ifname);
            return step(name, TraceOutcome::Pass, text);
        }
        if tables.local.prefixes.iter().any(|prefix| prefix.contains(dst)) {
            let text = format!("no container of this host has {dst}: the sender is told that it is unreachable");
            let mut refused = step(name, TraceOutcome::NoRoute, text);
            refused.permit =
                Some("attach the container (`overlayctl endpoint add`), or use the address it has".to_owned());
            return refused;
        }
        if tables.local.announced.iter().any(|prefix| prefix.contains(dst)) {
            return step(
                name,
                TraceOutcome::Pass,
                "into the network behind this host, by the host's routes".to_owned(),
            );
        }
        step(name, TraceOutcome::Pass, "out of the overlay, by the host's routes".to_owned())
    }

    /// What would permit it.
    fn permit(
        &self,
        tables: &Tables,
        packet: &gossip::TracedPacket,
        stage: Stage,
        outcome: Outcome,
        by: Option<DecidedBy>,
        part: Part,
    ) -> Option<String> {
        let reason = outcome.reason()?;
        let gossip::TracedPacket { src, dst, protocol, dst_port, .. } = *packet;
        Some(match (stage, reason) {
            (Stage::Policy, _) => {
                let kind = Protocol::Number(protocol);
                let service = if kind.has_ports() { format!("{kind}/{dst_port}") } else { kind.to_string() };
                let rule = format!("allow {service} from {src} to {dst}");
                match by {
                    Some(DecidedBy::Labels { of, .. }) => {
                        let address = if of == FlowEnd::Source { src } else { dst };
                        format!(
                            "the labels of {address}, which its host tells when it is reached; or the rule `{rule}` in front"
                        )
                    }
                    Some(DecidedBy::Rule(place)) => {
                        format!("the rule `{rule}` in front of rule {} (`overlayctl policy apply FILE`)", place + 1)
                    }
                    Some(DecidedBy::Default(Grounds::Internal)) => {
                        "no rule does: an internal network has no way to the outside".to_owned()
                    }
                    Some(DecidedBy::Default(Grounds::HostClosed)) => {
                        format!("the rule `{rule}`, which opens the port of the host (`overlayctl policy apply FILE`)")
                    }
                    _ => format!("the rule `{rule}` (`overlayctl policy apply FILE`)"),
                }
            }
            (_, DropReason::NoOwner) => {
                format!("a container with {dst}, or a host that announces it: `overlayctl route why {dst}`")
            }
            (_, DropReason::UnknownPeer) => {
                "the peer that owns the destination is gone; `overlayctl peer list`".to_owned()
            }
            (_, DropReason::SpoofedSource | DropReason::ForeignSource) => match part {
                Part::Source => format!(
                    "send it from an address of this host, or from the owner of {src}: `overlayctl route why {src}`"
                ),
                Part::Destination(_) => format!("it has to come from the owner of {src}: `overlayctl route why {src}`"),
            },
            (_, DropReason::Transit) => format!("{dst} has to belong to this host: `overlayctl route why {dst}`"),
            (_, DropReason::TooBig) => match tables.owners.lookup(dst).copied() {
                Some(Route::Peer(peer)) => {
                    let mtu = tables.peer(peer).map_or(0, |peer| peer.inner_mtu.get());
                    format!("packets of at most {mtu} bytes, or fragmentation; docs/mtu.md")
                }
                _ => "smaller packets; docs/mtu.md".to_owned(),
            },
            (_, DropReason::RateLimit | DropReason::PacketRateLimit) => {
                "a higher limit: `overlayctl limit list`, `overlayctl limit set`".to_owned()
            }
            (_, DropReason::ConntrackFull | DropReason::SourceShare) => {
                "fewer flows, or a larger limits.conntrack_entries".to_owned()
            }
            (Stage::Flow, _) => "a flow that begins with its first packet; `overlayctl flow list`".to_owned(),
            _ => return None,
        })
    }

    /// Asks the other host for its half.
    async fn ask_part(&self, host: HostId, packet: &gossip::TracedPacket) -> (Vec<TraceStep>, Option<String>) {
        let name = self.core.name_of(host);
        for _ in 0..TRIES {
            let (told, answer) = tokio::sync::oneshot::channel();
            if self.core.changes.send(Change::AskTrace(host, Box::new(*packet), told)).await.is_err() {
                break;
            }
            match tokio::time::timeout(ANSWER, answer).await {
                Ok(Ok(Some(answer))) if answer.steps.is_empty() => {
                    return (
                        Vec::new(),
                        Some(format!("{name} does not tell: by its records the packet is not this host's")),
                    );
                }
                Ok(Ok(Some(answer))) => {
                    return (answer.steps.into_iter().map(|step| from_wire(&name, step)).collect(), None);
                }
                Ok(Ok(None)) => {
                    let why = "it is not reachable, or its release cannot be asked";
                    return (Vec::new(), Some(format!("{name} was not asked: {why}; its part is not known")));
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
        (Vec::new(), Some(format!("{name} did not answer: its part is not known")))
    }

    /// Answers the question of a member: only about packets between it and this host.
    pub(crate) async fn answer_trace(&self, asker: HostId, packet: &gossip::TracedPacket) -> gossip::TraceAnswer {
        let (source, target) = (self.owner(packet.src), self.owner(packet.dst));
        let part = match (source, target) {
            (Some(Owner::Member(host)), Some(Owner::Local)) if host == asker => {
                let peer = self.core.find_peer(&PeerKind::Member(host));
                peer.map(|peer| Part::Destination(peer.index))
            }
            (Some(Owner::Local), Some(Owner::Member(host))) if host == asker => Some(Part::Source),
            _ => None,
        };
        let Some(part) = part else { return gossip::TraceAnswer::default() };
        let leases = self.core.plumbing.endpoints().await.unwrap_or_default();
        let mut path = self.part(packet, part, &leases);
        // The last step decides, so it is kept whatever else has to go.
        while path.len() > gossip::trace::MAX_STEPS {
            let passing = path.iter().position(|step| matches!(step.step.as_str(), "nat" | "addresses" | "rate"));
            path.remove(passing.unwrap_or(0));
        }
        gossip::TraceAnswer { steps: path.into_iter().map(|step| to_wire(&step)).collect() }
    }

    /// Sends an echo request as if its source had; how it is called where its capture shows it.
    fn send_traced(&self, packet: &gossip::TracedPacket) -> Option<String> {
        let gossip::TracedPacket { src, dst, protocol, .. } = *packet;
        let is_echo = matches!(protocol, 1 | 58);
        if !is_echo || self.owner(src) != Some(Owner::Local) {
            return None;
        }
        let tuple = Tuple { src, dst, protocol, src_port: 0, dst_port: 0 };
        let bytes = sample(&tuple, packet.size, packet.may_fragment)?;
        let sent = self.core.worker.send(WorkerCommand::Inject(bytes));
        sent.then(|| "one echo request was sent as this packet".to_owned())
    }
}

fn shown(name: &str) -> &str {
    if name.is_empty() { "this host" } else { name }
}

fn outcome_of(outcome: Outcome) -> TraceOutcome {
    use DropReason as R;
    match outcome.reason() {
        None => TraceOutcome::Pass,
        Some(R::PolicyDeny | R::PolicyReject | R::PolicyDefault | R::PolicyRevoked | R::IdentityUnknown) => {
            TraceOutcome::Denied
        }
        Some(R::NoOwner | R::Transit) => TraceOutcome::NoRoute,
        Some(R::UnknownPeer) => TraceOutcome::PathDown,
        Some(R::TooBig) => TraceOutcome::TooBig,
        Some(R::SpoofedSource | R::ForeignSource) => TraceOutcome::AntiSpoof,
        Some(_) => TraceOutcome::Dropped,
    }
}

/// Each outcome here and in gossip.
const OUTCOMES: [(TraceOutcome, gossip::TraceOutcome); 7] = [
    (TraceOutcome::Pass, gossip::TraceOutcome::Pass),
    (TraceOutcome::Denied, gossip::TraceOutcome::Denied),
    (TraceOutcome::NoRoute, gossip::TraceOutcome::NoRoute),
    (TraceOutcome::PathDown, gossip::TraceOutcome::PathDown),
    (TraceOutcome::TooBig, gossip::TraceOutcome::TooBig),
    (TraceOutcome::AntiSpoof, gossip::TraceOutcome::AntiSpoof),
    (TraceOutcome::Dropped, gossip::TraceOutcome::Dropped),
];

fn to_wire(step: &TraceStep) -> gossip::TraceStep {
    let outcome = OUTCOMES.iter().find(|(own, _)| *own == step.outcome);
    let outcome = outcome.map_or(gossip::TraceOutcome::Dropped, |(_, wire)| *wire);
    gossip::TraceStep::new(&step.step, outcome, &step.text)
}

fn from_wire(host: &str, step: gossip::TraceStep) -> TraceStep {
    let outcome = OUTCOMES.iter().find(|(_, wire)| *wire == step.outcome);
    let outcome = outcome.map_or(TraceOutcome::Dropped, |(own, _)| *own);
    // What a host sends is short; what would permit it follows from the kind of refusal.
    let permit = match outcome {
        TraceOutcome::Pass => None,
        _ => Some(format!("on {host}: `overlayctl trace --why-not` there says what would permit it")),
    };
    TraceStep { host: host.to_owned(), step: step.name, outcome, text: step.text, permit }
}

//! Flows, and a look at the host.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use overlay_control::api::{ControlState, DataState, DoctorMode, Flow, FlowSelector as Asked, PeerStatus, Response};
use overlay_control::{ApiError, Code};
use overlay_dataplane::{FlowSelector, FlowSnapshot};
use overlay_wire::Encapsulation;
use overlay_wire::packet::protocol;

use super::{Api, ask, not_found};
use crate::doctor::{self, Reach};
use crate::sizes;
use crate::start::plumbing_config;

/// Flows listed at most with one request; an answer stays far below one frame.
const MOST: usize = 2000;

impl Api {
    fn reach_of_all(&self) -> Vec<Reach> {
        let port = self.core.config.load().overlay.listen_port;
        self.peers().iter().flat_map(|peer| reached(peer, port)).collect()
    }

    fn selector(&self, asked: &Asked) -> Result<FlowSelector, ApiError> {
        let peer = match &asked.peer {
            None => None,
            Some(name) => {
                let peers = self.core.all_peers();
                let peer = peers.iter().find(|peer| &peer.name == name);
                Some(peer.ok_or_else(|| not_found("peer", name, "overlayctl peer list"))?.index)
            }
        };
        Ok(FlowSelector {
            protocol: asked.protocol,
            src: asked.from,
            dst: asked.to,
            src_port: None,
            dst_port: asked.port,
            peer,
        })
    }

    pub(super) fn flow_list(&self, asked: &Asked, limit: u32) -> Result<Response, ApiError> {
        let selector = self.selector(asked)?;
        let limit = (limit as usize).min(MOST);
        let mut flows = self.core.conntrack.flows(&selector, limit + 1, Instant::now());
        let more = flows.len() > limit;
        flows.truncate(limit);
        let snapshot = self.core.shared.snapshot.load();
        let name =
            |flow: &FlowSnapshot| flow.peer.and_then(|peer| snapshot.tables.peer(peer)).map(|peer| peer.name.clone());
        Ok(Response::Flows { flows: flows.iter().map(|flow| shown(flow, name(flow))).collect(), more })
    }

    pub(super) fn flow_kill(&self, asked: &Asked) -> Result<Response, ApiError> {
        let selector = self.selector(asked)?;
        Ok(Response::Killed { count: self.core.conntrack.kill(&selector) as u64 })
    }

    pub(super) async fn doctor(&self, mode: DoctorMode, peer: Option<String>) -> Result<Response, ApiError> {
        let named = match &peer {
            Some(name) => {
                let found = self.peers().into_iter().find(|known| &known.name == name);
                Some(found.ok_or_else(|| not_found("peer", name, "overlayctl peer list"))?)
            }
            None => None,
        };
        let config = self.core.config.load_full();
        let plain = |kind: Encapsulation| !kind.is_encrypted();
        let mut inputs = doctor::Inputs {
            endpoints: {
                let view = self.core.view.load();
                let certified = view.members.iter().filter_map(|member| member.endpoint);
                let mut all: Vec<IpAddr> = config
                    .members
                    .iter()
                    .filter_map(|member| member.endpoint)
                    .chain(certified)
                    .map(|to| to.ip())
                    .collect();
                all.sort_unstable();
                all.dedup();
                all
            },
            plain_in_use: plain(config.overlay.encapsulation)
                || config.members.iter().any(|member| member.encapsulation.is_some_and(plain))
                || config.peers.iter().any(|peer| plain(peer.kind.encapsulation())),
            overhead: self.largest_overhead(),
            reach: self.reach_of_all(),
            twin: self.core.twin.lock().clone(),
            ..doctor::Inputs::default()
        };
        if mode != DoctorMode::Undo {
            self.ask(named.as_ref(), &mut inputs).await?;
        }
        let plumbing = plumbing_config(&config, self.core.mtu);
        Ok(Response::Findings(doctor::run(mode, &plumbing, inputs).await))
    }

    /// What the largest encapsulation in use adds to a packet, by the peers whose addresses are known.
    fn largest_overhead(&self) -> u32 {
        let snapshot = self.core.shared.snapshot.load();
        let added = snapshot.peers.iter().filter_map(|path| {
            let to = path.plain.or(path.peer.state.lock().path)?.to.ip();
            Some(u32::from(sizes::overhead(path.encapsulation, to, &path.gre)))
        });
        added.max().unwrap_or(doctor::OVERHEAD_BYTES)
    }

    /// Asks the peer named, or members for their clocks.
    async fn ask(&self, named: Option<&PeerStatus>, inputs: &mut doctor::Inputs) -> Result<(), ApiError> {
        match named {
            Some(peer) => {
                let answers = tokio::time::timeout(ask::LIMIT, self.ask_peer(peer)).await.map_err(|_| {
                    ApiError::new(
                        Code::Timeout,
                        format!("{} could not be asked within {} s", peer.name, ask::LIMIT.as_secs()),
                        "this host is too busy to keep its own time limits",
                        "try again when it is less busy; `overlayctl doctor` without --peer asks for clocks only",
                    )
                })?;
                inputs.clock_offsets = answers.clock.map(|ahead| (peer.name.clone(), ahead)).into_iter().collect();
                inputs.asked = Some(answers.asked);
            }
            None => inputs.clock_offsets = self.ask_clocks().await,
        }
        Ok(())
    }
}

/// What members' answers say about the ports and protocols between them and us: a gossip probe answered is a UDP datagram
/// that went there and one that came back, a data-path probe answered the same for the encapsulation in use.
fn reached(peer: &PeerStatus, port: u16) -> Vec<Reach> {
    let reach = |what: String, arrived| Reach { peer: peer.name.clone(), what, arrived };
    let mut found = Vec::new();
    match peer.control {
        ControlState::Up => found.push(reach(format!("UDP port {port}"), true)),
        ControlState::Down | ControlState::Unknown => found.push(reach(format!("UDP port {port}"), false)),
        ControlState::Suspect | ControlState::None => {}
    }
    let protocol = match peer.encapsulation {
        Encapsulation::Gre => Some("protocol 47"),
        Encapsulation::Ipip => Some("protocols 4 and 41"),
        Encapsulation::Wireguard => None,
    };
    match (protocol, peer.data) {
        (Some(protocol), DataState::Up) => found.push(reach(protocol.to_owned(), true)),
        (Some(protocol), DataState::Down) => found.push(reach(protocol.to_owned(), false)),
        _ => {}
    }
    found
}

fn shown(flow: &FlowSnapshot, peer: Option<String>) -> Flow {
    let tuple = &flow.tuple;
    let has_ports = matches!(tuple.protocol, protocol::TCP | protocol::UDP);
    let end = |address: IpAddr, port: u16| {
        if has_ports { SocketAddr::new(address, port).to_string() } else { address.to_string() }
    };
    Flow {
        protocol: match tuple.protocol {
            protocol::TCP => "tcp".to_owned(),
            protocol::UDP => "udp".to_owned(),
            protocol::ICMP => "icmp".to_owned(),
            protocol::ICMPV6 => "icmpv6".to_owned(),
            other => other.to_string(),
        },
        source: end(tuple.src, tuple.src_port),
        destination: end(tuple.dst, tuple.dst_port),
        state: flow.state.name().to_owned(),
        peer,
        packets: flow.original.packets,
        reply_packets: flow.reply.packets,
        bytes: flow.original.bytes,
        reply_bytes: flow.reply.bytes,
        idle_ms: flow.idle.as_millis() as u64,
    }
}

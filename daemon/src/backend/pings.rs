//! Pings to a peer by name, or to any overlay address, through the encapsulation in use.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_control::api::{PingProgress, Response};
use overlay_control::{ApiError, Code};
use overlay_routing::ownership::Owner;
use rand_core::RngCore;

use super::{Api, not_found};
use crate::core::host_address;
use crate::probe;
use crate::shared::WorkerCommand;

/// How long the last echo is waited for.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// Echoes sent at most, and the shortest time between two.
const MOST: u32 = 1000;
const SHORTEST: Duration = Duration::from_millis(10);

impl Api {
    pub(super) fn ping_start(
        &self,
        target: &str,
        count: u32,
        size: u16,
        interval_ms: u32,
    ) -> Result<Response, ApiError> {
        let core = &self.core;
        let view = core.view.load();
        let address: IpAddr = match target.parse() {
            Ok(address) => address,
            Err(_) => {
                let named = view.rib.best().find(|claim| claim.name == target && !matches!(claim.owner, Owner::Local));
                named
                    .map(|claim| host_address(&claim.prefix))
                    .ok_or_else(|| not_found("peer", target, "overlayctl peer list"))?
            }
        };
        let claim = view.rib.why_ip(address).best.ok_or_else(|| {
            ApiError::new(
                Code::NoRoute,
                format!("nobody owns {address}"),
                "no prefix in use covers it",
                format!("see `overlayctl route why {address}`"),
            )
        })?;
        let status = self.peers().into_iter().find(|peer| peer.name == claim.name);
        let from =
            core.host_addresses.iter().copied().find(|own| own.is_ipv4() == address.is_ipv4()).ok_or_else(|| {
                ApiError::new(
                    Code::Invalid,
                    format!("this host has no overlay address of the family of {address}"),
                    "node.prefixes holds no prefix of that family",
                    "ping an address of the other family, or add a prefix and restart",
                )
            })?;
        let id = (rand_core::OsRng.next_u32() >> 16) as u16;
        let count = count.clamp(1, MOST);
        let progress = PingProgress {
            peer: claim.name.clone(),
            address: Some(address),
            encapsulation: status.as_ref().map_or(core.config.load().overlay.encapsulation, |peer| peer.encapsulation),
            endpoint: status.and_then(|peer| peer.endpoint),
            replies: Vec::new(),
            done: false,
        };
        let number = core.shared.pings.begin(progress, id, count);
        let headers = if address.is_ipv4() { 28 } else { 48 };
        let payload = usize::from(size).saturating_sub(headers);
        let interval = Duration::from_millis(u64::from(interval_ms)).max(SHORTEST);
        let core = Arc::clone(core);
        tokio::spawn(async move {
            let mut timer = tokio::time::interval(interval);
            for sequence in 1..=count {
                timer.tick().await;
                let Some(packet) = probe::echo_request(from, address, id, sequence as u16, payload) else { break };
                core.shared.pings.sent(number, sequence, Instant::now());
                core.worker.send(WorkerCommand::Inject(packet));
            }
            let deadline = Instant::now() + LAST_ANSWER;
            while !core.shared.pings.complete(number) && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            core.shared.pings.finish(number);
        });
        Ok(Response::PingStarted { id: number })
    }
}

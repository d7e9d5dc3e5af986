//! Names: what `overlay_control::api::DnsRequest` means.

use std::sync::atomic::Ordering::Relaxed;

use overlay_control::ApiError;
use overlay_control::api::{DnsRequest, DnsStatus, Response};

use super::{Api, done};

impl Api {
    pub(super) async fn dns(&self, request: DnsRequest) -> Result<Response, ApiError> {
        match request {
            DnsRequest::Status => Ok(Response::Dns(self.dns_status())),
            DnsRequest::SetNames { endpoint, names } => {
                let changed = self.core.plumbing.set_names(endpoint, names).await.map_err(ApiError::from)?;
                Ok(done(changed, Vec::new()))
            }
        }
    }

    fn dns_status(&self) -> DnsStatus {
        let (config, zone, counters) = (self.core.config.load(), self.core.zone.load(), &self.core.name_counters);
        let (hosts, containers) = zone.count();
        let enabled = self.core.names_problem.get().is_none() && config.dns.enabled;
        DnsStatus {
            enabled,
            domain: config.dns.domain.clone(),
            servers: if enabled { self.core.host_addresses.clone() } else { Vec::new() },
            forward: self.core.upstreams.servers(),
            hosts: hosts as u64,
            containers: containers as u64,
            answered: counters.answered.load(Relaxed),
            forwarded: counters.forwarded.load(Relaxed),
            refused: counters.refused.load(Relaxed),
        }
    }
}

//! `overlayctl limit`: what is limited, and to what.

use overlay_control::api::{LimitRate, LimitRequest, Response};
use overlay_control::{ApiError, Code};
use overlay_dataplane::{MAX_RATE, MIN_RATE};
use overlay_wire::Prefix;

use super::{Api, done, not_found};
use crate::core::Change;
use crate::limits::{MAX_LIMITS, Target};
use crate::plumbing::lease::LeaseState;
use crate::state::StateError;

/// The most packets per second that make sense to write.
const MAX_PACKETS: u64 = 1_000_000_000;
/// The largest burst, in bytes: far more than any queue on the way.
const MAX_BURST: u64 = 1 << 32;

impl Api {
    pub(super) async fn limit(&self, request: LimitRequest) -> Result<Response, ApiError> {
        match request {
            LimitRequest::List => {
                self.prune_limits().await;
                Ok(Response::Limits(self.core.limits.list()))
            }
            LimitRequest::Set { selector, from, to } => self.limit_set(&selector, from, to).await,
            LimitRequest::Remove { selector } => {
                let removed = self.core.limits.remove(&selector).map_err(unkept)?;
                if !removed {
                    return Err(not_found("limit", &selector, "overlayctl limit list"));
                }
                self.rebuild().await;
                Ok(done(true, vec![format!("{selector} is not limited any more")]))
            }
        }
    }

    async fn limit_set(
        &self,
        selector: &str,
        from: Option<LimitRate>,
        to: Option<LimitRate>,
    ) -> Result<Response, ApiError> {
        let given = from.iter().chain(&to);
        given.clone().try_for_each(check)?;
        if given.count() == 0 {
            return Err(invalid("no rate is given", "there is nothing to set", "give --rate or --pps"));
        }
        let target = self.limit_target(selector).await?;
        match self.core.limits.set(selector, target, from, to).map_err(unkept)? {
            None => Err(ApiError::new(
                Code::Busy,
                format!("{MAX_LIMITS} limits are set"),
                "that is as many as the daemon allows",
                "take some away with `overlayctl limit rm`",
            )),
            Some(false) => Ok(done(false, Vec::new())),
            Some(true) => {
                self.rebuild().await;
                Ok(done(true, vec![format!("{selector} is limited")]))
            }
        }
    }

    async fn limit_target(&self, selector: &str) -> Result<Target, ApiError> {
        if let Some(name) = selector.strip_prefix("peer:") {
            let known = self.core.all_peers().iter().any(|peer| peer.name == name);
            return if known {
                Ok(Target::Peer(name.to_owned()))
            } else {
                Err(not_found("peer", name, "overlayctl peer list"))
            };
        }
        let address = selector.parse().map(Prefix::host);
        if let Some(prefix) = address.ok().or_else(|| selector.parse::<Prefix>().ok()) {
            return Ok(Target::Prefix(prefix));
        }
        let leases = self.core.plumbing.endpoints().await.unwrap_or_default();
        let lease = leases.into_iter().find(|lease| lease.name == selector && lease.state != LeaseState::Cooling);
        let lease = lease.ok_or_else(|| not_found("endpoint", selector, "overlayctl endpoint list"))?;
        let prefixes = lease.addresses.iter().copied().map(Prefix::host).collect();
        Ok(Target::Container { lease: lease.id, prefixes })
    }

    /// Takes away the limits of containers that are gone: their addresses may be given to others.
    pub(super) async fn prune_limits(&self) {
        let Ok(leases) = self.core.plumbing.endpoints().await else { return };
        match self.core.limits.prune(&leases) {
            Ok(false) => {}
            Ok(true) => self.rebuild().await,
            Err(error) => tracing::warn!(cause = %error, "the limit of a container that is gone stays for now"),
        }
    }

    async fn rebuild(&self) {
        // A director that has ended has no packet path to rebuild.
        let (built, done) = tokio::sync::oneshot::channel();
        if self.core.changes.send(Change::Rebuild(built)).await.is_ok() {
            let _ = done.await;
        }
    }
}

fn check(rate: &LimitRate) -> Result<(), ApiError> {
    let LimitRate { bits, burst, packets } = *rate;
    if bits.is_some_and(|bits| !(MIN_RATE..=MAX_RATE).contains(&bits)) {
        return Err(invalid("the rate cannot be kept", "it must be from 1kbit to 1tbit", "give another --rate"));
    }
    if burst.is_some_and(|burst| burst == 0 || burst > MAX_BURST) || (burst.is_some() && bits.is_none()) {
        let why = "it must be from 1 byte to 4 GiB, and goes with a rate";
        return Err(invalid("the burst cannot be kept", why, "give another --burst, or none"));
    }
    if packets.is_some_and(|packets| packets == 0 || packets > MAX_PACKETS) {
        return Err(invalid("the packet rate cannot be kept", "it must be from 1 to 10^9", "give another --pps"));
    }
    Ok(())
}

fn invalid(what: &str, why: &str, next: &str) -> ApiError {
    ApiError::new(Code::Invalid, what, why, next)
}

fn unkept(error: StateError) -> ApiError {
    ApiError::new(
        Code::Io,
        "the limit was not changed",
        error.to_string(),
        "it must be kept on disk; make room or repair the state directory, and try again",
    )
}

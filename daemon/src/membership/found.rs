//! Founding a cluster: a new authority, and this host as its first member and issuer.

use std::time::{SystemTime, UNIX_EPOCH};

use overlay_config::PublicKey;
use overlay_control::api::InitRequest;
use overlay_control::{ApiError, Code};
use overlay_routing::identity::IdentityKey;
use overlay_routing::membership::{CaKey, DEFAULT_VALIDITY_SECS, Issuer, IssuerConfig, TokenRequest};
use overlay_wire::membership::{ClusterSettings, Labels, Rights};
use rand_core::OsRng;

use super::kept::Kept;

/// The length of a host's IPv4 subnet.
const SUBNET_V4: u8 = 24;
/// The length of a host's IPv6 subnet.
const SUBNET_V6: u8 = 64;

/// Seconds since 1970; 0 for a clock before that.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Makes a cluster; nothing is stored yet.
///
/// # Errors
/// When the request does not make a cluster.
pub(crate) fn found(
    request: &InitRequest,
    identity: &IdentityKey,
    name: &str,
    listen_port: u16,
) -> Result<(Kept, Issuer), ApiError> {
    let invalid = |why: String| {
        ApiError::new(
            Code::Invalid,
            "the cluster cannot be founded",
            why,
            "correct what is named, as in `overlayctl init prod --pool 10.42.0.0/16,fd42::/48`; nothing was changed",
        )
    };
    let mut pool = request.pool.clone();
    pool.sort_unstable();
    pool.dedup();
    let settings = ClusterSettings {
        name: request.cluster.clone(),
        pool,
        encapsulation: request.encapsulation,
        listen_port,
        policy_default: request.policy,
        mtu: None,
    };
    let config = IssuerConfig {
        settings: settings.clone(),
        subnet_v4: SUBNET_V4,
        subnet_v6: SUBNET_V6,
        validity_secs: DEFAULT_VALIDITY_SECS,
    };
    let mut issuer = Issuer::found(CaKey::generate(&mut OsRng), config).map_err(|error| invalid(error.to_string()))?;
    let own = TokenRequest {
        uses: 1,
        ttl_secs: 1,
        labels: Labels::new(),
        rights: Rights(Rights::ISSUER.0 | Rights::POLICY.0),
        name: None,
        subnets: Vec::new(),
        allow: Vec::new(),
    };
    let pending =
        issuer.admit(&identity.public(), name, &own, unix_now()).map_err(|error| invalid(error.to_string()))?;
    let certificate = issuer.commit(pending).map_err(|error| invalid(error.to_string()))?;
    let authorities = issuer.trusted().iter().map(|key| PublicKey(*key.as_bytes())).collect();
    let mut kept = Kept::new(&settings, authorities, &certificate);
    kept.trusted_underlay.clone_from(&request.trusted_underlay);
    Ok((kept, issuer))
}

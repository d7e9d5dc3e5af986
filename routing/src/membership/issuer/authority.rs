//! Revocation and rotation: the records an authority signs, and what follows for the ledger.

use std::collections::BTreeSet;

use overlay_wire::gossip::Record;
use overlay_wire::membership::authority::{KEYS_SHARD, MAX_RETIRED};
use overlay_wire::membership::{AuthorityBody, CaId, REVOKED_PER_RECORD, authority_shard};
use overlay_wire::{HostId, Prefix};

use super::{Issuer, IssuerError, Pending};
use crate::membership::state::State;
use crate::membership::{COOLDOWN_SECS, CaKey};

/// The most hosts one issuer revokes.
const MAX_REVOKED: usize = 10_000;

/// What [`Issuer::forget`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// The authority records to publish.
    pub records: Vec<Record>,
    /// Subnets that become free, and when (Unix seconds); none where another issuer gave them.
    pub freed: Vec<(Prefix, u64)>,
}

impl Issuer {
    /// Revokes a host for ever; gives the authority records to publish.
    ///
    /// # Errors
    /// When the list is full.
    pub fn revoke(&self, host: HostId) -> Result<Pending<Vec<Record>>, IssuerError> {
        let mut next = self.next(0);
        add_revoked(&mut next, &[host])?;
        let records = Self::records(&next, &self.cluster())?;
        Ok(Pending { next, value: records })
    }

    /// Revokes a host and frees its subnets after the end of its certificate and a cooldown.
    ///
    /// # Errors
    /// When the list is full.
    pub fn forget(&self, host: HostId, unix_now: u64) -> Result<Pending<Forgotten>, IssuerError> {
        let mut next = self.next(unix_now);
        add_revoked(&mut next, &[host])?;
        // Another issuer may have renewed its certificate, but not beyond one validity from now.
        let held = next.issued.get(&host).map_or(unix_now, |held| held.certificate.not_after);
        let until = held.max(unix_now.saturating_add(next.config.validity_secs));
        let free_from = until.saturating_add(COOLDOWN_SECS);
        let freed: Vec<(Prefix, u64)> =
            next.given.remove(&host).unwrap_or_default().into_iter().map(|prefix| (prefix, free_from)).collect();
        next.freeing.extend(freed.iter().map(|(prefix, at)| (*at, *prefix)));
        next.issued.remove(&host);
        let records = Self::records(&next, &self.cluster())?;
        Ok(Pending { next, value: Forgotten { records, freed } })
    }

    /// The authority records this issuer has to publish, as after a start.
    ///
    /// # Errors
    /// When a record would exceed a limit, which no operation lets happen.
    pub fn authority_records(&self) -> Result<Vec<Record>, IssuerError> {
        Self::records(self.state(), &self.cluster())
    }

    /// Makes `next` the authority that signs, trusted beside the one so far; gives the records to publish. `revoked` are all
    /// hosts known to be revoked, by whatever issuer.
    ///
    /// # Errors
    /// When a rotation is under way.
    pub fn begin_rotation(&self, successor: &CaKey, revoked: &[HostId]) -> Result<Pending<Vec<Record>>, IssuerError> {
        let (ca, previous) = self.keys();
        if previous.is_some() {
            return Err(IssuerError::Rotation("a rotation is under way already"));
        }
        if successor.id() == ca.id() || self.state().retired.contains(&successor.id()) {
            return Err(IssuerError::Rotation("the new authority must have a new key"));
        }
        if self.state().retired.len() >= MAX_RETIRED {
            return Err(IssuerError::Full("retired authorities"));
        }
        let mut next = self.next(0);
        add_revoked(&mut next, revoked)?;
        next.previous = Some(ca.to_bytes());
        next.ca = successor.to_bytes();
        let records = Self::records(&next, &self.cluster())?;
        Ok(Pending { next, value: records })
    }

    /// Retires the authority before; its certificates count no more. Gives the records to publish.
    ///
    /// # Errors
    /// When no rotation is under way.
    pub fn finish_rotation(&self) -> Result<Pending<Vec<Record>>, IssuerError> {
        let Some(previous) = self.keys().1 else {
            return Err(IssuerError::Rotation("no rotation is under way"));
        };
        let mut next = self.next(0);
        next.previous = None;
        next.retired.insert(previous.id());
        let records = Self::records(&next, &self.cluster())?;
        Ok(Pending { next, value: records })
    }

    /// Every authority record that follows from a state.
    ///
    /// Versions follow from the content, so that issuers that know the same say it in the same bytes: a chunk of revoked
    /// hosts only grows, and its version is its length.
    fn records(state: &State, cluster: &[u8; 32]) -> Result<Vec<Record>, IssuerError> {
        let ca = CaKey::from_bytes(&state.ca);
        let previous = state.previous.as_ref().map(|seed| CaKey::from_bytes(seed));
        let mut records = Vec::new();
        if let Some(previous) = &previous {
            records.push(keys_record(previous, cluster, Some(&ca), &state.retired)?);
            records.push(keys_record(&ca, cluster, None, &BTreeSet::new())?);
        } else {
            records.push(keys_record(&ca, cluster, None, &state.retired)?);
        }
        for (chunk, hosts) in (1u8..=u8::MAX).zip(state.revoked.chunks(REVOKED_PER_RECORD)) {
            let mut hosts = hosts.to_vec();
            hosts.sort_unstable();
            let (version, shard) = (hosts.len() as u64, authority_shard(state.slots.0, chunk));
            records.push(ca.record(cluster, shard, version, &AuthorityBody::Revoked(hosts))?);
        }
        Ok(records)
    }
}

fn keys_record(
    ca: &CaKey,
    cluster: &[u8; 32],
    successor: Option<&CaKey>,
    retired: &BTreeSet<CaId>,
) -> Result<Record, IssuerError> {
    let body = AuthorityBody::Keys {
        key: *ca.public().as_bytes(),
        successor: successor.map(|key| *key.public().as_bytes()),
        retired: retired.iter().copied().collect(),
    };
    let version = 1 + 2 * retired.len() as u64 + u64::from(successor.is_some());
    Ok(ca.record(cluster, KEYS_SHARD, version, &body)?)
}

fn add_revoked(next: &mut State, hosts: &[HostId]) -> Result<(), IssuerError> {
    for host in hosts {
        if !next.revoked.contains(host) {
            next.revoked.push(*host);
        }
    }
    if next.revoked.len() > MAX_REVOKED {
        return Err(IssuerError::Full("revoked hosts"));
    }
    Ok(())
}

//! The policy of the whole cluster: cut into records by whoever may publish it, put together by everybody.
//!
//! The greatest (revision, hash) of which every piece is known counts. While a newer one is still arriving, the one before
//! stays in force.

use std::collections::BTreeMap;
use std::time::Instant;

use blake2::{Blake2s256, Digest};
use overlay_wire::HostId;
use overlay_wire::gossip::body::BodyError;
use overlay_wire::gossip::{RecordKey, RecordKind};
use overlay_wire::membership::policy::MAX_POLICY_SHARDS;
use overlay_wire::membership::{MAX_POLICY_BYTES, PolicyShard, PolicyStatus, Rights};

use super::Gossip;
use super::config::GossipError;
use super::membership::{Authority, ClusterPolicy, Standing};
use super::view::GossipEvent;

/// The hash that tells policy texts of one revision apart.
pub(super) fn policy_hash(text: &str) -> [u8; 32] {
    Blake2s256::new().chain_update(b"overlay policy v1\0").chain_update(text.as_bytes()).finalize().into()
}

impl Gossip {
    /// Publishes a policy for the whole cluster; gives the hash of the text.
    ///
    /// # Errors
    /// When this host lacks the right, the text is too long, or a higher revision is known.
    pub fn publish_policy(&mut self, revision: u64, text: &str, now: Instant) -> Result<[u8; 32], GossipError> {
        if !self.may_write_policy(self.host) {
            return Err(GossipError::NoPolicyRight);
        }
        let hash = policy_hash(text);
        if let Some(known) = &self.trust.policy
            && revision <= known.revision
        {
            return Err(GossipError::OldRevision { revision, known: known.revision });
        }
        if text.len() > MAX_POLICY_BYTES {
            return Err(BodyError::TooLarge { bytes: text.len(), max: MAX_POLICY_BYTES }.into());
        }
        let shards = PolicyShard::cut(revision, hash, text.as_bytes())?;
        let count = shards.len() as u16;
        for (shard, piece) in (0..).zip(shards) {
            let key = RecordKey { owner: self.host, kind: RecordKind::POLICY, shard };
            self.publish(key, piece.encode(), now);
        }
        for shard in count..MAX_POLICY_SHARDS as u16 {
            let key = RecordKey { owner: self.host, kind: RecordKind::POLICY, shard };
            if self.store.get(&key).is_some_and(|held| !held.is_withdrawal()) {
                self.publish(key, Vec::new(), now);
            }
        }
        self.settle_policy();
        self.settle_routes();
        Ok(hash)
    }

    /// Tells all members what became of the cluster's policy here.
    pub fn publish_policy_status(&mut self, status: PolicyStatus, now: Instant) {
        self.publish(self.own_key(RecordKind::POLICY_STATUS), status.encode(), now);
        self.settle_routes();
    }

    /// The cluster's policy: the greatest (revision, hash) of which every piece is known.
    #[must_use]
    pub fn policy(&self) -> Option<&ClusterPolicy> {
        self.trust.policy.as_ref()
    }

    /// What each member, this host included, made of the cluster's policy.
    #[must_use]
    pub fn policy_statuses(&self) -> BTreeMap<HostId, PolicyStatus> {
        let of_kind = self.store.iter().filter(|record| record.key.kind == RecordKind::POLICY_STATUS);
        of_kind.filter_map(|record| Some((record.key.owner, PolicyStatus::decode(&record.body).ok()?))).collect()
    }

    /// Puts together what is complete, and takes it over where it is greater than what counts.
    pub(super) fn settle_policy(&mut self) {
        let owners: Vec<HostId> = self.peers.keys().copied().chain([self.host]).collect();
        for owner in owners {
            if !self.may_write_policy(owner) {
                continue;
            }
            let Some(policy) = self.complete_policy(owner) else { continue };
            let known = self.trust.policy.as_ref().map(|known| (known.revision, known.hash));
            if known.is_none_or(|known| known < (policy.revision, policy.hash)) {
                self.trust.policy = Some(policy.clone());
                self.emit(GossipEvent::PolicyChanged(Box::new(policy)));
            }
        }
    }

    /// Whether a host, this one included, may write the cluster's policy now.
    #[must_use]
    pub fn has_policy_right(&self, host: HostId) -> bool {
        self.may_write_policy(host)
    }

    fn may_write_policy(&self, host: HostId) -> bool {
        let certificate = if host == self.host {
            self.trust.certificate.as_ref().filter(|_| self.trust.standing == Standing::Full && !self.trust.own_revoked)
        } else {
            self.peers.get(&host).filter(|peer| peer.standing == Standing::Full).and_then(|peer| {
                match &peer.authority {
                    Authority::Certificate(held) => Some(&**held),
                    Authority::Static => None,
                }
            })
        };
        certificate.is_some_and(|held| held.certificate.rights.contains(Rights::POLICY))
    }

    /// The whole text an owner published, if every piece of it is here.
    fn complete_policy(&self, owner: HostId) -> Option<ClusterPolicy> {
        let piece = |shard: u16| {
            let record = self.store.get(&RecordKey { owner, kind: RecordKind::POLICY, shard })?;
            PolicyShard::decode(&record.body, shard).ok()
        };
        let first = piece(0)?;
        let mut bytes = Vec::new();
        for shard in 0..u16::from(first.count) {
            let part = piece(shard)?;
            if (part.revision, part.hash, part.count) != (first.revision, first.hash, first.count) {
                return None;
            }
            bytes.extend_from_slice(&part.piece);
        }
        let text = String::from_utf8(bytes).ok()?;
        let is_whole = policy_hash(&text) == first.hash;
        is_whole.then_some(ClusterPolicy { revision: first.revision, hash: first.hash, author: owner, text })
    }
}

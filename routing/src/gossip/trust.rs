//! Which authorities are trusted, who is revoked, and what certificates are worth at this time.
//!
//! Trust is a pure fold over the pinned keys and the authorities' own statements: an authority names its successor, which
//! is trusted beside it from then on; only a successor can retire those before it. Revocations only ever grow.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use overlay_wire::HostId;
use overlay_wire::gossip::{Record, RecordKey, RecordKind};
use overlay_wire::membership::authority::KEYS_SHARD;
use overlay_wire::membership::{AuthorityBody, CaId, SignedCertificate};

use super::Gossip;
use super::membership::{Authority, ClusterPolicy, Standing};
use super::renewal::Renewal;
use super::spread::record_messages;
use super::store::{Freshness, Merge};
use super::view::GossipEvent;
use crate::identity::IdentityPublic;
use crate::membership::ca_id;

/// The most authorities in one chain of successors.
const MAX_CHAIN: usize = 16;
/// Datagrams of authority records handed over to a member that came up; a digest exchange brings the rest.
const MAX_HANDED_OVER: usize = 4;

/// What the machine knows of authorities.
#[derive(Default)]
pub(super) struct Trust {
    pub(super) pinned: Vec<IdentityPublic>,
    /// Derived: whose certificates and revocations count.
    pub(super) trusted: Vec<IdentityPublic>,
    /// Derived: those that were followed by a trusted one; only their statement about keys is kept.
    pub(super) retired: BTreeSet<CaId>,
    pub(super) revoked: BTreeSet<HostId>,
    /// The wall clock as it was told, and when.
    pub(super) unix: Option<(u64, Instant)>,
    pub(super) certificate: Option<SignedCertificate>,
    pub(super) standing: Standing,
    pub(super) is_issuer: bool,
    pub(super) policy: Option<ClusterPolicy>,
    pub(super) renewal: Renewal,
    pub(super) clock_suspect: bool,
    pub(super) own_revoked: bool,
}

impl Trust {
    /// The wall clock now; `None` before it was told.
    pub(super) fn unix_now(&self, now: Instant) -> Option<u64> {
        self.unix.map(|(unix, at)| unix.saturating_add(now.saturating_duration_since(at).as_secs()))
    }

    /// What a certificate is worth by time alone.
    fn by_time(&self, certificate: &SignedCertificate, unix: u64) -> Standing {
        match &certificate.certificate {
            certificate if unix < certificate.not_before => Standing::NotYet,
            certificate if unix >= certificate.not_after => Standing::Expired,
            _ => Standing::Full,
        }
    }

    pub(super) fn is_authority(&self, owner: HostId) -> bool {
        self.retired.contains(&CaId(owner.0)) || self.key_of(owner).is_some()
    }

    /// The owners of what authorities say.
    fn authorities(&self) -> impl Iterator<Item = HostId> {
        let trusted = self.trusted.iter().map(|key| ca_id(key).as_owner());
        trusted.chain(self.retired.iter().map(|id| id.as_owner()))
    }

    fn key_of(&self, owner: HostId) -> Option<IdentityPublic> {
        self.trusted.iter().find(|key| ca_id(key).as_owner() == owner).copied()
    }
}

/// Folds pinned keys and statements about keys into (trusted, retired).
pub(super) fn fold(
    pinned: &[IdentityPublic],
    statements: &BTreeMap<CaId, (Option<IdentityPublic>, Vec<CaId>)>,
) -> (Vec<IdentityPublic>, BTreeSet<CaId>) {
    let mut chain: Vec<IdentityPublic> = Vec::new();
    let mut open: Vec<IdentityPublic> = pinned.to_vec();
    while let Some(key) = open.pop() {
        if chain.len() >= MAX_CHAIN || chain.contains(&key) {
            continue;
        }
        chain.push(key);
        open.extend(statements.get(&ca_id(&key)).and_then(|(successor, _)| *successor));
    }
    // Whoever can be reached from an authority over successors may retire it.
    let follows = |from: CaId, to: CaId| {
        let mut at = from;
        for _ in 0..MAX_CHAIN {
            match statements.get(&at).and_then(|(successor, _)| *successor) {
                Some(next) if ca_id(&next) == to => return true,
                Some(next) => at = ca_id(&next),
                None => return false,
            }
        }
        false
    };
    let retires = |by: CaId, whom: CaId| statements.get(&by).is_some_and(|(_, retired)| retired.contains(&whom));
    let ids: Vec<CaId> = chain.iter().map(ca_id).collect();
    let is_retired = |id: CaId| ids.iter().any(|by| *by != id && retires(*by, id) && follows(id, *by));
    let mut trusted: Vec<IdentityPublic> = chain.iter().filter(|key| !is_retired(ca_id(key))).copied().collect();
    trusted.sort_by_key(ca_id);
    let live: BTreeSet<CaId> = trusted.iter().map(ca_id).collect();
    let mut retired: BTreeSet<CaId> = ids.into_iter().filter(|id| !live.contains(id)).collect();
    for id in &live {
        let of = statements.get(id).map(|(_, retired)| retired.as_slice()).unwrap_or_default();
        retired.extend(of.iter().filter(|id| !live.contains(id)));
    }
    (trusted, retired)
}

impl Gossip {
    /// Takes an authority record if an authority that counts signed it.
    pub(super) fn accept_authority(&mut self, record: Record, now: Instant) {
        match self.store.freshness(&record) {
            Freshness::Newer => {}
            Freshness::Same => return self.pushed_by_others(&record.key),
            Freshness::Older => return,
        }
        if !self.is_genuine_authority(&record) {
            self.counters.records_refused += 1;
            return;
        }
        let (key, version) = (record.key, record.version);
        match self.store.merge(record) {
            Merge::Ignored => return,
            Merge::Equivocation { stored } => {
                self.emit(GossipEvent::Equivocation { key, version });
                if !stored {
                    return;
                }
            }
            Merge::Stored => {}
        }
        self.queue_push(key, now);
        self.emit(GossipEvent::RecordChanged { key });
        self.settle_trust(now);
    }

    fn is_genuine_authority(&self, record: &Record) -> bool {
        let Ok(body) = AuthorityBody::decode(&record.body) else { return false };
        if !body.fits_shard(record.key.shard) {
            return false;
        }
        let owner = record.key.owner;
        let key = match (self.trust.key_of(owner), &body) {
            (Some(key), AuthorityBody::Keys { key: said, .. }) if key.as_bytes() == said => key,
            (Some(key), AuthorityBody::Revoked(_)) => key,
            // A retired authority leads hosts that know nothing newer to its successor, and says nothing else.
            (None, AuthorityBody::Keys { key: said, .. }) if self.trust.retired.contains(&CaId(owner.0)) => {
                match IdentityPublic::from_bytes(said) {
                    Ok(key) if ca_id(&key).as_owner() == owner => key,
                    _ => return false,
                }
            }
            _ => return false,
        };
        key.verify(&record.signed_bytes(&self.cluster), &record.signature).is_ok()
    }

    /// Derives trust and revocations anew from what is stored, and drops whoever they take out.
    pub(super) fn settle_trust(&mut self, now: Instant) {
        let mut statements = BTreeMap::new();
        let mut revoked: Vec<(HostId, Vec<HostId>)> = Vec::new();
        for record in self.store.iter().filter(|record| record.key.kind == RecordKind::AUTHORITY) {
            match AuthorityBody::decode(&record.body) {
                Ok(AuthorityBody::Keys { successor, retired, .. }) => {
                    let successor = successor.and_then(|key| IdentityPublic::from_bytes(&key).ok());
                    statements.insert(CaId(record.key.owner.0), (successor, retired));
                }
                Ok(AuthorityBody::Revoked(hosts)) => revoked.push((record.key.owner, hosts)),
                Err(_) => {}
            }
        }
        let (trusted, retired) = fold(&self.trust.pinned, &statements);
        let before = self.trust.revoked.len();
        for (owner, hosts) in revoked {
            if trusted.iter().any(|key| ca_id(key).as_owner() == owner) {
                self.trust.revoked.extend(hosts);
            }
        }
        let changed =
            before != self.trust.revoked.len() || trusted != self.trust.trusted || retired != self.trust.retired;
        if !changed {
            return;
        }
        for ca in &retired {
            let owner = ca.as_owner();
            self.store.retain_of(owner, |key| key.shard == KEYS_SHARD);
        }
        (self.trust.trusted, self.trust.retired) = (trusted, retired);
        let is_out = |host: HostId, authority: &Authority| {
            let by_authority = match authority {
                Authority::Static => false,
                Authority::Certificate(held) => self.trust.key_of(held.certificate.ca.as_owner()).is_none(),
            };
            by_authority || self.trust.revoked.contains(&host)
        };
        let out: Vec<HostId> =
            self.peers.values().filter(|peer| is_out(peer.host, &peer.authority)).map(|peer| peer.host).collect();
        if !out.is_empty() {
            // Its routes go with it, however many members there are.
            self.next_settle = now;
        }
        for host in out {
            self.remove_member(host);
            self.emit(GossipEvent::MemberRevoked { host });
        }
        self.refresh_endpoints();
        if !self.trust.own_revoked && self.trust.revoked.contains(&self.host) {
            self.trust.own_revoked = true;
            self.emit(GossipEvent::OwnIdentityRevoked);
        }
        self.emit(GossipEvent::TrustChanged);
        self.settle_standing(now);
        self.settle_policy();
    }

    /// Sends a member that came up what authorities say, before anything else.
    pub(super) fn hand_over_authority(&mut self, host: HostId) {
        let of_authority = |record: &&Record| record.key.kind == RecordKind::AUTHORITY;
        // By owner: looking through the records of all members would cost more than all else when many come back at once.
        let of_owners = self.trust.authorities().flat_map(|owner| self.store.of_owner(owner));
        let records: Vec<Record> = of_owners.filter(of_authority).cloned().collect();
        let messages = record_messages(records);
        messages.iter().take(MAX_HANDED_OVER).for_each(|message| self.send(host, message));
    }

    /// Judges every certificate by the wall clock.
    pub(super) fn settle_standing(&mut self, now: Instant) {
        let Some(unix) = self.trust.unix_now(now) else { return };
        let of_peers = self.peers.values().filter_map(|peer| match &peer.authority {
            Authority::Certificate(held) => Some((peer.host, self.trust.by_time(held, unix))),
            Authority::Static => None,
        });
        let own = self.trust.certificate.as_ref().map(|held| (self.host, self.trust.by_time(held, unix)));
        let mut standings: Vec<(HostId, Standing)> = of_peers.chain(own).collect();
        let out_of_time = standings.iter().filter(|(_, standing)| *standing != Standing::Full).count();
        // Not so many certificates end at once: it is this host's clock that is wrong.
        let suspect = out_of_time * 2 > standings.len();
        if suspect {
            standings.iter_mut().for_each(|(_, standing)| *standing = Standing::Full);
        }
        if suspect != self.trust.clock_suspect {
            self.trust.clock_suspect = suspect;
            self.emit(GossipEvent::ClockSuspected { suspected: suspect });
        }
        let mut changed = false;
        for (host, standing) in standings {
            let before = if host == self.host {
                std::mem::replace(&mut self.trust.standing, standing)
            } else {
                let Some(peer) = self.peers.get_mut(&host) else { continue };
                let before = std::mem::replace(&mut peer.standing, standing);
                if before == Standing::Full && standing != Standing::Full {
                    let owner = crate::ownership::Owner::Member(host);
                    peer.frozen =
                        self.rib.best().filter(|claim| claim.owner == owner).map(|claim| claim.prefix).collect();
                } else if standing == Standing::Full {
                    peer.frozen.clear();
                }
                before
            };
            if before != standing {
                changed = true;
                self.emit(GossipEvent::StandingChanged { host, standing });
            }
        }
        if changed {
            self.routes_stale = true;
            self.settle_policy();
        }
    }

    /// Whether a record that another member offers is worth asking for.
    pub(super) fn is_wanted(&self, key: &RecordKey) -> bool {
        let is_newcomer = key.kind == RecordKind::CERTIFICATE
            && !self.trust.trusted.is_empty()
            && !self.trust.revoked.contains(&key.owner);
        let is_known = key.owner == self.host || self.peers.contains_key(&key.owner);
        if key.kind == RecordKind::AUTHORITY {
            let is_live = self.trust.key_of(key.owner).is_some();
            return is_live || (key.shard == KEYS_SHARD && self.trust.is_authority(key.owner));
        }
        is_known || is_newcomer
    }
}

//! Records: publishing our own, taking those of others, and the routes that follow.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::body::{
    BodyError, FEATURE_NAT, MAX_CERTIFIED_HOST_BODY_BYTES, MAX_ENDPOINTS, MAX_ROUTES_PER_RECORD,
};
use overlay_wire::gossip::identities::MAX_IDENTITY_SHARDS;
use overlay_wire::gossip::message::MAX_VERDICTS;
use overlay_wire::gossip::names::MAX_NAME_SHARDS;
use overlay_wire::gossip::networks::MAX_NETWORK_SHARDS;
use overlay_wire::gossip::record::MAX_BODY_BYTES;
use overlay_wire::gossip::{
    HostBody, IdentitiesBody, Message, NamesBody, NetworksBody, PlainStatus, Record, RecordKey, RecordKind,
    RouteAnnouncement, RoutesBody,
};
use overlay_wire::membership::certificate::decode_certificate_body;
use overlay_wire::membership::{PolicyShard, PolicyStatus};
use rand_core::RngCore as _;

use super::config::{GossipError, OwnHost};
use super::contact::is_host_record;
use super::pair::{OwnSide, Pair};
use super::peer::{GRE_KEY_OVERLAP, IdentityExchange, Peer};
use super::store::{Freshness, MAX_RECORDS_PER_OWNER, Merge, record_hash};
use super::view::{DownReason, GossipEvent, MemberState};
use super::{Gossip, PROTOCOL_VERSIONS, RECLAIM_GAP};
use crate::ownership::Owner;
use crate::rib::{ClaimSource, LocalClaims, MemberClaims, Refused, Rib, RibInput};

/// The first and the longest pause between two questions what a member made of our prefixes.
const VERDICT_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// In clusters smaller than this every change of the routes counts at once.
const SETTLES_AT_ONCE: u32 = 64;
/// Pause between two rebuilds of the routes, per member: a quarter of a second in the largest cluster.
const SETTLE_GAP_PER_MEMBER: Duration = Duration::from_micros(250);
/// Pause between two looks at who is to be asked about our prefixes, and between two questions to one member when nothing
/// changed, per member: 16 s and 17 minutes in the largest cluster.
const VERDICT_GAPS_PER_MEMBER: (Duration, Duration) = (Duration::from_millis(16), Duration::from_secs(1));

impl Gossip {
    pub(super) fn own_key(&self, kind: RecordKind) -> RecordKey {
        RecordKey { owner: self.host, kind, shard: 0 }
    }

    /// The body of our HOST record.
    ///
    /// Addresses at which members see this host stand behind its own, as far as there is room.
    pub(super) fn host_body(&self, own: &OwnHost) -> Result<Vec<u8>, GossipError> {
        let outside = self.reflexive.endpoints();
        let mut endpoints = own.endpoints.clone();
        if !outside.is_empty() {
            endpoints.retain(|endpoint| !outside.contains(endpoint));
            endpoints.truncate(MAX_ENDPOINTS - outside.len());
            endpoints.extend(outside);
        }
        match self.host_body_with(own, endpoints) {
            Err(GossipError::OwnRecord(BodyError::TooLarge { .. })) if !outside.is_empty() => {
                self.host_body_with(own, own.endpoints.clone())
            }
            other => other,
        }
    }

    fn host_body_with(&self, own: &OwnHost, endpoints: Vec<SocketAddr>) -> Result<Vec<u8>, GossipError> {
        let nat = if self.reflexive.is_behind_nat() { FEATURE_NAT } else { 0 };
        let body = HostBody {
            name: own.name.clone(),
            boot_epoch: self.boot_epoch,
            box_key: self.box_public.to_bytes(),
            wireguard_key: own.wireguard_key,
            encapsulation: own.encapsulation,
            mtu: own.mtu,
            versions: PROTOCOL_VERSIONS,
            features: own.features | nat,
            software: own.software.clone(),
            endpoints,
            prefixes: own.prefixes.clone(),
            extension: Vec::new(),
        };
        let body = body.encode()?;
        if self.trust.certificate.is_some() && body.len() > MAX_CERTIFIED_HOST_BODY_BYTES {
            return Err(BodyError::TooLarge { bytes: body.len(), max: MAX_CERTIFIED_HOST_BODY_BYTES }.into());
        }
        Ok(body)
    }

    /// The body of our ROUTES record: empty, which withdraws it, when nothing is announced.
    pub(super) fn routes_body(routes: &[RouteAnnouncement]) -> Result<Vec<u8>, GossipError> {
        if routes.len() > MAX_ROUTES_PER_RECORD {
            return Err(GossipError::TooManyRoutes { count: routes.len(), max: MAX_ROUTES_PER_RECORD });
        }
        if routes.is_empty() {
            return Ok(Vec::new());
        }
        Ok(RoutesBody { routes: routes.to_vec(), extension: Vec::new() }.encode()?)
    }

    /// Publishes a record of ours when its body differs from what is published.
    pub(super) fn publish(&mut self, key: RecordKey, body: Vec<u8>, now: Instant) {
        debug_assert!(body.len() <= MAX_BODY_BYTES);
        if self.published_here.contains(&key) && self.store.get(&key).is_some_and(|held| held.body == body) {
            return;
        }
        let held = self.store.get(&key).map_or(0, |held| held.version);
        let version = self.next_version.max(held.saturating_add(1));
        self.next_version = version.saturating_add(1);
        let mut record = Record { key, version, body, signature: [0; 64] };
        record.signature = self.identity.sign(&record.signed_bytes(&self.cluster));
        self.store.merge(record);
        self.published_here.insert(key);
        // Of labels nobody has a verdict, and they change with every container.
        if key.kind != RecordKind::IDENTITIES {
            self.own_version = version;
            for peer in self.peers.values_mut() {
                peer.verdicts.next_request = None;
                peer.verdicts.pause = VERDICT_PAUSE.0;
            }
            self.next_verdicts = now;
            self.next_tick = self.next_tick.min(now + Duration::from_millis(100));
        }
        self.queue_push(key, now);
        self.routes_stale = true;
        self.emit(GossipEvent::RecordChanged { key });
    }

    /// Takes a record from the network if it is valid and newer.
    pub(super) fn accept_record(&mut self, record: Record, now: Instant) {
        if record.key.owner == self.host {
            self.own_record_came_back(record, now);
            return;
        }
        if record.key.kind == RecordKind::AUTHORITY {
            self.accept_authority(record, now);
            return;
        }
        let Some(peer) = self.peers.get(&record.key.owner) else {
            if record.key.kind != RecordKind::CERTIFICATE || !self.admit_by_certificate(record, now) {
                self.counters.records_refused += 1;
            }
            return;
        };
        match self.store.freshness(&record) {
            Freshness::Newer => {}
            Freshness::Same => return self.pushed_by_others(&record.key),
            Freshness::Older => return,
        }
        let signed = record.signed_bytes(&self.cluster);
        if !is_valid_body(&record)
            || !self.is_acceptable_certificate(peer, &record)
            || peer.member.identity.verify(&signed, &record.signature).is_err()
        {
            self.counters.records_refused += 1;
            return;
        }
        let (key, version) = (record.key, record.version);
        let is_host = is_host_record(&record);
        if is_host {
            self.seek_moved(&record, now);
        }
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
        if is_host {
            self.renew_pair(key.owner, now);
            self.seek_newcomer(key.owner, now);
        }
        self.note_membership_record(key, now);
        self.queue_push(key, now);
        self.routes_stale = true;
        self.emit(GossipEvent::RecordChanged { key });
    }

    /// A record with our signature that we do not hold comes from an earlier run: continue above it.
    fn own_record_came_back(&mut self, record: Record, now: Instant) {
        let key = record.key;
        let held = self.store.get(&key).map(|held| (held.version, record_hash(held)));
        if held.is_some_and(|held| (record.version, record_hash(&record)) <= held) {
            return;
        }
        let signed = record.signed_bytes(&self.cluster);
        if self.identity.public().verify(&signed, &record.signature).is_err() {
            self.counters.records_refused += 1;
            return;
        }
        let is_policy = record.key.kind == RecordKind::POLICY;
        if is_policy && is_valid_body(&record) {
            // What this host published for all in an earlier run stays published.
            self.next_version = self.next_version.max(record.version.saturating_add(1));
            self.store.merge(record);
            self.note_membership_record(key, now);
            return;
        }
        if held.is_none() && record.is_withdrawal() {
            self.next_version = self.next_version.max(record.version.saturating_add(1));
            self.store.merge(record);
            return;
        }
        // A clone would overrule us in turn: never faster than once in ten seconds.
        let recent = self.reclaimed.get(&key).is_some_and(|at| now.saturating_duration_since(*at) < RECLAIM_GAP);
        if recent || self.reclaimed.len() > MAX_RECORDS_PER_OWNER {
            return;
        }
        self.reclaimed.insert(key, now);
        if let Ok(body) = HostBody::decode(&record.body)
            && is_host_record(&record)
            && body.boot_epoch >= self.boot_epoch
            && body.box_key != self.box_public.to_bytes()
        {
            self.emit(GossipEvent::OwnIdentityElsewhere { boot_epoch: body.boot_epoch });
        }
        let body = self.store.get(&key).map(|held| held.body.clone()).unwrap_or_default();
        self.next_version = self.next_version.max(record.version.saturating_add(1));
        self.published_here.remove(&key);
        self.publish(key, body, now);
    }

    /// Derives the channel to a member anew when its HOST record brought another box key.
    fn renew_pair(&mut self, host: HostId, now: Instant) {
        let key = RecordKey { owner: host, kind: RecordKind::HOST, shard: 0 };
        let body = self.store.get(&key).and_then(|record| HostBody::decode(&record.body).ok());
        let own =
            OwnSide { cluster: &self.cluster, host: self.host, secret: &self.box_secret, public: &self.box_public };
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let wireguard_key = body.as_ref().map(|body| body.wireguard_key);
        let same_channel = match (&peer.pair, &body) {
            (Some(pair), Some(body)) => pair.is_for(&body.box_key, body.boot_epoch),
            _ => false,
        };
        if !same_channel {
            if let Some(old) = peer.pair.take() {
                self.tags.remove(&old.receive_tag());
                peer.previous_gre_key = Some((old.gre_key(), now + GRE_KEY_OVERLAP));
            }
            peer.validated_source = None;
            peer.identities = IdentityExchange::default();
            // A run with fresh keys has heard nothing from us yet, nor we from it.
            (peer.plain_heard, peer.plain_theirs) = (PlainStatus::Unknown, PlainStatus::Unknown);
            peer.pair = body.and_then(|body| Pair::new(&own, host, body.box_key, body.boot_epoch));
            if let Some(pair) = &peer.pair {
                self.tags.insert(pair.receive_tag(), host);
            }
            peer.probe = None;
        }
        let cut_off = peer.pair.is_none() && peer.state.is_reachable();
        if cut_off {
            // It withdrew its description, or published a key that is none: nothing can be sealed for it any more.
            self.member_down(host, DownReason::NoAnswer, now);
        }
        if !same_channel || self.wireguard_keys.get(&host).copied() != wireguard_key {
            match wireguard_key {
                Some(key) => self.wireguard_keys.insert(host, key),
                None => self.wireguard_keys.remove(&host),
            };
            self.emit(GossipEvent::KeysChanged { host });
        }
    }

    /// Rebuilds stale routes, in a burst of changes of a large cluster not for each one.
    pub(super) fn settle_in_time(&mut self, now: Instant) {
        if self.routes_stale && self.next_settle <= now {
            let members = self.peers.len() as u32;
            self.next_settle = if members < SETTLES_AT_ONCE { now } else { now + SETTLE_GAP_PER_MEMBER * members };
            self.settle_routes();
        }
    }

    /// Rebuilds the routes if anything they follow from changed.
    pub(super) fn settle_routes(&mut self) {
        if !std::mem::take(&mut self.routes_stale) {
            return;
        }
        let rib = Rib::build(&self.rib_input());
        self.refresh_published(&rib);
        self.settle_networks(&rib);
        let has_moved = rib.claims() != self.rib.claims();
        self.settle_identities(&rib, has_moved);
        if !has_moved {
            return;
        }
        let before: Vec<Refused> = self.rib.refused().collect();
        for refused in rib.refused() {
            let is_new = !before.iter().any(|old| {
                old.owner == refused.owner
                    && old.claim.prefix == refused.claim.prefix
                    && old.claim.refusal == refused.claim.refusal
            });
            if is_new {
                self.emit(GossipEvent::RouteRefused(Box::new(refused)));
            }
        }
        self.rib = Arc::new(rib);
        self.emit(GossipEvent::RoutesChanged);
    }

    /// What ownership follows from: local configuration, grants, and the newest valid record of every key.
    fn rib_input(&self) -> RibInput {
        let members = self.peers.values().map(|peer| {
            let mut claims = Vec::new();
            for record in self.store.of_owner(peer.host).filter(|record| !record.is_withdrawal()) {
                let (version, shard) = (record.version, record.key.shard);
                match record.key.kind {
                    RecordKind::HOST => {
                        let prefixes = HostBody::decode(&record.body).map(|body| body.prefixes).unwrap_or_default();
                        claims.extend(prefixes.into_iter().map(|prefix| {
                            (RouteAnnouncement { prefix, metric: 0 }, ClaimSource::HostRecord { version })
                        }));
                    }
                    RecordKind::ROUTES => {
                        let routes = RoutesBody::decode(&record.body).map(|body| body.routes).unwrap_or_default();
                        let source = ClaimSource::RoutesRecord { shard, version };
                        claims.extend(routes.into_iter().map(|route| (route, source)));
                    }
                    _ => {}
                }
            }
            MemberClaims {
                host: peer.host,
                name: peer.member.name.clone(),
                allow: peer.member.allow.clone(),
                authority: peer.claim_authority(),
                claims,
            }
        });
        RibInput {
            local: LocalClaims {
                name: self.own.name.clone(),
                prefixes: self.own.prefixes.clone(),
                announced: self.announced.clone(),
            },
            foreign: self.foreign.clone(),
            members: members.collect(),
        }
    }

    /// Takes over the endpoints members publish, without those inside the overlay: a tunnel must not lead into itself.
    fn refresh_published(&mut self, rib: &Rib) {
        for peer in self.peers.values_mut() {
            let key = RecordKey { owner: peer.host, kind: RecordKind::HOST, shard: 0 };
            let body = self.store.get(&key).and_then(|record| HostBody::decode(&record.body).ok());
            let endpoints = body.map(|body| body.endpoints).unwrap_or_default();
            peer.published = endpoints
                .into_iter()
                .filter(|endpoint| {
                    let ip = endpoint.ip();
                    let in_overlay = matches!(rib.owner(ip), Some(Owner::Local | Owner::Member(_)));
                    !ip.is_unspecified() && !ip.is_multicast() && !in_overlay
                })
                .collect();
        }
        self.refresh_endpoints();
    }

    /// Collects every address under which a member is known.
    pub(super) fn refresh_endpoints(&mut self) {
        self.endpoints = self.peers.values().flat_map(Peer::endpoints).collect();
    }

    /// Asks members what they made of our prefixes.
    pub(super) fn verdict_tick(&mut self, now: Instant) {
        if self.own.prefixes.is_empty() && self.announced.is_empty() {
            return;
        }
        if now < self.next_verdicts {
            return;
        }
        let version = self.own_version;
        let idle_pause = idle_verdict_pause(self.peers.len());
        let up = || self.peers.values().filter(|peer| peer.state == MemberState::Up);
        let all_current = up().all(|peer| peer.verdicts.version >= version);
        let due: Vec<HostId> =
            up().filter(|peer| peer.verdicts.next_request.is_none_or(|at| at <= now)).map(|peer| peer.host).collect();
        for host in due {
            let Some(peer) = self.peers.get_mut(&host) else { continue };
            let pause = if peer.verdicts.version >= version {
                // Spread, so that the members asked together after a change are not asked together for ever.
                idle_pause / 4 * 3 + idle_pause / 2048 * (self.rng.next_u32() % 1024)
            } else {
                peer.verdicts.pause.max(VERDICT_PAUSE.0)
            };
            peer.verdicts.pause = (pause * 2).min(VERDICT_PAUSE.1);
            peer.verdicts.next_request = Some(now + pause - Duration::from_millis(50));
            self.send(host, &Message::VerdictRequest { version });
        }
        if all_current {
            self.next_verdicts = now + VERDICT_GAPS_PER_MEMBER.0 * self.peers.len() as u32;
        }
    }

    pub(super) fn handle_verdict_request(&mut self, host: HostId, now: Instant) {
        self.settle_in_time(now);
        if self.routes_stale {
            // The routes are behind the records, and it asks again.
            return;
        }
        let version = self.store.of_owner(host).map(|record| record.version).max().unwrap_or(0);
        let mut entries = self.rib.verdicts(host);
        entries.truncate(MAX_VERDICTS);
        self.send(host, &Message::Verdicts { version, entries });
    }

    pub(super) fn handle_verdicts(
        &mut self,
        host: HostId,
        version: u64,
        entries: Vec<(overlay_wire::Prefix, overlay_wire::gossip::RouteVerdict)>,
    ) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        if version < peer.verdicts.version {
            return;
        }
        let changed = peer.verdicts.version != version || peer.verdicts.entries != entries;
        peer.verdicts.version = version;
        peer.verdicts.entries = entries;
        if changed {
            self.emit(GossipEvent::VerdictsReceived { from: host });
        }
    }
}

/// How long a member that answered is not asked again about prefixes that did not change.
pub(super) fn idle_verdict_pause(members: usize) -> Duration {
    (VERDICT_GAPS_PER_MEMBER.1 * members as u32).max(VERDICT_PAUSE.1)
}

/// Whether the body of a known kind decodes; bodies of unknown kinds stay opaque.
pub(super) fn is_valid_body(record: &Record) -> bool {
    match record.key.kind {
        RecordKind::HOST => record.key.shard == 0 && (record.is_withdrawal() || HostBody::decode(&record.body).is_ok()),
        RecordKind::ROUTES => record.is_withdrawal() || RoutesBody::decode(&record.body).is_ok(),
        RecordKind::CERTIFICATE => {
            record.key.shard == 0 && (record.is_withdrawal() || decode_certificate_body(&record.body).is_ok())
        }
        RecordKind::POLICY => record.is_withdrawal() || PolicyShard::decode(&record.body, record.key.shard).is_ok(),
        RecordKind::POLICY_STATUS => {
            record.key.shard == 0 && (record.is_withdrawal() || PolicyStatus::decode(&record.body).is_ok())
        }
        RecordKind::NAMES => {
            usize::from(record.key.shard) < MAX_NAME_SHARDS
                && (record.is_withdrawal() || NamesBody::decode(&record.body).is_ok())
        }
        RecordKind::IDENTITIES => {
            usize::from(record.key.shard) < MAX_IDENTITY_SHARDS
                && (record.is_withdrawal() || IdentitiesBody::decode(&record.body).is_ok())
        }
        RecordKind::NETWORKS => {
            usize::from(record.key.shard) < MAX_NETWORK_SHARDS
                && (record.is_withdrawal() || NetworksBody::decode(&record.body).is_ok())
        }
        _ => true,
    }
}

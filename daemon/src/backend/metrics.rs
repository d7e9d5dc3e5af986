//! One reading of every metric, from counters that exist anyway.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, UNIX_EPOCH};

use blake2::{Blake2s256, Digest};
use overlay_config::ForeignKind;
use overlay_control::api::{ControlState, DataState};
use overlay_wire::policy::PolicySet;

use super::Api;
use super::status::{control_state, data_state, foreign_state};
use crate::metrics::{Metric, Page, Source};
use crate::peers::{Peer, PeerKind};
use crate::shared::WorkerReport;
use crate::snapshot::Snapshot;

impl Source for Api {
    async fn page(&self) -> Option<String> {
        // Without the worker's answer half of the page would be zeros, which a collector takes for a restart.
        let report = self.report().await?;
        let mut page = Page::default();
        self.put_daemon(&mut page);
        self.put_peers(&mut page);
        self.put_packets(&mut page, &report);
        self.put_conntrack(&mut page);
        self.put_names(&mut page).await;
        self.put_gossip(&mut page);
        page.text().ok()
    }
}

impl Api {
    fn put_daemon(&self, page: &mut Page) {
        let core = self.core();
        page.put(Metric::BuildInfo, &[env!("CARGO_PKG_VERSION")], 1.0);
        let started = core.started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        page.put(Metric::DaemonStart, &[], started);
        page.put(Metric::DaemonReady, &[], if self.missing().is_empty() { 1.0 } else { 0.0 });
        page.count(Metric::DaemonProblems, &[], self.all_problems().len() as u64);
        page.count(Metric::DaemonReloads, &["applied"], core.reloads.applied.load(Relaxed));
        page.count(Metric::DaemonReloads, &["refused"], core.reloads.refused.load(Relaxed));
        if let Some(certificate) = core.own_certificate.load().as_deref() {
            page.put(Metric::CertificateExpiry, &[], certificate.certificate.not_after as f64);
        }
        let policy = core.policy();
        page.put(Metric::PolicyInfo, &[&policy_hash(&policy)], 1.0);
        page.count(Metric::PolicyRules, &[], policy.rules.len() as u64);
        let cluster = core.cluster_policy.load();
        let revision = cluster.tracker.in_force().map_or(0, |rules| rules.revision);
        page.count(Metric::PolicyClusterRevision, &[], revision);
        let counters = cluster.tracker.counters();
        page.count(Metric::PolicyChanges, &["applied"], counters.applied);
        page.count(Metric::PolicyChanges, &["refused"], counters.refused);
        page.count(Metric::PolicyChanges, &["lapsed"], counters.lapsed);
        let warnings = core.shared.snapshot.load().tables.policy.warnings().len();
        page.count(Metric::PolicyWarnings, &[], warnings as u64);
    }

    async fn put_names(&self, page: &mut Page) {
        let (core, counters) = (self.core(), &self.core().name_counters);
        for (outcome, count) in [
            ("answered", &counters.answered),
            ("forwarded", &counters.forwarded),
            ("failed", &counters.failed),
            ("refused", &counters.refused),
            ("malformed", &counters.malformed),
        ] {
            page.count(Metric::DnsQueries, &[outcome], count.load(Relaxed));
        }
        let (hosts, containers) = core.zone.load().count();
        page.count(Metric::DnsNames, &["host"], hosts as u64);
        page.count(Metric::DnsNames, &["container"], containers as u64);
        let ports = core.plumbing.published().await.map_or(0, |ports| ports.len());
        page.count(Metric::PortsPublished, &[], ports as u64);
    }

    fn put_peers(&self, page: &mut Page) {
        let core = self.core();
        let (view, snapshot, config) = (core.view.load(), core.shared.snapshot.load(), core.config.load());
        let now = Instant::now();
        for member in &view.members {
            let Some(peer) = core.find_peer(&PeerKind::Member(member.host)) else { continue };
            if !self.put_peer(page, &snapshot, &peer, &member.name, "member", now) {
                continue;
            }
            let control = match control_state(member.state) {
                ControlState::Down | ControlState::None => 0.0,
                ControlState::Unknown => 1.0,
                ControlState::Suspect => 2.0,
                ControlState::Up => 3.0,
            };
            page.put(Metric::PeerControl, &[&member.name], control);
            let probes = peer.probes.lock();
            put_data(page, &member.name, data_state(probes.state()));
            if let Some(round_trip) = probes.round_trip() {
                page.put(Metric::PeerRoundTrip, &[&member.name], round_trip.as_secs_f64());
                page.put(Metric::PeerLoss, &[&member.name], probes.loss(now));
            }
        }
        for foreign in &config.peers {
            let kind = match &foreign.kind {
                ForeignKind::Wireguard { public_key, .. } => PeerKind::ForeignWireguard(public_key.0),
                ForeignKind::Gre { endpoint, .. } | ForeignKind::Ipip { endpoint } => PeerKind::ForeignPlain(*endpoint),
            };
            let Some(peer) = core.find_peer(&kind) else { continue };
            if self.put_peer(page, &snapshot, &peer, &foreign.name, "foreign", now) {
                put_data(page, &foreign.name, foreign_state(core, &peer, now));
            }
        }
    }

    /// What members and foreign peers have in common; false when the peer is on its way out.
    fn put_peer(
        &self,
        page: &mut Page,
        snapshot: &Snapshot,
        peer: &Peer,
        name: &str,
        kind: &str,
        now: Instant,
    ) -> bool {
        let Some(path) = snapshot.peer(peer.index) else { return false };
        page.put(Metric::PeerInfo, &[name, kind, &path.encapsulation.to_string()], 1.0);
        let handshake = peer.state.lock().tunnel.as_ref().and_then(|tunnel| tunnel.last_handshake());
        if let Some(at) = handshake {
            page.put(Metric::PeerHandshakeAge, &[name], now.saturating_duration_since(at).as_secs_f64());
        }
        if let Some(info) = snapshot.tables.peer(peer.index) {
            page.count(Metric::PeerMtu, &[name], info.inner_mtu.get().into());
        }
        let counters = &peer.counters;
        for (metric, counter) in [
            (Metric::PeerSentBytes, &counters.tx_bytes),
            (Metric::PeerReceivedBytes, &counters.rx_bytes),
            (Metric::PeerSentPackets, &counters.tx_packets),
            (Metric::PeerReceivedPackets, &counters.rx_packets),
        ] {
            page.count(metric, &[name], counter.load(Relaxed));
        }
        true
    }

    fn put_packets(&self, page: &mut Page, report: &WorkerReport) {
        let WorkerReport { engine, turns } = report;
        for (direction, traffic) in [("outbound", engine.outbound), ("inbound", engine.inbound)] {
            page.count(Metric::FilterAcceptedPackets, &[direction], traffic.packets);
            page.count(Metric::FilterAcceptedBytes, &[direction], traffic.bytes);
        }
        for (reason, count) in engine.drops() {
            page.count(Metric::FilterDropped, &[reason.name()], count);
        }
        page.count(Metric::FilterAnswers, &[], engine.replies);
        for (reason, count) in self.core().shared.counters.all() {
            page.count(Metric::PathDropped, &[reason.name()], count);
        }
        page.count(Metric::WorkerTurns, &[], turns.turns);
        page.count(Metric::WorkerSleeps, &[], turns.sleeps);
        page.count(Metric::WorkerMessages, &["underlay"], turns.received);
        page.count(Metric::WorkerMessages, &["device"], turns.read);
    }

    fn put_conntrack(&self, page: &mut Page) {
        let core = self.core();
        page.count(Metric::ConntrackFlows, &[], core.conntrack.len() as u64);
        page.count(Metric::ConntrackLimit, &[], core.config.load().limits.conntrack_entries.into());
        let saves = &core.flow_saves;
        page.count(Metric::ConntrackSaves, &["done"], saves.saved.load(Relaxed));
        page.count(Metric::ConntrackSaves, &["failed"], saves.failed.load(Relaxed));
        page.count(Metric::ConntrackSaved, &[], saves.flows.load(Relaxed));
        page.put(Metric::ConntrackSaveTime, &[], saves.took_us.load(Relaxed) as f64 / 1e6);
    }

    fn put_gossip(&self, page: &mut Page) {
        let counters = self.core().view.load().counters;
        page.count(Metric::GossipReceived, &[], counters.received);
        page.count(Metric::GossipSent, &[], counters.sent);
        page.count(Metric::GossipRecordsRefused, &[], counters.records_refused);
        page.count(Metric::GossipLabelsRefused, &[], counters.identities_refused);
        for (reason, count) in [
            ("malformed", counters.malformed),
            ("unknown_sender", counters.unknown_sender),
            ("unauthenticated", counters.unauthenticated),
            ("replayed", counters.replayed),
            ("rate_limited", counters.rate_limited),
            ("unknown_message", counters.unknown_message),
            ("queue_full", counters.queue_full),
        ] {
            page.count(Metric::GossipDropped, &[reason], count);
        }
    }
}

fn put_data(page: &mut Page, name: &str, state: DataState) {
    let state = match state {
        DataState::Down => 0.0,
        DataState::Idle => 1.0,
        DataState::Up => 2.0,
    };
    page.put(Metric::PeerData, &[name], state);
}

/// A short name for a policy, equal wherever the rules are.
fn policy_hash(policy: &PolicySet) -> String {
    let mut hash = Blake2s256::new();
    hash.update(policy.default.name());
    for rule in &policy.rules {
        hash.update("\n");
        hash.update(rule.to_string());
    }
    let digest = hash.finalize();
    digest.iter().take(6).fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

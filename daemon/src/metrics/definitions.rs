//! Every metric there is: name, unit, labels and meaning. docs/metrics.md is checked against this file.
//!
//! Names are `overlay_<subsystem>_<what>_<unit>`; a counter ends in `_total` on the page. Labels take few values: names of
//! configured peers, and words from this program; never an address, a port or a flow.

/// What kind of number it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows while the daemon runs.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Kind {
    /// The word used on the page.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Definition {
    /// The name without unit.
    pub stem: &'static str,
    /// The unit; empty for none.
    pub unit: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence.
    pub help: &'static str,
}

impl Definition {
    /// The name a query uses.
    #[must_use]
    pub fn name(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!("_{}", self.unit) };
        let end = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{}{unit}{end}", self.stem)
    }
}

macro_rules! metrics {
    ($($variant:ident = $kind:ident $stem:literal $unit:literal [$($label:literal)*] $help:literal;)*) => {
        /// Names a metric.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[expect(missing_docs, reason = "each says what it is in its definition")]
        #[repr(usize)]
        pub enum Metric {
            $($variant,)*
        }

        impl Metric {
            /// Every metric, in the order of the page.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// What it is.
            #[must_use]
            pub fn definition(self) -> Definition {
                match self {
                    $(Self::$variant => Definition {
                        stem: $stem,
                        unit: $unit,
                        kind: Kind::$kind,
                        labels: &[$($label,)*],
                        help: $help,
                    },)*
                }
            }
        }
    };
}

metrics! {
    BuildInfo = Gauge "overlay_build_info" "" ["version"]
        "Always 1; the label is the release that runs.";
    DaemonStart = Gauge "overlay_daemon_start_time" "seconds" []
        "When the daemon started, in seconds since 1970.";
    DaemonReady = Gauge "overlay_daemon_ready" "" []
        "1 once start-up was complete: every member was tried.";
    DaemonProblems = Gauge "overlay_daemon_problems" "" []
        "Problems of this host that overlayctl status shows; those of single peers are not counted.";
    DaemonReloads = Counter "overlay_daemon_reloads" "" ["outcome"]
        "Reloads of the configuration, applied or refused.";
    CertificateExpiry = Gauge "overlay_certificate_expiry_time" "seconds" []
        "When this host's certificate expires, in seconds since 1970; only of a member by certificate.";
    PolicyInfo = Gauge "overlay_policy_info" "" ["revision"]
        "Always 1; the label is a hash of the policy in force, equal on hosts with the same rules.";
    PolicyRules = Gauge "overlay_policy_rules" "" []
        "Rules in force, without the default.";
    PolicyWarnings = Gauge "overlay_policy_warnings" "" []
        "Rules that do not do what they seem to.";
    PolicyClusterRevision = Gauge "overlay_policy_cluster_revision" "" []
        "Revision of the cluster's policy that is in force here; 0 where this host's own counts.";
    PolicyChanges = Counter "overlay_policy_changes" "" ["outcome"]
        "Revisions of the cluster's policy that were applied here, refused, or went back unconfirmed (lapsed).";
    PeerInfo = Gauge "overlay_peer_info" "" ["peer" "kind" "encapsulation"]
        "Always 1; the labels say member or foreign, and how packets to it are carried now.";
    PeerControl = Gauge "overlay_peer_control_state" "" ["peer"]
        "Whether gossip reaches the member: 0 down, 1 never heard of, 2 suspect, 3 up. Members only.";
    PeerData = Gauge "overlay_peer_data_state" "" ["peer"]
        "Whether packets come back from the peer: 0 down, 1 nothing known, 2 up.";
    PeerRoundTrip = Gauge "overlay_peer_round_trip" "seconds" ["peer"]
        "Smoothed round trip of data-path probes through the encapsulation in use. Members only, from the first answer on.";
    PeerLoss = Gauge "overlay_peer_probe_loss" "ratio" ["peer"]
        "Data-path probes lost of the last 32, 0 to 1. Members only, from the first answer on.";
    PeerHandshakeAge = Gauge "overlay_peer_handshake_age" "seconds" ["peer"]
        "Time since the last WireGuard handshake, from the first one on.";
    PeerMtu = Gauge "overlay_peer_mtu" "bytes" ["peer"]
        "The largest inner packet that reaches the peer in one piece.";
    PeerSentBytes = Counter "overlay_peer_sent" "bytes" ["peer"]
        "Inner bytes sent to the peer.";
    PeerReceivedBytes = Counter "overlay_peer_received" "bytes" ["peer"]
        "Inner bytes received from the peer.";
    PeerSentPackets = Counter "overlay_peer_sent" "packets" ["peer"]
        "Inner packets sent to the peer.";
    PeerReceivedPackets = Counter "overlay_peer_received" "packets" ["peer"]
        "Inner packets received from the peer.";
    FilterAcceptedPackets = Counter "overlay_filter_accepted" "packets" ["direction"]
        "Packets the filter let pass, outbound (from containers) or inbound (from peers).";
    FilterAcceptedBytes = Counter "overlay_filter_accepted" "bytes" ["direction"]
        "Inner bytes of the packets the filter let pass.";
    FilterDropped = Counter "overlay_filter_dropped" "packets" ["reason"]
        "Packets dropped by source checks, filter, connection tracking and MTU.";
    FilterAnswers = Counter "overlay_filter_answers" "packets" []
        "ICMP errors and TCP resets sent for dropped packets.";
    PathDropped = Counter "overlay_path_dropped" "packets" ["reason"]
        "Datagrams and packets dropped before the filter saw them, or after it let them pass.";
    ConntrackFlows = Gauge "overlay_conntrack_flows" "" []
        "Flows tracked.";
    ConntrackLimit = Gauge "overlay_conntrack_limit_flows" "" []
        "Flows tracked at most.";
    ConntrackSaves = Counter "overlay_conntrack_saves" "" ["outcome"]
        "Attempts to save the flows for a restart, done or failed.";
    ConntrackSaved = Gauge "overlay_conntrack_saved_flows" "" []
        "Flows in the last saved file.";
    ConntrackSaveTime = Gauge "overlay_conntrack_save_duration" "seconds" []
        "How long the last save took.";
    DnsQueries = Counter "overlay_dns_queries" "" ["outcome"]
        "Questions about names: answered, forwarded, failed after forwarding, refused, or no question at all (malformed).";
    DnsNames = Gauge "overlay_dns_names" "" ["kind"]
        "Names known here, of hosts or containers.";
    PortsPublished = Gauge "overlay_ports_published" "" []
        "Ports of this host that lead to containers.";
    GossipReceived = Counter "overlay_gossip_received" "datagrams" []
        "Gossip datagrams accepted.";
    GossipSent = Counter "overlay_gossip_sent" "datagrams" []
        "Gossip datagrams sent.";
    GossipDropped = Counter "overlay_gossip_dropped" "datagrams" ["reason"]
        "Gossip datagrams not accepted or not sent.";
    GossipRecordsRefused = Counter "overlay_gossip_refused" "records" []
        "Records refused: unknown owner, wrong signature, over a limit.";
    GossipLabelsRefused = Counter "overlay_gossip_labels_refused" "addresses" []
        "Addresses whose labels were refused because the signer does not own them, or they are a host's own.";
    WorkerTurns = Counter "overlay_worker_turns" "" []
        "Turns of the packet path's loop.";
    WorkerSleeps = Counter "overlay_worker_sleeps" "" []
        "Turns that ended in waiting for work.";
    WorkerMessages = Counter "overlay_worker_messages" "" ["source"]
        "Messages taken in by system calls, each up to 64 packets, from the underlay or the device; by turns that did not sleep, the batch.";
}

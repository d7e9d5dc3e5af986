//! One fixed answer per request.

use overlay_config::{Applies, Change, Origin, OriginLayer, PublicKey, Setting};
use overlay_control::Timestamp;
use overlay_control::api::{
    AddressState, IpamAddress, IpamFinding, IpamRequest, IpamResponse, IpamUsage, NetworkHost, NetworkInfo,
    NetworkRequest,
};
use overlay_control::api::{
    ApiError, ControlState, DataState, EndpointInfo, EndpointState, Event, Finding, FindingStatus, Flow, FlowUse,
    Health, HostInfo, PeerKind, PeerStatus, PingProgress, PingReply, PolicyView, Problem, Refusal, RefusedBy, Request,
    Response, RouteAdded, RouteEntry, RouteWhy, RuleMatch, Severity, Status, TestVerdict, Verdict, VersionInfo,
};
use overlay_control::api::{
    CertificateInfo, Invitation, Joined, MembershipRequest, MembershipResponse, SecretText, TokenInfo,
};
use overlay_control::api::{
    ClusterPolicyStatus, PolicyHost, PolicyHostState, PolicyRequest, PolicyRevision, PolicyStage, PolicyTexts,
    PolicyWritten,
};
use overlay_control::api::{DnsRequest, DnsStatus, NatRequest, PortProtocol, PublishedPort};
use overlay_control::api::{LimitInfo, LimitRate, Trace, TraceOutcome, TraceStep};
use overlay_control::codes::Code;
use overlay_wire::gossip::NetworkMode;
use overlay_wire::{Encapsulation, HostId, Prefix};

use crate::support::Answer;

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn network_host(name: &str) -> NetworkHost {
    NetworkHost { host: name.into(), blocks: vec![prefix("10.42.1.224/27")], wants: "bridge internal".into() }
}

fn problem(code: &str) -> Problem {
    Problem {
        code: code.into(),
        what: "no packet came back for 12 s".into(),
        why: "UDP port 51821 is closed on the way".into(),
        next: "overlayctl doctor --peer h3".into(),
    }
}

fn published(host_port: u16, endpoint: Option<&str>) -> PublishedPort {
    PublishedPort {
        owner: "cli".into(),
        host_ip: None,
        host_port,
        protocol: PortProtocol::Tcp,
        target: "10.42.1.4:80".parse().expect("address"),
        endpoint: endpoint.map(str::to_owned),
    }
}

fn peers() -> Vec<PeerStatus> {
    let h2 = PeerStatus {
        name: "h2".into(),
        kind: PeerKind::Member,
        id: Some(HostId([2; 16])),
        public_key: Some(PublicKey([2; 32])),
        subnets: vec![prefix("10.42.2.0/24"), prefix("fd42:0:0:2::/64")],
        encapsulation: Encapsulation::Wireguard,
        authenticated: true,
        endpoint: Some("192.0.2.2:51821".into()),
        endpoints: vec!["192.0.2.2:51821".into(), "[2001:db8::2]:51821".into()],
        control: ControlState::Up,
        data: DataState::Up,
        arriving: DataState::Up,
        rtt_us: Some(412),
        loss_percent: Some(0.0),
        handshake_age_ms: Some(42_000),
        tx_bytes: 1_572_864,
        rx_bytes: 1023,
        tx_packets: 1200,
        rx_packets: 7,
        mtu: Some(1420),
        problems: vec![],
    };
    let h3 = PeerStatus {
        name: "h3".into(),
        id: Some(HostId([3; 16])),
        public_key: Some(PublicKey([3; 32])),
        subnets: vec![prefix("10.42.3.0/24")],
        endpoint: None,
        control: ControlState::Suspect,
        data: DataState::Down,
        rtt_us: None,
        loss_percent: Some(12.5),
        handshake_age_ms: None,
        problems: vec![problem("DATA_DOWN")],
        ..h2.clone()
    };
    let old = PeerStatus {
        name: "old-router".into(),
        kind: PeerKind::Foreign,
        id: None,
        public_key: None,
        subnets: vec![],
        encapsulation: Encapsulation::Ipip,
        authenticated: false,
        endpoint: Some("192.0.2.9".into()),
        endpoints: vec![],
        control: ControlState::None,
        data: DataState::Idle,
        arriving: DataState::Idle,
        mtu: None,
        problems: vec![],
        ..h3.clone()
    };
    vec![h2, h3, old]
}

fn version() -> VersionInfo {
    VersionInfo { version: "0.1.0".into(), protocol: 1, pid: 77, started: Timestamp::from_unix_ms(1_795_185_061_001) }
}

fn status() -> Status {
    Status {
        health: Health::Degraded,
        ready: true,
        daemon: version(),
        host: HostInfo {
            name: "h1".into(),
            id: HostId([1; 16]),
            identity: PublicKey([1; 32]),
            cluster: "prod".into(),
            addresses: vec!["10.42.1.1".parse().expect("address"), "fd42:0:0:1::1".parse().expect("address")],
            prefixes: vec![prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")],
            announce: vec![],
            interface: "overlay0".into(),
            mtu: 1420,
            listen_port: 51821,
            encapsulation: Encapsulation::Wireguard,
            endpoints: 3,
        },
        peers: peers(),
        flows: FlowUse { count: 12, limit: 262_144 },
        drops: [("no_route", 4), ("policy", 20), ("ttl", 0)].map(|(why, count)| (why.to_owned(), count)).into(),
        problems: vec![Problem {
            code: "CLOCK".into(),
            what: "the clock is \u{1b}[31m wrong".into(),
            ..problem("CLOCK")
        }],
    }
}

fn route(text: &str, owner: &str, kind: &str, reason: &str) -> RouteEntry {
    let best = kind != "claim";
    RouteEntry { prefix: prefix(text), owner: owner.into(), kind: kind.into(), metric: 0, best, reason: reason.into() }
}

fn time(ms: u64) -> Timestamp {
    Timestamp::from_unix_ms(1_795_185_061_001 + ms)
}

fn certificate(name: &str, number: u8, rights: &[&str]) -> CertificateInfo {
    CertificateInfo {
        name: name.into(),
        id: HostId([number; 16]),
        identity: PublicKey([number; 32]),
        serial: format!("0-{number}"),
        grants: vec![format!("10.42.{number}.0/24"), format!("fd42:0:0:{number}::/64")],
        labels: [("role".to_owned(), "web".to_owned())].into(),
        rights: rights.iter().map(|right| (*right).to_owned()).collect(),
        ca: "07".repeat(16),
        from: time(0),
        expires: time(2_592_000_000),
        state: if number == 3 { "revoked" } else { "valid" }.into(),
        own: number == 1,
    }
}

fn token_info(id: &str, state: &str, uses_left: u32) -> TokenInfo {
    TokenInfo {
        id: id.into(),
        uses_left,
        expires: time(3_600_000),
        state: state.into(),
        labels: [("role".to_owned(), "web".to_owned())].into(),
        name: (uses_left == 0).then(|| "h2".to_owned()),
        redeemed_by: if uses_left == 0 { vec![HostId([2; 16])] } else { vec![] },
    }
}

fn membership(request: &MembershipRequest) -> Answer {
    let note = |text: &str| Response::Done { changed: true, notes: vec![text.to_owned()] };
    let answer = |response| Response::Membership(response);
    Ok(vec![match request {
        MembershipRequest::Init(_) | MembershipRequest::Join { .. } => answer(MembershipResponse::Joined(Joined {
            cluster: "prod".into(),
            name: "h1".into(),
            id: HostId([1; 16]),
            identity: PublicKey([1; 32]),
            prefixes: vec![prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")],
            expires: time(2_592_000_000),
        })),
        MembershipRequest::Invite(asked) => answer(MembershipResponse::Invitation(Invitation {
            token: SecretText::new("OVL1-AAAAAAAA-BBBBBBBB".into()),
            id: "0102030405060708".into(),
            expires: time(asked.ttl_s * 1000),
            uses: asked.uses,
        })),
        MembershipRequest::TokenList => answer(MembershipResponse::Tokens(vec![
            token_info("0102030405060708", "open", 2),
            token_info("1112131415161718", "used", 0),
        ])),
        MembershipRequest::CertList => answer(MembershipResponse::Certificates(vec![
            certificate("h1", 1, &["issuer", "policy"]),
            certificate("h2", 2, &[]),
            certificate("h3", 3, &[]),
        ])),
        MembershipRequest::CaExport { .. } => answer(MembershipResponse::Export(SecretText::new("QUJD".into()))),
        MembershipRequest::CertRevoke { .. } => note("02020202020202020202020202020202 is cut off for good"),
        _ => Response::Done { changed: true, notes: vec![] },
    }])
}

/// The answer to a request.
pub(crate) fn answer(request: &Request) -> Answer {
    let done =
        |notes: &[&str]| Response::Done { changed: true, notes: notes.iter().map(|n| (*n).to_owned()).collect() };
    let text = |text: &str| Some(text.to_owned());
    Ok(vec![match request {
        Request::Status => Response::Status(Box::new(status())),
        Request::PeerList => Response::Peers(peers()),
        Request::PeerShow { name } => match peers().into_iter().find(|peer| peer.name == *name) {
            Some(peer) => Response::Peer(Box::new(peer)),
            None => {
                let what = format!("no peer is named {name}");
                let next = "`overlayctl peer list` shows them";
                return Err(ApiError::new(
                    Code::NotFound,
                    what,
                    "neither the file nor the command line names it",
                    next,
                ));
            }
        },
        Request::RouteList => Response::Routes(vec![
            route("10.42.1.0/24", "h1", "local", "own prefix"),
            route("10.42.2.0/24", "h2", "member", "allowed by the configuration"),
            route("192.168.7.0/24", "h3", "member", "only claim"),
        ]),
        Request::RouteGet { .. } => Response::Route(route("10.42.2.0/24", "h2", "member", "longest match")),
        Request::RouteAdd { prefix } => Response::RouteAdded(RouteAdded {
            prefix: *prefix,
            changed: true,
            accepted_by: vec!["h2".into()],
            refused_by: vec![RefusedBy {
                member: "h3".into(),
                why: "not in its allow list for h1".into(),
                missing_line: Some(format!("allow = [\"{prefix}\"]")),
            }],
            unanswered: vec!["h4".into()],
        }),
        Request::RouteWhy { prefix } => Response::RouteWhy(RouteWhy {
            query: *prefix,
            candidates: vec![route("10.42.2.0/24", "h2", "member", "explicit grant")],
            refused: vec![Refusal {
                prefix: "10.42.2.128/25".parse().expect("a prefix"),
                owner: "h3".into(),
                why: "inside the prefix of h2".into(),
                missing_line: None,
            }],
        }),
        Request::PolicyShow => Response::Policy(PolicyView {
            policy: "default deny\nallow tcp/443 from any to 10.42.1.0/24\nreject any from any to any log"
                .parse()
                .expect("a policy"),
            revision: 4,
            origin: "file".into(),
            cluster: None,
            hits: vec![12, 0],
        }),
        Request::ClusterPolicy(request) => cluster_policy(request),
        Request::PolicyTest(_) => Response::Verdict(TestVerdict {
            verdict: Verdict::Reject,
            rule: Some(RuleMatch { number: 2, rule: "reject any from any to any log".into() }),
            reason: "the first rule that matches decides".into(),
            from_owner: text("h1"),
            to_owner: text("h2"),
            steps: vec!["source is owned by h1".into(), "rule 1 does not match: port".into()],
        }),
        Request::FlowList { .. } => Response::Flows {
            flows: vec![Flow {
                protocol: "tcp".into(),
                source: "10.42.1.5:40000".into(),
                destination: "10.42.2.7:443".into(),
                state: "established".into(),
                peer: text("h2"),
                packets: 10,
                reply_packets: 9,
                bytes: 4096,
                reply_bytes: 900,
                idle_ms: 1500,
            }],
            more: true,
        },
        Request::FlowKill { .. } => Response::Killed { count: 3 },
        Request::Trace(request) => Response::Trace(Box::new(trace(request.port == 22))),
        Request::Limit(_) => Response::Limits(vec![LimitInfo {
            selector: "web".into(),
            kind: "container".into(),
            prefixes: vec!["10.42.1.5/32".parse().expect("a prefix")],
            from: LimitRate { bits: Some(100_000_000), burst: Some(262_144), packets: Some(20_000) },
            to: LimitRate::default(),
            dropped_from: 17,
            dropped_to: 0,
        }]),
        Request::EndpointList => Response::Endpoints(vec![EndpointInfo {
            name: "web".into(),
            state: EndpointState::Attached,
            addresses: vec!["10.42.1.4".parse().expect("address")],
            host_interface: "ov0123456789".into(),
            interface: "eth0".into(),
            netns: "/run/netns/web".into(),
            owner: None,
            network: Some("shop".into()),
            labels: [("role".into(), "web".into()), ("tier".into(), "1".into())].into(),
        }]),
        Request::Nat(NatRequest::Unpublish(_)) => Response::Done {
            changed: true,
            notes: vec!["0.0.0.0:8080/tcp to 10.42.1.4:80 is not published any more".into()],
        },
        Request::Dns(DnsRequest::Status) => Response::Dns(DnsStatus {
            enabled: true,
            domain: "overlay.internal".into(),
            servers: vec!["10.42.1.1".parse().expect("address")],
            forward: vec!["192.0.2.53".parse().expect("address")],
            hosts: 3,
            containers: 12,
            answered: 1000,
            forwarded: 40,
            refused: 2,
        }),
        Request::Dns(DnsRequest::SetNames { .. }) => Response::Done { changed: true, notes: vec![] },
        Request::Nat(NatRequest::List) => Response::PublishedPorts(vec![published(8080, Some("web"))]),
        Request::Nat(NatRequest::Publish(_)) => Response::PublishedPorts(vec![published(8443, None)]),
        Request::Network(NetworkRequest::List | NetworkRequest::Show { .. }) => Response::Networks(vec![NetworkInfo {
            name: "shop".into(),
            mode: NetworkMode::Bridge,
            internal: true,
            pool: vec![prefix("10.42.0.0/16")],
            here: true,
            hosts: ["h1", "h2"].map(network_host).to_vec(),
            endpoints: vec!["web".into()],
            notes: vec!["hosts want different things of it".into()],
        }]),
        Request::Ipam(IpamRequest::Show) => Response::Ipam(IpamResponse::Usage(
            [
                ("default", "10.42.1.0/24", 219),
                ("default", "fd42:0:0:1::/64", u64::MAX),
                ("shop", "10.42.1.224/27", 31),
            ]
            .map(|(network, block, free)| IpamUsage {
                network: network.into(),
                prefix: prefix(block),
                used: 1,
                resting: 2,
                reserved: 0,
                free,
            })
            .to_vec(),
        )),
        Request::Ipam(IpamRequest::List) => Response::Ipam(IpamResponse::Addresses(
            [
                (AddressState::Used, Some("web"), None),
                (AddressState::Resting, Some("old"), Some(41)),
                (AddressState::Reserved, None, None),
            ]
            .map(|(state, endpoint, seconds)| IpamAddress {
                address: "10.42.1.4".parse().expect("address"),
                network: "default".into(),
                state,
                endpoint: endpoint.map(Into::into),
                owner: endpoint.map(|_| "cni/pods".into()),
                seconds,
            })
            .to_vec(),
        )),
        Request::Ipam(IpamRequest::Check { .. }) => Response::Ipam(IpamResponse::Findings(vec![
            IpamFinding { what: "link ov0123456789 belongs to no endpoint".into(), fixed: true, why: None },
            IpamFinding { what: "endpoint web has a lease and no link".into(), fixed: false, why: text("disk full") },
        ])),
        Request::ConfigShow => {
            let file = Origin { layer: OriginLayer::File, file: text("/etc/overlay/overlayd.toml"), line: Some(2) };
            let default = Origin { layer: OriginLayer::Default, file: None, line: None };
            Response::Settings(vec![
                Setting { key: "node.name".into(), value: "h1".into(), origin: file },
                Setting { key: "overlay.mtu".into(), value: "auto".into(), origin: default },
            ])
        }
        Request::ConfigDiff => Response::Changes(vec![
            Change { key: "log.level".into(), from: text("info"), to: text("debug"), applies: Applies::Live },
            Change { key: "overlay.mtu".into(), from: text("auto"), to: None, applies: Applies::Restart },
        ]),
        Request::ConfigReload => Response::Changes(vec![]),
        Request::PingStart { .. } => Response::PingStarted { id: 5 },
        Request::PingPoll { id: 5 } => Response::Ping(PingProgress {
            peer: "h2".into(),
            address: None,
            encapsulation: Encapsulation::Wireguard,
            endpoint: text("192.0.2.2:51821"),
            replies: vec![
                PingReply { sequence: 1, rtt_us: Some(400) },
                PingReply { sequence: 2, rtt_us: None },
                PingReply { sequence: 3, rtt_us: Some(12_345) },
            ],
            done: true,
        }),
        Request::WaitReady => Response::Ready { ready: false, missing: vec!["h3 was not tried yet".into()] },
        Request::Doctor { .. } => Response::Findings(vec![
            Finding { check: "forwarding".into(), status: FindingStatus::Ok, why: "on".into(), fix: None, undo: None },
            Finding {
                check: "rp_filter".into(),
                status: FindingStatus::Bad,
                why: "1 on all, which drops packets from the overlay".into(),
                fix: text("sysctl -w net.ipv4.conf.all.rp_filter=2"),
                undo: text("sysctl -w net.ipv4.conf.all.rp_filter=1"),
            },
        ]),
        Request::Membership(request) => return membership(request),
        Request::EventsFollow => {
            let event = |kind: &str, cause: &str| {
                let time = Timestamp::from_unix_ms(1_795_185_061_001);
                Response::Event(Event {
                    time,
                    severity: Severity::Warn,
                    kind: kind.into(),
                    subject: text("h3"),
                    cause: cause.into(),
                })
            };
            let begun = Response::Done { changed: false, notes: vec![] };
            return Ok(vec![begun, event("peer-down", "no answer to 3 probes"), event("peer-up", "answered")]);
        }
        Request::Version => Response::Version(version()),
        Request::PolicyApply { .. } => done(&["2 flows were cut"]),
        Request::PeerRemove { .. } => Response::Done { changed: false, notes: vec![] },
        _ => done(&[]),
    }])
}

fn trace(denied: bool) -> Trace {
    let step = |host: &str, step: &str, outcome, text: &str, permit: Option<&str>| TraceStep {
        host: host.into(),
        step: step.into(),
        outcome,
        text: text.into(),
        permit: permit.map(str::to_owned),
    };
    let pass = TraceOutcome::Pass;
    let mut steps = vec![
        step("h1", "path", pass, "10.42.1.5 is on this host, 10.42.2.7 is owned by h2: goes to h2", None),
        step("h1", "policy", pass, "default members: members may talk to each other", None),
    ];
    steps.push(match denied {
        true => {
            let permit = "the rule `allow tcp/22 from 10.42.1.5 to 10.42.2.7` in front of rule 1";
            step("h2", "policy", TraceOutcome::Denied, "rule 1: deny tcp/22 from any to any", Some(permit))
        }
        false => step("h2", "delivery", pass, "to the container web\u{1b}[2J through ov12", None),
    });
    Trace {
        packet: "tcp 10.42.1.5:49152 -> 10.42.2.7:22, 40 bytes".into(),
        from: "10.42.1.5".parse().expect("an address"),
        to: "10.42.2.7".parse().expect("an address"),
        protocol: 6,
        source_port: 49152,
        port: 22,
        outcome: if denied { TraceOutcome::Denied } else { pass },
        steps,
        missing: (!denied).then(|| "h3 was not asked".to_owned()),
        sent: None,
    }
}

fn cluster_policy(request: &PolicyRequest) -> Response {
    let host = |name: &str, state, why: Option<&str>| PolicyHost {
        name: name.into(),
        state,
        revision: (state != PolicyHostState::Waiting).then_some(7),
        why: why.map(str::to_owned),
        age_s: (state != PolicyHostState::Waiting).then_some(4),
    };
    let past = |revision, made: &str, rules| PolicyRevision {
        revision,
        author: "h1".into(),
        made: made.into(),
        seen: (std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_784_937_600)).into(),
        rules,
    };
    match request {
        PolicyRequest::Apply { .. } | PolicyRequest::Confirm | PolicyRequest::Rollback { .. } => {
            Response::PolicyWritten(PolicyWritten {
                revision: 7,
                hash: "0a1b2c3d4e5f".into(),
                notes: vec!["rule 2 matches nothing: no member is named h9".into()],
            })
        }
        PolicyRequest::Status => Response::ClusterPolicy(Box::new(ClusterPolicyStatus {
            revision: 7,
            hash: "0a1b2c3d4e5f".into(),
            author: Some("h1".into()),
            made: Some("applied from a file".into()),
            stage: PolicyStage::OnTrial,
            left_s: Some(42),
            previous: Some(5),
            in_force: 7,
            hosts: vec![
                host("h1", PolicyHostState::InForce, None),
                host("h2", PolicyHostState::Refused, Some("line 3: `zone` is no action")),
                host("h3", PolicyHostState::Unreachable, None),
            ],
            history: vec![past(7, "applied from a file", Some(12)), past(6, "no policy of the cluster", None)],
        })),
        PolicyRequest::Texts => Response::PolicyTexts(Box::new(PolicyTexts {
            revision: 7,
            cluster: Some(
                "default deny\nallow tcp/443 from any to 10.42.1.0/24\nallow udp/53 from any to any\n".into(),
            ),
            local: "default deny\nallow tcp/80,443 from any to 10.42.1.0/24\nallow udp/53 from any to any"
                .parse()
                .expect("a policy"),
        })),
    }
}

//! What one peer answered when it was asked on demand, and what that says: facts, and checks that are pure functions of
//! them.

use std::net::SocketAddr;
use std::time::Duration;

use overlay_wire::Encapsulation;

use super::checks::Check;

/// What one peer answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its name.
    pub peer: String,
    /// Its underlay address.
    pub endpoint: Option<SocketAddr>,
    /// Why it is not reachable, where gossip does not reach it.
    pub no_path: Option<NoPath>,
    /// The UDP port; absent for a foreign peer, which answers no probes of ours.
    pub udp: Option<Udp>,
    /// The data path, one entry for each protocol that carries packets.
    pub data: Vec<Data>,
    /// A plain encapsulation that is configured and not in use.
    pub plain_unused: Option<Encapsulation>,
    /// Sizes; absent when nothing came back.
    pub sizes: Option<Sizes>,
    /// Why its clock is not known, if so.
    pub no_clock: Option<String>,
}

/// Why a member is not reachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPath {
    /// Why.
    pub why: String,
    /// What to do about it.
    pub next: String,
    /// Whether a NAT stands in front of both ends, which says it all.
    pub between_nats: bool,
}

/// What became of probes to the peer's UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Udp {
    /// It answered.
    Answered {
        /// How long that took.
        round_trip: Duration,
    },
    /// Its host answered that nobody listens there.
    Refused,
    /// Nothing came back.
    Silent {
        /// Whether datagrams that the peer sends on its own arrive here.
        heard: bool,
    },
}

/// What carries packets to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// WireGuard in the UDP port.
    Wireguard,
    /// GRE, protocol 47.
    Gre,
    /// IPv4 in IP, protocol 4.
    Ipv4,
    /// IPv6 in IP, protocol 41.
    Ipv6,
}

impl Carrier {
    /// Its name in findings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wireguard => "WireGuard",
            Self::Gre => "GRE (protocol 47)",
            Self::Ipv4 => "IPv4 in IP (protocol 4)",
            Self::Ipv6 => "IPv6 in IP (protocol 41)",
        }
    }

    fn protocol(self) -> Option<u8> {
        match self {
            Self::Wireguard => None,
            Self::Gre => Some(47),
            Self::Ipv4 => Some(4),
            Self::Ipv6 => Some(41),
        }
    }
}

/// What became of echoes through one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// The protocol.
    pub carrier: Carrier,
    /// Echoes sent.
    pub sent: u32,
    /// Echoes that came back.
    pub answered: u32,
    /// Whether packets that the peer sends on its own arrive here.
    pub heard: bool,
}

/// How large packets may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// What senders are told: the largest inner packet, in bytes.
    pub told: u16,
    /// The largest inner packet that came back.
    pub largest: u16,
    /// Bytes that the encapsulation in use adds.
    pub overhead: u16,
    /// The route to the peer in the words of `ip route`, where one was found.
    pub route: Option<String>,
}

/// The checks of a peer that was asked.
#[must_use]
pub fn checks(asked: &Asked) -> Vec<Check> {
    let mut checks = vec![udp(asked)];
    checks.extend(asked.data.iter().map(|data| carried(asked, data)));
    if asked.data.is_empty() {
        checks.push(Check::skipped("peer-data", no_data(asked)));
    }
    if let Some(kind) = asked.plain_unused {
        let why = format!(
            "{kind} is configured and WireGuard in use, so it was not probed; `overlayctl peer show {}` says why",
            asked.peer
        );
        checks.push(Check::skipped("peer-data", why));
    }
    checks.push(sizes(asked));
    checks
}

fn place(asked: &Asked) -> String {
    asked.endpoint.map_or_else(|| asked.peer.clone(), |endpoint| format!("{} ({endpoint})", asked.peer))
}

fn udp(asked: &Asked) -> Check {
    let name = "peer-udp";
    let peer = &asked.peer;
    let port = asked.endpoint.map_or(0, |endpoint| endpoint.port());
    let tried = asked.no_path.as_ref().map_or_else(String::new, |no| format!(" ({})", no.why));
    match asked.udp {
        None => Check::skipped(name, format!("{peer} is a foreign peer and answers no probes of overlayd")),
        _ if asked.endpoint.is_none() => Check::advised(
            name,
            format!("no address of {peer} is known here and it has not called"),
            format!("give it an endpoint on this host, or start overlayd on {peer}"),
        ),
        Some(Udp::Answered { round_trip }) => {
            let ms = round_trip.as_secs_f64() * 1000.0;
            Check::ok(name, format!("{} answers on UDP port {port} within {ms:.1} ms", place(asked)))
        }
        Some(Udp::Refused | Udp::Silent { .. }) if asked.no_path.as_ref().is_some_and(|no| no.between_nats) => {
            let (why, next) = asked.no_path.as_ref().map_or(("", ""), |no| (&no.why, &no.next));
            Check::advised(name, format!("{peer} does not answer: {why}"), next)
        }
        Some(Udp::Refused) => Check::advised(
            name,
            format!("{} says that nobody listens on UDP port {port}: overlayd is not running there", place(asked)),
            format!("on {peer}: `systemctl start overlayd`, and compare overlay.listen_port with the endpoint here"),
        ),
        Some(Udp::Silent { heard: true }) => Check::advised(
            name,
            format!(
                "{} does not answer on UDP port {port}, but its own datagrams arrive: the port is closed in its firewall \
                 or on the way there",
                place(asked)
            ),
            open_port(peer, port),
        ),
        Some(Udp::Silent { heard: false }) => Check::advised(
            name,
            format!(
                "{} does not answer on UDP port {port} and nothing comes from it{tried}: the port is closed on the way, its \
                 host is down, or one of the two does not list the other's identity",
                place(asked)
            ),
            format!("{}; on {peer}: `overlayctl status`", open_port(peer, port)),
        ),
    }
}

fn open_port(peer: &str, port: u16) -> String {
    format!(
        "on {peer}: `ufw allow {port}/udp`, `firewall-cmd --add-port={port}/udp`, or a rule `udp dport {port} accept` in \
         the input chain that `nft list ruleset` shows; then in the network between"
    )
}

fn carried(asked: &Asked, data: &Data) -> Check {
    let name = "peer-data";
    let (peer, carrier) = (&asked.peer, data.carrier.name());
    if data.answered > 0 {
        let why = format!("{} of {} echoes through {carrier} came back from {peer}", data.answered, data.sent);
        return Check::ok(name, why);
    }
    let lost = format!("none of {} echoes through {carrier} came back from {peer}", data.sent);
    let direction =
        if data.heard { "its own packets arrive, so they die on the way there" } else { "nothing comes from it" };
    let Some(protocol) = data.carrier.protocol() else {
        return match asked.udp {
            Some(Udp::Answered { .. }) => Check::advised(
                name,
                format!("{lost}, though the UDP port answers: the handshake fails, or {peer} does not forward"),
                format!("on {peer}: `overlayctl doctor` and `overlayctl status`, which counts what it drops and why"),
            ),
            _ => Check::skipped(name, format!("{lost}; it needs the UDP port, see above")),
        };
    };
    Check::advised(
        name,
        format!("{lost}; {direction}: IP protocol {protocol} is dropped by a firewall or by the network between"),
        format!(
            "open IP protocol {protocol} on both hosts, as with a rule `meta l4proto {protocol} accept`; where the network \
             drops it: `overlayctl peer set {peer} encapsulation=wireguard`"
        ),
    )
}

fn no_data(asked: &Asked) -> String {
    let peer = &asked.peer;
    match asked.udp {
        None => {
            format!("{peer} has no address that must answer an echo; try `overlayctl ping ADDRESS` with one of its")
        }
        Some(_) => format!("{peer} has told no prefix of a family that this host has, so no echo can be sent to it"),
    }
}

fn sizes(asked: &Asked) -> Check {
    let name = "peer-mtu";
    let peer = &asked.peer;
    let Some(Sizes { told, largest, overhead, route }) = &asked.sizes else {
        return Check::skipped(name, format!("nothing came back from {peer}, so sizes were not tried"));
    };
    if largest >= told {
        return Check::ok(name, format!("packets of {told} bytes, the inner MTU, come back from {peer}"));
    }
    let why = format!(
        "packets of {largest} bytes come back from {peer}, larger ones vanish though up to {told} are allowed: a router \
         on the way has a smaller MTU and its \"too big\" messages do not arrive"
    );
    let let_through = "let ICMP type 3 (IPv4) and ICMPv6 type 2 through on the way";
    let advice = match route {
        // What the kernel knows of the route, the daemon takes over within a second.
        Some(route) => format!(
            "{let_through}; until then, here and likewise on {peer}: `ip route replace {route} mtu {}`, undone by `ip route \
             del {route}`",
            largest.saturating_add(*overhead)
        ),
        None => let_through.to_owned(),
    };
    Check::advised(name, why, advice)
}

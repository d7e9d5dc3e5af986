//! What a container forges: sources that are not its own, router advertisements, ARP, packets that are encapsulated already.
//! Each kind is sent many times beside honest packets of the same sender, which arrive.

use anyhow::{Context as _, Result, ensure};
use overlay_netns_harness::netns::View;
use overlay_netns_harness::{Container, Topology, ip, netns, run_in, wait_for};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use super::{Bound, Figure, LIMIT, Run, pair};
use crate::forge::{ipv4, udp};
use crate::traffic::bind_device;
use crate::{Capture, Overlay, udp_socket};

/// Forged packets to one that is honest.
const HONEST_EVERY: u64 = 100;
/// The UDP port of the daemons.
const OURS: u16 = 51821;
/// Where honest packets go.
const OPEN: u16 = 7450;
/// In every forged packet, and in every honest one.
const FORGED: &[u8; 16] = b"forged in a cell";
const HONEST: &[u8; 16] = b"honest as a well";

/// One kind of forgery.
struct Kind {
    name: &'static str,
    /// The whole frames, sent in turns.
    frames: Vec<Vec<u8>>,
    /// The chain of ours whose counters count them.
    chain: &'static str,
}

/// The places of the first host's wires.
struct Place<'a> {
    overlay: &'a Overlay,
    from: &'a Container,
    /// Hardware addresses: the container's, and the host's end of its link.
    inside: [u8; 6],
    outside: [u8; 6],
}

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay = pair("forge", run, &[2, 1], Topology::Routed)?;
    let from = overlay.container("h1c1");
    let place = Place { overlay: &overlay, from, inside: hardware(&from.view, "eth0")?, outside: gateway(from)? };
    let count = run.count(100_000, 1000);
    let wire = Wire::open(from.view.namespace(), "eth0")?;
    let mut figures = Vec::new();
    for kind in place.kinds()? {
        figures.extend(place.measure(&wire, &kind, count).with_context(|| kind.name.to_owned())?);
    }
    Ok(figures)
}

impl Place<'_> {
    fn kinds(&self) -> Result<Vec<Kind>> {
        let (near, far) = (self.overlay.container("h1c2"), self.overlay.container("h2c1"));
        let [h1, h2] = ["h1", "h2"].map(|name| self.overlay.lab.host(name));
        let (h1, h2) = (h1?, h2?);
        let targets4 = [near.v4, far.v4, h1.overlay_v4(), h1.underlay_v4(), h2.underlay_v4()];
        let targets6 = [near.v6, far.v6, h1.overlay_v6(), h1.underlay_v6(), h2.underlay_v6()];
        let others4 = [near.v4, far.v4, h1.overlay_v4(), h2.underlay_v4(), [10, 42, 1, 99].into(), [8, 8, 8, 8].into()];
        let link: Ipv6Addr = "fe80::1".parse()?;
        let others6 = [near.v6, far.v6, h1.overlay_v6(), h2.underlay_v6(), link];
        let mut spoofed = Vec::new();
        for target in targets4 {
            spoofed.extend(others4.iter().map(|source| self.v4(*source, target, 17, &udp(OPEN, FORGED))));
        }
        let mut spoofed6 = Vec::new();
        for target in targets6 {
            spoofed6.extend(
                others6.iter().map(|source| self.v6(*source, target, 17, &udp6(*source, target, OPEN, FORGED))),
            );
        }
        let mut router = Vec::new();
        for source in [link, "fe80::66".parse()?, self.from.v6] {
            for target in ["ff02::1".parse()?, link, far.v6] {
                router.push(self.v6(source, target, 58, &advertisement(source, target)));
            }
        }
        let arp = [near.v4, h1.overlay_v4(), h1.underlay_v4(), far.v4]
            .iter()
            .flat_map(|claimed| [1, 2].map(|operation| self.arp(operation, *claimed, h1.overlay_v4())))
            .collect();
        let inner = ipv4(far.v4, near.v4, 17, &udp(OPEN, FORGED));
        let gre = [&[0, 0, 8, 0][..], &inner].concat();
        let to_all = |protocol: u8, payload: &[u8]| -> Vec<Vec<u8>> {
            targets4.iter().map(|target| self.v4(self.from.v4, *target, protocol, payload)).collect()
        };
        let to_all6 = |protocol: u8, payload: &[u8]| -> Vec<Vec<u8>> {
            targets6.iter().map(|target| self.v6(self.from.v6, *target, protocol, payload)).collect()
        };
        // Handshakes, data, gossip of ours by their first byte, and words.
        let ours = |kind: u8| [&[kind, 1, 0, 0][..], FORGED, &[0; 128]].concat();
        let mut ports: Vec<Vec<u8>> =
            [1, 4, 0x20].iter().flat_map(|kind| to_all(17, &udp(OURS, &ours(*kind)))).collect();
        for target in targets6 {
            ports.push(self.v6(self.from.v6, target, 17, &udp6(self.from.v6, target, OURS, &ours(1))));
        }
        let ipip = [to_all(4, &inner), to_all6(4, &inner)].concat();
        let inner6 = &self.v6(far.v6, near.v6, 17, &udp6(far.v6, near.v6, OPEN, FORGED))[14..];
        let sit = [to_all(41, inner6), to_all6(41, inner6)].concat();
        let gre = [to_all(47, &gre), to_all6(47, &gre)].concat();
        let inet = "chain inet overlay from_container";
        Ok(vec![
            Kind { name: "IPv4 source of another", frames: spoofed, chain: inet },
            Kind { name: "IPv6 source of another", frames: spoofed6, chain: inet },
            Kind { name: "router advertisement", frames: router, chain: inet },
            Kind { name: "ARP of another", frames: arp, chain: "chain arp overlay input" },
            Kind { name: "IPIP", frames: ipip, chain: inet },
            Kind { name: "IPv6 in IP", frames: sit, chain: inet },
            Kind { name: "GRE", frames: gre, chain: inet },
            Kind { name: "UDP to our port", frames: ports, chain: inet },
        ])
    }

    /// Sends one kind, honest packets among them, and looks everywhere for what passed.
    fn measure(&self, wire: &Wire, kind: &Kind, count: u64) -> Result<[Figure; 3]> {
        let (near, far) = (self.overlay.container("h1c2"), self.overlay.container("h2c1"));
        let lab = &self.overlay.lab;
        let h1 = lab.view("h1")?;
        let forged = |namespace: &str| Capture::start(namespace, Capture::containing(FORGED));
        let honest = |namespace: &str| Capture::start(namespace, Capture::containing(HONEST));
        let host = h1.namespace();
        // Everything after the first host's guard: its TUN, its underlay, the other containers, the other host.
        let mut watched = vec![
            ("the overlay device", Capture::start_on(host, "overlay0", Capture::containing(FORGED))?),
            ("the underlay", Capture::start_on(host, "eth0", Capture::containing(FORGED))?),
        ];
        for (what, namespace) in [
            ("the switch", lab.switch().namespace().to_owned()),
            ("the neighbour", near.view.namespace().to_owned()),
            ("the other host", lab.view("h2")?.namespace().to_owned()),
            ("its container", far.view.namespace().to_owned()),
        ] {
            watched.push((what, forged(&namespace)?));
        }
        let arrivals = [honest(near.view.namespace())?, honest(far.view.namespace())?];
        // Somebody takes the honest ones, so that nothing is answered.
        let listeners = [near, far].map(|to| udp_socket(to.view.namespace(), SocketAddr::new(to.v4.into(), OPEN)));
        let _listeners = listeners.into_iter().collect::<Result<Vec<_>>>()?;
        let before = (dropped(&h1, kind.chain)?, self.taken()?);
        let mut allowed = 0;
        for number in 0..count {
            wire.send(&kind.frames[number as usize % kind.frames.len()])?;
            if number % HONEST_EVERY == 0 {
                allowed += 1;
                for target in [near.v4, far.v4] {
                    wire.send(&self.v4(self.from.v4, target, 17, &udp(OPEN, HONEST)))?;
                }
            }
        }
        let counted = wait_for("everything forged to be counted as dropped", LIMIT, || {
            let now = dropped(&h1, kind.chain).ok()? - before.0;
            (now >= count).then_some(now)
        });
        let counted =
            counted.map_or_else(|_| dropped(&h1, kind.chain).map(|now| now - before.0), |(now, _)| Ok(now))?;
        let mut passed = 0;
        for (what, capture) in watched {
            let found = capture.finish().matches;
            if found > 0 {
                eprintln!("{}: {found} at {what}", kind.name);
            }
            passed += found;
        }
        let arrived: u64 = arrivals.into_iter().map(|capture| capture.finish().matches).sum();
        // What the host believes of its neighbours and routers, and what its daemon read, are as before.
        let believed = belief(&h1, &self.inside, &[self.from.v4.into(), self.from.v6.into()])?;
        believed.iter().for_each(|line| eprintln!("{}: the host believes {line}", kind.name));
        let accepted = believed.len() as u64 + self.taken()?.saturating_sub(before.1);
        ensure!(counted >= count, "only {counted} of {count} were counted as dropped");
        let share = arrived as f64 / (2 * allowed) as f64 * 100.0;
        let name = kind.name;
        Ok([
            Figure::new(format!("{name}, {count} times: left"), passed as f64, "packets", Bound::AtMost(0.0)),
            Figure::new(format!("{name}: accepted"), accepted as f64, "packets", Bound::AtMost(0.0)),
            Figure::new(format!("{name}: honest packets that arrived beside them"), share, "%", Bound::AtLeast(99.0)),
        ])
    }

    /// What the daemon has refused of what came to its sockets: what a container sends must not come so far.
    fn taken(&self) -> Result<u64> {
        let drops = self.overlay.status("h1")?.drops;
        let of_sockets = ["unknown_source", "unknown_session", "malformed", "gre_header", "inner", "authentication"];
        Ok(of_sockets.iter().filter_map(|name| drops.get(*name)).sum())
    }

    fn ethernet(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        [&self.outside[..], &self.inside, &kind.to_be_bytes(), payload].concat()
    }

    fn v4(&self, source: Ipv4Addr, target: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.ethernet(0x0800, &ipv4(source, target, protocol, payload))
    }

    fn v6(&self, source: Ipv6Addr, target: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).expect("the payload fits a packet").to_be_bytes();
        let hops = if protocol == 58 { 255 } else { 64 };
        let head = [0x60, 0, 0, 0, length[0], length[1], protocol, hops];
        self.ethernet(0x86dd, &[&head[..], &source.octets(), &target.octets(), payload].concat())
    }

    /// A request or a reply that claims an address.
    fn arp(&self, operation: u8, claimed: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        let body = [&head[..], &self.inside, &claimed.octets(), &self.outside, &target.octets(), FORGED].concat();
        self.ethernet(0x0806, &body)
    }
}

/// The sum over a pseudo-header and a payload, as UDP and ICMPv6 have it over IPv6.
fn sum6(source: Ipv6Addr, target: Ipv6Addr, protocol: u8, payload: &[u8]) -> u16 {
    let length = (payload.len() as u32).to_be_bytes();
    let all = [&source.octets()[..], &target.octets(), &length, &[0, 0, 0, protocol], payload].concat();
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let sum: u32 = all.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

fn udp6(source: Ipv6Addr, target: Ipv6Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = udp(port, payload);
    let sum = sum6(source, target, 17, &datagram).to_be_bytes();
    datagram[6..8].copy_from_slice(&sum);
    datagram
}

/// A router advertisement that would make its sender the default router, with a prefix.
fn advertisement(source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 1, 81, 128, 0, 0, 56, 64, 0, 0, 0, 0]);
    // The mark is the prefix.
    message.extend(FORGED);
    let sum = sum6(source, target, 58, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

/// Sends whole frames from one interface.
struct Wire(Socket);

impl Wire {
    fn open(namespace: &str, interface: &str) -> Result<Wire> {
        let socket = netns::within(namespace, || {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
            bind_device(&socket, interface, 0)?;
            Ok(socket)
        })?;
        Ok(Wire(socket))
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the frame outlives the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        ensure!(sent == frame.len() as isize, "a frame was not sent: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// Packets that the counters of a chain have counted.
fn dropped(view: &View, chain: &str) -> Result<u64> {
    let words: Vec<&str> = ["nft", "list"].into_iter().chain(chain.split(' ')).collect();
    let text = run_in(view, &words)?;
    let counts = text.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// What the host believes because a container said so: addresses that are not the container's behind its hardware address,
/// and what router advertisements leave.
fn belief(view: &View, liar: &[u8; 6], own: &[IpAddr]) -> Result<Vec<String>> {
    let address = liar.map(|byte| format!("{byte:02x}")).join(":");
    let neighbours = run_in(view, &["ip", "neigh", "show"])?;
    let is_own = |line: &str| {
        let ip: Option<IpAddr> = line.split(' ').next().and_then(|ip| ip.parse().ok());
        ip.is_some_and(|ip| own.contains(&ip) || matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
    };
    let mut believed: Vec<String> =
        neighbours.lines().filter(|line| line.contains(&address) && !is_own(line)).map(str::to_owned).collect();
    let routes = run_in(view, &["ip", "-6", "route", "show", "table", "all"])?;
    believed.extend(routes.lines().filter(|line| line.contains("proto ra")).map(str::to_owned));
    let addresses = run_in(view, &["ip", "-6", "-o", "address", "show", "dynamic"])?;
    believed.extend(addresses.lines().map(str::to_owned));
    Ok(believed)
}

fn hardware(view: &View, interface: &str) -> Result<[u8; 6]> {
    let text = ip(&format!("-n {} -o link show {interface}", view.namespace()))?;
    let word = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).context("no address")?;
    parse_hardware(word)
}

fn parse_hardware(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect::<Result<Vec<u8>>>()?;
    bytes.try_into().ok().context("a hardware address has six bytes")
}

/// The hardware address of a container's gateway, which it learns by a first packet.
fn gateway(container: &Container) -> Result<[u8; 6]> {
    let to = IpAddr::V4(Ipv4Addr::from([10, 42, 1, 1]));
    let (found, _) = wait_for("the gateway's hardware address", LIMIT, || {
        let _ = overlay_netns_harness::ping(&container.view, "-c 1 -W 0.3", &to.to_string());
        let text = ip(&format!("-n {} neigh show {to}", container.view.namespace())).ok()?;
        parse_hardware(text.split("lladdr ").nth(1)?.split(' ').next()?).ok()
    })?;
    Ok(found)
}

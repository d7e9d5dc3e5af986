//! Packets through virtual addresses and the whole packet path.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use overlay_wire::checksum;
use overlay_wire::packet::{Headers, protocol};
use overlay_wire::rewrite::Sums;

use super::*;
use crate::reason::DropReason;
use crate::testing::*;
use crate::verdict::Verdict;

const CLIENT: &str = "10.42.1.5";
const VIP: &str = "10.96.0.1";
/// The host's service address.
const MASK: &str = "10.42.1.2";

/// A host with a service `web` at port 80 over both protocols.
struct Host {
    world: World,
    translator: Translator,
    states: Vec<Arc<BackendState>>,
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address in a test")
}

impl Host {
    fn new(backends: &[&str], options: &FrontendOptions) -> Self {
        let world = World::new("allow any from any to any");
        let translator = Translator::new(16_000, [3; 16], world.now - Duration::from_secs(1000));
        let states = backends.iter().map(|_| Arc::new(BackendState::default())).collect();
        let mut host = Self { world, translator, states };
        host.serve(backends, options, &[], 1);
        host
    }

    /// Swaps the services; `draining` are places in `backends`.
    fn serve(&mut self, backends: &[&str], options: &FrontendOptions, draining: &[usize], revision: u64) {
        let backends: Vec<Backend> = backends
            .iter()
            .enumerate()
            .map(|(place, address)| Backend {
                id: format!("web-{place}").into(),
                address: at(address),
                weight: 1,
                draining: draining.contains(&place),
                bridged: false,
                state: Arc::clone(&self.states[place]),
            })
            .collect();
        let frontend = |kind| {
            let state = Arc::new(FrontendState::default());
            let vip = at(&format!("{VIP}:80"));
            Arc::new(Frontend::new("web".into(), vip, kind, options, backends.clone(), state))
        };
        let frontends = vec![frontend(protocol::TCP), frontend(protocol::UDP)];
        self.world.tables.services =
            ServiceTable::new(vec![prefix("10.96.0.0/16")], vec![ip(MASK)], frontends, revision);
    }

    fn forward(&mut self, packet: &mut [u8]) -> Way {
        let headers = Headers::parse(packet).expect("a valid packet");
        let way = self.translator.forward(&self.world.tables, &headers, packet, Sums::Complete, self.world.now);
        if way == Way::Translated {
            check(packet);
        }
        way
    }

    fn backward(&mut self, packet: &mut [u8]) -> Back {
        let headers = Headers::parse(packet).expect("a valid packet");
        let back =
            self.translator.backward(&self.world.tables, &headers, packet, Sums::Complete, false, self.world.now);
        if back == Back::Translated {
            check(packet);
        }
        back
    }

    /// Sends a SYN through translation and filter; the backend it goes to.
    fn connect(&mut self, port: u16) -> SocketAddr {
        let mut syn = segment(CLIENT, port, VIP, 80, SYN, 1000, 0, 0);
        assert_eq!(self.forward(&mut syn), Way::Translated);
        let headers = Headers::parse(&syn).expect("a packet");
        assert!(matches!(self.world.out(&mut syn), Verdict::Forward(_)));
        SocketAddr::new(headers.dst, headers.ports().expect("ports").1)
    }

    /// The backend's answer to it; what the client gets.
    fn answer(&mut self, backend: SocketAddr, port: u16, flags: u8) -> (Back, Vec<u8>) {
        let from = backend.ip().to_string();
        let mut packet = segment(&from, backend.port(), CLIENT, port, flags, 5000, 1001, 0);
        assert_eq!(self.world.from(H2, &mut packet), Verdict::Deliver);
        let back = self.backward(&mut packet);
        (back, packet)
    }

    fn advance(&mut self, by: Duration) {
        self.world.now += by;
    }
}

/// Both checksums are right.
fn check(packet: &[u8]) {
    let headers = Headers::parse(packet).expect("a valid packet");
    assert!(checksum::verify_ipv4_header(packet, &headers) && checksum::verify_transport(packet, &headers));
}

fn ends(packet: &[u8]) -> (SocketAddr, SocketAddr) {
    let headers = Headers::parse(packet).expect("a valid packet");
    let (src, dst) = headers.ports().expect("ports");
    (SocketAddr::new(headers.src, src), SocketAddr::new(headers.dst, dst))
}

fn with(algorithm: Algorithm) -> FrontendOptions {
    FrontendOptions { algorithm, ..FrontendOptions::default() }
}

const TWO: [&str; 2] = ["10.42.2.5:8080", "10.42.2.6:8080"];

#[test]
fn connection_goes_to_a_backend_and_comes_back_from_the_virtual_address() {
    let mut host = Host::new(&TWO, &with(Algorithm::RoundRobin));
    let first = host.connect(1000);
    let second = host.connect(1001);
    assert_ne!(first, second);
    assert!(TWO.contains(&first.to_string().as_str()));
    let (back, packet) = host.answer(first, 1000, SYN | ACK);
    assert_eq!(back, Back::Translated);
    assert_eq!(ends(&packet), (at("10.96.0.1:80"), at("10.42.1.5:1000")));
    // Later segments follow; data both ways.
    let mut data = segment(CLIENT, 1000, VIP, 80, ACK, 1001, 5001, 400);
    assert_eq!(host.forward(&mut data), Way::Translated);
    assert_eq!(ends(&data).1, first);
    assert_eq!(host.world.out(&mut data), Verdict::Forward(H2));
    // The same backend, spoken to directly, is not disturbed.
    let mut direct = segment("10.42.2.5", 8080, CLIENT, 2000, SYN | ACK, 1, 1, 0);
    assert_eq!(host.backward(&mut direct), Back::Direct);
    let active: u32 = host.states.iter().map(|state| state.active.load(Ordering::Relaxed)).sum();
    assert_eq!((active, host.translator.len()), (2, 2));
}

#[test]
fn flows_end_when_both_sides_are_done_and_their_port_can_be_used_again() {
    let mut host = Host::new(&TWO, &with(Algorithm::RoundRobin));
    let first = host.connect(1000);
    host.answer(first, 1000, SYN | ACK);
    assert_eq!(host.forward(&mut segment(CLIENT, 1000, VIP, 80, FIN | ACK, 1001, 5001, 0)), Way::Translated);
    let from = first.ip().to_string();
    let mut fin = segment(&from, 8080, CLIENT, 1000, FIN | ACK, 5001, 1002, 0);
    assert_eq!(host.backward(&mut fin), Back::Translated);
    assert_eq!(host.forward(&mut segment(CLIENT, 1000, VIP, 80, ACK, 1002, 5002, 0)), Way::Translated);
    // The next connection from the same port is a new flow.
    let mut again = segment(CLIENT, 1000, VIP, 80, SYN, 90_000, 0, 0);
    assert_eq!(host.forward(&mut again), Way::Translated);
    assert_ne!(ends(&again).1, first);
    assert_eq!(host.translator.len(), 1);
    // An opening flow is given up after 30 s, and looking for others is enough to end it.
    host.advance(Duration::from_secs(31));
    for _ in 0..10 {
        host.translator.expire(host.world.now);
    }
    assert!(host.translator.is_empty());
    assert!(host.states.iter().all(|state| state.active.load(Ordering::Relaxed) == 0));
}

#[test]
fn refused_connect_moves_to_another_backend_and_the_client_sees_nothing() {
    let mut host = Host::new(&TWO, &with(Algorithm::RoundRobin));
    let first = host.connect(1000);
    let (back, _) = host.answer(first, 1000, RST | ACK);
    let Back::Retry(mut syn) = back else { panic!("{back:?}") };
    assert_eq!(ends(&syn), (at("10.42.1.5:1000"), at("10.96.0.1:80")));
    assert_eq!(host.forward(&mut syn), Way::Translated);
    let second = ends(&syn).1;
    assert_ne!(second, first);
    assert!(matches!(host.world.out(&mut syn), Verdict::Forward(_)));
    let (back, packet) = host.answer(second, 1000, SYN | ACK);
    assert_eq!(back, Back::Translated);
    assert_eq!(ends(&packet).0, at("10.96.0.1:80"));
    // A reset after the handshake is the client's to see.
    let mut reset = segment(&second.ip().to_string(), 8080, CLIENT, 1000, RST, 5001, 0, 0);
    assert_eq!(host.backward(&mut reset), Back::Translated);
}

#[test]
fn refusal_of_every_backend_reaches_the_client() {
    let mut host = Host::new(&TWO, &with(Algorithm::RoundRobin));
    let first = host.connect(1000);
    let Back::Retry(mut syn) = host.answer(first, 1000, RST | ACK).0 else { panic!("no other backend") };
    host.forward(&mut syn);
    let second = ends(&syn).1;
    host.world.out(&mut syn);
    let (back, packet) = host.answer(second, 1000, RST | ACK);
    assert_eq!(back, Back::Translated);
    assert_eq!(ends(&packet).0, at("10.96.0.1:80"));
}

#[test]
fn silent_backend_is_left_when_the_client_asks_again() {
    let mut host = Host::new(&TWO, &with(Algorithm::RoundRobin));
    let first = host.connect(1000);
    // A copy at once is no sign of silence.
    assert_eq!(host.connect(1000), first);
    host.advance(Duration::from_secs(1));
    assert_ne!(host.connect(1000), first);
    // The late answer of the one that was left does not appear as the virtual address.
    let from = first.ip().to_string();
    let mut late = segment(&from, 8080, CLIENT, 1000, SYN | ACK, 5000, 1001, 0);
    assert_eq!(host.backward(&mut late), Back::Direct);
}

#[test]
fn backend_that_fails_again_and_again_gets_no_flows_for_a_while_and_one_always_stays() {
    let three = ["10.42.2.5:8080", "10.42.2.6:8080", "10.42.2.7:8080"];
    let outlier = Outlier { max_percent: 100, ..Outlier::default() };
    let options =
        FrontendOptions { algorithm: Algorithm::RoundRobin, outlier, retries: 0, ..FrontendOptions::default() };
    let mut host = Host::new(&three, &options);
    let refuse = |host: &mut Host, ports: std::ops::Range<u16>, bad: &dyn Fn(SocketAddr) -> bool| {
        ports
            .filter(|port| {
                let backend = host.connect(*port);
                host.answer(backend, *port, if bad(backend) { RST | ACK } else { SYN | ACK });
                bad(backend)
            })
            .count()
    };
    let bad = |backend: SocketAddr| backend == at("10.42.2.5:8080");
    assert_eq!(refuse(&mut host, 1000..1040, &bad), 3);
    host.advance(Duration::from_millis(10_001));
    assert_eq!(refuse(&mut host, 1100..1130, &bad), 3, "back on trial, and out again");
    assert_eq!(refuse(&mut host, 1150..1170, &|_| true), 20, "one is always there");
    let now = host.translator.now_ms(host.world.now);
    assert_eq!(host.states.iter().filter(|state| state.is_ejected(now)).count(), 2);
}

#[test]
fn what_leads_nowhere_is_refused_with_its_reason() {
    let mut host = Host::new(&[], &FrontendOptions::default());
    let refused = |reason| Way::Refused(reason);
    let mut syn = segment(CLIENT, 1000, VIP, 80, SYN, 1000, 0, 0);
    assert_eq!(host.forward(&mut syn), refused(DropReason::NoBackend));
    let mut other = segment(CLIENT, 1000, VIP, 81, SYN, 1000, 0, 0);
    assert_eq!(host.forward(&mut other), refused(DropReason::NoService));
    assert_eq!(host.forward(&mut icmp(CLIENT, VIP, 8, 0, 1, &[])), refused(DropReason::NoService));
    let mut host = Host::new(&TWO, &FrontendOptions::default());
    let mut middle = segment(CLIENT, 1000, VIP, 80, ACK, 1000, 1, 10);
    assert_eq!(host.forward(&mut middle), refused(DropReason::TcpNoFlow));
    // From nobody of this host.
    let mut foreign = segment("10.42.2.9", 1000, VIP, 80, SYN, 1000, 0, 0);
    assert_eq!(host.forward(&mut foreign), Way::Dropped(DropReason::SpoofedSource));
    assert!(host.translator.is_empty());
    let mut plain = segment(CLIENT, 1000, "10.42.2.5", 80, SYN, 1000, 0, 0);
    assert_eq!(host.forward(&mut plain), Way::Direct);
}

#[test]
fn draining_backend_keeps_its_flows_and_one_that_is_gone_does_not() {
    let mut host = Host::new(&TWO, &with(Algorithm::RoundRobin));
    let (first, second) = (host.connect(1000), host.connect(1001));
    host.answer(first, 1000, SYN | ACK);
    host.answer(second, 1001, SYN | ACK);
    let place = TWO.iter().position(|address| at(address) == first).expect("one of the two");
    host.serve(&TWO, &with(Algorithm::RoundRobin), &[place], 2);
    let mut data = segment(CLIENT, 1000, VIP, 80, ACK, 1001, 5001, 10);
    assert_eq!(host.forward(&mut data), Way::Translated);
    assert!((2000..2020).all(|port| host.connect(port) == second));
    // Now it leaves for good.
    let rest = [TWO[1 - place]];
    host.serve(&rest, &with(Algorithm::RoundRobin), &[], 3);
    let mut data = segment(CLIENT, 1000, VIP, 80, ACK, 1011, 5001, 10);
    assert_eq!(host.forward(&mut data), Way::Refused(DropReason::BackendGone));
    let mut data = segment(CLIENT, 1001, VIP, 80, ACK, 1001, 5001, 10);
    assert_eq!(host.forward(&mut data), Way::Translated);
}

#[test]
fn datagrams_find_another_backend_at_once_and_fragments_stay_together() {
    let mut host = Host::new(&TWO, &with(Algorithm::RoundRobin));
    let mut datagram = udp(CLIENT, 1000, VIP, 80, 100);
    assert_eq!(host.forward(&mut datagram), Way::Translated);
    let first = ends(&datagram).1;
    let rest: Vec<&str> = TWO.into_iter().filter(|address| at(address) != first).collect();
    host.serve(&rest, &with(Algorithm::RoundRobin), &[], 2);
    let mut datagram = udp(CLIENT, 1000, VIP, 80, 100);
    assert_eq!(host.forward(&mut datagram), Way::Translated);
    assert_eq!(ends(&datagram).1, at(rest[0]));

    let fragment = |offset: u16, more: bool| {
        let bytes = udp_bytes(1000, 80, 1000);
        let part = if offset == 0 { &bytes[..504] } else { &bytes[504..] };
        let mut packet = fragment_v4(77, offset, more, protocol::UDP, part);
        packet[16..20].copy_from_slice(&[10, 96, 0, 1]);
        checksum::fill_ipv4_header(&mut packet, 20);
        packet
    };
    // Its first one has not been seen: nobody knows where it goes.
    assert_eq!(host.forward(&mut fragment(504, false)), Way::Dropped(DropReason::FragmentRefused));
    let (mut first, mut later) = (fragment(0, true), fragment(504, false));
    assert_eq!(host.forward(&mut first), Way::Translated);
    assert_eq!(host.forward(&mut later), Way::Translated);
    let to = |packet: &[u8]| Headers::parse(packet).expect("a packet").dst;
    assert_eq!((to(&first), to(&later)), (at(rest[0]).ip(), at(rest[0]).ip()));
}

#[test]
fn errors_about_the_backend_speak_of_the_virtual_address() {
    let mut host = Host::new(&["10.42.2.5:8080"], &FrontendOptions::default());
    let backend = host.connect(1000);
    host.answer(backend, 1000, SYN | ACK);
    // Too big for the peer: the packet path's own answer names the backend at first.
    let mut large = segment(CLIENT, 1000, VIP, 80, ACK, 1001, 5001, 1400);
    assert_eq!(host.forward(&mut large), Way::Translated);
    assert_eq!(host.world.out(&mut large), Verdict::DropWithReply(DropReason::TooBig));
    let mut error = host.world.reply.packet().to_vec();
    let headers = Headers::parse(&error).expect("a packet");
    let now = host.world.now;
    let back = host.translator.backward(&host.world.tables, &headers, &mut error, Sums::Complete, true, now);
    assert_eq!(back, Back::Translated);
    let headers = Headers::parse(&error).expect("a packet");
    assert!(checksum::verify_transport(&error, &headers));
    let quote = overlay_wire::icmp::Quote::parse(&error, &headers).expect("a quote");
    assert_eq!((quote.src, quote.dst), (ip(CLIENT), ip(VIP)));
    assert_eq!(headers.src, ip("10.42.1.1"), "the host's own words stay the host's");
}

#[test]
fn backend_that_would_answer_past_the_packet_path_sees_the_service_address() {
    for client in [CLIENT, "10.42.1.1"] {
        let mut host = Host::new(&["10.42.1.5:8080"], &FrontendOptions::default());
        let mut syn = segment(client, 1000, VIP, 80, SYN, 1000, 0, 0);
        assert_eq!(host.forward(&mut syn), Way::Translated);
        let (src, dst) = ends(&syn);
        assert_eq!((src.ip(), dst), (ip(MASK), at("10.42.1.5:8080")), "{client}");
        assert_eq!(host.world.out(&mut syn), Verdict::Deliver);
        let mut answer = segment("10.42.1.5", 8080, MASK, src.port(), SYN | ACK, 5000, 1001, 0);
        assert_eq!(host.backward(&mut answer), Back::Translated);
        assert_eq!(ends(&answer), (at("10.96.0.1:80"), at(&format!("{client}:1000"))));
    }
    // A neighbour in routed mode answers through the packet path and sees the client.
    let mut host = Host::new(&["10.42.1.6:8080"], &FrontendOptions::default());
    let mut syn = segment(CLIENT, 1000, VIP, 80, SYN, 1000, 0, 0);
    assert_eq!(host.forward(&mut syn), Way::Translated);
    assert_eq!(ends(&syn).0, at("10.42.1.5:1000"));
}

#[test]
fn client_keeps_its_backend_while_it_is_remembered_and_usable() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::Random, Algorithm::Maglev] {
        let affinity = Some(Duration::from_secs(60));
        let options = FrontendOptions { algorithm, affinity, ..FrontendOptions::default() };
        let mut host = Host::new(&TWO, &options);
        let first = host.connect(1000);
        assert!((1001..1100).all(|port| host.connect(port) == first), "{algorithm}");
        let place = TWO.iter().position(|address| at(address) == first).expect("one of the two");
        host.serve(&TWO, &options, &[place], 2);
        assert_ne!(host.connect(2000), first, "{algorithm}");
    }
}

#[test]
fn limits_hold_and_no_client_fills_the_table() {
    let options = FrontendOptions { max_connections: 10, ..FrontendOptions::default() };
    let mut host = Host::new(&TWO, &options);
    for port in 1000..1010 {
        host.connect(port);
    }
    let mut one_more = segment(CLIENT, 1010, VIP, 80, SYN, 1000, 0, 0);
    assert_eq!(host.forward(&mut one_more), Way::Refused(DropReason::ServiceLimit));

    let mut host = Host::new(&TWO, &FrontendOptions::default());
    let opened = (1000..20_000)
        .filter(|port| host.forward(&mut segment(CLIENT, *port, VIP, 80, SYN, 1000, 0, 0)) == Way::Translated)
        .count();
    assert!((1900..=2000).contains(&opened), "{opened} of 16,000");
    let mut other = segment("10.42.1.6", 1000, VIP, 80, SYN, 1000, 0, 0);
    assert_eq!(host.forward(&mut other), Way::Translated);
}

//! The text against the compiled policy: an interpreter of the few statements used reads what nft is given.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use overlay_dataplane::policy::HostResolver;
use overlay_dataplane::{CompiledPolicy, DecidedBy, End, Tuple};
use overlay_routing::identities::{HostIdentities, Identities};
use overlay_wire::HostId;
use overlay_wire::gossip::Labels;
use overlay_wire::policy::{DefaultPolicy, PolicySet, Rule, RuleOptions, Selector};
use proptest::prelude::*;
use std::sync::Arc;

use super::super::tests::config;
use super::*;

const NIC: &str = "192.0.2.1";

fn hosts(name: &str) -> Option<Vec<Prefix>> {
    let list: &[&str] = match name {
        "h1" => &["10.42.1.0/24", "10.42.1.128/25", "fd42:0:0:1::/64", "192.0.2.0/24"],
        "h2" => &["10.42.2.0/24"],
        _ => return None,
    };
    Some(list.iter().map(|text| text.parse().unwrap()).collect())
}

/// The same, with labels of two containers and of the host.
struct Known(Identities);

impl HostResolver for Known {
    fn prefixes(&self, name: &str) -> Option<Vec<Prefix>> {
        hosts(name)
    }

    fn identities(&self) -> Option<&Identities> {
        Some(&self.0)
    }
}

fn known() -> Known {
    let web = Arc::new(Labels::from([("app".to_owned(), "web".to_owned())]));
    let host = |list: &[&str]| {
        let addresses = list.iter().map(|text| (text.parse().unwrap(), Arc::clone(&web))).collect();
        Arc::new(HostIdentities { addresses })
    };
    let own = host(&["10.42.1.1", "10.42.1.4", "10.42.1.5", "fd42:0:0:1::4"]);
    let hosts = [(None, own), (Some(HostId([2; 16])), host(&["10.42.2.5"]))];
    Known(Identities::new(hosts.into(), Vec::new()))
}

fn script_of(set: &PolicySet) -> String {
    let config = config(Path::new("/nowhere"));
    script(&config, &HostPolicy::new(set, &known(), &config.own_prefixes))
}

/// What conntrack and the headers say of one packet.
#[derive(Clone, Copy, Debug)]
struct Packet {
    hook: &'static str,
    state: &'static str,
    direction: &'static str,
    /// The flow's tuple as its opener sees it.
    flow: Tuple,
    icmp: &'static str,
    syn: bool,
}

impl Packet {
    /// A packet of a flow, its first or a later one, in one direction.
    fn of(flow: Tuple, way: HostWay, state: &'static str, direction: &'static str) -> Self {
        let opened_by_container = (way == HostWay::ToHost) == (direction == "original");
        Self {
            hook: if opened_by_container { "input" } else { "output" },
            state,
            direction,
            flow,
            icmp: if direction == "original" { "echo-request" } else { "echo-reply" },
            syn: state == "new",
        }
    }

    /// What a packet's headers give for fields joined by dots; nothing for addresses of the other family.
    fn key(&self, fields: &str) -> Option<String> {
        let (src, dst) = self.ends();
        let (from, to) = (self.flow.src_port, self.flow.dst_port);
        let (sport, dport) = if self.direction == "original" { (from, to) } else { (to, from) };
        assert!(matches!(self.flow.protocol, 6 | 17), "only TCP and UDP have their ports there");
        let values = fields.split(" . ").map(|field| match field.split_once(' ').unwrap() {
            ("meta", "l4proto") => Some(self.flow.protocol.to_string()),
            ("th", "sport") => Some(sport.to_string()),
            ("th", "dport") => Some(dport.to_string()),
            (family, end) => {
                let address = if end == "saddr" { src } else { dst };
                (address.is_ipv4() == (family == "ip")).then(|| address.to_string())
            }
        });
        values.collect::<Option<Vec<String>>>().map(|values| values.join(" "))
    }

    fn ends(&self) -> (IpAddr, IpAddr) {
        let (from, to) = (self.flow.src, self.flow.dst);
        if self.direction == "original" { (from, to) } else { (to, from) }
    }
}

/// How a packet fares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Accept,
    Drop,
    Refuse,
}

/// The script, taken apart.
struct Ruleset {
    chains: HashMap<String, Vec<String>>,
    sets: HashMap<String, Vec<String>>,
    /// What packets put into dynamic sets, by the set's name.
    memory: RefCell<HashMap<String, HashSet<String>>>,
}

impl Ruleset {
    fn read(script: &str) -> Self {
        let mut found = Self { chains: HashMap::new(), sets: HashMap::new(), memory: RefCell::new(HashMap::new()) };
        let mut open = String::new();
        for line in script.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("chain ") {
                open = name.trim_end_matches(" {").to_owned();
                found.chains.insert(open.clone(), Vec::new());
            } else if let Some(set) = line.strip_prefix("set ") {
                let (name, rest) = set.split_once(' ').unwrap();
                if rest.contains("flags dynamic") {
                    found.memory.borrow_mut().insert(name.to_owned(), HashSet::new());
                    continue;
                }
                let elements = rest.split_once("elements = { ").unwrap().1.trim_end_matches(" } }");
                found.sets.insert(name.to_owned(), elements.split(", ").map(str::to_owned).collect());
            } else if line != "}" && !line.starts_with("table ") && !line.starts_with("delete ") {
                found.chains.get_mut(&open).unwrap().push(line.to_owned());
            }
        }
        found
    }

    /// What happens to a packet, and the comment of the line that decides. The hooks' chains accept in the end.
    fn judge(&self, packet: &Packet) -> (Fate, String) {
        self.chain(packet.hook, packet).unwrap_or_else(|| (Fate::Accept, String::new()))
    }

    fn chain(&self, name: &str, packet: &Packet) -> Option<(Fate, String)> {
        for line in &self.chains[name] {
            if line.starts_with("type filter hook") {
                assert!(line.ends_with("policy accept;"));
                continue;
            }
            let (text, comment) = line.split_once(" comment ").unwrap_or((line, ""));
            let comment = comment.trim_matches('"').to_owned();
            let mut words = text.split_whitespace();
            if let Some((_, log)) = text.split_once("log ") {
                assert!(log.starts_with("prefix \"overlayd ") && log.ends_with(": \" level info"), "{line}");
                continue;
            }
            match self.line(&mut words, packet) {
                None => {}
                Some(("accept", _)) => return Some((Fate::Accept, comment)),
                Some(("drop", _)) => return Some((Fate::Drop, comment)),
                Some(("goto", "refuse")) => return Some((Fate::Refuse, comment)),
                // The end of a chain one went to is the end of the chain one came from.
                Some(("goto", target)) if target.starts_with("allow_") => {
                    assert_eq!(self.chain(target, packet), Some((Fate::Accept, String::new())));
                    return Some((Fate::Accept, comment));
                }
                Some(("goto", target)) => return self.chain(target, packet),
                Some(("jump", target)) => {
                    if let Some(decided) = self.chain(target, packet) {
                        return Some(decided);
                    }
                }
                Some(other) => panic!("{other:?} in {line}"),
            }
        }
        None
    }

    /// The verdict of a line that matches, with the chain it names.
    fn line<'a>(&self, words: &mut impl Iterator<Item = &'a str>, packet: &Packet) -> Option<(&'a str, &'a str)> {
        let ipv4 = packet.flow.src.is_ipv4();
        let ports = matches!(packet.flow.protocol, 6 | 17);
        let (src, dst) = packet.ends();
        loop {
            let word = words.next()?;
            let mut next = || words.next().unwrap();
            let matches = match word {
                "counter" => true,
                "accept" | "drop" => return Some((word, "")),
                "goto" | "jump" => return Some((word, next())),
                "iifgroup" => next() == "42" && packet.hook == "input",
                "oifgroup" => next() == "42" && packet.hook == "output",
                "meta" => match next() {
                    "l4proto" => {
                        let mut rest = words.by_ref().peekable();
                        let negated = rest.next_if_eq(&"!=").is_some();
                        self.any(&mut rest, |value| value.parse() == Ok(packet.flow.protocol)) != negated
                    }
                    "nfproto" => (next() == "ipv4") == ipv4,
                    other => panic!("meta {other}"),
                },
                "icmp" | "icmpv6" => {
                    assert_eq!(next(), "type");
                    let is_icmp = packet.flow.protocol == if word == "icmp" { 1 } else { 58 };
                    let mut rest = words.by_ref().peekable();
                    let negated = rest.next_if_eq(&"!=").is_some();
                    is_icmp && self.any(&mut rest, |value| value == packet.icmp) != negated
                }
                "tcp" => {
                    let condition: Vec<&str> = words.by_ref().take_while(|word| *word != "counter").collect();
                    // Behind it comes a verdict for what opens no connection, or for resets.
                    let flags = condition.join(" ");
                    let rst = condition.last() == Some(&"accept");
                    assert!(rst || flags == "flags & (fin | syn | rst | ack) != syn", "{flags}");
                    if rst {
                        assert_eq!(flags, "flags & rst == rst accept");
                        return None;
                    }
                    packet.flow.protocol == 6 && !packet.syn
                }
                "ip" | "ip6" => {
                    let field = next();
                    let address = if field == "saddr" { src } else { dst };
                    let mut rest = words.by_ref().peekable();
                    if rest.peek() == Some(&".") {
                        let (key, set) = rest.by_ref().fold((format!("{word} {field}"), ""), |(key, set), word| {
                            match word.strip_prefix('@') {
                                Some(set) => (key, set),
                                None => (format!("{key} {word}"), set),
                            }
                        });
                        let key = key.strip_suffix(" accept").expect("a flow that is known passes");
                        let known = packet.key(key).is_some_and(|key| self.memory.borrow()[set].contains(&key));
                        return known.then_some(("accept", ""));
                    }
                    ipv4 == (word == "ip") && self.any(&mut rest, |value| holds(value, address))
                }
                "add" => {
                    let set = next().strip_prefix('@').unwrap();
                    let key: Vec<&str> = words.by_ref().filter(|word| !matches!(*word, "{" | "}")).collect();
                    if let Some(key) = packet.key(&key.join(" ")) {
                        self.memory.borrow_mut().get_mut(set).unwrap().insert(key);
                    }
                    return None;
                }
                "ct" => match next() {
                    "state" => self.any(words, |value| value == packet.state),
                    "direction" => next() == packet.direction,
                    // No packet of these tests was sent to a published port.
                    "status" => false,
                    "original" => {
                        let family = next();
                        assert_eq!(next(), "saddr");
                        ipv4 == (family == "ip") && self.any(words, |value| holds(value, packet.flow.src))
                    }
                    "reply" => match next() {
                        "proto-src" => ports && self.any(words, |value| in_range(value, packet.flow.dst_port)),
                        family => {
                            assert_eq!(next(), "saddr");
                            ipv4 == (family == "ip") && self.any(words, |value| holds(value, packet.flow.dst))
                        }
                    },
                    other => panic!("ct {other}"),
                },
                other => panic!("{other}"),
            };
            if !matches {
                return None;
            }
        }
    }

    /// Whether any value of a list, a named set or a single value is the one.
    fn any<'a>(&self, words: &mut impl Iterator<Item = &'a str>, is: impl Fn(&str) -> bool) -> bool {
        match words.next().unwrap() {
            "{" => {
                let list: Vec<&str> = words.take_while(|word| *word != "}").collect();
                list.iter().any(|word| is(word.trim_end_matches(',')))
            }
            word => match word.strip_prefix('@') {
                Some(set) => self.sets[set].iter().any(|element| is(element)),
                None => is(word),
            },
        }
    }
}

fn holds(value: &str, address: IpAddr) -> bool {
    if let Some((first, last)) = value.split_once('-') {
        let (first, last): (IpAddr, IpAddr) = (first.parse().unwrap(), last.parse().unwrap());
        return first <= address && address <= last;
    }
    match value.parse::<Prefix>() {
        Ok(prefix) => prefix.contains(address),
        Err(_) => value.parse::<IpAddr>().unwrap() == address,
    }
}

fn in_range(value: &str, port: u16) -> bool {
    let (first, last) = value.split_once('-').unwrap_or((value, value));
    (first.parse().unwrap()..=last.parse().unwrap()).contains(&port)
}

/// Every packet of a flow must fare as the compiled policy says of the flow, and by the same rule unless it is of a flow
/// that is known to be allowed.
fn check(set: &PolicySet, ruleset: &Ruleset, compiled: &CompiledPolicy, flow: Tuple, way: HostWay) {
    let (from, to) = match way {
        HostWay::ToHost => (End::Member, End::Host),
        HostWay::ToContainer => (End::Host, End::Member),
    };
    let decision = compiled.decide(&flow, from, to);
    let fate = match decision.action {
        Action::Allow => Fate::Accept,
        Action::Deny => Fate::Drop,
        Action::Reject => Fate::Refuse,
    };
    let comment = match decision.by {
        DecidedBy::Rule(place) => match &set.rules[place as usize].options.name {
            Some(name) => format!("rule {} {name}", place + 1),
            None => format!("rule {}", place + 1),
        },
        DecidedBy::Default(_) => "default".to_owned(),
        DecidedBy::Labels { .. } => panic!("a host knows the labels of its containers: {decision:?}"),
    };
    for (state, direction) in [("new", "original"), ("established", "original"), ("established", "reply")] {
        let packet = Packet::of(flow, way, state, direction);
        let (found, by) = ruleset.judge(&packet);
        assert_eq!(found, fate, "{packet:?} by {by}\n{set}");
        assert!(by == comment || (by.is_empty() && fate == Fate::Accept), "{packet:?} by {by}, not {comment}\n{set}");
    }
}

fn container_v4() -> impl Strategy<Value = IpAddr> {
    (2u8..250).prop_map(|last| IpAddr::V4(Ipv4Addr::new(10, 42, 1, last)))
}

fn container_v6() -> impl Strategy<Value = IpAddr> {
    (2u16..8).prop_map(|last| IpAddr::V6(Ipv6Addr::new(0xfd42, 0, 0, 1, 0, 0, 0, last)))
}

/// An address of a container and one of the host.
fn pair() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let host_v4 = prop_oneof![Just("10.42.1.1"), Just(NIC), Just("172.17.0.1"), Just("10.42.2.1")];
    let host_v6 = prop_oneof![Just("fd42:0:0:1::1"), Just("2001:db8::1")];
    prop_oneof![
        (container_v4(), host_v4.prop_map(|text| text.parse().unwrap())),
        (container_v6(), host_v6.prop_map(|text| text.parse().unwrap())),
    ]
}

fn selector() -> impl Strategy<Value = Selector> {
    let near = prop_oneof![container_v4(), container_v6(), pair().prop_map(|(_, host)| host)];
    prop_oneof![
        3 => Just(Selector::Any),
        6 => (near, 0u8..=32).prop_map(|(ip, cut)| {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            Selector::Prefix(Prefix::truncating(ip, bits - cut).unwrap())
        }),
        1 => Just(Selector::Prefix("::/0".parse().unwrap())),
        2 => prop_oneof![Just("h1"), Just("h2"), Just("nobody")].prop_map(|name| Selector::Host(name.to_owned())),
        1 => Just(Selector::Label { key: "app".to_owned(), value: "web".to_owned() }),
    ]
}

fn options() -> impl Strategy<Value = RuleOptions> {
    (any::<bool>(), any::<bool>(), any::<bool>(), prop_oneof![Just(None), Just(Some("web.1".to_owned()))])
        .prop_map(|(log, count, audit, name)| RuleOptions { log, count, audit, name })
}

prop_compose! {
    fn rule()(
        action in prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Reject)],
        protocol in prop_oneof![
            Just(Protocol::Any), Just(Protocol::TCP), Just(Protocol::UDP), Just(Protocol::ICMP),
            Just(Protocol::ICMPV6), Just(Protocol::Number(132)),
        ],
        ports in proptest::collection::vec((1u16..60, 0u16..8), 0..4),
        from in selector(),
        to in selector(),
        options in options(),
    ) -> Rule {
        let range = |(first, more): (u16, u16)| PortRange::new(first, first + more).unwrap();
        let ports = if protocol.has_ports() { ports.into_iter().map(range).collect() } else { Vec::new() };
        Rule { action, protocol, ports, from, to, options }
    }
}

proptest! {
    #[test]
    fn every_packet_of_a_flow_fares_as_the_compiled_policy_says(
        rules in proptest::collection::vec(rule(), 0..30),
        default in prop_oneof![Just(DefaultPolicy::Open), Just(DefaultPolicy::Members), Just(DefaultPolicy::Deny)],
        flows in proptest::collection::vec(
            (pair(), any::<bool>(), prop_oneof![Just(1u8), Just(6), Just(17), Just(132)], 0u16..70), 1..60,
        ),
    ) {
        let set = PolicySet { default, rules };
        let compiled = CompiledPolicy::compile(&set, &known());
        let ruleset = Ruleset::read(&script_of(&set));
        for ((container, host), opened_by_host, protocol, port) in flows {
            let (way, src, dst) = if opened_by_host {
                (HostWay::ToContainer, host, container)
            } else {
                (HostWay::ToHost, container, host)
            };
            let protocol = if protocol == 1 && src.is_ipv6() { 58 } else { protocol };
            let dst_port = if matches!(protocol, 6 | 17) { port } else { 0 };
            let flow = Tuple { src, dst, protocol, src_port: 40_000, dst_port };
            check(&set, &ruleset, &compiled, flow, way);
        }
    }
}

fn flow(src: &str, dst: &str, protocol: u8, dst_port: u16) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), protocol, src_port: 40_000, dst_port }
}

#[test]
fn what_no_rule_can_allow_opens_no_flow() {
    let ruleset = Ruleset::read(&script_of(&"allow any from any to any".parse().unwrap()));
    let new = |flow, way| Packet::of(flow, way, "new", "original");
    let fate = |packet: Packet| ruleset.judge(&packet).0;
    let container = "10.42.1.4";
    assert_eq!(fate(new(flow(container, NIC, 6, 22), HostWay::ToHost)), Fate::Accept);
    for (src, dst, protocol) in [
        (container, "127.0.0.1", 6),
        (container, "169.254.169.254", 6),
        ("fd42:0:0:1::4", "fe80::1", 6),
        (container, NIC, 47),
        (container, NIC, 58),
        ("fd42:0:0:1::4", "fd42:0:0:1::1", 1),
    ] {
        assert_eq!(fate(new(flow(src, dst, protocol, 0), HostWay::ToHost)), Fate::Drop, "{src} {dst} {protocol}");
    }
    assert_eq!(fate(new(flow(NIC, "224.0.0.251", 17, 5353), HostWay::ToContainer)), Fate::Drop);
    let tcp = new(flow(container, NIC, 6, 22), HostWay::ToHost);
    assert_eq!(fate(Packet { syn: false, ..tcp }), Fate::Drop, "a segment in mid-stream");
    assert_eq!(fate(Packet { state: "invalid", ..tcp }), Fate::Drop);
    assert_eq!(fate(Packet { state: "untracked", ..tcp }), Fate::Drop);
    let timestamp = new(flow(container, NIC, 1, 0), HostWay::ToHost);
    assert_eq!(fate(Packet { icmp: "timestamp-request", ..timestamp }), Fate::Drop);
}

#[test]
fn allowed_flow_is_known_in_both_directions_and_to_its_own_way_only() {
    let ruleset = Ruleset::read(&script_of(&"allow any from any to any".parse().unwrap()));
    let flow = flow("10.42.1.4", NIC, 6, 22);
    let by = |flow, way, state, direction| ruleset.judge(&Packet::of(flow, way, state, direction)).1;
    assert_eq!(by(flow, HostWay::ToHost, "new", "original"), "rule 1");
    assert_eq!(by(flow, HostWay::ToHost, "established", "reply"), "");
    assert_eq!(by(flow, HostWay::ToHost, "established", "original"), "");
    assert_eq!(by(flow.reversed(), HostWay::ToContainer, "established", "original"), "rule 1");
    assert_eq!(by(Tuple { src_port: 1, ..flow }, HostWay::ToHost, "established", "reply"), "rule 1");
    assert_eq!(by(Tuple { src_port: 1, ..flow }, HostWay::ToHost, "established", "original"), "");
}

#[test]
fn errors_pass_with_a_flow_from_containers_and_always_from_the_host() {
    let ruleset = Ruleset::read(&script_of(&"default deny".parse().unwrap()));
    let error = |hook, state| {
        let packet = Packet::of(flow("10.42.1.4", NIC, 1, 0), HostWay::ToHost, state, "reply");
        ruleset.judge(&Packet { hook, icmp: "time-exceeded", ..packet }).0
    };
    assert_eq!(error("input", "related"), Fate::Accept);
    assert_eq!(error("input", "new"), Fate::Drop);
    assert_eq!(error("output", "related"), Fate::Accept);
    assert_eq!(error("output", "invalid"), Fate::Accept, "about a packet on its way to the TUN");
}

#[test]
fn rule_that_logs_does_so_once_for_a_flow_it_allows_and_for_each_packet_it_refuses() {
    let text = script_of(
        &"allow tcp/22 from 10.42.1.4 to any log name ssh\nreject tcp from any to any audit\ndeny udp from any to any"
            .parse()
            .unwrap(),
    );
    for expected in [
        "    meta l4proto 6 ct reply proto-src 22 ct original ip saddr 10.42.1.4/32 ct state new limit rate 10/second burst \
         20 packets log prefix \"overlayd rule 1 ssh allow: \" level info\n    meta l4proto 6 ct reply proto-src 22 ct \
         original ip saddr 10.42.1.4/32 counter goto allow_container_to_host comment \"rule 1 ssh\"\n",
        "    meta l4proto 6 limit rate 10/second burst 20 packets log prefix \"overlayd audit rule 2 reject: \" level \
         info\n    meta l4proto 6 counter goto refuse comment \"rule 2\"\n    meta l4proto 17 counter drop comment \
         \"rule 3\"\n",
    ] {
        assert!(text.contains(expected), "{expected}\nis missing in\n{text}");
    }
}

#[test]
fn equal_lists_are_one_set() {
    let set: PolicySet = "allow tcp/80,443 from host:h1 to any\nallow udp/443,80 from host:h1 to any".parse().unwrap();
    let text = script_of(&set);
    assert_eq!(text.matches("  set list").count(), 2, "{text}");
    for set in [
        "type ipv4_addr; flags interval; elements = { 10.42.1.0/24, 192.0.2.0/24 } }",
        "type inet_service; flags interval; elements = { 80, 443 } }",
    ] {
        assert_eq!(text.matches(set).count(), 1, "{set} in {text}");
    }
}

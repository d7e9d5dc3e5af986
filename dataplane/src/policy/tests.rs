//! The compiled filter against a plain walk over the rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_wire::policy::{PortRange, Protocol, RuleOptions};
use proptest::prelude::*;

use super::*;
use crate::testing::{Known, LABELS, identities, ip, prefix};

fn hosts(name: &str) -> Option<Vec<Prefix>> {
    let list: &[&str] = match name {
        "h1" => &["10.42.1.0/24", "fd42:0:0:1::/64"],
        "h2" => &["10.42.2.0/24"],
        "empty" => &[],
        _ => return None,
    };
    Some(list.iter().map(|text| text.parse().expect("a valid prefix in a test")).collect())
}

fn policy(text: &str) -> CompiledPolicy {
    CompiledPolicy::compile(&text.parse().expect("a valid policy in a test"), &hosts)
}

fn tuple(src: &str, dst: &str, protocol: u8, dst_port: u16) -> Tuple {
    Tuple { src: ip(src), dst: ip(dst), protocol, src_port: 40000, dst_port }
}

/// The meaning of the language: the first rule in order that matches, word by word.
fn walk(set: &PolicySet, tuple: &Tuple) -> Option<u32> {
    let inside = |selector: &Selector, ip: IpAddr| match selector {
        Selector::Any => true,
        Selector::Prefix(prefix) => prefix.contains(ip),
        Selector::Host(name) => hosts(name).is_some_and(|list| list.iter().any(|prefix| prefix.contains(ip))),
        Selector::Label { .. } | Selector::Service(_) | Selector::Network(_) => false,
    };
    let position = set.rules.iter().position(|rule| {
        rule.protocol.matches(tuple.protocol)
            && (rule.ports.is_empty() || rule.ports.iter().any(|range| range.contains(tuple.dst_port)))
            && inside(&rule.from, tuple.src)
            && inside(&rule.to, tuple.dst)
    });
    position.map(|place| u32::try_from(place).expect("few rules"))
}

#[test]
fn first_match_decides_then_the_default() {
    let policy = policy(
        "deny tcp/22 from 10.42.1.0/24 to any\nallow tcp/20-30 from any to host:h2\nreject any from any to 10.42.2.9\n\
         default members",
    );
    let decide = |t: Tuple| policy.decide(&t, End::Member, End::Member);
    let rule = |action, place| Decision { action, by: DecidedBy::Rule(place) };
    assert_eq!(decide(tuple("10.42.1.5", "10.42.2.9", 6, 22)), rule(Action::Deny, 0));
    assert_eq!(decide(tuple("10.42.3.5", "10.42.2.9", 6, 22)), rule(Action::Allow, 1));
    assert_eq!(decide(tuple("10.42.3.5", "10.42.2.9", 17, 22)), rule(Action::Reject, 2));
    let by_default = Decision { action: Action::Allow, by: DecidedBy::Default(Grounds::Members) };
    assert_eq!(decide(tuple("10.42.3.5", "10.42.2.8", 17, 22)), by_default);
}

#[test]
fn rules_that_cannot_match_give_warnings_and_match_nothing() {
    let policy = policy(
        "allow any from app=web to any\nallow any from any to service:db\nallow any from host:nobody to any\n\
         allow any from host:h2 to fd42::/48\nallow tcp/80-90 from any to any\nallow tcp/85 from host:h1 to any\n\
         default deny",
    );
    let texts: Vec<String> = policy.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "rule 2: `service:db` matches nothing in this version; use a prefix, label=value, host:NAME or net:NAME",
            "rule 3: no member is named `nobody`, so the rule matches nothing",
            "rule 4: source and destination have no address family in common, so the rule matches nothing",
            "rule 6: never decides, because rule 5 already matches all it matches",
        ]
    );
    assert!(!policy.decide(&tuple("10.42.1.1", "10.42.2.1", 17, 1), End::Member, End::Member).allows());
}

#[test]
fn ten_thousand_rules_find_the_last() {
    let rules: Vec<String> = (0..10_000)
        .map(|n| format!("allow tcp/{} from 10.{}.{}.0/24 to any", n % 60_000 + 1, n / 256, n % 256))
        .collect();
    let policy = policy(&format!("{}\ndefault deny", rules.join("\n")));
    let decision = policy.decide(&tuple("10.39.15.7", "192.0.2.1", 6, 10_000), End::Member, End::Outside);
    assert_eq!(decision.by, DecidedBy::Rule(9999));
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..2048).prop_map(|bits| IpAddr::V4(Ipv4Addr::from(0x0a2a_0000 + bits))),
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        (0u128..4, 0u128..4)
            .prop_map(|(net, host)| IpAddr::V6(Ipv6Addr::from((0xfd42u128 << 112) | (net << 64) | host))),
    ]
}

fn any_selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        2 => Just(Selector::Any),
        6 => (any_ip(), 8u8..=32).prop_map(|(ip, len)| Selector::Prefix(Prefix::truncating(ip, len).expect("length fits"))),
        1 => prop_oneof![Just("h1"), Just("h2"), Just("nobody")].prop_map(|name| Selector::Host(name.to_owned())),
        1 => Just(Selector::Service("x".to_owned())),
    ]
}

prop_compose! {
    fn any_rule()(
        action in prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Reject)],
        protocol in prop_oneof![Just(Protocol::Any), Just(Protocol::TCP), Just(Protocol::UDP), Just(Protocol::ICMP)],
        ports in proptest::collection::vec((1u16..100, 1u16..100), 0..3),
        from in any_selector(),
        to in any_selector(),
    ) -> Rule {
        let range = |(a, b): (u16, u16)| PortRange::new(a.min(b), a.max(b)).expect("ordered");
        let ports = if protocol.has_ports() { ports.into_iter().map(range).collect() } else { Vec::new() };
        Rule { action, protocol, ports, from, to, options: RuleOptions::default() }
    }
}

/// Addresses with labels, without, and of hosts that have not told.
const LABELLED: [&str; 7] = ["10.42.1.5", "10.42.1.6", "10.42.1.7", "10.42.2.5", "10.42.2.6", "10.42.2.9", "10.42.3.9"];

fn any_end() -> impl Strategy<Value = Selector> {
    let label = |value: &str| Selector::Label { key: "role".to_owned(), value: value.to_owned() };
    prop_oneof![
        2 => Just(Selector::Any),
        3 => prop_oneof![Just("web"), Just("db"), Just("nobody")].prop_map(label),
        1 => Just(Selector::Prefix(prefix("10.42.2.0/24"))),
    ]
}

/// What the rules say, read one after the other: the action, and whether labels are missing for it.
fn perhaps(set: &PolicySet, tuple: &Tuple) -> (Action, bool) {
    let identities = identities(&LABELS);
    let matches = |selector: &Selector, address: IpAddr| match selector {
        Selector::Any => Some(true),
        Selector::Prefix(prefix) => Some(prefix.contains(address)),
        Selector::Label { key, value } => Some(identities.labels(address)?.get(key) == Some(value)),
        Selector::Host(_) | Selector::Network(_) | Selector::Service(_) => Some(false),
    };
    let mut open = Vec::new();
    let by_default = if set.default == DefaultPolicy::Open { Action::Allow } else { Action::Deny };
    let mut last = by_default;
    for rule in &set.rules {
        let ports = rule.ports.is_empty() || rule.ports.iter().any(|range| range.contains(tuple.dst_port));
        if !rule.protocol.matches(tuple.protocol) || !ports {
            continue;
        }
        match (matches(&rule.from, tuple.src), matches(&rule.to, tuple.dst)) {
            (Some(false), _) | (_, Some(false)) => {}
            (Some(true), Some(true)) => {
                last = rule.action;
                break;
            }
            _ => open.push(rule.action),
        }
    }
    if open.iter().all(|action| *action == last) { (last, false) } else { (Action::Deny, true) }
}

proptest! {
    #[test]
    fn compiled_equals_walk(
        rules in proptest::collection::vec(any_rule(), 0..90),
        tuples in proptest::collection::vec(
            (any_ip(), any_ip(), prop_oneof![Just(1u8), Just(6), Just(17), Just(58), Just(132)], 0u16..110),
            1..60,
        ),
    ) {
        let set = PolicySet { default: DefaultPolicy::Deny, rules };
        let compiled = CompiledPolicy::compile(&set, &hosts);
        for (src, dst, protocol, dst_port) in tuples {
            if src.is_ipv4() != dst.is_ipv4() {
                continue;
            }
            let tuple = Tuple { src, dst, protocol, src_port: 0, dst_port };
            prop_assert_eq!(compiled.matcher.look(&tuple, LabelUse::Count).first(0), walk(&set, &tuple));
        }
    }

    #[test]
    fn compiled_labels_equal_walk(
        rules in proptest::collection::vec((any_rule(), any_end(), any_end()), 0..60),
        ends in proptest::collection::vec((0..LABELLED.len(), 0..LABELLED.len()), 1..20),
        default in prop_oneof![Just(DefaultPolicy::Deny), Just(DefaultPolicy::Open)],
    ) {
        let rules = rules.into_iter().map(|(rule, from, to)| Rule { from, to, ..rule }).collect();
        let set = PolicySet { default, rules };
        let compiled = CompiledPolicy::compile(&set, &Known(identities(&LABELS)));
        for (src, dst) in ends {
            let tuple = Tuple { src: ip(LABELLED[src]), dst: ip(LABELLED[dst]), protocol: 6, src_port: 0, dst_port: 50 };
            let decision = compiled.decide(&tuple, End::Member, End::Member);
            prop_assert_eq!(decision.action, perhaps(&set, &tuple).0, "{:?}", decision);
            prop_assert_eq!(decision.missing().is_some(), perhaps(&set, &tuple).1, "{:?}", decision);
        }
    }
}

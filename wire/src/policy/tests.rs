//! Round trips, error texts, and arbitrary input.

use proptest::prelude::*;

use super::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> String {
    text.parse::<Rule>().expect_err(text).to_string()
}

#[test]
fn canonical_texts_print_as_written() {
    for text in [
        "allow tcp/443 from 10.42.1.0/24 to any",
        "deny any from any to fd42::/48",
        "reject udp/53,1000-2000 from app=web to service:dns log count audit name dns-1",
        "allow icmp from host:h1 to host:h2",
        "allow icmpv6 from any to any name x",
        "deny 132 from any to any",
    ] {
        assert_eq!(rule(text).to_string(), text);
    }
}

#[test]
fn other_spellings_print_canonically() {
    assert_eq!(rule("  allow\t6/80-80 from 10.0.0.1  to any").to_string(), "allow tcp/80 from 10.0.0.1/32 to any");
    assert_eq!(rule("deny 17 from any to fd42::1 audit log").to_string(), "deny udp from any to fd42::1/128 log audit");
}

#[test]
fn errors_name_the_word_and_what_was_expected() {
    for (text, expected) in [
        ("", "the rule ends after word 0, expected allow, deny or reject"),
        ("permit tcp from any to any", "word 1: found `permit`, expected allow, deny or reject"),
        (
            "allow tpc from any to any",
            "word 2: found `tpc`, expected any, tcp, udp, icmp, icmpv6 or a protocol number from 0 to 255",
        ),
        (
            "allow 256 from any to any",
            "word 2: found `256`, expected any, tcp, udp, icmp, icmpv6 or a protocol number from 0 to 255",
        ),
        (
            "allow tcp/0 from any to any",
            "word 2: `0` is not a port or range; expected PORT or PORT-PORT from 1 to 65535, low first",
        ),
        (
            "allow tcp/90-80 from any to any",
            "word 2: `90-80` is not a port or range; expected PORT or PORT-PORT from 1 to 65535, low first",
        ),
        (
            "allow tcp/ from any to any",
            "word 2: `` is not a port or range; expected PORT or PORT-PORT from 1 to 65535, low first",
        ),
        ("allow icmp/8 from any to any", "word 2: `icmp` takes no ports; ports go with tcp or udp, as in tcp/443"),
        ("allow tcp", "the rule ends after word 2, expected from SELECTOR"),
        ("allow tcp to any from any", "word 3: found `to`, expected from SELECTOR"),
        ("allow tcp from 10.0.0.1/24 to any", "word 4: host bits are set in 10.0.0.1/24; the network is 10.0.0.0/24"),
        (
            "allow tcp from web to any",
            "word 4: found `web`, expected any, a prefix, an address, label=value, host:NAME, net:NAME or service:NAME",
        ),
        ("allow tcp from any to any log log", "word 8: `log` is given twice"),
        (
            "allow tcp from any to any name",
            "the rule ends after word 7, expected a name with letters, digits, dot, dash and underscore",
        ),
        (
            "allow tcp from any to any fast",
            "word 7: found `fast`, expected log, count, audit, name NAME or the end of the rule",
        ),
        (
            "allow tcp from 10.0.0.0/8 to fd42::/48",
            "`from` and `to` are of different address families; no packet can match",
        ),
    ] {
        assert_eq!(error(text), expected, "for {text}");
    }
}

#[test]
fn limits_are_held() {
    let ports = |count: usize| (1..=count).map(|p| p.to_string()).collect::<Vec<_>>().join(",");
    assert!(format!("allow tcp/{} from any to any", ports(64)).parse::<Rule>().is_ok());
    assert!(error(&format!("allow tcp/{} from any to any", ports(65))).contains("65 port ranges"));
    assert!(error(&"x".repeat(MAX_RULE_BYTES + 1)).contains("2049 bytes"));
    assert!(format!("allow tcp from host:{} to any", "a".repeat(63)).parse::<Rule>().is_ok());
    assert!(format!("allow tcp from host:{} to any", "a".repeat(64)).parse::<Rule>().is_err());
}

#[test]
fn set_text_holds_comments_and_default() {
    let text = "# head\nallow tcp/22 from any to any # ssh\n\ndefault deny\n";
    let set: PolicySet = text.parse().expect("a valid policy");
    assert_eq!(set.to_string(), "allow tcp/22 from any to any\ndefault deny\n");
    assert_eq!(set.to_string().parse(), Ok(set));
    let error = "default deny\ndefault open".parse::<PolicySet>().expect_err("two defaults");
    assert_eq!(error.to_string(), "line 2: `default` is given twice");
    let error = "\ndefault closed".parse::<PolicySet>().expect_err("no such default");
    assert_eq!(error.to_string(), "line 2: `closed` is not a default policy; expected open, members or deny");
    let error = "allow tcp from any to any\nallow".parse::<PolicySet>().expect_err("incomplete rule");
    assert!(error.to_string().starts_with("line 2: the rule ends"));
}

pub(crate) fn any_selector() -> impl Strategy<Value = Selector> {
    let name = "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}";
    prop_oneof![
        Just(Selector::Any),
        (any::<std::net::IpAddr>(), 0u8..=32)
            .prop_map(|(a, l)| Selector::Prefix(Prefix::truncating(a, l).expect("short"))),
        ("[a-z][a-z/]{0,9}", name).prop_map(|(key, value)| Selector::Label { key, value }),
        name.prop_map(Selector::Host),
        name.prop_map(Selector::Network),
        name.prop_map(Selector::Service),
    ]
}

prop_compose! {
    fn any_rule()(
        action in prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Reject)],
        protocol in prop_oneof![Just(Protocol::Any), Just(Protocol::TCP), Just(Protocol::UDP), any::<u8>().prop_map(Protocol::Number)],
        ports in proptest::collection::vec((1u16.., 1u16..), 0..5),
        from in any_selector(),
        to in any_selector(),
        (log, count, audit) in any::<(bool, bool, bool)>(),
        name in proptest::option::of("[a-z0-9][a-z0-9._-]{0,20}"),
    ) -> Rule {
        let ports = if protocol.has_ports() {
            ports.into_iter().map(|(a, b)| PortRange::new(a.min(b), a.max(b)).expect("ordered")).collect()
        } else {
            Vec::new()
        };
        Rule { action, protocol, ports, from, to, options: RuleOptions { log, count, audit, name } }
    }
}

fn families_agree(rule: &Rule) -> bool {
    !matches!((&rule.from, &rule.to), (Selector::Prefix(a), Selector::Prefix(b)) if a.is_ipv4() != b.is_ipv4())
}

proptest! {
    #[test]
    fn printed_rule_parses_back(rule in any_rule().prop_filter("one family", families_agree)) {
        prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = text.parse::<Rule>();
        let _ = text.parse::<PolicySet>();
    }

    #[test]
    fn shuffled_words_never_panic_and_round_trip_when_accepted(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "allow", "deny", "reject", "tcp", "tcp/80", "udp/1-2,3", "any", "from", "to", "10.0.0.0/8", "a=b",
                "host:x", "service:", "log", "name", "::/0", "999", "-", "/", "=", "tcp/1-", "tcp/,", "host:é",
            ]),
            0..12,
        )
    ) {
        if let Ok(rule) = words.join(" ").parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }
}

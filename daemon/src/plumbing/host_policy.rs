//! The nft table `inet NAME-host`: the policy between this host and its own containers, as text.
//!
//! Every packet of a flow asks the rules, in both directions: the rules look at the flow's tuple in the kernel's connection
//! tracking (`ct original`, `ct reply`), not at the packet, so one list serves both and a changed list holds for the next
//! packet of every live flow. No line lets an established flow pass unasked. The reply tuple's source is the destination
//! after a translation, which is what the filter's rules speak of.
//!
//! A walk over many rules is slow, so flows that were allowed are remembered for a while in sets of this table, by all that
//! a rule can look at and by who opened them. The table is replaced whole, in one transaction, and the memory goes with it.
//! It is apart from `inet NAME`, so that attaching a container does not load the policy again.
//!
//! Lists of prefixes or ports are named sets, one for all rules with the same list: thousands of anonymous sets take the
//! kernel many seconds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use overlay_dataplane::{Addresses, HostPolicy, HostRule, HostWay};
use overlay_wire::Prefix;
use overlay_wire::policy::{Action, PortRange, Protocol};

use super::PlumbingConfig;
use super::nft::line;

/// Flows of one family and way that are remembered as allowed; about 100 bytes each. Others walk the rules.
const REMEMBERED: u32 = 16_384;
/// How long a flow is remembered before the rules are asked again.
const REMEMBERED_FOR: &str = "30s";

/// Lines of the kernel's log that one rule may write: per second, and at once.
const LOG_RATE: &str = "limit rate 10/second burst 20 packets";

/// ICMP messages that report an error, by family. The kernel finds the flow they are about.
const ERRORS: [&str; 2] = [
    "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
    "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
];

/// Addresses that never belong on the overlay, as in the packet path: unspecified, loopback, link-local (with metadata),
/// multicast and reserved; for IPv6 also embedded IPv4, discard-only, a metadata service, and site-local.
const NEVER: [(&str, &str); 2] = [
    ("ip", "{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 }"),
    ("ip6", "{ ::/80, 100::/64, fd00:ec2::254, fe80::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff }"),
];

/// The name of the table. A hyphen is in no configured name, so it is nobody else's.
#[must_use]
pub fn table(config: &PlumbingConfig) -> String {
    format!("{}-host", config.nft_table)
}

/// The whole script that installs the table.
#[must_use]
pub fn script(config: &PlumbingConfig, policy: &HostPolicy) -> String {
    let name = table(config);
    let mut sets = Sets::default();
    let mut chains = String::new();
    for way in HostWay::ALL {
        policy_chain(&mut chains, &mut sets, policy, way);
    }
    let mut text = String::with_capacity(4096 + chains.len());
    // Adding first makes the deletion succeed on a host that has no such table.
    line(&mut text, 0, format_args!("table inet {name}"));
    line(&mut text, 0, format_args!("delete table inet {name}"));
    line(&mut text, 0, format_args!("table inet {name} {{"));
    sets.write(&mut text);
    // A chain is there before one that leads to it.
    refusal(&mut text);
    for way in HostWay::ALL {
        memory(&mut text, way);
    }
    text.push_str(&chains);
    entrances(&mut text, config);
    line(&mut text, 0, format_args!("}}"));
    text
}

fn chain_of(way: HostWay) -> &'static str {
    match way {
        HostWay::ToHost => "container_to_host",
        HostWay::ToContainer => "host_to_container",
    }
}

fn lines(text: &mut String, contents: &[String]) {
    for content in contents {
        line(text, 1, format_args!("{content}"));
    }
}

fn refusal(text: &mut String) {
    let never = NEVER.iter().flat_map(|(family, addresses)| {
        ["saddr", "daddr"]
            .map(|end| format!("  {family} {end} {addresses} counter drop comment \"never on the overlay\""))
    });
    let mut contents = vec![
        "chain refuse {".to_owned(),
        "  meta l4proto tcp reject with tcp reset".to_owned(),
        "  reject with icmpx admin-prohibited".to_owned(),
        "}".to_owned(),
        "chain opening {".to_owned(),
        "  meta l4proto { 4, 41, 47 } counter drop comment \"encapsulation\"".to_owned(),
        "  meta nfproto ipv4 meta l4proto 58 counter drop comment \"ICMP of the other family\"".to_owned(),
        "  meta nfproto ipv6 meta l4proto 1 counter drop comment \"ICMP of the other family\"".to_owned(),
        "  icmp type != echo-request counter drop comment \"only echo opens a flow\"".to_owned(),
        "  icmpv6 type != echo-request counter drop comment \"only echo opens a flow\"".to_owned(),
        "  tcp flags & (fin | syn | rst | ack) != syn counter drop comment \"no connection\"".to_owned(),
    ];
    contents.extend(never);
    contents.push("}".to_owned());
    lines(text, &contents);
}

/// Questions of containers about names, led to the server on this host, and its answers.
fn questions(config: &PlumbingConfig) -> Vec<String> {
    let question = |own: &IpAddr| {
        let family = if own.is_ipv4() { "ip" } else { "ip6" };
        format!(
            "  ct status & dnat == dnat meta l4proto {{ 6, 17 }} ct original {family} daddr {own} ct original proto-dst 53 accept"
        )
    };
    config.host_addresses.iter().map(question).collect()
}

/// The chains at the hooks. Where a packet's flow began decides which rules are asked.
fn entrances(text: &mut String, config: &PlumbingConfig) {
    let neighbours = "  icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";
    let ways = [
        "  ct state { invalid, untracked } counter drop comment \"no connection\"".to_owned(),
        "  ct state { new, related } jump opening".to_owned(),
    ];
    let directions = |original: HostWay, reply: HostWay| {
        [
            format!("  ct direction original goto {}", chain_of(original)),
            format!("  goto {}", chain_of(reply)),
            "}".to_owned(),
        ]
    };
    let mut contents = vec!["chain from_container {".to_owned(), neighbours.to_owned()];
    contents.extend(ERRORS.iter().map(|errors| format!("  ct state related {errors} accept")));
    // To a published port; where this host opened it, it was not seen on its way out.
    contents.push("  ct status & dnat == dnat ct direction reply accept".to_owned());
    contents.extend(questions(config));
    contents.extend(ways.clone());
    contents.extend(directions(HostWay::ToHost, HostWay::ToContainer));
    contents.extend(["chain to_container {".to_owned(), neighbours.to_owned()]);
    // Errors are made by this host's kernel, also about packets that are not tracked; so are resets for refused segments.
    contents.extend(ERRORS.iter().map(|errors| format!("  {errors} accept")));
    contents.push("  ct state related tcp flags & rst == rst accept".to_owned());
    contents.extend(questions(config));
    contents.extend(ways);
    contents.extend(directions(HostWay::ToContainer, HostWay::ToHost));
    for (hook, side, target) in [("input", "iifgroup", "from_container"), ("output", "oifgroup", "to_container")] {
        contents.push(format!("chain {hook} {{"));
        contents.push(format!("  type filter hook {hook} priority filter; policy accept;"));
        contents.push(format!("  {side} {} jump {target}", config.group));
        contents.push("}".to_owned());
    }
    lines(text, &contents);
}

/// The sets that remember allowed flows of one way, the chain that looks into them and the one that adds to them.
///
/// Ports lie at the same place in TCP and UDP; other protocols are not remembered. The headers hold the addresses that the
/// rules speak of at both hooks: translations of a destination are behind, those of a source ahead.
fn memory(text: &mut String, way: HostWay) {
    let chain = chain_of(way);
    let (mut known, mut allowed) = (Vec::new(), Vec::new());
    for (ip, kind, version) in [("ip", "ipv4_addr", 4), ("ip6", "ipv6_addr", 6)] {
        let set = format!("allowed{version}_{chain}");
        line(
            text,
            1,
            format_args!(
                "set {set} {{ type {kind} . {kind} . inet_proto . inet_service . inet_service; size {REMEMBERED}; \
                 flags dynamic,timeout; timeout {REMEMBERED_FOR}; }}"
            ),
        );
        for (direction, [from, to], [from_port, to_port]) in
            [("original", ["saddr", "daddr"], ["sport", "dport"]), ("reply", ["daddr", "saddr"], ["dport", "sport"])]
        {
            let flow = format!("{ip} {from} . {ip} {to} . meta l4proto . th {from_port} . th {to_port}");
            known.push(format!("  ct direction {direction} {flow} @{set} accept"));
            allowed.push(format!("  ct direction {direction} add @{set} {{ {flow} }}"));
        }
    }
    let mut contents = vec![format!("chain known_{chain} {{")];
    contents.extend(known);
    contents.extend(["}".to_owned(), format!("chain allow_{chain} {{")]);
    contents.push("  meta l4proto != { 6, 17 } accept".to_owned());
    contents.extend(allowed);
    // Also where a set is full.
    contents.extend(["  accept".to_owned(), "}".to_owned()]);
    lines(text, &contents);
}

/// The rules for flows of one way, and what happens where none matches.
fn policy_chain(text: &mut String, sets: &mut Sets, policy: &HostPolicy, way: HostWay) {
    let chain = chain_of(way);
    line(text, 1, format_args!("chain {chain} {{"));
    line(text, 2, format_args!("meta l4proto {{ 6, 17 }} jump known_{chain}"));
    for rule in policy.rules(way) {
        rule_lines(text, sets, rule, chain);
    }
    for (family, number) in [("ipv4", 1), ("ipv6", 58)] {
        let verdict = verdict(policy.default_action(way, number), chain);
        let comment = "comment \"default\"";
        line(text, 2, format_args!("meta nfproto {family} meta l4proto {number} counter {verdict} {comment}"));
    }
    // Other protocols are all alike to the default; TCP stands for them.
    let verdict = verdict(policy.default_action(way, 6), chain);
    line(text, 2, format_args!("counter {verdict} comment \"default\""));
    line(text, 1, format_args!("}}"));
}

fn verdict(action: Action, chain: &str) -> String {
    match action {
        Action::Allow => format!("goto allow_{chain}"),
        Action::Deny => "drop".to_owned(),
        Action::Reject => "goto refuse".to_owned(),
    }
}

/// One rule: a line for each family it matches, or one for both, each after a line that logs if the rule asks for it. What
/// most rules differ in comes first.
fn rule_lines(text: &mut String, sets: &mut Sets, rule: &HostRule, chain: &str) {
    let traffic = traffic(sets, rule);
    let verdict = verdict(rule.action, chain);
    let number = rule.number + 1;
    let label = match &rule.options.name {
        Some(name) => format!("rule {number} {name}"),
        None => format!("rule {number}"),
    };
    // An allowed flow is worth one line, a refused packet each.
    let once = if rule.action == Action::Allow { "ct state new " } else { "" };
    let kind = match (rule.options.log, rule.options.audit) {
        (_, true) => Some("audit "),
        (true, false) => Some(""),
        (false, false) => None,
    };
    for ends in ends(sets, rule) {
        if let Some(kind) = kind {
            let action = rule.action.name();
            let log = format!("log prefix \"overlayd {kind}{label} {action}: \" level info");
            line(text, 2, format_args!("{traffic}{ends}{once}{LOG_RATE} {log}"));
        }
        line(text, 2, format_args!("{traffic}{ends}counter {verdict} comment \"{label}\""));
    }
}

/// What a rule asks of protocol and ports; ends with a space unless empty.
fn traffic(sets: &mut Sets, rule: &HostRule) -> String {
    let Protocol::Number(number) = rule.protocol else { return String::new() };
    match rule.ports.as_slice() {
        [] => format!("meta l4proto {number} "),
        [range] => format!("meta l4proto {number} ct reply proto-src {range} "),
        ranges => format!("meta l4proto {number} ct reply proto-src @{} ", sets.ports(ranges)),
    }
}

/// What a rule asks of the two addresses, once per family unless it asks nothing; each ends with a space unless empty.
fn ends(sets: &mut Sets, rule: &HostRule) -> Vec<String> {
    if rule.from == Addresses::Any && rule.to == Addresses::Any {
        return vec![String::new()];
    }
    let mut found = Vec::with_capacity(2);
    for ipv4 in [true, false] {
        if rule.from.has_family(ipv4) && rule.to.has_family(ipv4) {
            let from = end(sets, &rule.from, "original", ipv4);
            let to = end(sets, &rule.to, "reply", ipv4);
            found.push(format!("{from}{to}"));
        }
    }
    found
}

fn end(sets: &mut Sets, addresses: &Addresses, direction: &str, ipv4: bool) -> String {
    let Addresses::Prefixes(prefixes) = addresses else { return String::new() };
    let of_family: Vec<Prefix> = prefixes.iter().copied().filter(|prefix| prefix.is_ipv4() == ipv4).collect();
    let family = if ipv4 { "ip" } else { "ip6" };
    match of_family.as_slice() {
        [] => String::new(),
        // nft makes no comparison of a prefix of length 0, so the family has to be asked for itself.
        [all] if all.len() == 0 => format!("meta nfproto {} ", if ipv4 { "ipv4" } else { "ipv6" }),
        [one] => format!("ct {direction} {family} saddr {one} "),
        list => format!("ct {direction} {family} saddr @{} ", sets.prefixes(list, ipv4)),
    }
}

/// The named sets, by type and content.
#[derive(Debug, Default)]
struct Sets(BTreeMap<(&'static str, String), String>);

impl Sets {
    fn prefixes(&mut self, prefixes: &[Prefix], ipv4: bool) -> String {
        let elements: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
        self.name(if ipv4 { "ipv4_addr" } else { "ipv6_addr" }, elements.join(", "))
    }

    fn ports(&mut self, ranges: &[PortRange]) -> String {
        let elements: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        self.name("inet_service", elements.join(", "))
    }

    fn name(&mut self, kind: &'static str, elements: String) -> String {
        let next = self.0.len();
        self.0.entry((kind, elements)).or_insert_with(|| format!("list{next}")).clone()
    }

    fn write(&self, text: &mut String) {
        for ((kind, elements), name) in &self.0 {
            writeln!(text, "  set {name} {{ type {kind}; flags interval; elements = {{ {elements} }} }}")
                .expect("writing to a String cannot fail");
        }
    }
}

#[cfg(test)]
mod tests;

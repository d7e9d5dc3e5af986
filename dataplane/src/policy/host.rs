//! The part of a policy that can decide between this host and its own containers.
//!
//! Such packets cross the veth directly and never the TUN, so the kernel filters them by rules written from this value.
//! It says the same as [`CompiledPolicy::decide`](super::CompiledPolicy::decide) with this host at one end and one of
//! its containers at the other: same rules, same order, same default.

use overlay_wire::Prefix;
use overlay_wire::policy::{Action, DefaultPolicy, PolicySet, PortRange, Protocol, RuleOptions, Selector};

use super::selector::{Addresses, resolve};
use super::{HostResolver, default};
use crate::path::End;

/// Which end opened a flow between this host and one of its containers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HostWay {
    /// A container opened it.
    ToHost,
    /// The host opened it.
    ToContainer,
}

impl HostWay {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::ToHost, Self::ToContainer];
}

/// A rule with its selectors resolved, without what cannot match a container of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostRule {
    /// The rule's place in the policy, counted from 0.
    pub number: u32,
    /// What happens to a flow that matches.
    pub action: Action,
    /// The protocol that matches.
    pub protocol: Protocol,
    /// Destination ports that match, ascending and apart from each other; empty matches every port.
    pub ports: Vec<PortRange>,
    /// Who opened the flow; no prefix lies inside another.
    pub from: Addresses,
    /// To whom; no prefix lies inside another.
    pub to: Addresses,
    /// The rule's options.
    pub options: RuleOptions,
}

/// What the policy says between this host and its own containers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostPolicy {
    to_host: Vec<HostRule>,
    to_container: Vec<HostRule>,
    default: DefaultPolicy,
}

impl HostPolicy {
    /// Takes from a policy what can decide about this host and containers with addresses in `containers`; `hosts` resolves
    /// `host:NAME`. Any address may be the host's own, so its end of a rule rules nothing out.
    #[must_use]
    pub fn new(set: &PolicySet, hosts: &impl HostResolver, containers: &[Prefix]) -> Self {
        let mut policy = Self { default: set.default, ..Self::default() };
        // They are told by the compiled policy already.
        let mut warnings = Vec::new();
        for (number, (place, rule)) in (0u32..).zip(set.rules.iter().enumerate()) {
            let mut end = |selector: &Selector| {
                let addresses = resolve(selector, place, hosts, &mut warnings)?;
                // Both ends are here, so labels of others' addresses say nothing.
                Some(if matches!(selector, Selector::Label { .. }) {
                    within(&addresses, containers)
                } else {
                    addresses
                })
            };
            let (from, to) = (end(&rule.from), end(&rule.to));
            warnings.clear();
            let (Some(from), Some(to)) = (from, to) else { continue };
            let mut keep = |from: Addresses, to: Addresses, list: fn(&mut Self) -> &mut Vec<HostRule>| {
                if ![true, false].into_iter().any(|ipv4| from.has_family(ipv4) && to.has_family(ipv4)) {
                    return;
                }
                list(&mut policy).push(HostRule {
                    number,
                    action: rule.action,
                    protocol: rule.protocol,
                    ports: joined(&rule.ports),
                    from: from.minimal(),
                    to: to.minimal(),
                    options: rule.options.clone(),
                });
            };
            keep(within(&from, containers), to.clone(), |policy| &mut policy.to_host);
            keep(from, within(&to, containers), |policy| &mut policy.to_container);
        }
        policy
    }

    /// A policy that lets nothing pass.
    #[must_use]
    pub fn closed() -> Self {
        Self { default: DefaultPolicy::Deny, ..Self::default() }
    }

    /// The rules for flows of one way, first match first.
    #[must_use]
    pub fn rules(&self, way: HostWay) -> &[HostRule] {
        match way {
            HostWay::ToHost => &self.to_host,
            HostWay::ToContainer => &self.to_container,
        }
    }

    /// What happens to a flow that no rule matches. ICMP stands for echo, as everywhere in the filter.
    #[must_use]
    pub fn default_action(&self, way: HostWay, protocol: u8) -> Action {
        let (from, to) = match way {
            HostWay::ToHost => (End::Member, End::Host),
            HostWay::ToContainer => (End::Host, End::Member),
        };
        default::decide(self.default, protocol, from, to).0
    }
}

/// What of `addresses` can be a container's.
fn within(addresses: &Addresses, containers: &[Prefix]) -> Addresses {
    match addresses {
        Addresses::Any => Addresses::Any,
        Addresses::Prefixes(prefixes) => {
            let own = |prefix: &Prefix| containers.iter().any(|container| container.overlaps(prefix));
            Addresses::Prefixes(prefixes.iter().copied().filter(own).collect())
        }
    }
}

/// The same ports, ascending, with ranges that touch joined.
fn joined(ports: &[PortRange]) -> Vec<PortRange> {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut joined: Vec<PortRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.first() <= last.last().saturating_add(1) => {
                let wider = PortRange::new(last.first(), last.last().max(range.last()));
                *last = wider.expect("a range made wider is a range");
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(name: &str) -> Option<Vec<Prefix>> {
        let list: &[&str] = match name {
            "h1" => &["10.42.1.0/24", "fd42:0:0:1::/64", "192.168.7.0/24", "10.42.1.128/25"],
            "h2" => &["10.42.2.0/24"],
            _ => return None,
        };
        Some(list.iter().map(|text| text.parse().expect("a valid prefix in a test")).collect())
    }

    fn policy(text: &str) -> HostPolicy {
        let containers: Vec<Prefix> =
            ["10.42.1.0/24", "fd42:0:0:1::/64"].map(|text| text.parse().expect("a valid prefix in a test")).to_vec();
        HostPolicy::new(&text.parse().expect("a valid policy in a test"), &hosts, &containers)
    }

    fn numbers(policy: &HostPolicy, way: HostWay) -> Vec<u32> {
        policy.rules(way).iter().map(|rule| rule.number).collect()
    }

    #[test]
    fn rules_about_containers_of_others_are_left_out() {
        let policy = policy(
            "allow tcp/22 from 10.42.1.0/24 to 10.42.1.1\ndeny any from host:h2 to any\nallow any from any to host:h2\n\
             deny any from app=web to any\nallow tcp/80 from 10.42.0.0/16 to any\ndeny any from any to fd42:0:0:1::7\n\
             allow any from host:nobody to any\nallow udp from host:h1 to 10.42.2.0/24",
        );
        assert_eq!(numbers(&policy, HostWay::ToHost), [0, 2, 4, 5, 7]);
        // Who is at the host's end is not known here, so only the container's end leaves rules out.
        assert_eq!(numbers(&policy, HostWay::ToContainer), [0, 1, 4, 5]);
    }

    #[test]
    fn prefixes_and_ports_are_kept_without_overlap() {
        let policy = policy("allow tcp/90-95,80,81-85,83,100,96 from host:h1 to any");
        let rule = &policy.rules(HostWay::ToHost)[0];
        let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["80-85", "90-96", "100"]);
        let expected = ["10.42.1.0/24", "fd42:0:0:1::/64"].map(|text| text.parse().expect("a prefix")).to_vec();
        assert_eq!(rule.from, Addresses::Prefixes(expected));
        let all = policy.rules(HostWay::ToContainer);
        assert_eq!(all.len(), 1, "the host's own end may be in any prefix");
    }

    #[test]
    fn default_is_that_of_the_filter() {
        let members = policy("default members");
        assert_eq!(members.default_action(HostWay::ToHost, 6), Action::Reject);
        assert_eq!(members.default_action(HostWay::ToHost, 1), Action::Allow);
        assert_eq!(members.default_action(HostWay::ToContainer, 6), Action::Allow);
        for way in HostWay::ALL {
            assert_eq!(policy("default deny").default_action(way, 1), Action::Deny);
            assert_eq!(HostPolicy::closed().default_action(way, 58), Action::Deny);
        }
    }
}

//! The packet filter, compiled: the first rule that matches decides, then the default.
//!
//! Asked once per new flow (and per live flow when the tables' revision moves). The cost does not grow with the number
//! of rules as a walk would: three lookups (source prefix, destination prefix, protocol and port) each give a sparse set
//! of rules, and the lowest rule in all three decides.

mod bits;
mod compile;
mod default;
mod host;
mod labels;
mod matcher;
mod networks;
mod published;
mod record;
mod selector;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use overlay_routing::identities::Identities;
use overlay_routing::networks::Networks;
use overlay_wire::Prefix;
use overlay_wire::policy::{Action, DefaultPolicy, PolicySet, Rule, Selector};

pub use default::Grounds;
pub use host::{HostPolicy, HostRule, HostWay};
pub use labels::LabelUse;
pub use published::{Opening, Published};
pub use selector::Addresses;

use crate::path::End;
use matcher::Matcher;
use networks::NetworkIndex;
pub use record::RuleEvent;
pub(crate) use record::RuleLog;

/// Rules that match only perhaps and are looked at for one flow.
const MAX_OPEN_RULES: usize = 64;

/// What the filter sees of a flow: the translated tuple of its first packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source port of TCP and UDP, else 0.
    pub src_port: u16,
    /// Destination port of TCP and UDP, else 0.
    pub dst_port: u16,
}

impl Tuple {
    /// The tuple of the opposite direction.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, protocol: self.protocol, src_port: self.dst_port, dst_port: self.src_port }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = overlay_wire::policy::Protocol::Number(self.protocol);
        if protocol.has_ports() {
            let end = |ip: IpAddr, port| std::net::SocketAddr::new(ip, port);
            write!(f, "{protocol} {} -> {}", end(self.src, self.src_port), end(self.dst, self.dst_port))
        } else {
            write!(f, "{protocol} {} -> {}", self.src, self.dst)
        }
    }
}

/// What decided.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DecidedBy {
    /// The rule at this place, counted from 0.
    Rule(u32),
    /// The default policy, on these grounds.
    Default(Grounds),
    /// Nothing yet: whether this rule matches depends on labels that are not known here.
    Labels {
        /// The rule's place, counted from 0.
        rule: u32,
        /// Whose labels are missing.
        of: FlowEnd,
    },
}

/// One end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowEnd {
    /// Who opened it.
    Source,
    /// To whom.
    Destination,
}

impl FlowEnd {
    /// The address of this end.
    #[must_use]
    pub fn of(self, tuple: &Tuple) -> IpAddr {
        match self {
            Self::Source => tuple.src,
            Self::Destination => tuple.dst,
        }
    }
}

/// What the filter says to a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Decision {
    /// Allow, deny or reject.
    pub action: Action,
    /// What decided.
    pub by: DecidedBy,
}

impl Decision {
    /// Whether the flow may pass.
    #[must_use]
    pub fn allows(self) -> bool {
        self.action == Action::Allow
    }

    /// Whose labels must be known before there is an answer; until then the flow is denied.
    #[must_use]
    pub fn missing(self) -> Option<FlowEnd> {
        match self.by {
            DecidedBy::Labels { of, .. } => Some(of),
            DecidedBy::Rule(_) | DecidedBy::Default(_) => None,
        }
    }
}

/// Something in a policy that is accepted and does not do what it seems to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Warning {
    /// No member has this name.
    #[error("rule {}: no member is named `{name}`, so the rule matches nothing", rule + 1)]
    UnknownHost {
        /// The rule's place, counted from 0.
        rule: usize,
        /// The name.
        name: String,
    },
    /// No host knows a network of this name.
    #[error("rule {}: there is no network `{name}`, so the rule matches nothing", rule + 1)]
    UnknownNetwork {
        /// The rule's place, counted from 0.
        rule: usize,
        /// The name.
        name: String,
    },
    /// The selector needs services, which this version does not have.
    #[error("rule {}: `{selector}` matches nothing in this version; use a prefix, label=value, host:NAME or net:NAME", rule + 1)]
    Unsupported {
        /// The rule's place, counted from 0.
        rule: usize,
        /// The selector.
        selector: Selector,
    },
    /// Source and destination have no address family in common.
    #[error("rule {}: source and destination have no address family in common, so the rule matches nothing", rule + 1)]
    Families {
        /// The rule's place, counted from 0.
        rule: usize,
    },
    /// An earlier rule matches everything this one does.
    #[error("rule {}: never decides, because rule {} already matches all it matches", rule + 1, by + 1)]
    Shadowed {
        /// The rule's place, counted from 0.
        rule: usize,
        /// The earlier rule's place, counted from 0.
        by: usize,
    },
}

/// Finds the addresses of members, networks and labels.
pub trait HostResolver {
    /// The prefixes of the member named `name`; `None` when there is no such member.
    fn prefixes(&self, name: &str) -> Option<Vec<Prefix>>;

    /// Where the containers of the network named `name` are; `None` when there is no such network.
    fn network(&self, name: &str) -> Option<Vec<Prefix>> {
        let _ = name;
        None
    }

    /// Which labels addresses carry, where that is known.
    fn identities(&self) -> Option<&Identities> {
        None
    }
}

impl<F: Fn(&str) -> Option<Vec<Prefix>>> HostResolver for F {
    fn prefixes(&self, name: &str) -> Option<Vec<Prefix>> {
        self(name)
    }
}

/// A [`PolicySet`] made ready for the packet path.
#[derive(Clone, Debug, Default)]
pub struct CompiledPolicy {
    set: PolicySet,
    matcher: Matcher,
    networks: NetworkIndex,
    warnings: Vec<Warning>,
    hits: record::Hits,
    published: Published,
}

impl CompiledPolicy {
    /// Compiles a policy; `hosts` resolves `host:NAME` and `net:NAME`. Rules that can match nothing give a warning.
    #[must_use]
    pub fn compile(set: &PolicySet, hosts: &impl HostResolver) -> Self {
        let (matcher, warnings) = compile::compile(&set.rules, hosts);
        let (networks, hits) = (NetworkIndex::default(), record::Hits::new(set.rules.len()));
        Self { set: set.clone(), matcher, networks, warnings, hits, published: Published::default() }
    }

    /// Keeps these networks apart.
    #[must_use]
    pub fn with_networks(self, networks: &Networks) -> Self {
        Self { networks: NetworkIndex::new(networks), ..self }
    }

    /// Whether labels can decide about any packet.
    #[inline]
    #[must_use]
    pub fn speaks_of_labels(&self) -> bool {
        !self.matcher.labels.is_empty()
    }

    /// What was accepted and does not do what it seems to.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.set.rules
    }

    /// The default policy.
    #[must_use]
    pub fn default_policy(&self) -> DefaultPolicy {
        self.set.default
    }

    /// How often each rule decided since this policy was compiled: once per flow it let pass, once per packet it refused.
    #[must_use]
    pub fn hits(&self) -> Vec<u64> {
        self.hits.read()
    }

    /// Goes on counting where `previous` is, if its rules are the same: a policy is compiled again when addresses move.
    #[must_use]
    pub fn with_hits_of(mut self, previous: &Self) -> Self {
        if self.set.rules == previous.set.rules {
            self.hits = previous.hits.clone();
        }
        self
    }

    /// The policy with the ports that this host publishes.
    #[must_use]
    pub fn with_published(mut self, published: Published) -> Self {
        self.published = published;
        self
    }

    /// Writes down that the packet path acted on a decision.
    pub(crate) fn record(&self, tuple: &Tuple, decision: Decision, revision: u64, log: &mut RuleLog) {
        let DecidedBy::Rule(rule) = decision.by else { return };
        self.hits.add(rule);
        let Some(options) = self.set.rules.get(rule as usize).map(|rule| &rule.options) else { return };
        if options.log || options.audit {
            let (action, tuple) = (decision.action, *tuple);
            log.push(RuleEvent { rule, revision, tuple, action, log: options.log, audit: options.audit });
        }
    }

    /// Decides a flow by its tuple and the kind of place its two ends are. Labels count.
    #[must_use]
    pub fn decide(&self, tuple: &Tuple, from: End, to: End) -> Decision {
        self.decide_with(tuple, from, to, LabelUse::Count)
    }

    /// Decides a flow by its tuple, the kind of place its two ends are, and labels where they count.
    #[must_use]
    pub fn decide_with(&self, tuple: &Tuple, from: End, to: End, labels: LabelUse) -> Decision {
        if let Some(grounds) = self.networks.forbids(tuple, from, to) {
            return Decision { action: Action::Reject, by: DecidedBy::Default(grounds) };
        }
        let matches = self.matcher.look(tuple, labels);
        let mut next = 0;
        let mut open: Option<(Decision, Action)> = None;
        for _ in 0..MAX_OPEN_RULES {
            let found = matches.first(next);
            let Some((rule, of)) = found.and_then(|rule| Some((rule, matches.unknown(rule)?))) else {
                let decision = self.settled(found, tuple, from, to);
                // Where the rules that match perhaps say the same as what follows, it does not matter.
                return match open {
                    Some((unknown, action)) if action != decision.action => unknown,
                    _ => decision,
                };
            };
            let action = self.action(rule);
            match &open {
                None => open = Some((Decision { action: Action::Deny, by: DecidedBy::Labels { rule, of } }, action)),
                Some((unknown, before)) if *before != action => return *unknown,
                Some(_) => {}
            }
            next = rule + 1;
        }
        open.map_or_else(|| self.settled(None, tuple, from, to), |(unknown, _)| unknown)
    }

    fn action(&self, rule: u32) -> Action {
        self.set.rules.get(rule as usize).map_or(Action::Deny, |rule| rule.action)
    }

    /// What a rule that matches for certain says, or the default where none does.
    fn settled(&self, rule: Option<u32>, tuple: &Tuple, from: End, to: End) -> Decision {
        match rule {
            Some(rule) => Decision { action: self.action(rule), by: DecidedBy::Rule(rule) },
            None if self.published.opens(tuple, from, to) => {
                Decision { action: Action::Allow, by: DecidedBy::Default(Grounds::Published) }
            }
            None => {
                let (action, grounds) = default::decide(self.set.default, tuple.protocol, from, to);
                if action == Action::Allow && self.networks.are_apart(tuple, from, to) {
                    return Decision { action: Action::Reject, by: DecidedBy::Default(Grounds::Apart) };
                }
                Decision { action, by: DecidedBy::Default(grounds) }
            }
        }
    }
}

//! Ports that the host's owner has published: open to the outside where no rule says otherwise.
//!
//! The kernel has translated such a packet before it comes here, so its destination is the container. A packet from outside
//! the overlay gets this far only through a translation on this host, because the kernel takes no overlay address from
//! outside. Containers are not let in by this at the target's own address: between them the policy decides.

use std::net::IpAddr;

use super::Tuple;
use crate::path::End;

/// One published port: protocol, address, port.
pub type Opening = (u8, IpAddr, u16);

/// The published ports of this host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Published {
    targets: Vec<Opening>,
    host: Vec<Opening>,
    stand_ins: Vec<IpAddr>,
}

impl Published {
    /// `targets` are what ports lead to on this host; `host` the same ports on the host's overlay addresses; `stand_ins`
    /// the addresses that stand for containers of this host which come through the host's address.
    #[must_use]
    pub fn new(mut targets: Vec<Opening>, mut host: Vec<Opening>, stand_ins: Vec<IpAddr>) -> Self {
        targets.sort_unstable();
        host.sort_unstable();
        Self { targets, host, stand_ins }
    }

    /// Whether a flow goes to a published port in a way that publishing opens.
    #[inline]
    pub(super) fn opens(&self, tuple: &Tuple, from: End, to: End) -> bool {
        let opening = (tuple.protocol, tuple.dst, tuple.dst_port);
        match to {
            End::Host => self.host.binary_search(&opening).is_ok(),
            End::Member if matches!(from, End::Outside | End::Host) || self.stand_ins.contains(&tuple.src) => {
                self.targets.binary_search(&opening).is_ok()
            }
            End::Member | End::Foreign | End::Outside => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use overlay_wire::policy::{Action, PolicySet};

    use super::super::{CompiledPolicy, DecidedBy, Grounds};
    use super::*;
    use crate::testing::ip;

    const TARGET: &str = "10.42.1.4";

    fn policy(text: &str) -> CompiledPolicy {
        let set: PolicySet = text.parse().unwrap();
        let none = |_: &str| None;
        CompiledPolicy::compile(&set, &none).with_published(Published::new(
            vec![(6, ip(TARGET), 80)],
            vec![(6, ip("10.42.1.1"), 8080)],
            vec![ip("10.42.1.2")],
        ))
    }

    fn tuple(src: &str, dst: &str, protocol: u8, dst_port: u16) -> Tuple {
        Tuple { src: ip(src), dst: ip(dst), protocol, src_port: 40_000, dst_port }
    }

    #[test]
    fn published_port_is_open_to_the_outside_alone() {
        let policy = policy("default deny");
        let allows = |src: &str, dst: &str, protocol, port, from, to| {
            policy.decide(&tuple(src, dst, protocol, port), from, to).allows()
        };
        assert!(allows("192.0.2.9", TARGET, 6, 80, End::Outside, End::Member));
        assert!(allows("10.42.1.2", TARGET, 6, 80, End::Member, End::Member), "by the host's address");
        assert!(allows("10.42.2.9", "10.42.1.1", 6, 8080, End::Member, End::Host), "of another host");
        for (src, dst, protocol, port, from, to) in [
            ("192.0.2.9", TARGET, 17, 80, End::Outside, End::Member),
            ("192.0.2.9", TARGET, 6, 81, End::Outside, End::Member),
            ("192.0.2.9", "10.42.1.5", 6, 80, End::Outside, End::Member),
            ("10.42.1.5", TARGET, 6, 80, End::Member, End::Member),
            ("10.42.2.9", TARGET, 6, 80, End::Foreign, End::Member),
            ("10.42.2.9", "10.42.1.1", 6, 80, End::Member, End::Host),
        ] {
            assert!(!allows(src, dst, protocol, port, from, to), "{src} to {dst} {protocol}/{port}");
        }
        let decision = policy.decide(&tuple("192.0.2.9", TARGET, 6, 80), End::Outside, End::Member);
        assert_eq!(decision.by, DecidedBy::Default(Grounds::Published));
    }

    #[test]
    fn rule_that_matches_decides_over_a_published_port() {
        let policy = policy("deny tcp/80 from 192.0.2.0/24 to any\ndefault members");
        let decision = policy.decide(&tuple("192.0.2.9", TARGET, 6, 80), End::Outside, End::Member);
        assert_eq!((decision.action, decision.by), (Action::Deny, DecidedBy::Rule(0)));
        assert!(policy.decide(&tuple("198.51.100.9", TARGET, 6, 80), End::Outside, End::Member).allows());
    }
}

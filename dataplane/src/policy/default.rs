//! What the default policy says where no rule matches.

use std::fmt;

use overlay_wire::packet::protocol;
use overlay_wire::policy::{Action, DefaultPolicy};

use crate::path::End;

/// Why the default policy decided as it did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Grounds {
    /// The default is `open`.
    Open,
    /// Both ends are members.
    Members,
    /// A member speaks to the outside.
    Egress,
    /// A member pings the host.
    HostEcho,
    /// A host's own ports are closed to the overlay.
    HostClosed,
    /// The source is no member.
    Stranger,
    /// The destination is a foreign peer.
    ForeignPeer,
    /// The default is `deny`.
    Deny,
    /// The host's owner published the port, and no rule says otherwise.
    Published,
    /// The two ends are in different networks.
    Apart,
    /// One end is in an internal network and the other outside; no rule can allow it.
    Internal,
}

impl fmt::Display for Grounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "default open: everything may pass",
            Self::Members => "default members: members may talk to each other",
            Self::Egress => "default members: members may open connections to the outside",
            Self::HostEcho => "a host answers ping",
            Self::HostClosed => "a host's own ports are closed to the overlay unless a rule opens them",
            Self::Stranger => "default members: the source is no member",
            Self::ForeignPeer => "default members: the destination is a foreign peer",
            Self::Deny => "default deny: no rule allows it",
            Self::Published => "the port is published on this host",
            Self::Apart => "the two ends are in different networks, and no rule lets them talk",
            Self::Internal => "an internal network has no way to the outside, whatever the rules say",
        })
    }
}

/// Decides where no rule matches. ICMP stands for echo here: no other message opens a flow.
pub(super) fn decide(default: DefaultPolicy, number: u8, from: End, to: End) -> (Action, Grounds) {
    if default == DefaultPolicy::Deny {
        return (Action::Deny, Grounds::Deny);
    }
    let stranger = default == DefaultPolicy::Members && matches!(from, End::Foreign | End::Outside);
    match to {
        _ if stranger => (Action::Reject, Grounds::Stranger),
        End::Host if matches!(number, protocol::ICMP | protocol::ICMPV6) => (Action::Allow, Grounds::HostEcho),
        End::Host => (Action::Reject, Grounds::HostClosed),
        _ if default == DefaultPolicy::Open => (Action::Allow, Grounds::Open),
        End::Member => (Action::Allow, Grounds::Members),
        End::Outside => (Action::Allow, Grounds::Egress),
        End::Foreign => (Action::Reject, Grounds::ForeignPeer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: [End; 4] = [End::Host, End::Member, End::Foreign, End::Outside];

    #[test]
    fn members_lets_members_talk_and_go_out_and_nothing_else() {
        for from in ENDS {
            for to in ENDS {
                let member = matches!(from, End::Host | End::Member);
                let allowed = decide(DefaultPolicy::Members, protocol::TCP, from, to).0 == Action::Allow;
                assert_eq!(allowed, member && matches!(to, End::Member | End::Outside), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn host_ports_are_closed_but_for_ping_in_every_default() {
        for default in [DefaultPolicy::Open, DefaultPolicy::Members] {
            let closed = (Action::Reject, Grounds::HostClosed);
            assert_eq!(decide(default, protocol::TCP, End::Member, End::Host), closed);
            assert_eq!(decide(default, protocol::UDP, End::Member, End::Host), closed);
            assert_eq!(decide(default, protocol::ICMP, End::Member, End::Host).0, Action::Allow);
            assert_eq!(decide(default, protocol::ICMPV6, End::Member, End::Host).0, Action::Allow);
        }
    }

    #[test]
    fn deny_refuses_everything_silently() {
        for from in ENDS {
            for to in ENDS {
                assert_eq!(decide(DefaultPolicy::Deny, protocol::ICMP, from, to), (Action::Deny, Grounds::Deny));
            }
        }
    }
}

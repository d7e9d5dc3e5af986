//! Why a member cannot be reached from here, in words for status, `peer show` and `doctor`.

use overlay_routing::gossip::MemberView;
use overlay_wire::gossip::body::FEATURE_NAT;

/// Said of two hosts of which each says that it is behind a NAT.
const BOTH_BEHIND_NAT: &str = "both ends behind NAT, no direct path";

/// Whether a NAT stands in front of this host as its members see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnSide {
    /// Members see this host at its own address.
    Direct,
    /// They see it at another.
    BehindNat,
}

impl OwnSide {
    pub(super) fn of(is_behind_nat: bool) -> Self {
        if is_behind_nat { Self::BehindNat } else { Self::Direct }
    }
}

/// Whether a NAT stands in front of both ends.
pub(super) fn is_between_nats(member: &MemberView, own: OwnSide) -> bool {
    let theirs = member.host_record.as_ref().is_some_and(|record| record.features & FEATURE_NAT != 0);
    theirs && own == OwnSide::BehindNat
}

/// Why nothing comes back from a member that was looked for.
pub(super) fn why(member: &MemberView, own: OwnSide) -> String {
    if is_between_nats(member, own) {
        return BOTH_BEHIND_NAT.to_owned();
    }
    match member.candidates.as_slice() {
        [] => "no address of it is known, and it has not called".to_owned(),
        [only] => format!("no answer on {only}"),
        all => {
            let shown: Vec<String> = all.iter().map(ToString::to_string).collect();
            format!("no answer on any of {} endpoints: {}", all.len(), shown.join(", "))
        }
    }
}

/// What to do about it.
pub(super) fn next(member: &MemberView, own: OwnSide, port: u16) -> String {
    if is_between_nats(member, own) {
        format!(
            "forward UDP {port} to one of the two in its router and write the outside address as node.endpoints there, \
             or let the routers keep the source port"
        )
    } else {
        format!("check the host and the network between: `overlayctl doctor --peer {}`", member.name)
    }
}

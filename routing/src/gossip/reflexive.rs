//! Where this host is seen from outside: what members report, what of it is believed, and whether there is a NAT between.
//!
//! Each answer to a probe tells the address that the probe came from. An address that is not this host's own is published
//! beside its own ones when two members report the same, or when the only member that sees this host at a foreign address
//! does. A member that lies can at most make others send first contacts to an address that does not answer: an address
//! is used only after the host itself answered from there with its keys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use overlay_wire::HostId;
use overlay_wire::gossip::RecordKind;

use super::Gossip;
use super::view::{GossipEvent, MemberState};
use crate::ownership::Owner;

/// Reports remembered, one per member, the newest.
const MAX_REPORTS: usize = 16;
/// A report older than this says nothing any more.
const REPORT_LIFE: Duration = Duration::from_secs(300);
/// The least pause between two changes of what is published.
const CHANGE_GAP: Duration = Duration::from_secs(10);

/// Whether addresses seen from outside are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReflexiveUse {
    /// They are not looked at: where this host is reached is written down.
    #[default]
    Ignore,
    /// They are published when they are believed.
    Publish,
}

#[derive(Debug, Clone, Copy)]
struct Report {
    host: HostId,
    address: SocketAddr,
    at: Instant,
}

/// What members report, and what follows.
#[derive(Debug, Default)]
pub(super) struct Reflexive {
    wanted: ReflexiveUse,
    /// This host's own addresses.
    local: BTreeSet<IpAddr>,
    /// Newest last.
    reports: VecDeque<Report>,
    outside: Outside,
    next_change: Option<Instant>,
}

/// What is believed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Outside {
    /// At most one address per family.
    endpoints: Vec<SocketAddr>,
    behind_nat: bool,
}

impl Reflexive {
    /// The addresses to publish beside the own ones.
    pub(super) fn endpoints(&self) -> &[SocketAddr] {
        &self.outside.endpoints
    }

    pub(super) fn is_behind_nat(&self) -> bool {
        self.outside.behind_nat
    }

    fn report(&mut self, host: HostId, address: SocketAddr, now: Instant) {
        self.reports.retain(|report| report.host != host && now.saturating_duration_since(report.at) < REPORT_LIFE);
        if self.reports.len() >= MAX_REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back(Report { host, address, at: now });
    }

    pub(super) fn forget(&mut self, host: HostId) {
        self.reports.retain(|report| report.host != host);
    }

    /// What the reports that count say; as before where there are none.
    fn judge(&self, is_own: impl Fn(SocketAddr) -> bool, counts: impl Fn(HostId) -> bool) -> Outside {
        let reports: Vec<Report> = self.reports.iter().filter(|report| counts(report.host)).copied().collect();
        if reports.is_empty() {
            return self.outside.clone();
        }
        let mut outside = Outside::default();
        for ipv4 in [true, false] {
            let foreign = reports.iter().map(|report| report.address);
            let foreign = foreign.filter(|address| address.is_ipv4() == ipv4 && !is_own(*address));
            let mut votes: BTreeMap<SocketAddr, u32> = BTreeMap::new();
            foreign.for_each(|address| *votes.entry(address).or_default() += 1);
            let reporters: u32 = votes.values().sum();
            outside.behind_nat |= reporters > 0;
            let most = votes.into_iter().max_by_key(|(address, votes)| (*votes, std::cmp::Reverse(*address)));
            outside
                .endpoints
                .extend(most.filter(|(_, votes)| *votes >= 2 || reporters == 1).map(|(address, _)| address));
        }
        outside
    }
}

/// Whether other hosts may reach an address at all: not the loopback's, link-local, of a group or none.
#[must_use]
pub fn is_reachable_from_elsewhere(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
}

impl Gossip {
    /// Says which addresses are this host's own, and whether others at which members see it are to be published. What
    /// members reported before an address changed is forgotten.
    pub fn set_local_addresses(&mut self, local: BTreeSet<IpAddr>, wanted: ReflexiveUse, now: Instant) {
        let reflexive = &mut self.reflexive;
        if reflexive.local == local && reflexive.wanted == wanted {
            return;
        }
        let before = std::mem::take(reflexive);
        (reflexive.local, reflexive.wanted) = (local, wanted);
        if before.outside != Outside::default() {
            self.publish_host(now);
        }
    }

    /// Whether members see this host at an address that is not its own.
    #[must_use]
    pub fn is_behind_nat(&self) -> bool {
        self.reflexive.is_behind_nat()
    }

    /// Addresses at which members see this host and which are not its own, as far as they are believed: at most one per
    /// family.
    #[must_use]
    pub fn outside_endpoints(&self) -> &[SocketAddr] {
        self.reflexive.endpoints()
    }

    /// Remembers under which address a member sees us.
    pub(super) fn note_observed(&mut self, host: HostId, observed: Option<SocketAddr>, now: Instant) {
        let (Some(address), Some(peer)) = (observed, self.peers.get_mut(&host)) else { return };
        peer.observed = Some(address);
        let ip = address.ip();
        let in_overlay = matches!(self.rib.owner(ip), Some(Owner::Local | Owner::Member(_)));
        if self.reflexive.wanted == ReflexiveUse::Publish
            && address.port() != 0
            && is_reachable_from_elsewhere(ip)
            && !in_overlay
        {
            self.reflexive.report(host, address, now);
        }
    }

    /// Publishes what is believed now, when it changed.
    pub(super) fn settle_reflexive(&mut self, now: Instant) {
        let reflexive = &self.reflexive;
        if reflexive.wanted == ReflexiveUse::Ignore || reflexive.next_change.is_some_and(|at| now < at) {
            return;
        }
        let port_of_own = |address: SocketAddr| self.own.endpoints.iter().any(|own| own.port() == address.port());
        let is_own = |address: SocketAddr| {
            self.own.endpoints.contains(&address) || (reflexive.local.contains(&address.ip()) && port_of_own(address))
        };
        let is_up = |host: HostId| self.peers.get(&host).is_some_and(|peer| peer.state == MemberState::Up);
        let outside = reflexive.judge(is_own, is_up);
        if outside == reflexive.outside {
            return;
        }
        let new: Vec<SocketAddr> = outside
            .endpoints
            .iter()
            .filter(|address| !reflexive.outside.endpoints.contains(address))
            .copied()
            .collect();
        self.reflexive.outside = outside;
        self.reflexive.next_change = Some(now + CHANGE_GAP);
        new.into_iter().for_each(|address| self.emit(GossipEvent::ReflexiveAddress { address }));
        self.publish_host(now);
    }

    /// Publishes the HOST record anew; one that is too large with the addresses seen from outside goes without them.
    fn publish_host(&mut self, now: Instant) {
        if let Ok(body) = self.host_body(&self.own) {
            self.publish(self.own_key(RecordKind::HOST), body, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "10.0.0.2:51821";

    fn judged(reports: &[(u8, &str)]) -> Outside {
        let mut reflexive = Reflexive::default();
        let now = Instant::now();
        for (host, address) in reports {
            reflexive.report(HostId([*host; 16]), address.parse().expect("an address"), now);
        }
        let own: SocketAddr = OWN.parse().expect("an address");
        reflexive.judge(|address| address == own, |_| true)
    }

    fn endpoints(reports: &[(u8, &str)]) -> Vec<String> {
        judged(reports).endpoints.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn own_address_is_no_nat() {
        assert_eq!(judged(&[(1, OWN), (2, OWN)]), Outside::default());
    }

    #[test]
    fn two_that_agree_or_the_only_one_are_believed() {
        let outside = "203.0.113.5:51821";
        assert_eq!(endpoints(&[(1, outside), (2, outside)]), [outside]);
        assert_eq!(endpoints(&[(1, outside)]), [outside]);
        // Those in the same network see the own address and say nothing of the outside.
        assert_eq!(endpoints(&[(1, outside), (2, OWN), (3, OWN)]), [outside]);
    }

    #[test]
    fn one_that_says_otherwise_than_two_is_not_believed() {
        let (outside, lie) = ("203.0.113.5:51821", "198.51.100.66:53");
        assert_eq!(endpoints(&[(1, outside), (2, outside), (3, lie)]), [outside]);
        assert_eq!(endpoints(&[(3, lie), (1, outside)]), [] as [&str; 0]);
        // A member has one voice, however often it speaks.
        assert_eq!(endpoints(&[(1, outside), (3, lie), (3, lie), (3, lie)]), [] as [&str; 0]);
    }

    #[test]
    fn another_port_for_each_member_is_a_nat_without_an_address() {
        let found = judged(&[(1, "203.0.113.5:1025"), (2, "203.0.113.5:1026"), (3, "203.0.113.5:1027")]);
        assert_eq!(found, Outside { endpoints: Vec::new(), behind_nat: true });
    }

    #[test]
    fn families_are_judged_apart() {
        let (v4, v6) = ("203.0.113.5:51821", "[2001:db8::5]:51821");
        assert_eq!(endpoints(&[(1, v4), (2, v6)]), [v4, v6]);
    }

    #[test]
    fn reports_are_bounded_and_the_oldest_go_first() {
        let mut reflexive = Reflexive::default();
        let now = Instant::now();
        for host in 0..=255 {
            reflexive.report(HostId([host; 16]), OWN.parse().expect("an address"), now);
        }
        assert_eq!(reflexive.reports.len(), MAX_REPORTS);
        reflexive.report(HostId([1; 16]), OWN.parse().expect("an address"), now + REPORT_LIFE);
        assert_eq!(reflexive.reports.len(), 1);
    }
}

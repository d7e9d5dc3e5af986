//! Building the RIB: grants first, then the order-free conflict rule.
//!
//! Claims are taken in one total order (local, then explicit grants, then pool grants; each of configured members before
//! certified ones, by first serial, by host id; then whatever rests on a certificate out of its time) and a claim is in use
//! when it overlaps no claim of another owner that is in use already. The order in which records arrived, and the length
//! of a prefix, do not enter. Foreign peers are the exception that the operator wrote down: see `overlaps_badly`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlay_wire::gossip::{Grant, GrantKind, RouteAnnouncement};
use overlay_wire::membership::Serial;
use overlay_wire::{HostId, Prefix};

use super::{Claim, ClaimSource, MAX_PREFIXES_PER_OWNER, Refusal, Rib, Rule};
use crate::gossip::ForeignPrefixes;
use crate::ownership::{Owner, OwnerTable};

/// Everything ownership follows from.
#[derive(Debug, Clone, Default)]
pub struct RibInput {
    /// This host.
    pub local: LocalClaims,
    /// Foreign peers, in configuration order.
    pub foreign: Vec<ForeignPrefixes>,
    /// Members with their grants and what their newest valid records claim; the order does not matter.
    pub members: Vec<MemberClaims>,
}

/// What this host claims for itself.
#[derive(Debug, Clone, Default)]
pub struct LocalClaims {
    /// The host's name.
    pub name: String,
    /// Its own prefixes.
    pub prefixes: Vec<Prefix>,
    /// What it announces beside them.
    pub announced: Vec<RouteAnnouncement>,
}

/// What one member may claim and claims.
#[derive(Debug, Clone)]
pub struct MemberClaims {
    /// The member.
    pub host: HostId,
    /// Its name in the configuration.
    pub name: String,
    /// What it may announce.
    pub allow: Vec<Grant>,
    /// On what its membership rests.
    pub authority: ClaimAuthority,
    /// What it announces, with the record each prefix stands in.
    pub claims: Vec<(RouteAnnouncement, ClaimSource)>,
}

/// On what a member's claims rest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ClaimAuthority {
    /// On this host's configuration.
    #[default]
    Static,
    /// On a certificate.
    Certificate {
        /// The serial of the member's first certificate.
        admitted: Serial,
        /// How many prefixes it may claim.
        max_prefixes: usize,
        /// Set while the certificate is out of its time: what the member may keep out of pools.
        expired: Option<BTreeSet<Prefix>>,
    },
}

impl ClaimAuthority {
    fn is_expired(&self) -> bool {
        matches!(self, Self::Certificate { expired: Some(_), .. })
    }

    /// The place among equally strong grants: configured members first, then by first serial.
    fn seniority(&self) -> Option<Serial> {
        match self {
            Self::Static => None,
            Self::Certificate { admitted, .. } => Some(*admitted),
        }
    }
}

impl Rib {
    /// Builds the RIB; a pure function of its input, whatever the order of members and claims.
    #[must_use]
    pub fn build(input: &RibInput) -> Self {
        let mut claims = collect(input);
        claims.sort_by_key(rank);
        claims.dedup_by(|later, earlier| later.owner == earlier.owner && later.prefix == earlier.prefix);
        let mut in_use = InUse::default();
        for claim in &mut claims {
            if claim.refusal.is_none() {
                match conflict(&in_use, claim) {
                    Some(refusal) => claim.refusal = Some(refusal),
                    None => in_use.insert(
                        claim.prefix,
                        Settled {
                            owner: claim.owner,
                            name: claim.name.clone(),
                            kind: claim.grant.map(|grant| grant.kind()),
                            authority: claim.authority.clone(),
                        },
                    ),
                }
            }
        }
        let routes = claims.iter().filter(|claim| claim.refusal.is_none()).map(|claim| (claim.prefix, claim.owner));
        let owners = OwnerTable::new(routes.collect());
        claims.sort_by_key(|claim| (claim.prefix, claim.refusal.is_some(), rank(claim)));
        Self { claims, owners }
    }
}

/// A claim in use.
struct Settled {
    owner: Owner,
    name: String,
    kind: Option<GrantKind>,
    authority: Option<ClaimAuthority>,
}

/// The claims in use by prefix, and which prefix lengths occur: looking at the others costs most of the time where members
/// are many.
#[derive(Default)]
struct InUse {
    prefixes: BTreeMap<Prefix, Vec<Settled>>,
    /// Bit n is set when a prefix of length n, below 128, is in use.
    lengths: u128,
}

impl InUse {
    fn insert(&mut self, prefix: Prefix, settled: Settled) {
        self.lengths |= 1u128.checked_shl(prefix.len().into()).unwrap_or(0);
        self.prefixes.entry(prefix).or_default().push(settled);
    }
}

/// The total order in which claims are taken.
fn rank(claim: &Claim) -> (u8, Option<GrantKind>, Option<Serial>, Owner, Prefix, ClaimSource) {
    let kind = claim.grant.map(|grant| grant.kind());
    let class = match (claim.owner, claim.grant.map(|grant| grant.kind())) {
        (Owner::Local, _) if claim.source == ClaimSource::OwnAnnouncement => 6,
        (Owner::Member(_), Some(_)) if claim.authority.as_ref().is_some_and(ClaimAuthority::is_expired) => 4,
        (Owner::Local, _) => 0,
        (Owner::Foreign(_), _) => 1,
        (Owner::Member(_), Some(GrantKind::Explicit)) => 2,
        (Owner::Member(_), Some(GrantKind::Pool)) => 3,
        (Owner::Member(_), None) => 5,
    };
    let seniority = claim.authority.as_ref().and_then(ClaimAuthority::seniority);
    (class, kind, seniority, claim.owner, claim.prefix, claim.source)
}

fn collect(input: &RibInput) -> Vec<Claim> {
    let mut claims = Vec::new();
    let local = |prefix, source, metric| Claim {
        prefix,
        owner: Owner::Local,
        name: input.local.name.clone(),
        source,
        metric,
        grant: None,
        authority: None,
        refusal: None,
    };
    claims.extend(input.local.prefixes.iter().map(|prefix| local(*prefix, ClaimSource::OwnPrefix, 0)));
    claims.extend(
        input.local.announced.iter().map(|route| local(route.prefix, ClaimSource::OwnAnnouncement, route.metric)),
    );
    for (peer, index) in input.foreign.iter().zip(0u32..) {
        claims.extend(peer.allowed_ips.iter().map(|prefix| Claim {
            prefix: *prefix,
            owner: Owner::Foreign(index),
            name: peer.name.clone(),
            source: ClaimSource::Configuration,
            metric: 0,
            grant: None,
            authority: None,
            refusal: None,
        }));
    }
    for member in &input.members {
        claims.extend(member_claims(member));
    }
    claims
}

fn member_claims(member: &MemberClaims) -> Vec<Claim> {
    let mut announced = member.claims.clone();
    // HOST prefixes come before ROUTES of the same prefix, so that an overflow never drops a host's own subnet.
    announced.sort_by_key(|(route, source)| (*source, route.prefix));
    let claims = announced.into_iter().zip(0usize..).map(|((route, source), place)| {
        // The smallest permitting grant in (kind, prefix) order: explicit first.
        let grant = member
            .allow
            .iter()
            .filter(|grant| grant.permits(&route.prefix))
            .min_by_key(|grant| (grant.kind(), grant.prefix(), grant.longest()))
            .copied();
        let (most, kept) = match &member.authority {
            ClaimAuthority::Static => (MAX_PREFIXES_PER_OWNER, None),
            ClaimAuthority::Certificate { max_prefixes, expired, .. } => {
                (MAX_PREFIXES_PER_OWNER.min(*max_prefixes), expired.as_ref())
            }
        };
        let is_kept =
            |grant: Grant, kept: &BTreeSet<Prefix>| grant.kind() == GrantKind::Explicit || kept.contains(&route.prefix);
        let refusal = if place >= most {
            Some(Refusal::TooMany)
        } else if is_reserved(&route.prefix) {
            Some(Refusal::Reserved)
        } else if grant.is_none() {
            let covering = member.allow.iter().filter(|grant| grant.prefix().covers(&route.prefix)).min();
            Some(covering.map_or(Refusal::OutsideAllow, |grant| Refusal::TooLong { grant: *grant }))
        } else if grant.zip(kept).is_some_and(|(grant, kept)| !is_kept(grant, kept)) {
            Some(Refusal::Expired)
        } else {
            None
        };
        Claim {
            prefix: route.prefix,
            owner: Owner::Member(member.host),
            name: member.name.clone(),
            source,
            metric: route.metric,
            grant,
            authority: Some(member.authority.clone()),
            refusal,
        }
    });
    claims.collect()
}

/// Ranges that no member can own: this-network, loopback, link-local, multicast, broadcast and what IPv6 has of them.
/// A default route is none of them; whether it may be claimed is for the grants to say.
fn is_reserved(prefix: &Prefix) -> bool {
    const RESERVED: [(IpAddr, u8); 8] = [
        (IpAddr::V4(std::net::Ipv4Addr::new(0, 0, 0, 0)), 8),
        (IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 0)), 8),
        (IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 0, 0)), 16),
        (IpAddr::V4(std::net::Ipv4Addr::new(224, 0, 0, 0)), 3),
        (IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 128),
        (IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 128),
        (IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
        (IpAddr::V6(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    ];
    RESERVED
        .iter()
        .any(|(addr, len)| *len <= prefix.len() && Prefix::truncating(*addr, *len).is_ok_and(|r| r.covers(prefix)))
}

/// The claim in use that refuses `claim`, if any: the first in rank order of those that overlap it.
fn conflict(in_use: &InUse, claim: &Claim) -> Option<Refusal> {
    let InUse { prefixes: in_use, lengths } = in_use;
    let covering = (0..claim.prefix.len()).filter(|len| lengths >> len & 1 == 1).filter_map(|len| {
        let shorter = Prefix::truncating(claim.prefix.addr(), len).ok()?;
        in_use.get_key_value(&shorter)
    });
    let inside = in_use.range(claim.prefix..).take_while(|(prefix, _)| claim.prefix.covers(prefix));
    covering
        .chain(inside)
        .flat_map(|(prefix, owners)| owners.iter().map(move |owner| (prefix, owner)))
        .filter(|(prefix, other)| other.owner != claim.owner && overlaps_badly(prefix, other, claim))
        .min_by_key(|(prefix, other)| (other.owner, **prefix))
        .map(|(prefix, other)| Refusal::Lost {
            to_prefix: *prefix,
            to: other.owner,
            to_name: other.name.clone(),
            rule: rule(other, claim),
        })
}

/// Whether an overlap with a claim in use is a conflict.
///
/// It always is, with one exception. What this host's configuration says about foreign peers and its own prefixes nests
/// as the operator wrote it: a foreign peer may hold a default route around everything else, and a smaller prefix inside
/// a member's. A member's claim lives inside a foreign prefix only where its *grant* is the more specific of the two, so
/// that no announcement can cut a piece out of a foreign peer's range.
fn overlaps_badly(settled_prefix: &Prefix, settled: &Settled, claim: &Claim) -> bool {
    match (settled.owner, claim.owner) {
        (Owner::Local, Owner::Foreign(_)) => settled_prefix.covers(&claim.prefix),
        (Owner::Foreign(_), Owner::Foreign(_) | Owner::Local) => *settled_prefix == claim.prefix,
        (Owner::Foreign(_), Owner::Member(_)) => {
            let strictly_inside_claim = claim.prefix.covers(settled_prefix) && claim.prefix != *settled_prefix;
            let grant_strictly_inside = claim.grant.is_some_and(|grant| {
                settled_prefix.covers(&grant.prefix()) && settled_prefix.len() < grant.prefix().len()
            });
            !strictly_inside_claim && !grant_strictly_inside
        }
        _ => true,
    }
}

fn rule(winner: &Settled, loser: &Claim) -> Rule {
    match (winner.owner, loser.owner) {
        (_, Owner::Local) => Rule::AnnouncementYields,
        (Owner::Local, _) => Rule::OwnPrefixWins,
        (Owner::Foreign(_), Owner::Foreign(_)) => Rule::ConfiguredFirst,
        (Owner::Foreign(_), _) => Rule::ConfigurationWins,
        _ if is_out_of_time(&loser.authority) && !is_out_of_time(&winner.authority) => Rule::ValidBeatsExpired,
        _ if winner.kind != loser.grant.map(|grant| grant.kind()) => Rule::ExplicitBeatsPool,
        _ => match (seniority(&winner.authority), seniority(&loser.authority)) {
            (None, Some(_)) => Rule::StaticBeatsCertified,
            (Some(winner), Some(loser)) if winner != loser => Rule::LowerSerial,
            _ => Rule::LowerHostId,
        },
    }
}

fn is_out_of_time(authority: &Option<ClaimAuthority>) -> bool {
    authority.as_ref().is_some_and(ClaimAuthority::is_expired)
}

fn seniority(authority: &Option<ClaimAuthority>) -> Option<Serial> {
    authority.as_ref().and_then(ClaimAuthority::seniority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ranges_are_recognised() {
        let reserved =
            ["127.0.0.1/32", "224.0.0.5/32", "255.255.255.255/32", "169.254.169.254/32", "fe80::/64", "::1/128"];
        for text in reserved {
            assert!(is_reserved(&text.parse().expect("prefix")), "{text}");
        }
        for text in ["0.0.0.0/0", "::/0", "10.0.0.0/8", "0.0.0.0/1", "fd42::/48"] {
            assert!(!is_reserved(&text.parse().expect("prefix")), "{text}");
        }
    }
}

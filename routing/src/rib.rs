//! Route information base: every claim to a prefix, which one is in use, and why the others are not.

use std::net::IpAddr;

use overlay_wire::gossip::{Grant, RouteVerdict};
use overlay_wire::{HostId, Prefix};

use crate::ownership::{Owner, OwnerTable};

mod build;
mod explain;
#[cfg(test)]
mod tests;

pub use build::{ClaimAuthority, LocalClaims, MemberClaims, RibInput};
pub use explain::Why;

/// The most prefixes counted per member, HOST and ROUTES together.
pub const MAX_PREFIXES_PER_OWNER: usize = 64;

/// Where a claim comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClaimSource {
    /// This host's own prefixes in its configuration.
    OwnPrefix,
    /// A prefix this host announces.
    OwnAnnouncement,
    /// `allowed_ips` of a foreign peer in this host's configuration.
    Configuration,
    /// The prefixes in a member's HOST record of this version.
    HostRecord {
        /// The record's version.
        version: u64,
    },
    /// A member's ROUTES record of this version.
    RoutesRecord {
        /// The record's shard.
        shard: u16,
        /// The record's version.
        version: u64,
    },
}

/// One claim to one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The prefix.
    pub prefix: Prefix,
    /// Who claims it.
    pub owner: Owner,
    /// The claimant's name in the configuration.
    pub name: String,
    /// Where the claim comes from.
    pub source: ClaimSource,
    /// The claimant's own preference; shown only.
    pub metric: u32,
    /// The grant that permits it; `None` for local claims and for claims outside every grant.
    pub grant: Option<Grant>,
    /// On what the claimant's membership rests; `None` for local claims and foreign peers.
    pub authority: Option<ClaimAuthority>,
    /// `None` when the claim is in use.
    pub refusal: Option<Refusal>,
}

/// Why a claim is not in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No grant for the claimant covers the prefix.
    OutsideAllow,
    /// A pool grant covers it but permits no prefix that long.
    TooLong {
        /// The grant.
        grant: Grant,
    },
    /// Another claim with which it overlaps wins.
    Lost {
        /// The winning prefix.
        to_prefix: Prefix,
        /// The winner.
        to: Owner,
        /// The winner's name.
        to_name: String,
        /// The rule that decided.
        rule: Rule,
    },
    /// Loopback, link-local, multicast or another range that is never routed.
    Reserved,
    /// The claimant has more prefixes than are counted.
    TooMany,
    /// The claimant's certificate is out of its time, and the claim is new.
    Expired,
}

/// The rule that decides between two owners; prefix length and time of arrival are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// This host's own prefixes win on this host.
    OwnPrefixWins,
    /// What this host announces gives way to prefixes that others own.
    AnnouncementYields,
    /// A foreign peer's configured prefix wins over what a member takes from the same range.
    ConfigurationWins,
    /// An explicit grant beats a pool grant.
    ExplicitBeatsPool,
    /// A claim under a certificate that is out of its time gives way.
    ValidBeatsExpired,
    /// A configured member wins over one that rests on a certificate.
    StaticBeatsCertified,
    /// The member that was admitted first wins: the lower serial of its first certificate.
    LowerSerial,
    /// The lower host id wins.
    LowerHostId,
    /// The peer that is configured first wins.
    ConfiguredFirst,
}

/// A refused claim of a member, with the line that would permit it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The claimant.
    pub owner: HostId,
    /// The claim.
    pub claim: Claim,
    /// The configuration line that is missing, where one would help.
    pub missing_line: Option<String>,
}

/// All claims and the owner table that follows from them.
#[derive(Debug, Clone, Default)]
pub struct Rib {
    claims: Vec<Claim>,
    owners: OwnerTable,
}

impl Rib {
    /// Every claim in prefix order, the one in use first.
    #[must_use]
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// The owner table.
    #[must_use]
    pub fn owners(&self) -> &OwnerTable {
        &self.owners
    }

    /// The owner of an address.
    #[inline]
    #[must_use]
    pub fn owner(&self, ip: IpAddr) -> Option<Owner> {
        self.owners.owner(ip)
    }

    /// The claims in use: the best path of each prefix.
    pub fn best(&self) -> impl Iterator<Item = &Claim> {
        self.claims.iter().filter(|claim| claim.refusal.is_none())
    }

    /// The refused claims of members.
    pub fn refused(&self) -> impl Iterator<Item = Refused> {
        self.claims.iter().filter_map(|claim| match (&claim.refusal, claim.owner) {
            (Some(_), Owner::Member(owner)) => {
                Some(Refused { owner, claim: claim.clone(), missing_line: explain::missing_line(claim) })
            }
            _ => None,
        })
    }

    /// What this host made of each prefix a member announces, in prefix order.
    #[must_use]
    pub fn verdicts(&self, owner: HostId) -> Vec<(Prefix, RouteVerdict)> {
        let mut verdicts: Vec<(Prefix, RouteVerdict)> = Vec::new();
        for claim in self.claims.iter().filter(|claim| claim.owner == Owner::Member(owner)) {
            if verdicts.last().is_none_or(|(prefix, _)| *prefix != claim.prefix) {
                verdicts.push((claim.prefix, claim.verdict()));
            }
        }
        verdicts
    }
}

impl Claim {
    /// The claim's fate in one word.
    #[must_use]
    pub fn verdict(&self) -> RouteVerdict {
        match &self.refusal {
            None => RouteVerdict::Accepted,
            Some(Refusal::OutsideAllow) => RouteVerdict::OutsideAllow,
            Some(Refusal::TooLong { .. }) => RouteVerdict::TooLong,
            Some(Refusal::Lost {
                rule: Rule::OwnPrefixWins | Rule::AnnouncementYields | Rule::ConfigurationWins,
                ..
            }) => RouteVerdict::LocalConfiguration,
            Some(Refusal::Lost { .. }) => RouteVerdict::Lost,
            Some(Refusal::Reserved) => RouteVerdict::Reserved,
            Some(Refusal::TooMany) => RouteVerdict::TooMany,
            Some(Refusal::Expired) => RouteVerdict::Expired,
        }
    }
}

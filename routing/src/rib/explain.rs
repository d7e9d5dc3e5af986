//! Answering why a prefix or address goes where it goes.

use std::fmt;
use std::net::IpAddr;

use overlay_wire::Prefix;

use super::{Claim, ClaimAuthority, ClaimSource, Refusal, Rib, Rule};
use crate::ownership::Owner;

/// Why a prefix goes where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// What was asked about.
    pub asked: Prefix,
    /// The claim in use: the longest that covers what was asked.
    pub best: Option<Claim>,
    /// Shorter claims in use that also cover it.
    pub covering: Vec<Claim>,
    /// Refused claims that overlap what was asked.
    pub refused: Vec<Claim>,
}

impl Rib {
    /// Explains a prefix: the claim in use, the claims around it, and why the competing ones lost.
    #[must_use]
    pub fn why(&self, asked: Prefix) -> Why {
        let in_use = self.best().filter(|claim| claim.prefix.covers(&asked));
        let mut covering: Vec<Claim> = in_use.cloned().collect();
        covering.sort_by_key(|claim| std::cmp::Reverse(claim.prefix.len()));
        let best = if covering.is_empty() { None } else { Some(covering.remove(0)) };
        let refused = self.claims.iter().filter(|claim| claim.refusal.is_some() && claim.prefix.overlaps(&asked));
        Why { asked, best, covering, refused: refused.cloned().collect() }
    }

    /// Explains an address.
    #[must_use]
    pub fn why_ip(&self, ip: IpAddr) -> Why {
        self.why(Prefix::host(ip))
    }
}

impl Claim {
    /// One sentence: where the claim comes from and what permits it.
    #[must_use]
    pub fn reason(&self) -> String {
        let source = match self.source {
            ClaimSource::OwnPrefix => "prefix of this host (node.prefixes)".to_owned(),
            ClaimSource::OwnAnnouncement => "announced by this host".to_owned(),
            ClaimSource::Configuration => format!("allowed_ips of peer {}", self.name),
            ClaimSource::HostRecord { version } => format!("HOST record of {}, version {version}", self.name),
            ClaimSource::RoutesRecord { shard, version } => {
                format!("ROUTES record of {}, shard {shard}, version {version}", self.name)
            }
        };
        match self.grant {
            Some(grant) if self.is_certified() => format!("{source}; granted by its certificate: {grant}"),
            Some(grant) => format!("{source}; granted by allow = [\"{grant}\"]"),
            None => source,
        }
    }

    /// One sentence: why the claim is not in use, and what line is missing; `None` when it is in use.
    #[must_use]
    pub fn refusal_reason(&self) -> Option<String> {
        let refusal = self.refusal.as_ref()?;
        let missing = missing_line(self).map_or_else(String::new, |line| format!("; missing: {line}"));
        Some(match refusal {
            Refusal::OutsideAllow if self.is_certified() => {
                format!("the certificate of {} does not cover {}", self.name, self.prefix)
            }
            Refusal::TooLong { grant } if self.is_certified() => {
                format!("{} is longer than the certificate of {} permits: {grant}", self.prefix, self.name)
            }
            Refusal::Expired => {
                format!("the certificate of {} is out of its time: it may announce nothing new", self.name)
            }
            Refusal::OutsideAllow => format!("no allow entry of {} covers {}{missing}", self.name, self.prefix),
            Refusal::TooLong { grant } => {
                format!("{} is longer than allow entry \"{grant}\" of {} permits{missing}", self.prefix, self.name)
            }
            Refusal::Lost { to_prefix, to_name, rule, .. } => {
                format!("overlaps {to_prefix} of {to_name}, which wins: {rule}")
            }
            Refusal::Reserved => format!("{} is never routed (loopback, link-local or multicast)", self.prefix),
            Refusal::TooMany => {
                format!("{} announces more than {} prefixes", self.name, super::MAX_PREFIXES_PER_OWNER)
            }
        })
    }
}

impl Claim {
    /// Whether the claimant is a member by certificate.
    #[must_use]
    pub fn is_certified(&self) -> bool {
        matches!(self.authority, Some(ClaimAuthority::Certificate { .. }))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnPrefixWins => "this host's own prefixes win on this host",
            Self::AnnouncementYields => "what this host announces gives way to prefixes that others own",
            Self::ConfigurationWins => "the configured allowed_ips of a peer win over announcements",
            Self::ExplicitBeatsPool => "an explicit grant beats a pool grant",
            Self::ValidBeatsExpired => "a certificate out of its time gives way",
            Self::StaticBeatsCertified => "a configured member wins over one with a certificate",
            Self::LowerSerial => "the grants are equally strong and the member admitted first wins",
            Self::LowerHostId => "the grants are equally strong and the lower host id wins",
            Self::ConfiguredFirst => "the peer that is configured first wins",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.best {
            Some(claim) => writeln!(f, "{}: {} via {} ({})", self.asked, claim.prefix, claim.name, claim.reason())?,
            None => writeln!(f, "{}: no owner", self.asked)?,
        }
        for claim in &self.covering {
            writeln!(f, "  also covered by {} via {} ({})", claim.prefix, claim.name, claim.reason())?;
        }
        for claim in &self.refused {
            let reason = claim.refusal_reason().unwrap_or_default();
            writeln!(f, "  refused: {} by {} ({}): {reason}", claim.prefix, claim.name, claim.reason())?;
        }
        Ok(())
    }
}

/// The configuration line that would permit a refused claim, where a line is what is missing.
pub(super) fn missing_line(claim: &Claim) -> Option<String> {
    match (&claim.refusal, claim.owner) {
        (Some(Refusal::OutsideAllow | Refusal::TooLong { .. }), Owner::Member(_)) if !claim.is_certified() => {
            Some(format!("allow = [\"{}\"] for [[member]] name = \"{}\"", claim.prefix, claim.name))
        }
        _ => None,
    }
}
